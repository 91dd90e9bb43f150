"""What leads into mappings that are to be given back: one look at a process (theory in `giving_back`)."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import RefusedError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.borrowing import StoppedThread
from katana_cc.process.everywhere import Needles, Trace
from katana_cc.process.gadgets import Gadgets
from katana_cc.process.kernel import kept
from katana_cc.process.ledger import Ledger
from katana_cc.process.link import PROT_EXEC, RECORD_SIZE
from katana_cc.process.maps import MemoryMap
from katana_cc.process.proc import status_fields
from katana_cc.process.target import MEMFD_PREFIX, PatchMapping, Target
from katana_cc.process.words import WORD

HIDDEN: Final = " (hidden by glibc)"
_ACTION: Final = 32  # struct kernel_sigaction: handler, flags, restorer, mask
_SECTION: Final = re.compile(r"^\.(text|rodata|data|bss)(\.(unlikely|hot|startup|exit))?\.(?=\w)")
_STACK: Final = 24  # stack_t: sp, flags, size


class Fate(StrEnum):
    """What became of a mapping; values are those of JSON, append-only."""

    GIVEN_BACK = "given back"
    IN_USE = "in use"  # memory, the kernel or another patch leads there
    BUSY = "busy"  # a thread does, as of the last look
    UNKNOWN = "unknown"  # not all can be looked at


@dataclass(frozen=True, slots=True)
class Use:
    """Something that leads into a mapping: `place` is where it is, `thing` what it leads to, for a person.
    `is_passing`: a register or a live stack, which may hold something else in a moment."""

    place: str
    thing: str
    is_passing: bool = False


@dataclass(frozen=True, slots=True)
class Returned:
    """What became of the mapping of one patch, which was not in force.  `patch_id` is empty where a katana died before
    it had written the ledger.  `uses`: what leads there; `why`: what else kept it."""

    patch_id: str
    base: int
    size: int
    fate: Fate
    uses: tuple[Use, ...] = ()
    why: str = ""


@dataclass(slots=True)
class Wanted:
    """A mapping that is to be given back, under way; belongs to `giving_back`."""

    mapping: PatchMapping
    has_frames: bool  # an unwinder may know them
    was_withdrawn: bool = False
    uses: list[Use] = field(default_factory=list)
    why: str = ""
    is_gone: bool = False
    end: int = field(init=False)

    @property
    def ledger(self) -> Ledger | None:
        """Its ledger."""
        return self.mapping.ledger

    def __post_init__(self) -> None:
        # A function at its very end returns to the address behind it.
        end = self.mapping.end
        new = self.ledger.new if self.ledger is not None else ()
        self.end = end + any(r.address + r.size == end for r in new)

    def holds(self, value: int) -> bool:
        """Whether an address is in it."""
        return self.mapping.start <= value < self.end

    def is_of_unwinders(self, value: int) -> bool:
        """Whether an address is one that only unwinders hold, on the heap and in their lists."""
        ledger = self.ledger
        if ledger is None or not ledger.registrations:
            return False
        start, size = ledger.eh_frame
        return start <= value < start + size or any(0 <= value - r.record < RECORD_SIZE for r in ledger.registrations)

    def thing_at(self, value: int) -> str:
        """What is at an address of it, for a person."""
        ledger = self.ledger
        if ledger is None:
            return "it"
        # A return address may be that of a call at the very end of a function.
        for at in (value, value - 1):
            ranges = [(r.name, r.address, r.size) for r in (*ledger.new, *ledger.data)]
            ranges += [(r.name, r.address, r.size) for r in ledger.residents]
            for name, start, size in ranges:
                if start <= at < start + max(size, 1):
                    return _SECTION.sub("", name) + (f"+{value - start:#x}" if value > start else "")
        if self.is_of_unwinders(value):
            return "the frames of its functions"
        return f"{value - self.mapping.base:#x} bytes into it"

    def returned(self) -> Returned:
        """What became of it."""
        if self.is_gone:
            fate = Fate.GIVEN_BACK
        elif self.uses:
            fate = Fate.BUSY if all(u.is_passing for u in self.uses) else Fate.IN_USE
        else:
            fate = Fate.UNKNOWN
        identity = self.ledger.patch_id if self.ledger is not None else ""
        m = self.mapping
        return Returned(identity, m.base, m.end - m.start, fate, tuple(self.uses), self.why)


class RemoteKernel(StoppedThread):
    """A stopped thread that asks the kernel what it keeps for its process."""

    def __init__(self, target: Target, gadgets: Gadgets, tid: int, registers: Sequence[int]) -> None:
        super().__init__(target.memory, gadgets, tid, registers)
        self.gadgets = gadgets
        self._target = target

    def asked(self, size: int, number: int, *before: int, behind: Sequence[int] = ()) -> bytes:
        """What a system call writes to a buffer of that size, whose address is its argument between others.

        Raises:
            RefusedError: it fails.
        """
        with self.scratch(bytes(size)) as address:
            result = self.syscall(number, *before, address, *behind)
            found = self._target.memory.read(address, size)
        if result < 0:
            raise RefusedError(f"system call {number} in the target failed: {os.strerror(-result)}")
        return found


class References:
    """Where other mappings of katana's lead, as far as into those that are wanted.  What was scanned is kept, since a
    stop has no time for it."""

    def __init__(self, target: Target, needles: Needles) -> None:
        self._memory = target.memory
        self._needles = needles
        self._scanned: dict[int, tuple[bytes, list[int]]] = {}

    def of(self, mapping: PatchMapping) -> list[int]:
        """The addresses in wanted mappings that another mapping of ours leads to, by words or by distances in code."""
        data = self._memory.read(mapping.start, mapping.end - mapping.start)
        known = self._scanned.get(mapping.start)
        if known is not None and known[0] == data:
            return known[1]
        found = [trace.value for trace in self._needles.found(data, mapping.start)]
        ledger = mapping.ledger
        low, high = self._needles.plain.ranges[0][0], self._needles.plain.ranges[-1][1]
        for address, size, protection in ledger.parts if ledger is not None else ():
            if protection & PROT_EXEC:
                at = address - mapping.start
                found += [to for _, to in cpu.displaced(data[at : at + size], address, low, high)]
        for edit in ledger.edits if ledger is not None else ():
            found.append(edit.address)
            found += [to for _, to in cpu.displaced(edit.replacement, edit.address, low, high)]
        result = [value for value in dict.fromkeys(found) if self._needles.plain.is_near(value)]
        self._scanned[mapping.start] = data, result
        return result


class Look:
    """What one look finds.

    Args:
        wanted: the mappings that are to be given back, those that are gone left out.
        others: all other mappings of katana's.
        regions: the memory map.
        stacks: (thread id, stack pointer) of each thread of which that is known.
    """

    def __init__(
        self,
        target: Target,
        needles: Needles,
        wanted: Sequence[Wanted],
        others: Sequence[PatchMapping],
        references: References,
        regions: MemoryMap,
        stacks: Sequence[tuple[int, int]],
    ) -> None:
        self._target = target
        self._needles = needles
        self._wanted = wanted
        self._others = others
        self._references = references
        self._regions = regions
        self._owners: dict[int, int] = {}
        for tid, pointer in stacks:
            region = regions.at(pointer)
            if region is not None:
                self._owners.setdefault(region.start, tid)
        self._uses: dict[int, list[Use]] = {}

    @property
    def _left(self) -> list[Wanted]:
        return [w for w in self._wanted if not w.why]

    def note(self, value: int, place: Callable[[], str], *, is_passing: bool = False) -> None:
        """Something holds an address, as it is or as glibc hides it."""
        for trace in self._needles.of(value):
            for w in self._left:
                if w.holds(trace.value):
                    self._add(
                        w, Use(place() + (HIDDEN if trace.is_hidden else ""), w.thing_at(trace.value), is_passing)
                    )

    def _add(self, w: Wanted, use: Use) -> None:
        self._uses.setdefault(w.mapping.start, []).append(use)

    def in_memory(self, trace: Trace, *, is_stopped: bool) -> None:
        """A word of its memory leads somewhere."""
        region = self._regions.at(trace.address)
        owner = self._owners.get(region.start) if region is not None else None
        is_stack = region is not None and (region.path == "[stack]" or owner is not None)
        if not is_stopped and region is not None and not is_stack:
            is_stack = self._regions.is_guarded(region)
        for w in self._left:
            if not w.holds(trace.value) or (not is_stack and w.is_of_unwinders(trace.value)):
                continue
            place = self._named(trace.address, owner) + (HIDDEN if trace.is_hidden else "")
            self._add(w, Use(place, w.thing_at(trace.value), is_stack))

    def in_thread(self, tid: int, words: memoryview, *, is_first: bool) -> None:
        """The registers of a stopped thread, and what signals that wait for it bring along; those of the process with
        the first thread."""
        for trace in self._needles.found(bytes(words), 0):
            index, between = divmod(trace.address, WORD)
            name = "the pc" if index == cpu.PC else cpu.GENERAL_REGISTERS.get(index, f"register {index}")
            if not between:
                self.note(trace.value, lambda name=name: f"thread {tid}, {name}", is_passing=True)  # type: ignore[misc]
        with contextlib.suppress(ProcessLookupError):
            state = pt.read_extended_state(tid)
            for start, end in cpu.ALL_VECTOR_RANGES:
                for trace in self._needles.found(state[start:end], start):
                    self.note(trace.value, lambda: f"thread {tid}, a vector register", is_passing=True)
            self.note(pt.restartable_area(tid), lambda: f"the restartable area of thread {tid}")
            for is_shared in (False, True)[: 1 + is_first]:
                for value in pt.queued_words(tid, is_shared):
                    self.note(value, lambda: "a signal that is queued", is_passing=True)

    def by_kernel(self) -> None:
        """What /proc tells."""
        for word in kept(self._target.pid):
            self.note(word.value, lambda word=word: word.place)  # type: ignore[misc]

    def by_handlers(self, remote: RemoteKernel) -> None:
        """The functions that handle signals."""
        caught = int(status_fields(self._target.pid).get("SigCgt", "0"), 16)
        for number in range(1, 65):
            if caught >> number - 1 & 1:
                data = remote.asked(_ACTION, cpu.SYS_RT_SIGACTION, number, 0, behind=(8,))
                for (value,) in struct.iter_unpack("<Q", data[: _ACTION - 8]):
                    self.note(value, lambda number=number: f"the handler of signal {number}")  # type: ignore[misc]

    def by_alternate_stack(self, remote: RemoteKernel) -> None:
        """The stack that signals of a thread are handled on."""
        data = remote.asked(_STACK, cpu.SYS_SIGALTSTACK, 0)
        start, _, size = struct.unpack("<QQQ", data)
        for value in (start, start + size - 1) if size else ():
            self.note(value, lambda: f"the alternate signal stack of thread {remote.tid}")

    def judge(self) -> list[Wanted]:
        """Note what leads to each mapping; those to which nothing does."""
        left = self._left
        for w in left:
            w.uses = list(dict.fromkeys(self._uses.get(w.mapping.start, ())))
        staying = list(self._others)
        staying += [w.mapping for w in self._wanted if not w.is_gone and (w.why or w.uses)]
        done: set[int] = set()
        while staying:
            mapping = staying.pop()
            if mapping.start in done:
                continue
            done.add(mapping.start)
            is_passing = self._is_passing(mapping)
            for value in self._references.of(mapping):
                for w in left:
                    if w.mapping.start == mapping.start or not w.holds(value) or w.is_of_unwinders(value):
                        continue
                    use = Use(f"{titled(mapping)}, which stays", w.thing_at(value), is_passing)
                    if use not in w.uses:
                        w.uses.append(use)
                    staying.append(w.mapping)
        return [w for w in left if not w.uses]

    def without_use_by(self, staying: Sequence[Wanted], among: Sequence[Wanted]) -> list[Wanted]:
        """Those that are neither among some which stay, nor led to by them."""
        kept = {w.mapping.start for w in staying}
        todo = list(staying)
        while todo:
            values = self._references.of(todo.pop().mapping)
            for w in among:
                if w.mapping.start not in kept and any(w.holds(v) and not w.is_of_unwinders(v) for v in values):
                    kept.add(w.mapping.start)
                    todo.append(w)
        return [w for w in among if w.mapping.start not in kept]

    def _is_passing(self, mapping: PatchMapping) -> bool:
        w = next((w for w in self._wanted if w.mapping.start == mapping.start), None)
        return w is not None and bool(w.uses) and not w.why and all(u.is_passing for u in w.uses)

    def _named(self, address: int, owner: int | None) -> str:
        """Where a word is, for a person."""
        if owner is not None:
            return f"{address:#x} on the stack of thread {owner}"
        region = self._regions.at(address)
        path = region.path if region is not None else ""
        module = next((m for m in self._target.modules if m.start <= address < m.end), None)
        if module is not None:
            return f"{Path(module.path).name}+{address - module.bias:#x}"
        if path.startswith(MEMFD_PREFIX):
            mapping = next((m for m in self._others if m.start <= address < m.end), None)
            return f"{address:#x} in {titled(mapping)}" if mapping is not None else f"{address:#x} in {path}"
        shared = ", shared with others" if region is not None and region.permissions.endswith("s") else ""
        names = {"[heap]": "on the heap", "[stack]": "on the stack of the first thread", "": "in anonymous memory"}
        return f"{address:#x} {names.get(path, f'in {path}')}{shared}"


def titled(mapping: PatchMapping) -> str:
    return f"patch {mapping.ledger.patch_id}" if mapping.ledger is not None else mapping.name
