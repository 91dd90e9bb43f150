"""Which replaced functions are on stacks, told of a process that runs on: nothing is stopped.

A thread that waits tells its stack pointer and instruction pointer in /proc/PID/task/TID/syscall; one that runs is
sampled by the kernel's timer (`perf`), with registers and the end of its stack.  Both are unwound as in a stop.  Of a
thread that waits no other registers are known: where the unwinding needs one that was not saved on the way, what lies
beyond is searched for return addresses, and a hit counts, as it would in the stop.

    for so long:   every 20 ms, each thread that waits; every 5 ms of its own time, each that runs
    a function is  always on a stack   if some thread was inside of it at every look at that thread
                   now and then        if one was, at some look
                   never               else

A thread that neither waits nor is sampled, since perf is forbidden, is counted, and the forecast says so.  It is no
more than that: what a function does once an hour no short look shows.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.dwarf.unwind import Backtrace, Unwinder
from katana_cc.errors import TargetError
from katana_cc.process.activity import Finder, Guard
from katana_cc.process.cfi import FrameTables
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader, Reader
from katana_cc.process.perf import Sample, Sampler
from katana_cc.process.proc import list_threads, thread_name, waiting_at
from katana_cc.process.suspended import Suspended, suspended
from katana_cc.process.switching import find_switching, is_used
from katana_cc.process.target import Target

SECONDS: Final = 0.5
_PERIOD: Final = 0.02
_RUNNING_PERIOD: Final = 0.005
_MOST_SAMPLED: Final = 64  # threads at once, each with a buffer
_STACK_LIMIT: Final = 1 << 20
_WORD: Final = 8


@dataclass(frozen=True, slots=True)
class Presence:
    """How often a function was on a stack of the thread that was inside most often: `looks` at that thread, `seen` of
    them inside."""

    function: str
    tid: int
    comm: str
    seen: int
    looks: int

    @property
    def is_constant(self) -> bool:
        """Whether it was never off that stack."""
        return self.seen == self.looks > 1


@dataclass(frozen=True, slots=True)
class Forecast:
    """`present` are the replaced functions that were on a stack, the most constant first; `threads` were looked at,
    `unseen` ran all the time and could not be sampled.  `switchers` are functions by which the program switches stacks;
    where there are some, `suspended` are the functions that may be on a stack that no thread runs on."""

    seconds: float
    threads: int
    unseen: int
    present: tuple[Presence, ...]
    switchers: tuple[str, ...] = ()
    suspended: tuple[Suspended, ...] = ()

    @property
    def constant(self) -> tuple[Presence, ...]:
        """Those that were never off a stack: waiting alone will hardly help."""
        return tuple(p for p in self.present if p.is_constant)


class _Overlay:
    """Memory as of a sample: its bytes of the stack, else what is there now."""

    def __init__(self, memory: Reader) -> None:
        self._memory = memory
        self.start = 0
        self.data = b""

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes."""
        at = address - self.start
        if at >= 0 and at + size <= len(self.data):
            return self.data[at : at + size]
        return self._memory.read(address, size)


def forecast(target: Target, guards: Sequence[Guard], seconds: float = SECONDS) -> Forecast:
    """Look at the threads of a process for so long.

    Raises:
        TargetError: it is gone.
    """
    ledgers = [m.ledger for m in target.patches if m.ledger is not None]
    tables = FrameTables(target.memory, target.modules, ledgers)
    tables.preload(target.modules)
    overlay = _Overlay(target.memory)
    unwinder = Unwinder(tables.find, overlay.read, cpu.DWARF)
    finder = Finder(guards, BulkReader(target.memory, 1 << 16), lambda: unwinder)
    looks: Counter[int] = Counter()
    inside: defaultdict[tuple[int, str], int] = defaultdict(int)

    def count(tid: int, functions: set[str]) -> None:
        looks[tid] += 1
        for function in functions:
            inside[tid, function] += 1

    sampler = Sampler(_RUNNING_PERIOD)
    refused: set[int] = set()
    threads: set[int] = set()
    deadline = time.monotonic() + seconds
    try:
        while True:
            now = list_threads(target.pid)
            if not now:
                raise TargetError("the process is gone", where=target.where)
            threads.update(now)
            regions = target.read_map()
            for tid in now:
                words = _waiting_at(target.pid, tid)
                if words is None:
                    if not (sampler.count < _MOST_SAMPLED and sampler.add(tid)):
                        refused.add(tid)
                    continue
                registers, stack = words, _stack(target, regions, words[cpu.DWARF.stack_pointer])
                found = _functions(finder, unwinder, overlay, registers, stack)
                if _waiting_at(target.pid, tid) == words:  # else it has gone on, and its stack with it
                    count(tid, found)
            for sample in sampler.take():
                count(sample.tid, _functions(finder, unwinder, overlay, _numbered(sample), sample.stack))
            if time.monotonic() >= deadline:
                break
            time.sleep(_PERIOD)
    finally:
        sampler.close()
    best: dict[str, Presence] = {}
    for (tid, function), seen in inside.items():
        presence = Presence(function, tid, thread_name(target.pid, tid), seen, looks[tid])
        if function not in best or _weight(presence) > _weight(best[function]):
            best[function] = presence
    present = sorted(best.values(), key=lambda p: (-_weight(p)[0], p.function))
    switching = find_switching(target)
    names = switching.names if switching.names and is_used(target, switching) else ()
    elsewhere = suspended(target, guards, finder, switching) if names else ()
    return Forecast(seconds, len(threads), len(refused - set(looks)), tuple(present), names, elsewhere)


def _weight(presence: Presence) -> tuple[float, int]:
    return presence.seen / presence.looks, presence.looks


def _waiting_at(pid: int, tid: int) -> dict[int, int] | None:
    """DWARF-numbered stack pointer and pc of a thread that waits; None when it runs, or is gone."""
    place = waiting_at(pid, tid)
    return None if place is None else {cpu.DWARF.stack_pointer: place[0], cpu.DWARF.pc: place[1]}


def _numbered(sample: Sample) -> dict[int, int]:
    return {n: sample.registers[r] for n, r in enumerate(cpu.DWARF.order)}


def _stack(target: Target, regions: MemoryMap, pointer: int) -> bytes:
    """The stack from a pointer on, as far as it can be read."""
    region = regions.at(pointer)
    if region is None:
        return b""
    try:
        return target.memory.read(pointer, min(region.end - pointer, _STACK_LIMIT))
    except TargetError:
        return b""


def _functions(
    finder: Finder, unwinder: Unwinder, overlay: _Overlay, registers: Mapping[int, int], stack: bytes
) -> set[str]:
    """The guarded functions on one stack."""
    overlay.start, overlay.data = registers[cpu.DWARF.stack_pointer], stack
    trace = unwinder.unwind(registers)
    found = {guard.name for guard in finder.guards_of(trace) if guard is not None}
    if not trace.is_complete:
        found |= _beyond(finder, trace, overlay)
    return found


def _beyond(finder: Finder, trace: Backtrace, overlay: _Overlay) -> set[str]:
    """The guarded functions that words beyond the end of an unwind lead back into."""
    start = max((f.cfa for f in trace.frames), default=0)
    skipped = max(0, start - overlay.start - _WORD) & -_WORD
    data = overlay.data[skipped : len(overlay.data) & -_WORD]
    found = (finder.guard_of_return(word) for word in memoryview(data).cast("Q"))
    return {guard.name for guard in found if guard is not None}
