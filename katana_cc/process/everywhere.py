"""All words of a process that lead into mappings which are to be given back, wherever they lie.

The search of `katana_cc.process.words` asks for objects that move, and looks where a compiler puts pointers.  Here one
word that is missed is a crash, and one too many only means that memory stays.  So more is looked at:

    at any address              not only multiples of 8: packed structs, and immediate operands in code made at run time
    as glibc hides them         jmp_buf, atexit and the like hold rol(address ^ guard, 17); the guard is known
    memory of any protection    what cannot be written now may be again, or holds what was written before

Left out is what is below the stack pointer of a thread on its own stack, pages never touched, read-only pages of files
as they are in the file, and devices.

All of it is copied and searched while the process runs (`katana_cc.process.copies`); in the stop it is read and
compared, and what changed is searched once more.  Pages are searched in runs: a word that lies across the end of one is
looked at by itself.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from katana_cc.cpu.native import system as cpu
from katana_cc.process.copies import PAGE, Copy, room
from katana_cc.process.maps import MemoryMap, Region
from katana_cc.process.memory import BulkReader
from katana_cc.process.target import Target
from katana_cc.process.words import BATCH, WORD, Pages, Seeker, is_anonymous, is_device, to_search

_AT_RANDOM: Final = 25  # elf.h
_BLOCKS: Final = (15, 23, 31)  # bits of an address that patterns of hidden ones leave open
_FEW: Final = 4  # patterns, each of which takes as long as all others
_MOST_GUARDS: Final = 4
_NEVER: Final = ("[vvar", "[vdso]", "[vsyscall]")
_MEMORY_FILES: Final = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV")


class Trace(NamedTuple):
    """A word at an address that leads to `value`; `is_hidden`: as glibc hides it."""

    address: int
    value: int
    is_hidden: bool = False


class Needles:
    """What words that lead into ranges look like.

    Args:
        ranges: (start, end), which must not overlap.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.plain = Seeker((start, end - start) for start, end in ranges)
        self._guards: list[int] = []
        self._hidden: list[tuple[int, re.Pattern[bytes], int]] = []

    def learn(self, guards: Iterable[int]) -> bool:
        """Look for what is hidden by these, too; whether one of them is new."""
        found = [g for g, _ in Counter(guards).most_common(_MOST_GUARDS) if g not in self._guards]
        new = found[: _MOST_GUARDS - len(self._guards)]  # of all glibc's threads it is the same
        for guard in new:
            self._guards.append(guard)
            self._hidden += ((guard, *pattern) for pattern in _patterns(self.plain.ranges, guard))
        return bool(new)

    def of(self, value: int) -> Iterator[Trace]:
        """What a value leads to, as it is or hidden, wherever it was found."""
        if self.plain.is_near(value):
            yield Trace(0, value)
        for guard in self._guards:
            if self.plain.is_near(shown := cpu.unmangled(value, guard)):
                yield Trace(0, shown, True)

    def found(self, data: bytes | memoryview, address: int) -> Iterator[Trace]:
        """The words in `data`, of which the first byte is at `address`."""
        for word in self.plain.in_bytes(data, address, aligned=False):
            yield Trace(word.address, word.value)
        for guard, pattern, skipped in self._hidden:
            at = 0
            while (hit := pattern.search(data, at)) is not None:
                at = hit.start() + 1
                start = hit.start() - skipped
                if start < 0 or start + WORD > len(data) or (address + start) % WORD:
                    continue
                value = cpu.unmangled(int.from_bytes(data[start : start + WORD], "little"), guard)
                if self.plain.is_near(value):
                    yield Trace(address + start, value, True)


def _patterns(ranges: Sequence[tuple[int, int]], guard: int) -> list[tuple[re.Pattern[bytes], int]]:
    """(what to search for, how many bytes of the word lie before it) of addresses in the ranges that are hidden by a
    guard: the bytes that do not depend on the low bits of an address."""
    for bits in _BLOCKS:
        blocks = sorted({n for start, end in ranges for n in range(start >> bits, (end - 1 >> bits) + 1)})
        if len(blocks) <= _FEW or bits == _BLOCKS[-1]:
            break
    open_bytes = (cpu.mangled(0, 0) ^ cpu.mangled((1 << bits) - 1, 0)).to_bytes(WORD, "little")
    skipped = next(i for i, byte in enumerate(open_bytes) if not byte)
    result = []
    for block in blocks:
        word = cpu.mangled(block << bits, guard).to_bytes(WORD, "little")
        parts = [b"." if open_bytes[i] else re.escape(word[i : i + 1]) for i in range(skipped, WORD)]
        result.append((re.compile(b"".join(parts), re.DOTALL), skipped))
    return result


