"""Threads that were stopped inside a restartable sequence.

A sequence is undone by going to its abort handler whenever its thread loses the processor; the kernel sees to that when
the thread runs on, *if it runs on there*.  One that is made to run something else for us first, and is put back into
the sequence afterwards, would go on as if it had never left its processor: the kernel had forgotten the sequence when
it saw the thread outside.  So the thread is taken to be at the handler from the start, where it would have gone.

Sources: rseq(2), include/uapi/linux/rseq.h, kernel/rseq.c; ptrace(2) (PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13:
before, nobody but the thread knows where its sequence is).
"""

from __future__ import annotations

import struct
from typing import Final

from katana_cc.errors import TargetError
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.memory import ProcessMemory

_POINTER_AT: Final = 8  # struct rseq: cpu_id_start, cpu_id, rseq_cs
_SEQUENCE: Final = struct.Struct("<IIQQQ")  # struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip
_WORD: Final = 8


def resumption(memory: ProcessMemory, tid: int, pc: int) -> int:
    """Where a stopped thread goes on that was stopped at `pc`: there, or at the abort handler of its sequence."""
    area = pt.restartable_area(tid)
    if not area:
        return pc
    try:
        pointer = int.from_bytes(memory.read(area + _POINTER_AT, _WORD), "little")
        if not pointer:
            return pc
        _, _, start, length, handler = _SEQUENCE.unpack(memory.read(pointer, _SEQUENCE.size))
    except TargetError:
        return pc  # what cannot be read ends the program when the kernel reads it: not our affair
    return int(handler) if start <= pc < start + length else pc
