"""Is a thread inside one of these functions?  Asked with all threads stopped, so it must be quick.

A thread is inside a function when its instruction pointer is, or when a return address on its stack leads back into
it.  Unwinding 256 stacks takes 20 ms; looking for words that could be such a return address takes one: all live stacks
are read and searched (`stacks`).  Only a thread with a hit is unwound, since a hit may be stale data, and only as far
as its outermost hit; one on an odd stack always is, and one with a signal frame on its stack: what was interrupted may
lie elsewhere, also below the stack pointer, if the handler's stack is part of the thread's own.

A return address in (start, start + size] belongs to the function: a call may be its last instruction.  An instruction
pointer in (start, start + size) is inside; at `start` itself nothing has run yet, and the jump is met.  When an unwind
does not reach the stack's end, a hit beyond what it saw counts as activity: never patched blindly.

A frame takes some microseconds, and a stack may have thousands.  So a stop walks over a few hundred frames in all;
what is deeper is remembered, registers and stack, everything is let go, and it is walked over at leisure.  The next
stop goes on from what is known where it meets a state of that walk with the same memory beyond it (`dwarf.unwind`):
an outer part of a stack that is still there, whatever its thread does meanwhile.  A stack of which nothing stays is
walked over in the stop, after a few such tries.

Of code on stacks that no thread runs on nothing is said here (`suspended`), but where to look for it: in all memory
that `decided` leaves out.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from katana_cc.cpu.native import code
from katana_cc.cpu.native import system as cpu
from katana_cc.dwarf.unwind import Backtrace, Frame, Unwinder, Walked
from katana_cc.errors import BusyError, KatanaError, TargetError
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.ptrace_binding import REGISTER_WORDS
from katana_cc.process.stacks import Search, Stacks, column, home_stack

_PATIENCE: Final = 200  # frames that one stop walks over
DEEP_TRIES: Final = 3  # so often is what is deeper walked over between stops
_FURTHEST: Final = 4096  # frames looked at to tell where a thread leaves a function
_PIECE: Final = 1 << 16  # bytes
_ALL: Final = (1 << 64) - 1


class DeepStacksError(BusyError):
    """There is more to be walked over than a stop has time for; `Finder.study` does it."""


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
    """Searches for activity in a set of guards.  Build it before the stop; `find` runs during it.

    Attributes, as of the last `find` that found none:
        decided: the (start, end) of live parts of stacks: what in them leads into a guard is stale.
        own_stacks: (thread id, stack pointer) of each thread, where it is on its own stack; of one in a signal handler
            with another stack, what it was when the signal came: the lowest, if there are several.
        lowest: (thread id, address): in the mapping there, nothing of that thread lives below; the mapping's start
            where that is not known, or where it may hold anything else.
        strange: the stack pointers of threads on stacks that are neither their own nor their signal handlers'.
    """

    def __init__(self, guards: Sequence[Guard], bulk: BulkReader, make_unwinder: Callable[[], Unwinder]) -> None:
        self._guards = sorted((g for g in guards), key=lambda g: g.start)
        self._starts = [g.start for g in self._guards]
        self._bounds = min(self._starts, default=0), max((g.start + g.size for g in guards), default=0)
        self._bulk = bulk
        self._make_unwinder = make_unwinder
        self._mark = cpu.signal_frame_mark()
        self._unwinder: Unwinder | None = None
        self._search = Search(
            [(g.start, g.size) for g in guards], lambda value: self.guard_of_return(value) is not None
        )
        self._left = 0
        self._studies = 0
        self._deep: list[tuple[int, dict[int, int], _Copy]] = []
        self._known: dict[int, _Known] = {}
        self._own: dict[int, int] = {}
        self._elsewhere: list[tuple[int, int]] = []
        self.decided: list[tuple[int, int]] = []
        self.strange: list[int] = []

    @property
    def own_stacks(self) -> Sequence[tuple[int, int]]:
        """As above."""
        return list(self._own.items())

    @property
    def lowest(self) -> Sequence[tuple[int, int]]:
        """As above."""
        return [*self._own.items(), *self._elsewhere]

    def find(
        self, pid: int, order: Sequence[int], registers: memoryview, regions: MemoryMap, reread: Callable[[], MemoryMap]
    ) -> Activity | None:
        """The first activity found, or None: it is safe.

        Args:
            order: thread ids; their registers follow each other in `registers`.
            regions: the memory map as of before the stop.
            reread: gives the present one; called when the old one does not explain a stack pointer.

        Raises:
            DeepStacksError: it takes too long for a stop to tell.
        """
        low, high = self._bounds
        for tid, pc in zip(order, column(registers, cpu.PC, len(order)), strict=True):
            if low <= pc < high and (guard := self.guard_of_pc(pc)) is not None:
                return Activity(tid, guard.name, pc, 0)
        stacks = Stacks(pid, order, registers, regions, reread, self._bulk)
        hits = stacks.hits(self._search)
        handlers = stacks.signal_frames(self._mark)
        self._left = _PATIENCE if self._studies < DEEP_TRIES else _ALL
        self._deep.clear()
        self._note_usual(order, stacks)
        for i in sorted(hits.keys() | handlers.keys() | stacks.odd):
            words = registers[i * REGISTER_WORDS : (i + 1) * REGISTER_WORDS]
            found = self._examine(order[i], words, hits.get(i, []), handlers.get(i, []), i, stacks, pid)
            if found is not None:
                return found
        if self._deep:
            raise DeepStacksError(f"the stack of thread {self._deep[0][0]} is too deep", where=f"pid {pid}")
        return None

    def rehearse(self, pid: int, places: Sequence[tuple[int, int, int]], regions: MemoryMap) -> None:
        """Look at the stacks while the process runs, and forget what was found: code and data that was never touched
        makes the first look take half as long again, and the first stop with it.

        Args:
            places: (thread id, stack pointer, pc) of threads that wait.
        """
        words = memoryview(bytearray(8 * REGISTER_WORDS * len(places))).cast("Q")
        for i, (_, pointer, pc) in enumerate(places):
            region = regions.at(pointer)
            row = i * REGISTER_WORDS
            words[row + cpu.SP], words[row + cpu.PC] = pointer, pc
            words[row + cpu.THREAD_POINTER] = region.end if region is not None else 0
        with contextlib.suppress(KatanaError, OSError):
            self.find(pid, [tid for tid, _, _ in places], words, regions, lambda: regions)
        self._deep.clear()

    def study(self) -> None:
        """Walk over what was too deep for the last stop; called when all threads run again."""
        self._studies += 1
        unwinder = self.unwinder
        for tid, values, copy in self._deep:
            states = _States(copy)
            trace = unwinder.unwind(values, read=copy.reading(unwinder), states=states)
            if copy.is_all:
                frames = zip(trace.frames, self.guards_of(trace), strict=True)
                inside = tuple((frame, guard) for frame, guard in frames if guard is not None)
                furthest = max((f.cfa for f in trace.frames), default=0)
                self._known[tid] = _Known(copy, Walked(states, trace), inside, furthest)
        self._deep.clear()

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

    def _examine(
        self,
        tid: int,
        words: memoryview,
        hits: list[tuple[int, int]],
        handlers: list[int],
        i: int,
        stacks: Stacks,
        pid: int,
    ) -> Activity | None:
        """Unwind a thread with hits, with signal frames (`handlers`), or on an odd stack."""
        is_odd = i in stacks.odd
        until = _ALL if is_odd else max((*(at for at, _ in hits), *handlers))
        trace, states = self._walk(tid, _numbered(words), _Copy(stacks.vectors[i][0], stacks.copy(i)), until)
        for frame, guard in zip(trace.frames, self.guards_of(trace), strict=True):
            if guard is not None:
                return Activity(tid, guard.name, frame.pc, frame.depth)
        known = self._known[tid] if trace.goes_on >= 0 else None
        for frame, guard in known.inside if known is not None else ():
            if frame.depth >= trace.goes_on:
                return Activity(tid, guard.name, frame.pc, frame.depth - trace.goes_on + len(trace.frames))
        seen_up_to = max((f.cfa for f in trace.frames), default=0)
        if known is not None:
            seen_up_to = max(seen_up_to, known.furthest)
        is_seen = trace.is_complete or trace.is_cut
        if is_odd or handlers:
            places = _places(trace, states, known)
            is_lower = any(p.is_exact and p.pointer < words[cpu.SP] for p in places)
            # Of a signal frame that was not come to: what it interrupted may be anywhere.
            is_odd = is_odd or is_lower or (not is_seen and max(handlers) >= seen_up_to)
            home = _home(i, tid, pid, words, stacks)
            self._note(tid, words[cpu.SP], places, home, stacks.regions, is_seen or not is_odd)
        if is_seen:
            return None
        beyond = [value for at, value in hits if is_odd or at >= seen_up_to - 8]
        if is_odd:
            self._bulk.read([home_stack(tid, pid, words, stacks.regions)])
            beyond += [value for _, value in self._search.words(self._bulk)]
            stacks.read()
        if beyond:
            guard = self.guard_of_return(beyond[0])
            assert guard is not None
            return Activity(tid, guard.name, beyond[0], -1, trace.why)
        return None

    def _note_usual(self, order: Sequence[int], stacks: Stacks) -> None:
        self.strange, self._elsewhere = [], []
        own = [(tid, *stacks.vectors[i]) for i, tid in enumerate(order) if i not in stacks.odd]
        self.decided = [(pointer - cpu.RED_ZONE, pointer + size) for _, pointer, size in own]
        self._own = {tid: pointer for tid, pointer, _ in own}

    def _note(
        self, tid: int, pointer: int, places: Sequence[_Place], home: tuple[int, int], regions: MemoryMap, is_sure: bool
    ) -> None:
        """What is known of a thread with handlers, or that is not where its stack is (`home`: start and end).

        `is_sure`: all that they interrupted was seen.
        """
        own = [p.pointer for p in places if p.is_exact and home[0] <= p.pointer < home[1]]
        others = [p for p in places if not home[0] <= p.pointer < home[1]]
        self.decided += [(p.pointer - cpu.RED_ZONE if p.is_exact else p.pointer, p.cfa) for p in others]
        starts = [p.pointer for p in others if p.is_exact]
        if not home[0] <= pointer < home[1]:
            starts.append(pointer)
            if not own:
                self.strange.append(pointer)
        if own and is_sure:
            self._own[tid] = min(own)
            self.decided.append((min(own) - cpu.RED_ZONE, home[1]))
        else:
            self._own.pop(tid, None)
            starts.append(home[0])
        known = {region.start for at in starts if (region := regions.at(at)) is not None}
        self._elsewhere += [(tid, start) for start in sorted(known)]

    def _walk(
        self, tid: int, values: dict[int, int], copy: _Copy, until: int
    ) -> tuple[Backtrace, dict[int, tuple[dict[int, int], int, bool]]]:
        """Unwind a thread, as far as the patience for this stop goes; what is beyond it is left for `study`.  The
        states that were met are with it."""
        unwinder = self.unwinder
        known, valid = None, _ALL
        if (earlier := self._known.get(tid)) is not None:
            known, valid = earlier.walked, copy.same_from(earlier.copy)
        states: dict[int, tuple[dict[int, int], int, bool]] = {}
        read = copy.reading(unwinder)
        trace = unwinder.unwind(
            values, limit=self._left, read=read, until=until, known=known, valid=valid, states=states
        )
        self._left -= len(states)
        if trace.is_cut:
            self._deep.append((tid, values, copy))
        return trace, states

    def _backtrace(self, words: memoryview) -> Backtrace:
        return self.unwinder.unwind(_numbered(words), limit=_FURTHEST)

    @property
    def unwinder(self) -> Unwinder:
        """What stacks are unwound with."""
        if self._unwinder is None:
            self._unwinder = self._make_unwinder()
        return self._unwinder


class _Copy:
    """The bytes of a stack as of a stop.  `is_all`: an unwind read nothing else, and nothing below the frame it was
    at (`floor`)."""

    def __init__(self, start: int, data: bytes) -> None:
        self.start = start
        self.data = data
        self.floor = 0
        self.is_all = True

    def reading(self, unwinder: Unwinder) -> Callable[[int, int], bytes]:
        """Reads it, and what is elsewhere as it is now."""
        start, data, length = self.start, self.data, len(self.data)

        def read(address: int, size: int) -> bytes:
            at = address - start
            if at < 0 or at + size > length:
                self.is_all = False
                return unwinder.read(address, size)
            if address < self.floor:
                self.is_all = False
            return data[at : at + size]

        return read

    def same_from(self, other: _Copy) -> int:
        """From which address on, to their common end, both hold the same."""
        end = self.start + len(self.data)
        if end != other.start + len(other.data):
            return _ALL
        low, high = max(self.start, other.start), end
        # Slices are copies: from the end on, a piece at a time.
        while high > low and self._piece(high, low) == other._piece(high, low):
            high = max(low, high - _PIECE)
        low = max(low, high - _PIECE)
        while low < high:
            middle = (low + high) // 2
            if self._piece(high, middle) == other._piece(high, middle):
                high = middle
            else:
                low = middle + 1
        return low

    def _piece(self, end: int, start: int) -> bytes:
        """The last bytes before an address, not before another one."""
        return self.data[max(start, end - _PIECE) - self.start : end - self.start]


class _States(dict[int, tuple[dict[int, int], int, bool]]):
    """The states of an unwind; each tells the stack that is read how far it has come.  One that comes back to lower
    addresses is not to be gone on from: above it nothing may have changed, and yet there."""

    def __init__(self, copy: _Copy) -> None:
        super().__init__()
        self._copy = copy

    def __setitem__(self, pointer: int, state: tuple[dict[int, int], int, bool]) -> None:
        self._copy.is_all &= pointer >= self._copy.floor
        self._copy.floor = pointer
        super().__setitem__(pointer, state)


class _Known(NamedTuple):
    """A stack that was walked over: the guarded functions it is inside of, and how far it was seen."""

    copy: _Copy
    walked: Walked
    inside: tuple[tuple[Frame, Guard], ...]
    furthest: int


class _Place(NamedTuple):
    """Where a frame lies: from the stack pointer to its CFA.  `is_exact` as of `Frame`."""

    pointer: int
    cfa: int
    is_exact: bool


def _places(
    trace: Backtrace, states: dict[int, tuple[dict[int, int], int, bool]], known: _Known | None
) -> list[_Place]:
    """The frames of an unwind, those that an earlier one met among them."""
    found = [_Place(at, trace.frames[n].cfa, exact) for at, (_, n, exact) in states.items() if n < len(trace.frames)]
    if known is not None:
        frames = known.walked.trace.frames
        met = known.walked.states.items()
        found += [_Place(at, frames[n].cfa, exact) for at, (_, n, exact) in met if trace.goes_on <= n < len(frames)]
    return [place for place in found if place.cfa > place.pointer]


def _home(i: int, tid: int, pid: int, words: memoryview, stacks: Stacks) -> tuple[int, int]:
    """Start and end of the stack that a thread was born with."""
    region = stacks.regions.at(words[cpu.SP])
    if i in stacks.odd or region is None:
        start, size = home_stack(tid, pid, words, stacks.regions)
        return start, start + size
    return region.start, sum(stacks.vectors[i])


def _numbered(words: Sequence[int] | memoryview) -> dict[int, int]:
    """Registers by their DWARF numbers."""
    return {n: words[r] for n, r in enumerate(cpu.DWARF.order)}


def describe(activity: Activity, comm: str) -> str:
    """One sentence for a person."""
    where = f"frame {activity.depth}" if activity.depth >= 0 else f"a frame that could not be reached ({activity.why})"
    return f"thread {activity.tid} ({comm}) is in {activity.function}: {where}, {activity.address:#x}"


def backtrace_of(unwinder: Unwinder, words: Sequence[int]) -> Backtrace:
    """Unwind one thread from its user_regs_struct words."""
    if len(words) < REGISTER_WORDS:
        raise TargetError("registers are incomplete")
    return unwinder.unwind(_numbered(words))
