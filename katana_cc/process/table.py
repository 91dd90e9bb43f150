"""The blocks of a heap, kept up to date from pages that changed.  Pure: bytes in, blocks out.

Theory of operation.  A row is a chain: where a chunk begins follows from the sizes of all before it.  A page that did
not change, and whose first chunk begins where it did, has the same chunks as before.  So for each page it is kept where
the first chunk in it begins, and of pages that changed the chain is followed anew, from the page before (whose last
chunk the next one's head tells to be free or not) until it meets a page that did not change where it was known to:

    page        0         1         2 *       3         4            * changed
    first       0x10      0x1030    0x2000    0x3040    0x4010
    followed              |---------|---------|-> 0x3040: as before, so all from there on is

Where the sizes changed so that it does not meet, it is followed on.  The lists of blocks that look used (fast bins,
caches of threads) are short, and read anew each time.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from katana_cc.process import chunks
from katana_cc.process.chunks import CACHE_CHUNK, HEADER, WORD, DamagedError
from katana_cc.process.copies import PAGE
from katana_cc.process.heap import Heap, ReadRow
from katana_cc.process.reachable import Block

_SMALLEST: Final = 32
_SLACK: Final = 4 << 20  # bytes that a row may grow by without being copied
_NOTHING: Final = 0  # no chunk begins in a page
_HEAD: Final = struct.Struct("<Q")


class Difference(NamedTuple):
    """How blocks in use differ from before: start → usable bytes, of those that are gone and of those that came.  One
    of another size is among both."""

    gone: dict[int, int]
    came: dict[int, int]


class TableRow:
    """One row: its bytes from `start` to `limit`, chunks from `first` to `top`."""

    def __init__(self, row: ReadRow) -> None:
        self.start, self.limit, self.first, self.top = row.start, row.limit, row.first, row.top
        self.is_fenced = row.top >= row.limit  # ends with a chunk that marks an end, and not with a top chunk
        self.data = bytearray(row.data)
        self.heads: list[int] = []  # of each page, the address of the first chunk that begins in it
        self.reserve(row.limit)
        begins = [b - HEADER for b in row.blocks]
        at = 0
        for n in range(len(self.heads)):
            page = self.start + n * PAGE
            at = bisect_left(begins, page, at)
            self.heads[n] = begins[at] if at < len(begins) and begins[at] < page + PAGE else _NOTHING

    def reserve(self, limit: int) -> None:
        """Have room for a row that ends there."""
        self.limit = limit
        if limit - self.start > len(self.data):
            self.data = self.data.ljust(limit - self.start + _SLACK, b"\0")
        pages = -(-(limit - self.start) // PAGE)
        self.heads += [_NOTHING] * (pages - len(self.heads))

    def page(self, address: int) -> int:
        """The number of the page that holds an address."""
        return (address - self.start) // PAGE

    def read(self, address: int, size: int) -> bytes:
        """Bytes of it."""
        at = address - self.start
        return bytes(self.data[at : at + size])

    def word(self, address: int) -> int:
        """The word there."""
        found: int = _HEAD.unpack_from(self.data, address - self.start)[0]
        return found

    def before(self, page: int) -> int:
        """The last page before one in which a chunk begins; -1: none."""
        page -= 1
        while page >= 0 and self.heads[page] == _NOTHING:
            page -= 1
        return page

    def chain(self, at: int, end: int) -> Iterator[tuple[int, int]]:
        """(start, usable bytes) of the block of each chunk from `at` on that begins before `end`."""
        end = min(end, self.top)
        while at < end:
            size = self.word(at + WORD) & -16
            if size < _SMALLEST:
                return  # the end of a fenced row
            yield at + HEADER, size - WORD
            at += size

    def in_page(self, page: int) -> Iterator[tuple[int, int]]:
        """The same of the chunks that begin in a page."""
        if self.heads[page] != _NOTHING:
            yield from self.chain(self.heads[page], self.start + (page + 1) * PAGE)

    def overlapping(self, page: int) -> Iterator[tuple[int, int]]:
        """The same of those that have a byte in a page."""
        begin = self.start + page * PAGE
        first = self.before(page)  # also where a chunk begins with the page: the block before reaches into its head
        if first < 0:
            first = page
        if self.heads[first] != _NOTHING:
            yield from (b for b in self.chain(self.heads[first], begin + PAGE) if sum(b) > begin)


class Table:
    """The blocks of all rows.

    Attributes:
        rows: by address.
        used: start → usable bytes, of each block in use.
    """

    def __init__(self, heap: Heap) -> None:
        self.rows = [TableRow(r) for r in heap.rows]
        self._starts = [r.start for r in self.rows]
        self._sizes = {b: size for r in heap.rows for b, size in zip(r.blocks, r.usable, strict=True)}
        self._marked = set(heap.marked)
        self.used = dict(heap.used)
        self._caches = {b for b, size in self._sizes.items() if size == CACHE_CHUNK - WORD}
        self._cached = self._sizes.keys() - self.used.keys() - self._marked

    def row(self, address: int) -> TableRow | None:
        """The row that an address lies in."""
        i = bisect_right(self._starts, address) - 1
        row = self.rows[i] if i >= 0 else None
        return row if row is not None and address < row.limit else None

    def holding(self, address: int) -> TableRow | None:
        """The same, also of memory that it ended with before."""
        i = bisect_right(self._starts, address) - 1
        row = self.rows[i] if i >= 0 else None
        return row if row is not None and address < row.start + len(row.data) else None

    def at(self, address: int) -> Block | None:
        """As `Heap.at`, for an address in a row."""
        row = self.row(address)
        if row is None:
            return None
        rest = row.top + HEADER
        if address >= rest:
            return Block(rest, row.limit - rest, False)
        page = row.page(address)
        if not _NOTHING < row.heads[page] <= address - HEADER:
            page = row.before(page)
        for start, size in row.chain(row.heads[page], address) if page >= 0 else ():
            if start <= address < start + size:
                return Block(start, size, start in self.used)
        return None

    def update(
        self,
        ends: Mapping[int, tuple[int, int]],
        changed: Mapping[int, bytes],
        fast: Iterable[Sequence[int]],
        *,
        is_exact: bool,
    ) -> Difference:
        """Take over pages that changed.

        Args:
            ends: of each row, by its start, (top, limit) as they are now.
            changed: address → bytes of each page of a row that changed, or is new.
            fast: for each arena, the heads of its fast bins.
            is_exact: all is of one moment; else lists that lead nowhere are taken to be as they were.

        Raises:
            DamagedError: what is there contradicts itself.  The table is of no use any more.
        """
        pages: dict[int, dict[int, bytes]] = {r.start: {} for r in self.rows}
        for address, data in changed.items():
            row = self.rows[bisect_right(self._starts, address) - 1]
            pages[row.start][row.page(address)] = data
        before: dict[int, int] = {}
        after: dict[int, int] = {}
        free: set[int] = set()
        for row in self.rows:
            _Follower(row, before, after, free).run(pages[row.start], *ends[row.start])
        for b in before:
            del self._sizes[b]
            self._marked.discard(b)
            self._caches.discard(b)
        self._sizes.update(after)
        self._marked |= free
        self._caches.update(b for b, size in after.items() if size == CACHE_CHUNK - WORD)
        was_cached = self._cached
        try:
            self._cached = self._lists(fast)
        except DamagedError:
            if is_exact:
                raise
        difference = Difference({}, {})
        for b in {*before, *after, *(was_cached ^ self._cached)}:
            was = self.used.get(b)
            now = None if b in self._marked or b in self._cached else self._sizes.get(b)
            if was != now:
                if was is not None:
                    difference.gone[b] = self.used.pop(b)
                if now is not None:
                    difference.came[b] = self.used[b] = now
        return difference

    def _lists(self, fast: Iterable[Sequence[int]]) -> set[int]:
        def word(address: int) -> int:
            row = self.row(address)
            if row is None or address + WORD > row.limit or address % WORD:
                raise DamagedError(f"a list of free blocks leads to {address:#x}, outside the heap")
            return row.word(address)

        caches = sorted(self._caches - self._marked)
        return chunks.cached(word, caches, fast, lambda b: self._sizes.get(b, 0), len(self._sizes)) - self._marked


class _Follower:
    """Follows the chain of one row anew where it may have changed.  `before`, `after` get the blocks of all pages
    concerned, `free` those of `after` that are free by the next one's mark."""

    def __init__(self, row: TableRow, before: dict[int, int], after: dict[int, int], free: set[int]) -> None:
        self._row, self._before, self._after, self._free = row, before, after, free
        self._todo: set[int] = set()

    def run(self, changed: Mapping[int, bytes], top: int, limit: int) -> None:
        """Take over the pages (by number) that changed, and where the row ends now."""
        row = self._row
        todo = {page for page in changed if page < len(row.heads)}
        if top != row.top:
            low, high = sorted((row.top, top))
            todo.update(range(row.page(low), min(row.page(high) + 1, len(row.heads))))
        todo.update([before for page in todo if (before := row.before(page)) >= 0])
        for page in todo:
            self._before.update(row.in_page(page))
        row.reserve(limit)
        for page, data in changed.items():
            row.data[page * PAGE : page * PAGE + len(data)] = data
        row.top = limit if row.is_fenced else top
        # From here on the bytes are those of now, and `heads` those of before where the chain was not followed.
        self._todo = todo | {page for page in changed if page not in todo}
        done = -1
        for page in sorted(todo):
            if page > done and row.heads[page] != _NOTHING:
                done = self._follow(page)

    def _follow(self, page: int) -> int:
        """Follow the chain from the first chunk in a page on; the last page that is settled by it."""
        row = self._row
        at, here, last = row.heads[page], page - 1, 0
        end = row.top
        while True:
            number = row.page(at)
            is_end = at >= end
            for skipped in range(here + 1, len(row.heads) if is_end else number):
                self._forget(skipped)
            if not is_end and number != here and number not in self._todo and row.heads[number] == at and last:
                self._mark(last, at)
                return number - 1
            if is_end:
                if at != end or row.is_fenced:
                    raise DamagedError(f"its last block, at {last:#x}, reaches beyond its end")
                self._mark(last, at)
                return len(row.heads)
            if number != here:
                self._forget(number)
                row.heads[number] = at
                here = number
            head = row.word(at + WORD)
            self._mark(last, at)
            size = head & -16
            if size < _SMALLEST or head & (chunks.IS_MAPPED | WORD):
                if row.is_fenced and size <= HEADER:
                    for skipped in range(here + 1, len(row.heads)):
                        self._forget(skipped)
                    if row.heads[here] == at:
                        row.heads[here] = _NOTHING
                    return len(row.heads)
                raise DamagedError(f"the size at {at + WORD:#x}, {head:#x}, is not that of a block")
            last = at + HEADER
            self._after[last] = size - WORD
            at += size

    def _mark(self, last: int, following: int) -> None:
        """Note the last block as free, where the head of the next chunk says so."""
        if last and not self._row.word(following + WORD) & chunks.IN_USE_BEFORE:
            self._free.add(last)

    def _forget(self, page: int) -> None:
        """Nothing is known any more of where chunks begin in a page."""
        row = self._row
        if page not in self._todo and row.heads[page] != _NOTHING:
            # Its bytes are as they were, so that they still tell what it held.
            self._before.update(row.in_page(page))
        self._todo.add(page)
        row.heads[page] = _NOTHING
