"""Starting a program that is patched before its `main`: for a restart that must not fall back to the old code.

Theory of operation.  `katana run` becomes the program, so that its process id, parent, streams and exit status are what
they would be without.  A process beside it does the work:

    katana run ──fork── (gone at once) ──fork── guard ──fork── patcher
        │                                                        │
        exec PROGRAM                                             traces it from before the exec
        ld.so                                                    a jump to itself at the entry point (AT_ENTRY)
        at the entry point, in that jump                         lets go, and applies patches as to any process
        goes on                                                  puts the first two bytes back

What constructors do on the way there (fork, exec) is the business of `starting`.

At the entry point ld.so has mapped and relocated all modules and run the constructors of libraries, and nothing of the
program itself has run.  A patch needs threads that it can stop and start again as it likes, hence the jump to itself in
place of a stopped process: no parent sees it stopped, and no signal is used up.

The patcher is no child of the program, which would be told of its end.  Should it be killed, the guard finishes what it
was about to write (`finishing`) and puts the bytes back, and the program goes on as it is; only if both are killed at
once does it wait there for ever.  So before the jump is written the guard is told where, and that it is out only once
it is.  Whoever else traces the program then is waited for.

Sources: ptrace(2), getauxval(3), prctl(2) (PR_SET_PTRACER, for Yama), sigaction(2) (SIGCHLD that is ignored).
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

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import KatanaError, RefusedError, TargetError
from katana_cc.process import finishing
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.proc import is_dead, status_fields
from katana_cc.process.starting import TRACED_WITH, Entry, Start
from katana_cc.process.threads import refusal_to_trace

_FIRST_TRY: Final = 0.0005  # seconds
_LAST_TRY: Final = 0.1
_PATIENCE: Final = 1.0  # with who else traces the program, before it is said
_PR_SET_PTRACER: Final = 0x59616D61
_NOTE: Final = 8 + len(cpu.SPIN)  # to the guard: where it waits, and what belongs there
_OVER: Final = bytes(_NOTE)
_BEGUN: Final = b"\0" * 8 + cpu.SPIN  # it runs, and waits nowhere yet
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
    with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored
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
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.write(say, os.getpid().to_bytes(8, "little"))
        left, leave = os.pipe()
        child = os.fork()
        if not child:
            os.close(left)
            _patch(pid, say, heard, leave, patcher, tell)
        for number in (say, heard, leave):
            os.close(number)
        note = _OVER
        while read := os.read(left, 100 * _NOTE):
            note = (note + read)[-_NOTE:]
        os.waitpid(child, 0)
        if note != _OVER:
            # Yama permits nobody else to: who was to finish for the patcher is no descendant of ours any more.
            with contextlib.suppress(KatanaError):
                finishing.finish(pid)
            if note != _BEGUN:
                _release(pid, Entry(int.from_bytes(note[:8], "little"), note[8:]))
            _say("the patcher was killed; the program runs, patched or not: see `katana status`")
        status = 0
    finally:
        os._exit(status)


def _patch(
    pid: int, say: int, heard: int, leave: int, patcher: Patcher, tell: Callable[[KatanaError], int]
) -> NoReturn:
    def note(text: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the guard was killed
            os.write(leave, text)

    try:
        os.read(heard, 1)
        try:
            pt.seize(pid, TRACED_WITH)
        except OSError as error:
            os.write(say, (error.strerror or str(error)).encode())
            os._exit(1)
        note(_BEGUN)
        os.write(say, b"!")
        for number in (say, heard):
            os.close(number)
        if _has_started(pid):
            _patch_started(pid, note, patcher, tell)
        note(_OVER)
    finally:
        os._exit(0)


def _patch_started(
    pid: int, note: Callable[[bytes], None], patcher: Patcher, tell: Callable[[KatanaError], int]
) -> None:
    """The exec has happened, and nothing of the new image has run."""
    try:
        entry = Start(pid, lambda each: note(each.address.to_bytes(8, "little") + each.first)).follow()
    except KatanaError as error:
        # Not a process whose code we know to write to.
        if tell(error):
            os.kill(pid, signal.SIGKILL)
        return  # and it goes on, traced no more
    if entry is None:
        return
    status = 0
    try:
        patcher(pid)
    except KatanaError as error:
        status = tell(error)
    _release(pid, entry, status)


def _has_started(pid: int) -> bool:
    """Let a traced process run until it has become the program; False when it ended before."""
    while not (stop := pt.wait_for(pid)).gone:
        if stop.event == pt.EVENT_EXEC:
            return True
        pt.resume(pid, stop.signal if stop.is_signal_delivery else 0)
    return False


def _stand(pid: int) -> bool:
    """Stop a traced process that runs; signals reach it as they come.  False when it ended before."""
    with contextlib.suppress(ProcessLookupError):
        pt.interrupt(pid)
    while not (stop := pt.wait_for(pid)).gone:
        if stop.event == pt.EVENT_STOP:
            return True
        pt.resume(pid, stop.signal if stop.is_signal_delivery else 0)
    return False


def _release(pid: int, entry: Entry, status: int = 0) -> None:
    """Let a program that waits at its entry point go on; with a status, end instead.

    Its first thread is stopped for it: one that runs could fetch half of what is written.
    """
    with contextlib.suppress(ProcessLookupError):
        if not (_trace(pid) and _stand(pid)):
            return
        with contextlib.closing(ProcessMemory(pid)) as memory:
            if _is_waiting(memory, entry):
                if status:
                    registers = pt.read_registers(pid)
                    cpu.set_system_call(registers, entry.address, cpu.SYS_EXIT_GROUP, (status,))
                    pt.write_registers(pid, registers)
                memory.write(entry.address, cpu.SYSCALL_INSTRUCTION if status else entry.first, pid)
            elif status:  # it has begun once more meanwhile, and is not to run
                os.kill(pid, signal.SIGKILL)
        pt.detach(pid)


def _is_waiting(memory: ProcessMemory, entry: Entry) -> bool:
    """Whether the jump is there (not in what it has become since, nor where the patcher has put the bytes back)."""
    try:
        return memory.read(entry.address, len(cpu.SPIN)) == cpu.SPIN
    except TargetError:
        return False


def _trace(pid: int) -> bool:
    """Trace it, as soon as nobody else does; False when it has ended."""
    pause = _FIRST_TRY
    said_at: float | None = time.monotonic() + _PATIENCE
    while not is_dead(pid):
        if int(status_fields(pid).get("TracerPid", "0")) == os.getpid():
            return True  # a stop that was given up
        try:
            pt.seize(pid, 0)
        except ProcessLookupError:
            return False
        except OSError as error:
            if said_at is not None and time.monotonic() > said_at:
                said_at = None
                _say(f"the program waits at its entry point: {refusal_to_trace(pid, error).what}")
            time.sleep(pause)
            pause = min(2 * pause, _LAST_TRY)
        else:
            return True
    return False


def _say(text: str) -> None:
    os.write(2, f"katana run: {text}\n".encode(errors="replace"))
