"""The commit: stop the process, check, write, let go.  The same for applying and reverting.

All that is slow is done before.  Inside the stop only this happens:

    stop all threads → registers → is a thread inside? → are the bytes still the expected ones? →
    state word, edits, state word → re-enter interrupted system calls → detach

When a thread is inside, or does not stop, everything is let go and tried again after a pause, until the time is up;
nothing has been touched then.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from katana_cc.dwarf.unwind import Unwinder
from katana_cc.errors import BusyError, RefusedError, TargetError
from katana_cc.process import ledger as ledgers
from katana_cc.process.activity import Activity, Finder, Guard, describe
from katana_cc.process.ledger import MemoryEdit
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.phases import Phase, Step, step
from katana_cc.process.priority import first_in_line
from katana_cc.process.target import Target, read_map
from katana_cc.process.threads import Threads, thread_name

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Commit:
    """What to do in the stop.

    `snapshot`: (address, bytes) that must still be there.  `resets`: (address, bytes) written before the edits, without
    comparison: the writable part of a patch that is applied once more.
    """

    ledger_base: int
    phase: Phase
    begin: Step
    end: Step
    guards: tuple[Guard, ...]
    snapshot: tuple[tuple[int, bytes], ...]
    edits: tuple[MemoryEdit, ...]
    resets: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class CommitReport:
    """How it went.  `pause_us`: from the first thread being stopped to the last running again; `attach_us`: from the
    first being traced; both of the last try.  `repaired`: system calls entered again."""

    threads: int
    tries: int
    pause_us: float
    attach_us: float
    repaired: int


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection and no catchable signal may stretch the stop, or end us within it."""
    everything = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, everything)
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(target: Target, commit: Commit, make_unwinder: Callable[[], Unwinder], wait: float) -> CommitReport:
    """Commit, waiting up to `wait` seconds for a moment when no thread is inside.

    Raises:
        BusyError: there was none; names thread, function and frame.
        RefusedError: the expected bytes are no longer there.
        TargetError: the process died, or is traced.
    """
    bulk = BulkReader(memory=target.memory, capacity=_BUFFER)
    finder = Finder(commit.guards, bulk, make_unwinder)
    deadline = time.monotonic() + wait
    tries = 0
    pause = _FIRST_PAUSE
    while True:
        tries += 1
        threads = Threads(target.pid)
        regions = read_map(target.pid)
        try:
            with _undisturbed(), first_in_line():
                begun = time.perf_counter_ns()
                try:
                    threads.seize()
                    threads.stop()
                    count = len(threads.order)
                    threads.read_registers()
                    reread = _map_reader(target.pid)
                    busy = finder.find(target.pid, threads.order, threads.registers, regions, reread)
                    if busy is None:
                        _write(target, commit, bulk, threads.order[0])
                    repaired = threads.repair_system_calls()
                finally:
                    threads.release()
                    ended = time.perf_counter_ns()
            if busy is None:
                return CommitReport(count, tries, (ended - threads.stopped_at) / 1000, (ended - begun) / 1000, repaired)
            failure = _busy_error(target, commit, busy, tries, wait)
        except BusyError as error:
            failure = error
        if time.monotonic() + pause > deadline:
            raise failure
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _map_reader(pid: int) -> Callable[[], MemoryMap]:
    return lambda: read_map(pid)


def _write(target: Target, commit: Commit, bulk: BulkReader, tid: int) -> None:
    """Compare, and write: the only place where a target's own code is changed."""
    memory = target.memory
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
    phase = step(commit.phase, commit.begin)
    memory.write(commit.ledger_base + ledgers.STATE_OFFSET, ledgers.encode_state(phase), tid)
    for address, data in commit.resets:
        memory.write(address, data, tid)
    done: list[MemoryEdit] = []
    try:
        for edit in commit.edits:
            done.append(edit)
            memory.write(edit.address, edit.replacement, tid)
    except TargetError:
        _undo(target, done, tid)
        raise
    memory.write(commit.ledger_base + ledgers.STATE_OFFSET, ledgers.encode_state(step(phase, commit.end)), tid)


def _undo(target: Target, done: Sequence[MemoryEdit], tid: int) -> None:
    for edit in reversed(done):
        with contextlib.suppress(TargetError):
            target.memory.write(edit.address, edit.expected, tid)


def _busy_error(target: Target, commit: Commit, busy: Activity, tries: int, wait: float) -> BusyError:
    may = any(g.name == busy.function and g.allowable and not g.allowed for g in commit.guards)
    option = f"--allow-active {busy.function}"
    return BusyError(
        f"no safe moment in {tries} tries over {wait:g} s: {describe(busy, thread_name(target.pid, busy.tid))}",
        where=target.where,
        remedy="nothing was touched; wait longer (--wait)" + (f", or let it be active: {option}" if may else ""),
    )
