"""Being first in line while a target is stopped, the last to be killed, and not ended by a signal meanwhile.

A busy server is the usual target: its threads and its clients compete with katana for processors, and a katana that is
preempted while the target stands still makes the stop as long as a time slice.  So katana runs at the lowest real-time
priority for that moment.  All waiting in the stop sleeps, so that the target's threads can come to their stop even on
the same processor.  Where the system does not permit it (sched(7), RLIMIT_RTPRIO), the stop works the same, only with a
longer tail.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SCORE: Final = Path("/proc/self/oom_score_adj")
_NEVER: Final = "-1000"


@contextlib.contextmanager
def first_in_line() -> Iterator[bool]:
    """Run the body at SCHED_FIFO priority 1 where that is permitted; the value says whether it is."""
    try:
        policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, policy, parameters)


@contextlib.contextmanager
def spared() -> Iterator[bool]:
    """Run the body as one whom the kernel never kills for want of memory, where that is permitted; the value says
    whether it is."""
    try:
        before = _SCORE.read_text()
        _SCORE.write_text(_NEVER)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            _SCORE.write_text(before)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No catchable signal may stretch the stop, or end us within it."""
    everything = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, everything)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
