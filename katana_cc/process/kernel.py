"""Addresses that the kernel keeps for a process and gives back to it, as far as /proc tells: `epoll_data` of each
descriptor that an epoll instance watches, and `sigev_value` of POSIX timers.

A variable whose address is among them must not move: the program would be handed the old one.

Sources: proc_pid_fdinfo(5) "epoll", proc_pid_timers(5).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_EPOLL: Final = "anon_inode:[eventpoll]"
_DATA: Final = re.compile(r"^tfd: +(\d+) .*?data: +([0-9a-f]+)", re.MULTILINE)
_TIMER: Final = re.compile(r"^ID: (\d+)\nsignal: \d+/([0-9a-f]+)", re.MULTILINE)


class KernelWord(NamedTuple):
    """An address the kernel keeps; `place` for a person."""

    place: str
    value: int


def kept(pid: int) -> Iterator[KernelWord]:
    """What the kernel keeps for a process, as of now."""
    folder = f"/proc/{pid}"
    numbers: list[str] = []
    with contextlib.suppress(OSError):
        numbers = os.listdir(f"{folder}/fd")  # noqa: PTH208  (quicker in the stop)
    for number in numbers:
        with contextlib.suppress(OSError):
            if os.readlink(f"{folder}/fd/{number}") != _EPOLL:  # noqa: PTH115  (the same)
                continue
            for watched, value in _DATA.findall(Path(f"{folder}/fdinfo/{number}").read_text(encoding="utf-8")):
                yield KernelWord(f"epoll_data of descriptor {watched} in epoll {number}", int(value, 16))
    with contextlib.suppress(OSError):
        for number, value in _TIMER.findall(Path(f"{folder}/timers").read_text(encoding="utf-8")):
            yield KernelWord(f"sigev_value of timer {number}", int(value, 16))
