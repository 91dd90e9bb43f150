"""Finishing what a katana that was killed had begun to write: the counterpart of `katana_cc.process.holding`.

What the journal tells is written once more, whatever of it is there already: the process was stopped in the meantime,
so each byte is as it was or as it is to be.  Then it goes on.  Killed meanwhile, the next one does it again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import BusyError, KatanaError, LaterKatanaError, RefusedError, TargetError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.claim import claim, holder, taken
from katana_cc.process.holding import ALL_SIGNALS
from katana_cc.process.journal import (
    PHASE_AT,
    Header,
    Progress,
    Record,
    ThreadId,
    encode_progress,
    read_body,
    read_header,
)
from katana_cc.process.maps import is_journal
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.phases import Bytes
from katana_cc.process.priority import first_in_line, spared, undisturbed
from katana_cc.process.proc import status_fields
from katana_cc.process.registers import RegisterWord
from katana_cc.process.registers import write as write_registers
from katana_cc.process.standing import standings
from katana_cc.process.target import Target, read_map
from katana_cc.process.threads import Threads

_PATIENCE: Final = 10.0  # seconds until whoever traces the process lets go of it
_PAUSE: Final = 0.001


class Interrupted(NamedTuple):
    """A journal, at `address`, of something that has not come to its end."""

    address: int
    header: Header


def find(memory: ProcessMemory) -> Interrupted | None:
    """What was begun in a process and has not come to its end; None when there is nothing.

    Raises:
        LaterKatanaError: a later katana began it, and was killed.
        TargetError: the process is gone, or not ours to read.
    """
    for region in read_map(memory.pid).regions:
        if is_journal(region) and not region.offset:
            try:
                header = read_header(memory, region.start)
            except LaterKatanaError as error:
                error.where = f"pid {memory.pid}"
                raise
            if header is not None and header.progress is not Progress.IDLE:
                return Interrupted(region.start, header)
    return None


def refuse_later(target: Target) -> None:
    """Raises LaterKatanaError where a later katana was killed, and what it began waits: it must not be taken away."""
    waits(target.memory)


def waits(memory: ProcessMemory) -> Interrupted | None:
    """What was begun in a process that stands still until it is finished; None when there is nothing.

    Raises:
        LaterKatanaError: a later katana began it, and was killed.
        TargetError: the process is gone, or not ours to read.
    """
    found = find(memory)
    if found is not None and found.header.progress is Progress.LETTING_GO:
        return found if status_fields(memory.pid).get("State", "").startswith("T") else None
    return found


def left(memory: ProcessMemory) -> Interrupted | None:
    """The same where nobody is about to finish it: who had begun was killed.

    Raises:
        TargetError: as of `waits`.
    """
    if waits(memory) is None or holder(memory.pid):
        return None
    return waits(memory)  # once more: whoever was at work may have finished, and gone, in between


def finish(pid: int, patience: float = _PATIENCE) -> bool:
    """Finish what was begun in a process; whether there was something.

    Args:
        patience: seconds to try again where it is traced, or a thread does not stop.

    Raises:
        BusyError: a thread does not stop.
        RefusedError: the journal was altered.
        TargetError: the process died, or is traced.
    """
    memory = ProcessMemory(pid)
    try:
        deadline = time.monotonic() + patience
        begun = find(memory)
        while begun is not None:
            try:
                _finish(memory, begun.address)
                return True
            except (BusyError, TargetError):
                # Who was killed still traces it for a moment, or another one is about to finish.
                if time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE)
            if find(memory) is None:
                return True
        return False
    finally:
        memory.close()


def finish_all(pids: Iterable[int], wait: float, patch_id: str = "") -> None:
    """Finish what was begun in some processes; those that cannot be looked into are left to whoever patches them.

    Args:
        wait: seconds for a katana that is at work there: one that lives finishes by itself.
        patch_id: only where a patch whose identity begins so is in force, or was about to come or to go.

    Raises:
        BusyError, RefusedError, TargetError: as of `claim` and `finish`.
    """
    for pid in pids:
        begun = _begun(pid)
        if begun is not None and (not patch_id or _concerns(pid, begun.header.base, patch_id.lower())):
            claimed = claim(pid, f"pid {pid}", wait)
            try:
                finish(pid)
            finally:
                os.close(claimed)


def refuse_unfinished(pids: Iterable[int]) -> None:
    """Where something was begun and has to be finished first, nothing can be foretold.

    Raises:
        BusyError: a katana is about to.
        RefusedError: it was killed.
    """
    for pid in pids:
        if _begun(pid) is None:
            continue
        if by := holder(pid):
            raise taken(by, f"pid {pid}")
        if _begun(pid) is not None:  # still, and there is nobody
            raise RefusedError(
                "a katana was killed while it moved live data, and the process stands still since",
                where=f"pid {pid}",
                remedy="katana apply or katana revert finishes that first",
            )


def _concerns(pid: int, base: int, patch_id: str) -> bool:
    """Whether something that was begun for the ledger at `base` has to do with a patch."""
    with contextlib.suppress(KatanaError), Target(pid) as target:
        ledgers = [m.ledger for m in target.patches if m.ledger is not None]
        meant = [x for x in ledgers if x.patch_id.startswith(patch_id)]
        found = standings(target.memory, ledgers) if meant else {}
        return any(x.base == base or found[x.base] is not Bytes.OLD for x in meant)
    return False


def _begun(pid: int) -> Interrupted | None:
    with contextlib.suppress(TargetError):
        memory = ProcessMemory(pid)
        try:
            return waits(memory)
        finally:
            memory.close()
    return None


def _finish(memory: ProcessMemory, address: int) -> None:
    threads = Threads(memory.pid)
    with undisturbed(), first_in_line(), spared():
        try:
            threads.seize()
            threads.stop()
            threads.read_registers()
            header = read_header(memory, address)
            if not threads.order or header is None or header.progress is Progress.IDLE:
                return
            tid = threads.order[0]
            if header.progress is not Progress.LETTING_GO:
                record = read_body(memory, address, header)
                if record is None:
                    raise RefusedError(
                        "a katana was killed while it moved live data, and its journal was altered",
                        where=f"pid {memory.pid}",
                        remedy="restart the process",
                    )
                if header.progress is Progress.WRITING:
                    _write(memory, threads, record)
                _unblock(threads, record)
            must_wake = not header.was_halted and (header.progress is not Progress.LETTING_GO or threads.is_holding())
            memory.write(address + PHASE_AT, encode_progress(Progress.LETTING_GO), tid)
            threads.repair_system_calls()
            if must_wake:
                threads.wake()
        finally:
            threads.release()
        with contextlib.suppress(TargetError):
            memory.write(address + PHASE_AT, encode_progress(Progress.IDLE))


def _write(memory: ProcessMemory, threads: Threads, record: Record) -> None:
    memory.write_many(record.pieces, threads.order[0])
    changes = []
    for r in record.registers:
        tid = _thread(threads, r.thread)
        if tid and _value(threads, tid, r.place, r.is_vector) == r.before:
            changes.append((RegisterWord(tid, "", r.place, r.before, r.is_vector, False), r.after))
    write_registers(threads, changes)


def _unblock(threads: Threads, record: Record) -> None:
    for m in record.masks:
        tid = _thread(threads, m.thread)
        with contextlib.suppress(ProcessLookupError):
            if tid and pt.read_signal_mask(tid) | _UNBLOCKABLE == ALL_SIGNALS:
                pt.write_signal_mask(tid, m.blocked)


_UNBLOCKABLE: Final = 1 << 8 | 1 << 18  # SIGKILL, SIGSTOP


def _thread(threads: Threads, named: ThreadId) -> int:
    """The id of a thread; 0: it is gone."""
    pointers: Sequence[int] = threads.registers[cpu.THREAD_POINTER :: pt.REGISTER_WORDS].tolist()
    fits = [tid for tid, pointer in zip(threads.order, pointers, strict=False) if pointer == named.pointer]
    return named.tid if named.tid in fits else fits[0] if fits else 0


def _value(threads: Threads, tid: int, place: int, is_vector: bool) -> int:
    if is_vector:
        return int.from_bytes(pt.read_extended_state(tid)[place : place + 8], "little")
    return threads.registers[threads.order.index(tid) * pt.REGISTER_WORDS + place]
