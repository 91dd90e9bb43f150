"""The search for words of `katana_cc.process.words`, page by page: in the stop only pages that changed are searched.

Before the stop all memory is copied and searched (`katana_cc.process.copies`), and what changed meanwhile once more, as
long as that makes less of it.  In the stop the copy is compared with what is there: a page that is the same holds the
same words.  What was not copied (a mapping made meanwhile, memory touched for the first time) is searched as if it had
changed.

Where objects on the heap move, the ranges that words may lead into are others at each look.  So what is searched for
are words that lead anywhere near, and those of interest are picked from them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Final

from katana_cc.process.copies import PAGE, Copy, Ranges
from katana_cc.process.words import Seeker, Word

_VALUE: Final = attrgetter("value")


class Candidates:
    """Words by the page that they are in, of which those that lead somewhere are asked for again and again.

    What leads there may be others each time.  So it is kept which did, and all by their values: only words in pages
    that changed since, and those of certain values, are looked at once more.
    """

    def __init__(self) -> None:
        self._pages: dict[int, list[Word]] = {}
        self._hits: dict[int, list[Word]] = {}
        self._values: list[Word] = []  # by value
        self._changed: set[int] = set()

    def replace(self, page: int, words: list[Word]) -> None:
        """A page holds other words than before."""
        self._changed.add(page)
        self._hits.pop(page, None)
        if words:
            self._pages[page] = words
        else:
            self._pages.pop(page, None)

    def search(self, seeker: Seeker, address: int, data: bytes | bytearray | memoryview) -> None:
        """Put the words that are near in place of those of these pages; `address` is where one begins."""
        found: dict[int, list[Word]] = {}
        for word in seeker.near(data, address):
            found.setdefault(word.address & -PAGE, []).append(word)
        for page in range(address, address + len(data), PAGE):
            if page in found or page in self._pages or page in self._hits:
                self.replace(page, found.get(page, []))

    def settle(self, leads: Callable[[int], bool]) -> None:
        """Look at all of them, so that less is to do the next time."""
        hits = {page: [w for w in words if leads(w.value)] for page, words in self._pages.items()}
        self._hits = {page: words for page, words in hits.items() if words}
        self._values = sorted((w for words in self._pages.values() for w in words), key=_VALUE)
        self._changed.clear()

    def leading(self, leads: Callable[[int], bool], more: Iterable[tuple[int, int]] = ()) -> Iterator[Word]:
        """Those that lead there, by page.

        Args:
            more: the (start, end) ranges that words may lead into now, and did not when all were looked at.
        """
        found = {page: words[:] for page, words in self._hits.items()}
        for page in self._changed:
            found[page] = self._pages.get(page, [])
        for start, end in more:
            low, high = (bisect_left(self._values, value, key=_VALUE) for value in (start, end))
            for word in self._values[low:high]:
                page = word.address & -PAGE
                if page not in self._changed and word not in found.get(page, ()):
                    found.setdefault(page, []).append(word)
        for page in sorted(found):
            yield from sorted(w for w in found[page] if leads(w.value))


class Watch:
    """The words of one process that lead into ranges, as of the last look.

    Args:
        room: how many bytes of the process may be copied.
        also: is told of each run of pages, by address and bytes, that is searched.

    Attributes:
        searched: bytes that the last look had to search.
    """

    def __init__(self, reader: Ranges, room: int, also: Callable[[int, memoryview], None] | None = None) -> None:
        self._also = also
        self._copy = Copy(reader, room)
        self._coarse = Seeker(())
        self._within: list[tuple[int, int]] = []
        self._reader, self._room = reader, room
        self._words = Candidates()
        self.searched = 0

    def words(
        self,
        vectors: Sequence[tuple[int, int]],
        seeker: Seeker,
        more: Iterable[tuple[int, int]] = (),
    ) -> list[Word]:
        """The aligned words in these (address, size) ranges of the target that lead where `seeker` says, by address.

        Where what is near to it is not what was near at an earlier look, everything is searched.

        Args:
            more: as of `Candidates.leading`.

        Raises:
            OSError: the process is gone.
        """
        if not seeker.lies_in(self._within):
            self._within = merged(seeker.ranges)
            self._coarse = Seeker((start, end - start) for start, end in self._within)
            self._copy = Copy(self._reader, self._room)
            self._words = Candidates()
        self.searched = 0
        for address, data in self._copy.changed(vectors):
            self.searched += len(data)
            self._words.search(self._coarse, address, data)
            if self._also is not None:
                self._also(address, data)
        return list(_inside(self._words.leading(seeker.leads, more), vectors))

    def settle(self, seeker: Seeker) -> None:
        """The words of the last look are those that count: the next asks only for what changed."""
        self._words.settle(seeker.leads)


def _inside(words: Iterable[Word], vectors: Iterable[tuple[int, int]]) -> Iterator[Word]:
    """The words, which are by address, that are in some (address, size) ranges."""
    ranges = sorted(vectors)
    starts = [start for start, _ in ranges]
    for word in words:
        i = bisect_right(starts, word.address) - 1
        if i >= 0 and word.address < sum(ranges[i]):
            yield word


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, end) of all ranges, those that overlap as one."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((start, end))
    return result
