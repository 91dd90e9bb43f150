"""Moving live data so that a katana that is killed meanwhile leaves no half of it to anybody.

Theory of operation.  When a tracer is killed the kernel lets all threads run on, and so they would run with data of
which a part was moved.  Two things prevent it:

* Every thread is *held* (`Threads.hold`): a SIGSTOP is pending for it.  It takes effect, before the thread runs any
  code of the program, when and only when nobody traces it any more, since `release` takes it out.
* All that is to be written lies in a journal before (`katana_cc.process.journal`), in a mapping that was made before
  the stop.  So whoever comes next, mostly the guardian (`katana_cc.process.guardian`), can write it all again and let
  the process go on (`katana_cc.process.finishing`): as if nobody had been killed.

    before the stop    map room for the journal
    in the stop        journal → HOLDING → hold all threads → WRITING → write → LETTING_GO → let them go
    afterwards         IDLE → unmap

A signal and not code that waits, because it needs nothing of the thread: no stack to keep registers on, no C library,
and the kernel itself goes on with what the thread was in.  What it cannot stand is a SIGCONT from somebody else between
the death of katana and the finishing.

Where there is no room (a limit, a policy) or signals may not be sent, it is written as a patch of code is, and a katana
that is killed in that moment leaves data half moved.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import BusyError, RefusedError, TargetError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.borrowing import BorrowedThread
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.inject import make_memfd, open_memfd, write_all
from katana_cc.process.journal import (
    BODY_AT,
    MAGIC,
    PHASE_AT,
    Mask,
    Progress,
    RegisterChange,
    ThreadId,
    encode_body,
    encode_header,
    encode_progress,
)
from katana_cc.process.link import PAGE, PROT_READ
from katana_cc.process.maps import JOURNAL, is_journal
from katana_cc.process.priority import first_in_line
from katana_cc.process.registers import RegisterWord
from katana_cc.process.remote import RemoteThread
from katana_cc.process.target import Target
from katana_cc.process.threads import Threads

_SIZES: Final = (1 << 30, 1 << 26, 1 << 22)  # of addresses: memory is taken for what is written only
_MAP_PRIVATE: Final = 0x02
ALL_SIGNALS: Final = (1 << 64) - 1


class Hold:
    """What holds one process while live data is written.  A context manager; `make_room` has to be called before each
    stop."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._handle = -1
        self._address = 0
        self._size = 0
        self._masks: tuple[Mask, ...] = ()
        self._is_on = False

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        if self._address:
            gone = contextlib.suppress(BusyError, RefusedError, TargetError)
            with gone, first_in_line(), self._thread() as remote:
                remote.syscall(cpu.SYS_MUNMAP, self._address, self._size)

    def _thread(self) -> BorrowedThread:
        target = self._target
        return BorrowedThread(target.memory, find_gadgets(target.memory, target.regions, target.where))

    def make_room(self) -> None:
        """Have room for a journal, if it can be had.

        Raises:
            TargetError: the process died, or is traced.
        """
        if self._address:
            return
        with contextlib.suppress(BusyError, RefusedError), first_in_line(), self._thread() as remote:
            for region in self._target.read_map().regions:
                if is_journal(region):  # of one that was killed; what was begun there was finished before we began
                    remote.syscall(cpu.SYS_MUNMAP, region.start, region.size)
            number = make_memfd(remote, self._target, JOURNAL)
            try:
                handle = open_memfd(self._target, number)
                try:
                    self._map(remote, number, handle)
                finally:
                    if self._address:
                        self._handle = handle
                    else:
                        os.close(handle)
            finally:
                remote.syscall(cpu.SYS_CLOSE, number)

    def _map(self, remote: RemoteThread, number: int, handle: int) -> None:
        header = encode_header(Progress.IDLE, 0, b"", was_halted=False)
        for size in _SIZES:
            try:
                os.ftruncate(handle, size)
                write_all(handle, header, 0)
            except OSError:
                continue  # a limit of our own
            address = remote.syscall(cpu.SYS_MMAP, 0, size, PROT_READ, _MAP_PRIVATE, number, 0)
            if not -PAGE < address < 0:
                self._address, self._size = address, size
                return

    def begin(
        self,
        threads: Threads,
        base: int,
        pieces: Sequence[tuple[int, bytes]],
        registers: Sequence[tuple[RegisterWord, int]],
    ) -> None:
        """Hold all threads, and tell what is about to be written.  From here on it is written whole, by whomever.

        Args:
            base: of the ledger of the patch.

        Raises:
            TargetError: the process died.
        """
        if not self._address:
            return
        memory, tid = self._target.memory, threads.order[0]
        row = {t: i * pt.REGISTER_WORDS + cpu.THREAD_POINTER for i, t in enumerate(threads.order)}
        names = {t: ThreadId(threads.registers[at], t) for t, at in row.items()}
        changes = [RegisterChange(names[r.tid], r.place, r.is_vector, r.value, value) for r, value in registers]
        masks = [Mask(names[t], pt.read_signal_mask(t)) for t in dict.fromkeys(r.tid for r, _ in registers)]
        body = encode_body(pieces, changes, masks)
        if BODY_AT + len(body) > self._size or memory.read(self._address, len(MAGIC)) != MAGIC:
            return
        try:
            write_all(self._handle, body, BODY_AT)
        except OSError:
            return  # no memory, or a limit of our own
        self._is_on = True
        header = encode_header(Progress.HOLDING, base, body, was_halted=threads.is_halted)
        memory.write(self._address, header, tid)
        if not threads.is_halted and not _is_held(threads):
            self.end()
            return
        self._masks = tuple(masks)
        for m in masks:
            with contextlib.suppress(ProcessLookupError):
                pt.write_signal_mask(m.thread.tid, ALL_SIGNALS)
        self._tell(Progress.WRITING, tid)

    def written(self, threads: Threads) -> None:
        """All was written, or put back."""
        if not self._is_on:
            return
        for m in self._masks:
            with contextlib.suppress(ProcessLookupError):
                pt.write_signal_mask(m.thread.tid, m.blocked)
        self._masks = ()
        with contextlib.suppress(TargetError):  # then it is finished once more, to the same end
            self._tell(Progress.LETTING_GO, threads.order[0])

    def end(self) -> None:
        """All threads were let go."""
        if self._is_on:
            self._is_on = False
            with contextlib.suppress(TargetError):
                self._tell(Progress.IDLE, None)

    def _tell(self, progress: Progress, tid: int | None) -> None:
        self._target.memory.write(self._address + PHASE_AT, encode_progress(progress), tid)


def _is_held(threads: Threads) -> bool:
    """Whether all threads are, from now on."""
    try:
        return threads.hold()
    except OSError:
        return False  # whoever may trace a process may not always send it signals (CAP_KILL)
