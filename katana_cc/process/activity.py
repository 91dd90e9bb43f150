"""Is a thread inside one of these functions?  Asked with all threads stopped, so it must be quick.

A thread is inside a function when its instruction pointer is, or when a return address on its stack leads back into
it.  Unwinding 256 stacks takes 20 ms; looking for words that could be such a return address takes one: all live stacks
are read with one system call into one buffer, and the buffer is searched for the high bytes that all addresses of a
range share.  Only a thread with a hit is unwound, since a hit may be stale data.

    live stack of the first thread     [rsp, end of its region)
    of others                          [rsp, thread pointer): the thread's descriptor lies above its stack
    anything else                      an alternate signal stack, a coroutine: always unwound

A return address in (start, start + size] belongs to the function: a call may be its last instruction.  An instruction
pointer in (start, start + size) is inside; at `start` itself nothing has run yet, and the jump is met.  When an unwind
does not reach the stack's end, a hit beyond what it saw counts as activity: never patched blindly.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from katana_cc.cpu.native import code
from katana_cc.cpu.native import system as cpu
from katana_cc.dwarf.unwind import Backtrace, Unwinder
from katana_cc.errors import TargetError
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.ptrace_binding import REGISTER_WORDS

_ODD_STACK_LIMIT = 1 << 20
_MAX_FINE_PREFIXES = 64


class Guard(NamedTuple):
    """A range no thread may be in.  `entry_is_free`: the very first address is allowed, since the jump goes there;
    `allowed`: the user lets this function be active, except in its first bytes; `allowable`: the user might."""

    name: str
    start: int
    size: int
    entry_is_free: bool
    allowed: bool = False
    allowable: bool = False


@dataclass(frozen=True, slots=True)
class Activity:
    """A thread found inside a guarded function.  `depth` 0 is the innermost frame; -1: seen on a stack that could not
    be unwound so far, for the reason `why`."""

    tid: int
    function: str
    address: int
    depth: int
    why: str = ""


class Finder:
    """Searches for activity in a set of guards.  Build it before the stop; `find` runs during it."""

    def __init__(self, guards: Sequence[Guard], bulk: BulkReader, make_unwinder: Callable[[], Unwinder]) -> None:
        self._guards = sorted((g for g in guards), key=lambda g: g.start)
        self._starts = [g.start for g in self._guards]
        self._bulk = bulk
        self._make_unwinder = make_unwinder
        self._unwinder: Unwinder | None = None
        self._prefixes, self._width = prefixes_of([(g.start, g.size) for g in guards])

    def find(
        self, pid: int, order: Sequence[int], registers: memoryview, regions: MemoryMap, reread: Callable[[], MemoryMap]
    ) -> Activity | None:
        """The first activity found, or None: it is safe.

        Args:
            order: thread ids; their registers follow each other in `registers`.
            regions: the memory map as of before the stop.
            reread: gives the present one; called when the old one does not explain a stack pointer.
        """
        for i, tid in enumerate(order):
            pc = registers[i * REGISTER_WORDS + cpu.PC]
            guard = self.guard_of_pc(pc)
            if guard is not None:
                return Activity(tid, guard.name, pc, 0)
        stacks = [self._stack(pid, tid, registers, i, regions) for i, tid in enumerate(order)]
        if any(s is None for s in stacks):
            regions = reread()
            stacks = [self._stack(pid, tid, registers, i, regions) for i, tid in enumerate(order)]
        vectors = [s or (0, 0) for s in stacks]
        odd = [i for i, s in enumerate(stacks) if s is None]
        for i in odd:
            vectors[i] = self._odd_stack(registers, i, regions)
        data = bytes(self._bulk.read(vectors))
        hits = self._scan(data, vectors)
        for i in sorted(hits.keys() | set(odd)):
            words = registers[i * REGISTER_WORDS : (i + 1) * REGISTER_WORDS]
            found = self._examine(order[i], words, hits.get(i, []), i in odd, pid, regions)
            if found is not None:
                return found
        return None

    def departure(
        self, order: Sequence[int], registers: memoryview, busy: Activity
    ) -> tuple[tuple[str, ...], int | None]:
        """The guarded functions on the stack of a thread found inside, innermost first, and the address at which it
        goes on when it has left the outermost of them; None where the stack tells of none."""
        i = order.index(busy.tid)
        trace = self._backtrace(registers[i * REGISTER_WORDS : (i + 1) * REGISTER_WORDS])
        frames = trace.frames
        guards = self.guards_of(trace)
        inside = [n for n, guard in enumerate(guards) if guard is not None]
        names = tuple(dict.fromkeys(guard.name for guard in guards if guard is not None)) or (busy.function,)
        after = inside[-1] + 1 if inside else len(frames)
        return names, frames[after].pc if after < len(frames) else None

    def guards_of(self, trace: Backtrace) -> list[Guard | None]:
        """For each frame the guard it is inside of."""
        return [self.guard_of_pc(f.pc) if f.is_exact else self.guard_of_return(f.pc) for f in trace.frames]

    def guard_of_pc(self, pc: int) -> Guard | None:
        """The guard an instruction pointer is inside of."""
        i = bisect_right(self._starts, pc) - 1
        if i < 0:
            return None
        guard = self._guards[i]
        if pc >= guard.start + guard.size or (guard.entry_is_free and pc == guard.start):
            return None
        if guard.allowed and pc >= guard.start + code.JUMP_SIZE:
            return None
        return guard

    def guard_of_return(self, address: int) -> Guard | None:
        """The guard a return address leads into."""
        i = bisect_right(self._starts, address - 1) - 1
        if i < 0:
            return None
        guard = self._guards[i]
        if not guard.start < address <= guard.start + guard.size:
            return None
        if guard.allowed and address >= guard.start + code.JUMP_SIZE:
            return None
        return guard

    @staticmethod
    def _stack(pid: int, tid: int, registers: memoryview, i: int, regions: MemoryMap) -> tuple[int, int] | None:
        """(address, size) of a live stack; None when it is not where stacks are."""
        pointer = registers[i * REGISTER_WORDS + cpu.SP]
        region = regions.at(pointer)
        if region is None:
            return None
        if tid == pid:
            return (pointer, region.end - pointer) if region.path == "[stack]" else None
        thread_pointer = registers[i * REGISTER_WORDS + cpu.THREAD_POINTER]
        return (pointer, thread_pointer - pointer) if pointer < thread_pointer <= region.end else None

    @staticmethod
    def _odd_stack(registers: memoryview, i: int, regions: MemoryMap) -> tuple[int, int]:
        pointer = registers[i * REGISTER_WORDS + cpu.SP]
        region = regions.at(pointer)
        return (pointer, min(region.end - pointer, _ODD_STACK_LIMIT)) if region else (0, 0)

    def _scan(self, data: bytes, vectors: Sequence[tuple[int, int]]) -> dict[int, list[tuple[int, int]]]:
        """Thread index → (address of the word, its value) of each word that may be a return address into a guard."""
        bounds = []
        total = 0
        for _, size in vectors:
            bounds.append(total)
            total += size
        result: dict[int, list[tuple[int, int]]] = {}
        skipped = 8 - self._width
        for prefix in self._prefixes:
            at = data.find(prefix)
            while at >= 0:
                start = at - skipped
                if start >= 0:
                    value = int.from_bytes(data[start : start + 8], "little")
                    if self.guard_of_return(value) is not None:
                        i = bisect_right(bounds, start) - 1
                        while not vectors[i][1]:
                            i -= 1
                        result.setdefault(i, []).append((vectors[i][0] + start - bounds[i], value))
                at = data.find(prefix, at + 1)
        return result

    def _examine(
        self, tid: int, words: memoryview, hits: list[tuple[int, int]], is_odd: bool, pid: int, regions: MemoryMap
    ) -> Activity | None:
        """Unwind a thread with hits, or on an odd stack."""
        trace = self._backtrace(words)
        for frame, guard in zip(trace.frames, self.guards_of(trace), strict=True):
            if guard is not None:
                return Activity(tid, guard.name, frame.pc, frame.depth)
        if trace.is_complete:
            return None
        seen_up_to = max((f.cfa for f in trace.frames), default=0)
        beyond = [h for h in hits if is_odd or h[0] >= seen_up_to - 8]
        if is_odd:
            home = self._home_stack(tid, pid, words, regions)
            beyond += self._scan(bytes(self._bulk.read([home])), [home]).get(0, [])
        if beyond:
            guard = self.guard_of_return(beyond[0][1])
            assert guard is not None
            return Activity(tid, guard.name, beyond[0][1], -1, trace.why)
        return None

    def _backtrace(self, words: memoryview) -> Backtrace:
        if self._unwinder is None:
            self._unwinder = self._make_unwinder()
        return self._unwinder.unwind({n: words[r] for n, r in enumerate(cpu.DWARF.order)})

    @staticmethod
    def _home_stack(tid: int, pid: int, words: memoryview, regions: MemoryMap) -> tuple[int, int]:
        """The stack a thread was born with, whole: what is below its true stack pointer cannot be told."""
        if tid == pid:
            region = next((r for r in regions.regions if r.path == "[stack]"), None)
            return (region.start, region.size) if region else (0, 0)
        region = regions.at(words[cpu.THREAD_POINTER])
        if region is None or "w" not in region.permissions:
            return 0, 0
        size = min(words[cpu.THREAD_POINTER] - region.start, 8 * _ODD_STACK_LIMIT)
        return words[cpu.THREAD_POINTER] - size, size


def prefixes_of(ranges: Sequence[tuple[int, int]]) -> tuple[list[bytes], int]:
    """The high bytes that words in (start, start + size] can have, and how many bytes that is (7, 6 or 5): as fine as
    keeps the number of searches small."""
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
            return [struct.pack("<Q", block)[:width] for block in fine], width
    raise AssertionError("unreachable")


def describe(activity: Activity, comm: str) -> str:
    """One sentence for a person."""
    where = f"frame {activity.depth}" if activity.depth >= 0 else f"a frame that could not be reached ({activity.why})"
    return f"thread {activity.tid} ({comm}) is in {activity.function}: {where}, {activity.address:#x}"


def backtrace_of(unwinder: Unwinder, words: Sequence[int]) -> Backtrace:
    """Unwind one thread from its user_regs_struct words."""
    if len(words) < REGISTER_WORDS:
        raise TargetError("registers are incomplete")
    return unwinder.unwind({n: words[r] for n, r in enumerate(cpu.DWARF.order)})
