"""The heap of a process: which blocks malloc has given out, and which of them are free, as of one moment.

    main arena         [heap], from its first chunk to the top chunk
    other arenas       rows of 64 MiB at most, found from each arena's top chunk backwards
    mappings           blocks that malloc made a mapping of their own for, looked at only where a pointer leads there

All rows are read at once into one buffer and then taken apart (`katana_cc.process.chunks`), so that blocks, and the
words in them, are of the same moment.  With every thread stopped that moment is exact, unless one is inside malloc: the
lock of an arena tells, or, in a process of one thread, where that thread is.  While threads run a look may find a heap
that contradicts itself; the caller tries again.

Only glibc's malloc is known.  Another one (a library's, the program's own) is refused by name.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Final, NamedTuple

from katana_cc.elf import constants as c
from katana_cc.errors import BusyError, RefusedError, TargetError
from katana_cc.process import chunks
from katana_cc.process.chunks import CACHE_CHUNK, HEADER, HEAP_INFO, HEAP_SIZE, WORD, Arena, DamagedError
from katana_cc.process.imports import Linker
from katana_cc.process.maps import MemoryMap, Region
from katana_cc.process.memory import BulkReader, ProcessMemory
from katana_cc.process.modules import Module
from katana_cc.process.reachable import Block
from katana_cc.process.target import Target

_PAGE: Final = 4096
_MAX_ARENAS: Final = 4096
_FAR: Final = 1 << 20  # to look for a chunk that was moved up for its alignment
_RESTART: Final = "restart the process with the new build"


@dataclass(frozen=True, slots=True)
class Allocator:
    """glibc's malloc in one process, in `module`.  `arena` is 0 where nothing was allocated yet; `malloc`, `free` are
    addresses of the functions, 0 where nothing tells (a static program)."""

    module: Module
    arena: int
    malloc: int
    free: int


def find_allocator(target: Target, linker: Linker) -> Allocator:
    """The malloc that a process uses.

    Raises:
        RefusedError: it is not glibc's.
    """
    malloc, free, version = (linker.first(name) or 0 for name in ("malloc", "free", "gnu_get_libc_version"))
    owner = next((m for m in target.modules if malloc and m.holds(malloc)), target.program_module())
    arena = None if owner is None else _arena_in(target.memory, owner)
    if owner is not None and arena is None and version and owner.holds(version):
        arena = 0  # glibc's malloc makes its arena when it is first called
    if owner is None or arena is None:
        path = owner.path if owner is not None else "the program"
        raise RefusedError(
            f"the memory allocator of the process, in {path}, is not glibc's: its blocks are not known",
            where=target.where,
            remedy=_RESTART,
        )
    return Allocator(owner, arena, malloc, free)


def _arena_in(memory: ProcessMemory, module: Module) -> int | None:
    for s in module.segments:
        if s.type == c.PT_LOAD and s.flags & c.PF_W:
            start = module.bias + s.vaddr & -WORD
            try:
                data = memory.read(start, (module.bias + s.vaddr + s.memory_size - start) & -WORD)
            except TargetError:
                continue
            found = chunks.find_main_arena(data, start)
            if found is not None:
                return found
    return None


class _Row(NamedTuple):
    """Chunks that lie one behind the other.  `first`: address of the first; `end`: None: as the chunks say."""

    start: int
    size: int
    first: int | None
    end: int | None


@dataclass(frozen=True, slots=True)
class _Read:
    """A row and what was read of it: chunks from `first` to `top`; `limit` ends the memory."""

    start: int
    limit: int
    first: int
    top: int
    data: bytes
    words: memoryview
    blocks: list[int]
    usable: list[int]


@dataclass(slots=True)
class _Chunks:
    """The blocks with mappings of their own in a region, as far as it was gone through: up to `end`."""

    end: int
    starts: list[int] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


class Heap:
    """The heap as of one moment.  Made by `look`."""

    def __init__(
        self, memory: ProcessMemory, regions: MemoryMap, rows: Sequence[_Read], free: dict[int, int], arena: int
    ) -> None:
        self._memory = memory
        self._regions = regions
        self._rows = sorted(rows, key=lambda r: r.start)
        self._starts = [r.start for r in self._rows]
        self._free = free
        self._arena = arena
        self._pieces: dict[int, tuple[int, memoryview]] = {}
        self._chunks: dict[int, _Chunks] = {}

    @property
    def holes(self) -> list[tuple[int, int]]:
        """The (start, end) of what `searchable` gives, and of the words in which malloc itself keeps addresses."""
        own = [(self._arena, self._arena + chunks.ARENA_SIZE)] if self._arena else []
        return own + [(r.start, r.limit) for r in self._rows]

    @cached_property
    def used(self) -> dict[int, int]:
        """Start and usable size of each block given out; not those with a mapping of their own."""
        free = self._free
        return {
            start: size
            for row in self._rows
            for start, size in zip(row.blocks, row.usable, strict=True)
            if start not in free
        }

    def read(self, address: int, size: int) -> bytes:
        """As `Reader`: from the moment of the look where it is the heap's, else from the process."""
        row = self._row(address)
        if row is not None and address + size <= row.limit:
            at = address - row.start
            return row.data[at : at + size]
        return self._memory.read(address, size)

    def piece(self, address: int) -> tuple[int, memoryview]:
        """(where it begins, its bytes) of a piece of memory that an address lies in.

        Raises:
            LookupError: nothing there can be read.
        """
        row = self._row(address)
        if row is not None:
            return row.start, memoryview(row.data)
        block = self._mapped(address)
        start, size = (block.start, block.size) if block is not None else (address & -_PAGE, _PAGE)
        found = self._pieces.get(start)
        if found is None:
            try:
                found = self._pieces[start] = start, memoryview(self._memory.read(start, size))
            except TargetError:
                raise LookupError(f"nothing can be read at {address:#x}") from None
        return found

    def at(self, address: int) -> Block | None:
        """The block that an address lies in; None when it is in none: in a chunk's header, or not on the heap."""
        row = self._row(address)
        if row is None:
            return self._mapped(address)
        i = bisect_right(row.blocks, address) - 1
        if i >= 0 and address < (start := row.blocks[i]) + (size := row.usable[i]):
            return Block(start, size, start not in self._free)
        # Behind the last one is what was never given out.
        rest = row.top + HEADER
        return Block(rest, row.limit - rest, False) if address >= rest else None

    def searchable(self, skipped: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytearray]]:
        """(address, bytes) of each row, in which what can hold no live pointer, and the ranges `skipped` (address,
        size), are zeros: free blocks, and what malloc keeps itself."""
        copies = [bytearray(r.data) for r in self._rows]
        for row, copy in zip(self._rows, copies, strict=True):
            copy[: row.first - row.start] = bytes(row.first - row.start)
            copy[row.top - row.start :] = bytes(row.limit - row.top)
        for address, size in chain(self._free.items(), skipped):
            i = bisect_right(self._starts, address) - 1
            if i >= 0 and address < self._rows[i].limit:
                at = address - self._starts[i]
                copies[i][at : at + size] = bytes(size)
        return iter([(r.start, copy) for r, copy in zip(self._rows, copies, strict=True)])

    def _row(self, address: int) -> _Read | None:
        i = bisect_right(self._starts, address) - 1
        row = self._rows[i] if i >= 0 else None
        return row if row is not None and address < row.limit else None

    def _mapped(self, address: int) -> Block | None:
        """A block with a mapping of its own: its chunk is at the start of a page (or, where an alignment was asked
        for, somewhere behind one), and says how far it reaches.

        Several may be one region to the kernel, with other memory between them: its pages are gone through once, from
        the first on, as far as somebody asks.
        """
        region = self._regions.at(address)
        if region is None or not _may_be_mapped(region):
            return None
        known = self._chunks.setdefault(region.start, _Chunks(region.start))
        if address >= known.end and address % HEADER == 0:
            block = self._mapped_chunk(address - HEADER, region)
            if block is not None and block.start == address:
                return block
        while known.end <= address:
            block = self._mapped_chunk(known.end, region)
            if block is not None:
                known.starts.append(block.start)
                known.blocks.append(block)
            known.end = known.end + _PAGE if block is None else block.start + block.size
        i = bisect_right(known.starts, address) - 1
        return known.blocks[i] if i >= 0 and address < known.starts[i] + known.blocks[i].size else None

    def _mapped_chunk(self, chunk: int, region: Region) -> Block | None:
        if chunk < region.start:
            return None
        try:
            before, head = struct.unpack("<QQ", self._memory.read(chunk, HEADER))
        except TargetError:
            return None
        size = head & ~chunks.FLAGS
        is_one = (
            head & chunks.FLAGS == chunks.IS_MAPPED
            and size >= HEADER
            and (chunk - before) % _PAGE == 0
            and (size + before) % _PAGE == 0
            and chunk + size <= region.end
            and chunk - before >= region.start
        )
        if not is_one:
            return None
        aligned = 0 if before else self._moved_up(chunk, size)
        return Block(chunk + aligned + HEADER, size - aligned - HEADER, True)

    def _moved_up(self, chunk: int, size: int) -> int:
        """How far the chunk was moved up to align its block: the first head stays, and zeros behind it."""
        data = self._memory.read(chunk, min(size, _FAR))
        zeros = len(data) - HEADER - len(data[HEADER:].lstrip(b"\0"))
        at = HEADER + zeros & -HEADER
        if at + HEADER > len(data):
            return 0
        return at if struct.unpack_from("<QQ", data, at) == (at, size - at | chunks.IS_MAPPED) else 0


