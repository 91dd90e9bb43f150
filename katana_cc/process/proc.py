"""What /proc says of a process and its threads.

A process is looked at by number, so that what was true when it was read may be no more: what is gone is told as empty,
never as an error.  Sources: proc_pid_status(5), proc_pid_syscall(5).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Final

_ENDING: Final = 0.2  # seconds


def list_threads(pid: int) -> list[int]:
    """Ids of the live threads; empty when the process is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208  (quicker in the stop)
    except (FileNotFoundError, ProcessLookupError):
        return []


def status_fields(pid: int, tid: int | None = None) -> dict[str, str]:
    """/proc/PID/status (of a thread) as a dictionary; empty when it is gone.  Source: proc_pid_status(5)."""
    path = f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status"
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123  (quicker in the stop)
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except (FileNotFoundError, ProcessLookupError):
        return {}


def thread_name(pid: int, tid: int) -> str:
    """The thread's comm."""
    return status_fields(pid, tid).get("Name", "?")


def process_name(pid: int) -> str:
    """A process's comm; "?" when it is gone."""
    return status_fields(pid).get("Name", "?")


def is_traced_by_us(fields: Mapping[str, str]) -> bool:
    """Whether this process is the tracer, by the `status_fields` of a process or thread."""
    return int(fields.get("TracerPid", "0")) in (os.getpid(), threading.get_native_id())


def is_dead(pid: int) -> bool:
    """Whether nothing is left of a process but zombies: the end of its first thread is not told to a tracer before that
    of the others, which takes its time on a busy machine (ptrace(2))."""
    return all(status_fields(pid, tid).get("State", "X")[:1] in "ZX" for tid in list_threads(pid))


def has_ended(pid: int) -> bool:
    """The same of one that could not be reached.

    The end comes in steps, of which ptrace tells the first and /proc the last: who asks has met one of them, so that
    the last is given a moment.
    """
    deadline = time.monotonic() + _ENDING
    while not is_dead(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def waiting_at(pid: int, tid: int) -> tuple[int, int] | None:
    """Stack pointer and pc of a thread that waits in a system call; None when it runs, or is gone.  Source:
    proc_pid_syscall(5)."""
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall", encoding="utf-8") as file:  # noqa: PTH123  (quicker)
            fields = file.read().split()
    except OSError:
        return None
    if len(fields) < 3:
        return None  # "running"
    return int(fields[-2], 16), int(fields[-1], 16)


def all_waiting(pid: int) -> list[tuple[int, int, int]]:
    """(thread id, stack pointer, pc) of the threads that wait in system calls."""
    return [(tid, *place) for tid in list_threads(pid) if (place := waiting_at(pid, tid)) is not None]
