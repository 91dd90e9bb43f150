"""Functions of the program's that make live objects anew: called in the stop, while no thread runs.

    every thread is stopped    the objects cannot change, and none may be in the C library: a function may allocate
    new objects are filled     with what they begin as; nothing leads to them yet
    functions run              in one thread, one call for all objects of a function, with a time limit
    new objects are read       words in them that lead into old objects lead into the new ones from now on
    commit                     as without functions

So a function that fails, faults or does not end changes nothing: the new objects are memory that nobody uses.  (On the
way back they are the old variables' own places, which get back what they held.)  What a function writes into a part and
what leads into an object that moves is a pointer: it knows no other way to name one.
"""

from __future__ import annotations

import contextlib
import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, NamedTuple

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import BusyError, HookError, KatanaError, RefusedError
from katana_cc.process.borrowing import StoppedThread
from katana_cc.process.calling import MAP_ANONYMOUS, MAP_PRIVATE
from katana_cc.process.carry import Cargo, Carry
from katana_cc.process.follow import Leads, Passage
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.hooks import STACK_SIZE, HookJudge
from katana_cc.process.imports import Linker
from katana_cc.process.ledger import Ledger
from katana_cc.process.link import PAGE, PROT_READ, PROT_WRITE
from katana_cc.process.memory import BulkReader
from katana_cc.process.moves import Made
from katana_cc.process.proc import thread_name
from katana_cc.process.ptrace_binding import REGISTER_WORDS
from katana_cc.process.safepoint import SafePoint
from katana_cc.process.target import Target
from katana_cc.process.threads import Threads
from katana_cc.process.words import WORD

_DONE_AT: Final = 0  # offset of the counter in the scratch memory, the addresses follow


@dataclass(frozen=True, slots=True)
class Part:
    """One object, or part of one, to be made: addresses in the target."""

    name: str
    function: int
    old: int
    new: int
    holder: str


class Handover:
    """What is needed to call such functions in one process.  Made before the stop.

    Args:
        ledger: of the patch, which names its functions.
        kinds: what functions make of objects on the heap, by type, in the direction that is gone.
        timeout: seconds that all objects of one function may take.
    """

    def __init__(self, target: Target, ledger: Ledger, kinds: Mapping[str, tuple[Made, ...]], timeout: float) -> None:
        self._target = target
        self._kinds = kinds
        self._timeout = timeout
        linker = Linker.of(target.memory, target.modules)
        self._safe = SafePoint(target, linker, ())
        self._gadgets = find_gadgets(target.memory, target.regions, target.where)
        self._judge = HookJudge(target, ledger, linker)

    def made(self, threads: Threads, carry: Carry, cargo: Cargo) -> Cargo:
        """The cargo with the objects that functions have made.

        Raises:
            BusyError: a thread is where no function may be called.  Nothing was called.
            HookError: one failed.  Nothing was changed.
        """
        heap = list(self._on_heap(cargo))
        parts = [*parts_of(carry.passages), *(part for o in heap for part in o.parts)]
        if not parts:
            return cargo
        self._refuse_inside(threads)
        memory = self._target.memory
        objects = {address: data for address, data in cargo.objects if _is_made(carry.passages, address)}
        kept = [(address, memory.read(address, len(data))) for address, data in objects.items()]
        own, others = _told_apart(cargo, heap)
        try:
            for address, data in (*objects.items(), *((address, after) for address, _, after in own)):
                memory.write(address, data)
            self._run(threads, parts)
            found = {address: bytearray(memory.read(address, len(data))) for address, data in objects.items()}
        except BaseException:
            with contextlib.suppress(KatanaError):
                for address, data in kept:
                    memory.write(address, data)
            raise
        leads = cargo.leads or carry.leads
        for p in carry.passages:
            if p.made:
                for at, value in self._followed(
                    leads,
                    [_Object(p.name, p.made, p.source, 0, len(found[p.destination]))],
                    bytes(found[p.destination]),
                ):
                    found[p.destination][at : at + WORD] = value
        made = replace(cargo, objects=tuple((a, bytes(found.get(a, d))) for a, d in cargo.objects))
        if cargo.heap is None or not heap:
            return made
        # What functions wrote is there already; what is left is to make its words lead to new objects.
        size = sum(o.size for o in heap)
        data = bytes(BulkReader(memory=memory, capacity=size).read([(o.new, o.size) for o in heap]))
        starts = list(accumulate((o.size for o in heap), initial=0))
        for at, value in self._followed(leads, heap, data):
            number = bisect_right(starts, at) - 1
            others.append((heap[number].new + at - starts[number], data[at : at + WORD], value))
        converted = replace(cargo.heap.converted, writes=tuple(sorted(others)))
        return replace(made, heap=replace(cargo.heap, converted=converted))

    def _on_heap(self, cargo: Cargo) -> Iterator[_Object]:
        """The objects on the heap that functions make, each of an array by itself."""
        if cargo.heap is None:
            return
        types = cargo.heap.reached.types
        for f, block in zip(cargo.heap.placement.objects, cargo.heap.placement.news, strict=True):
            t = types[f.type]
            made = self._kinds.get(t.name, ())
            if not made:
                continue
            if block == f.address:
                raise RefusedError(f"an object of {t.name} would be made where it is", where=self._target.where)
            for n in range(f.elements):
                yield _Object(t.name, made, f.address + n * t.old_size, block + n * t.new_size, t.new_size)

    def _refuse_inside(self, threads: Threads) -> None:
        for i, tid in enumerate(threads.order):
            words = threads.registers[i * REGISTER_WORDS : (i + 1) * REGISTER_WORDS]
            if why := self._safe.why_not(words.tolist()):
                raise BusyError(
                    f"functions of the program have to run while no thread does, and thread {tid} "
                    f"({thread_name(self._target.pid, tid)}) {why}",
                    where=self._target.where,
                    remedy="nothing was touched; wait longer (--wait)",
                )

    def _run(self, threads: Threads, parts: Sequence[Part]) -> None:
        tid = threads.order[0]
        registers = threads.registers[:REGISTER_WORDS].tolist()
        with StoppedThread(self._target.memory, self._gadgets, tid, registers) as remote:
            for function in dict.fromkeys(p.function for p in parts):
                self._call(remote, [p for p in parts if p.function == function])
        for index, value in remote.changes.items():
            threads.set_register(tid, index, value)

    def _call(self, remote: StoppedThread, parts: Sequence[Part]) -> None:
        """Make all parts of one function."""
        memory = self._target.memory
        olds = struct.pack(f"<{len(parts)}Q", *(p.old for p in parts))
        news = struct.pack(f"<{len(parts)}Q", *(p.new for p in parts))
        with self._room(remote, STACK_SIZE) as stack, self._room(remote, WORD + 2 * len(olds)) as scratch:
            remote.syscall(cpu.SYS_MPROTECT, stack, PAGE, 0)
            memory.write(scratch, bytes(WORD) + olds + news)
            at = scratch + WORD
            arguments = at, at + len(olds), len(parts), scratch + _DONE_AT
            end = stack + STACK_SIZE
            with self._judge.errno_kept(remote, end):
                returned = remote.attempt(parts[0].function, end, arguments, self._timeout, self._judge.is_clear)
            (done,) = struct.unpack("<Q", memory.read(scratch + _DONE_AT, WORD))
        _, failure = self._judge.judged("for live objects", returned, self._timeout)
        if failure:
            part = parts[min(done, len(parts) - 1)]
            raise HookError(
                f"{part.name} {failure}, for {part.holder} at {part.old:#x} ({done} of {len(parts)} were made)",
                where=self._target.where,
                remedy="nothing was changed, except by what the function did itself",
            )

    @contextlib.contextmanager
    def _room(self, remote: StoppedThread, size: int) -> Iterator[int]:
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        address = remote.syscall(cpu.SYS_MMAP, 0, size, PROT_READ | PROT_WRITE, flags, -1, 0)
        if -PAGE < address < 0:
            raise RefusedError("mmap in the target failed", where=self._target.where)
        try:
            yield address
        finally:
            remote.syscall(cpu.SYS_MUNMAP, address, size)

    def _followed(self, leads: Leads, objects: Sequence[_Object], data: bytes) -> Iterator[tuple[int, bytes]]:
        """(offset in `data`, what is to stand there) of each word that functions wrote into objects, which lie one
        behind the other in `data`, and that leads into what moves."""
        starts = list(accumulate((o.size for o in objects), initial=0))
        for word in leads.seeker.in_bytes(data, 0, aligned=False):
            number = bisect_right(starts, word.address) - 1
            o, at = objects[number], word.address - starts[number]
            if at % WORD or at + WORD > o.size or not any(m.holds(at) for m in o.made):
                continue
            lead = leads.of(word.value, "void")
            if lead.moved is None:
                raise RefusedError(
                    f"a function wrote a pointer to {lead} ({lead.depth}) into {o.name}, and nothing says where that "
                    "is in the new layout",
                    where=self._target.where,
                )
            if lead.moved != word.value:
                yield word.address, lead.moved.to_bytes(WORD, "little")


