"""Being first in line while a target is stopped, the last to be killed, and not ended by a signal meanwhile.

A busy server is the usual target: its threads and its clients compete with katana for processors, and a katana that is
preempted while the target stands still makes the stop as long as a time slice.  So katana runs at the lowest real-time
priority for that moment.  All waiting in the stop sleeps (`stand_aside`), so that the target's threads can come to
their stop even on the same processor; and who waits for longer gives up its place, or a few katanas that wait for
threads of a busy machine keep from their turn what these wait for: the kernel's workers were seen to stand still for
minutes.  Where the system does not permit it (sched(7), RLIMIT_RTPRIO), the stop works the same, only with a longer
tail.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SCORE: Final = Path("/proc/self/oom_score_adj")
_NEVER: Final = "-1000"
_ENOUGH: Final = 0.1  # seconds: no stop is so long on its own account that has to wait for others


@dataclass(frozen=True, slots=True)
class _Turn:
    """That this process is first in line; `policy` and `parameters` are those that it had."""

    policy: int
    parameters: os.sched_param
    until: float  # of time.monotonic()

    def end(self) -> None:
        # Without CAP_SYS_NICE (where RLIMIT_RTPRIO permits real time) that flag can be set, and not taken back.
        for flag in (0, os.SCHED_RESET_ON_FORK):
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, self.policy | flag, self.parameters)
                return


_turns: Final[list[_Turn]] = []


@contextlib.contextmanager
def first_in_line() -> Iterator[bool]:
    """Run the body at SCHED_FIFO priority 1 where that is permitted; the value says whether it is."""
    try:
        turn = _Turn(os.sched_getscheduler(0), os.sched_getparam(0), time.monotonic() + _ENOUGH)
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        yield False
        return
    _turns.append(turn)
    try:
        yield True
    finally:
        if turn in _turns:
            _turns.remove(turn)
            turn.end()


def stand_aside(seconds: float) -> None:
    """Sleep until something is asked again that others have to do; who has been first in line for long is not any more,
    since whoever has to do it may not get its turn."""
    if _turns and time.monotonic() > _turns[0].until:
        while _turns:
            _turns.pop().end()
    time.sleep(seconds)


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
