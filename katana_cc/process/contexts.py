"""The coroutines that glibc's `swapcontext` has switched out: where each of them goes on.

Theory of operation.  A word that leads back into a function tells nothing of whether something will return by it: a
stack is full of what was left there.  But what `swapcontext` has switched out goes on with the registers that it kept,
in a ucontext_t somewhere in memory.  These can be found, all of them, by what is in them (`cpu.contexts`), and be
unwound as threads are.  So where nothing else switches stacks, a word is

    alive     where some context's unwind comes by it: a guarded function is found on that stack
    unknown   where an unwind ended too early, and the word is beyond, on the same stack
    dead      else

A context stays when its coroutine has ended or runs; where it leads then may be stale, and counts all the same.

What a context led to is kept with the bytes that it depends on: its own, and those of its stack as far as it was
unwound.  In the stop all these are read, by few system calls, and only what differs is unwound again.

Out of scope: programs that copy stacks away and back between the switches.
"""

from __future__ import annotations

import contextlib
import ctypes
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from katana_cc.cpu.native import contexts as cpu
from katana_cc.cpu.native import system
from katana_cc.cpu.stopped import SavedContext
from katana_cc.errors import TargetError
from katana_cc.process.activity import Finder, Guard
from katana_cc.process.copies import PAGE
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader, ProcessMemory
from katana_cc.process.watch import merged
from katana_cc.process.words import WORD, Word

_EDGE: Final = 16  # bytes, no fewer than a mark has


class Held(NamedTuple):
    """A context that leads into a guarded function, at `address`; `frame` 0 is the innermost."""

    address: int
    guard: Guard
    frame: int


class _Led(NamedTuple):
    """Where a context led.  `data`: its bytes; `stack`: the bytes of the stack from `pointer` on that tell.  Of what is
    in [unknown, end) nothing is known; nothing is there when the unwind was whole.  `made` is the (start, end) of the
    stack that it was made with."""

    data: bytes
    pointer: int
    stack: bytes
    held: Held | None
    unknown: int
    end: int
    made: tuple[int, int]


def can_be_found() -> bool:
    """Whether contexts have the mark here that they are found by: tried with one of our own."""
    if cpu is None:
        return False
    buffer = ctypes.create_string_buffer(1 << 12)
    try:
        getcontext = ctypes.CDLL(None).getcontext
    except (AttributeError, OSError):
        return False
    if getcontext(buffer) != 0:
        return False
    data, address = buffer.raw[: cpu.SIZE], ctypes.addressof(buffer)
    return cpu.MARK_AT in cpu.marks(data) and cpu.saved_context(data, address) is not None


class Contexts:
    """The contexts of one process, kept up to date from pages that changed (`found_in`)."""

    def __init__(self, memory: ProcessMemory, finder: Finder) -> None:
        self._memory = memory
        self._finder = finder
        self._bulk = BulkReader(memory, 1 << 16)
        self._pages: dict[int, list[int]] = {}  # page → marks that begin in it, by address
        self._led: dict[int, _Led] = {}

    def found_in(self, address: int, data: memoryview) -> None:
        """Pages that changed, or are new."""
        assert cpu is not None
        for page in range(address, address + len(data), PAGE):
            self._pages.pop(page, None)
        starts = {address + at for at in cpu.marks(data)}
        # Neighbours are not read without need: that would make pages of them, if they were never touched.
        for edge, is_cut in zip((address, address + len(data)), cpu.are_cut(data), strict=True):
            if is_cut:
                with contextlib.suppress(TargetError):
                    starts.update(edge - _EDGE + at for at in cpu.marks(self._memory.read(edge - _EDGE, 2 * _EDGE)))
        for start in starts:
            marks = self._pages.setdefault(start & -PAGE, [])
            if start not in marks:
                marks.append(start)

    @property
    def marks(self) -> list[int]:
        """Where something is that contexts are known by."""
        return sorted(mark for marks in self._pages.values() for mark in marks)

    def look(self, regions: MemoryMap) -> None:
        """Find out where all contexts lead, as memory is now."""
        assert cpu is not None
        addresses = [mark - cpu.MARK_AT for mark in self.marks]
        size = cpu.SIZE
        together = bytes(self._bulk.read([(at, size) for at in addresses]))
        same: dict[int, _Led] = {}
        others: dict[int, bytes] = {}
        for n, at in enumerate(addresses):
            data = together[n * size : (n + 1) * size]
            led = self._led.get(at)
            if led is not None and led.data == data:
                same[at] = led
            else:
                others[at] = data
        stacks = bytes(self._bulk.read([(led.pointer, len(led.stack)) for led in same.values()]))
        if stacks != b"".join(led.stack for led in same.values()):
            start = 0
            for at, led in list(same.items()):
                if stacks[start : start + len(led.stack)] != led.stack:
                    others[at] = led.data
                    del same[at]
                start += len(led.stack)
        self._led = same
        for at, data in others.items():
            if (saved := cpu.saved_context(data, at)) is not None:
                self._led[at] = self._follow(at, data, saved, regions)

    def held(self, dead: Sequence[tuple[int, int]] = ()) -> Iterator[Held]:
        """Those that lead into guarded functions.

        Args:
            dead: (start, end) of memory where no stack goes on: a context that goes on there is stale.
        """
        for led in self._led.values():
            if led.held is not None and not any(start <= led.pointer < end for start, end in dead):
                yield led.held

    def unknown(self, words: Sequence[Word]) -> list[Word]:
        """The words of which it is not known whether something goes on by them."""
        ranges = merged((led.unknown, led.end) for led in self._led.values() if led.unknown < led.end)
        starts = [start for start, _ in ranges]
        return [w for w in words if (i := bisect_right(starts, w.address)) and w.address < ranges[i - 1][1]]

    def explains(self, pointer: int) -> bool:
        """Whether a stack pointer is on a stack that some context was made with."""
        return any(led.made[0] <= pointer <= led.made[1] for led in self._led.values())

    def still_leads(self, held: Held) -> bool:
        """Whether a context has not changed since the last look, nor its stack."""
        led = self._led.get(held.address)
        if led is None:
            return False
        kept = (held.address, led.data), (led.pointer, led.stack)
        try:
            return all(self._memory.read(at, len(data)) == data for at, data in kept)
        except TargetError:
            return False

    def _follow(self, at: int, data: bytes, saved: SavedContext, regions: MemoryMap) -> _Led:
        """Unwind one."""
        pointer = saved.registers[system.DWARF.stack_pointer]
        made = saved.stack, saved.stack + saved.size
        region = regions.at(pointer)
        if region is None or "w" not in region.permissions:
            return _Led(b"", 0, b"", None, 0, 0, made)  # its stack is gone; there may be another next time
        end = made[1] if made[0] <= pointer <= made[1] else region.end
        trace = self._finder.unwinder.unwind(saved.registers)
        seen = max((f.cfa for f in trace.frames if pointer <= f.cfa <= end), default=pointer)
        guards = zip(trace.frames, self._finder.guards_of(trace), strict=True)
        held = next((Held(at, guard, frame.depth) for frame, guard in guards if guard is not None), None)
        try:
            stack = self._memory.read(pointer, seen - pointer)
        except TargetError:
            return _Led(b"", pointer, b"", held, pointer, end, made)
        if any(f.cfa and not pointer < f.cfa <= end for f in trace.frames):
            data = b""  # it depends on more than is kept
        return _Led(data, pointer, stack, held, end if trace.is_complete else seen - WORD, end, made)
