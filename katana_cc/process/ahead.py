"""Objects on the heap that are found and made anew before the stop, and in it only where something changed.

Theory of operation.  A look at the objects (`katana_cc.process.objects`) reads the heap, takes it apart, walks,
converts and searches.  Here all that is done while the process runs, of a copy, and its result kept in pieces that can
be changed one by one:

    blocks       `table`: chains of chunks, followed anew in and beside pages that changed
    objects      `repair`: pointers that changed, and what they lead to
    new bytes    of objects in pages that changed, and of those that are new; the rest stays as it was made
    words        of pages that changed, and those that lead to objects that are new

Then come rounds: memory is read again and compared, and what changed is worked off, each round in less time and so
with less that changed meanwhile.  The stop is one more such round, of one moment.  New blocks that objects go to hold
nothing before the stop, so what goes there is written before it as well.

What a round cannot tell for sure (`UnrepairableError`, or what is open in the stop) is left to the look at the whole:
the same answer, only later.  Nothing is told here that speaks against a patch, but for blocks to which nothing leads
and words that nothing explains, which come and go as a program runs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from katana_cc.process.chunks import ARENA_SIZE, DamagedError, chunk_size
from katana_cc.process.convert import Converted, Group, Made, Placement, lead_into, make, place, with_before
from katana_cc.process.copies import PAGE
from katana_cc.process.follow import Edited, Finding, Lead, Leads, Passage, elsewhere
from katana_cc.process.heap import outline
from katana_cc.process.live import Later, Live
from katana_cc.process.mappings import Mappings
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.moves import Kind
from katana_cc.process.objects import Cargo, Objects, ShortageError, Unreached, unreached_among
from katana_cc.process.places import Places
from katana_cc.process.reachable import Found, Reached, Root
from katana_cc.process.repair import Repair, UnrepairableError
from katana_cc.process.runs import Runs
from katana_cc.process.table import Difference, Table, TableRow
from katana_cc.process.walk import walk
from katana_cc.process.watch import Candidates, merged
from katana_cc.process.words import Seeker, Word
from katana_cc.transform.destinations import Destinations

_AT_ONCE: Final = 1 << 19  # bytes read before they are compared
_GROWTH: Final = 32 << 20  # bytes by which a row may grow until everything is searched anew
_PART: Final = 128  # bytes of a page that are compared at a time
_FEW: Final = 200  # objects that are repaired quickly, however many there are
_DEAR: Final = 8  # times that an object to be repaired takes as long as one to be found; measured: 2 to 15
_VALUE: Final = attrgetter("value")


class OverwhelmedError(UnrepairableError):
    """So much changed that a look at the whole takes less time."""


class OpenError(UnrepairableError):
    """Pointers do not come out even, as of this moment; the next may be better."""


class _Seeker(Seeker):
    """Looks for words near to the heap, and knows which of them lead to objects that move."""

    def __init__(self, near: Iterable[tuple[int, int]], leads: Callable[[int], bool]) -> None:
        super().__init__(near)
        self._leads = leads

    def leads(self, value: int) -> bool:
        return self._leads(value)


class _Leads(Leads):
    """As `ObjectLeads`, of objects that come and go."""

    def __init__(self, ahead: Ahead, passages: Sequence[Passage], near: Iterable[tuple[int, int]]) -> None:
        super().__init__(passages)
        self._ahead = ahead
        self._variables = self.seeker
        self._places = [Destinations(k.transformation) for k in ahead.kinds]
        every = merged([*near, *self._variables.ranges])
        self.seeker = _Seeker([(start, end - start) for start, end in every], self._leads)

    def _leads(self, value: int) -> bool:
        return self._ahead.object_at(value) is not None or self._variables.leads(value)

    def of(self, value: int, pointee: str = "") -> Lead:
        f = self._ahead.object_at(value)
        if f is None:
            return super().of(value, pointee)
        kind = self._ahead.kinds[f.type]
        return lead_into(f, self._ahead.starts[kind.name][f.address], kind, self._places[f.type], value, pointee)


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
        self._objects, self._passages, self._edited, self._bulk = objects, passages, edited, bulk
        heap = objects.heap(regions, bulk, is_stopped=False)
        roots = [Root(p.transformation, p.source, c) for p, c in zip(passages, contents, strict=True)]
        types = objects.walked(is_stopped=True)
        try:
            reached = walk(types, roots, heap, heap)
        except LookupError as error:
            raise UnrepairableError(str(error)) from None
        known = {k.name: k for k in objects.kinds}
        self.kinds: list[Kind] = [known[t.name] for t in reached.types]
        self._live = Live(Table(heap), heap.mappings)
        self._regions = regions
        self._holes = heap.holes
        for f in reached.objects:
            if not self._live.is_told(f.address):
                self._live.piece(f.address)
        self._repair = Repair(types, reached, self._live, self._live)
        near = [(r.start, r.limit + _GROWTH) for r in heap.rows]
        near += [(start, start + len(data)) for start, data in self._live.held.items()]
        self._leads = _Leads(self, passages, near)
        placement = place(reached, objects.spare, objects.apart)
        if not placement.is_complete:
            raise ShortageError(placement.wanted, objects.target.where)
        self._places = Places(self.kinds, placement, objects.spare)
        self._words = Candidates()
        for address, data in heap.searchable(self._skipped()):
            self._words.search(self._leads.seeker, address, data)
        self._others: list[Word] = []
        self._findings: dict[int, list[Finding]] = {}
        self._dropped: list[tuple[str, str]] = []
        self._stale: set[int] = set()
        self._fresh: set[int] = set()
        self._lost: list[Found] = []
        self._changed: set[tuple[int, int]] = set()
        self._find_left()
        made = self._make(self._repair.numbers.values(), is_ahead=True)
        staying = with_before([w for w in made.writes if not self._places.is_given(w[0])], self._live)
        self._runs = Runs(((start, after) for start, _, after in staying), self._read)
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
        converted = Converted(Later(self._groups), tuple(writes), (), (), dropped, ())
        cargo = Cargo(self._reached(), self._placement(), converted, tuple(self._unreached()))
        findings = [f for held in self._findings.values() for f in held]
        return AheadSight(self, cargo, self._leads, findings)

    def _follow(self, regions: MemoryMap, contents: Sequence[bytes], *, is_stopped: bool) -> int:
        live, repair, table = self._live, self._repair, self._live.table
        try:
            plan = outline(self._objects.target, self._objects.allocator, regions, is_stopped=is_stopped)
        except DamagedError as error:
            raise UnrepairableError(str(error)) from None
        rows = sorted(plan.rows)
        if [r.start for r in rows] != [r.start for r in table.rows]:
            raise UnrepairableError("malloc has other heaps than before")
        changed: dict[int, bytes] = {}
        old: dict[int, bytes] = {}
        ends = {}
        for row, known in zip(rows, table.rows, strict=True):
            limit = row.start + row.size
            ends[row.start] = (limit if row.end is None else row.end), limit
            for address, data in self._differing(known, limit):
                changed[address], old[address] = data, known.read(address, PAGE)
        try:
            difference = table.update(ends, changed, [a.fast for a in plan.arenas], is_exact=is_stopped)
        except DamagedError as error:
            raise UnrepairableError(str(error)) from None
        self._holes = [(plan.main, plan.main + ARENA_SIZE)] if plan.main else []
        self._holes += [(r.start, r.limit) for r in table.rows]
        self._regions = regions
        live.mappings = Mappings(self._objects.target.memory, regions)
        old_held = self._compare_held(difference)
        touched = {repair.numbers[start] for start in old_held if start in repair.numbers}
        parts: list[tuple[int, int]] = []
        for address, data in changed.items():
            row_of = table.row(address)
            if row_of is None:
                continue
            differing = list(_differing_parts(old[address], data))
            parts += [(address + at, _PART) for at in differing]
            for block, size in row_of.overlapping(row_of.page(address)):
                number = repair.numbers.get(block)
                if number is not None:
                    low, high = block - address, block + size - address
                    if any(at < high and low < at + _PART for at in differing):
                        touched.add(number)

        if is_stopped and len(touched) > max(_FEW, len(repair.numbers) // _DEAR):
            raise OverwhelmedError("too much changed")

        def before(address: int, size: int) -> bytes:
            if address in old_held:
                return old_held[address][:size]
            row = table.holding(address)
            data = bytearray(self._read(address, size) if row is None else row.read(address, size))
            for page in range(address & -PAGE, address + size, PAGE):
                there = old.get(page)
                if there is not None:
                    low, high = max(page, address), min(page + PAGE, address + size)
                    data[low - address : high - address] = there[low - page : high - page]
            return bytes(data)

        repaired = repair.follow(
            touched, difference.gone, difference.came, before, self._read, contents, is_exact=is_stopped
        )
        self._lost += repaired.former
        for number in (*repaired.dropped, *repaired.added):
            self._places.remove(repair.objects[number])
            self._lost.append(repair.objects[number])
        for number in repaired.added:
            self._places.add(repair.objects[number])
        self._stale |= touched | set(repaired.added)
        self._fresh |= set(repaired.added)
        self._changed.update(parts)
        self._search(changed, difference)
        self._find_left_changed(difference)
        if repaired.open:
            raise OpenError(repaired.open)
        return len(changed) + sum(len(data) // PAGE for data in old_held.values())

    def _read(self, address: int, size: int) -> bytes:
        row = self._live.table.row(address)
        if row is not None:
            return row.read(address, size)
        return self._live.read(address, size)

    def _differing(self, row: TableRow, limit: int) -> Iterator[tuple[int, bytes]]:
        """(address, bytes) of the pages of a row that are not as they were, or are new."""
        if not any(start <= row.start and limit <= end for start, end in self._leads.seeker.ranges):
            raise UnrepairableError("a heap has grown too much")
        for start in range(row.start, limit, _AT_ONCE):
            size = min(_AT_ONCE, limit - start)
            new = self._bulk.read([(start, size)])
            at = start - row.start
            if start + size <= row.limit and row.data[at : at + size] == new:
                continue
            for page in range(0, size, PAGE):
                data = new[page : page + PAGE]
                if start + page + PAGE > row.limit or row.data[at + page : at + page + PAGE] != data:
                    yield start + page, bytes(data)

    def _compare_held(self, difference: Difference) -> dict[int, bytes]:
        """What blocks with mappings of their own held, where that changed; those that are gone are told."""
        live = self._live
        old = {}
        for start, data in list(live.held.items()):
            block = live.mappings.at(start)
            if block is None or (block.start, block.size) != (start, len(data)):
                old[start] = live.held.pop(start)
                difference.gone[start] = len(data)
                if block is not None and block.start == start:
                    difference.came[start] = block.size
                continue
            new = self._bulk.read([(start, len(data))])
            if bytearray(data) != new:
                old[start] = data
                live.held[start] = bytes(new)
        return old

    @property
    def starts(self) -> Mapping[str, Mapping[int, int]]:
        """Type → start of a block → where its objects go."""
        return self._places.starts

    def object_at(self, value: int) -> Found | None:
        """The block of objects that are made anew in which an address leads to one of them."""
        repair = self._repair
        number = repair.numbers.get(value)
        if number is None:
            if value in self._live.table.used or not self._leads.seeker.is_near(value):
                return None
            block = self._live.at(value)
            number = None if block is None or not block.is_used else repair.numbers.get(block.start)
            if number is None:
                return None
        f = repair.objects[number]
        kind = self.kinds[f.type]
        is_in = value - f.address < f.elements * kind.transformation.old_size
        return f if is_in and not kind.stays else None

    # -- what they become ----------------------------------------------------------------------------------------------

    def _make(self, numbers: Iterable[int], *, is_ahead: bool) -> Made:
        others: list[Word] | None = [] if is_ahead else None
        objects = [self._repair.objects[n] for n in numbers]
        made = make(objects, self.kinds, self._places.starts, self._leads, self._live, self._edited, others)
        if made.lost:
            raise UnrepairableError("a value would be lost")
        if others:
            self._others += others
        for finding in made.findings:
            number = self._holder(finding.word.address)
            if number is not None:
                self._findings.setdefault(number, []).append(finding)
        return made

    def _holder(self, address: int) -> int | None:
        """The object that an address is in."""
        block = self._live.at(address)
        return None if block is None else self._repair.numbers.get(block.start)

    def _catch_up(self, *, is_ahead: bool) -> Made:
        """Make anew what changed since the last time."""
        repair = self._repair
        if not self._places.is_complete:
            raise ShortageError(self._places.wanted, self._objects.target.where)
        ranges = self.fresh_ranges()
        for start, end in ranges:
            low, high = (bisect_left(self._others, value, key=_VALUE) for value in (start, end))
            self._stale.update(n for w in self._others[low:high] if (n := self._holder(w.address)) is not None)
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
            self._runs.restore(f.address, f.elements * self.kinds[f.type].transformation.old_size)
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
        found = (self._repair.objects[n] for n in self._fresh)
        return [
            (f.address, f.address + f.elements * self.kinds[f.type].transformation.old_size)
            for f in found
            if f.address in self._places.starts[self.kinds[f.type].name]
        ]

    def _write_ahead(self, made: Made) -> None:
        """Write what goes to new blocks: nothing leads there yet."""
        memory = self._objects.target.memory
        for address, _, data in with_before([w for w in made.writes if self._places.is_given(w[0])], self._live):
            memory.write(address, data)

    def _settle(self) -> None:
        """What was found out counts, and the next round begins from there."""
        self._others.sort(key=_VALUE)
        self._words.settle(self._leads.seeker.leads)
        self._stale.clear()
        self._fresh.clear()
        self._lost.clear()
        self._changed.clear()

    # -- words ---------------------------------------------------------------------------------------------------------

    def _skipped(self) -> Iterator[tuple[int, int]]:
        """(address, size) of what objects and new blocks take."""
        for number in self._repair.numbers.values():
            f = self._repair.objects[number]
            kind = self.kinds[f.type]
            yield f.address, f.elements * kind.transformation.old_size if kind.stays else f.size
        for address in self._places.given:
            yield address, self._live.table.used.get(address, 0)

    def _search(self, changed: dict[int, bytes], difference: Difference) -> None:
        """Search pages that changed, and those of which other bytes count than before."""
        table = self._live.table
        pages = set(changed)
        for start, size in (*difference.came.items(), *((f.address, f.size) for f in self._lost)):
            if table.row(start) is not None:
                pages.update(range(start & -PAGE, start + size, PAGE))
        for page in pages:
            row = table.row(page)
            if row is not None:
                self._words.search(self._leads.seeker, page, self._masked(row, page))

    def _masked(self, row: TableRow, page: int) -> bytearray:
        """A page without what objects hold: most of the words that lead somewhere are these."""
        data = bytearray(row.read(page, PAGE))
        for block, _ in row.overlapping(row.page(page)):
            number = self._repair.numbers.get(block)
            if number is not None:
                f = self._repair.objects[number]
                kind = self.kinds[f.type]
                size = f.elements * kind.transformation.old_size if kind.stays else f.size
                low, high = max(block - page, 0), min(block + size - page, PAGE)
                if low < high:
                    data[low:high] = bytes(high - low)
        return data

    def is_searched(self, address: int) -> bool:
        """Whether a word in a row is one that may hold a pointer that no type tells of."""
        row = self._live.table.row(address)
        if row is None or not row.first <= address < row.top:
            return False
        block = self._live.table.at(address)
        if block is None:
            return True  # the head of a chunk
        if not block.is_used or self._places.is_given(block.start):
            return False
        number = self._repair.numbers.get(block.start)
        if number is None:
            return True
        f = self._repair.objects[number]
        kind = self.kinds[f.type]
        return kind.stays and address >= f.address + f.elements * kind.transformation.old_size

    def words(self) -> Iterator[Word]:
        """The words in rows that lead to what moves, and are in no object."""
        found = self._words.leading(self._leads.seeker.leads, self.fresh_ranges())
        return (w for w in found if self.is_searched(w.address))

    @property
    def holes(self) -> list[tuple[int, int]]:
        """The (start, end) ranges in which no other words need be searched for."""
        objects = (self._repair.numbers.get(start) for start in self._live.held)
        found = [self._repair.objects[n] for n in objects if n is not None]
        return [*self._holes, *((f.address, f.address + f.size) for f in found)]

    @property
    def leads(self) -> Leads:
        """Finds where words lead."""
        return self._leads

    # -- blocks that nothing leads to ----------------------------------------------------------------------------------

    def _find_left(self) -> None:
        sizes = {chunk_size(k.transformation.old_size) for k in self._objects.kinds if not (k.stays or k.is_all)}
        self._left: dict[int, set[int]] = {size: set() for size in sizes}
        if sizes:
            for address, size in self._live.table.used.items():
                if size in sizes and self._is_left(address):
                    self._left[size].add(address)

    def _is_left(self, address: int) -> bool:
        is_aside = address in (self._objects.aside.blocks or ())
        return not (is_aside or address in self._repair.numbers or self._places.is_given(address))

    def _find_left_changed(self, difference: Difference) -> None:
        for address, size in difference.gone.items():
            if size in self._left:
                self._left[size].discard(address)
        came = {
            *difference.came,
            *(f.address for f in self._lost),
            *(self._repair.objects[n].address for n in self._fresh),
        }
        for address in came:
            for blocks in self._left.values():
                blocks.discard(address)
            size = self._live.table.used.get(address, 0)
            if size in self._left and self._is_left(address):
                self._left[size].add(address)

    def _unreached(self) -> Iterator[Unreached]:
        left = {size: sorted(blocks) for size, blocks in self._left.items()}
        return unreached_among(left, self._objects.kinds, self._live, self._regions, self._repair.roots)

    # -- the whole, for whoever wants to know it afterwards ------------------------------------------------------------

    def _reached(self) -> Reached:
        types = tuple(k.transformation for k in self.kinds)
        return Reached(types, self._repair.roots, Later(self._repair.in_order), ())

    def _moved(self) -> list[tuple[Found, int]]:
        numbers = self._repair.numbers
        found = (
            (self._repair.objects[numbers[address]], new)
            for starts in self._places.starts.values()
            for address, new in starts.items()
        )
        return sorted(found)

    def _placement(self) -> Placement:
        return Placement(
            Later(lambda: [f for f, _ in self._moved()]),
            Later(lambda: [new for _, new in self._moved()]),
            self._places.wanted,
            Later(lambda: [new for f, new in self._moved() if new != f.address]),
            True,
        )

    def _groups(self) -> list[Group]:
        result = []
        moved = self._moved()
        for n, kind in enumerate(self.kinds):
            mine = [(f, new) for f, new in moved if f.type == n]
            if mine:
                result.append(Group(kind, [f for f, _ in mine], [new for _, new in mine], b"", b""))
        return result


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


def _differing_parts(old: bytes, new: bytes) -> Iterator[int]:
    """The offsets of the parts in which two pages differ."""
    for at in range(0, len(new), _PART):
        if old[at : at + _PART] != new[at : at + _PART]:
            yield at
