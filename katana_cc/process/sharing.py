"""Whether two processes have one memory: a child has its parent's from vfork (`system`, `posix_spawn`) until its exec.

What is written there is written to both, and the child is no process of its own yet.  kcmp(2) tells.  A kernel without
it (CONFIG_KCMP), or a container that forbids it, leaves the look of things: the parent has a thread in such a call
which the kernel does not let go, and both map the same.

Sources: kcmp(2) (KCMP_VM), vfork(2), proc_pid_syscall(5).
"""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.process.proc import list_threads, status_fields

_KCMP_VM: Final = 1  # linux/kcmp.h

_libc = ctypes.CDLL(None, use_errno=True)


def same_memory(one: int, other: int) -> bool | None:
    """Whether two processes have one memory; None where this system does not tell.  Those that are gone have none."""
    found = int(_libc.syscall(cpu.SYS_KCMP, one, other, _KCMP_VM, 0, 0))
    if found < 0:
        return False if ctypes.get_errno() == errno.ESRCH else None
    return found == 0


def owner_of_memory(pid: int) -> int:
    """The parent of a process that has that parent's memory; 0 for one that has its own.

    One that has its own never gets another's: not even by exec.
    """
    fields = status_fields(pid)
    parent = int(fields.get("PPid", "0"))
    if not parent or "VmSize" not in fields:  # a kernel thread and a zombie have no memory
        return 0
    is_same = same_memory(pid, parent)
    if is_same is None:
        is_same = _waits_for_a_child(parent) and _maps(pid) == _maps(parent)
    return parent if is_same else 0


def _waits_for_a_child(pid: int) -> bool:
    """Whether a thread of it is in a vfork, or in a clone that waits like one."""
    for tid in list_threads(pid):
        try:
            call = Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split()[0]
        except OSError:
            continue
        if call.isdigit() and int(call) in cpu.CLONING_SYSCALLS:
            return True
    return False


def _maps(pid: int) -> bytes:
    """Empty where it may not be read: then nobody patches the process."""
    try:
        return Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return b""
