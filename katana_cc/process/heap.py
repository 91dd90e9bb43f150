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

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Final, NamedTuple

from katana_cc.elf import constants as c
from katana_cc.errors import BusyError, RefusedError, TargetError
from katana_cc.process import chunks
from katana_cc.process.chunks import CACHE_CHUNK, HEADER, HEAP_INFO, HEAP_SIZE, WORD, Arena, DamagedError
from katana_cc.process.imports import Linker
from katana_cc.process.mappings import Mappings
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader, ProcessMemory, Reader
from katana_cc.process.modules import Module
from katana_cc.process.reachable import Block
from katana_cc.process.target import Target

_PAGE: Final = 4096
_MAX_ARENAS: Final = 4096
_RESTART: Final = "restart the process with the new build"


@dataclass(frozen=True, slots=True)
class Allocator:
    """glibc's malloc in one process, in `module`.  `arena` is 0 where nothing was allocated yet; `calloc`, `free` are
    addresses of the functions, 0 where nothing tells (a static program)."""

    module: Module
    arena: int
    calloc: int
    free: int


def find_allocator(target: Target, linker: Linker) -> Allocator:
    """The malloc that a process uses.

    Raises:
        RefusedError: it is not glibc's.
    """
    names = "malloc", "calloc", "free", "gnu_get_libc_version"
    malloc, calloc, free, version = (linker.first(name) or 0 for name in names)
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
    return Allocator(owner, arena, calloc if owner.holds(calloc) else 0, free)


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


class Row(NamedTuple):
    """Chunks that lie one behind the other.  `first`: address of the first; `end`: None: as the chunks say."""

    start: int
    size: int
    first: int | None
    end: int | None


class Outline(NamedTuple):
    """Where the heap of a process is: the address of the main arena (0: there is none), all arenas, their rows."""

    main: int
    arenas: tuple[Arena, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row and what was read of it: chunks from `first` to `top`; `limit` ends the memory."""

    start: int
    limit: int
    first: int
    top: int
    data: bytes
    words: memoryview
    blocks: list[int]
    usable: list[int]


class Heap:
    """The heap as of one moment.  Made by `look`.

    Attributes:
        rows: by address.
        mappings: blocks with mappings of their own, and other memory.
        marked: the blocks that are free as their own marks say; others are free since a list holds them.
    """

    def __init__(
        self,
        memory: Reader,
        regions: MemoryMap,
        rows: Sequence[ReadRow],
        free: dict[int, int],
        arena: int,
        marked: frozenset[int],
    ) -> None:
        self._memory = memory
        self.mappings = Mappings(memory, regions)
        self.rows = sorted(rows, key=lambda r: r.start)
        self.marked = marked
        self._starts = [r.start for r in self.rows]
        self._free = free
        self._arena = arena

    @property
    def holes(self) -> list[tuple[int, int]]:
        """The (start, end) of what `searchable` gives, and of the words in which malloc itself keeps addresses."""
        own = [(self._arena, self._arena + chunks.ARENA_SIZE)] if self._arena else []
        return own + [(r.start, r.limit) for r in self.rows]

    @cached_property
    def used(self) -> dict[int, int]:
        """Start and usable size of each block given out; not those with a mapping of their own."""
        free = self._free
        return {
            start: size
            for row in self.rows
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
        return self.mappings.piece(address) if row is None else (row.start, memoryview(row.data))

    def at(self, address: int) -> Block | None:
        """The block that an address lies in; None when it is in none: in a chunk's header, or not on the heap."""
        row = self._row(address)
        if row is None:
            return self.mappings.at(address)
        i = bisect_right(row.blocks, address) - 1
        if i >= 0 and address < (start := row.blocks[i]) + (size := row.usable[i]):
            return Block(start, size, start not in self._free)
        # Behind the last one is what was never given out.
        rest = row.top + HEADER
        return Block(rest, row.limit - rest, False) if address >= rest else None

    def searchable(self, skipped: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytearray]]:
        """(address, bytes) of each row, in which what can hold no live pointer, and the ranges `skipped` (address,
        size), are zeros: free blocks, and what malloc keeps itself."""
        copies = [bytearray(r.data) for r in self.rows]
        for row, copy in zip(self.rows, copies, strict=True):
            copy[: row.first - row.start] = bytes(row.first - row.start)
            copy[row.top - row.start :] = bytes(row.limit - row.top)
        for address, size in chain(self._free.items(), skipped):
            i = bisect_right(self._starts, address) - 1
            if i >= 0 and address < self.rows[i].limit:
                at = address - self._starts[i]
                copies[i][at : at + size] = bytes(size)
        return iter([(r.start, copy) for r, copy in zip(self.rows, copies, strict=True)])

    def _row(self, address: int) -> ReadRow | None:
        i = bisect_right(self._starts, address) - 1
        row = self.rows[i] if i >= 0 else None
        return row if row is not None and address < row.limit else None


