"""The live stacks of stopped threads: where they lie, read with one system call, searched for return addresses.

    live stack of the first thread     [rsp, end of its region)
    of others                          [rsp, thread pointer): the thread's descriptor lies above its stack
    anything else                      an alternate signal stack, a coroutine: *odd*

An alternate signal stack may also be part of the thread's own, in a frame or among its thread-local variables: then
what the signal interrupted lies below the stack pointer.  The mark of a signal frame tells of it.

The search looks for the high bytes that all addresses of a range share, in the buffer that was read into.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader, Reader
from katana_cc.process.proc import list_threads, waiting_at
from katana_cc.process.ptrace_binding import REGISTER_WORDS

_ODD_STACK_LIMIT: Final = 1 << 20
_STACK_LIMIT: Final = 8 << 20
_USUAL: Final = 1 << 14
_DESCRIPTOR: Final = 1 << 12  # bytes
_MAX_FINE_PREFIXES: Final = 64
_SHORTEST_NEEDLE: Final = 2


class Stacks:
    """The stacks of all threads of one stop.

    Args:
        order: thread ids; their registers follow each other in `registers`.
        regions: the memory map as of before the stop.
        reread: gives the present one; called when the old one does not explain a stack pointer.
    """

    def __init__(
        self,
        pid: int,
        order: Sequence[int],
        registers: memoryview,
        regions: MemoryMap,
        reread: Callable[[], MemoryMap],
        bulk: BulkReader,
    ) -> None:
        self._bulk = bulk
        found = _stacks(pid, order, registers, regions)
        if None in found:
            regions = reread()
            found = _stacks(pid, order, registers, regions)
        self.regions = regions
        self.odd = {i for i, s in enumerate(found) if s is None}
        self.vectors = [_odd_stack(registers, i, regions) if s is None else s for i, s in enumerate(found)]
        self._starts: list[int] = []
        total = 0
        for _, size in self.vectors:
            self._starts.append(total)
            total += size
        self.read()

    def read(self) -> None:
        """Read them all: again, where something else was read."""
        self._bulk.read(self.vectors)

    def hits(self, search: Search) -> dict[int, list[tuple[int, int]]]:
        """Index of a thread → (address of the word, its value) of each word that is searched for."""
        result: dict[int, list[tuple[int, int]]] = {}
        for at, value in search.words(self._bulk):
            i, address = self._place(at)
            result.setdefault(i, []).append((address, value))
        return result

    def signal_frames(self, mark: bytes) -> dict[int, list[int]]:
        """Index of a thread → addresses of what looks like a signal frame's mark; the frame begins below it."""
        result: dict[int, list[int]] = {}
        at = self._bulk.find(mark, 0)
        while at >= 0:
            i, address = self._place(at)
            result.setdefault(i, []).append(address)
            at = self._bulk.find(mark, at + 1)
        return result

    def _place(self, at: int) -> tuple[int, int]:
        """Index of a thread, and address, of what was read to an offset."""
        i = bisect_right(self._starts, at) - 1
        while not self.vectors[i][1]:
            i -= 1
        return i, self.vectors[i][0] + at - self._starts[i]

    def copy(self, i: int) -> bytes:
        """The stack of one thread."""
        return self._bulk.copy(self._starts[i], self.vectors[i][1])


def expected_size(pid: int, regions: MemoryMap) -> int:
    """About how many bytes the live stacks of a process have while it runs: of threads that wait it can be told."""
    total = 0
    for tid in list_threads(pid):
        place = waiting_at(pid, tid)
        region = regions.at(place[0]) if place is not None else None
        total += min(region.end - place[0], _STACK_LIMIT) if region is not None and place is not None else _USUAL
    return total


class Search:
    """A search for the words in (start, start + size] of some ranges of which `wanted` says that they count."""

    def __init__(self, ranges: Sequence[tuple[int, int]], wanted: Callable[[int], bool]) -> None:
        self._needles, width = prefixes_of(ranges)
        self._skipped = 8 - width
        self._wanted = wanted

    def words(self, bulk: BulkReader) -> Iterator[tuple[int, int]]:
        """(offset, value) of each such word in what was read last."""
        for needle in self._needles:
            at = bulk.find(needle, 0)
            while at >= 0:
                start = at - self._skipped
                if start >= 0:
                    value = bulk.word(start)
                    if self._wanted(value):
                        yield start, value
                at = bulk.find(needle, at + 1)


