"""Which processes a transaction is about, where they fork meanwhile.

    look     the processes of the tree, or all that map the build
    commit   in each, parents first
    look     children that were forked before their parent's commit: again

There is an end to it: what a process forks after its commit has what its parent has.  What is started meanwhile, by
exec (short commands that load a library), may have no end: it is done as far as it is met, and makes no other look.
The two are told apart by the random bytes that the kernel gives a program when it starts it: forks share them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from katana_cc.errors import BusyError
from katana_cc.process.members import Member
from katana_cc.process.survey import Found

Select = Callable[[], Found]  # no error where the tree has ended

_LEAST: Final = 1.0  # seconds in which children are looked for
_MISSED: Final = 3  # looks one after the other that give nothing but processes that have ended


class Looks:
    """Iterating gives the process ids of each look that are new; `done` is told what came of them.

    Args:
        select: gives all of them once more; None: there are none but those that are known.
        wait: seconds after which it is given up.
        named: what is found again and again then.
    """

    def __init__(self, pids: Iterable[int], select: Select | None, wait: float, named: str) -> None:
        self._todo = list(dict.fromkeys(pids))
        self._select = select
        self._limit = max(wait, _LEAST)
        self._named = named
        self._deadline = 0.0
        self._seen = set(self._todo)
        self._starts: set[bytes] = set()
        self._missed = 0
        self._vanished = 0
        self._again = True
        self.is_first = True

    def __iter__(self) -> Iterator[list[int]]:
        while self._again and self._todo:
            self._again = False
            yield self._todo
            self.is_first = False

    def done(self, members: Sequence[Member], missed: int) -> None:
        """What the last look gave is done, as far as anything was to be done; look again.

        Args:
            missed: how many ended before they were looked at; each may have forked before.

        Raises:
            BusyError: there is no end to it.
        """
        is_forked = any(self.is_first or m.target.start in self._starts for m in members if m.before is None)
        self._starts |= {m.target.start for m in members}
        for member in members:
            if member.before is not None or member.is_out:
                member.target.close()  # there may be thousands
        left_out = {m.target.pid for m in members if m.is_out}
        if is_forked:
            self._missed = 0
        elif missed or self._vanished:
            self._missed += 1
        if self._select is None or not (is_forked or 0 < self._missed <= _MISSED):
            return
        now = time.monotonic()
        self._deadline = self._deadline or now + self._limit
        while True:
            found = self._select()
            self._todo = [pid for pid in found.pids if pid not in self._seen - left_out]
            self._vanished = found.vanished
            self._seen = set(found.pids)  # a process id that ended may come again
            if self._todo or not found.vanished or self._missed == _MISSED:
                break
            self._missed += 1
        self._again = True
        if self._todo and now > self._deadline:
            raise BusyError(
                f"{self._named} are forked all the time: for {self._limit:g} s each look found another",
                where=f"pid {self._todo[0]}",
                remedy="nothing was touched; wait longer (--wait), or try when fewer are forked",
            )
