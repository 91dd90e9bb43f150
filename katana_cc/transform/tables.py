"""Transformations as DWARF call-frame tables (`.debug_frame`), after the Katana paper.

A call-frame table says for each place in code where the registers of the caller are found.  Here it says for each place
in the new object where its bytes are found: a frame description entry (FDE) for each transformation, its range the
new object, the canonical frame address (CFA) the start of the old one, a row for each field, and registers stand for
what is found there:

    r91   bytes copied                r92   a pointer               r93   initial bytes stay
    r94   an old field without a new  r95   float <-> double        r96   the rows of an array's element
    r100 to r108   a number: 100 + 3 * how the old is read + how the new is (0 unsigned, 1 signed, 2 bool)

Each rule ends in a piece, which says how much there is, and in which bit of the byte it begins.

    DW_CFA_advance_loc: 8
    DW_CFA_val_expression: r104 (DW_OP_plus_uconst: 4; DW_OP_deref_size: 4; DW_OP_const1u: 32; DW_OP_shl;
                                 DW_OP_const1u: 32; DW_OP_shra; DW_OP_piece: 8)

is the eight bytes at 8, the int at 4 with its sign extended.  docs/patch-object.md specifies it.  Names are not in the
table: they stand beside it, one label a step (`labels`), in this order.

Sources: Katana paper, "patch object format"; DWARF 5, 6.4 (call-frame information).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from katana_cc.dwarf.forms import Encoding
from katana_cc.dwarf.leb128 import uleb_bytes
from katana_cc.errors import FormatError
from katana_cc.transform import expressions as x
from katana_cc.transform.expressions import Operation, op
from katana_cc.transform.model import (
    POINTER_SIZE,
    Copy,
    Dropped,
    Float,
    Initial,
    Integer,
    Pointer,
    Repeat,
    Step,
    Transformation,
)
from katana_cc.transform.rules import new_range

SECTION: Final = ".debug_frame"
# Where the new objects are said to lie: one after the other where no x86-64 address is, so that a debugger that reads
# the section finds no code described by it.
FIRST_LOCATION: Final = 1 << 63
ALIGNMENT: Final = 16

# Of the numbers 83 to 117, to which the x86-64 ABI gives no register: readelf takes none beyond those it has names for.
OBJECT, COPY, POINTER, INITIAL, DROPPED, FLOAT, REPEAT, NUMBERS = 90, 91, 92, 93, 94, 95, 96, 100
ENCODINGS: Final = (Encoding.UNSIGNED, Encoding.SIGNED, Encoding.BOOL)

CFA_ADVANCE, CFA_ADVANCE1, CFA_ADVANCE2, CFA_ADVANCE4 = 0x40, 0x02, 0x03, 0x04
CFA_NOP, CFA_REMEMBER, CFA_RESTORE, CFA_DEF_CFA, CFA_DEF_CFA_OFFSET = 0x00, 0x0A, 0x0B, 0x0C, 0x0E
CFA_EXPRESSION, CFA_VAL_EXPRESSION = 0x10, 0x16
_CIE_ID: Final = 0xFFFFFFFF


class Label(NamedTuple):
    """What a person calls a step: the new field, the old one, and of a pointer what it points to."""

    field: str
    source: str
    pointee: str


class Table(NamedTuple):
    """One FDE read: what it says but for names and the size of the old object."""

    offset: int  # of the FDE in the section
    new_size: int
    steps: tuple[Step, ...]


# -- names -------------------------------------------------------------------------------------------------------------


def labels(steps: Sequence[Step]) -> Iterator[Label]:
    """The labels of steps, each array before its elements."""
    for step in steps:
        yield Label(
            "" if isinstance(step, Dropped) else step.field,
            "" if isinstance(step, Initial) else step.source,
            step.pointee if isinstance(step, Pointer) else "",
        )
        if isinstance(step, Repeat):
            yield from labels(step.steps)


def labelled(steps: Sequence[Step], names: Iterator[Label]) -> tuple[Step, ...]:
    """The steps with their labels.

    Raises:
        FormatError: too few labels, or one that says what its step has not.
    """
    result: list[Step] = []
    for step in steps:
        label = next(names, None)
        if label is None:
            raise FormatError("fewer names of fields than fields")
        if (label.pointee and not isinstance(step, Pointer)) or (label.field and isinstance(step, Dropped)) or (
            label.source and isinstance(step, Initial)
        ):  # fmt: skip
            raise FormatError(f"the names of a field say what it has not: {label}")
        match step:
            case Pointer():
                result.append(replace(step, field=label.field, source=label.source, pointee=label.pointee))
            case Initial():
                result.append(replace(step, field=label.field))
            case Dropped():
                result.append(replace(step, source=label.source))
            case Repeat():
                inner = labelled(step.steps, names)
                result.append(replace(step, field=label.field, source=label.source, steps=inner))
            case _:
                result.append(replace(step, field=label.field, source=label.source))
    return tuple(result)


# -- writing -----------------------------------------------------------------------------------------------------------


def encode(transformations: Sequence[Transformation]) -> bytes:
    """The section: one CIE, then an FDE for each; the same transformations always give the same bytes.

    They must keep the rules (`katana_cc.transform.rules.broken`).
    """
    result = bytearray(_cie())
    location = FIRST_LOCATION
    for t in transformations:
        head = (0).to_bytes(4, "little") + location.to_bytes(8, "little") + t.new_size.to_bytes(8, "little") + b"\0"
        writer = _Writer()
        writer.steps(t.steps, 0, 0)
        result += _record(head + writer.code)
        location = next_location(location, t.new_size)
    return bytes(result)


def next_location(location: int, size: int) -> int:
    """Where the object after one of `size` bytes is said to lie."""
    return location + (size // ALIGNMENT + 1) * ALIGNMENT


def _record(body: bytes | bytearray) -> bytes:
    padded = body + bytes(-(4 + len(body)) % 8)  # DW_CFA_nop
    return len(padded).to_bytes(4, "little") + padded


def _cie() -> bytes:
    """Version 4, augmentation "zkatana" (the z lets readers that do not know it pass over it), 8-byte addresses, no
    segments, alignment factors 1; the CFA is the old object."""
    head = _CIE_ID.to_bytes(4, "little") + b"\4zkatana\0" + bytes([8, 0, 1, 1]) + uleb_bytes(OBJECT) + b"\0"
    return _record(head + bytes([CFA_DEF_CFA]) + uleb_bytes(OBJECT) + b"\0")


class _Writer:
    """The instructions of one FDE."""

    def __init__(self) -> None:
        self.code = bytearray()
        self._location = 0

    def steps(self, steps: Sequence[Step], new: int, old: int) -> None:
        """Describe steps; their positions count from byte `new` of the new object, and `old` of the old one."""
        for step in steps:
            if not isinstance(step, Dropped):
                self._advance(new + new_range(step)[0] // 8)
            if isinstance(step, Repeat):
                numbers = (op(x.CONSTU, step.count), op(x.CONSTU, step.new_stride), op(x.CONSTU, step.old_stride))
                self._rule(CFA_VAL_EXPRESSION, REPEAT, numbers)
                self.code += bytes([CFA_REMEMBER, CFA_DEF_CFA_OFFSET]) + uleb_bytes(old + step.old)
                self.steps(step.steps, new + step.new, old + step.old)
                self.code.append(CFA_RESTORE)
            else:
                self._rule(*_rule(step))

    def _advance(self, location: int) -> None:
        delta = location - self._location
        self._location = location
        if delta:
            self.code += _advance(delta)

    def _rule(self, instruction: int, register: int, expression: tuple[Operation, ...]) -> None:
        data = x.assembled(expression)
        self.code += bytes([instruction]) + uleb_bytes(register) + uleb_bytes(len(data)) + data


def is_signed(encoding: Encoding) -> bool:
    """Whether numbers of this encoding have a sign to extend."""
    return encoding is Encoding.SIGNED


def _advance(delta: int) -> bytes:
    if delta < 0x40:
        return bytes([CFA_ADVANCE | delta])
    for code, size in ((CFA_ADVANCE1, 1), (CFA_ADVANCE2, 2), (CFA_ADVANCE4, 4)):
        if delta >> 8 * size == 0:
            return bytes([code]) + delta.to_bytes(size, "little")
    raise FormatError(f"an object with a gap of {delta} bytes")


def _rule(step: Copy | Pointer | Integer | Float | Initial | Dropped) -> tuple[int, int, tuple[Operation, ...]]:
    match step:
        case Copy():
            return CFA_EXPRESSION, COPY, (op(x.PLUS_UCONST, step.old), x.piece(step.size * 8))
        case Pointer():
            return CFA_EXPRESSION, POINTER, (op(x.PLUS_UCONST, step.old), x.piece(POINTER_SIZE * 8))
        case Initial():
            return CFA_EXPRESSION, INITIAL, (x.piece(step.bits, step.new % 8),)
        case Dropped():
            return CFA_EXPRESSION, DROPPED, (op(x.PLUS_UCONST, step.old // 8), x.piece(step.bits, step.old % 8))
        case Float():
            load = x.fetch(step.old * 8, step.old_size * 8, signed=False)
            return CFA_VAL_EXPRESSION, FLOAT, (*load, x.piece(step.new_size * 8))
        case Integer():
            ways = 3 * ENCODINGS.index(step.old_encoding) + ENCODINGS.index(step.new_encoding)
            load = x.fetch(step.old, step.old_bits, signed=is_signed(step.old_encoding))
            truth = (op(x.LIT0), op(x.NE)) if step.truth else ()
            return CFA_VAL_EXPRESSION, NUMBERS + ways, (*load, *truth, x.piece(step.new_bits, step.new % 8))
