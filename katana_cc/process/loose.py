"""Words on the heap of one process that are in no object, and lead to what moves: pointers that no type tells of.

Searched once, and then where pages changed, or where other bytes of them count than before, since objects came there or
went.  What objects hold is left out of the search: most of the words that lead somewhere are these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from katana_cc.process.copies import PAGE
from katana_cc.process.heap import Heap
from katana_cc.process.reachable import Found
from katana_cc.process.table import TableRow
from katana_cc.process.tracked import Tracked
from katana_cc.process.watch import Candidates
from katana_cc.process.words import Seeker, Word


class LooseWords:
    """The words in rows that are in no object.

    Args:
        seeker: tells which words lead to what moves.
        heap: as it is now.
    """

    def __init__(self, tracked: Tracked, seeker: Seeker, heap: Heap) -> None:
        self._tracked, self._seeker = tracked, seeker
        self._words = Candidates()
        for address, data in heap.searchable(self._skipped()):
            self._words.search(seeker, address, data)

    def search(self, changed: Iterable[int], came: Iterable[tuple[int, int]], lost: Iterable[Found]) -> None:
        """Search pages that changed, and those of blocks that came (start, size) and of objects that are gone."""
        table = self._tracked.live.table
        pages = set(changed)
        for start, size in (*came, *((f.address, f.size) for f in lost)):
            if table.row(start) is not None:
                pages.update(range(start & -PAGE, start + size, PAGE))
        for page in pages:
            row = table.row(page)
            if row is not None:
                self._words.search(self._seeker, page, self._masked(row, page))

    def settle(self) -> None:
        """What was found counts, so that less is to do the next time."""
        self._words.settle(self._seeker.leads)

    def leading(self, fresh: Sequence[tuple[int, int]]) -> Iterator[Word]:
        """Those that lead to what moves.

        Args:
            fresh: the (start, end) ranges that words may lead into, and did not when all was settled.
        """
        found = self._words.leading(self._seeker.leads, fresh)
        return (w for w in found if self._counts(w.address))

    def _skipped(self) -> Iterator[tuple[int, int]]:
        """(address, size) of what objects and new blocks take."""
        tracked = self._tracked
        for number in tracked.repair.numbers.values():
            f = tracked.repair.objects[number]
            yield f.address, tracked.own(f)
        for address in tracked.places.given:
            yield address, tracked.live.table.used.get(address, 0)

    def _masked(self, row: TableRow, page: int) -> bytearray:
        """A page without what objects hold."""
        data = bytearray(row.read(page, PAGE))
        for block, _ in row.overlapping(row.page(page)):
            f = self._tracked.at(block)
            if f is not None:
                low, high = max(block - page, 0), min(block + self._tracked.own(f) - page, PAGE)
                if low < high:
                    data[low:high] = bytes(high - low)
        return data

    def _counts(self, address: int) -> bool:
        """Whether a word in a row is one that may hold a pointer that no type tells of."""
        tracked = self._tracked
        row = tracked.live.table.row(address)
        if row is None or not row.first <= address < row.top:
            return False
        block = tracked.live.table.at(address)
        if block is None:
            return True  # the head of a chunk
        if not block.is_used or tracked.places.is_given(block.start):
            return False
        f = tracked.at(block.start)
        return f is None or (tracked.kinds[f.type].stays and address >= f.address + tracked.size(f))
