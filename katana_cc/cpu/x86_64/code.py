"""Instructions of x86-64: what `interface.Instructions` asks for.

Source: Intel SDM volume 2; psABI B.2 for what linkers make of loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from katana_cc.cpu.interface import Constant, Span
from katana_cc.cpu.x86_64 import instructions as reading
from katana_cc.cpu.x86_64 import veneers
from katana_cc.cpu.x86_64.branches import (
    JUMP_REACH,
    JUMP_SIZE,
    STUB_SIZE,
    behind_calls,
    branches_into,
    is_branch,
    is_call,
    jump,
    stub,
    stub_slot,
)
from katana_cc.cpu.x86_64.instructions import Instruction, direct_use, instructions
from katana_cc.cpu.x86_64.veneers import VENEER_SIZE
from katana_cc.elf.reader import Relocation

__all__ = (
    "FILL", "GOT_SLOT_SIZE", "JUMP_REACH", "JUMP_SIZE", "STUB_SIZE", "VENEER_SIZE", "behind_calls", "bias",
    "branches_into", "constants_moved", "far_use", "field_ends", "is_branch", "is_call", "is_padding", "jump",
    "relaxed_target", "slot_of", "stub", "stub_slot", "veneer", "was_relaxed",
)  # fmt: skip

GOT_SLOT_SIZE: Final = 8
FILL: Final = b"\xcc"  # int3
_LEA: Final = 0x8D
_FILLERS: Final = (b"\0", FILL, b"\x90")


def constants_moved(code: bytes) -> Iterator[Constant]:
    """Immediates of `mov` and `push`."""
    for start, end in reading.constants_moved(code):
        yield Constant(start, end, (1 << 8 * (end - start)) - 1)


def field_ends(code: bytes) -> Mapping[int, int]:
    """Offset of each displacement → the end of its instruction, which it counts from."""
    return {i.displacement_at: i.end for i in instructions(code) if i.displacement_at >= 0}


def bias(code: bytes, offset: int) -> int | None:
    """4 for a `lea`, which ends with its displacement; None for what an immediate may follow."""
    return 4 if len(code) > offset >= 2 and code[offset - 2] == _LEA else None


def was_relaxed(code: bytes, offset: int) -> bool:
    """Whether the load at a field is a `lea` now (psABI B.2)."""
    return offset >= 2 and code[offset - 2] == _LEA


def slot_of(before: bytes, linked: bytes, relocation: Relocation, place: int) -> int | None:
    """The slot of a `mov` or an indirect call that is as it was."""
    at = relocation.offset
    if linked[at - 2 : at] != before[at - 2 : at]:
        return None
    return int.from_bytes(linked[at : at + 4], "little", signed=True) + place + 4


def relaxed_target(linked: bytes, relocation: Relocation, place: int) -> int | None:
    """S of what became of `mov` and indirect calls (psABI B.2): `lea`, `mov $symbol`, direct calls and jumps."""
    at = relocation.offset
    now = linked[at - 2 : at]
    value = int.from_bytes(linked[at : at + 4], "little", signed=True)
    if now[0] == _LEA:
        return value + place - relocation.addend
    if now == b"\x67\xe8":  # addr32 call
        return value + place + 4
    if now[0] == 0xE9 or (now[0] == 0xE8 and linked[at + 3] == 0x90):  # jmp and nop, call and nop
        return int.from_bytes(linked[at - 1 : at + 3], "little", signed=True) + place + 3
    return value  # an immediate


def is_padding(code: bytes, size: int) -> bool:
    """Whether the first `size` bytes are what gaps are filled with: one byte over and over, or no-operations."""
    if code[:size] in [fill * size for fill in _FILLERS]:
        return True
    covered = 0
    for found in instructions(code):
        if not _does_nothing(code, found):
            return False
        covered = found.end
        if covered >= size:
            return True
    return False


def _does_nothing(code: bytes, found: Instruction) -> bool:
    """NOP, XCHG %ax,%ax, and the long NOP 0F 1F, with any prefixes."""
    if found.map == 1 and found.opcode == 0x90:
        return not found.rex and 0xF3 not in code[found.start : found.opcode_at]
    return found.map == 2 and found.opcode == 0x1F and not found.vector


def far_use(code: bytes, field: int, fields: Iterable[int]) -> Span | None:
    """See `instructions.direct_use`."""
    use = direct_use(code, field, fields)
    return None if use is None else Span(use.instruction.start, use.instruction.end, use.instruction.end)


def veneer(code: bytes, field: int, address: int, place: int, back: int) -> tuple[bytes, bytes]:
    """See `veneers`."""
    use = direct_use(code, field, ())
    assert use is not None
    return veneers.veneer(code, use, address, place, back)