class Hunt:
    """Searches the memory of one process, again and again.

    Args:
        spared: (start, end) of memory that is left out.

    Attributes:
        searched: bytes that the last look had to search.
    """

    def __init__(self, target: Target, needles: Needles, spared: Sequence[tuple[int, int]]) -> None:
        self._target = target
        self._needles = needles
        self._spared = list(spared)
        self._reader = BulkReader(target.memory, BATCH)
        self._pages = Pages(target.pid)
        self.searched = 0
        needles.learn(first_guard(target))
        self.begin_anew()

    def close(self) -> None:
        """Release what is held of the process."""
        self._pages.close()

    def begin_anew(self) -> None:
        """Search everything at the next look."""
        self._copy = Copy(self._reader, room())
        # By the page that they lie in, or that they reach into from the one before (an odd number).
        self._found: dict[int, list[Trace]] = {}

    def look(self, regions: MemoryMap, stacks: Sequence[tuple[int, int]]) -> list[Trace]:
        """All there is now, by address.

        Args:
            stacks: (thread id, stack pointer) of stopped threads, of whose stacks all below is left out.

        Raises:
            OSError: the process is gone.
        """
        vectors = self._vectors(regions, stacks)
        self.searched = 0
        edges: set[int] = set()
        for address, data in self._copy.changed(vectors):
            self.searched += len(data)
            self._drop(address, address + len(data))
            self._note(data, address)
            edges.update((address, address + len(data)))
        across = [(edge - WORD + 1, 2 * WORD - 2) for edge in sorted(edges)]
        ends = bytes(self._reader.read(across))
        for n, (address, size) in enumerate(across):
            self._note(ends[n * size : (n + 1) * size], address)
        return sorted(_inside((t for traces in self._found.values() for t in traces), vectors))

    def _drop(self, start: int, end: int) -> None:
        """Forget what was found in these pages, and at both ends of them."""
        if len(self._found) * PAGE < end - start:
            for key in [k for k in self._found if start <= k <= end | 1 and k != end]:
                del self._found[key]
            return
        for page in range(start, end, PAGE):
            self._found.pop(page, None)
            self._found.pop(page | 1, None)
        self._found.pop(end | 1, None)

    def _note(self, data: bytes | memoryview, address: int) -> None:
        for trace in self._needles.found(data, address):
            last = trace.address + WORD - 1 & -PAGE
            key = last | 1 if trace.address < last else last
            self._found.setdefault(key, []).append(trace)

    def _vectors(self, regions: MemoryMap, stacks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """(address, size) of what is searched."""
        pages, spared = self._pages, self._spared
        result = to_search(regions, spared, stacks, pages.touched, pages.written)
        holes = MemoryMap(tuple(Region(start, end, "", 0, "", 0, "") for start, end in sorted(spared)))
        for region in regions.regions:
            if region.permissions.startswith("rw") or is_device(region) or region.path.startswith(_NEVER):
                continue
            for start, end in self._written_before(region):
                result += [(first, last - first) for first, last in holes.gaps(start, end)]
        return sorted(set(result))

    def _written_before(self, region: Region) -> Iterable[tuple[int, int]]:
        """(start, end) of what may hold other things than a file, where nothing can be written now."""
        pages = self._pages
        if region.permissions.endswith("s"):
            return [(region.start, region.end)] if region.path.startswith(_MEMORY_FILES) else ()
        if is_anonymous(region):
            return pages.touched(region.start, region.end)
        if pages.are_known:
            return pages.written(region.start, region.end)
        return [(region.start, region.end)]


def _inside(traces: Iterable[Trace], vectors: Sequence[tuple[int, int]]) -> Iterator[Trace]:
    """Those that have a byte in some (address, size) ranges."""
    starts = [start for start, _ in vectors]
    ends: list[int] = []
    for start, size in vectors:
        ends.append(max(ends[-1] if ends else 0, start + size))
    for trace in traces:
        i = bisect_right(starts, trace.address + WORD - 1) - 1
        if i >= 0 and trace.address < ends[i]:
            yield trace


def first_guard(target: Target) -> list[int]:
    """The word by which glibc hides addresses, as it is when a process begins: the kernel's random bytes (glibc:
    `_dl_setup_pointer_guard`)."""
    at = target.auxiliary(_AT_RANDOM)
    return [int.from_bytes(target.memory.read(at + WORD, WORD), "little")] if at else []
