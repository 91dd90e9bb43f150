"""System calls and function calls made by one stopped thread of the target on our behalf.

The thread is stopped by INTERRUPT, its registers and signal mask are kept, and all signals are blocked in it.  Its
instruction pointer goes to a `syscall` instruction that is mapped anyway; PTRACE_SYSCALL lets it run exactly from there
to the exit out of that call.  No SIGTRAP is involved, so that a program which ignores or handles SIGTRAP does not
notice.  A function call returns to the same instruction: the stop at its entry tells that the function has returned,
and rax, taken for a system call number, is its result.  System calls that the function itself makes are passed by.

At the end an INTERRUPT is made pending before the registers are put back, so that the thread passes through the
kernel's signal code once more: there an interrupted system call is restarted as if nothing had been.

A katana killed while registers are altered would leave the thread at the wrong place: the window is some 100 us, and
all catchable signals are blocked in katana meanwhile.
"""

from __future__ import annotations

import contextlib
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, NamedTuple

from katana_cc.errors import BusyError, RefusedError, TargetError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process import x86_64 as cpu
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.threads import list_threads, refusal_to_trace, status_fields, thread_name

_STOP_TIMEOUT: Final = 0.5
_CALL_TIMEOUT: Final = 1.0
_LONGEST_POLL: Final = 0.001
_GRACE_STEP: Final = 0.001
_FUNCTION_TIMEOUT: Final = 10.0  # it may wait for a lock that another thread holds, on a busy machine
_ALL_SIGNALS: Final = (1 << 64) - 1
# A fault forced on a thread that blocks its signal resets the handler: these stay open during a function call.
_FAULTS: Final = sum(
    1 << (s - 1) for s in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)
)
_WORKER_NAMES: Final = ("iou-wrk", "iou-sqp")


def find_syscall_instruction(memory: ProcessMemory, regions: MemoryMap) -> int:
    """The address of a `syscall` instruction in executable memory; the vDSO has one.

    Raises:
        RefusedError: there is none (then the process could make no system call at all).
    """
    executable = [r for r in regions.regions if "x" in r.permissions and r.path != "[vsyscall]"]
    for region in sorted(executable, key=lambda r: (r.path != "[vdso]", "libc" not in r.path)):
        for start in range(region.start, region.end, 1 << 20):
            with contextlib.suppress(TargetError):
                data = memory.read(start, min(1 << 20, region.end - start))
                if (at := data.find(cpu.SYSCALL_INSTRUCTION)) >= 0:
                    return start + at
    raise RefusedError("no syscall instruction is mapped", where=f"pid {memory.pid}")


class Returned(NamedTuple):
    """How a function of the target ended: with `result` (of an int), by a `signal`, or not in time (both None).
    `place` are the registers it had when it was stopped, if it had not returned; `is_clear` tells whether `may_leave`
    held then.
    """

    result: int | None
    signal: int | None
    place: Sequence[int]
    is_clear: bool


