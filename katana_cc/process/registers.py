"""Registers of stopped threads that lead into certain ranges: to be found, and to be set to where the same thing is
now.

General registers are looked at in every thread.  Vector registers hold copies of what was moved by the pair; they are
looked at where a thread was interrupted in its own code.  In a system call they hold nothing: the function that made
it was called, and no vector register survives a call.

Sources: System V ABI 3.2.1 (registers that a call preserves), Intel SDM 13.4 (layout of the XSAVE area),
restart_syscall(2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from katana_cc.process import ptrace_binding as pt
from katana_cc.process import x86_64 as cpu
from katana_cc.process.threads import Threads
from katana_cc.process.words import Seeker

_VECTORS: Final = 160, 576  # xmm0 on, and what is beyond the header of the XSAVE area
_XMM_END: Final = 416


class RegisterWord(NamedTuple):
    """A register that leads into a range.  `place`: its index in user_regs_struct; of a vector register the byte in the
    XSAVE area.  `is_argument_kept`: the thread is in a system call whose arguments the kernel keeps for itself, so that
    what stands in the register is not what counts."""

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
        is_calling = words[cpu.ORIG_RAX] < 1 << 63
        is_kept = is_calling and words[cpu.RAX] == (1 << 64) - cpu.ERESTART_RESTARTBLOCK
        for index, name in cpu.GENERAL_REGISTERS.items():
            if seeker.leads(words[index]):
                yield RegisterWord(tid, name, index, words[index], False, is_kept)
        if not is_calling:
            state = pt.read_extended_state(tid)
            for start, end in ((_VECTORS[0], _XMM_END), (_VECTORS[1], len(state))):
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
