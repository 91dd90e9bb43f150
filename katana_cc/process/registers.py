"""Registers of stopped threads that lead into certain ranges: to be found, and to be set to where the same thing is
now.

General registers are looked at in every thread.  Vector registers hold copies of what was moved by the pair; they are
looked at where a thread was interrupted in its own code.  In a system call they hold nothing: the function that made
it was called, and no vector register survives a call.

Sources: System V ABI 3.2.1 (registers that a call preserves), restart_syscall(2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from katana_cc.cpu.native import system as cpu
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.threads import Threads
from katana_cc.process.words import Seeker


class RegisterWord(NamedTuple):
    """A register that leads into a range.  `place`: its index in a row of registers; of a vector register the byte in
    the vector state.  `is_argument_kept`: the thread is in a system call whose arguments the kernel keeps for itself,
    so that what stands in the register is not what counts."""

    tid: int
    name: str
    place: int
    value: int
    is_vector: bool
    is_argument_kept: bool


def leading(order: Sequence[int], registers: memoryview, seeker: Seeker) -> Iterator[RegisterWord]:
    """The registers of stopped threads that lead into the ranges of `seeker`.

    Args:
        order: thread ids; their registers follow each other in `registers`.
    """
    for i, tid in enumerate(order):
        words = registers[i * pt.REGISTER_WORDS : (i + 1) * pt.REGISTER_WORDS]
        is_calling = cpu.in_system_call(words)
        is_kept = cpu.keeps_arguments(words)
        for index, name in cpu.GENERAL_REGISTERS.items():
            if seeker.leads(words[index]):
                yield RegisterWord(tid, name, index, words[index], False, is_kept)
        if not is_calling:
            state = pt.read_extended_state(tid)
            for start, end in cpu.VECTOR_RANGES:
                for word in seeker.in_bytes(state[start:end], start):
                    yield RegisterWord(tid, "a vector register", word.address, word.value, True, False)


def write(threads: Threads, changes: Iterable[tuple[RegisterWord, int]]) -> None:
    """Set registers of stopped threads to new values."""
    for register, value in changes:
        if register.is_vector:
            state = bytearray(pt.read_extended_state(register.tid))
            struct.pack_into("<Q", state, register.place, value)
            pt.write_extended_state(register.tid, bytes(state))
        else:
            threads.set_register(register.tid, register.place, value)
