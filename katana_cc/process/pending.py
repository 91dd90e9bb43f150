"""Signals that wait for threads which stand: whether one of them ends the system call that a thread is in.

Only then is the EINTR of that call the program's own.  A signal that is ignored ends none: whoever is not traced never
gets it.  But for a tracer the kernel queues it all the same (a SIGCHLD of a program that waits for no child, say).

Sources: signal(7), kernel/signal.c (sig_ignored), proc_pid_status(5).
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from katana_cc.process import ptrace_binding as pt


def _bits(numbers: Iterable[int]) -> int:
    result = 0
    for number in numbers:
        result |= 1 << (number - 1)
    return result


_IGNORED_BY_DEFAULT: Final = _bits((signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH))
_STOP: Final = _bits((signal.SIGSTOP,))  # ends no system call but as our own stop does


class Pending:
    """Of one process, as long as it stands: what waits for all of it, and what it ignores, is asked once."""

    def __init__(self) -> None:
        self._shared: int | None = None
        self._ignored: int | None = None

    def ends_call(self, tid: int, mask: int | None = None) -> bool:
        """Whether a signal that waits ends the system call of a stopped thread.

        Args:
            mask: the signals that the thread blocks, where these are not what ptrace tells.

        Raises:
            ProcessLookupError: it is gone.
        """
        if self._shared is None:
            self._shared = _bits(pt.pending_signals(tid, True))
        waiting = self._shared | _bits(pt.pending_signals(tid, False))
        if not waiting:
            return False
        waiting &= ~((pt.read_signal_mask(tid) if mask is None else mask) | _STOP)
        if waiting and self._ignored is None:
            self._ignored = _ignored(tid)
        return bool(waiting & ~(self._ignored or 0))


def _ignored(tid: int) -> int:
    """The signals that a thread, and so its process, does not notice."""
    masks = {b"SigIgn": 0, b"SigCgt": 0}
    try:
        for line in Path(f"/proc/{tid}/status").read_bytes().splitlines():
            name, _, value = line.partition(b":")
            if name in masks:
                masks[name] = int(value, 16)
    except OSError:
        return 0  # it is gone, or we are short of something: asked in a stop, where nothing may fail for that
    return masks[b"SigIgn"] | (_IGNORED_BY_DEFAULT & ~masks[b"SigCgt"])
