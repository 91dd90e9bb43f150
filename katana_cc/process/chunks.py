"""How glibc's malloc lays out its memory: arenas, chunks, and which of them are free.  Pure: bytes in, addresses out.

A heap is a row of chunks, one straight behind the other:

    chunk + 0    size of the chunk before, where that one is free
          + 8    size, a multiple of 16; bit 0: the chunk before is in use, 1: a mapping of its own, 2: another arena
          + 16   what malloc returned: the *block*.  It reaches over the next chunk's first word: usable = size - 8

A chunk is free when the next one's bit 0 says so, or when it is in one of two kinds of lists whose chunks look used:
the fast bins of its arena, and the caches of threads (`tcache_perthread_struct`, itself a block of 0x280 bytes in the
heap: 64 counts of 2 bytes, 64 lists).  Links of the former lead to chunks, of the latter to blocks.  Since glibc 2.32
both are XORed with their own address >> 12; which it is shows in the links themselves.

The main arena is a variable of the C library without a symbol.  It is found by its bins: an empty one (a list of two
words) leads to itself, 16 bytes before, and of 127 bins many always are.

    malloc_state + 0 mutex, 4 flags, 16 fast bins (10), 96 top, 112 bins (2 * 127), 2160 next arena,
                   2184 memory from the system, now and at most; 2200 bytes
    heap_info      0 arena, 8 heap before, 16 size; at a multiple of 64 MiB; 32 bytes, 48 since glibc 2.35

Source: glibc 2.31 to 2.41, malloc/malloc.c and malloc/arena.c.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

WORD: Final = 8
HEADER: Final = 16  # of a chunk: from its start to the block
_SMALLEST: Final = 32
_FENCE: Final = 16  # the size of a chunk that only marks an end
IN_USE_BEFORE: Final = 1
IS_MAPPED: Final = 2
FLAGS: Final = 7

_BINS: Final = 127
_FAST_BINS: Final = 10
_FLAGS_AT: Final = 4
_FAST_AT: Final = 16
TOP_AT: Final = 96
_BINS_AT: Final = 112
_NEXT_AT: Final = 2160
_SYSTEM_AT: Final = 2184  # memory from the system, now and at most
ARENA_SIZE: Final = 2200
_NOT_CONTIGUOUS: Final = 2  # flag of an arena
_MOSTLY: Final = 32  # that many bins are empty; measured are 110 and more

HEAP_SIZE: Final = 64 << 20  # and the alignment of heaps of other arenas
HEAP_INFO_SIZES: Final = (32, 48)
HEAP_INFO: Final = struct.Struct("<QQQ")  # arena, heap before, size

_CACHE_BINS: Final = 64
CACHE_CHUNK: Final = 0x290
_CACHE_LISTS: Final = 2 * _CACHE_BINS


class DamagedError(Exception):
    """Memory is not what glibc's malloc makes of it.  Says what is wrong, and where."""


class Chunks(NamedTuple):
    """The chunks of one row: addresses of blocks, ascending, how many bytes of each may be used, and the indices of
    those that are free as the chunk behind them says."""

    blocks: list[int]
    usable: list[int]
    free: list[int]


@dataclass(frozen=True, slots=True)
class Arena:
    """A `malloc_state`.  `fast`: heads of the fast bins, addresses of chunks."""

    address: int
    is_locked: bool
    is_contiguous: bool
    fast: tuple[int, ...]
    top: int
    next: int


def find_main_arena(data: bytes, address: int) -> int | None:
    """The address of the main arena in writable data of a module; None when there is none.

    Args:
        address: of the first byte of `data`, a multiple of 8.
    """
    words = memoryview(data)[: len(data) & -WORD].cast("Q")
    votes: Counter[int] = Counter()
    leading_back = []
    for i in range(len(words) - 1):
        place = address + WORD * i
        if words[i] == place - 16 and words[i + 1] == place - 16:
            leading_back.append(place)
    for place in leading_back:
        votes.update(place - _BINS_AT - 16 * n for n in range(_BINS))
    # Where the first or the last bin is not empty, places beside the right one have as many votes.
    for found, count in votes.most_common():
        if count < _MOSTLY:
            break
        at = found - address
        if 0 <= at <= len(data) - ARENA_SIZE and _is_main_arena(data[at : at + ARENA_SIZE], found):
            return found
    return None


def _is_main_arena(data: bytes, address: int) -> bool:
    arena = parse_arena(data, address)
    now, most = struct.unpack_from("<QQ", data, _SYSTEM_AT)
    follows = arena.next == address or (arena.next % HEAP_SIZE in HEAP_INFO_SIZES and arena.next > HEAP_SIZE)
    return follows and arena.top % 16 == 0 and now <= most < 1 << 47


def parse_arena(data: bytes, address: int) -> Arena:
    """An arena from its bytes."""
    mutex, flags = struct.unpack_from("<II", data)
    fast = struct.unpack_from(f"<{_FAST_BINS}Q", data, _FAST_AT)
    (top,) = struct.unpack_from("<Q", data, TOP_AT)
    (following,) = struct.unpack_from("<Q", data, _NEXT_AT)
    return Arena(address, bool(mutex), not flags & _NOT_CONTIGUOUS, fast, top, following)


