"""Copies of a target's memory, and which pages are no longer as they were copied.

Theory of operation.  What takes long to find out of memory is found out of a copy while the process runs; with every
thread stopped, memory is read once more and compared with the copy, and only what depends on a page that differs is
found out again.  To read and compare takes a third of the time that a search takes, and little of what the rest does.

That rests on nothing but the bytes.  The kernel can tell which pages were written to (soft-dirty bits), but not of
memory that another process writes to as well, nor of what a device or the kernel itself writes into pages that were
pinned before (direct input, io_uring); the bits are gone when another tool, such as a checkpointer, clears them, as its
own are when we do; and many kernels are built without.  So they are not used.

Pages are kept in blocks, and no more of them than there is room for: what is beyond counts as changed each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

PAGE: Final = 4096
BLOCK: Final = 64 * PAGE
_AT_ONCE: Final = 4 * BLOCK  # bytes read before they are compared: what stays in the processor's cache
_SHARE: Final = 2  # one part in so many of the memory that is available may be used for copies


class Ranges(Protocol):
    """Reads many ranges of a target at once (`katana_cc.process.memory.BulkReader`)."""

    def read(self, vectors: Sequence[tuple[int, int]], /) -> memoryview:
        """The (address, size) ranges, one behind the other."""


def room() -> int:
    """How many bytes copies may take, as things are on this machine."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = next((line.split() for line in lines if line.startswith("MemAvailable:")), None)
    return int(found[1]) * 1024 // _SHARE if found else 0


class Copy:
    """Pages of a target as they were when last read.

    Args:
        room: how many bytes may be kept.
    """

    def __init__(self, reader: Ranges, room: int) -> None:
        self._reader = reader
        self._room = room
        self._blocks: dict[int, bytearray] = {}
        self._known: dict[int, int] = {}  # block → its pages that were read, as bits

    def changed(self, vectors: Iterable[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """Read the pages that have any byte of these (address, size) ranges once more.

        Returns:
            (address, bytes) of each run of pages that hold something else than when they were last read, or were never
            read.  The bytes are there until the next is asked for.

        Raises:
            OSError: the process is gone.
        """
        for batch in _batches(_runs(vectors)):
            data = self._reader.read(batch)
            at = 0
            for address, size in batch:
                yield from self._compare(address, data[at : at + size])
                at += size

    def _compare(self, address: int, new: memoryview) -> Iterator[tuple[int, memoryview]]:
        """The same of a run of pages within one block."""
        number, at = divmod(address, BLOCK)
        known = self._known.get(number)
        if known is None:
            if BLOCK * (len(self._blocks) + 1) > self._room:
                yield address, new
                return
            self._blocks[number], known = bytearray(BLOCK), 0
        old = self._blocks[number]
        wanted = ((1 << len(new) // PAGE) - 1) << at // PAGE
        if known & wanted == wanted and (old if len(new) == BLOCK else old[at : at + len(new)]) == new:
            return
        self._known[number] = known | wanted
        start = None
        for page in range(0, len(new), PAGE):
            here = at + page
            is_known = known >> here // PAGE & 1
            if is_known and old[here : here + PAGE] == new[page : page + PAGE]:
                if start is not None:
                    yield from self._take(number, at + start, new[start:page])
                start = None
            elif start is None:
                start = page
        if start is not None:
            yield from self._take(number, at + start, new[start:])

    def _take(self, number: int, at: int, new: memoryview) -> Iterator[tuple[int, memoryview]]:
        block = self._blocks[number]
        block[at : at + len(new)] = new
        yield number * BLOCK + at, memoryview(block)[at : at + len(new)]


def _runs(vectors: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The (start, end) of all pages that have a byte of the ranges, ascending and each once."""
    start = end = -1
    for address, size in sorted(vectors):
        first, last = address & -PAGE, (address + size + PAGE - 1) & -PAGE
        if first > end:
            if end > start:
                yield start, end
            start, end = first, last
        end = max(end, last)
    if end > start:
        yield start, end


def _batches(runs: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """(address, size) of parts, none of which is in two blocks, as many as are read at once."""
    batch: list[tuple[int, int]] = []
    total = 0
    for start, end in runs:
        while start < end:
            size = min(end, (start // BLOCK + 1) * BLOCK) - start
            if total + size > _AT_ONCE:
                yield batch
                batch, total = [], 0
            batch.append((start, size))
            total += size
            start += size
    if batch:
        yield batch
