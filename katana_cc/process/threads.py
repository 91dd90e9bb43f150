"""Stopping every thread of a process for a moment, and letting them go as if nothing had been.

The stop is short because everything slow comes before it.  All threads are first SEIZEd, which stops none; each also
passes the tracing on to the threads it creates (TRACECLONE).  Then all are INTERRUPTed, until a look at /proc shows no
thread that is not stopped.  What would be lost by a naive stop is kept:

* A signal on its way to a thread is reported first (signal-delivery-stop): the thread is continued with the signal,
  and the pending INTERRUPT stops it again.
* The kernel restarts most interrupted system calls by itself; those that would return EINTR are entered again, unless
  a signal is pending, since then the program would have seen EINTR anyway.
* A process stopped by SIGSTOP stays so after detaching.

Should we be killed, the kernel lets all threads run on.  Those that are *held* do not: a SIGSTOP that is pending for
each of them stops it before it runs any code of the program.  `release` takes these signals out again.

Sources: ptrace(2) "Attaching and detaching", "Group-stop", signal(7) "Interruption of system calls".
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Iterable, Mapping

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import BusyError, TargetError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process import stuck
from katana_cc.process.pending import Pending
from katana_cc.process.priority import stand_aside
from katana_cc.process.proc import is_dead, is_traced_by_us, list_threads, status_fields, thread_name
from katana_cc.process.rights import tracing_remedy
from katana_cc.process.timers import Timers

_RELEASE_TIMEOUT = 0.25  # seconds
TRACED_WITH = pt.O_TRACECLONE | pt.O_TRACESYSGOOD
_LONGEST_RELEASE = 30.0  # seconds
_LONGEST_POLL = 500e-6  # seconds
STOP_TIMEOUT = 1.0  # seconds; threads stop within a millisecond unless they are in a vfork or a dead disk


class Threads:
    """The threads of one process under trace.  Use as `seize()`, `stop()`, ..., `release()`; release is always safe.

    Attributes:
        stopped_at: perf_counter_ns() just before the first INTERRUPT.
        registers: words of user_regs_struct, REGISTER_WORDS for each of `order`; filled by `read_registers`.
        is_halted: the process was stopped by a signal before (SIGSTOP, SIGTSTP).
    """

    def __init__(self, pid: int, capacity: int = 64) -> None:
        self.pid = pid
        self.order: list[int] = []
        self.stopped_at = 0
        self._known: set[int] = set()
        self._gone: set[int] = set()
        self._stopped: set[int] = set()
        self._strangers: set[int] = set()
        self._in_event: set[int] = set()
        self._held: set[int] = set()
        self.is_halted = False
        self._buffer = (ctypes.c_uint64 * (pt.REGISTER_WORDS * capacity))()
        self.registers = memoryview(self._buffer).cast("B").cast("Q")

    def seize(self) -> None:
        """Trace every thread; none is stopped by it.

        Raises:
            TargetError: gone, not permitted, or already traced.
        """
        while True:
            fresh = [t for t in list_threads(self.pid) if t not in self._known]
            if not fresh:
                break
            for tid in fresh:
                self._known.add(tid)
                self._seize_one(tid)
        if not self._traced():
            raise TargetError("the process is gone", where=f"pid {self.pid}")
        count = len(self._known) + 64
        if count * pt.REGISTER_WORDS > len(self._buffer):
            self._buffer = (ctypes.c_uint64 * (pt.REGISTER_WORDS * count))()
            self.registers = memoryview(self._buffer).cast("B").cast("Q")

    def _seize_one(self, tid: int) -> bool:
        if stuck.take(tid):
            return True
        try:
            pt.seize(tid, TRACED_WITH)
        except ProcessLookupError:
            self._gone.add(tid)
            return False
        except OSError as error:
            fields = status_fields(self.pid, tid)
            if not fields or fields.get("State", "").startswith(("Z", "X")):
                self._gone.add(tid)  # a leader that exited before its threads
                return False
            if is_traced_by_us(fields):
                return True  # created by a thread we trace
            raise refusal_to_trace(self.pid, error) from None
        return True

    def _traced(self) -> set[int]:
        return self._known - self._gone

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop all of them.

        Raises:
            BusyError: a thread did not stop in time (in a vfork, or in an uninterruptible wait).
            TargetError: the process died.
        """
        self.stopped_at = time.perf_counter_ns()
        for tid in self._known:
            if tid not in self._gone:
                self._interrupt(tid)
        deadline = time.monotonic() + timeout
        pending = self._traced()
        passes, pause = 0, 20e-6
        while True:
            for tid in tuple(pending):
                if self._collect(tid):
                    pending.discard(tid)
            if not pending:
                fresh = [t for t in list_threads(self.pid) if t not in self._known]
                if not fresh:
                    break
                for tid in fresh:
                    self._known.add(tid)
                    if self._seize_one(tid):
                        self._interrupt(tid)
                        pending.add(tid)
                continue
            passes += 1
            if passes > 4:
                if time.monotonic() > deadline:
                    tid = min(pending)
                    if is_dead(self.pid):
                        raise TargetError("the process died", where=f"pid {self.pid}")
                    self._repair(self._stopped - self._gone)
                    raise BusyError(
                        f"thread {tid} ({thread_name(self.pid, tid)}) does not stop",
                        where=f"pid {self.pid}",
                        remedy="it may wait for a child in vfork, or for a device; try again later",
                    )
                stuck.reap()
                stand_aside(pause)
                pause = min(pause * 1.05, _LONGEST_POLL)
            else:
                os.sched_yield()
        self.order = sorted(self._traced())
        if not self.order:
            raise TargetError("the process died", where=f"pid {self.pid}")

    def _interrupt(self, tid: int) -> None:
        try:
            pt.interrupt(tid)
        except ProcessLookupError:
            # Dead, or not ours any more; wait() tells.
            pass
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ESRCH):
                raise

    def _collect(self, tid: int) -> bool:
        """Whether the thread is stopped, or gone."""
        while True:
            report = pt.wait(tid)
            if report is None:
                return False
            if report.gone:
                self._gone.add(tid)
                return True
            if report.is_signal_delivery:
                with contextlib.suppress(ProcessLookupError):
                    pt.resume(tid, 0 if self._is_our_hold(tid, report.signal) else report.signal)
                continue
            self._stopped.add(tid)
            if report.event == pt.EVENT_STOP and report.signal != signal.SIGTRAP:
                self.is_halted = True
            if report.event == pt.EVENT_CLONE:
                self._in_event.add(tid)
                # Usually one more thread, which the next look at /proc shows; but clone() also makes processes.
                with contextlib.suppress(OSError):
                    self._strangers.add(pt.event_message(tid))
            return True

    def read_registers(self) -> None:
        """Fill `registers` for all of `order`; a thread that dies meanwhile (SIGKILL) drops out."""
        count = len(self.order)
        if count * pt.REGISTER_WORDS > len(self._buffer):
            self._buffer = (ctypes.c_uint64 * (pt.REGISTER_WORDS * count))()
            self.registers = memoryview(self._buffer).cast("B").cast("Q")
        base = ctypes.addressof(self._buffer)
        alive: list[int] = []
        for tid in self.order:
            try:
                pt.read_registers_into(tid, base + len(alive) * pt.REGISTER_BYTES)
            except ProcessLookupError:
                self._gone.add(tid)
                continue
            alive.append(tid)
        self.order = alive

    def set_register(self, tid: int, index: int, value: int) -> None:
        """Set one general register of a stopped thread; `index` as in user_regs_struct.  One that died meanwhile is
        left out."""
        at = self.order.index(tid) * pt.REGISTER_WORDS
        self.registers[at + index] = value
        with contextlib.suppress(ProcessLookupError):
            pt.write_registers_from(tid, ctypes.addressof(self._buffer) + 8 * at)

    def is_starting(self, tid: int) -> bool:
        """Whether a stopped thread is in the midst of the system call that makes another one."""
        return tid in self._in_event

    def repair_system_calls(self, timers: Timers | None = None, is_last: bool = True) -> int:
        """Re-enter the system calls that our stop would make return EINTR; how many there were.

        `timers` know since when they wait; with `is_last` no stop is to follow.
        """
        count = 0
        pending = Pending()
        eintr = (1 << 64) - cpu.EINTR
        base = ctypes.addressof(self._buffer)
        for i, tid in enumerate(self.order):
            at = i * pt.REGISTER_WORDS
            if self.registers[at + cpu.RESULT] != eintr or tid in self._in_event:
                continue
            changes: Mapping[int, int] | None = cpu.repaired(self.registers[at : at + pt.REGISTER_WORDS])
            if changes is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                if pending.ends_call(tid):
                    continue
                if cpu.has_own_mask(self.registers[at : at + pt.REGISTER_WORDS]):
                    # A signal that only the call lets in must find it waiting, or it would wait on in vain.
                    pt.write_signal_mask(tid, pt.read_signal_mask(tid))
                if timers is not None:
                    changes = timers.entered_again(tid, self.registers[at : at + pt.REGISTER_WORDS], changes, is_last)
                for index, value in changes.items():
                    self.registers[at + index] = value
                pt.write_registers_from(tid, base + 8 * at)
                count += 1
        return count

    def _repair(self, tids: Iterable[int]) -> None:
        """Of threads that stopped in vain: the program must not notice that either."""
        self.order = sorted(tids)
        self.read_registers()
        self.repair_system_calls()

    def hold(self) -> bool:
        """Have every stopped thread stop again at once if we are killed before `release`.  False: it cannot be done
        without losing a SIGCONT that is on its way, and was not.

        Raises:
            OSError: it is not permitted (kill(2)).
        """
        queued = [n for tid in self.order[:1] for n in pt.pending_signals(tid, True)]
        for tid in self.order:
            with contextlib.suppress(ProcessLookupError):
                queued += pt.pending_signals(tid, False)
        if signal.SIGCONT in queued:
            return False
        for tid in self.order:
            with contextlib.suppress(ProcessLookupError):
                pt.send_signal(self.pid, tid, signal.SIGSTOP)
                self._held.add(tid)
        return True

    def is_holding(self) -> bool:
        """Whether threads will stop, or have, because somebody held them."""
        return self.is_halted or any(signal.SIGSTOP in pt.pending_signals(tid, False) for tid in self.order)

    def wake(self) -> None:
        """Have the process go on that was held by one who was killed, once it is released."""
        pt.send_signal(self.pid, self.order[0], signal.SIGCONT)

    def _is_our_hold(self, tid: int, number: int) -> bool:
        if number != signal.SIGSTOP or tid not in self._held:
            return False
        self._held.discard(tid)
        return True

    def _release_held(self) -> None:
        """Let those go that are held: each comes to its SIGSTOP, which it does not get.  None is let go before, however
        long it waits for a processor: it would stop for good."""
        pending = self._held & self._stopped
        for tid in pending:
            with contextlib.suppress(OSError):
                pt.resume(tid)
        self._stopped -= pending
        begun = asked = time.monotonic()
        pause = 10e-6
        while pending:
            for tid in tuple(pending):
                report = pt.wait(tid)
                if report is not None and self._has_come_free(tid, report):
                    pending.discard(tid)
            now = time.monotonic()
            if now - begun > _LONGEST_RELEASE:
                with contextlib.suppress(OSError):
                    pt.send_signal(self.pid, min(pending), signal.SIGCONT)  # takes all of them away
                return
            if now - asked > STOP_TIMEOUT:
                asked = now
                for tid in pending:  # one whose SIGSTOP a SIGCONT has taken away runs
                    self._interrupt(tid)
            if pending:
                stand_aside(pause)
                pause = min(pause * 1.05, _LONGEST_POLL)

    def _has_come_free(self, tid: int, report: pt.Stop) -> bool:
        """What a thread that is held came to on its way to its SIGSTOP; whether it is let go."""
        with contextlib.suppress(OSError):
            if not report.gone and not self._is_our_hold(tid, report.signal if report.is_signal_delivery else 0):
                if report.is_signal_delivery or signal.SIGSTOP in pt.pending_signals(tid, False):
                    pt.resume(tid, report.signal if report.is_signal_delivery else 0)
                    return False
                self._repair((tid,))
            if not report.gone:
                stuck.detach(tid)
        self._gone.add(tid)  # for us
        return True

    def release(self) -> None:
        """Let every thread run on, and stop tracing.  Threads that never stopped are waited for shortly; the rest is
        left to `stuck`."""
        self._release_held()
        for tid in self._stopped:
            stuck.detach(tid)
        self._release_running()
        self.order = []
        for each in (self._known, self._gone, self._stopped, self._strangers, self._in_event, self._held):
            each.clear()

    def _release_running(self) -> None:
        """Detach threads that are traced but not stopped, also those that come to be meanwhile: a detach needs a
        stop."""
        asked: set[int] = set()
        done = set(self._stopped)
        deadline = time.monotonic() + _RELEASE_TIMEOUT
        while pending := (self._known | self._strangers) - self._gone - done:
            is_late = time.monotonic() > deadline
            for tid in pending:
                if tid not in asked:
                    asked.add(tid)
                    with contextlib.suppress(OSError):
                        pt.interrupt(tid)
                if self._collect(tid):
                    done.add(tid)
                    if tid not in self._gone:
                        stuck.let_go(tid)
                elif is_late:
                    done.add(tid)
                    stuck.leave(tid)
            if not is_late:
                stand_aside(50e-6)


def refusal_to_trace(pid: int, error: OSError) -> TargetError:
    """Why a process cannot be traced, in words: already traced (by whom), or not permitted."""
    where = f"pid {pid} ({thread_name(pid, pid)})"
    tracer = int(status_fields(pid).get("TracerPid", "0"))
    if tracer:
        name = status_fields(tracer).get("Name", "?")
        return TargetError(
            f"already traced by {name} (pid {tracer})",
            where=where,
            remedy="end that debugger or tracer, then try again",
        )
    if error.errno == errno.ESRCH:
        return TargetError("the process is gone", where=f"pid {pid}")
    return TargetError(f"may not be traced: {os.strerror(error.errno or 0)}", where=where, remedy=tracing_remedy())
