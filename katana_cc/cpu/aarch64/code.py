"""Instructions of AArch64: what `interface.Instructions` asks for.

Each is 4 bytes, aligned; a field counts from its own instruction.  What one of a pair of instructions does not tell is
not guessed: where a relaxed ADRP and LDR lead has to be read of both (docs/porting.md).

Veneers: the ADRP or ADR of a variable out of reach becomes a branch to

    ldr xN, .+8
    b   back
    .quad address          of ADRP the page's: the instruction that follows adds the rest

Source: Arm ARM (DDI 0487) C6.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from katana_cc.cpu.aarch64.branches import (
    BRK,
    JUMP_REACH,
    JUMP_SIZE,
    NOP,
    STUB_SIZE,
    behind_calls,
    branches_into,
    is_branch,
    is_call,
    jump,
    stub,
    stub_slot,
    word_at,
    words,
)
from katana_cc.cpu.aarch64.relocations import GOT_RELATIVE, KINDS
from katana_cc.cpu.field import Form, read
from katana_cc.cpu.interface import Constant, Span
from katana_cc.elf.reader import Relocation

__all__ = (
    "FILL", "GOT_SLOT_SIZE", "JUMP_REACH", "JUMP_SIZE", "STUB_SIZE", "VENEER_SIZE", "behind_calls", "bias",
    "branches_into", "constants_moved", "far_use", "field_ends", "is_branch", "is_call", "is_padding", "jump",
    "relaxed_target", "slot_of", "stub", "stub_slot", "veneer", "was_relaxed",
)  # fmt: skip

GOT_SLOT_SIZE: Final = 8
VENEER_SIZE: Final = 16
FILL: Final = words(BRK)
_ADR: Final = 0x1F000000, 0x10000000  # ADR, and with bit 31 ADRP
_MOVZ: Final = 0x7FE00000, 0x52800000  # of the lowest 16 bits, w or x
_IMMEDIATE: Final = 0xFFFF << 5
_BRK_MASK: Final = 0xFFE0001F
_LDR_LITERAL_8: Final = 0x58000040  # ldr x0, .+8


def field_ends(code: bytes) -> Mapping[int, int]:  # noqa: ARG001  (the same for all code)
    """None: a distance counts from its own instruction."""
    return {}


def bias(code: bytes, offset: int) -> int | None:  # noqa: ARG001
    """Nothing is added."""
    return 0


def constants_moved(code: bytes) -> Iterator[Constant]:
    """Immediates of MOVZ below 65536.  Larger ones are put together by two instructions: they count as code."""
    for at in range(0, len(code) - 3, 4):
        if word_at(code, at) & _MOVZ[0] == _MOVZ[1]:
            yield Constant(at, at + 4, _IMMEDIATE)


def is_padding(code: bytes, size: int) -> bool:
    """Whether the first `size` bytes are zeros, NOP or BRK."""
    if len(code) < size:
        return False
    found = (word_at(code, at) for at in range(0, size, 4))
    return all(word in (0, NOP) or word & _BRK_MASK == BRK for word in found)


def was_relaxed(code: bytes, offset: int) -> bool:  # noqa: ARG001
    """One instruction does not tell."""
    return False


def slot_of(before: bytes, linked: bytes, relocation: Relocation, place: int) -> int | None:
    """The slot of a load that names it alone, and is as it was."""
    at, kind = relocation.offset, KINDS[relocation.type]
    if relocation.type not in GOT_RELATIVE or kind.form is not Form.GOT_RELATIVE:
        return None
    if (word_at(before, at) ^ word_at(linked, at)) & ~kind.mask:
        return None
    return place + read(kind, linked, at)


def relaxed_target(linked: bytes, relocation: Relocation, place: int) -> int | None:  # noqa: ARG001
    """One instruction does not tell."""
    return None


def far_use(code: bytes, field: int, fields: Iterable[int]) -> Span | None:  # noqa: ARG001  (no instruction has two)
    """ADR and ADRP: all that they do is to set a register."""
    is_address = word_at(code, field) & _ADR[0] == _ADR[1]
    return Span(field, field + 4, field) if is_address else None


def veneer(code: bytes, field: int, address: int, place: int, back: int) -> tuple[bytes, bytes]:
    """A branch instead of ADR or ADRP, and what it leads to."""
    instruction = word_at(code, field)
    register, is_page = instruction & 0x1F, instruction >> 31
    value = address & ~0xFFF if is_page else address
    body = words(_LDR_LITERAL_8 | register) + jump(place + 4, back) + value.to_bytes(8, "little")
    assert len(body) == VENEER_SIZE
    return jump(back - 4, place), body
