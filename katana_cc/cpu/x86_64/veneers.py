"""Veneers: what an instruction does with a variable in reach, done from afar.

A program's code may use a library's variable as if it were its own (`mov stderr(%rip), %rax`): its link makes a copy
relocation then.  In a running program that cannot be made any more, and libraries are farther than a 32-bit field
reaches.  So the instruction becomes a jump to a veneer, which does the same through a register, and jumps back:

    LOAD      movabs $variable, %register; mov (%register), %register
    ADDRESS   movabs $variable, %register
    OPERAND   lea -128(%rsp), %rsp; push %scratch        below the red zone; neither changes flags
              movabs $variable, %scratch; the instruction with (%scratch) as its memory operand
              pop %scratch; lea 128(%rsp), %rsp

Source: Intel SDM volume 2; psABI 3.2.2 (red zone).
"""

from __future__ import annotations

import struct
from typing import Final

from katana_cc.cpu.x86_64.branches import JUMP_SIZE, jump
from katana_cc.cpu.x86_64.instructions import Form, Use
from katana_cc.cpu.x86_64.system import RED_ZONE

VENEER_SIZE: Final = 48
_NOP: Final = b"\x90"


def veneer(code: bytes, use: Use, address: int, place: int, back: int) -> tuple[bytes, bytes]:
    """What replaces the instruction (a jump to the veneer, padded), and the veneer.

    Args:
        code: the function that holds the instruction.
        address: of the variable.
        place: where the veneer will be.
        back: where the instruction ends.
    """
    found = use.instruction
    length = found.end - found.start
    high, low = use.register >> 3, use.register & 7
    if use.form is Form.ADDRESS:
        body = _movabs(use.register, address)
    elif use.form is Form.LOAD:
        prefixes = bytes(b for b in code[found.start : found.opcode_at] if not 0x40 <= b <= 0x4F)
        rex = (found.rex & 8) | (5 if high else 0)
        head = prefixes + (bytes((0x40 | rex,)) if rex else b"") + b"\x8b"
        # rsp/r12 as a base needs a SIB byte, rbp/r13 a displacement
        tail = {4: bytes((low << 3 | low, 0x24)), 5: bytes((0x40 | low << 3 | low, 0))}.get(low)
        body = _movabs(use.register, address) + head + (tail or bytes((low << 3 | low,)))
    else:
        # rdi, rsi or rbx: no instruction with one memory operand uses two of them without naming them.
        scratch = next(r for r in (7, 6, 3) if r not in (use.register & 7, use.register & 3))
        head = code[found.start : found.modrm_at]
        if found.rex:  # REX.B and REX.X extended the old operand
            head = bytes(b & ~3 if i == _rex_at(code, use) else b for i, b in enumerate(head))
        rest = code[found.immediate_at : found.end] if found.immediate_at >= 0 else b""
        operation = head + bytes((code[found.modrm_at] & 0x38 | scratch,)) + rest
        body = (
            b"\x48\x8d\x64\x24" + struct.pack("<b", -RED_ZONE)  # lea -128(%rsp), %rsp
            + bytes((0x50 | scratch,))  # push %scratch
            + _movabs(scratch, address)
            + operation
            + bytes((0x58 | scratch,))  # pop %scratch
            + b"\x48\x8d\xa4\x24" + struct.pack("<i", RED_ZONE)  # lea 128(%rsp), %rsp
        )  # fmt: skip
    body += jump(place + len(body), back)
    assert len(body) <= VENEER_SIZE
    instead = jump(back - length, place) + _NOP * (length - JUMP_SIZE)
    return instead, body.ljust(VENEER_SIZE, b"\xcc")


def _movabs(register: int, address: int) -> bytes:
    """movabs $address, %register"""
    return bytes((0x48 | register >> 3, 0xB8 | register & 7)) + struct.pack("<Q", address)


def _rex_at(code: bytes, use: Use) -> int:
    """Where the REX prefix is in the instruction: before the opcode, or its escape byte 0F."""
    found = use.instruction
    return found.opcode_at - found.start - (2 if found.map == 2 and code[found.opcode_at - 1] == 0x0F else 1)