def look(
    target: Target, allocator: Allocator, regions: MemoryMap, bulk: BulkReader, *, is_stopped: bool = False
) -> Heap:
    """Read the heap as it is now.

    Args:
        bulk: a reader whose buffer holds the whole heap; it grows as is needed.
        is_stopped: every thread is.

    Raises:
        BusyError: a thread that is stopped is inside malloc.
        DamagedError: what is there contradicts itself: it changed meanwhile, or is damaged.
        RefusedError: the program manages the memory of the heap in a way of its own.
        TargetError: the process is gone.
    """
    memory = target.memory
    main = allocator.arena or _arena_in(memory, allocator.module)
    arenas = _arenas(memory, main) if main is not None else []
    if is_stopped and any(a.is_locked for a in arenas):
        raise BusyError("a thread is inside the memory allocator", where=target.where, remedy="wait longer (--wait)")
    rows: list[_Row] = []
    for arena in arenas:
        if arena.address == main:
            if not arena.is_contiguous:
                raise RefusedError(
                    "the heap of the process is in pieces (brk did not give it memory), which are not known",
                    where=target.where,
                    remedy=_RESTART,
                )
            rows += _main_row(arena, regions)
        else:
            rows += _rows_of(memory, arena)
    try:
        everything = bytes(bulk.read([(r.start, r.size) for r in rows]))
    except OSError as error:
        raise TargetError(f"the process cannot be read: {error.strerror}", where=target.where) from None
    read: list[_Read] = []
    free: dict[int, int] = {}
    at = 0
    for row in rows:
        data = everything[at : at + row.size] if len(rows) > 1 else everything
        at += row.size
        words = memoryview(data).cast("Q")
        if row.first is None:
            first, found = chunks.main_chunks(words, row.start, row.end or 0)
        else:
            first, found = row.first, chunks.chunks_of(words, row.start, row.first, row.end)
        free.update((found.blocks[i], found.usable[i]) for i in found.free)
        end = row.end if row.end is not None else row.start + row.size
        read.append(_Read(row.start, row.start + row.size, first, end, data, words, found.blocks, found.usable))
    heap = Heap(memory, regions, read, free, main or 0)
    _add_cached(free, heap, read, arenas)
    return heap


