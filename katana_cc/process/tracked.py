"""The objects of one process that are walked, as of the last round: which block is one, and where words lead by that.

They come and go, so nothing here is a list that is made once.  Whoever wants to know all of them afterwards, as a walk
and a look at the whole tell it, gets sequences that are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from katana_cc.process.convert import Group, lead_into
from katana_cc.process.follow import Lead, Leads, Passage
from katana_cc.process.live import Later, Live
from katana_cc.process.moves import Kind
from katana_cc.process.places import Placement, Places
from katana_cc.process.reachable import Found, Reached
from katana_cc.process.repair import Repair
from katana_cc.process.watch import merged
from katana_cc.process.words import Seeker
from katana_cc.transform.destinations import Destinations


@dataclass(frozen=True, slots=True)
class Tracked:
    """What is kept up to date of them: `kinds` are of their types, by number; `repair` knows which there are, `places`
    where they go, `live` their blocks."""

    kinds: Sequence[Kind]
    repair: Repair
    places: Places
    live: Live

    @property
    def starts(self) -> Mapping[str, Mapping[int, int]]:
        """Type → start of a block → where its objects go."""
        return self.places.starts

    def at(self, start: int) -> Found | None:
        """The objects in the block that starts there."""
        number = self.repair.numbers.get(start)
        return None if number is None else self.repair.objects[number]

    def holder(self, address: int) -> int | None:
        """The number of the objects in whose block an address lies."""
        block = self.live.at(address)
        return None if block is None else self.repair.numbers.get(block.start)

    def size(self, f: Found) -> int:
        """How many bytes objects take, as they are now."""
        return f.elements * self.kinds[f.type].transformation.old_size

    def own(self, f: Found) -> int:
        """How many bytes of their block are theirs: behind objects that stay may be more, others fill it."""
        return self.size(f) if self.kinds[f.type].stays else f.size

    # -- the whole, for whoever wants to know it afterwards ------------------------------------------------------------

    def reached(self) -> Reached:
        """As of a walk."""
        types = tuple(k.transformation for k in self.kinds)
        return Reached(types, self.repair.roots, Later(self.repair.in_order), ())

    def placement(self) -> Placement:
        """As of `place`."""
        return Placement(
            Later(lambda: [f for f, _ in self._moved()]),
            Later(lambda: [new for _, new in self._moved()]),
            self.places.wanted,
            Later(lambda: [new for f, new in self._moved() if new != f.address]),
            True,
        )

    def groups(self) -> Sequence[Group]:
        """As of `Converted`, without what they hold."""
        return Later(self._groups)

    def _moved(self) -> list[tuple[Found, int]]:
        numbers = self.repair.numbers
        found = (
            (self.repair.objects[numbers[address]], new)
            for starts in self.starts.values()
            for address, new in starts.items()
        )
        return sorted(found)

    def _groups(self) -> list[Group]:
        result = []
        moved = self._moved()
        for n, kind in enumerate(self.kinds):
            mine = [(f, new) for f, new in moved if f.type == n]
            if mine:
                result.append(Group(kind, [f for f, _ in mine], [new for _, new in mine], b"", b""))
        return result


class _Seeker(Seeker):
    """Looks for words near to the heap, and knows which of them lead to objects that move."""

    def __init__(self, near: Iterable[tuple[int, int]], leads: Callable[[int], bool]) -> None:
        super().__init__(near)
        self._leads = leads

    def leads(self, value: int) -> bool:
        return self._leads(value)


class TrackedLeads(Leads):
    """As `ObjectLeads`, of objects that come and go.

    Args:
        near: the (start, end) ranges that objects lie in, also those that come later.
    """

    def __init__(self, tracked: Tracked, passages: Sequence[Passage], near: Iterable[tuple[int, int]]) -> None:
        super().__init__(passages)
        self._tracked = tracked
        self._variables = self.seeker
        self._places = [Destinations(k.transformation) for k in tracked.kinds]
        every = merged([*near, *self._variables.ranges])
        self.seeker = _Seeker([(start, end - start) for start, end in every], self._leads)

    def _leads(self, value: int) -> bool:
        return self._object_at(value) is not None or self._variables.leads(value)

    def of(self, value: int, pointee: str = "") -> Lead:
        """As in `Leads`."""
        f = self._object_at(value)
        if f is None:
            return super().of(value, pointee)
        kind = self._tracked.kinds[f.type]
        return lead_into(f, self._tracked.starts[kind.name][f.address], kind, self._places[f.type], value, pointee)

    def _object_at(self, value: int) -> Found | None:
        """The objects that are made anew into which an address leads."""
        tracked = self._tracked
        numbers = tracked.repair.numbers
        number = numbers.get(value)
        if number is None:
            if value in tracked.live.table.used or not self.seeker.is_near(value):
                return None
            block = tracked.live.at(value)
            number = None if block is None or not block.is_used else numbers.get(block.start)
            if number is None:
                return None
        f = tracked.repair.objects[number]
        is_in = value - f.address < tracked.size(f)
        return f if is_in and not tracked.kinds[f.type].stays else None