class RemoteThread:
    """One thread of the target, stopped, to make calls with.  A context manager: leaving puts everything back.

    Args:
        unfit: says of a stopped thread's registers why it will not do ("" when it will); then the next one is tried.

    Raises (on entering):
        TargetError: gone, not permitted, or already traced.
        BusyError: no thread of the process can be stopped, or none will do.
        RefusedError: seccomp may forbid the calls, and cannot be suspended.
    """

    def __init__(
        self, memory: ProcessMemory, syscall_address: int, unfit: Callable[[Sequence[int]], str] | None = None
    ) -> None:
        self._memory = memory
        self._unfit = unfit
        self._pid = memory.pid
        self._syscall_address = syscall_address
        self._tid = 0
        self._registers: list[int] = []
        self._mask = 0
        self._restart_is_lost = False
        self._blocked_here: set[signal.Signals | int] = set()
        self._started = 0
        self.pause_us = 0.0

    def __enter__(self) -> RemoteThread:
        options = pt.O_TRACESYSGOOD
        if status_fields(self._pid).get("Seccomp", "0").strip() != "0":
            options |= pt.O_SUSPEND_SECCOMP
        everything = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
        self._blocked_here = signal.pthread_sigmask(signal.SIG_BLOCK, everything)
        try:
            self._stop_one(options)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked_here)
            raise
        return self

    def _stop_one(self, options: int) -> None:
        stuck = 0
        why = ""
        for tid in sorted(list_threads(self._pid)):
            if thread_name(self._pid, tid).startswith(_WORKER_NAMES):
                continue  # never runs user code
            try:
                pt.seize(tid, options)
            except ProcessLookupError:
                continue
            except OSError as error:
                if status_fields(self._pid, tid).get("State", "Z").startswith(("Z", "X")):
                    continue
                if options & pt.O_SUSPEND_SECCOMP and not int(status_fields(self._pid).get("TracerPid", "0")):
                    raise RefusedError(
                        "the process runs under seccomp, which could kill it for our system calls",
                        where=f"pid {self._pid}",
                        remedy="run katana as root (CAP_SYS_ADMIN), which may suspend seccomp for a moment",
                    ) from None
                raise refusal_to_trace(self._pid, error) from None
            self._tid = tid
            self._started = time.perf_counter_ns()
            pt.interrupt(tid)
            if self._wait_for_stop(_STOP_TIMEOUT):
                self._registers = pt.read_registers(tid)
                self._mask = pt.read_signal_mask(tid)
                if self._registers[cpu.CS] != cpu.CS_64:
                    pt.detach(tid)
                    self._tid = 0
                    continue
                found = self._unfit(self._registers) if self._unfit else ""
                if found:
                    why = f"thread {tid} ({thread_name(self._pid, tid)}) {found}"
                    self._let_go()
                    continue
                pt.write_signal_mask(tid, _ALL_SIGNALS)
                return
            stuck = tid  # cannot be detached either before it stops; the kernel does it when we end
        self._tid = 0
        if why:
            raise BusyError(
                f"no thread is where a function could be called: {why}",
                where=f"pid {self._pid}",
                remedy="nothing was touched; wait longer (--wait)",
            )
        if stuck:
            raise BusyError(
                f"thread {stuck} ({thread_name(self._pid, stuck)}) does not stop",
                where=f"pid {self._pid}",
                remedy="it may wait for a child in vfork, or for a device; try again later",
            )
        raise TargetError("the process is gone", where=f"pid {self._pid}")

    def _let_go(self) -> None:
        """Let a thread go on of which nothing was changed."""
        words = list(self._registers)
        if changes := self._repair(words):
            for index, value in changes.items():
                words[index] = value
            pt.write_registers(self._tid, words)
        pt.detach(self._tid)
        self._tid = 0

    def _wait_for_stop(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while True:
            report = pt.wait(self._tid)
            if report is None:
                if time.monotonic() > deadline:
                    return False
                time.sleep(10e-6)
            elif report.gone:
                raise TargetError("the process died", where=f"pid {self._pid}")
            elif report.is_signal_delivery:
                pt.resume(self._tid, report.signal)
            else:
                return True

    def _next_syscall_stop(self, deadline: float) -> pt.Stop:
        """Run to the next system call entry or exit, or to a signal that is a fault of what runs."""
        pt.resume_to_syscall(self._tid)
        pause = 10e-6  # at real-time priority a mere yield would keep the thread from running
        while True:
            report = pt.wait(self._tid)
            if report is None:
                if time.monotonic() > deadline:
                    return pt.Stop(False, 0, 0)
                time.sleep(pause)
                pause = min(pause * 1.05, _LONGEST_POLL)
            elif report.gone:
                raise TargetError("the process died", where=f"pid {self._pid}")
            elif report.signal == pt.SYSCALL_STOP or (report.is_signal_delivery and report.signal != signal.SIGSTOP):
                return report
            else:
                # SIGSTOP cannot be blocked: it takes effect after the detach.
                pt.resume_to_syscall(self._tid, report.signal if report.event == 0 else 0)

    def syscall(self, number: int, *arguments: int) -> int:
        """Make a system call in the target; the result, negative errno on failure."""
        words = list(self._registers)
        words[cpu.RIP] = self._syscall_address
        words[cpu.RAX] = number
        words[cpu.ORIG_RAX] = (1 << 64) - 1  # no restart of what was interrupted, yet
        for register, value in zip(cpu.SYSCALL_ARGUMENTS, arguments, strict=False):
            words[register] = value & ((1 << 64) - 1)
        pt.write_registers(self._tid, words)
        for _ in range(2):
            report = self._next_syscall_stop(time.monotonic() + _CALL_TIMEOUT)
            if report.signal != pt.SYSCALL_STOP:
                raise TargetError(f"system call {number} in the target did not end", where=f"pid {self._pid}")
        value = pt.read_registers(self._tid)[cpu.RAX]
        return value - (1 << 64) if value >= 1 << 63 else value

    @contextmanager
    def scratch(self, data: bytes) -> Iterator[int]:
        """Lend `data` a place in the target's memory: below the thread's red zone, put back afterwards, since with
        coroutines that memory may be someone else's."""
        address = (self._registers[cpu.RSP] - cpu.RED_ZONE - len(data)) & -16
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
        found = self.attempt(function, stack_end, arguments, _FUNCTION_TIMEOUT, lambda _: True)
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
        may_leave: Callable[[Sequence[int]], bool],
        grace: float = 0.0,
    ) -> Returned:
        """Call a function that may fault or not return.  One that has not returned in `timeout` seconds is let run on
        for up to `grace` more, until `may_leave` says of its registers that it is where it may be left for good.

        Raises:
            TargetError: the process died.
        """
        state = pt.read_extended_state(self._tid)
        words = list(self._registers)
        stack = stack_end - 8
        self._memory.write(stack, struct.pack("<Q", self._syscall_address), self._tid)
        words[cpu.RSP] = stack
        words[cpu.RIP] = function
        words[cpu.EFLAGS] &= ~cpu.DIRECTION_FLAG
        words[cpu.ORIG_RAX] = (1 << 64) - 1
        for register, value in zip(cpu.FUNCTION_ARGUMENTS, arguments, strict=False):
            words[register] = value
        pt.write_registers(self._tid, words)
        pt.write_signal_mask(self._tid, _ALL_SIGNALS & ~_FAULTS)
        try:
            found = self._run_until_return(stack_end, timeout, may_leave, grace)
            if found.result is not None:
                words = list(found.place)
                words[cpu.ORIG_RAX] = (1 << 64) - 1  # skip the "system call" whose number is the result
                pt.write_registers(self._tid, words)
                self._next_syscall_stop(time.monotonic() + _CALL_TIMEOUT)
        finally:
            with contextlib.suppress(ProcessLookupError):
                pt.write_extended_state(self._tid, state)
                pt.write_signal_mask(self._tid, _ALL_SIGNALS)
        return found

    def _run_until_return(
        self, stack_end: int, timeout: float, may_leave: Callable[[Sequence[int]], bool], grace: float
    ) -> Returned:
        """Until the entry of the system call that a function returns to, a signal, or the time is up."""
        returned = self._syscall_address + len(cpu.SYSCALL_INSTRUCTION)
        deadline = time.monotonic() + timeout
        last = deadline + grace
        while True:
            report = self._next_syscall_stop(deadline)
            if not report.signal:
                pt.interrupt(self._tid)
                if not self._wait_for_stop(_STOP_TIMEOUT):
                    raise TargetError("a function called in the target does not stop", where=f"pid {self._pid}")
                self._restart_is_lost = True  # of what the thread was in before: the kernel keeps one only
            words = pt.read_registers(self._tid)
            if words[cpu.RIP] == returned and words[cpu.RSP] == stack_end and report.signal == pt.SYSCALL_STOP:
                return Returned(words[cpu.ORIG_RAX], None, words, True)
            if report.signal == pt.SYSCALL_STOP:
                continue
            is_clear = may_leave(words)
            if report.signal or is_clear or time.monotonic() >= last:
                return Returned(None, report.signal or None, words, is_clear)
            deadline = min(time.monotonic() + _GRACE_STEP, last)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._tid:
                with contextlib.suppress(ProcessLookupError):
                    self._put_back()
                    pt.detach(self._tid)
        finally:
            self.pause_us = (time.perf_counter_ns() - self._started) / 1000
            signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked_here)

    def _put_back(self) -> dict[int, int]:
        """Give the thread its registers and signal mask again; the registers that differ from what it had."""
        pt.interrupt(self._tid)
        pt.resume(self._tid)
        self._wait_for_stop(_STOP_TIMEOUT)
        words = list(self._registers)
        again = self._entered_again(words) if self._restart_is_lost else None
        changes = again or self._repair(words) or {}
        for index, value in changes.items():
            words[index] = value
        pt.write_registers(self._tid, words)
        pt.write_signal_mask(self._tid, self._mask)
        return changes

    def _entered_again(self, words: list[int]) -> dict[int, int] | None:
        code = b""
        with contextlib.suppress(TargetError):
            code = self._memory.read(words[cpu.RIP] - cpu.NUMBERED_SYSCALL_SIZE, cpu.NUMBERED_SYSCALL_SIZE)
        return cpu.entered_again(words, code)

    def _repair(self, words: list[int]) -> dict[int, int] | None:
        changes = cpu.repaired(words)
        if changes is None:
            return None
        waiting = pt.pending_signals(self._tid, True) + pt.pending_signals(self._tid, False)
        return None if any(not self._mask >> (n - 1) & 1 for n in waiting) else changes


class StoppedThread(RemoteThread):
    """The same of a thread that is stopped and traced already, with all others, and stays so.  `changes` are the
    registers that differ afterwards: {register index: value}.

    Args:
        tid, registers: the thread, and what it was stopped with.
    """

    def __init__(self, memory: ProcessMemory, syscall_address: int, tid: int, registers: Sequence[int]) -> None:
        super().__init__(memory, syscall_address)
        self._tid = tid
        self._registers = list(registers)
        self.changes: dict[int, int] = {}

    def __enter__(self) -> StoppedThread:
        self._mask = pt.read_signal_mask(self._tid)
        pt.write_signal_mask(self._tid, _ALL_SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.changes = self._put_back()