def _add_cached(free: dict[int, int], heap: Heap, rows: Sequence[_Read], arenas: Sequence[Arena]) -> None:
    def word(address: int) -> int:
        row = heap._row(address)
        if row is None or address + WORD > row.limit or address % WORD:
            raise DamagedError(f"a list of free blocks leads to {address:#x}, outside the heap")
        return int(row.words[(address - row.start) >> 3])

    def size_of(address: int) -> int:
        row = heap._row(address)
        if row is None:
            return 0
        i = bisect_right(row.blocks, address) - 1
        return row.usable[i] if i >= 0 and row.blocks[i] == address else 0

    # A block that is free by its own marks is no cache.
    caches = [b for row in rows for b, size in zip(row.blocks, row.usable, strict=True) if size == CACHE_CHUNK - WORD]
    most = sum(len(row.blocks) for row in rows)
    found = chunks.cached(word, [b for b in caches if b not in free], [a.fast for a in arenas], size_of, most)
    free.update((start, size_of(start)) for start in found)


def _arenas(memory: ProcessMemory, main: int) -> list[Arena]:
    found: list[Arena] = []
    at = main
    while not found or at != main:
        if len(found) == _MAX_ARENAS:
            raise DamagedError("the list of arenas has no end")
        try:
            arena = chunks.parse_arena(memory.read(at, chunks.ARENA_SIZE), at)
        except TargetError:
            raise DamagedError(f"the list of arenas leads to {at:#x}, where no memory is") from None
        found.append(arena)
        at = arena.next
    return found


def _main_row(arena: Arena, regions: MemoryMap) -> list[_Row]:
    if arena.top == arena.address + chunks.TOP_AT:
        return []  # nothing was ever allocated there
    region = regions.at(arena.top)
    if region is None or region.path != "[heap]":
        raise DamagedError(f"the end of the heap is given as {arena.top:#x}, where no heap is")
    start, end = region.start, region.end
    # The kernel splits one mapping where its parts differ in anything.
    while (before := regions.at(start - 1)) is not None and before.path == "[heap]":
        start = before.start
    while (after := regions.at(end)) is not None and after.path == "[heap]":
        end = after.end
    return [_Row(start, end - start, None, arena.top)]


def _rows_of(memory: ProcessMemory, arena: Arena) -> Iterator[_Row]:
    """The rows of another arena than the main one, the last first."""
    info = arena.address & -HEAP_SIZE
    info_size = arena.address - info
    if info_size not in chunks.HEAP_INFO_SIZES:
        raise DamagedError(f"the arena at {arena.address:#x} is not where one can be")
    at = arena.top & -HEAP_SIZE
    end: int | None = arena.top
    for _ in range(_MAX_ARENAS):
        try:
            owner, before, size = HEAP_INFO.unpack(memory.read(at, HEAP_INFO.size))
        except TargetError:
            raise DamagedError(f"an arena leads to {at:#x}, where no memory is") from None
        if owner != arena.address or not HEADER < size <= HEAP_SIZE or size % _PAGE:
            raise DamagedError(f"what is at {at:#x} is not the head of a heap")
        first = arena.address + chunks.ARENA_SIZE if at == info else at + info_size
        yield _Row(at, size, (first + 15) & -16, end)
        if not before:
            return
        at, end = before, None
    raise DamagedError(f"the heaps of the arena at {arena.address:#x} have no end")


def _may_be_mapped(region: Region) -> bool:
    return not region.inode and region.permissions == "rw-p" and not region.path
