"""Jumps of x86-64: those Katana writes, and those it has to find in code.

Source: Intel SDM volume 2.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from katana_cc.errors import RefusedError

JUMP_SIZE: Final = 5
JUMP_REACH: Final = 1 << 31
STUB_SIZE: Final = 8
_CALL: Final = 0xE8
# Of `call *`: FF, ModRM with 2 in its middle, a SIB byte where rm is 4, a displacement.
_CALLS: Final = re.compile(rb"\xe8|\xff[\x10-\x17\x50-\x57\x90-\x97\xd0-\xd7]")
_PREFIXES: Final = (b"\xf3\x0f\x1e\xfa", b"\xf2")  # endbr64, bnd


def jump(place: int, destination: int) -> bytes:
    """`jmp rel32` at `place`: E9, then the distance from the end of the instruction.

    Raises:
        RefusedError: the destination is out of reach (2 GiB).
    """
    distance = destination - (place + JUMP_SIZE)
    if not -(1 << 31) <= distance < 1 << 31:
        raise RefusedError(f"{destination:#x} is out of reach of a jump at {place:#x}")
    return b"\xe9" + struct.pack("<i", distance)


def stub(place: int, slot: int) -> bytes:
    """An import stub: `jmp *slot(%rip)` (FF 25 rel32), padded with a two-byte `xchg %ax,%ax`."""
    code = b"\xff\x25" + struct.pack("<i", slot - (place + 6)) + b"\x66\x90"
    assert len(code) == STUB_SIZE
    return code


def branches_into(code: bytes, low: int, high: int) -> bool:
    """Whether some direct branch in `code` may lead to an offset within [low, high).

    Every byte is taken for the start of an instruction, so true branches are always seen and others may be imagined:
    wrong only on the safe side.
    """
    size = len(code)
    for at in range(size):
        byte = code[at]
        if (0x70 <= byte <= 0x7F or byte == 0xEB or 0xE0 <= byte <= 0xE3) and at + 2 <= size:
            target = at + 2 + int.from_bytes(code[at + 1 : at + 2], "little", signed=True)
        elif byte in (0xE8, 0xE9) and at + 5 <= size:
            target = at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
        elif byte == 0x0F and at + 6 <= size and 0x80 <= code[at + 1] <= 0x8F:
            target = at + 6 + int.from_bytes(code[at + 2 : at + 6], "little", signed=True)
        else:
            continue
        if low <= target < high:
            return True
    return False


def is_branch(code: bytes, offset: int, kind: int) -> bool:  # noqa: ARG001  (calls and data have the same types here)
    """Whether the 32-bit field at `offset` is the target of a direct call, jmp or jcc.

    The byte before tells: call is e8, jmp e9, jcc 0f 80..8f.  A rip-relative memory operand has a ModRM byte of
    mod 00, rm 101 there (05, 0d, … 3d), which is none of those (Intel SDM vol. 2, tables 2-2 and A-2).
    """
    if offset < 1:
        return False
    last = code[offset - 1]
    if last in (0xE8, 0xE9):
        return True
    return offset >= 2 and code[offset - 2] == 0x0F and 0x80 <= last <= 0x8F


def is_call(code: bytes, offset: int, kind: int) -> bool:
    """Whether the field is that of a direct call."""
    return is_branch(code, offset, kind) and code[offset - 1] == _CALL


def behind_calls(code: bytes) -> frozenset[int]:
    """The offsets behind what may be a call.  Every byte is taken for the start of an instruction: wrong only on the
    safe side."""
    ends = (found.start() + _call_size(code, found.start()) for found in _CALLS.finditer(code))
    return frozenset(end for end in ends if end <= len(code))


def _call_size(code: bytes, at: int) -> int:
    """Bytes of the call at an offset, prefixes left out (Intel SDM vol. 2, table 2-2)."""
    if code[at] == _CALL:
        return 5
    mod, rm = code[at + 1] >> 6, code[at + 1] & 7
    if mod == 3:
        return 2
    has_sib = rm == 4
    base = code[at + 2] & 7 if has_sib and at + 2 < len(code) else rm
    displacement = 4 if mod == 2 or (mod == 0 and base == 5) else mod
    return 2 + has_sib + displacement


def stub_slot(address: int, code: bytes) -> int | None:
    """The slot of `jmp *slot(%rip)`, after what may stand before it; None when the code is something else."""
    at = 0
    for prefix in _PREFIXES:
        at += len(prefix) if code.startswith(prefix, at) else 0
    if code[at : at + 2] != b"\xff\x25" or at + 6 > len(code):
        return None
    return address + at + 6 + int.from_bytes(code[at + 2 : at + 6], "little", signed=True)
