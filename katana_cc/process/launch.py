"""Starting a program that is patched before its `main`: for a restart that must not fall back to the old code.

Theory of operation.  `katana run` becomes the program, so that its process id, parent, streams and exit status are what
they would be without.  A process beside it does the work:

    katana run ──fork── (gone at once) ──fork── guard ──fork── patcher
        │                                                        │
        exec PROGRAM                                             traces it from before the exec
        ld.so                                                    a jump to itself at the entry point (AT_ENTRY)
        at the entry point, in that jump                         lets go, and applies patches as to any process
        goes on                                                  puts the first two bytes back

At the entry point ld.so has mapped and relocated all modules and run the constructors of libraries, and nothing of the
program itself has run.  A patch needs threads that it can stop and start again as it likes, hence the jump to itself in
place of a stopped process: no parent sees it stopped, and no signal is used up.

The patcher is no child of the program, which would be told of its end.  Should it be killed, the guard puts the bytes
back and the program goes on as it is; only if both are killed at once does it wait there for ever.

Sources: ptrace(2) (PTRACE_O_TRACEEXEC), getauxval(3), prctl(2) (PR_SET_PTRACER, for Yama).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from katana_cc.cpu.native import cpu as native
from katana_cc.cpu.native import system as cpu
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError, KatanaError, RefusedError, TargetError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.target import AT_ENTRY, Target

_FIRST_LOOK: Final = 0.0005  # seconds
_LAST_LOOK: Final = 0.01
_PR_SET_PTRACER: Final = 0x59616D61
_GUARD_MESSAGE: Final = 8 + len(cpu.SPIN)  # where it waits, and what belongs there
_SETUID_OR_SETGID: Final = 0o6000
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)

Patcher = Callable[[int], None]
"""Applies patches to a process; raises KatanaError if the program is not to run."""


def launch(program: str, words: list[str], patcher: Patcher, tell: Callable[[KatanaError], int]) -> NoReturn:
    """Become a program, patched when it begins.

    Args:
        program: the path of an executable.
        words: its argument vector, its own name included.
        patcher: called in another process, with the process id.
        tell: says why the program is not to run, and what status it is to end with.

    Raises:
        RefusedError: it would gain privileges, which tracing takes from it.
        TargetError: it cannot be started, or this process may not be traced.
    """
    _refuse_privileged(program)
    pid = os.getpid()
    said, say = os.pipe()
    heard, hear = os.pipe()
    between = os.fork()
    if not between:
        if os.fork():
            os._exit(0)
        os.close(said)
        os.close(hear)
        _guard(pid, say, heard, patcher, tell)
    os.waitpid(between, 0)
    os.close(say)
    os.close(heard)
    guard = int.from_bytes(os.read(said, 8), "little")
    # Yama would let only ancestors trace; one that is not there does not mind.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(guard), 0, 0, 0)
    os.write(hear, b"!")
    answer = os.read(said, 4096)
    if answer != b"!":
        raise TargetError(
            f"the program cannot be traced: {answer.decode(errors='replace') or 'the patcher died'}",
            where=program,
            remedy="permit ptrace (kernel.yama.ptrace_scope, CAP_SYS_PTRACE), or start it and use `katana apply`",
        )
    become(program, words)


def become(program: str, words: list[str]) -> NoReturn:
    """Become a program as it is.

    Raises:
        TargetError: it cannot be started.
    """
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(program, words)
    except OSError as error:
        raise TargetError(f"it cannot be started: {error.strerror}", where=program) from None


def _refuse_privileged(program: str) -> None:
    capabilities = b""
    with contextlib.suppress(OSError):  # there are none, or its file system keeps none
        capabilities = os.getxattr(program, "security.capability")
    try:
        mode = Path(program).stat().st_mode
    except OSError as error:
        raise TargetError(f"it cannot be started: {error.strerror}", where=program) from None
    if (mode & _SETUID_OR_SETGID or capabilities) and os.geteuid() != 0:
        raise RefusedError(
            "it gains privileges when it starts, and would not if it were traced",
            where=program,
            remedy="start it without `katana run`, then `katana apply` as root",
        )


def _guard(pid: int, say: int, heard: int, patcher: Patcher, tell: Callable[[KatanaError], int]) -> NoReturn:
    """See to it that the program goes on though the patcher was killed."""
    status = 1
    try:
        os.write(say, os.getpid().to_bytes(8, "little"))
        left, leave = os.pipe()
        child = os.fork()
        if not child:
            os.close(left)
            _patch(pid, say, heard, leave, patcher, tell)
        for number in (say, heard, leave):
            os.close(number)
        os.waitpid(child, 0)
        note = os.read(left, 2 * _GUARD_MESSAGE)
        if len(note) == _GUARD_MESSAGE:  # it said where the program waits, and not that it goes on
            _release(pid, int.from_bytes(note[:8], "little"), note[8:])
            os.write(2, b"katana run: the patcher was killed; the program runs, patched or not: see `katana status`\n")
        status = 0
    finally:
        os._exit(status)


def _patch(
    pid: int, say: int, heard: int, leave: int, patcher: Patcher, tell: Callable[[KatanaError], int]
) -> NoReturn:
    try:
        os.read(heard, 1)
        try:
            pt.seize(pid, pt.O_TRACEEXEC)
        except OSError as error:
            os.write(say, (error.strerror or str(error)).encode())
            os._exit(1)
        os.write(say, b"!")
        for number in (say, heard):
            os.close(number)
        if _has_started(pid):
            _patch_started(pid, leave, patcher, tell)
    finally:
        os._exit(0)


def _patch_started(pid: int, leave: int, patcher: Patcher, tell: Callable[[KatanaError], int]) -> None:
    """The exec has happened, and nothing of the new image has run."""
    try:
        entry = _entry_of(pid)
    except KatanaError as error:
        # Not a process whose code we know to write to.
        if tell(error):
            os.kill(pid, signal.SIGKILL)
        return  # and it goes on, traced no more
    memory = ProcessMemory(pid)
    first = memory.read(entry, len(cpu.SPIN))
    os.write(leave, entry.to_bytes(8, "little") + first)
    memory.write(entry, cpu.SPIN, pid)
    pt.resume(pid)
    if not _comes_to(pid, entry):
        return
    pt.detach(pid)
    status = 0
    try:
        patcher(pid)
    except KatanaError as error:
        status = tell(error)
    _release(pid, entry, first, status)
    os.write(leave, bytes(_GUARD_MESSAGE))


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


def _has_started(pid: int) -> bool:
    """Let a traced process run until it has become the program; False when it ended before."""
    while not (stop := pt.wait_for(pid)).gone:
        if stop.event == pt.EVENT_EXEC:
            return True
        pt.resume(pid, stop.signal if stop.is_signal_delivery else 0)
    return False


def _comes_to(pid: int, entry: int) -> bool:
    """Let a traced process run until it stands still at its entry point; False when it ended before.

    It is looked at now and then: a breakpoint would kill the program if the patcher were killed meanwhile.
    """
    pause = _FIRST_LOOK
    while True:
        time.sleep(pause)
        pause = min(2 * pause, _LAST_LOOK)
        if not _stand(pid):
            return False
        if pt.read_registers(pid)[cpu.PC] == entry:
            return True
        pt.resume(pid)


def _stand(pid: int) -> bool:
    """Stop a traced process that runs; signals reach it as they come.  False when it ended before."""
    with contextlib.suppress(ProcessLookupError):
        pt.interrupt(pid)
    while not (stop := pt.wait_for(pid)).gone:
        if stop.event == pt.EVENT_STOP:
            return True
        pt.resume(pid, stop.signal if stop.is_signal_delivery else 0)
    return False


def _release(pid: int, entry: int, first: bytes, status: int = 0) -> None:
    """Let a program that waits at its entry point go on; with a status, end instead.

    Its first thread is stopped for it: one that runs could fetch half of what is written.
    """
    with contextlib.suppress(OSError, KatanaError):
        memory = ProcessMemory(pid)
        pt.seize(pid, 0)
        if not _stand(pid):
            return
        if status:
            registers = pt.read_registers(pid)
            cpu.set_system_call(registers, entry, cpu.SYS_EXIT_GROUP, (status,))
            pt.write_registers(pid, registers)
        memory.write(entry, cpu.SYSCALL_INSTRUCTION if status else first, pid)
        pt.detach(pid)
