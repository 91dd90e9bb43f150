"""Giving back the memory of patches that are not in force, once nothing is found that leads there.

Theory of operation.  A patch that was reverted, or whose place another took, leaves a mapping that may still be used:
the program may have stored the address of a function or a literal of it.  Nobody knows what a word means; so any word
that could be such an address counts, wherever it lies.  All of this is looked at with every thread stopped, and the
mapping is taken out in the same stop, by a system call that one of the stopped threads makes:

    memory              what the process can or could write to, at any address, also as glibc hides it (`everywhere`)
    registers           all, of all threads; and the words that queued signals bring along
    the kernel          epoll_data, sigev_value (`kernel`); handlers of signals, alternate stacks: asked by system calls
                        in a stopped thread, since nothing else tells
    other patches       that stay: every word of their mappings, ledgers too, and every distance in their code

A mapping that something leads to stays, and so does what it leads to itself.  What a register or the live part of a
stack holds may be gone in a moment: that is tried again, until the time is up.  A process of which not all can be
looked at (io_uring, devices, memory shared with another process) keeps all.

Unwinders that frames of the patch are registered with hold addresses of these, which is no use of the code.  Frames are
withdrawn between two stops: when the first has found nothing else, at a point where a thread may call the unwinder;
then all is looked at once more.  If something has come up meanwhile, they are registered again.

munmap(2) takes all parts of a mapping at once.  So a katana that is killed leaves it there or gone; where frames were
withdrawn, the ledger says so, and whoever applies the patch again registers them.

What cannot be known is in docs/safety.md, "Giving memory back".
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import BusyError, ExitStatus, KatanaError, RefusedError, TargetError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.everywhere import Hunt, Needles
from katana_cc.process.finishing import finish_all
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.kernel import hiding
from katana_cc.process.ledger import HEADER_SIZE
from katana_cc.process.leftopen import close_left_open
from katana_cc.process.maps import MemoryMap, is_scratch
from katana_cc.process.phases import Bytes
from katana_cc.process.proc import all_waiting, is_dead, status_fields
from katana_cc.process.registration import deregister, may_be_registered, register
from katana_cc.process.sharers import Sharing
from katana_cc.process.standing import standings
from katana_cc.process.standstill import standstill
from katana_cc.process.target import MEMFD_PREFIX, PatchMapping, Target, read_map
from katana_cc.process.threads import Threads
from katana_cc.process.uses import Fate, Look, References, RemoteKernel, Returned, Use, Wanted
from katana_cc.process.waiting import Waiting
from katana_cc.telling import TellWait, silent

_ROUNDS: Final = 5  # over what changed, before each stop
_LITTLE: Final = 1 << 18  # bytes that another round is not worth
_SHARE: Final = 10  # of the time between two stops in which a target runs, as a multiple of the stop
_LEAST_STACK: Final = 2048  # MINSIGSTKSZ: the kernel takes no smaller one
_LARGEST_GUARD: Final = 1 << 16  # before a stack; what glibc keeps free behind an arena is larger
_IN_FORCE: Final = (Bytes.NEW, Bytes.TORN, Bytes.FOREIGN)


@dataclass(frozen=True, slots=True)
class GivingReport:
    """What came of one process: of each mapping that was to be given back, by address.  `pause_us`: how long its
    threads stood in the last stop, of `tries`.  `failure`: why the process could not be looked at."""

    pid: int
    name: str
    mappings: tuple[Returned, ...]
    pause_us: float = 0.0
    tries: int = 0
    failure: str = ""

    @property
    def status(self) -> ExitStatus:
        """What a command ends with that was to give all of them back."""
        if self.failure:
            return ExitStatus.UNREACHABLE
        fates = {m.fate for m in self.mappings}
        if fates & {Fate.IN_USE, Fate.UNKNOWN}:
            return ExitStatus.REFUSED
        return ExitStatus.BUSY if Fate.BUSY in fates else ExitStatus.DONE


def give_memory_back(
    pids: Iterable[int], patch_id: str = "", *, wait: float = 5.0, must_match: bool = True, tell: TellWait = silent
) -> tuple[GivingReport, ...]:
    """Give back, in every process, the mappings of patches that are not in force and that nothing leads to.

    Each process by itself: what one keeps, another may give back.

    Args:
        patch_id: only of the patches whose identity begins so.
        wait: seconds for which it is tried where only threads are in the way.
        must_match: else processes that end meanwhile, or cannot be traced, are left out.

    """
    reports = []
    for pid in dict.fromkeys(pids):
        try:
            with Target(pid) as target:
                report = _give_back(target, patch_id.lower(), wait, tell)
        except KatanaError as error:
            if not must_match and is_dead(pid):
                continue
            report = GivingReport(pid, "?", (), failure=error.what)
        if report.mappings or report.failure or must_match:
            reports.append(report)
    return tuple(reports)


def not_in_force(target: Target, patch_id: str = "") -> list[PatchMapping]:
    """The mappings of a process that no patch in force is in."""
    mappings = target.patches
    found = standings(target.memory, (m.ledger for m in mappings if m.ledger is not None))
    return [
        m
        for m in mappings
        if found.get(m.base) not in _IN_FORCE
        and (m.ledger.patch_id.startswith(patch_id) if m.ledger is not None else not patch_id)
    ]


def _give_back(target: Target, patch_id: str, wait: float, tell: TellWait) -> GivingReport:
    finish_all((target.pid,), wait)  # its journal would go, too
    if not not_in_force(target, patch_id):
        return GivingReport(target.pid, target.name, ())
    target.claim(wait)
    target.refuse_if_traced()
    target.refuse_if_frozen()
    mappings = not_in_force(target, patch_id)  # another katana may have changed it meanwhile
    wanted = [Wanted(m, m.ledger is not None and may_be_registered(target, m.ledger)) for m in mappings]
    attempt = _Attempt(target, wanted, wait, tell)
    why = attempt.hidden()
    try:
        if why:
            for w in wanted:
                w.why = why
        else:
            close_left_open(target)
            attempt.run()
    finally:
        attempt.close()
    return GivingReport(
        target.pid, target.name, tuple(w.returned() for w in wanted), attempt.pause_us, attempt.waiting.tries
    )


class _NewGuardError(BusyError):
    """glibc hides addresses by a word that was not looked for."""


class _ChangedError(BusyError):
    """Another katana is at work."""


class _Attempt:
    """Giving back mappings of one process.

    Attributes:
        pause_us: how long its threads stood in the last stop.
    """

    def __init__(self, target: Target, wanted: Sequence[Wanted], wait: float, tell: TellWait) -> None:
        self._target = target
        self._wanted = wanted
        self._wait = wait
        self.waiting = Waiting(target.pid, target.where, wait, tell=tell)
        self.pause_us = 0.0
        ranges = [(w.mapping.start, w.mapping.end) for w in wanted]
        starts = {start for start, _ in ranges}
        self._needles = Needles((s, e if e in starts else w.end) for w, (s, e) in zip(wanted, ranges, strict=True))
        self._hunt = Hunt(target, self._needles, ranges)
        self._references = References(target, self._needles)
        self._sharing = Sharing(target.pid, ranges[0][0])
        patches = target.patches
        self._others = [m for m in patches if m.start not in starts]
        self._heads = self._heads_of(patches)
        within = [range(start, end) for start, end in ranges]
        elsewhere = MemoryMap(tuple(r for r in target.regions.regions if not any(r.start in each for each in within)))
        self._gadgets = find_gadgets(target.memory, elsewhere, target.where)

    def close(self) -> None:
        """Release what is held of the process."""
        self.waiting.close()
        self._hunt.close()

    def hidden(self) -> str:
        """What of the process cannot be looked at; "" for nothing."""
        if why := hiding(self._target.pid, read_map(self._target.pid)):
            return f"{why}, which may keep addresses that nobody can look at"
        other = self._sharing.found()
        if other:
            return f"process {other} shares its memory"
        return ""

    def _heads_of(self, patches: Sequence[PatchMapping]) -> dict[int, bytes]:
        """What another katana changes first, whatever it does."""
        return {m.base: self._target.memory.read(m.base, HEADER_SIZE) for m in patches}

    def _refuse_other_katana(self, regions: MemoryMap) -> None:
        ours = [r for r in regions.regions if r.path.startswith(MEMFD_PREFIX) and not is_scratch(r)]
        there = [*self._others, *(w.mapping for w in self._wanted if not w.is_gone)]
        is_as_before = sorted(m.start for m in there) == [r.start for r in ours if not r.offset]
        if not is_as_before or any(self._heads[base] != head for base, head in self._heads_of(there).items()):
            raise _ChangedError("another katana is at work in the process", where=self._target.where)

    @property
    def _left(self) -> list[Wanted]:
        return [w for w in self._wanted if not w.is_gone and not w.why]

    def _look(self, regions: MemoryMap, stacks: Sequence[tuple[int, int]]) -> Look:
        there = [w for w in self._wanted if not w.is_gone]
        return Look(self._target, self._needles, there, self._others, self._references, regions, stacks)

    def run(self) -> None:
        """Until all are gone, or stay for good, or the time is up."""
        try:
            self._run()
        finally:
            with contextlib.suppress(KatanaError):
                self._restore(is_last=True)

    def _run(self) -> None:
        while True:
            self._look_ahead()
            hopeful = [w for w in self._left if all(u.is_passing for u in w.uses)]
            if not hopeful:
                return
            self.waiting.tries += 1
            begun = time.perf_counter_ns()
            try:
                clear = self._in_stop()
            except _NewGuardError:
                self._hunt.begin_anew()
                continue
            except (_ChangedError, RefusedError) as error:
                for w in self._left:
                    w.why = error.what
                return
            except BusyError as error:
                clear = []
                for w in hopeful:
                    w.uses = w.uses or [Use(error.what, "", is_passing=True)]
            self._restore()
            if sum(self._withdraw(w) for w in clear):
                continue
            passing = [w for w in self._left if w.uses and all(u.is_passing for u in w.uses)]
            if not passing:
                return
            self.waiting.lengthen(_SHARE * (time.perf_counter_ns() - begun) / 1e9)
            self.waiting.tell(f"{passing[0].uses[0].place} leads to {passing[0].uses[0].thing}")
            if not self.waiting.again():
                return

    def _look_ahead(self) -> None:
        """Search all there is while the process runs.  What is surely no thread's counts as found."""
        before = 0
        for m in self._others:
            self._references.of(m)
        for _ in range(_ROUNDS):
            regions = read_map(self._target.pid)
            traces = self._hunt.look(regions, ())
            if self._hunt.searched <= _LITTLE or 0 < before <= 2 * self._hunt.searched:
                break
            before = self._hunt.searched
        look = self._look(regions, [(tid, pointer) for tid, pointer, _ in all_waiting(self._target.pid)])
        for trace in traces:
            look.in_memory(trace, is_stopped=False)
        look.by_kernel()
        look.judge()

    def _in_stop(self) -> list[Wanted]:
        """One stop: what nothing leads to is taken out.

        Returns: those to which nothing but unwinders leads.

        Raises:
            BusyError: the process does not stop.
        """
        threads = Threads(self._target.pid)
        try:
            with standstill(threads, self._target.where):
                return self._judged(threads)
        finally:
            self.pause_us = (time.perf_counter_ns() - threads.stopped_at) / 1000

    def _judged(self, threads: Threads) -> list[Wanted]:
        if self._needles.learn(_guards(self._target, threads)):
            raise _NewGuardError("another word hides addresses", where=self._target.where)
        if why := self.hidden():
            for w in self._left:
                w.why = why
            return []
        regions = read_map(self._target.pid)
        self._refuse_other_katana(regions)
        stacks = [(tid, _row(threads, i)[cpu.SP]) for i, tid in enumerate(threads.order)]
        look = self._look(regions, stacks)
        for w in self._left:
            if why := _not_whole(regions, w.mapping):
                w.why = why
        for i, tid in enumerate(threads.order):
            look.in_thread(tid, _row(threads, i), is_first=i == 0)
        for trace in self._hunt.look(regions, _own_stacks(self._target.pid, threads, regions)):
            look.in_memory(trace, is_stopped=True)
        look.by_kernel()
        clear = look.judge()
        if not clear:
            return []
        if any(_may_be_stack(w) for w in clear):
            for i in range(len(threads.order)):
                with self._one(threads, i, regions) as remote:
                    look.by_alternate_stack(remote)
        first = next((i for i in range(len(threads.order)) if self._is_fit(threads, i)), 0)
        with self._one(threads, first, regions) as remote:
            look.by_handlers(remote)
            clear = look.judge()
            for w in look.without_use_by([w for w in clear if w.has_frames], clear):
                _unmap(remote, w)
            on = [p for i in range(len(threads.order)) for p in (_row(threads, i)[cpu.SP], _row(threads, i)[cpu.PC])]
            for r in filter(is_scratch, regions.regions):
                if not any(r.start <= p < r.end for p in on):
                    remote.syscall(cpu.SYS_MUNMAP, r.start, r.size)
        return [w for w in clear if w.has_frames]

    def _is_fit(self, threads: Threads, i: int) -> bool:
        return not threads.is_starting(threads.order[i]) and cpu.runs_supported_code(_row(threads, i))

    @contextlib.contextmanager
    def _one(self, threads: Threads, i: int, regions: MemoryMap) -> Iterator[RemoteKernel]:
        """One of the stopped threads, to make system calls with.

        Raises:
            BusyError: it can make none where it is.
            RefusedError: seccomp may forbid them.
        """
        tid = threads.order[i]
        if not self._is_fit(threads, i):
            raise BusyError(f"thread {tid} can make no system call where it is", where=self._target.where)
        if status_fields(self._target.pid, tid).get("Seccomp", "0").strip() != "0":
            try:
                pt.set_options(tid, pt.O_TRACECLONE | pt.O_TRACESYSGOOD | pt.O_SUSPEND_SECCOMP)
            except OSError:
                raise RefusedError(
                    "the process runs under seccomp, which could kill it for our system calls",
                    where=self._target.where,
                    remedy="run katana as root (CAP_SYS_ADMIN), which may suspend seccomp for a moment",
                ) from None
        gadgets = replace(self._gadgets, regions=regions)
        remote = RemoteKernel(self._target, gadgets, tid, _row(threads, i).tolist())
        with remote:
            yield remote
        for index, value in remote.changes.items():
            threads.set_register(tid, index, value)

    def _withdraw(self, w: Wanted) -> bool:
        """Take frames out of the unwinders; whether that was done."""
        assert w.ledger is not None
        left = max(0.0, self.waiting.deadline - time.monotonic())
        try:
            deregister(self._target, w.ledger, left)
        except BusyError as error:
            w.uses = [Use(error.what, "the frames of its functions", is_passing=True)]
            return False
        except RefusedError as error:
            w.why = error.what
            return False
        w.has_frames, w.was_withdrawn = False, True
        self._heads = self._heads_of([m for m in self._target.patches if m.base in self._heads])
        return True

    def _restore(self, *, is_last: bool = False) -> None:
        """Make frames known again of what something leads to after all, or that stays."""
        for w in self._wanted:
            if w.was_withdrawn and not w.is_gone and (w.uses or is_last) and w.ledger is not None:
                with contextlib.suppress(BusyError, RefusedError):
                    register(self._target, w.ledger, self._wait)
                    w.has_frames, w.was_withdrawn = True, False
                    self._heads = self._heads_of([m for m in self._target.patches if m.base in self._heads])


