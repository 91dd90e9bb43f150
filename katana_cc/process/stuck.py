"""Threads that cannot be let go yet: asked to stop, they have not (in vfork, or waiting for a device); or killed.

A thread can only be let go while it stands.  One that does not stop in time would stand from the moment on in which it
goes on, for as long as this process lives.  So it is kept here, and let go at the stop that it comes to: by whoever
waits for another one (`reap`), or by the SIGCHLD that tells of it.  Whoever wants it again takes it.

One that was killed while it was traced is reaped by its tracer.  Before, nobody is told of the end of its process, not
even the parent, which may be about to start another.

Source: ptrace(2), "Detaching of the tracee", "Death under ptrace".
"""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.pending import Pending

_threads: Final[set[int]] = set()
_before: Final[list[signal._HANDLER]] = []  # who heard SIGCHLD before us; empty as long as we do not hear it


def leave(tid: int) -> None:
    """Have a traced thread let go when it stops, or reaped when it is dead."""
    _threads.add(tid)
    if not _before and threading.current_thread() is threading.main_thread():
        before = signal.getsignal(signal.SIGCHLD)
        if before is not None:  # else it was set by no Python code, and could not be set again
            _before.append(before)
            signal.signal(signal.SIGCHLD, _told)
    _reap(tid)  # what was told of before is not told again
    _listen_no_more()


def holds(tid: int) -> bool:
    """Whether a thread is one of them."""
    return tid in _threads


def take(tid: int) -> bool:
    """Have it again, if it is one: whether it was.  It is traced, and asked to stop."""
    if tid not in _threads:
        return False
    _threads.discard(tid)
    _listen_no_more()
    return True


def reap() -> None:
    """Let go those that have stopped meanwhile."""
    for tid in tuple(_threads):
        _reap(tid)
    _listen_no_more()


def _reap(tid: int) -> None:
    while tid in _threads and (report := pt.wait(tid)) is not None:
        if not report.gone and report.is_signal_delivery:
            with contextlib.suppress(OSError):
                pt.resume(tid, report.signal)
            continue
        _threads.discard(tid)
        if report.gone:
            return
        if report.event == pt.EVENT_CLONE:
            with contextlib.suppress(OSError):
                _threads.add(pt.event_message(tid))  # traced as it is, and stops by itself
        let_go(tid)


def let_go(tid: int) -> None:
    """Let a stopped thread go on as if it had not been stopped, and trace it no more."""
    repair(tid)
    detach(tid)


def detach(tid: int) -> None:
    """Trace a stopped thread no more; if it was killed meanwhile, as soon as it is dead."""
    with contextlib.suppress(OSError):
        try:
            pt.detach(tid)
        except ProcessLookupError:
            leave(tid)
        else:
            _threads.discard(tid)


def repair(tid: int) -> None:
    """Have a thread that was stopped by itself enter the system call again that this interrupted."""
    with contextlib.suppress(OSError):
        words = pt.read_registers(tid)
        mask = pt.read_signal_mask(tid)
        changes = cpu.repaired(words)
        if changes is not None and not Pending().ends_call(tid, mask):
            for index, value in changes.items():
                words[index] = value
            pt.write_signal_mask(tid, mask)  # that of the thread, no more that of its call
            pt.write_registers(tid, words)


def _told(number: int, frame: FrameType | None) -> None:
    before = _before[0] if _before else None
    reap()
    if callable(before):
        before(number, frame)


def _listen_no_more() -> None:
    if _before and not _threads and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, _before.pop())
