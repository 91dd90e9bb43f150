"""Blocks from the target's own malloc, many at a time, and giving them back to its free.

A few instructions that call calloc in a loop are mapped, with room for the addresses that it returns; one thread that
is stopped alone at a safe point (`calling.py`) runs them, a thousand blocks a stop, and the mapping goes again.  A
katana that is killed between two stops leaves the blocks it had, which are lost to the program but do no harm: they
hold zeros, not words of what was there before, which the next look at the heap would have to take for pointers.  Killed
in a stop, it leaves its mapping as well, which the next one takes out.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from katana_cc.cpu.native import code
from katana_cc.cpu.native import system as cpu
from katana_cc.errors import KatanaError, RefusedError
from katana_cc.process.calling import MAP_PRIVATE, Caller, Calls
from katana_cc.process.heap import Allocator
from katana_cc.process.inject import make_memfd, open_memfd
from katana_cc.process.limits import memory_remedy
from katana_cc.process.link import PAGE, PROT_EXEC, PROT_READ, PROT_WRITE
from katana_cc.process.maps import BLOCKS
from katana_cc.process.target import Target

_BATCH: Final = 1024  # blocks a stop, about 100 us
_ROOM: Final = 8 * _BATCH
_RELEASE_AT: Final = 128


class Blocks:
    """malloc and free of one process.

    Raises:
        RefusedError: their addresses are not known.
    """

    def __init__(self, target: Target, allocator: Allocator, wait: float) -> None:
        if not allocator.calloc or not allocator.free:
            raise RefusedError(
                "the program names no malloc that could be called in it (it is linked statically)",
                where=target.where,
                remedy="restart the process with the new build",
            )
        self._target = target
        self._allocator = allocator
        self._wait = wait
        self._caller: Caller | None = None
        self.pauses_us: list[float] = []

    def allocate(self, size: int, count: int) -> list[int]:
        """New blocks of `size` bytes.

        Raises:
            BusyError: no thread was where malloc may be called.
            RefusedError: the process has no memory for all of them; those it had are free again.
        """
        found: list[int] = []
        try:
            while len(found) < count:
                wanted = min(count - len(found), _BATCH)
                got = self._allocate(size, wanted)
                found += got
                if len(got) < wanted:
                    raise RefusedError(
                        f"the process has no memory for {count} more blocks of {size} bytes",
                        where=self._target.where,
                        remedy=f"{memory_remedy(self._target.pid, 2 * count * size)}; nothing was touched",
                    )
        except BaseException:
            with contextlib.suppress(KatanaError):
                self.release(found)
            raise
        return found

    def release(self, blocks: Sequence[int]) -> None:
        """Free blocks.

        Raises:
            BusyError: no thread was where free may be called; the first of them may be free already.
        """
        for at in range(0, len(blocks), _BATCH):
            self._release(blocks[at : at + _BATCH])

    def _allocate(self, size: int, count: int) -> list[int]:
        found: list[int] = []

        def work(calls: Calls) -> None:
            with self._code(calls) as (code, room):
                got = calls.call(code, "calloc", self._allocator.calloc, size, count, room)
                found.extend(struct.unpack(f"<{got}Q", self._target.memory.read(room, 8 * got)))

        self._run(work)
        return found

    def _release(self, blocks: Sequence[int]) -> None:
        def work(calls: Calls) -> None:
            with self._code(calls) as (code, room):
                self._target.memory.write(room, struct.pack(f"<{len(blocks)}Q", *blocks))
                calls.call(code + _RELEASE_AT, "free", self._allocator.free, room, len(blocks))

        self._run(work)

    def _run(self, work: Callable[[Calls], None]) -> None:
        if self._caller is None:
            self._caller = Caller(self._target)
        self.pauses_us.append(self._caller.run(self._wait, work).pause_us)

    @contextlib.contextmanager
    def _code(self, calls: Calls) -> Iterator[tuple[int, int]]:
        """(address of the code, of the room), mapped for the length of a block."""
        remote, target = calls.remote, self._target
        number = make_memfd(remote, target, BLOCKS)
        mapped: list[tuple[int, int]] = []
        try:
            handle = open_memfd(target, number)
            try:
                os.ftruncate(handle, PAGE + _ROOM)
                between = code.FILL * ((_RELEASE_AT - len(cpu.ALLOCATE)) // len(code.FILL))
                os.pwrite(handle, cpu.ALLOCATE + between + cpu.RELEASE, 0)
            finally:
                os.close(handle)
            for size, protection, offset in (
                (PAGE, PROT_READ | PROT_EXEC, 0),
                (_ROOM, PROT_READ | PROT_WRITE, PAGE),
            ):
                address = remote.syscall(cpu.SYS_MMAP, 0, size, protection, MAP_PRIVATE, number, offset)
                if -PAGE < address < 0:
                    raise RefusedError(f"mmap in the target failed: {os.strerror(-address)}", where=target.where)
                mapped.append((address, size))
        except BaseException:
            for each in mapped:
                remote.syscall(cpu.SYS_MUNMAP, *each)
            raise
        finally:
            remote.syscall(cpu.SYS_CLOSE, number)
        try:
            yield mapped[0][0], mapped[1][0]
        finally:
            for each in mapped:
                remote.syscall(cpu.SYS_MUNMAP, *each)
