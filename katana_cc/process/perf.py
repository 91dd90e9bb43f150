"""Events of the kernel's perf subsystem on threads of another process: breakpoints that only tell, and stack samples.

Both leave the thread alone.  A breakpoint of perf is one of the CPU's debug registers, owned by a file descriptor of
ours: when the thread comes by, the kernel makes the descriptor readable, and the thread runs on.  No byte of the
target is written, no signal is sent, and when this process ends in whatever way, SIGKILL included, the descriptor is
closed and the breakpoint gone with it.  (A breakpoint set by PTRACE_POKEUSER outlives its tracer, and the SIGTRAP that
it then raises is the end of the process.  One of perf with `sigtrap` goes with its owner, but the signal that it has
just sent does not.)

A sample is taken by the kernel's timer while the thread runs: registers and the live end of its stack, as they are.

Where it is forbidden (kernel.perf_event_paranoid, a container's filter, no debug register left), nothing is opened, and
the caller does without.

Sources: perf_event_open(2), linux/perf_event.h.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from katana_cc.cpu.native import system as cpu

_PAGE: Final = mmap.PAGESIZE
# type, size, config, sample_period, sample_type, read_format, flags, wakeup_events, bp_type, bp_addr, bp_len,
# branch_sample_type, sample_regs_user, sample_stack_user, clockid, sample_regs_intr, aux_watermark, sample_max_stack
_ATTR: Final = struct.Struct("<IIQQQQQIIQQQQIiQIHH")
assert _ATTR.size == 112  # PERF_ATTR_SIZE_VER5
_TYPE_SOFTWARE, _TYPE_BREAKPOINT = 1, 5
_CPU_CLOCK: Final = 0
_DISABLED, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 0, 1 << 5, 1 << 6
_BREAKPOINT_X: Final = 4
_BREAKPOINT_X_LENGTH: Final = 8  # sizeof(long), whatever the CPU
_SAMPLE_REGS_USER, _SAMPLE_STACK_USER = 1 << 12, 1 << 13
_RECORD_SAMPLE: Final = 9
_FLAG_CLOEXEC: Final = 8
_IOC_REFRESH: Final = 0x2402
_DATA_HEAD: Final = 1024  # in struct perf_event_mmap_page; data_tail follows

_libc = ctypes.CDLL(None, use_errno=True)


def _open(
    kind: int,
    tid: int,
    config: int,
    period: int,
    sample_type: int = 0,
    flags: int = 0,
    address: int = 0,
    registers: int = 0,
    stack: int = 0,
) -> int:
    """A new event on one thread.

    Raises:
        OSError: forbidden, no debug register left, or the thread is gone.
    """
    is_breakpoint = kind == _TYPE_BREAKPOINT
    attr = _ATTR.pack(
        kind, _ATTR.size, config, period, sample_type, 0, flags | _EXCLUDE_KERNEL | _EXCLUDE_HV, 1,
        _BREAKPOINT_X if is_breakpoint else 0, address, _BREAKPOINT_X_LENGTH if is_breakpoint else 0,
        0, registers, stack, 0, 0, 0, 0, 0,
    )  # fmt: skip
    fd = int(_libc.syscall(cpu.SYS_PERF_EVENT_OPEN, attr, tid, -1, -1, _FLAG_CLOEXEC))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


class Breakpoints:
    """Execution breakpoints on threads; each tells once.  Close when done, or use as a context manager."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._open: dict[tuple[int, int], tuple[int, mmap.mmap]] = {}

    def __enter__(self) -> Breakpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, tid: int, address: int) -> bool:
        """Set one; whether it is there.  A thread may be stopped or run."""
        if (tid, address) in self._open:
            return True
        try:
            fd = _open(_TYPE_BREAKPOINT, tid, 0, 1, flags=_DISABLED, address=address)
        except OSError:
            return False
        try:
            # Only an event with a buffer can be waited for; nothing is read from it.
            ring = mmap.mmap(fd, 2 * _PAGE)
            # Once: a function that is entered a million times a second shall not be slowed down.
            if _libc.ioctl(fd, _IOC_REFRESH, 1) < 0:
                raise OSError(ctypes.get_errno(), "PERF_EVENT_IOC_REFRESH")
        except OSError:
            os.close(fd)
            return False
        self._open[tid, address] = fd, ring
        self._poll.register(fd, select.POLLIN)
        return True

    @property
    def threads(self) -> set[int]:
        """Those that have one."""
        return {tid for tid, _ in self._open}

    def wait(self, timeout: float) -> bool:
        """Whether a thread came by one within so many seconds.  A thread that has ended did not, and is forgotten."""
        came = False
        for fd, event in self._poll.poll(timeout * 1000):
            if event & select.POLLIN:
                came = True
            self._forget(fd)
        return came

    def _forget(self, fd: int) -> None:
        for key, (other, ring) in tuple(self._open.items()):
            if other == fd:
                self._poll.unregister(fd)
                ring.close()
                os.close(fd)
                del self._open[key]

    def close(self) -> None:
        """Take all of them away."""
        for fd, _ in tuple(self._open.values()):
            self._forget(fd)


