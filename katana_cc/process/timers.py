"""Time-outs of system calls that stops interrupt again and again, while a safe moment is waited for.

A call that the kernel does not restart is entered again, and its time-out begins anew.  Were a process stopped every
50 ms, an epoll_wait of 100 ms would never end, and an event loop's timers would stand still for as long as it is
waited.  So it is known since when a call waits, and one whose time is over returns what it then returns.

Whether it is the same call as at the stop before, or one with the same arguments, only the thread knows.  So the call
is entered again with a mark beside its time-out, in the half of the register that the kernel ignores: a new call brings
none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.cpu.stopped import Words

_HALF: Final = 32
_LOW: Final = (1 << _HALF) - 1
_LONGEST: Final = (1 << 31) - 1  # milliseconds, as an int: what is negative is no time-out
_FIRST_MARK: Final = 0x4B61_0001


class Timers:
    """The calls of one process that were entered again with a time-out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[int, tuple[int, float]] = {}
        self._mark = _FIRST_MARK

    def entered_again(self, tid: int, words: Words, changes: Mapping[int, int], is_last: bool) -> Mapping[int, int]:
        """What to change so that a call goes on, or is over.

        Args:
            words: the registers of the interrupted thread.
            changes: what enters its call again.
            is_last: whether there is no stop after this one, for all that is known: then nothing is marked.
        """
        index = cpu.time_out(words)
        if index is None or not 0 < words[index] & _LOW <= _LONGEST:
            return changes
        now = self._clock()
        value, length = words[index], words[index] & _LOW
        marked, since = self._since.get(tid, (0, 0.0))
        if value == marked:
            return {cpu.RESULT: 0, index: length} if (now - since) * 1000 >= length else changes
        if is_last:
            return changes
        marked = self._mark << _HALF | length
        self._mark = _FIRST_MARK + (self._mark - _FIRST_MARK + 1) % (1 << 16)
        self._since[tid] = marked, now
        return {**changes, index: marked}
