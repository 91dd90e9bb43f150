"""The memory of a target: small reads and writes through /proc/PID/mem, many at once through process_vm_readv and
process_vm_writev.

An open /proc/PID/mem stays bound to the address space it was opened for: after the target exits or execs, reads and
writes come back empty instead of touching a stranger.  Not so of a child that has its parent's memory (vfork): they go
on to reach the parent when the child has become something else, so that `Target` opens none of such a one.  And the
vectors go by the process id: they reach whatever has it.  Source: proc_pid_mem(5).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from katana_cc.errors import TargetError
from katana_cc.process import ptrace_binding
from katana_cc.process.rights import tracing_remedy

_PAGE = 4096

_memmem = ctypes.CDLL(None).memmem
_memmem.restype = ctypes.c_void_p
_memmem.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)


class Reader(Protocol):
    """What reads target memory; tests put bytes in its place."""

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes, or TargetError."""


def _called(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        name = "?"
    return f"pid {pid} ({name})"


class ProcessMemory:
    """Memory of one process.

    Raises (all methods):
        TargetError: the range is not mapped, or the process is gone.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        except PermissionError as error:
            raise TargetError(
                f"its memory may not be read: {error.strerror}", where=_called(pid), remedy=tracing_remedy()
            ) from None
        except (FileNotFoundError, ProcessLookupError):
            raise TargetError(f"there is no process {pid}", where=f"pid {pid}") from None

    def close(self) -> None:
        """Release the file descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes at `address`."""
        try:
            data = os.pread(self._fd, size, address)
        except OSError as error:
            raise self._unreachable(address, size, error.strerror or "") from None
        if len(data) != size:
            raise self._unreachable(address, size, f"only {len(data)} bytes came")
        return data

    def write(self, address: int, data: bytes, stopped_thread: int | None = None) -> None:
        """Write all of `data`, also over read-only pages.

        Where the kernel forbids that to /proc/PID/mem, `stopped_thread` is used for PTRACE_POKETEXT.
        """
        try:
            count = os.pwrite(self._fd, data, address)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPERM, errno.EACCES, errno.EFAULT) or stopped_thread is None:
                raise self._unreachable(address, len(data), error.strerror or "") from None
            try:
                ptrace_binding.poke(stopped_thread, address, data)
            except OSError as poke_error:
                raise self._unreachable(address, len(data), poke_error.strerror or "") from None
            return
        if count != len(data):
            raise self._unreachable(address, len(data), f"only {count} bytes were written")

    def write_many(self, pieces: Sequence[tuple[int, bytes]], stopped_thread: int | None = None) -> None:
        """Write many (address, bytes) pieces, as `write` does each: in order, a thousand by one system call.

        What stops such a call (a read-only page) is written by itself.
        """
        at = 0
        while at < len(pieces):
            part = pieces[at : at + ptrace_binding.IOV_MAX]
            try:
                written = ptrace_binding.write_vectors(self.pid, part)
            except OSError:
                written = 0  # the other way tells why
            for address, data in part:
                if len(data) > written:
                    self.write(address, data, stopped_thread)
                    at += 1
                    break
                written -= len(data)
                at += 1

    def _unreachable(self, address: int, size: int, why: str) -> TargetError:
        return TargetError(
            f"memory at {address:#x}, {size} bytes, cannot be reached: {why}",
            where=f"pid {self.pid}",
            remedy="the process may have exited or replaced itself (exec); see whether it still runs",
        )


class BulkReader:
    """Reads many ranges at once into a buffer that is allocated beforehand and grows only when it must."""

    def __init__(self, memory: ProcessMemory, capacity: int) -> None:
        self._memory = memory
        self._pid = memory.pid
        self._buffer = ctypes.create_string_buffer(capacity)
        self._length = 0

    def make_room(self, size: int) -> None:
        """Have room for so many bytes, in memory that is there already: the first touch of a page takes its time."""
        if size > len(self._buffer):
            self._buffer = ctypes.create_string_buffer(size)
        ctypes.memset(self._buffer, 0, size)

    def find(self, needle: bytes, start: int) -> int:
        """Where in what was read last some bytes are, from `start` on; -1: nowhere.  No copy is made for it."""
        base = ctypes.addressof(self._buffer)
        found = _memmem(base + start, max(self._length - start, 0), needle, len(needle))
        return -1 if found is None else int(found) - base

    def word(self, at: int) -> int:
        """The word at an offset in what was read last, of which all its bytes may not be."""
        return int.from_bytes(self.copy(at, 8), "little")

    def copy(self, start: int, size: int) -> bytes:
        """Some of what was read last."""
        return ctypes.string_at(ctypes.addressof(self._buffer) + start, min(size, self._length - start))

    def read(self, vectors: Sequence[tuple[int, int]]) -> memoryview:
        """The (address, size) ranges, one behind the other; pages that cannot be read (guard pages) are zero.

        Raises:
            OSError: the process is gone or may not be read.
        """
        total = self._length = sum(size for _, size in vectors)
        if total > len(self._buffer):
            self._buffer = ctypes.create_string_buffer(total + total // 2)
        base = ctypes.addressof(self._buffer)
        pending = [v for v in vectors if v[1]]
        done = 0
        while pending:
            try:
                got = ptrace_binding.read_vectors(self._pid, pending, base + done)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                got = 0
            done += got
            # Drop what was read whole; step over the page that stopped the transfer, without a word from the kernel.
            i = 0
            while i < len(pending) and got >= pending[i][1]:
                got -= pending[i][1]
                i += 1
            pending = pending[i:]
            if pending:
                address, size = pending[0][0] + got, pending[0][1] - got
                skipped = min(size, _PAGE - address % _PAGE)
                try:  # the other way, so that only what truly cannot be read is taken for a guard page
                    page = self._memory.read(address, skipped)
                except TargetError:
                    page = bytes(skipped)
                ctypes.memmove(base + done, page, skipped)
                done += skipped
                pending[0] = (address + skipped, size - skipped)
                if not pending[0][1]:
                    pending = pending[1:]
        return memoryview(self._buffer).cast("B")[:total]
