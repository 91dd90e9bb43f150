"""Which words of a process lead into certain ranges: a search of all its writable memory, at the speed of C.

A word that leads into a range has the high bytes that all addresses of the range share, so these are searched for
(`re`, which passes over zeros and over text faster than `bytes.find` does), and the few hits are looked at.  Memory is
read a batch at a time into one buffer; pages that were never touched are not read.

Looked at are words at addresses that are multiples of 8, where every compiler puts a pointer unless it is told
otherwise (packed structs: `katana_cc.process.follow` reads those that types tell of).  Left out is what can hold no
live pointer or is not ours to ask:

    below the red zone of a thread's own stack    where the mapping is surely a stack: `[stack]`, or after guard pages,
                                                  and no other thread is there
    read-only memory                              but what a loader wrote before it was (addresses)
    devices                                       reading them may do something
    memory that the process cannot read itself

Sources: proc_pid_pagemap(5), System V ABI 3.2.2 (the red zone).
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from katana_cc.cpu.native import system as cpu
from katana_cc.process.maps import MemoryMap, Region, is_scratch
from katana_cc.process.memory import BulkReader

WORD: Final = 8
_PAGE: Final = 4096
BATCH: Final = 4 << 20  # bytes read at a time: what stays in the processor's cache between being read and searched
_FEW_PAGES: Final = 16  # that are quicker read than asked about
_WIDTHS: Final = ((7, 3), (6, 8), (5, 1 << 24))  # bytes that a word shares with a range, searches that it may take
_TOUCHED: Final = bytes(int(n & 0xC0 != 0) for n in range(256))  # highest byte of an entry: present, or swapped out
# The same of a file's pages that are the process's own, since they were written to (present, and not the file's).
_WRITTEN: Final = bytes(int(n & 0x40 != 0 or n & 0xA0 == 0x80) for n in range(256))
_RUN: Final = re.compile(b"\x01+")
_NO_DEVICES: Final = ("/dev/shm/", "/dev/zero", "/dev/hugepages/")


# (start, end) of anonymous memory -> the parts of it that hold anything
Touched = Callable[[int, int], Iterable[tuple[int, int]]]


class Word(NamedTuple):
    """A word of the target: where it is, and what it holds."""

    address: int
    value: int


class Seeker:
    """Searches for words that lead into ranges, given as (start, size), which must not overlap."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._ranges = sorted((start, start + size) for start, size in ranges if size)
        self._starts = [start for start, _ in self._ranges]
        width, needles = _needles(self._ranges)
        self._skipped = WORD - width
        self._patterns = [re.compile(re.escape(needle)) for needle in needles]

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """The (start, end) of each range, ascending."""
        return self._ranges

    def is_near(self, value: int) -> bool:
        """Whether a value is an address within one of the ranges."""
        i = bisect_right(self._starts, value) - 1
        return i >= 0 and value < self._ranges[i][1]

    def leads(self, value: int) -> bool:
        """The same; whoever knows better than the ranges tell says so here."""
        return self.is_near(value)

    def lies_in(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Whether all the ranges lie in these (start, end), which are sorted and do not overlap."""
        starts = [start for start, _ in ranges]
        return all((i := bisect_right(starts, start) - 1) >= 0 and end <= ranges[i][1] for start, end in self._ranges)

    def near(self, data: bytes | bytearray | memoryview, address: int, *, aligned: bool = True) -> Iterator[Word]:
        """The words in `data` that are near, where `address` is that of its first byte."""
        return self._search(data, address, aligned, self.is_near)

    def in_bytes(self, data: bytes | bytearray | memoryview, address: int, *, aligned: bool = True) -> Iterator[Word]:
        """The words in `data` that lead there."""
        return self._search(data, address, aligned, self.leads)

    def _search(
        self, data: bytes | bytearray | memoryview, address: int, aligned: bool, is_one: Callable[[int], bool]
    ) -> Iterator[Word]:
        view = memoryview(data)
        for pattern in self._patterns:
            at = 0
            while (found := pattern.search(view, at)) is not None:
                at = found.start() + 1
                start = found.start() - self._skipped
                if start < 0 or (aligned and (address + start) % WORD) or start + WORD > len(view):
                    continue
                (value,) = struct.unpack_from("<Q", view, start)
                if is_one(value):
                    yield Word(address + start, value)

    def in_memory(self, bulk: BulkReader, vectors: Iterable[tuple[int, int]]) -> list[Word]:
        """The aligned words in these (address, size) ranges of the target that lead there, by address.

        Raises:
            OSError: the process is gone.
        """
        result: list[Word] = []
        for batch in _batches(vectors):
            data = bulk.read(batch)
            starts, total = [], 0
            for _, size in batch:
                starts.append(total)
                total += size
            for word in self.in_bytes(data, 0):
                i = bisect_right(starts, word.address) - 1
                result.append(Word(batch[i][0] + word.address - starts[i], word.value))
        return sorted(result)


def _needles(ranges: Sequence[tuple[int, int]]) -> tuple[int, list[bytes]]:
    """(how many of the high bytes, what they may be), as fine as keeps the number of searches small."""
    for width, few in _WIDTHS:
        shift = 8 * (WORD - width)
        blocks = {start >> shift for start, _ in ranges}
        for start, end in ranges if len(blocks) <= few else ():
            first, last = start >> shift, end - 1 >> shift
            if last != first:
                blocks.update(range(first, min(last, first + few) + 1))
        if len(blocks) <= few:
            return width, [struct.pack("<Q", block)[:width] for block in sorted(blocks)]
    raise AssertionError("unreachable")


def _batches(vectors: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    room = BATCH
    for address, size in vectors:
        while size:
            part = min(size, room)
            batch.append((address, part))
            address, size, room = address + part, size - part, room - part
            if not room:
                yield batch
                batch, room = [], BATCH
    if batch:
        yield batch


def to_search(
    regions: MemoryMap,
    spared: Iterable[tuple[int, int]],
    stacks: Sequence[tuple[int, int]],
    touched: Touched,
    written: Touched,
) -> list[tuple[int, int]]:
    """The (address, size) ranges of a target in which words are searched for; addresses and sizes multiples of 8.

    Args:
        spared: (start, end) ranges that are left out.
        stacks: (thread id, address) of each thread for which it is known: nothing of its own lives below in the
            mapping there, but for the red zone.  Of other stacks nothing is left out.
        touched, written: as of `Pages`.
    """
    low: dict[int, list[int]] = {}
    for _, pointer in stacks:
        region = regions.at(pointer)
        if region is not None:
            low.setdefault(region.start, []).append(pointer)
    holes = sorted(spared)
    result: list[tuple[int, int]] = []
    for region in regions.regions:
        start = region.start
        if region.permissions == "r--p" and region.inode and not region.path.startswith("/memfd:"):
            for first, end in written(start, region.end):
                result += _without(holes, first, end)
        if not region.permissions.startswith("rw") or is_device(region):
            continue
        pointers = low.get(region.start, ())
        if is_scratch(region) and not pointers:
            continue  # what malloc left on the stack of a call leads to where objects are now
        # Two threads in one mapping: whose stack begins where is not known.
        if len(pointers) == 1 and (region.path == "[stack]" or regions.is_guarded(region)):
            start = max(start, (pointers[0] - cpu.RED_ZONE) & -WORD)
        parts = touched(start, region.end) if is_anonymous(region) else ((start, region.end),)
        for first, end in parts:
            result += _without(holes, first, end)
    return result


def _without(holes: Sequence[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """(address, size) of what is left of [start, end) between the holes: whole words."""
    for first, last in holes:
        if last <= start or first >= end:
            continue
        # A word that is partly in the hole is looked at.
        upto = -(-first // WORD) * WORD
        if upto > start:
            yield start, upto - start
        start = max(start, last & -WORD)
    if end > start:
        yield start, end - start


def is_anonymous(region: Region) -> bool:
    """Whether pages that were never touched hold zeros only."""
    return not region.inode and region.permissions.endswith("p")


def is_device(region: Region) -> bool:
    """Whether a region is a device's: what reading it does is not known."""
    return region.path.startswith("/dev/") and not region.path.startswith(_NO_DEVICES)


class Pages:
    """What /proc/PID/pagemap tells: which pages of a process were ever touched, or written to."""

    def __init__(self, pid: int) -> None:
        try:
            self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1  # a kernel without it: everything is read

    @property
    def are_known(self) -> bool:
        """Whether the kernel tells."""
        return self._fd >= 0

    def close(self) -> None:
        """Release the file descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def touched(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        """The (start, end) parts of [start, end), which is anonymous memory, that hold anything but zeros never
        written."""
        runs = self._runs(start, end, _TOUCHED) if end - start > _FEW_PAGES * _PAGE else None
        return ((start, end),) if runs is None else runs

    def written(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        """The (start, end) parts of [start, end), where a file is mapped, that were written to; none where the kernel
        does not tell."""
        return self._runs(start, end, _WRITTEN) or ()

    def _runs(self, start: int, end: int, wanted: bytes) -> list[tuple[int, int]] | None:
        """The parts whose pages' entries have such a highest byte; None where the kernel does not tell."""
        first = start // _PAGE
        count = -(-end // _PAGE) - first
        entries = b""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                entries = os.pread(self._fd, count * WORD, first * WORD)
        if len(entries) != count * WORD:
            return None
        return [
            (max(start, (first + run.start()) * _PAGE), min(end, (first + run.end()) * _PAGE))
            for run in _RUN.finditer(entries[7::8].translate(wanted))
        ]
