"""By which ways objects on the heap are reached: a tree that is kept up to date where pointers change.

Theory of operation.  A walk finds each object by one pointer, its *way*.  Where an object lost
its way it needs another: one of the pointers that are new, from an object that does not itself depend on it.  To know
that without following ways to their ends, objects have *ranks*, which rise along every way; a pointer from a lower rank
to a higher one can be a way.  An object that is found anew, or that is found by another way, gets a rank just above
that of the object which leads to it, so that what was behind it may stay there:

    head -> A(1) -> B(2) -> C(3)      B is unlinked: C lost its way, and A, 1 < 3, leads there
    head -> A(1) -> N(1+) -> B(2)     N is linked in: B lost its way, and N, 1+ < 2, leads there
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import Final

from katana_cc.process.reachable import Found, Reached, WalkedType
from katana_cc.process.walk import prepared
from katana_cc.transform.places import pointers

_SPACING: Final = 640  # bits between the ranks of a walk
_FINER: Final = 20  # bits by which each round's steps are smaller than those of the one before
_ROUNDS: Final = _SPACING // _FINER - 1
_FEW: Final = 1000  # objects behind one that may be found by a way from a higher rank

Read = Callable[[int, int], bytes]  # address, size -> bytes
Slot = tuple[int, int]  # a pointer: its holder, and where it is in it; as in `Found`


class Ways:
    """The objects that a walk found, and by which way each is reached.

    Attributes:
        objects: all that were ever found; those that are now are in `numbers`.
        numbers: start of a block → the object there.
        roots: the variables.

    Args:
        reached: of a walk of these types.
    """

    def __init__(self, types: Sequence[WalkedType], reached: Reached) -> None:
        self._kinds = prepared(tuple(types))
        self._targets = [{at: to for to, at in kind.places} for kind in self._kinds]
        by_name = {kind.name: n for n, kind in enumerate(self._kinds)}
        self.roots = tuple(reached.roots)
        self._places = [
            {p.old: by_name[p.pointee] for p in pointers(root.transformation) if p.pointee in by_name}
            for root in self.roots
        ]
        self.objects = list(reached.objects)
        self.numbers = {f.address: n for n, f in enumerate(self.objects)}
        self._variables = sorted((r.address, r.end) for r in self.roots)
        self._begins = [start for start, _ in self._variables]
        self._walked = len(self.objects)
        self._ranks: dict[int, int] = {}
        self._round = 0
        self._unplaced: set[int] = set()  # objects without a way
        self._ways: dict[int, set[Slot]] = {}  # of objects, new pointers that may be their way
        self._freed: set[int] = set()  # objects whose blocks are gone, though pointers lead there

    def begin_round(self) -> bool:
        """Ranks that are given from now on are nearer to those of holders; False: there is no room between."""
        self._round += 1
        return self._round <= _ROUNDS

    # -- pointers ------------------------------------------------------------------------------------------------------

    def _target_of(self, holder: int, at: int) -> int | None:
        """The type that a pointer leads to."""
        if holder < 0:
            return self._places[-1 - holder].get(at)
        kind = self.objects[holder].type
        return self._targets[kind].get(at % self._kinds[kind].size)

    def _root_slots(self, number: int, content: bytes) -> Iterator[tuple[int, int, int]]:
        """(value, type, place) of each pointer of a variable that is followed, and is not null."""
        for at, target in self._places[number].items():
            value = int.from_bytes(content[at : at + 8], "little")
            if value:
                yield value, target, at

    def _slots(self, number: int, data: bytes) -> Iterator[tuple[int, int, int]]:
        """The same of an object that holds `data`."""
        f = self.objects[number]
        kind = self._kinds[f.type]
        for shift in range(0, f.elements * kind.size, kind.size) if kind.places else ():
            for value, (target, at) in zip(kind.form.unpack_from(data, shift), kind.places, strict=True):
                if value:
                    yield value, target, shift + at

    def _in_variable(self, value: int) -> bool:
        i = bisect_right(self._begins, value) - 1
        return i >= 0 and value < self._variables[i][1]

    # -- ways ----------------------------------------------------------------------------------------------------------

    def place(self, now: Read) -> None:
        """Give objects without a way one, from the lowest ranks on."""
        step = 1 << _SPACING - _FINER * self._round
        onward: dict[int, list[tuple[int, int]]] = {}
        for number in self._unplaced:
            for holder, at in self._ways.get(number, ()):
                onward.setdefault(holder, []).append((number, at))
        self._place_along(onward, onward, step)
        for number in sorted(n for n in self._unplaced if self._rank(n) is not None):
            if number in self._unplaced and self._detour(number, step, now):
                self._place_along([number], onward, step)

    def _place_along(self, holders: Iterable[int], onward: Mapping[int, Sequence[tuple[int, int]]], step: int) -> None:
        """Give ways that begin at some holders, or at what is placed by them.  `onward`: (object, place) of the
        pointers of a holder."""
        ready: list[tuple[int, int, int, int]] = []

        def lead_on(holder: int) -> None:
            rank = self._rank(holder)
            for number, at in onward.get(holder, ()) if rank is not None else ():
                heappush(ready, (rank or 0, holder, at, number))

        for holder in holders:
            lead_on(holder)
        while ready:
            rank, holder, at, number = heappop(ready)
            own = self._rank(number)
            if number not in self._unplaced or rank != self._rank(holder) or (own is not None and rank >= own):
                continue
            if self.is_found(holder):
                self.objects[number] = self.objects[number]._replace(holder=holder, at=at)
                self._ranks[number] = rank + step
                self._unplaced.discard(number)
                lead_on(number)

    def _detour(self, number: int, step: int, now: Read) -> bool:
        """Give an object a way from a higher rank, where few others are behind it: their ranks are raised as well."""
        behind = self._behind(number, now)
        if behind is None:
            return False
        for holder, at in (*self._ways.get(number, ()), *self._leading_back(number, now)):
            rank = self._rank(holder)
            if rank is None or holder in behind or not self.is_found(holder):
                continue
            self.objects[number] = self.objects[number]._replace(holder=holder, at=at)
            self._unplaced.discard(number)
            for n in behind:  # holders come before what they hold
                above = self._rank(self.objects[n].holder)
                if above is not None:
                    self._ranks[n] = above + step
            return True
        return False

    def _behind(self, number: int, now: Read) -> dict[int, None] | None:
        """An object and those that are found by ways from it, each after its holder; None where they are many."""
        behind = {number: None}
        waiting = [number]
        while waiting:
            holder = waiting.pop()
            for value, _, at in self._slots_now(holder, now):
                there = self.numbers.get(value)
                if there is not None and there not in self._unplaced and there not in behind:
                    f = self.objects[there]
                    if (f.holder, f.at) == (holder, at):
                        behind[there] = None
                        waiting.append(there)
            if len(behind) > _FEW:
                return None
        return behind

    def _leading_back(self, number: int, now: Read) -> Iterator[Slot]:
        """Pointers to an object from those that it leads to."""
        address, kind = self.objects[number].address, self.objects[number].type
        for value, _, _ in self._slots_now(number, now):
            there = self.numbers.get(value)
            if there is not None and there not in self._freed:
                yield from ((there, at) for v, to, at in self._slots_now(there, now) if v == address and to == kind)

    def _slots_now(self, number: int, now: Read) -> list[tuple[int, int, int]]:
        if number in self._freed:
            return []
        f = self.objects[number]
        return list(self._slots(number, now(f.address, f.elements * self._kinds[f.type].size)))

    def is_found(self, holder: int) -> bool:
        """Whether an object is there; a variable always is."""
        return holder < 0 or (self.numbers.get(self.objects[holder].address) == holder and holder not in self._freed)

    def in_order(self) -> list[Found]:
        """The objects that are found now, holders before what they hold."""
        walked = ((n + 1, 0, n) for n in self.numbers.values() if n not in self._ranks)
        others = ((rank >> _SPACING, rank % (1 << _SPACING), n) for n, rank in self._ranks.items() if self.is_found(n))
        order = [n for _, _, n in sorted((*walked, *others))]
        places = {n: i for i, n in enumerate(order)}
        found = (self.objects[n] for n in order)
        return [f if f.holder < 0 else f._replace(holder=places[f.holder]) for f in found]

    def _rank(self, holder: int) -> int | None:
        if holder < 0:
            return 0
        return self._ranks.get(holder, (holder + 1) << _SPACING if holder < self._walked else None)