def _unmap(remote: RemoteKernel, w: Wanted) -> None:
    """All parts by one system call."""
    result = remote.syscall(cpu.SYS_MUNMAP, w.mapping.start, w.mapping.end - w.mapping.start)
    if result < 0:
        w.why = f"munmap failed: {os.strerror(-result)}"
    else:
        w.is_gone = True


def _may_be_stack(w: Wanted) -> bool:
    """Whether a variable of a patch has room for a stack."""
    return w.ledger is None or any(d.size >= _LEAST_STACK for d in w.ledger.data)


def _row(threads: Threads, i: int) -> memoryview:
    return threads.registers[i * pt.REGISTER_WORDS : (i + 1) * pt.REGISTER_WORDS]


def _guards(target: Target, threads: Threads) -> list[int]:
    """The words by which glibc hides addresses in these threads."""
    found: list[int] = []
    at = cpu.POINTER_GUARD
    for i in range(len(threads.order)) if at is not None else ():
        with contextlib.suppress(TargetError):
            pointer = _row(threads, i)[cpu.THREAD_POINTER]
            found.append(int.from_bytes(target.memory.read(pointer + (at or 0), 8), "little"))
    return found


def _own_stacks(pid: int, threads: Threads, regions: MemoryMap) -> list[tuple[int, int]]:
    """(thread id, stack pointer) of the threads that are surely on the stacks which they were born with: below is
    nothing that lives.  Another thread may be on one that malloc gave, where anything may lie below."""
    result = []
    for i, tid in enumerate(threads.order):
        pointer, thread = _row(threads, i)[cpu.SP], _row(threads, i)[cpu.THREAD_POINTER]
        region = regions.at(pointer)
        if region is None:
            continue
        guard = regions.at(region.start - 1)
        is_made = guard is not None and guard.permissions.startswith("---") and guard.size <= _LARGEST_GUARD
        if region.path == "[stack]" if tid == pid else is_made and pointer < thread < region.end:
            result.append((tid, pointer))
    return result


def _not_whole(regions: MemoryMap, mapping: PatchMapping) -> str:
    """Why a mapping cannot be taken out as it is: the process has put something else there, or taken a part."""
    end = mapping.start
    first = regions.at(mapping.start)
    while end < mapping.end:
        region = regions.at(end)
        if region is None or first is None or (region.inode, region.device) != (first.inode, first.device):
            return "the process has changed what is mapped there"
        end = region.end
    return "" if end == mapping.end else "the process has changed what is mapped there"
