"""Running the user's hooks in a process: one after the other, each in one thread that is stopped alone for it.

Theory of operation.  A hook may call into libc, so it runs where `calling.py` may call malloc: in a thread that holds
no lock of the allocator or the loader, while all other threads run on.  It has a stack of its own, `errno` is kept,
and all signals but faults are blocked in it.  Three things end it: it returns, it faults, or its time is up.  Then the
thread goes on where it was, as if nothing had been.

A hook whose time is up cannot be unwound: what it did stays done.  If it stands in the C library it may hold a lock
there that every other thread would wait for; so it is let run on a little, until nothing of the C library, the
allocator or the loader is on its stack, or it waits in a system call that none of them makes while it holds a lock.
Where that does not help, the message says so.  A lock of the program's own nobody can see.

Once a hook has run, the mapping of the patch stays, whatever comes of it: the hook may have left pointers to functions
of the patch (a thread, a handler).
"""

from __future__ import annotations

import contextlib
import signal
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import HookError, KatanaError
from katana_cc.patch.model import HookKind
from katana_cc.process.calling import Caller, Calls
from katana_cc.process.imports import Linker
from katana_cc.process.ledger import HookEntry, Ledger
from katana_cc.process.link import PAGE
from katana_cc.process.remote import RemoteThread, Returned
from katana_cc.process.target import Target, read_map

DEFAULT_TIMEOUT: Final = 5.0
STACK_SIZE: Final = 1 << 20
_GRACE: Final = 1.0
_THREW: Final = -(1 << 31)  # what the wrapper of katana.h returns for an exception
_AT_BASE: Final = 7  # address of the dynamic loader; elf.h


@dataclass(frozen=True, slots=True)
class HookRun:
    """A hook that ran: `result` is what it returned; `failure` says why it failed, "" when it did not; `pause_us` is
    how long its thread stood."""

    kind: HookKind
    name: str
    result: int | None
    failure: str
    pause_us: float


def run_hooks(target: Target, ledger: Ledger, kind: HookKind, wait: float, timeout: float) -> tuple[HookRun, ...]:
    """Run the hooks of a kind in order, up to the first that fails, which is then the last of the result.

    Args:
        wait: seconds to wait for a thread that is where functions may be called.
        timeout: seconds that each of them may take.

    Raises:
        BusyError: no thread was; those before it ran.
        TargetError: the process died.
    """
    entries = [h for h in ledger.hooks if h.kind is kind]
    if not entries:
        return ()
    runner = _Runner(target, ledger, wait, timeout)
    runs: list[HookRun] = []
    for entry in entries:
        runs.append(runner.run(entry))
        if runs[-1].failure:
            break
    return tuple(runs)


def run_hooks_after(target: Target, ledger: Ledger, kind: HookKind, wait: float, timeout: float) -> tuple[HookRun, ...]:
    """The same once nothing can be taken back: what keeps a hook from running is its failure."""
    try:
        return run_hooks(target, ledger, kind, wait, timeout)
    except KatanaError as error:
        names = ", ".join(h.name for h in ledger.hooks if h.kind is kind)
        return (HookRun(kind, names, None, f"({kind.words}) could not be run: {error.what}", 0.0),)


def refuse_failed(target: Target, runs: Sequence[HookRun], unchanged: str) -> None:
    """Raises HookError when one of the hooks failed; `unchanged` says what is as it was."""
    for run in runs:
        if run.failure:
            raise HookError(f"the hook {run.name} {run.failure}", where=target.where, remedy=unchanged)


class HookJudge:
    """What is common to all calls of the program's functions: how they ended, and where they may be left."""

    def __init__(self, target: Target, ledger: Ledger, linker: Linker) -> None:
        self._target = target
        self._ledger = ledger
        self._errno = linker.first("__errno_location")
        loader = target.auxiliary(_AT_BASE)
        marks = [linker.first("__libc_start_main"), linker.first("malloc"), loader or None]
        modules = [next((m for m in target.modules if a is not None and m.holds(a)), None) for a in marks]
        program = target.program_module()  # which holds the C library of a static program
        self._careful = [m for m in (modules[0] or program, *modules[1:]) if m is not None]

    @contextlib.contextmanager
    def errno_kept(self, remote: RemoteThread, stack_end: int) -> Iterator[None]:
        """Keep `errno` of the thread that calls."""
        if self._errno is None:
            yield
            return
        errno = remote.call(self._errno, "__errno_location", stack_end)
        kept = self._target.memory.read(errno, 4)
        try:
            yield
        finally:
            self._target.memory.write(errno, kept)

    def is_clear(self, words: Sequence[int], end: int) -> bool:
        """Whether a hook may be left where it is: nothing of the C library is on its stack, which ends at `end`, or it
        waits for the world."""
        if cpu.waits_outside(words, self._target.memory.read):
            return True
        pointer = words[cpu.SP]
        stack = self._target.memory.read(pointer, end - pointer) if end - STACK_SIZE <= pointer < end else b""
        places = [words[cpu.PC], *(w for (w,) in struct.iter_unpack("<Q", stack[: len(stack) & -8]))]
        return not any(m.holds(address) for m in self._careful for address in places)

    def judged(self, when: str, returned: Returned, timeout: float) -> tuple[int | None, str]:
        """What a function returned, and why it failed, "" when it did not."""
        if returned.result is not None:
            (result,) = struct.unpack("<i", struct.pack("<I", returned.result & 0xFFFFFFFF))
            if result == _THREW:
                return result, f"({when}) threw an exception"
            return result, f"({when}) returned {result}" if result else ""
        place = self._place(returned.place[cpu.PC])
        if returned.signal:
            text = f"({when}) was ended by {_signal_name(returned.signal)} {place}"
        else:
            text = f"({when}) did not return within {timeout:g} s, and was left {place}"
        if returned.is_clear:
            return None, text
        return None, f"{text}, where it may hold a lock of the C library: if the process hangs, restart it"

    def _place(self, address: int) -> str:
        for r in self._ledger.new:
            if r.address <= address < r.address + r.size:
                return f"in {r.name}"
        module = next((m for m in self._target.modules if m.holds(address)), None)
        if module is not None:
            return f"in {module.path}"
        region = read_map(self._target.pid).at(address)
        return f"in {region.path}" if region is not None and region.path else f"at {address:#x}"


class _Runner:
    def __init__(self, target: Target, ledger: Ledger, wait: float, timeout: float) -> None:
        self._wait = wait
        self._timeout = timeout
        self._caller = Caller(target)
        self._judge = HookJudge(target, ledger, Linker.of(target.memory, target.modules))

    def run(self, entry: HookEntry) -> HookRun:
        found: list[tuple[int | None, str]] = []

        def work(calls: Calls) -> None:
            remote, end = calls.remote, calls.stack + calls.size
            remote.syscall(cpu.SYS_MPROTECT, calls.stack, PAGE, 0)  # what overflows it shall fault
            with self._judge.errno_kept(remote, end):
                returned = remote.attempt(entry.address, end, (), self._timeout, self._judge.is_clear, _GRACE)
            found.append(self._judge.judged(entry.kind.words, returned, self._timeout))

        pause_us = self._caller.run(self._wait, work, STACK_SIZE).pause_us
        return HookRun(entry.kind, entry.name, *found[0], pause_us)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
