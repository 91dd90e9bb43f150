"""Making the frames of new code known to the unwinders of a process, before anything leads there.

A thread is stopped where that is safe (`calling.py`), alone and for some 100 us, and calls `__register_frame_info`.
What an unwinder says is the truth: `_Unwind_Find_FDE`, asked for the first new function, must find the patch's own
frame afterwards, and is asked first where it has written its record already: a katana may have died in between.
libunwind is another affair (`libunwind.py`).

Frames stay registered as long as their memory is mapped, after a revert too: pointers to new functions may have
escaped, and an exception that passes through one must find its way.  They are taken out again only together with a
mapping that nothing leads into.  libunwind's threads read its list without a lock, so what is in it stays mapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from katana_cc.cpu.native import system as cpu
from katana_cc.dwarf.frames import Fde, records
from katana_cc.errors import RefusedError
from katana_cc.process.calling import Caller, CallReport, Calls
from katana_cc.process.image import frame_table
from katana_cc.process.ledger import REGISTERED_OFFSET, Ledger, Registration, encode_registered
from katana_cc.process.libunwind import CodeTable, enter
from katana_cc.process.link import RECORD_SIZE
from katana_cc.process.target import Target, extent


def register(target: Target, ledger: Ledger, wait: float) -> CallReport:
    """Register the frames that `ledger` tells of with each of its unwinders.

    Raises:
        BusyError: no thread was where a function could be called, for `wait` seconds.
        RefusedError: an unwinder does not find the frames afterwards.  What was registered is registered still.
    """

    def work(calls: _Calls) -> None:
        for r in ledger.registrations:
            told = any(target.memory.read(r.record, RECORD_SIZE))
            if not told or not calls.knows(r):
                target.memory.write(r.record, bytes(RECORD_SIZE))
                calls.call(r.register, "__register_frame_info", ledger.eh_frame[0], r.record)
                if not calls.knows(r):
                    raise RefusedError(
                        "the unwinder of the process does not take new frames (not libgcc's?), and exceptions may have "
                        "to pass through the new code",
                        where=target.where,
                        remedy="restart the process with the new build",
                    )
        for listing in ledger.listings:
            enter(target, calls.calls, listing, calls.table)
        _note(target, ledger, is_registered=True)

    return _at_a_safe_point(target, ledger, wait, work)


def withdraw(target: Target, ledger: Ledger, wait: float) -> CallReport:
    """Take the frames out of the unwinders and unmap the patch, in one stop.  Only for a mapping that nothing ever led
    into.

    Raises:
        BusyError, RefusedError: as `register`; the mapping stays, and does no harm.
    """
    if any(any(target.memory.read(x.record, RECORD_SIZE)) for x in ledger.listings):
        raise RefusedError(
            "libunwind looks code up without a lock, and may be reading of the patch", where=target.where
        )

    def work(calls: _Calls) -> None:
        _forget(target, ledger, calls)
        start, end = extent(target.read_map(), ledger.base, ledger.size)
        calls.calls.remote.syscall(cpu.SYS_MUNMAP, start, end - start)

    return _at_a_safe_point(target, ledger, wait, work)


def deregister(target: Target, ledger: Ledger, wait: float) -> CallReport:
    """Take the frames out of the unwinders; the mapping stays.  Only for one that nothing leads into.

    Raises:
        BusyError, RefusedError: as `register`.
    """
    return _at_a_safe_point(target, ledger, wait, lambda calls: _forget(target, ledger, calls))


def _forget(target: Target, ledger: Ledger, calls: _Calls) -> None:
    for r in ledger.registrations:
        if calls.knows(r):
            calls.call(r.deregister, "__deregister_frame_info", ledger.eh_frame[0])
            if calls.knows(r):
                raise RefusedError("the frames of a patch could not be taken out again", where=target.where)
    _note(target, ledger, is_registered=False)


def may_be_registered(target: Target, ledger: Ledger) -> bool:
    """Whether an unwinder was ever told of these frames: its record is written then."""
    return any(any(target.memory.read(at, RECORD_SIZE)) for at in ledger.records)


def _note(target: Target, ledger: Ledger, *, is_registered: bool) -> None:
    target.memory.write(ledger.base + REGISTERED_OFFSET, encode_registered(is_registered))


@dataclass(frozen=True, slots=True)
class _Calls:
    """Calls of unwinders; `frames` are the patch's, `probe` the first new function; `table` is what libunwind takes."""

    calls: Calls
    probe: int
    frames: range
    table: CodeTable

    def call(self, function: int, name: str, *arguments: int) -> int:
        return self.calls.call(function, name, *arguments)

    def knows(self, r: Registration) -> bool:
        """Whether the unwinder finds our frame for the first new function."""
        return self.call(r.find, "_Unwind_Find_FDE", self.probe, self.calls.stack) in self.frames


def _at_a_safe_point(target: Target, ledger: Ledger, wait: float, work: Callable[[_Calls], None]) -> CallReport:
    address, size = ledger.eh_frame
    fdes = [r for r in records(target.memory.read(address, size), address) if isinstance(r, Fde)]
    start, _ = extent(target.read_map(), ledger.base, ledger.size)
    code = min(f.pc for f in fdes), max(f.pc + f.pc_size for f in fdes)
    table = CodeTable(*code, *(frame_table(target.memory, start) if ledger.listings else (0, 0)), fdes[0].pc)
    functions = [f for r in ledger.registrations for f in (r.register, r.deregister, r.find)]
    functions += [f for x in ledger.listings for f in (x.register, x.cancel, x.ask)]
    frames = range(address, address + size)
    return Caller(target, functions).run(wait, lambda calls: work(_Calls(calls, fdes[0].pc, frames, table)))
