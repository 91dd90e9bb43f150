"""The search for words of `katana_cc.process.words`, page by page: in the stop only pages that changed are searched.

Before the stop all memory is copied and searched (`katana_cc.process.copies`), and what changed meanwhile once more, as
long as that makes less of it.  In the stop the copy is compared with what is there: a page that is the same holds the
same words.  What was not copied (a mapping made meanwhile, memory touched for the first time) is searched as if it had
changed.

Where objects on the heap move, the ranges that words may lead into are others at each look.  So what is searched for
are words that lead anywhere between (`within`), and those of interest are picked from them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from katana_cc.process.copies import PAGE, Copy, Ranges
from katana_cc.process.words import Seeker, Word


class Watch:
    """The words of one process that lead into ranges, as of the last look.

    Args:
        room: how many bytes of the process may be copied.

    Attributes:
        searched: bytes that the last look had to search.
    """

    def __init__(self, reader: Ranges, room: int) -> None:
        self._copy = Copy(reader, room)
        self._coarse = Seeker(())
        self._within: list[tuple[int, int]] = []
        self._reader, self._room = reader, room
        self._words: dict[int, list[Word]] = {}  # page → those in it
        self.searched = 0

    def words(
        self, vectors: Sequence[tuple[int, int]], seeker: Seeker, within: Sequence[tuple[int, int]] = ()
    ) -> list[Word]:
        """The aligned words in these (address, size) ranges of the target that lead where `seeker` says, by address.

        Args:
            within: (start, end) ranges in which those of `seeker` lie, and will at later looks.  Where they do not lie
                in those of an earlier look, everything is searched.

        Raises:
            OSError: the process is gone.
        """
        if not seeker.lies_in(self._within):
            self._within = _merged([*within, *seeker.ranges])
            self._coarse = Seeker((start, end - start) for start, end in self._within)
            self._copy = Copy(self._reader, self._room)
            self._words.clear()
        self.searched = 0
        for address, data in self._copy.changed(vectors):
            self.searched += len(data)
            if self._words:
                for page in range(address, address + len(data), PAGE):
                    self._words.pop(page, None)
            for word in self._coarse.in_bytes(data, address):
                self._words.setdefault(word.address & -PAGE, []).append(word)
        return sorted(self._in(vectors, seeker))

    def _in(self, vectors: Sequence[tuple[int, int]], seeker: Seeker) -> Iterable[Word]:
        if not self._words:
            return
        pages = sorted(self._words)
        for address, size in vectors:
            for i in range(bisect_left(pages, address & -PAGE), bisect_left(pages, address + size)):
                for word in self._words[pages[i]]:
                    if address <= word.address < address + size and seeker.leads(word.value):
                        yield word


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, end) of all ranges, those that overlap as one."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((start, end))
    return result