class Sample(NamedTuple):
    """A thread while it ran: `registers` as a row (those that the kernel does not tell are 0), and the bytes from its
    stack pointer on."""

    tid: int
    registers: tuple[int, ...]
    stack: bytes


class Sampler:
    """Samples of threads while they run.

    Args:
        period: seconds of a thread's own time between two.
        stack: bytes of stack to copy; a multiple of 8.
        pages: of the buffer of each thread; a power of 2.
    """

    def __init__(self, period: float, stack: int = 1 << 14, pages: int = 32) -> None:
        self._period = int(period * 1e9)
        self._stack = stack
        self._size = pages * _PAGE
        self._open: dict[int, tuple[int, mmap.mmap]] = {}
        self._order = sorted(cpu.PERF_REGISTERS)
        self._mask = sum(1 << bit for bit in self._order)

    def add(self, tid: int) -> bool:
        """Sample a thread too; whether it could be done."""
        if tid in self._open:
            return True
        try:
            fd = _open(
                _TYPE_SOFTWARE, tid, _CPU_CLOCK, self._period, _SAMPLE_REGS_USER | _SAMPLE_STACK_USER,
                registers=self._mask, stack=self._stack,
            )  # fmt: skip
        except OSError:
            return False
        try:
            ring = mmap.mmap(fd, _PAGE + self._size)
        except OSError:
            os.close(fd)
            return False
        self._open[tid] = fd, ring
        return True

    @property
    def count(self) -> int:
        """How many threads are sampled."""
        return len(self._open)

    def take(self) -> Iterator[Sample]:
        """The samples since the last time."""
        for tid, (_, ring) in self._open.items():
            head, tail = struct.unpack_from("<QQ", ring, _DATA_HEAD)
            data = b"".join(self._bytes(ring, tail, head))
            struct.pack_into("<Q", ring, _DATA_HEAD + 8, head)
            for record in _records(data):
                sample = self._sample(tid, record)
                if sample is not None:
                    yield sample

    def _bytes(self, ring: mmap.mmap, tail: int, head: int) -> Iterable[bytes]:
        start, end = tail % self._size, head % self._size
        if head == tail:
            return ()
        if start < end:
            return (ring[_PAGE + start : _PAGE + end],)
        return ring[_PAGE + start : _PAGE + self._size], ring[_PAGE : _PAGE + end]

    def _sample(self, tid: int, record: bytes) -> Sample | None:
        row = [0] * cpu.REGISTER_WORDS
        (abi,) = struct.unpack_from("<Q", record)
        if not abi:
            return None  # a thread of the kernel's, or one that is ending
        at = 8
        for bit in self._order:
            (row[cpu.PERF_REGISTERS[bit]],) = struct.unpack_from("<Q", record, at)
            at += 8
        (size,) = struct.unpack_from("<Q", record, at)
        stack = record[at + 8 : at + 8 + size]
        live = struct.unpack_from("<Q", record, at + 8 + size)[0] if size else 0
        return Sample(tid, tuple(row), stack[:live])

    def close(self) -> None:
        """End it."""
        for fd, ring in self._open.values():
            ring.close()
            os.close(fd)
        self._open.clear()


def _records(data: bytes) -> Iterator[bytes]:
    """The bodies of PERF_RECORD_SAMPLE in a buffer's contents."""
    at = 0
    while at + 8 <= len(data):
        kind, _, size = struct.unpack_from("<IHH", data, at)
        if size < 8 or at + size > len(data):
            return
        if kind == _RECORD_SAMPLE:
            yield data[at + 8 : at + size]
        at += size
