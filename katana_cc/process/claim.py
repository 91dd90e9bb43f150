"""One katana at a time for each process: what one prepares must not be taken for a dead one's by another.

A lock (flock(2)) on the folder /proc/PID, which every katana that sees the process there shares, and which ends with
whoever holds it, however that ends.  Katanas that see it through different mounts of /proc (on the host and in a
container) do not meet there: that is why nothing is unmapped whose owner is not certain (`inject.unmap`).

Sources: flock(2), proc_locks(5).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Final

from katana_cc.errors import BusyError, TargetError
from katana_cc.process.proc import thread_name

_PAUSE: Final = 0.005  # seconds


def claim(pid: int, where: str, wait: float) -> int:
    """Be the only one at work on a process; the descriptor that keeps it so until it is closed.

    Raises:
        BusyError: another is, for `wait` seconds.
        TargetError: it is gone, or its folder may not be opened.
    """
    deadline = time.monotonic() + wait
    try:
        handle = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TargetError(f"its folder in /proc cannot be opened: {error.strerror}", where=where) from None
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                    raise TargetError(f"it cannot be locked: {error.strerror}", where=where) from None
            else:
                return handle
            if time.monotonic() >= deadline:
                raise taken(_holder(handle), where)
            time.sleep(_PAUSE)
    except BaseException:
        os.close(handle)
        raise


def holder(pid: int) -> str:
    """Who is at work on a process, in words; "" for nobody, or where that cannot be told."""
    try:
        handle = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _holder(handle)
    finally:
        os.close(handle)
    return ""


def taken(by: str, where: str) -> BusyError:
    """What is said of a process that another katana is at work on."""
    return BusyError(
        f"{by} is at work on it",
        where=where,
        remedy="nothing was touched; try again when it has ended, or wait longer (--wait)",
    )


def _holder(handle: int) -> str:
    """Who holds the lock, in words."""
    inode = os.fstat(handle).st_ino
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        lines = []
    for fields in (line.split() for line in lines):
        # NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
            pid = int(fields[4])
            return f"another katana (pid {pid}, {thread_name(pid, pid)})"
    return "another katana"
