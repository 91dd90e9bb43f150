"""Making the frames of new code known to the unwinders of a process, before anything leads there.

A thread is stopped where that is safe (`safepoint.py`), alone and for some 100 us, and calls `__register_frame_info` on
a stack of its own.  What an unwinder says is the truth: `_Unwind_Find_FDE`, asked for the first new function, must find
the patch's own frame afterwards, and is asked first where it has written its record already: a katana may have died in
between.

Frames stay registered as long as their memory is mapped, after a revert too: pointers to new functions may have
escaped, and an exception that passes through one must find its way.  They are taken out again only together with a
mapping that nothing ever led into.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from katana_cc.dwarf.frames import Fde, records
from katana_cc.errors import BusyError, RefusedError
from katana_cc.process import x86_64 as cpu
from katana_cc.process.imports import Linker
from katana_cc.process.ledger import REGISTERED_OFFSET, Ledger, Registration, encode_registered
from katana_cc.process.link import PAGE, PROT_READ, PROT_WRITE, RECORD_SIZE
from katana_cc.process.priority import first_in_line
from katana_cc.process.remote import RemoteThread, find_syscall_instruction
from katana_cc.process.safepoint import SafePoint
from katana_cc.process.target import Target

_MAP_PRIVATE: Final = 0x02
_MAP_ANONYMOUS: Final = 0x20
_CALL_STACK: Final = 256 * 1024
_BASES_SIZE: Final = 64  # struct dwarf_eh_bases of libgcc: three pointers
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


@dataclass(frozen=True, slots=True)
class RegistrationReport:
    """How it went: how long the one thread stood, and how often it was tried."""

    pause_us: float
    tries: int


def register(target: Target, ledger: Ledger, wait: float) -> RegistrationReport:
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
        _note(target, ledger, is_registered=True)

    return _at_a_safe_point(target, ledger, wait, work)


def withdraw(target: Target, ledger: Ledger, wait: float) -> RegistrationReport:
    """Take the frames out of the unwinders and unmap the patch, in one stop.  Only for a mapping that nothing ever led
    into.

    Raises:
        BusyError, RefusedError: as `register`; the mapping stays, and does no harm.
    """

    def work(calls: _Calls) -> None:
        for r in ledger.registrations:
            if calls.knows(r):
                calls.call(r.deregister, "__deregister_frame_info", ledger.eh_frame[0])
                if calls.knows(r):
                    raise RefusedError("the frames of a patch could not be taken out again", where=target.where)
        _note(target, ledger, is_registered=False)
        calls.remote.syscall(cpu.SYS_MUNMAP, ledger.base, ledger.size)

    return _at_a_safe_point(target, ledger, wait, work)


def may_be_registered(target: Target, ledger: Ledger) -> bool:
    """Whether an unwinder was ever told of these frames: it has written its record then."""
    return any(any(target.memory.read(r.record, RECORD_SIZE)) for r in ledger.registrations)


def _note(target: Target, ledger: Ledger, *, is_registered: bool) -> None:
    target.memory.write(ledger.base + REGISTERED_OFFSET, encode_registered(is_registered))


@dataclass(frozen=True, slots=True)
class _Calls:
    """Function calls in the stopped thread, on a stack mapped for them."""

    remote: RemoteThread
    stack: int
    probe: int
    frames: range

    def call(self, function: int, name: str, *arguments: int) -> int:
        return self.remote.call(function, name, self.stack + _CALL_STACK, *arguments)

    def knows(self, r: Registration) -> bool:
        """Whether the unwinder finds our frame for the first new function."""
        return self.call(r.find, "_Unwind_Find_FDE", self.probe, self.stack) in self.frames


def _at_a_safe_point(target: Target, ledger: Ledger, wait: float, work: Callable[[_Calls], None]) -> RegistrationReport:
    address, size = ledger.eh_frame
    probe = next(r.pc for r in records(target.memory.read(address, size), address) if isinstance(r, Fde))
    functions = [f for r in ledger.registrations for f in (r.register, r.deregister, r.find)]
    safe = SafePoint(target, Linker.of(target.memory, target.modules), functions)
    _rehearse(target, safe)
    deadline = time.monotonic() + wait
    pause, tries = _FIRST_PAUSE, 0
    while True:
        tries += 1
        try:
            with first_in_line(), _stopped(target, safe.why_not) as remote, _stack(remote) as stack:
                work(_Calls(remote, stack, probe, range(address, address + size)))
            return RegistrationReport(remote.pause_us, tries)
        except BusyError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _rehearse(target: Target, safe: SafePoint) -> None:
    """Look at the thread that will likely be used, and judge it while it runs on: only so that the frames where it
    waits are known when it is stopped for the call."""
    seen: list[Sequence[int]] = []

    def note(words: Sequence[int]) -> str:
        seen.append(list(words))
        return ""

    with first_in_line(), _stopped(target, note):
        pass
    safe.why_not(seen[-1])


def _stopped(target: Target, unfit: Callable[[Sequence[int]], str]) -> RemoteThread:
    return RemoteThread(target.memory, find_syscall_instruction(target.memory, target.regions), unfit)


@contextlib.contextmanager
def _stack(remote: RemoteThread) -> Iterator[int]:
    """A stack of its own for the calls: the thread may be on a small one."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS
    stack = remote.syscall(cpu.SYS_MMAP, 0, _CALL_STACK, PROT_READ | PROT_WRITE, flags, -1, 0)
    if -PAGE < stack < 0:
        raise RefusedError("mmap in the target failed")
    try:
        yield stack
    finally:
        remote.syscall(cpu.SYS_MUNMAP, stack, _CALL_STACK)
