"""ptrace(2), waitpid(2) and process_vm_readv(2) in our own types; the only importer of python-ptrace.

Of python-ptrace only the raw binding is used: its debugger attaches with SIGSTOP and sleeps in its event loop, while a
short stop needs SEIZE and INTERRUPT.  Every failed request is an OSError of the matching subclass: `GoneError`, a
ProcessLookupError, when the thread is gone (or is not stopped), PermissionError when it may not be traced.

Sources: ptrace(2), wait(2), process_vm_readv(2), linux/ptrace.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from ptrace.binding.func import ptrace as _ptrace  # type: ignore[import-untyped]  # noqa: TID251
from ptrace.error import PtraceError  # type: ignore[import-untyped]  # noqa: TID251

from katana_cc.cpu.native import system
from katana_cc.cpu.stopped import RegisterSet
from katana_cc.errors import TargetError

REGISTER_WORDS: Final = system.REGISTER_WORDS
REGISTER_BYTES: Final = REGISTER_WORDS * 8

O_TRACESYSGOOD: Final = 0x1
O_TRACEFORK: Final = 0x2
O_TRACEVFORK: Final = 0x4
O_TRACECLONE: Final = 0x8
O_TRACEEXEC: Final = 0x10
O_SUSPEND_SECCOMP: Final = 0x200000

EVENT_FORK: Final = 1
EVENT_VFORK: Final = 2
EVENT_CLONE: Final = 3
EVENT_EXEC: Final = 4
EVENT_STOP: Final = 128
SYSCALL_STOP: Final = 0x80 | 5  # SIGTRAP | 0x80 with O_TRACESYSGOOD

_POKETEXT: Final = 4
_PEEKTEXT: Final = 1
_CONT: Final = 7
_GETREGS: Final = 12
_SETREGS: Final = 13
_DETACH: Final = 17
_SYSCALL: Final = 24
_SETOPTIONS: Final = 0x4200
_GETEVENTMSG: Final = 0x4201
_GETREGSET: Final = 0x4204
_SETREGSET: Final = 0x4205
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_PEEKSIGINFO: Final = 0x4209
_GETSIGMASK: Final = 0x420A
_SETSIGMASK: Final = 0x420B
_GET_RSEQ_CONFIGURATION: Final = 0x420F
# PTRACE_GETREGS is one request for all of a row, on CPUs that have it.
_IS_ONE_SET: Final = len(system.REGISTER_SETS) == 1
_WALL: Final = 0x40000000
_SIGINFO_BYTES: Final = 128
IOV_MAX: Final = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_process_vm_readv = _libc.process_vm_readv
_process_vm_readv.restype = ctypes.c_ssize_t
_process_vm_readv.argtypes = (
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
)  # fmt: skip
_process_vm_writev = _libc.process_vm_writev
_process_vm_writev.restype = ctypes.c_ssize_t
_process_vm_writev.argtypes = (
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
)  # fmt: skip


# Prepared once, since one such request is made for every thread that waits in epoll_wait while all stand still.
_SIGINFO_COUNT: Final = 64
_siginfo = ctypes.create_string_buffer(_SIGINFO_BYTES * _SIGINFO_COUNT)
_SIGINFO_ADDRESS: Final = ctypes.addressof(_siginfo)
_peek_own = ctypes.create_string_buffer(struct.pack("<QIi", 0, 0, _SIGINFO_COUNT), 16)
_peek_shared = ctypes.create_string_buffer(struct.pack("<QIi", 0, 1, _SIGINFO_COUNT), 16)
_PEEK_ADDRESS: Final = (ctypes.addressof(_peek_own), ctypes.addressof(_peek_shared))


class Stop(NamedTuple):
    """What waitpid said of one thread: stopped by `signal` with ptrace `event`, or gone."""

    gone: bool
    signal: int
    event: int

    @property
    def is_signal_delivery(self) -> bool:
        """A signal is about to be delivered, and has to be passed on when the thread is continued."""
        return not self.gone and self.event == 0 and self.signal != SYSCALL_STOP


class GoneError(TargetError, ProcessLookupError):
    """The thread is gone, and mostly its process: for whoever does not expect it, that the target died."""

    def __init__(self, tid: int) -> None:
        super().__init__("the process died", where=f"pid {tid}")
        self.errno = errno.ESRCH


def _request(operation: int, tid: int, address: int = 0, data: int = 0) -> int:
    try:
        return int(_ptrace(operation, tid, address, data))
    except PtraceError as error:
        number = error.errno or 0
        if number == errno.ESRCH:
            raise GoneError(tid) from None
        raise OSError(number, f"ptrace request {operation:#x}: {os.strerror(number)}") from None


def seize(tid: int, options: int) -> None:
    """Begin to trace without stopping (PTRACE_SEIZE)."""
    _request(_SEIZE, tid, 0, options)


def set_options(tid: int, options: int) -> None:
    """Put other options (O_*) in place of those a stopped thread is traced with (PTRACE_SETOPTIONS)."""
    _request(_SETOPTIONS, tid, 0, options)


def interrupt(tid: int) -> None:
    """Ask a seized thread to stop; it reports EVENT_STOP."""
    _request(_INTERRUPT, tid)


def resume(tid: int, signal: int = 0) -> None:
    """Let a stopped thread run on, delivering `signal` when not 0."""
    _request(_CONT, tid, 0, signal)


def resume_to_syscall(tid: int, signal: int = 0) -> None:
    """Let it run to the next entry into or exit out of a system call."""
    _request(_SYSCALL, tid, 0, signal)


def detach(tid: int) -> None:
    """Stop tracing; the thread runs on, or stays stopped when its process is (SIGSTOP)."""
    _request(_DETACH, tid)


def read_registers_into(tid: int, address: int) -> None:
    """The general registers, as a row, to our own memory at `address` (REGISTER_BYTES)."""
    if _IS_ONE_SET:
        _request(_GETREGS, tid, 0, address)
    else:
        read_sets_into(tid, address, system.REGISTER_SETS)


def read_registers(tid: int) -> list[int]:
    """The general registers as a row of REGISTER_WORDS words."""
    buffer = (ctypes.c_uint64 * REGISTER_WORDS)()
    read_registers_into(tid, ctypes.addressof(buffer))
    return list(buffer)


def write_registers(tid: int, registers: list[int]) -> None:
    """Set all general registers."""
    buffer = (ctypes.c_uint64 * REGISTER_WORDS)(*registers)
    write_registers_from(tid, ctypes.addressof(buffer))


def write_registers_from(tid: int, address: int) -> None:
    """Set all general registers from a row in our own memory."""
    if _IS_ONE_SET:
        _request(_SETREGS, tid, 0, address)
    else:
        write_sets_from(tid, address, system.REGISTER_SETS)


def read_sets_into(tid: int, address: int, sets: tuple[RegisterSet, ...]) -> None:
    """A row of registers, set by set (PTRACE_GETREGSET)."""
    for note, word, size in sets:
        vector = (ctypes.c_uint64 * 2)(address + 8 * word, size)
        _request(_GETREGSET, tid, note, ctypes.addressof(vector))


def write_sets_from(tid: int, address: int, sets: tuple[RegisterSet, ...]) -> None:
    """The inverse (PTRACE_SETREGSET)."""
    for note, word, size in sets:
        vector = (ctypes.c_uint64 * 2)(address + 8 * word, size)
        _request(_SETREGSET, tid, note, ctypes.addressof(vector))


def read_extended_state(tid: int) -> bytes:
    """The vector registers, as the kernel keeps them."""
    buffer = ctypes.create_string_buffer(system.VECTOR_BYTES)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), system.VECTOR_BYTES)
    _request(_GETREGSET, tid, system.VECTOR_NOTE, ctypes.addressof(vector))
    return buffer.raw[: vector[1]]


def write_extended_state(tid: int, state: bytes) -> None:
    """Put back what `read_extended_state` gave."""
    buffer = ctypes.create_string_buffer(state, len(state))
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), len(state))
    _request(_SETREGSET, tid, system.VECTOR_NOTE, ctypes.addressof(vector))


def read_signal_mask(tid: int) -> int:
    """Blocked signals, bit n-1 for signal n."""
    mask = ctypes.c_uint64()
    _request(_GETSIGMASK, tid, 8, ctypes.addressof(mask))
    return mask.value


def write_signal_mask(tid: int, mask: int) -> None:
    """Set the blocked signals; SIGKILL and SIGSTOP stay unblocked."""
    word = ctypes.c_uint64(mask)
    _request(_SETSIGMASK, tid, 8, ctypes.addressof(word))


def restartable_area(tid: int) -> int:
    """Where a stopped thread has its struct rseq; 0 if it registered none, or the kernel (before 5.13) tells not."""
    # struct ptrace_rseq_configuration: the address, its size, the signature, flags.
    found = (ctypes.c_uint64 * 3)()
    try:
        _request(_GET_RSEQ_CONFIGURATION, tid, ctypes.sizeof(found), ctypes.addressof(found))
    except OSError as error:
        if error.errno in (errno.EIO, errno.EINVAL):
            return 0
        raise
    return found[0]


def pending_signals(tid: int, shared: bool) -> list[int]:
    """Numbers of the signals queued for the thread, or (`shared`) for its process."""
    got = _request(_PEEKSIGINFO, tid, _PEEK_ADDRESS[shared], _SIGINFO_ADDRESS)
    return [struct.unpack_from("<i", _siginfo, i * _SIGINFO_BYTES)[0] for i in range(got)] if got else []


def queued_words(tid: int, shared: bool) -> list[int]:
    """What the signals queued for the thread, or (`shared`) for its process, bring along: the words of their siginfo
    that may be an address (si_addr, si_value)."""
    words: list[int] = []
    first = 0
    while True:
        which = ctypes.create_string_buffer(struct.pack("<QIi", first, shared, _SIGINFO_COUNT), 16)
        got = _request(_PEEKSIGINFO, tid, ctypes.addressof(which), _SIGINFO_ADDRESS)
        for i in range(got):
            words += struct.unpack_from("<QQ", _siginfo, i * _SIGINFO_BYTES + 16)
        first += got
        if got < _SIGINFO_COUNT:
            return words


def send_signal(pid: int, tid: int, number: int) -> None:
    """Send a signal to one thread, traced or not (tgkill(2))."""
    if _libc.syscall(ctypes.c_long(system.SYS_TGKILL), ctypes.c_long(pid), ctypes.c_long(tid), ctypes.c_long(number)):
        error = ctypes.get_errno()
        if error == errno.ESRCH:
            raise GoneError(tid)
        raise OSError(error, os.strerror(error))


def event_message(tid: int) -> int:
    """PTRACE_GETEVENTMSG; after EVENT_CLONE the new thread's id, after EVENT_FORK and EVENT_VFORK the child's."""
    word = ctypes.c_ulong()
    _request(_GETEVENTMSG, tid, 0, ctypes.addressof(word))
    return word.value


def poke(tid: int, address: int, data: bytes) -> None:
    """Write through POKETEXT, word by word: for kernels that forbid /proc/PID/mem to override protections.

    The thread must be stopped.
    """
    start = address & -8
    end = (address + len(data) + 7) & -8
    old = b"".join(_peek(tid, a) for a in range(start, end, 8))
    new = old[: address - start] + data + old[address - start + len(data) :]
    for i in range(0, len(new), 8):
        _request(_POKETEXT, tid, start + i, struct.unpack_from("<Q", new, i)[0])


def _peek(tid: int, address: int) -> bytes:
    word = ctypes.c_uint64()
    local = (ctypes.c_uint64 * 2)(ctypes.addressof(word), 8)
    remote = (ctypes.c_uint64 * 2)(address, 8)
    if _process_vm_readv(tid, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0) != 8:
        raise OSError(ctypes.get_errno(), f"cannot read {address:#x}")
    return bytes(word)


def peek(tid: int, pieces: Sequence[tuple[int, int]]) -> bytes:
    """(address, size) pieces of the memory that a thread has now, one behind the other: after execve another one than
    an open /proc/PID/mem leads to.  Fewer bytes where one cannot be read."""
    buffer = ctypes.create_string_buffer(sum(size for _, size in pieces))
    try:
        count = read_vectors(tid, list(pieces), ctypes.addressof(buffer))
    except OSError:
        return b""
    return buffer.raw[:count]


def wait(tid: int) -> Stop | None:
    """The next report of a traced thread, or None when there is none yet.  Never blocks: a dying thread group leader
    would hang a blocking wait."""
    return _wait(tid, os.WNOHANG)


def wait_for(tid: int) -> Stop:
    """The next report of the only traced thread of a process; blocks."""
    stop = _wait(tid, 0)
    assert stop is not None
    return stop


def wait_any() -> tuple[int, Stop] | None:
    """The next report of any traced thread and which it is of; None when there is none yet.

    Raises:
        ProcessLookupError: none is traced.
    """
    try:
        got, status = os.waitpid(-1, _WALL | os.WNOHANG)
    except ChildProcessError:
        raise ProcessLookupError(errno.ESRCH, "nothing is traced") from None
    return (got, _told(status)) if got else None


def _wait(tid: int, flags: int) -> Stop | None:
    try:
        got, status = os.waitpid(tid, _WALL | flags)
    except ChildProcessError:
        return Stop(True, 0, 0)
    return _told(status) if got else None


def _told(status: int) -> Stop:
    if os.WIFSTOPPED(status):
        return Stop(False, (status >> 8) & 0xFF, status >> 16)
    return Stop(True, 0, 0)


def read_vectors(pid: int, vectors: list[tuple[int, int]], local_address: int) -> int:
    """Read (address, size) vectors one after another into our memory at `local_address`, in as few system calls as
    IOV_MAX allows.  Returns the bytes read; fewer than asked means that the vector there could not be read whole.

    Raises:
        OSError: not one byte could be read, or the process is gone.
    """
    done = 0
    for first in range(0, len(vectors), IOV_MAX):
        part = vectors[first : first + IOV_MAX]
        wanted = sum(size for _, size in part)
        flat = [word for vector in part for word in vector]
        remote = (ctypes.c_uint64 * len(flat))(*flat)
        local = (ctypes.c_uint64 * 2)(local_address + done, wanted)
        got: int = _process_vm_readv(pid, ctypes.addressof(local), 1, ctypes.addressof(remote), len(part), 0)
        if got < 0:
            if done:
                return done
            number = ctypes.get_errno()
            if number == errno.ESRCH:
                raise GoneError(pid)
            raise OSError(number, os.strerror(number))
        done += got
        if got < wanted:
            return done
    return done


def write_vectors(pid: int, pieces: Sequence[tuple[int, bytes]]) -> int:
    """Write up to `IOV_MAX` (address, bytes) pieces by one system call.  Returns the bytes written; fewer than given
    mean that the piece there could not be written whole.

    Raises:
        OSError: not one byte could be written (as to read-only pages), or the process is gone.
    """
    contents = b"".join(data for _, data in pieces)
    flat = [word for address, data in pieces for word in (address, len(data))]
    remote = (ctypes.c_uint64 * len(flat))(*flat)
    buffer = ctypes.create_string_buffer(contents, len(contents))
    local = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), len(contents))
    written: int = _process_vm_writev(pid, ctypes.addressof(local), 1, ctypes.addressof(remote), len(pieces), 0)
    if written < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return written
