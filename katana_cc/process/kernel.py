"""Addresses that the kernel keeps for a process and gives back to it, as far as /proc tells: `epoll_data` of each
descriptor that an epoll instance watches, and `sigev_value` of POSIX timers.

A variable whose address is among them must not move: the program would be handed the old one.

Of what else a process has open it is known which kinds keep no address for it.  All others may (`hiding`): io_uring and
native AIO hand back what a request brought along, a message queue what `mq_notify` was given, a device anything.

Sources: proc_pid_fdinfo(5) "epoll", proc_pid_timers(5), io_uring_enter(2), io_submit(2), mq_notify(3), devices.txt.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from katana_cc.process.maps import MemoryMap

_EPOLL: Final = "anon_inode:[eventpoll]"
_DATA: Final = re.compile(r"^tfd: +(\d+) .*?data: +([0-9a-f]+)", re.MULTILINE)
# Those that keep nothing, or what `kept` tells.
_KNOWN: Final = re.compile(
    r"anon_inode:(\[eventpoll\]|\[eventfd\]|\[timerfd\]|\[signalfd\]|\[pidfd\]|\[perf_event\]|\[fanotify\]|inotify|"
    r"\[fscontext\]|\[landlock-ruleset\]|seccomp notify|bpf[-_]\w+)|pidfd:.*"
)
# Majors of terminals, and of /dev/null and its likes.
_PLAIN_DEVICES: Final = frozenset((1, 4, 5, *range(136, 144)))
_MQUEUE: Final = 0x19800202  # linux/magic.h
_RINGS: Final = ("/[aio]", "anon_inode:[io_uring]")
_statfs = ctypes.CDLL(None, use_errno=True).statfs
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


def hiding(pid: int, regions: MemoryMap) -> str:
    """What of a process may keep addresses that nobody can look at, for a person; "" for nothing known."""
    ring = next((r for r in regions.regions if r.path.startswith(_RINGS)), None)
    if ring is not None:
        return "native AIO is in use (io_setup)" if "aio" in ring.path else "io_uring is in use"
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)  # noqa: PTH208  (quicker in the stop)
    except OSError:
        return "its descriptors cannot be listed"
    for number in numbers:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if why := _hidden_in(f"{folder}/{number}"):
                return f"descriptor {number} is {why}"
    return ""


def _hidden_in(path: str) -> str:
    name = os.readlink(path)  # noqa: PTH115  (the same)
    if name.startswith(("anon_inode:", "pidfd:")):
        return "" if _KNOWN.fullmatch(name) else name
    found = os.stat(path)  # noqa: PTH116  (the same)
    if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) not in _PLAIN_DEVICES:
        return f"the device {name}"
    if stat.S_ISREG(found.st_mode) and _file_system(path) == _MQUEUE:
        return f"the message queue {name}"
    return ""


def _file_system(path: str) -> int:
    """The magic number of the file system that a file is on."""
    result = (ctypes.c_long * 32)()
    return int(result[0]) if _statfs(path.encode(), result) == 0 else 0
