"""Instructions of x86-64, as far as needed: how long each is, and how one uses a relocated field.

Theory of operation.  Which instruction holds a field cannot be told from the bytes before it: 48 may be a REX prefix or
the end of the instruction before.  So a function is read from its start, instruction by instruction; compilers for
x86-64 put no data between instructions.  The lengths follow from prefixes, opcode, ModRM, SIB and the immediate's size.

`direct_use` says how code uses a symbol that the compiler took to be within reach: what would have to be done instead
if it is not.

Out of scope: instructions that need the stack pointer unmoved (push, call, jmp through memory), and AMD's XOP.

Source: Intel SDM volume 2, chapter 2 (formats, VEX, EVEX) and appendix A (opcode maps).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum, auto
from typing import Final, NamedTuple

_LEGACY: Final = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3})
_MAP1_MODRM: Final = (
    frozenset(op for op in range(0x40) if op & 7 < 4)
    | {0x63, 0x69, 0x6B, 0x80, 0x81, 0x83, *range(0x84, 0x90), 0xC0, 0xC1, 0xC6, 0xC7}
    | {*range(0xD0, 0xD4), *range(0xD8, 0xE0), 0xF6, 0xF7, 0xFE, 0xFF}
)
_MAP1_BYTE: Final = (
    frozenset(op for op in range(0x40) if op & 7 == 4)
    | {0x6A, 0x6B, *range(0x70, 0x80), 0x80, 0x83, 0xA8, *range(0xB0, 0xB8), 0xC0, 0xC1, 0xC6, 0xCD}
    | {*range(0xE0, 0xE8), 0xEB}
)
_MAP1_WORD: Final = frozenset(op for op in range(0x40) if op & 7 == 5) | {0x68, 0x69, 0x81, 0xA9, 0xC7}
_CONSTANT_MOVES: Final = frozenset({0x68, 0x6A, *range(0xB0, 0xC0), 0xC6, 0xC7})  # push, mov
_MAP2_PLAIN: Final = frozenset(
    {0x05, 0x06, 0x07, 0x08, 0x09, 0x0B, 0x0E, *range(0x30, 0x38), 0x77, *range(0x80, 0x90), 0xA0, 0xA1, 0xA2, 0xA8,
     0xA9, 0xAA, *range(0xC8, 0xD0)}
)  # fmt: skip
_MAP2_BYTE: Final = frozenset({*range(0x70, 0x74), 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6})


class Instruction(NamedTuple):
    """One instruction: [start, end) of the code, its opcode map (1; 2 for 0F; 3, 4 for 0F 38, 0F 3A) and opcode, where
    ModRM, displacement and immediate are (-1: none), its REX prefix (0: none), and whether it is VEX or EVEX."""

    start: int
    end: int
    map: int
    opcode: int
    opcode_at: int
    modrm_at: int
    displacement_at: int
    immediate_at: int
    rex: int
    vector: bool


def instructions(code: bytes) -> Iterator[Instruction]:
    """The instructions of a function, from its start; ends early where the bytes end in the middle of one."""
    at = 0
    while at < len(code):
        try:
            found = _decode(code, at)
        except IndexError:
            return
        if found.end > len(code):
            return
        yield found
        at = found.end


def constants_moved(code: bytes) -> Iterator[tuple[int, int]]:
    """[start, end) of each constant that is put into a register or memory as it stands, or pushed: as arguments are."""
    for found in instructions(code):
        if found.map == 1 and not found.vector and found.immediate_at >= 0 and found.opcode in _CONSTANT_MOVES:
            yield found.immediate_at, found.end


def _decode(code: bytes, start: int) -> Instruction:
    at, rex, narrow, short_address = start, 0, False, False
    while code[at] in _LEGACY:
        narrow |= code[at] == 0x66
        short_address |= code[at] == 0x67
        at += 1
    if 0x40 <= code[at] <= 0x4F:
        rex = code[at]
        at += 1
    byte = code[at]
    vector = byte in (0xC4, 0xC5, 0x62)
    if byte == 0xC5:
        number, at = 2, at + 2
    elif byte == 0xC4:
        number, at = 1 + (code[at + 1] & 0x1F), at + 3
    elif byte == 0x62:
        number, at = 1 + (code[at + 1] & 7), at + 4
    elif byte == 0x0F:
        at += 1
        number = {0x38: 3, 0x3A: 4}.get(code[at], 2)
        at += number > 2
    else:
        number = 1
    opcode, opcode_at = code[at], at
    at += 1
    modrm_at = displacement_at = -1
    if (
        opcode in _MAP1_MODRM
        if number == 1
        else number != 2 or opcode not in _MAP2_PLAIN or (vector and opcode != 0x77)
    ):
        modrm_at = at
        at, displacement_at = _after_modrm(code, at)
    size = _immediate_size(number, opcode, code[modrm_at] if modrm_at >= 0 else 0, rex, narrow, short_address, vector)
    immediate_at = at if size else -1
    return Instruction(
        start, at + size, number, opcode, opcode_at, modrm_at, displacement_at, immediate_at, rex, vector
    )


def _after_modrm(code: bytes, at: int) -> tuple[int, int]:
    """(offset after ModRM, SIB and displacement; offset of the displacement, -1 for none)."""
    mode, low = code[at] >> 6, code[at] & 7
    at += 1
    if mode == 3:
        return at, -1
    size = (0, 1, 4)[mode]
    if low == 4:
        size = 4 if mode == 0 and code[at] & 7 == 5 else size
        at += 1
    elif low == 5 and mode == 0:
        size = 4
    return at + size, at if size else -1


def _immediate_size(
    number: int, opcode: int, modrm: int, rex: int, narrow: bool, short_address: bool, vector: bool
) -> int:
    word = 2 if narrow and not rex & 8 else 4
    if number == 4:
        return 1
    if number == 2:
        return 4 if 0x80 <= opcode <= 0x8F and not vector else int(opcode in _MAP2_BYTE)
    if number != 1:
        return 0
    if opcode in (0xF6, 0xF7):  # only TEST, /0 and /1, has an immediate
        return 0 if modrm & 0x30 else 1 if opcode == 0xF6 else word
    if 0xB8 <= opcode <= 0xBF:
        return 8 if rex & 8 else word
    if 0xA0 <= opcode <= 0xA3:
        return 4 if short_address else 8
    if opcode in (0xC2, 0xCA):
        return 2
    if opcode == 0xC8:
        return 3
    if opcode in (0xE8, 0xE9):
        return 4
    return 1 if opcode in _MAP1_BYTE else word if opcode in _MAP1_WORD else 0


class Form(Enum):
    """How an instruction uses what it refers to."""

    LOAD = auto()  # reads it into a register
    ADDRESS = auto()  # puts its address into a register
    OPERAND = auto()  # any other memory operand


class Use(NamedTuple):
    """A use that can be made from afar; `register` is the destination of LOAD and ADDRESS."""

    instruction: Instruction
    form: Form
    register: int


# Groups, whose ModRM.reg is no register; of FF only INC and DEC.
_GROUPS: Final = frozenset({0x80, 0x81, 0x83, 0xC0, 0xC1, 0xC6, 0xC7, 0xD0, 0xD1, 0xD2, 0xD3, 0xF6, 0xF7, 0xFE, 0xFF})
_SHORTEST: Final = 5  # a jump has to fit in its place


def direct_use(code: bytes, field: int, fields: Iterable[int]) -> Use | None:
    """How the code of a function uses the symbol that the 32-bit field at `field` refers to; None when it cannot be
    done from afar.  `fields` are all relocated fields: an instruction that moves must not hold another one."""
    found = next((i for i in instructions(code) if i.start <= field < i.end), None)
    if found is None or found.vector or found.map > 2 or found.end - found.start < _SHORTEST:
        return None
    if any(found.start <= other < found.end and other != field for other in fields):
        return None
    if field == found.immediate_at:
        return _immediate_use(code, found)
    if field != found.displacement_at or not _is_plain_memory(code, found):
        return None
    register = (code[found.modrm_at] >> 3 & 7) | (8 if found.rex & 4 else 0)
    narrow = 0x66 in code[found.start : found.opcode_at]  # it keeps the upper part of its register
    if found.map == 1 and found.opcode == 0x8B and register != 4 and not narrow:
        return Use(found, Form.LOAD, register)
    if found.map == 1 and found.opcode == 0x8D:
        return Use(found, Form.ADDRESS, register) if found.rex & 8 and register != 4 else None
    if found.map == 1 and found.opcode in _GROUPS:
        return Use(found, Form.OPERAND, register) if found.opcode != 0xFF or register & 6 == 0 else None
    if register == 4 or (found.map == 1 and found.opcode == 0x8F):
        return None
    return Use(found, Form.OPERAND, register)


def _immediate_use(code: bytes, found: Instruction) -> Use | None:
    """`mov $symbol, %register`, in its two encodings."""
    if found.map == 1 and 0xB8 <= found.opcode <= 0xBF and found.end - found.immediate_at == 4:
        register = (found.opcode & 7) | (8 if found.rex & 1 else 0)
    elif found.map == 1 and found.opcode == 0xC7 and found.rex & 8 and code[found.modrm_at] >> 6 == 3:
        register = (code[found.modrm_at] & 7) | (8 if found.rex & 1 else 0)
    else:
        return None
    return Use(found, Form.ADDRESS, register) if register != 4 else None


def _is_plain_memory(code: bytes, found: Instruction) -> bool:
    """Whether the operand is `symbol(%rip)`, or `symbol` as such: a SIB byte without base and index."""
    modrm = code[found.modrm_at]
    prefixes = code[found.start : found.opcode_at]
    if modrm >> 6 or {0x64, 0x65, 0x67} & {*prefixes}:
        return False
    return modrm & 7 == 5 or (modrm & 7 == 4 and code[found.modrm_at + 1] == 0x25 and not found.rex & 2)
