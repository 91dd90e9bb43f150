"""System calls and function calls made by one stopped thread of the target on our behalf.

The thread is stopped by INTERRUPT, its registers and signal mask are kept, and all signals are blocked in it.  Its
instruction pointer goes to a `syscall` instruction that is mapped anyway; PTRACE_SYSCALL lets it run exactly from there
to the exit out of that call.  No SIGTRAP is involved, so that a program which ignores or handles SIGTRAP does not
notice.  A function call returns to the same instruction: the stop at its entry tells that the function has returned,
and its result is taken before the kernel acts on what looks like a system call.  Those that the function itself makes
are passed by.

At the end an INTERRUPT is made pending before the registers are put back, so that the thread passes through the
kernel's signal code once more: there an interrupted system call is restarted as if nothing had been.

A katana that is killed meanwhile leaves the thread in the middle of all that.  So before anything of it is altered, a
signal frame of what it was is put below its stack, and whatever it runs returns to the code that goes back there
(`cpu.interface.WayBack`): between calls it stands in front of that code.  This takes a C library, and a stack that is
surely the thread's own, with room for it (below a coroutine's, and below the end of one in a pool, may lie what is
somebody else's); where one is missing, the window of some 100 us remains, and all signals that can be caught are
blocked in katana.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from katana_cc.cpu.native import system as cpu
from katana_cc.cpu.native import way_back
from katana_cc.errors import RefusedError, TargetError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process import stuck
from katana_cc.process.frozen import is_frozen
from katana_cc.process.gadgets import Gadgets
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.pending import Pending
from katana_cc.process.priority import stand_aside
from katana_cc.process.proc import is_dead, status_fields, thread_name
from katana_cc.process.restartable import resumption
from katana_cc.process.rights import seccomp_remedy
from katana_cc.process.stacks import lower_end

WORD: Final = 8
STOP_TIMEOUT: Final = 0.5
_TURN_TIMEOUT: Final = 5.0  # more, for a thread that waits for nothing but a processor
_CALL_TIMEOUT: Final = 5.0
_LONGEST_POLL: Final = 0.001
_GRACE_STEP: Final = 0.001
_FUNCTION_TIMEOUT: Final = 10.0  # it may wait for a lock that another thread holds, on a busy machine
_ALL_SIGNALS: Final = (1 << 64) - 1
# A fault forced on a thread that blocks its signal resets the handler: these stay open during a function call.
_FAULTS: Final = sum(
    1 << (s - 1) for s in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)
)
_LENT: Final = 256  # bytes of `scratch`, at most


class Returned(NamedTuple):
    """How a function of the target ended: with `result` (of an int), by a `signal`, or not in time (both None).
    `place` are the registers it had when it was stopped, if it had not returned; `is_clear` tells whether `may_leave`
    held then.
    """

    result: int | None
    signal: int | None
    place: Sequence[int]
    is_clear: bool


class EndedError(TargetError):
    """The thread has ended, and mostly its process."""


class _Way(NamedTuple):
    """How a called function returns: its frames end at `stack`; it comes to the system call at `back`, and the stack
    pointer or signal frame is at `end` then; its result is kept at `result` (0: it is the number of that call)."""

    stack: int
    back: int
    end: int
    result: int


class RemoteThread:
    """One thread of the target that is stopped, to make calls with: `borrowing` stops it, and lets it go.

    Args:
        tid, registers: the thread, and what it was stopped with; where these come later, 0 and none.
    """

    def __init__(self, memory: ProcessMemory, gadgets: Gadgets, tid: int = 0, registers: Sequence[int] = ()) -> None:
        self._memory = memory
        self._pid = memory.pid
        self._gadgets = gadgets
        self._frame = 0  # where the signal frame lies, if there is one, and what it covers
        self._covered = b""
        self._tid = tid
        self._registers = list(registers)
        self._mask = 0
        self._restart_is_lost = False
        self._is_running = False  # what it was to do has not ended, or not begun (a frozen control group)

    @property
    def tid(self) -> int:
        """Which thread it is."""
        return self._tid

    @property
    def place(self) -> tuple[int, int]:
        """Where it was stopped: its stack pointer and pc."""
        return self._registers[cpu.SP], self._registers[cpu.PC]

    def _suspend_seccomp(self, options: int) -> None:
        """Let the thread, which is stopped and traced with these options, make calls that a filter of its own (each
        thread has some) may forbid, or kill the process for; until it is let go.

        Raises:
            RefusedError: we may not.
        """
        if status_fields(self._pid, self._tid).get("Seccomp", "0").strip() == "0":
            return
        try:
            pt.set_options(self._tid, options | pt.O_SUSPEND_SECCOMP)
        except ProcessLookupError:
            raise
        except OSError:
            raise RefusedError(
                "the process runs under seccomp, which could kill it for our system calls",
                where=f"pid {self._pid} ({thread_name(self._pid, self._pid)})",
                remedy=seccomp_remedy(),
            ) from None

    def _make_ready(self) -> None:
        """Let calls be made in the thread, whose registers are known."""
        self._mask = pt.read_signal_mask(self._tid)
        # In a restartable sequence it is at its abort handler from now on.
        self._registers[cpu.PC] = resumption(self._memory, self._tid, self._registers[cpu.PC])
        self._prepare_return()
        pt.write_signal_mask(self._tid, _ALL_SIGNALS)

    def _prepare_return(self) -> None:
        """Put a signal frame below the stack, and the thread in front of the code that goes back by it."""
        if way_back is None or not self._gadgets.lead_back:
            return
        end = None
        with contextlib.suppress(TargetError):
            end = lower_end(self._registers, self._gadgets.regions, self._memory)
        if end is None:
            return
        state = pt.read_extended_state(self._tid)
        pointer = self._registers[cpu.SP]
        region = self._gadgets.regions.at(pointer)
        if region is None:
            return
        at = min(pointer - cpu.RED_ZONE - way_back.size_of(state), region.end - way_back.reach_of(state)) & -16
        if at - _LENT < end:
            return
        data = self._frame_at(at, state)
        with contextlib.suppress(TargetError):
            self._covered = self._memory.read(at, len(data))
            self._memory.write(at, data)
            self._frame = at
            self._park()

    def _frame_at(self, at: int, state: bytes) -> bytes:
        """A frame of what the thread was, its interrupted system call about to be entered again."""
        assert way_back is not None
        words = way_back.begun_again(self._registers, self._code_before(self._registers))
        return way_back.frame(at, self._gadgets.restorer, words, self._mask, state)

    def _park(self) -> None:
        """Put the thread where it goes back by itself if it is let go."""
        if self._frame and way_back is not None:
            words = list(self._registers)
            way_back.park(words, self._gadgets.restorer, self._frame)
            pt.write_registers(self._tid, words)

    def _wait_for_stop(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        pause = 10e-6
        while True:
            report = pt.wait(self._tid)
            if report is None:
                over = time.monotonic() - deadline
                if over > 0:
                    if is_dead(self._pid):
                        raise TargetError("the process died", where=f"pid {self._pid}")
                    state = status_fields(self._pid, self._tid).get("State", "X")[:1]
                    if over > _TURN_TIMEOUT or state not in "Rt":  # "t": it has just come to its stop
                        return False
                stuck.reap()
                stand_aside(pause)
                pause = min(pause * 1.05, _LONGEST_POLL)
            elif report.gone:
                raise EndedError("the process died", where=f"pid {self._pid}")
            elif report.is_signal_delivery:
                pt.resume(self._tid, report.signal)
            else:
                self._is_running = False
                return True

    def _next_syscall_stop(self, deadline: float) -> pt.Stop:
        """Run to the next system call entry or exit, or to a signal that is a fault of what runs."""
        pt.resume_to_syscall(self._tid)
        self._is_running = True
        pause = 10e-6  # at real-time priority a mere yield would keep the thread from running
        while True:
            report = pt.wait(self._tid)
            if report is None:
                if time.monotonic() > deadline:
                    return pt.Stop(False, 0, 0)
                stuck.reap()
                stand_aside(pause)
                pause = min(pause * 1.05, _LONGEST_POLL)
            elif report.gone:
                raise TargetError("the process died", where=f"pid {self._pid}")
            elif report.signal == pt.SYSCALL_STOP or (report.is_signal_delivery and report.signal != signal.SIGSTOP):
                self._is_running = False
                return report
            else:
                # SIGSTOP cannot be blocked: it takes effect after the detach.
                pt.resume_to_syscall(self._tid, report.signal if report.event == 0 else 0)

    def syscall(self, number: int, *arguments: int) -> int:
        """Make a system call in the target; the result, negative errno on failure.

        Raises:
            TargetError: it did not end in time, or one before it did not.
        """
        if self._is_running:
            raise self._unended(number)
        words = list(self._registers)
        if self._frame and way_back is not None:
            way_back.set_system_call(words, self._gadgets.returning, self._frame, number, arguments)
        else:
            cpu.set_system_call(words, self._gadgets.syscall, number, arguments)
        pt.write_registers(self._tid, words)
        for _ in range(2):
            report = self._next_syscall_stop(time.monotonic() + _CALL_TIMEOUT)
            if report.signal != pt.SYSCALL_STOP:
                raise self._unended(number)
        value = pt.read_registers(self._tid)[cpu.RESULT]
        self._park()
        return value - (1 << 64) if value >= 1 << 63 else value

    def _unended(self, number: int) -> TargetError:
        why = ": its control group is frozen" if is_frozen(self._pid) else ""
        return TargetError(
            f"system call {number} in the target did not end{why}",
            where=f"pid {self._pid}",
            remedy="try again on a quieter machine; `katana status` tells what holds now",
        )

    @contextmanager
    def scratch(self, data: bytes) -> Iterator[int]:
        """Lend `data` a place in the target's memory: below the thread's red zone, put back afterwards, since with
        coroutines that memory may be someone else's."""
        address = ((self._frame or self._registers[cpu.SP] - cpu.RED_ZONE) - len(data)) & -16
        saved = self._memory.read(address, len(data))
        self._memory.write(address, data, self._tid)
        try:
            yield address
        finally:
            self._memory.write(address, saved, self._tid)

    def call(self, function: int, name: str, stack_end: int, *arguments: int) -> int:
        """Call a function with integer arguments, on a stack that ends at `stack_end` (16-byte aligned); its result.

        Raises:
            RefusedError: it faulted, or did not return in time.  The thread is put back as it was.
        """
        found = self.attempt(function, stack_end, arguments, _FUNCTION_TIMEOUT, lambda *_: True)
        if found.result is None:
            raise RefusedError(
                f"{name} did not return in the target",
                where=f"pid {self._pid}",
                remedy="restart the process with the new build",
            )
        return found.result

    def attempt(
        self,
        function: int,
        stack_end: int,
        arguments: Sequence[int],
        timeout: float,
        may_leave: Callable[[Sequence[int], int], bool],
        grace: float = 0.0,
    ) -> Returned:
        """Call a function that may fault or not return.  One that has not returned in `timeout` seconds is let run on
        for up to `grace` more, until `may_leave` says, by its registers and the end of its frames on the stack, that it
        may be left there for good.

        Raises:
            TargetError: the process died.
        """
        state = pt.read_extended_state(self._tid)
        words = list(self._registers)
        way = self._set_call(words, function, stack_end, arguments, state)
        pt.write_registers(self._tid, words)
        pt.write_signal_mask(self._tid, _ALL_SIGNALS & ~_FAULTS)
        try:
            found = self._run_until_return(way, timeout, may_leave, grace)
            if found.result is not None:
                # Behind the call that it is kept from lies somebody else's code: parked at once, it never runs that.
                if self._frame:
                    self._park()
                else:
                    pt.write_registers(self._tid, list(found.place))
                self._next_syscall_stop(time.monotonic() + _CALL_TIMEOUT)
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._park()
                pt.write_extended_state(self._tid, state)
                pt.write_signal_mask(self._tid, _ALL_SIGNALS)
        return found

    def _set_call(
        self, words: list[int], function: int, stack_end: int, arguments: Sequence[int], state: bytes
    ) -> _Way:
        """Prepare registers and stack for a function that returns to where we are told of it."""
        gadgets = self._gadgets
        if way_back is None or not (self._frame and gadgets.keeper):
            address, pushed = cpu.set_call(words, function, stack_end, gadgets.syscall, arguments)
            if pushed:
                self._memory.write(address, pushed)
            return _Way(address if pushed else stack_end, gadgets.syscall, stack_end, 0)
        result = stack_end - WORD
        # So that the return address lies at 8 beyond a multiple of 16.
        at = ((result - way_back.reach_of(state)) & -16) - WORD * (gadgets.kept_words & 1)
        stack = at - WORD * gadgets.kept_words - WORD
        contents = gadgets.keeper.to_bytes(WORD, "little").ljust(at - stack, b"\0") + self._frame_at(at, state)
        self._memory.write(stack, contents)
        way_back.set_call(words, function, stack, result, arguments)
        return _Way(stack, gadgets.restorer, at, result)

    def _returned(self, words: list[int], way: _Way) -> Returned | None:
        """What a function returned, if its thread, at the entry of a system call, is where it returns to."""
        if not way.result:
            if not cpu.has_returned(words, way.back, way.end):
                return None
            result = cpu.take_result(words)
        else:
            assert way_back is not None
            if not way_back.has_returned(words, way.back + self._gadgets.restorer_size, way.end):
                return None
            result = int.from_bytes(self._memory.read(way.result, WORD), "little")
        return Returned(result, None, words, True)

    def _run_until_return(
        self, way: _Way, timeout: float, may_leave: Callable[[Sequence[int], int], bool], grace: float
    ) -> Returned:
        """Until the entry of the system call that a function returns to, a signal, or the time is up."""
        deadline = time.monotonic() + timeout
        last = deadline + grace
        while True:
            report = self._next_syscall_stop(deadline)
            if not report.signal:
                pt.interrupt(self._tid)
                if not self._wait_for_stop(STOP_TIMEOUT):
                    raise TargetError(
                        "a function called in the target does not stop",
                        where=f"pid {self._pid}",
                        remedy="restart the process with the new build",
                    )
                self._restart_is_lost = True  # of what the thread was in before: the kernel keeps one only
            words = pt.read_registers(self._tid)
            if report.signal == pt.SYSCALL_STOP:
                if (returned := self._returned(words, way)) is not None:
                    return returned
                self._restart_is_lost |= cpu.forgets_restart(words)
                continue
            is_clear = may_leave(words, way.stack)
            if report.signal or is_clear or time.monotonic() >= last:
                return Returned(None, report.signal or None, words, is_clear)
            deadline = min(time.monotonic() + _GRACE_STEP, last)

    def _put_back(self) -> dict[int, int]:
        """Give the thread its registers and signal mask again; the registers that differ from what it had."""
        is_stopped = True
        if self._is_running:
            pt.interrupt(self._tid)
            is_stopped = self._wait_for_stop(_CALL_TIMEOUT)
        if is_stopped:
            pt.interrupt(self._tid)
            pt.resume(self._tid)
            is_stopped = self._wait_for_stop(STOP_TIMEOUT)
        if not is_stopped:
            stuck.leave(self._tid)  # and it goes back by its frame, if it has one
            return {}
        words = list(self._registers)
        again = cpu.entered_again(words, self._code_before(words)) if self._restart_is_lost else None
        changes = again or self._repair(words) or {}
        for index, value in changes.items():
            words[index] = value
        # In this order, since after each of these this process may be killed.
        pt.write_signal_mask(self._tid, self._mask)
        pt.write_registers(self._tid, words)
        if self._frame:
            with contextlib.suppress(TargetError):  # below the stack, where nothing lives
                self._memory.write(self._frame, self._covered)
        return changes

    def _code_before(self, words: Sequence[int]) -> bytes:
        """What lies before the instruction pointer: of a thread in a system call, it tells which."""
        with contextlib.suppress(TargetError):
            return self._memory.read(words[cpu.PC] - cpu.NUMBERED_SYSCALL_SIZE, cpu.NUMBERED_SYSCALL_SIZE)
        return b""

    def _repair(self, words: list[int]) -> dict[int, int] | None:
        changes = cpu.repaired(words)
        return None if changes is None or Pending().ends_call(self._tid, self._mask) else changes
