"""The heap of one process, read again: which pages, blocks and parts of pages are not as they were at the last round.

Rows are compared page by page, blocks with mappings of their own each as a whole; the copy is brought up to date, and
what was there before is kept until the caller has worked off the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from katana_cc.process.chunks import ARENA_SIZE, DamagedError
from katana_cc.process.copies import PAGE
from katana_cc.process.heap import Allocator, outline
from katana_cc.process.live import Live
from katana_cc.process.mappings import Mappings
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.repair import UnrepairableError
from katana_cc.process.table import Difference, TableRow
from katana_cc.process.target import Target

_AT_ONCE: Final = 1 << 19  # bytes read before they are compared
_PART: Final = 128  # bytes of a page that are compared at a time


@dataclass(frozen=True, slots=True)
class Change:
    """What changed between two rounds.

    `pages` are those of rows, by address; `parts` the (address, size) of what differs in them; `difference` the blocks
    that came and went; `touched` the objects in which a byte may have changed.
    """

    pages: Mapping[int, bytes]  # as they were
    parts: Sequence[tuple[int, int]]
    difference: Difference
    touched: set[int]
    _held: Mapping[int, bytes]
    _live: Live

    @property
    def size(self) -> int:
        """How many pages there are in what was found changed."""
        return len(self.pages) + sum(len(data) // PAGE for data in self._held.values())

    def before(self, address: int, size: int) -> bytes:
        """What a block held at the last round."""
        if address in self._held:
            return self._held[address][:size]
        row = self._live.table.holding(address)
        data = bytearray(self._live.peek(address, size) if row is None else row.read(address, size))
        for page in range(address & -PAGE, address + size, PAGE):
            there = self.pages.get(page)
            if there is not None:
                low, high = max(page, address), min(page + PAGE, address + size)
                data[low - address : high - address] = there[low - page : high - page]
        return bytes(data)


class Rereading:
    """Keeps the copy of a heap up to date.

    Args:
        searched: the (start, end) ranges in which rows may grow.
        holes: of the heap that the copy was made of.

    Attributes:
        holes: the (start, end) ranges of the heap as of the last round, which need not be searched with other memory.
    """

    def __init__(
        self,
        target: Target,
        allocator: Allocator,
        bulk: BulkReader,
        live: Live,
        searched: Sequence[tuple[int, int]],
        holes: Sequence[tuple[int, int]],
    ) -> None:
        self._target, self._allocator, self._bulk, self._live = target, allocator, bulk, live
        self._searched = searched
        self.holes = holes

    def follow(self, regions: MemoryMap, objects: Mapping[int, int], *, is_stopped: bool) -> Change:
        """Read it again, and take over what changed.

        Args:
            objects: start of a block → the number of the objects in it.

        Raises:
            UnrepairableError: what is there does not go on from what was there.
            BusyError, RefusedError, TargetError: as of `katana_cc.process.heap.outline`.
        """
        live, table = self._live, self._live.table
        try:
            plan = outline(self._target, self._allocator, regions, is_stopped=is_stopped)
        except DamagedError as error:
            raise UnrepairableError(str(error)) from None
        rows = sorted(plan.rows)
        if [r.start for r in rows] != [r.start for r in table.rows]:
            raise UnrepairableError("malloc has other heaps than before")
        new: dict[int, bytes] = {}
        old: dict[int, bytes] = {}
        ends = {}
        for row, known in zip(rows, table.rows, strict=True):
            limit = row.start + row.size
            ends[row.start] = (limit if row.end is None else row.end), limit
            for address, data in self._differing(known, limit):
                new[address], old[address] = data, known.read(address, PAGE)
        try:
            difference = table.update(ends, new, [a.fast for a in plan.arenas], is_exact=is_stopped)
        except DamagedError as error:
            raise UnrepairableError(str(error)) from None
        self.holes = [(plan.main, plan.main + ARENA_SIZE)] if plan.main else []
        self.holes += [(r.start, r.limit) for r in table.rows]
        live.mappings = Mappings(self._target.memory, regions)
        held = self._compare_held(difference)
        touched = {objects[start] for start in held if start in objects}
        parts: list[tuple[int, int]] = []
        for address, data in new.items():
            row_of = table.row(address)
            if row_of is None:
                continue
            differing = list(_differing_parts(old[address], data))
            parts += [(address + at, _PART) for at in differing]
            for block, size in row_of.overlapping(row_of.page(address)):
                number = objects.get(block)
                if number is not None:
                    low, high = block - address, block + size - address
                    if any(at < high and low < at + _PART for at in differing):
                        touched.add(number)
        return Change(old, parts, difference, touched, held, live)

    def _differing(self, row: TableRow, limit: int) -> Iterator[tuple[int, bytes]]:
        """(address, bytes) of the pages of a row that are not as they were, or are new."""
        if not any(start <= row.start and limit <= end for start, end in self._searched):
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


def _differing_parts(old: bytes, new: bytes) -> Iterator[int]:
    """The offsets of the parts in which two pages differ."""
    for at in range(0, len(new), _PART):
        if old[at : at + _PART] != new[at : at + _PART]:
            yield at