def home_stack(tid: int, pid: int, words: memoryview, regions: MemoryMap) -> tuple[int, int]:
    """(address, size) of the stack a thread was born with, whole: what is below its true stack pointer cannot be
    told."""
    if tid == pid:
        region = next((r for r in regions.regions if r.path == "[stack]"), None)
        return (region.start, region.size) if region else (0, 0)
    region = regions.at(words[cpu.THREAD_POINTER])
    if region is None or "w" not in region.permissions:
        return 0, 0
    size = min(words[cpu.THREAD_POINTER] - region.start, 8 * _ODD_STACK_LIMIT)
    return words[cpu.THREAD_POINTER] - size, size


def lower_end(words: Sequence[int], regions: MemoryMap, memory: Reader) -> int | None:
    """The lowest address that surely is of the stack a thread is on; None where that is not known."""
    pointer, thread = words[cpu.SP], words[cpu.THREAD_POINTER]
    region = regions.at(pointer)
    if region is None:
        return None
    if region.path == "[stack]":
        return region.start
    if not pointer < thread < region.end:
        return None
    # The C library keeps in a thread's descriptor where the block begins that its stack was made in, or that the
    # program gave it, the block's size, and how much of that is a guard (struct pthread of glibc).
    kept = memory.read(thread, min(_DESCRIPTOR, region.end - thread) & -8)
    found: tuple[int, ...] = struct.unpack(f"<{len(kept) // 8}Q", kept)
    first = regions.at(region.start - 1) if regions.is_guarded(region) else region
    for block, size, guard in zip(found, found[1:], found[2:], strict=False):
        if block < pointer and thread < block + size <= region.end and regions.at(block) in (first, region):
            return max(region.start, block + guard if guard < size else block)
    return region.start if first is not region else None


def column(registers: memoryview, register: int, count: int) -> list[int]:
    """One register of the first `count` threads."""
    values: list[int] = registers[register : count * REGISTER_WORDS : REGISTER_WORDS].tolist()
    return values


def _stacks(pid: int, order: Sequence[int], registers: memoryview, regions: MemoryMap) -> list[tuple[int, int] | None]:
    """(address, size) of each live stack; None where it is not where stacks are."""
    pointers = column(registers, cpu.SP, len(order))
    result: list[tuple[int, int] | None] = []
    for tid, pointer, thread in zip(order, pointers, column(registers, cpu.THREAD_POINTER, len(order)), strict=True):
        region = regions.at(pointer)
        if region is None:
            result.append(None)
        elif tid == pid:
            result.append((pointer, region.end - pointer) if region.path == "[stack]" else None)
        else:
            result.append((pointer, thread - pointer) if pointer < thread <= region.end else None)
    return result


def _odd_stack(registers: memoryview, i: int, regions: MemoryMap) -> tuple[int, int]:
    pointer = registers[i * REGISTER_WORDS + cpu.SP]
    region = regions.at(pointer)
    return (pointer, min(region.end - pointer, _ODD_STACK_LIMIT)) if region else (0, 0)


def prefixes_of(ranges: Sequence[tuple[int, int]]) -> tuple[list[bytes], int]:
    """What the high bytes of words in (start, start + size] can begin with, and how many high bytes were looked at (7,
    6 or 5): as fine as keeps the number of searches small."""
    fine: list[int] = []
    for width in (7, 6, 5):
        shift = 8 * (8 - width)
        blocks: set[int] = set()
        for start, size in ranges:
            blocks.update(range((start + 1) >> shift, ((start + size) >> shift) + 1))
            if len(blocks) > _MAX_FINE_PREFIXES and width > 5:
                break
        fine = sorted(blocks)
        if len(fine) <= _MAX_FINE_PREFIXES or width == 5:
            return sorted({_needle(struct.pack("<Q", block)[:width]) for block in fine}), width
    raise AssertionError("unreachable")


def _needle(high_bytes: bytes) -> bytes:
    """Without the zeros that every address ends with, since a search whose last byte is everywhere takes four times as
    long; who finds it looks at the whole word."""
    return high_bytes.rstrip(b"\0").ljust(_SHORTEST_NEEDLE, b"\0")
