"""Waiting for a safe moment: when to try again after a thread was found inside a replaced function.

First short tries, with a pause that doubles: most functions are left within a millisecond.  A thread that is still
inside after that stays there for long, and may be outside only for moments, which looking now and then does not meet: a
worker that calls its handler in a loop, or a main loop that leaves between two turns.  So a breakpoint is put where the
thread goes on when it leaves: at the return address of the outermost replaced frame on its stack.  It is set while the
thread stands, so that no return is missed, and only tells (theory in `perf`): the thread runs on, and is stopped some
0.1 ms later.  Measured with a thread that is outside for 2 ms of every 300, twelve times each: 6 to 8 tries, the five
short ones among them, in 0.3 to 1.1 s; looking every 50 ms takes 9 to 190 tries, in 0.3 to 9.7 s.

    thread's stack      poll ← read_event ← handle_request (replaced) ← serve (replaced) ← worker
                                                                                          ↑ the breakpoint

Not every way out passes there (longjmp, an exception, the end of the thread), so that it is looked after a second, too.
Where no breakpoint can be had, looking every 50 ms is all there is.

`--at FUNCTION` is the same with the breakpoint at the entry of a function, for each thread: nothing is tried before one
enters it.

The loop in `commit` calls, in this order:  before_first, [try, with found_inside in the stop], again, [try], again, ...
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from katana_cc.errors import BusyError, RefusedError
from katana_cc.process.activity import Activity, Finder
from katana_cc.process.perf import Breakpoints
from katana_cc.process.proc import list_threads
from katana_cc.process.timers import Timers
from katana_cc.telling import TellWait, silent

_FIRST_PAUSE: Final = 0.001  # seconds
_LONGEST_PAUSE: Final = 0.05
_SHORT_TRIES: Final = 5  # 1 + 2 + 4 + 8 ms
_OTHER_WAYS: Final = 1.0  # so long is a breakpoint relied on
_NEW_THREADS: Final = 0.05  # so often are threads looked for that are to have one, too


class Waiting:
    """When to try, for one commit in one process.

    Args:
        wait: seconds until it is given up.
        entries: addresses of which a thread must enter one first (`--at`); empty: none.
        named: what the user calls them.
        tell: hears what is waited for.
    """

    def __init__(
        self,
        pid: int,
        where: str,
        wait: float,
        entries: Sequence[int] = (),
        named: str = "",
        tell: TellWait = silent,
    ) -> None:
        self._pid = pid
        self._where = where
        self._entries = tuple(entries)
        self._named = named
        self._tell = tell
        self.limit = wait
        self.deadline = time.monotonic() + wait
        self._pause = _FIRST_PAUSE
        self._breakpoints = Breakpoints()
        self._is_armed = False
        self._seen: Counter[str] = Counter()
        self._looks = 0
        self.tries = 0
        self.timers = Timers()

    def close(self) -> None:
        """Take all breakpoints away."""
        self._breakpoints.close()

    def lengthen(self, pause: float) -> None:
        """Pause for so many seconds at least: a try was long."""
        self._pause = max(self._pause, pause)

    def tell(self, why: str) -> None:
        """Say that it is waited, and for what."""
        left = max(0.0, self.deadline - time.monotonic())
        self._tell(self.limit - left, self.limit, f"{self._where}: {why}")

    def before_first(self) -> None:
        """Wait for the first try: no time at all, if no function has to be entered.

        Raises:
            BusyError: no thread entered it in time.
            RefusedError: it cannot be told when one does.
        """
        if self._entries:
            self._wait_for_entry()

    def found_inside(self, order: Sequence[int], registers: memoryview, finder: Finder, busy: Activity) -> None:
        """A thread is inside.  Called while all are stopped, so that none can leave before the breakpoint is set."""
        if self.tries < _SHORT_TRIES and not self._entries:
            return
        functions, after = finder.departure(order, registers, busy)
        self._looks += 1
        self._seen.update(functions)
        if not self._entries:
            self._is_armed = after is not None and self._breakpoints.add(busy.tid, after)

    def again(self) -> bool:
        """Wait for the next try; False when the time is up instead."""
        remaining = self.deadline - time.monotonic()
        if self._entries:
            if remaining <= 0:
                return False
            try:
                self._wait_for_entry()
            except BusyError:
                return False
            return True
        if self._is_armed and remaining > 0:
            self._is_armed = False
            self._breakpoints.wait(min(remaining, _OTHER_WAYS))
            self._breakpoints.close()
            return True
        if self._pause > remaining:
            return False
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True

    def _wait_for_entry(self) -> None:
        while True:
            self.tell(f"no thread enters {self._named}")
            for tid in set(list_threads(self._pid)) - self._breakpoints.threads:
                for address in self._entries:
                    self._breakpoints.add(tid, address)
            if not self._breakpoints.threads and list_threads(self._pid):
                raise RefusedError(
                    f"it cannot be told when a thread enters {self._named}: no breakpoint may be set",
                    where=self._where,
                    remedy="run katana as root or with CAP_PERFMON (see also sysctl kernel.perf_event_paranoid), end "
                    "debuggers that use hardware breakpoints, or apply it without --at",
                )
            remaining = self.deadline - time.monotonic()
            if self._breakpoints.wait(max(0.0, min(remaining, _NEW_THREADS))):
                self._breakpoints.close()
                return
            if remaining <= 0:
                raise BusyError(
                    f"no thread entered {self._named} in {self.limit:g} s",
                    where=self._where,
                    remedy="nothing was touched; wait longer (--wait), or name a function that is entered more often",
                )

    def never_left(self) -> tuple[str, ...]:
        """The functions that were on a stack each time that one was looked at, if there were several such times."""
        return tuple(sorted(name for name, count in self._seen.items() if 1 < self._looks <= count))
