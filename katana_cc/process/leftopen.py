"""Memfds that a katana which was killed has left open in its target, closed.

What maps memory there has a descriptor in the target for some 100 us.  A katana that is killed just then leaves it, and
a child that is forked meanwhile inherits it.  Such a number is closed only while all threads stand still: since it was
looked at, the program may have closed all that it knows nothing of (close_range(2)), and opened a file by that number.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import BusyError, RefusedError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.borrowing import StoppedThread
from katana_cc.process.gadgets import Gadgets, find_gadgets
from katana_cc.process.standstill import standstill
from katana_cc.process.target import MEMFD_PREFIX, Target
from katana_cc.process.threads import Threads


def left_open(pid: int) -> list[int]:
    """The descriptors of a process that are katana's; none where nobody may look.  Source: proc_pid_fd(5)."""
    found = []
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208  (a server has many)
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(f"{folder}/{name}").startswith(MEMFD_PREFIX):  # noqa: PTH115  (the same)
                    found.append(int(name))
    return found


def close_left_open(target: Target) -> None:
    """Close them, in a stop of all threads, if there are any.  Where that cannot be, they stay: they do no harm.

    The process has to be claimed: those of a katana that lives are in use.

    Raises:
        TargetError: the process died.
    """
    if not left_open(target.pid):
        return
    with contextlib.suppress(BusyError, RefusedError):
        gadgets = find_gadgets(target.memory, target.read_map(), target.where)
        threads = Threads(target.pid)
        with standstill(threads, target.where):
            _close(target, threads, gadgets)


def _close(target: Target, threads: Threads, gadgets: Gadgets) -> None:
    # Of the first thread, whose descriptors /proc shows: others may have their own (unshare(2)).
    if target.pid not in threads.order or threads.is_starting(target.pid):
        return
    at = threads.order.index(target.pid) * pt.REGISTER_WORDS
    row = threads.registers[at : at + pt.REGISTER_WORDS]
    if not cpu.runs_supported_code(row):
        return
    with StoppedThread(target.memory, gadgets, target.pid, row.tolist()) as remote:
        for number in left_open(target.pid):
            remote.syscall(cpu.SYS_CLOSE, number)
    for index, value in remote.changes.items():
        threads.set_register(target.pid, index, value)