class _Object(NamedTuple):
    """An object on the heap that functions make: addresses in the target."""

    name: str
    made: tuple[Made, ...]
    old: int
    new: int
    size: int

    @property
    def parts(self) -> Iterator[Part]:
        """What is to be made of it."""
        for m in self.made:
            for n in range(m.number):
                old, new = m.old + n * m.old_stride, m.new + n * m.new_stride
                yield Part(m.name, m.function, self.old + old, self.new + new, self.name)


_Writes = list[tuple[int, bytes, bytes]]


def _told_apart(cargo: Cargo, heap: Sequence[_Object]) -> tuple[_Writes, _Writes]:
    """The writes to new objects that functions make, cut out of those to other memory."""
    own: _Writes = []
    others: _Writes = []
    ranges = sorted((o.new, o.new + o.size) for o in heap)
    for address, before, after in cargo.heap.converted.writes if cargo.heap is not None else ():
        at, end = address, address + len(after)
        i = max(bisect_right(ranges, (at,)) - 1, 0)
        while i < len(ranges) and ranges[i][0] < end:
            start, stop = ranges[i]
            i += 1
            if stop <= at:
                continue
            cuts = ((others, at, max(at, start)), (own, max(at, start), min(stop, end)))
            for into, first, last in cuts:
                if last > first:
                    cut = slice(first - address, last - address)
                    into.append((first, before[cut], after[cut]))
            at = min(stop, end)
        if at < end:
            others.append((at, before[at - address :], after[at - address :]))
    return own, others


def parts_of(passages: Sequence[Passage]) -> Iterator[Part]:
    """All that functions make, in the order of the passages."""
    for p in passages:
        for m in p.made:
            for n in range(m.number):
                old, new = m.old + n * m.old_stride, m.new + n * m.new_stride
                yield Part(m.name, m.function, p.source + old, p.destination + new, p.name)


def _is_made(passages: Sequence[Passage], address: int) -> bool:
    return any(p.made and p.destination == address for p in passages)
