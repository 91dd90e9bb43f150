"""Pointers that lead to no object, by where they lead: each is judged anew when something comes there.  Pure.

Most of them are fine: they lead to what is no object that is walked.  The others are *pending*: by their type they lead
to an object, and none is there.  Of memory that was read while the process ran, the next round may tell.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

from katana_cc.process.ways import Slot


class Dangling:
    """Such pointers, as they come and go.

    Args:
        known: where pointers lead → those that do, and the type that they take it for.
        pending: those that cannot be followed.
    """

    def __init__(self, known: dict[int, dict[Slot, int]], pending: Iterable[Slot]) -> None:
        self._known = known
        self._order = sorted(known)
        self._pending = set(pending)

    @property
    def values(self) -> Sequence[int]:
        """Where they lead, ascending."""
        return self._order

    @property
    def is_pending(self) -> bool:
        """Whether there are some that cannot be followed."""
        return bool(self._pending)

    def pending(self) -> Iterator[int]:
        """Where those lead, ascending."""
        return (v for v in self._order if not self._pending.isdisjoint(self._known[v]))

    def add(self, value: int, slot: Slot, target: int, *, is_pending: bool) -> None:
        """There is one more."""
        if value not in self._known:
            self._known[value] = {}
            insort(self._order, value)
        self._known[value][slot] = target
        if is_pending:
            self._pending.add(slot)

    def remove(self, value: int, slot: Slot) -> None:
        """It leads there no more, if it did."""
        self._pending.discard(slot)
        held = self._known.get(value)
        if held is not None and held.pop(slot, None) is not None and not held:
            del self._known[value]
            del self._order[bisect_left(self._order, value)]

    def take(self, values: Iterable[int]) -> Iterator[tuple[int, Slot, int]]:
        """(value, pointer, type) of all that lead to these places; they are removed."""
        for value in list(values):
            for slot, target in list(self._known[value].items()):
                self.remove(value, slot)
                yield value, slot, target

    def within(self, start: int, size: int) -> Sequence[int]:
        """The places among so many bytes that some of them lead to."""
        low, high = (bisect_left(self._order, a) for a in (start, start + size))
        return self._order[low:high]
