"""Objects on the heap that are found and made anew before the stop, and in it only where something changed.

Theory of operation.  A look at the objects (`katana_cc.process.objects`) reads the heap, takes it apart, walks,
converts and searches.  Here all that is done while the process runs, of a copy, and its result kept in pieces that can
be changed one by one:

    blocks       `rereading`: pages that changed; `table`: chains of chunks, followed anew in and beside these
    objects      `repair`: pointers that changed, and what they lead to
    new bytes    of objects in pages that changed, and of those that are new; the rest stays as it was made
    words        `loose`: of pages that changed, and those that lead to objects that are new

Then come rounds: memory is read again and compared, and what changed is worked off, each round in less time and so
with less that changed meanwhile.  The stop is one more such round, of one moment.  New blocks that objects go to hold
nothing before the stop, so what goes there is written before it as well.

What a round cannot tell for sure (`UnrepairableError`, or what is open in the stop) is left to the look at the whole:
the same answer, only later.  Nothing is told here that speaks against a patch, but for blocks to which nothing leads
and words that nothing explains, which come and go as a program runs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from katana_cc.process.convert import Converted, Made, make, with_before
from katana_cc.process.copies import PAGE
from katana_cc.process.follow import Edited, Finding, Leads, Passage, elsewhere
from katana_cc.process.live import Live
from katana_cc.process.loose import LooseWords
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.objects import Cargo, Objects, ShortageError
from katana_cc.process.places import Places, place
from katana_cc.process.reachable import Found, Root
from katana_cc.process.repair import Repair, UnrepairableError
from katana_cc.process.rereading import Rereading
from katana_cc.process.runs import Runs
from katana_cc.process.table import Table
from katana_cc.process.tracked import Tracked, TrackedLeads
from katana_cc.process.unreached import Unled
from katana_cc.process.walk import walk
from katana_cc.process.words import Word

_GROWTH: Final = 32 << 20  # bytes by which a row may grow until everything is searched anew
_FEW: Final = 200  # objects that are repaired quickly, however many there are
_DEAR: Final = 8  # times that an object to be repaired takes as long as one to be found; measured: 2 to 15
_VALUE: Final = attrgetter("value")


class OverwhelmedError(UnrepairableError):
    """So much changed that a look at the whole takes less time."""


class OpenError(UnrepairableError):
    """Pointers do not come out even, as of this moment; the next may be better."""


class Ahead:
    """The objects of one process, found and made anew as of the last round.

    Args:
        bulk: a reader of the process.
        contents: what each variable holds.

    Raises:
        UnrepairableError: as things are, only a look at the whole can tell.
        ShortageError: there are too few new blocks.
        RefusedError: as of `Objects.look`.
    """

    def __init__(
        self,
        objects: Objects,
        passages: Sequence[Passage],
        edited: Edited,
        bulk: BulkReader,
        regions: MemoryMap,
        contents: Sequence[bytes],
    ) -> None:
        self._objects, self._edited, self._regions = objects, edited, regions
        heap = objects.heap(regions, bulk, is_stopped=False)
        roots = [Root(p.transformation, p.source, c) for p, c in zip(passages, contents, strict=True)]
        types = objects.walked(is_stopped=True)
        try:
            reached = walk(types, roots, heap, heap)
        except LookupError as error:
            raise UnrepairableError(str(error)) from None
        known = {k.name: k for k in objects.kinds}
        kinds = [known[t.name] for t in reached.types]
        live = Live(Table(heap), heap.mappings)
        for f in reached.objects:
            if not live.is_told(f.address):
                live.piece(f.address)
        repair = Repair(types, reached, live, live)
        placement = place(reached, objects.spare, objects.apart)
        if not placement.is_complete:
            raise ShortageError(placement.wanted, objects.target.where)
        places = Places(kinds, placement, objects.spare)
        self._live, self._repair, self._places = live, repair, places
        self._tracked = Tracked(kinds, repair, places, live)
        near = [(r.start, r.limit + _GROWTH) for r in heap.rows]
        near += [(start, start + len(data)) for start, data in live.held.items()]
        self._leads = TrackedLeads(self._tracked, passages, near)
        self._rereading = Rereading(
            objects.target, objects.allocator, bulk, live, self._leads.seeker.ranges, heap.holes
        )
        self._loose = LooseWords(self._tracked, self._leads.seeker, heap)
        self._others: list[Word] = []
        self._findings: dict[int, list[Finding]] = {}
        self._dropped: list[tuple[str, str]] = []
        self._stale: set[int] = set()
        self._fresh: set[int] = set()
        self._lost: list[Found] = []
        self._changed: set[tuple[int, int]] = set()
        self._unled = Unled(objects.kinds, live, self._is_other)
        made = self._make(repair.numbers.values(), is_ahead=True)
        staying = with_before([w for w in made.writes if not places.is_given(w[0])], live)
        self._runs = Runs(((start, after) for start, _, after in staying), live.peek)
        self._write_ahead(made)
        self._settle()

    # -- rounds --------------------------------------------------------------------------------------------------------

    def round(self, regions: MemoryMap, contents: Sequence[bytes]) -> int:
        """Work off what changed, while the process runs; how many bytes of pages had changed.

        Raises:
            UnrepairableError, ShortageError, RefusedError: as when it was made.
        """
        changed = self._follow(regions, contents, is_stopped=False)
        made = self._catch_up(is_ahead=True)
        self._write_ahead(made)
        self._settle()
        return changed * PAGE

    def look(self, regions: MemoryMap, contents: Sequence[bytes]) -> AheadSight:
        """Work off what changed, with every thread stopped.

        Raises:
            OpenError: try again.
            OverwhelmedError: look at the whole at once.
            UnrepairableError: make it anew, or look at the whole.
            ShortageError: there are too few new blocks.
            BusyError: a thread is inside malloc.
        """
        self._follow(regions, contents, is_stopped=True)
        made = self._catch_up(is_ahead=False)
        writes = [(address, b"", data) for address, data in made.writes if self._places.is_given(address)]
        writes += self._runs.writes()
        dropped = (*self._dropped, *made.dropped)
        tracked = self._tracked
        converted = Converted(tracked.groups(), tuple(writes), (), (), dropped, ())
        unreached = tuple(self._unled.found(self._regions, self._repair.roots))
        cargo = Cargo(tracked.reached(), tracked.placement(), converted, unreached)
        findings = [f for held in self._findings.values() for f in held]
        return AheadSight(self, cargo, self._leads, findings)

    def _follow(self, regions: MemoryMap, contents: Sequence[bytes], *, is_stopped: bool) -> int:
        repair, places = self._repair, self._places
        change = self._rereading.follow(regions, repair.numbers, is_stopped=is_stopped)
        self._regions = regions
        touched, difference = change.touched, change.difference
        if is_stopped and len(touched) > max(_FEW, len(repair.numbers) // _DEAR):
            raise OverwhelmedError("too much changed")
        repaired = repair.follow(
            touched, difference.gone, difference.came, change.before, self._live.peek, contents, is_exact=is_stopped
        )
        self._lost += repaired.former
        for number in (*repaired.dropped, *repaired.added):
            places.remove(repair.objects[number])
            self._lost.append(repair.objects[number])
        for number in repaired.added:
            places.add(repair.objects[number])
        self._stale |= touched | set(repaired.added)
        self._fresh |= set(repaired.added)
        self._changed.update(change.parts)
        self._loose.search(change.pages, difference.came.items(), self._lost)
        fresh = (repair.objects[n].address for n in self._fresh)
        self._unled.follow(difference.gone, {*difference.came, *(f.address for f in self._lost), *fresh})
        if repaired.open:
            raise OpenError(repaired.open)
        return change.size

    def _is_other(self, address: int) -> bool:
        """Whether the block there is known to be no object that was missed."""
        is_aside = address in (self._objects.aside.blocks or ())
        return is_aside or address in self._repair.numbers or self._places.is_given(address)

    # -- what they become ----------------------------------------------------------------------------------------------

    def _make(self, numbers: Iterable[int], *, is_ahead: bool) -> Made:
        others: list[Word] | None = [] if is_ahead else None
        objects = [self._repair.objects[n] for n in numbers]
        made = make(objects, self._tracked.kinds, self._tracked.starts, self._leads, self._live, self._edited, others)
        if made.lost:
            raise UnrepairableError("a value would be lost")
        if others:
            self._others += others
        for finding in made.findings:
            number = self._tracked.holder(finding.word.address)
            if number is not None:
                self._findings.setdefault(number, []).append(finding)
        return made

    def _catch_up(self, *, is_ahead: bool) -> Made:
        """Make anew what changed since the last time."""
        repair = self._repair
        if not self._places.is_complete:
            raise ShortageError(self._places.wanted, self._objects.target.where)
        ranges = self.fresh_ranges()
        for start, end in ranges:
            low, high = (bisect_left(self._others, value, key=_VALUE) for value in (start, end))
            self._stale.update(n for w in self._others[low:high] if (n := self._tracked.holder(w.address)) is not None)
        lost = {f.address for f in self._lost}
        for number, held in self._findings.items():
            if any(self._is_lost(f.word.value, lost) for f in held):
                self._stale.add(number)
        stale = {n for n in self._stale if repair.is_found(n)}
        for number in self._stale:
            self._findings.pop(number, None)
            self._runs.drop(repair.objects[number].address)
        for number in [n for n in self._findings if not repair.is_found(n)]:
            del self._findings[number]
        for address, size in self._changed:
            self._runs.restore(address, size)
        for f in self._lost:
            self._runs.drop(f.address)
            self._runs.restore(f.address, f.size)
        for number in stale:
            f = repair.objects[number]
            self._runs.restore(f.address, self._tracked.size(f))
        made = self._make(stale, is_ahead=is_ahead)
        for address, data in made.writes:
            if not self._places.is_given(address):
                self._runs.put(address, data)
        return made

    def _is_lost(self, value: int, lost: set[int]) -> bool:
        block = self._live.at(value)
        return block is not None and block.start in lost

    def fresh_ranges(self) -> list[tuple[int, int]]:
        """The (start, end) ranges that words may lead into, and did not when everything was settled."""
        tracked = self._tracked
        found = (self._repair.objects[n] for n in self._fresh)
        return [
            (f.address, f.address + tracked.size(f))
            for f in found
            if f.address in tracked.starts[tracked.kinds[f.type].name]
        ]

    def _write_ahead(self, made: Made) -> None:
        """Write what goes to new blocks: nothing leads there yet."""
        memory = self._objects.target.memory
        for address, _, data in with_before([w for w in made.writes if self._places.is_given(w[0])], self._live):
            memory.write(address, data)

    def _settle(self) -> None:
        """What was found out counts, and the next round begins from there."""
        self._others.sort(key=_VALUE)
        self._loose.settle()
        self._stale.clear()
        self._fresh.clear()
        self._lost.clear()
        self._changed.clear()

    # -- for whoever searches the rest of memory -----------------------------------------------------------------------

    def words(self) -> Iterator[Word]:
        """The words in rows that lead to what moves, and are in no object."""
        return self._loose.leading(self.fresh_ranges())

    @property
    def holes(self) -> list[tuple[int, int]]:
        """The (start, end) ranges in which no other words need be searched for."""
        found = (self._tracked.at(start) for start in self._live.held)
        return [*self._rereading.holes, *((f.address, f.address + f.size) for f in found if f is not None)]

    @property
    def leads(self) -> Leads:
        """Finds where words lead."""
        return self._leads


@dataclass(frozen=True, slots=True)
class AheadSight:
    """As `Sight`, of what was looked at ahead."""

    ahead: Ahead
    cargo: Cargo
    leads: Leads
    found: Sequence[Finding]

    @property
    def holes(self) -> list[tuple[int, int]]:
        """The (start, end) ranges that `findings` looks at."""
        return self.ahead.holes

    def findings(self, edited: Edited) -> Iterator[Finding]:
        """The words on the heap that lead into what moves and are not exchanged with the objects."""
        yield from self.found
        yield from elsewhere(self.ahead.words(), self.leads, edited)
