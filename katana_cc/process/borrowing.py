"""A thread of the target to make calls with: one that this process stops for it, or one that is stopped already.

Not every thread will do, nor does every thread stop: one after another is tried, those last that will hardly stop.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import BusyError, RefusedError, TargetError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process import stuck
from katana_cc.process.gadgets import Gadgets
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.proc import is_traced_by_us, list_threads, status_fields, thread_name
from katana_cc.process.remote import STOP_TIMEOUT, EndedError, RemoteThread
from katana_cc.process.threads import TRACED_WITH, refusal_to_trace

_WORKER_NAMES: Final = ("iou-wrk", "iou-sqp")


class BorrowedThread(RemoteThread):
    """One thread of the target, of our choice, stopped meanwhile.  A context manager: leaving puts everything back.

    Args:
        unfit: says of a stopped thread's registers why it will not do ("" when it will); then the next one is tried.

    Raises (on entering):
        TargetError: gone, not permitted, or already traced.
        BusyError: no thread of the process can be stopped, or none will do.
        RefusedError: seccomp may forbid the calls, and cannot be suspended.
    """

    def __init__(
        self, memory: ProcessMemory, gadgets: Gadgets, unfit: Callable[[Sequence[int]], str] | None = None
    ) -> None:
        super().__init__(memory, gadgets)
        self._unfit = unfit
        self._blocked_here: set[signal.Signals | int] = set()
        self._started = 0
        self.pause_us = 0.0

    def __enter__(self) -> BorrowedThread:
        everything = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
        self._blocked_here = signal.pthread_sigmask(signal.SIG_BLOCK, everything)
        try:
            self._stop_one()
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked_here)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._tid:
                with contextlib.suppress(ProcessLookupError):
                    self._put_back()
                stuck.detach(self._tid)
        finally:
            self.pause_us = (time.perf_counter_ns() - self._started) / 1000
            signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked_here)

    def _stop_one(self) -> None:
        waiting = 0
        why = ""
        refusal: RefusedError | None = None
        for tid in self._candidates():
            is_again = self._trace(tid)
            if is_again is None:
                continue
            self._tid = tid
            self._started = time.perf_counter_ns()
            try:
                pt.interrupt(tid)
                if not self._wait_for_stop(STOP_TIMEOUT):
                    stuck.leave(tid)
                    waiting = tid
                    continue
                if is_again:
                    pt.set_options(tid, pt.O_TRACESYSGOOD)
                self._registers = pt.read_registers(tid)
            except (EndedError, pt.GoneError):
                stuck.leave(tid)
                continue  # the others may go on
            if not self._is_same_image():
                self._let_go()
                raise TargetError(
                    "it runs another program by now (execve)",
                    where=f"pid {self._pid}",
                    remedy="nothing was changed; see `katana status`",
                )
            if not cpu.runs_supported_code(self._registers):
                pt.detach(tid)
                continue
            found = self._unfit(self._registers) if self._unfit else ""
            if found:
                why = f"thread {tid} ({thread_name(self._pid, tid)}) {found}"
                self._let_go()
                continue
            try:
                self._suspend_seccomp(pt.O_TRACESYSGOOD)
            except RefusedError as error:
                refusal = error  # another thread may have no filter
                self._let_go()
                continue
            self._make_ready()
            return
        self._tid = 0
        if refusal is not None:
            raise refusal
        if why:
            raise BusyError(
                f"no thread is where a function could be called: {why}",
                where=f"pid {self._pid}",
                remedy="nothing was touched; wait longer (--wait)",
            )
        if waiting:
            raise BusyError(
                f"thread {waiting} ({thread_name(self._pid, waiting)}) does not stop",
                where=f"pid {self._pid}",
                remedy="it may wait for a child in vfork, or for a device; try again later",
            )
        raise TargetError("the process is gone", where=f"pid {self._pid}")

    def _candidates(self) -> Iterator[int]:
        """The threads, those last that will hardly stop: in vfork, or waiting for a device."""
        late = []
        for tid in sorted(list_threads(self._pid)):
            fields = status_fields(self._pid, tid)
            if fields.get("Name", "?").startswith(_WORKER_NAMES):
                continue  # never runs user code
            if stuck.holds(tid) or fields.get("State", "").startswith("D"):
                late.append(tid)
            else:
                yield tid
        yield from late

    def _trace(self, tid: int) -> bool | None:
        """Trace a thread; whether it was traced by us already (then with other options), None if it has ended."""
        if stuck.take(tid):
            return True
        try:
            pt.seize(tid, pt.O_TRACESYSGOOD)
        except ProcessLookupError:
            return None
        except OSError as error:
            fields = status_fields(self._pid, tid)
            if fields.get("State", "Z").startswith(("Z", "X")):
                return None
            if is_traced_by_us(fields):
                return True
            raise refusal_to_trace(self._pid, error) from None
        return False

    def _is_same_image(self) -> bool:
        """Whether the thread still has the memory that the gadgets were found in."""
        code = self._gadgets.code
        with contextlib.suppress(TargetError):
            ours = b"".join(self._memory.read(at, len(data)) for at, data in code)
            theirs = pt.peek(self._tid, [(at, len(data)) for at, data in code])
            return ours == theirs == b"".join(data for _, data in code)
        return False

    def _let_go(self) -> None:
        """Let a thread go on of which nothing was changed."""
        stuck.let_go(self._tid)
        self._tid = 0


class StoppedThread(RemoteThread):
    """The same of a thread that is stopped and traced already, with all others, and stays so.  `changes` are the
    registers that differ afterwards: {register index: value}.

    Args:
        tid, registers: the thread, and what it was stopped with.

    Raises (on entering):
        RefusedError: seccomp may forbid the calls, and cannot be suspended.
    """

    def __init__(self, memory: ProcessMemory, gadgets: Gadgets, tid: int, registers: Sequence[int]) -> None:
        super().__init__(memory, gadgets, tid, registers)
        self._was_at = registers[cpu.PC]
        self.changes: dict[int, int] = {}

    def __enter__(self) -> StoppedThread:
        self._suspend_seccomp(TRACED_WITH)
        self._make_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            pc = self._registers[cpu.PC]
            self.changes = ({cpu.PC: pc} if pc != self._was_at else {}) | self._put_back()
            pt.set_options(self._tid, TRACED_WITH)