def chunks_of(words: Sequence[int], base: int, start: int, end: int | None) -> Chunks:
    """The chunks of a row.

    Args:
        words: memory from `base` on, as 64-bit words.
        start: address of the first chunk.
        end: where the row ends, the address of the top chunk; None: at the chunk that marks an end.

    Raises:
        DamagedError: a size that no chunk can have.
    """
    blocks: list[int] = []
    usable: list[int] = []
    free: list[int] = []
    i = (start - base) >> 3
    last = len(words) - 1 if end is None else (end - base) >> 3
    if not 0 <= last < len(words):
        raise DamagedError(f"its end, {end or 0:#x}, lies outside")
    while i < last:
        head = words[i + 1]
        size = head & -16
        if not head & IN_USE_BEFORE and blocks:
            free.append(len(blocks) - 1)
        if size < _SMALLEST or head & (IS_MAPPED | WORD):
            if end is None and size <= _FENCE:
                return Chunks(blocks, usable, free)
            raise DamagedError(f"the size at {base + 8 * i + 8:#x}, {head:#x}, is not that of a block")
        blocks.append(base + 8 * i + HEADER)
        usable.append(size - WORD)
        i += size >> 3
    if i != last or end is None:
        raise DamagedError(f"its last block, at {blocks[-1] if blocks else start:#x}, reaches beyond its end")
    if not words[i + 1] & IN_USE_BEFORE and blocks:
        free.append(len(blocks) - 1)
    return Chunks(blocks, usable, free)


def main_chunks(words: Sequence[int], base: int, top: int) -> tuple[int, Chunks]:
    """The chunks of the main heap, and where they begin: at its start, or behind what else lies there (the thread-local
    variables of a static program).  The first is the cache of the first thread.

    Raises:
        DamagedError: no chunk from which the row leads to `top`.
    """
    wrong: DamagedError | None = None
    for i in range(0, min(len(words), 1 << 16) - 1, 2):
        if words[i + 1] != CACHE_CHUNK | IN_USE_BEFORE:
            continue
        try:
            return base + 8 * i, chunks_of(words, base, base + 8 * i, top)
        except DamagedError as error:
            wrong = wrong or error
    raise wrong or DamagedError("it does not begin with the cache of a thread")


Word = Callable[[int], int]  # address -> the 64-bit word there; raises DamagedError where no heap is


def cached(
    word: Word, caches: Iterable[int], fast: Iterable[Sequence[int]], is_block: Callable[[int], int], most: int
) -> set[int]:
    """The blocks that are free though they look used.

    Args:
        caches: blocks that may be caches of threads; those that are not hold anything.
        fast: for each arena, the heads of its fast bins.
        is_block: usable bytes of the block at an address; 0 when there is none.
        most: how many blocks there are.

    Raises:
        DamagedError: a list leads to what is no block of its size.
    """
    heads, caches = tuple(fast), tuple(caches)
    results: list[set[int]] = []
    wrong: DamagedError | None = None
    for shift in (12, 64):  # with and without safe linking
        lists = _Lists(word, is_block, shift, most)
        try:
            results.append(lists.of_bins(heads) | lists.of_caches(caches))
        except DamagedError as error:
            wrong = wrong or error
    if not results:
        raise wrong or DamagedError("its lists of free blocks cannot be read")
    return max(results, key=len)


@dataclass(frozen=True, slots=True)
class _Lists:
    """Lists of free blocks.  `shift`: what a link's own address is shifted by before it is XORed with it."""

    word: Word
    is_block: Callable[[int], int]
    shift: int
    most: int

    def follow(self, head: int, usable: int, behind: int = 0) -> list[int]:
        """The blocks of a list, all of which have `usable` bytes and lie `behind` where its links lead."""
        found: list[int] = []
        at = head
        while at:
            if self.is_block(at) != usable:
                raise DamagedError(f"the list of free blocks of {usable} bytes leads to {at:#x}, which is none")
            if len(found) == self.most:
                raise DamagedError(f"the list of free blocks of {usable} bytes has no end")
            found.append(at)
            to = self.word(at) ^ at >> self.shift
            at = to + behind if to else 0
        return found

    def of_bins(self, arenas: Iterable[Sequence[int]]) -> set[int]:
        """All blocks in fast bins."""
        found: set[int] = set()
        for heads in arenas:
            for n, head in enumerate(heads):
                if head:
                    found.update(self.follow(head + HEADER, 16 * n + 24, HEADER))
        return found

    def of_caches(self, caches: Sequence[int]) -> set[int]:
        """All blocks in caches of threads.  A block of that size may be anyone's, so not all must be one."""
        found: set[int] = set()
        wrong: DamagedError | None = None
        number = 0
        for cache in caches:
            try:
                for n in range(_CACHE_BINS):
                    head = self.word(cache + _CACHE_LISTS + WORD * n)
                    if head:
                        found.update(self.follow(head, 16 * n + 24))
                number += 1
            except DamagedError as error:
                wrong = wrong or error
        if wrong is not None and not number:
            raise wrong
        return found


def chunk_size(request: int) -> int:
    """The usable bytes of the block that malloc makes for a request."""
    return max((request + WORD + 15) & -16, _SMALLEST) - WORD