def outline(target: Target, allocator: Allocator, regions: MemoryMap, *, is_stopped: bool = False) -> Outline:
    """Where the heap is now.

    Raises:
        BusyError, DamagedError, RefusedError, TargetError: as of `look`.
    """
    memory = target.memory
    main = allocator.arena or _arena_in(memory, allocator.module)
    arenas = _arenas(memory, main) if main is not None else []
    if is_stopped and any(a.is_locked for a in arenas):
        raise BusyError("a thread is inside the memory allocator", where=target.where, remedy="wait longer (--wait)")
    rows: list[Row] = []
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
    return Outline(main or 0, tuple(arenas), tuple(rows))


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
    plan = outline(target, allocator, regions, is_stopped=is_stopped)
    rows = plan.rows
    try:
        everything = bytes(bulk.read([(r.start, r.size) for r in rows]))
    except OSError as error:
        raise TargetError(f"the process cannot be read: {error.strerror}", where=target.where) from None
    read: list[ReadRow] = []
    free: dict[int, int] = {}
    at = 0
    for row in rows:
        data = everything[at : at + row.size] if len(rows) > 1 else everything
        at += row.size
        read.append(parse_row(row, data, free))
    return make_heap(target.memory, regions, read, free, plan)


def parse_row(row: Row, data: bytes, free: dict[int, int]) -> ReadRow:
    """The blocks of a row; `free` gets those that are by their own marks.

    Raises:
        DamagedError: no row of malloc's.
    """
    words = memoryview(data).cast("Q")
    if row.first is None:
        first, found = chunks.main_chunks(words, row.start, row.end or 0)
    else:
        first, found = row.first, chunks.chunks_of(words, row.start, row.first, row.end)
    free.update((found.blocks[i], found.usable[i]) for i in found.free)
    end = row.end if row.end is not None else row.start + row.size
    return ReadRow(row.start, row.start + row.size, first, end, data, words, found.blocks, found.usable)


def make_heap(memory: Reader, regions: MemoryMap, rows: Sequence[ReadRow], free: dict[int, int], plan: Outline) -> Heap:
    """A heap of these rows; `free` are blocks that are by their own marks.

    Raises:
        DamagedError: a list of free blocks that leads elsewhere.
    """
    marked = frozenset(free)
    heap = Heap(memory, regions, rows, free, plan.main, marked)
    _add_cached(free, heap, rows, plan.arenas)
    return heap


def _add_cached(free: dict[int, int], heap: Heap, rows: Sequence[ReadRow], arenas: Sequence[Arena]) -> None:
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


def _main_row(arena: Arena, regions: MemoryMap) -> list[Row]:
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
    return [Row(start, end - start, None, arena.top)]


def _rows_of(memory: ProcessMemory, arena: Arena) -> Iterator[Row]:
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
        yield Row(at, size, (first + 15) & -16, end)
        if not before:
            return
        at, end = before, None
    raise DamagedError(f"the heaps of the arena at {arena.address:#x} have no end")
