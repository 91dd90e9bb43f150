"""A program that is traced from before its exec, followed to its entry point (theory in `launch`).

    exec            the bytes at the entry point are kept, whoever is to put them back is told, and a jump to itself is
                    put there; once more where a constructor begins the program anew (runtimes of sanitizers do)
    fork, vfork     a child was born with that jump: it gets the bytes back, unless its memory is its parent's
    clone           a thread that a constructor makes is followed too: it may fork
    entry point     all threads are let go, the first one in that jump

The first thread is looked at now and then, as long as it does not wait: a breakpoint would kill the program if the
patcher were killed meanwhile.
An event of any thread ends the pause between two looks, since the thread stands until it is answered.

Sources: ptrace(2) (PTRACE_O_TRACEFORK, PTRACE_O_TRACECLONE, "execve(2) under ptrace"), signal(7).
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from katana_cc.cpu.native import cpu as native
from katana_cc.cpu.native import system as cpu
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError, KatanaError, RefusedError, TargetError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process import stuck
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.proc import has_ended, status_fields, waiting_at
from katana_cc.process.sharing import same_memory
from katana_cc.process.target import AT_ENTRY, Target

TRACED_WITH: Final = pt.O_TRACEEXEC | pt.O_TRACEFORK | pt.O_TRACEVFORK | pt.O_TRACECLONE
_BIRTHS: Final = (pt.EVENT_FORK, pt.EVENT_VFORK, pt.EVENT_CLONE)
_FIRST_LOOK: Final = 0.0005  # seconds
_LAST_LOOK: Final = 0.01
_TO_LET_GO: Final = 1.0  # for threads that do not stop: the kernel lets them go when we end


class Entry(NamedTuple):
    """Where a program begins, and what belongs there."""

    address: int
    first: bytes


class Start:
    """A process that stands at its first exec, traced with TRACED_WITH.

    Args:
        tell: hears, of each image that it becomes, what is to be put back, before it has to be.
    """

    def __init__(self, pid: int, tell: Callable[[Entry], None]) -> None:
        self._pid = pid
        self._tell = tell
        self._threads = {pid}
        self._met: set[int] = set()  # born, and not yet told of by who bore them
        self._entry: Entry | None = None
        self._memory: ProcessMemory | None = None
        self._let_go_until = 0.0  # since when it is there; 0: it is not

    def follow(self) -> Entry | None:
        """Let it run until its first thread is in the jump at its entry point, traced no more; None when it ended
        before.

        Raises:
            KatanaError: it has become something whose code we do not write to, or that we may not trace again.  The
            jump is not there, and it is traced still.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            self._begin()
            pt.resume(self._pid)
            return self._entry if self._comes() else None
        except ProcessLookupError:
            return None
        except KatanaError:
            self._give_up()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if self._memory is not None:
                self._memory.close()

    def _comes(self) -> bool:
        pause = _FIRST_LOOK
        while True:
            if self._let_go_until and (self._threads == {self._pid} or time.monotonic() > self._let_go_until):
                self._refuse_unless_traceable()
                pt.detach(self._pid)
                return True
            found = pt.wait_any()
            if found is None:
                if signal.sigtimedwait({signal.SIGCHLD}, pause) is None:
                    pause = min(2 * pause, _LAST_LOOK)
                    # One that waits is not in the jump; and were it stopped all the time, its time-outs never ended.
                    if not self._let_go_until and waiting_at(self._pid, self._pid) is None:
                        pt.interrupt(self._pid)
                continue
            tid, stop = found
            if stop.gone:
                self._threads.discard(tid)
                if self._pid not in self._threads:
                    return False
                continue
            with contextlib.suppress(ProcessLookupError):
                self._answer(tid, stop)

    def _answer(self, tid: int, stop: pt.Stop) -> None:
        """Do what a stop of a thread calls for."""
        if stop.event == pt.EVENT_EXEC:
            self._begin()
        elif tid not in self._threads:
            self._met.add(tid)
            self._meet(tid)
            return
        elif stop.event in _BIRTHS:
            child = pt.event_message(tid)
            if child in self._met:
                self._met.discard(child)
            elif not pt.wait_for(child).gone:
                self._meet(child)
        elif stop.event == pt.EVENT_STOP and tid == self._pid:
            assert self._entry is not None
            if pt.read_registers(tid)[cpu.PC] == self._entry.address:
                self._arrive()
                return
            stuck.repair(tid)
        elif stop.event == pt.EVENT_STOP and self._let_go_until:
            self._threads.discard(tid)
            stuck.let_go(tid)
            return
        pt.resume(tid, stop.signal if stop.is_signal_delivery else 0)

    def _begin(self) -> None:
        """Its memory is new, and nothing of it has run."""
        if self._memory is not None:
            self._memory.close()
        self._threads = {self._pid}
        self._let_go_until = 0.0
        address = _entry_of(self._pid)
        self._memory = ProcessMemory(self._pid)
        self._entry = Entry(address, self._memory.read(address, len(cpu.SPIN)))
        self._tell(self._entry)
        self._memory.write(address, cpu.SPIN, self._pid)

    def _meet(self, tid: int) -> None:
        """What was born, and stands before its first step; or has been killed there."""
        with contextlib.suppress(ProcessLookupError):
            if int(status_fields(tid).get("Tgid", "0")) != self._pid:
                try:
                    self._give_back(tid)
                except TargetError:
                    if not has_ended(tid):
                        raise
                pt.detach(tid)
            elif self._let_go_until:
                pt.detach(tid)
            else:
                self._threads.add(tid)
                pt.resume(tid)

    def _give_back(self, child: int) -> None:
        """Take the jump out of the memory of a child."""
        assert self._entry is not None
        assert self._memory is not None
        address, first = self._entry
        if same_memory(child, self._pid):
            return
        with contextlib.closing(ProcessMemory(child)) as memory:
            if memory.read(address, len(first)) == cpu.SPIN:
                memory.write(address, first, child)
            if self._memory.read(address, len(first)) != cpu.SPIN:  # it was one memory, and nobody could tell
                memory.write(address, cpu.SPIN, child)

    def _arrive(self) -> None:
        """Its first thread is in the jump, and stopped: so are the others soon, to be let go."""
        self._let_go_until = time.monotonic() + _TO_LET_GO
        for tid in self._threads - {self._pid}:
            with contextlib.suppress(ProcessLookupError):
                pt.interrupt(tid)

    def _refuse_unless_traceable(self) -> None:
        """Once let go it could not be stopped again, if a constructor has taken that right from us."""
        try:
            ProcessMemory(self._pid).close()
        except TargetError as error:
            raise RefusedError(
                "it may not be traced any more: a constructor of a library forbids it (PR_SET_DUMPABLE, setuid)",
                where=f"pid {self._pid}",
                remedy=error.remedy,
            ) from None

    def _give_up(self) -> None:
        """Take the jump out again: nobody will come to take the program out of it."""
        if self._memory is not None and self._entry is not None:
            with contextlib.suppress(TargetError):
                if self._memory.read(self._entry.address, len(cpu.SPIN)) == cpu.SPIN:
                    self._memory.write(*self._entry, self._pid)


def _entry_of(pid: int) -> int:
    """Where the program itself begins.

    Raises:
        RefusedError: by then it is not relocated, or not a 64-bit program.
    """
    try:
        image = ElfFile(Path(f"/proc/{pid}/exe").read_bytes(), f"/proc/{pid}/exe")
    except (OSError, FormatError) as error:
        raise RefusedError(f"it cannot be read: {error}", where=f"pid {pid}") from None
    if image.machine != cpu.MACHINE:
        raise RefusedError(f"it is for ELF machine {image.machine}, not {native.name}", where=f"pid {pid}")
    kinds = {segment.type for segment in image.segments}
    if image.type == c.ET_DYN and c.PT_INTERP not in kinds:
        raise RefusedError(
            "a static position-independent program relocates itself after it has begun",
            where=f"pid {pid}",
            remedy="start it, and use `katana apply`",
        )
    with contextlib.closing(Target(pid)) as target:
        return target.auxiliary(AT_ENTRY)
