"""The commit: stop the process, check, write, let go.  The same for applying and reverting.

All that is slow is done before.  Inside the stop only this happens:

    stop all threads → registers → is a thread inside, or a coroutine? → are the bytes still the expected ones? →
    what do the variables that move hold, and what leads to them? →
    state word, variables, words and registers, edits, state word → re-enter interrupted system calls → detach

Where live data moves, threads are held meanwhile: a katana that is killed leaves it whole (theory in `holding`).

That it was done is kept in the same instant (`Outcome`): whatever happens behind the last write, be it a signal or want
of memory, must find known what was written, or what the target now uses would be taken from it.

When a thread is inside, or does not stop, or a register or a stack holds what nothing explains, everything is let go
and tried again later (theory in `waiting`), until the time is up; nothing has been touched then.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from katana_cc.dwarf.unwind import Unwinder
from katana_cc.errors import BusyError, RefusedError, TargetError
from katana_cc.process import ledger as ledgers
from katana_cc.process.activity import Activity, DeepStacksError, Finder, Guard, describe
from katana_cc.process.carry import Cargo, Carry
from katana_cc.process.guardian import guarded
from katana_cc.process.handover import Handover
from katana_cc.process.holding import Hold
from katana_cc.process.ledger import MemoryEdit
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.objections import HeapError, StrayWordsError, judge
from katana_cc.process.phases import Phase, Step, step
from katana_cc.process.priority import first_in_line, spared, undisturbed
from katana_cc.process.proc import all_waiting, thread_name
from katana_cc.process.ptrace_binding import REGISTER_WORDS
from katana_cc.process.registers import RegisterWord, leading
from katana_cc.process.registers import write as write_registers
from katana_cc.process.rehearsal import Rehearsal, UnevenError
from katana_cc.process.script import Script, Write, script
from katana_cc.process.stacks import expected_size
from katana_cc.process.suspended import Suspects, SwitchingSeenError
from katana_cc.process.switching import Coroutines
from katana_cc.process.target import Target, read_map
from katana_cc.process.threads import Threads
from katana_cc.process.uncollected import uncollected
from katana_cc.process.waiting import Waiting
from katana_cc.process.words import Seeker
from katana_cc.telling import TellWait, silent

_BUFFER = 1 << 20
_SHARE = 10  # of the time between two stops in which a target runs, as a multiple of the stop


@dataclass(frozen=True, slots=True)
class Commit:
    """What to do in the stop.

    `snapshot`: (address, bytes) that must still be there.  `resets`: (address, bytes) written before the edits, without
    comparison: the writable part of a patch that is applied once more.  `carry`: the variables that move;
    `handover`: what calls functions of the program's that make some of them.  `entries`: the addresses of the function
    that a thread has to enter first, which the user calls `named`.  `leaving`: the ledgers, by base and state, of
    patches that go as this one comes.  `coroutines`: what the user says of them.  `is_trial`: everything but to write.
    """

    ledger_base: int
    phase: Phase
    begin: Step
    end: Step
    guards: tuple[Guard, ...]
    snapshot: tuple[tuple[int, bytes], ...]
    edits: tuple[MemoryEdit, ...]
    resets: tuple[tuple[int, bytes], ...] = ()
    carry: Carry | None = None
    handover: Handover | None = None
    entries: tuple[int, ...] = ()
    named: str = ""
    leaving: tuple[tuple[int, Phase], ...] = ()
    coroutines: Coroutines = Coroutines.FIND_OUT
    is_trial: bool = False


@dataclass(frozen=True, slots=True)
class CommitReport:
    """How it went.  `pause_us`: from the first thread being stopped to the last running again; `attach_us`: from the
    first being traced; both of the last try.  `repaired`: system calls entered again.  `cargo`: what became of the
    variables that moved, None when there were none."""

    threads: int
    tries: int
    pause_us: float
    attach_us: float
    repaired: int
    cargo: Cargo | None = None


@dataclass(slots=True)
class Outcome:
    """Whether a commit was done, which an exception behind its last write does not tell: None as long as it was not."""

    report: CommitReport | None = None


def run(
    target: Target,
    commit: Commit,
    make_unwinder: Callable[[], Unwinder],
    wait: float,
    outcome: Outcome,
    tell: TellWait = silent,
) -> None:
    """Commit, waiting up to `wait` seconds for a moment when no thread is inside.

    `outcome` gets its report once it is done.  An exception that has nothing to do with it may follow
    (KeyboardInterrupt, MemoryError): whether there is a report says whether the commit was done.
    `tell` hears between two tries, when nothing is stopped, what stands in the way.

    Raises:
        BusyError: there was none; names thread, function and frame.
        RefusedError: the expected bytes are no longer there, or variables may not move as they are.
        TargetError: the process died, or is traced.
    """
    bulk = BulkReader(memory=target.memory, capacity=_BUFFER)
    finder = Finder(commit.guards, bulk, make_unwinder)
    rehearsal = Rehearsal(target, commit.carry) if commit.carry is not None else None
    prepared = script(target.memory, commit.snapshot, commit.edits)
    waiting = Waiting(target.pid, target.where, wait, commit.entries, commit.named, tell)
    suspects = Suspects(target, commit.guards, finder, commit.coroutines)
    try:
        if rehearsal is not None:
            with guarded(target.pid), Hold(target) as hold:
                _try(target, commit, prepared, finder, bulk, rehearsal, suspects, waiting, outcome, hold)
            return
        # All of it, since a moment may have to be caught: tries of a patch of code leave nothing to collect.
        with uncollected():
            _try(target, commit, prepared, finder, bulk, rehearsal, suspects, waiting, outcome)
    finally:
        waiting.close()
        suspects.close()
        if rehearsal is not None:
            rehearsal.close()


def _try(
    target: Target,
    commit: Commit,
    prepared: Script,
    finder: Finder,
    bulk: BulkReader,
    rehearsal: Rehearsal | None,
    suspects: Suspects,
    waiting: Waiting,
    outcome: Outcome,
    hold: Hold | None = None,
) -> None:
    cargo = None
    failure: BusyError | StrayWordsError | HeapError
    if hold is not None:
        hold.make_room()
    if rehearsal is not None:
        rehearsal.prepare()
    suspects.prepare()
    regions = read_map(target.pid)
    bulk.make_room(expected_size(target.pid, regions))
    finder.rehearse(target.pid, all_waiting(target.pid), regions)
    waiting.before_first()
    while True:
        waiting.tries += 1
        who = ""
        begun = ended = 0
        threads = Threads(target.pid)
        if rehearsal is not None:
            gc.collect()  # a look leaves much
        try:
            suspects.refuse_early(waiting)
            with uncollected(), undisturbed(), first_in_line(), spared():
                begun = time.perf_counter_ns()
                try:
                    threads.seize()
                    threads.stop()
                    threads.read_registers()
                    if not threads.order:
                        raise TargetError("the process died", where=target.where)  # killed since it stopped
                    count = len(threads.order)
                    reread = _map_reader(target.pid)
                    try:
                        busy = finder.find(target.pid, threads.order, threads.registers, regions, reread)
                        if busy is None:
                            suspects.look(waiting)
                            writes = _compared(target, commit, prepared, bulk)
                            if commit.carry is not None and rehearsal is not None:
                                cargo = _cargo(commit.carry, rehearsal, threads, finder)
                                if commit.handover is not None:
                                    cargo = commit.handover.made(threads, commit.carry, cargo)
                            report = CommitReport(count, waiting.tries, 0.0, 0.0, 0, cargo)
                            if not commit.is_trial:
                                _write(target, commit, writes, threads, cargo, hold)
                            outcome.report = report  # for which no memory is needed any more
                        else:
                            waiting.found_inside(threads.order, threads.registers, finder, busy)
                    finally:
                        # Also where it is refused: the program must not notice.
                        repaired = threads.repair_system_calls(waiting.timers, outcome.report is not None)
                finally:
                    threads.release()
                    ended = time.perf_counter_ns()
                    if hold is not None:
                        hold.end()
                if busy is None:
                    pauses = (ended - threads.stopped_at) / 1000, (ended - begun) / 1000
                    outcome.report = CommitReport(count, waiting.tries, *pauses, repaired, cargo)
            if busy is None:
                return
            who = describe(busy, thread_name(target.pid, busy.tid))
            failure = _busy_error(target, commit, busy, who, waiting)
        except DeepStacksError:
            finder.study()
            regions = read_map(target.pid)
            continue
        except SwitchingSeenError:
            suspects.prepare()
            regions = read_map(target.pid)
            continue
        except BusyError as error:
            failure = error
        except StrayWordsError as error:
            if not error.is_passing:
                raise
            failure = error
        except HeapError as error:
            failure = error
        if commit.carry is not None or suspects.is_on:
            # Where a look takes long, the target shall run most of the time.
            waiting.lengthen(_SHARE * (ended - begun) / 1e9)
        waiting.tell(who or failure.what)
        suspects.prepare()  # now: a moment that is waited for is short
        if not waiting.again():
            if rehearsal is None or rehearsal.is_whole or not isinstance(failure, UnevenError):
                raise failure
            rehearsal.look_at_the_whole()
        if hold is not None:
            hold.make_room()
        if rehearsal is not None:
            rehearsal.prepare()
        regions = read_map(target.pid)


def _map_reader(pid: int) -> Callable[[], MemoryMap]:
    return lambda: read_map(pid)


def _cargo(carry: Carry, rehearsal: Rehearsal, threads: Threads, finder: Finder) -> Cargo:
    """What is to be written of the variables that move; refuses when they may not."""
    if carry.objects is not None:
        rows = range(0, len(threads.order) * REGISTER_WORDS, REGISTER_WORDS)
        words = [threads.registers[at : at + REGISTER_WORDS].tolist() for at in rows]
        carry.objects.refuse_inside(list(zip(threads.order, words, strict=True)))

    def registers(seeker: Seeker) -> Iterator[RegisterWord]:
        return leading(threads.order, threads.registers, seeker)

    cargo = rehearsal.look(finder.lowest, registers)
    judge(carry, cargo)
    return cargo


def _compared(target: Target, commit: Commit, prepared: Script, bulk: BulkReader) -> Sequence[Write]:
    """What is to be written; raises RefusedError where other bytes are than when the patch was prepared."""
    if bytes(bulk.read(prepared.ranges)) == prepared.expected:
        return prepared.writes
    # Something beside them may have changed, which is none of ours.
    found = bytes(bulk.read([(address, len(data)) for address, data in commit.snapshot]))
    at = 0
    for address, data in commit.snapshot:
        if found[at : at + len(data)] != data:
            raise RefusedError(
                f"the memory at {address:#x} changed while the patch was prepared",
                where=target.where,
                remedy="try again; if it stays so, another tool is writing to the process",
            )
        at += len(data)
    return [Write(e.address, e.expected, e.replacement) for e in commit.edits]


def _write(
    target: Target,
    commit: Commit,
    writes: Sequence[Write],
    threads: Threads,
    cargo: Cargo | None,
    hold: Hold | None,
) -> None:
    """The only place where a target's own code and data is changed."""
    memory, tid = target.memory, threads.order[0]
    state = commit.ledger_base + ledgers.STATE_OFFSET
    phase = step(commit.phase, commit.begin)
    leaving = [
        (base + ledgers.STATE_OFFSET, before, step(before, Step.BEGIN_REVERT)) for base, before in commit.leaving
    ]
    first = [(at, ledgers.encode_state(going)) for at, _, going in leaving]
    first += [(state, ledgers.encode_state(phase)), *commit.resets]
    last = [(state, ledgers.encode_state(step(phase, commit.end)))]
    last += [(at, ledgers.encode_state(step(going, Step.END_REVERT))) for at, _, going in leaving]
    changes = _changes(cargo)
    moved = [*(cargo.objects if cargo is not None else ()), *((address, after) for address, _, after in changes)]
    done = [(at, ledgers.encode_state(before)) for at, before, _ in leaving]
    done.append((state, ledgers.encode_state(commit.phase)))
    try:
        if hold is not None and cargo is not None:
            pieces = [*first, *moved, *((w.address, w.after) for w in writes), *last]
            hold.begin(threads, commit.ledger_base, pieces, cargo.registers)
        for address, data in first:
            memory.write(address, data, tid)
        if cargo is not None:
            done += [(address, memory.read(address, len(data))) for address, data in cargo.objects]
            done += [(address, before) for address, before, _ in changes]
            memory.write_many(moved, tid)
            write_registers(threads, cargo.registers)
        for write in writes:
            done.append((write.address, write.before))
            memory.write(write.address, write.after, tid)
        for address, data in last:
            memory.write(address, data, tid)
        if hold is not None:
            hold.written(threads)
    except BaseException:
        # Whatever it was, also want of memory: it counts as not done.
        _undo(target, done, tid)
        if cargo is not None:
            write_registers(threads, ((register, register.value) for register, _ in cargo.registers))
        if hold is not None:
            hold.written(threads)
        raise


def _changes(cargo: Cargo | None) -> Sequence[tuple[int, bytes, bytes]]:
    """(address, what is there, what is to be written) of words and of objects on the heap."""
    if cargo is None:
        return ()
    return (*(cargo.heap.converted.writes if cargo.heap is not None else ()), *cargo.words)


def _undo(target: Target, done: Sequence[tuple[int, bytes]], tid: int) -> None:
    for address, data in reversed(done):
        with contextlib.suppress(TargetError):
            target.memory.write(address, data, tid)


def _busy_error(target: Target, commit: Commit, busy: Activity, who: str, waiting: Waiting) -> BusyError:
    may = any(g.name == busy.function and g.allowable and not g.allowed for g in commit.guards)
    remedy = "nothing was touched; wait longer (--wait)"
    if never_left := waiting.never_left():
        names = ", ".join(never_left)
        remedy = f"nothing was touched; on a stack at every look: {names}; wait longer (--wait)"
    if may:
        remedy += f", or let it be active: --allow-active {busy.function}"
    return BusyError(
        f"no safe moment in {waiting.tries} tries over {waiting.limit:g} s: {who}",
        where=target.where,
        remedy=remedy,
    )
