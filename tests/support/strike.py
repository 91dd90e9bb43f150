"""A command that is struck by something as it makes a certain system call.

Or a call fails, with an error that is given, and is not made at all.

It is traced from its start, and every entry into a system call counts from the first that reaches another
process (ptrace) on; what comes before only reads.  The call at which it is struck by SIGKILL is not made.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from katana_cc.cpu.x86_64 import system as cpu
from katana_cc.process import ptrace_binding as pt
from tests.support import forks

_SYS_PTRACE: Final = 101
_O_EXITKILL: Final = 1 << 20


class Outcome(NamedTuple):
    """How a command ended: its status (negative: the signal), which calls it made, by number, and what it said on
    stderr."""

    status: int
    calls: tuple[int, ...]
    said: str


def strike(
    words: Sequence[str], when: Callable[[Sequence[int]], bool], blow: Callable[[int], None], error: int = 0
) -> Outcome:
    """Run a `katana` command; call `blow` with its process id as it enters a system call, once, as soon as `when` says
    so of the numbers of those made so far, the one it enters being the last.  With an `error` (errno), that call is not
    made, and fails so."""
    with forks.held(words) as command:
        pt.seize(command.pid, pt.O_TRACESYSGOOD | _O_EXITKILL)
        pt.interrupt(command.pid)
        command.go()
        status, calls = _trace(command.pid, when, blow, error)
        return Outcome(status, calls, command.end().stderr)


def strike_traced(
    pid: int, go: Callable[[], None], when: Callable[[Sequence[int]], bool], blow: Callable[[int], None]
) -> tuple[int, ...]:
    """Call `blow` with the id of a process, which waits until `go`, as it enters a system call: its calls.  It need be
    no child of ours."""
    pt.seize(pid, pt.O_TRACESYSGOOD | _O_EXITKILL)
    pt.interrupt(pid)
    go()
    return _trace(pid, when, blow, 0)[1]


def strike_program(words: Sequence[str], when: Callable[[Sequence[int]], bool], blow: Callable[[int], None]) -> Outcome:
    """The same for any program, by its command line."""
    go, ready = os.pipe()
    source, sink = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.read(go, 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(sink, 2)
            os.execv(words[0], list(words))
        finally:
            os._exit(127)
    os.close(go)
    os.close(sink)
    pt.seize(pid, pt.O_TRACESYSGOOD | _O_EXITKILL)
    pt.interrupt(pid)
    os.write(ready, b"!")
    os.close(ready)
    status, calls = _trace(pid, when, blow, 0)
    with open(source, "rb") as file:  # noqa: PTH123
        return Outcome(status, calls, file.read().decode(errors="replace"))


def _trace(
    pid: int, when: Callable[[Sequence[int]], bool], blow: Callable[[int], None], error: int
) -> tuple[int, tuple[int, ...]]:
    """Its status and its calls, once it has ended."""
    calls: list[int] = []
    is_entry, is_struck, is_failing, status = True, False, False, 0
    while True:
        _, raw = os.waitpid(pid, 0x40000000)
        if not os.WIFSTOPPED(raw):
            status = os.waitstatus_to_exitcode(raw)
            break
        number_of_signal = (raw >> 8) & 0xFF
        if number_of_signal == pt.SYSCALL_STOP:
            registers = pt.read_registers(pid)
            made = registers[cpu.ORIG_RAX] if is_entry else -1
            if is_failing:
                registers[cpu.RAX] = -error & (1 << 64) - 1
                pt.write_registers(pid, registers)
                is_failing = False
            if is_entry and (calls or made == _SYS_PTRACE):
                calls.append(made)
                if not is_struck and when(calls):
                    is_struck = True
                    blow(pid)
                    if error:
                        registers[cpu.ORIG_RAX] = (1 << 64) - 1  # no system call has this number
                        pt.write_registers(pid, registers)
                        is_failing = True
            is_entry = not is_entry
            number_of_signal = 0
        elif raw >> 16 or number_of_signal == signal.SIGTRAP:
            number_of_signal = 0
        try:
            pt.resume_to_syscall(pid, number_of_signal)
        except ProcessLookupError:
            continue  # it was killed
    return status, tuple(calls)
