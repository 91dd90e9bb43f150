"""What a relocation writes, as data: how its value is computed, and which bits of it go where.

A field of x86-64 is whole bytes.  One of AArch64 is a group of bits in an instruction of four bytes, or two groups, and
holds the value without its lowest bits:

    R_X86_64_PC32          S + A - P                 32 bits of the value in bits 0..31 of 4 bytes
    R_AARCH64_CALL26       S + A - P                 bits 2..27 of the value in bits 0..25 of 4 bytes
    ADR_PREL_PG_HI21       Page(S+A) - Page(P)       bits 12, 13 in bits 29, 30; bits 14..32 in bits 5..23

So one row of a table says all of a type, and reading and writing are the same for every CPU.

Sources: psABI AMD64 4.4.1, AAELF64 5.7 ("Relocation"), where the letters are explained.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from katana_cc.errors import RefusedError

PAGE_BITS: Final = 12  # of the pages that ADRP counts in, whatever the kernel's are


class Form(Enum):
    """How the value of a relocation is computed: S symbol, A addend, P place, G slot of the GOT, Z size; Page() is
    without the lowest 12 bits."""

    ABSOLUTE = "S + A"
    RELATIVE = "S + A - P"
    PAGE_RELATIVE = "Page(S + A) - Page(P)"
    GOT_ABSOLUTE = "G + A"
    GOT_RELATIVE = "G + A - P"
    GOT_PAGE_RELATIVE = "Page(G + A) - Page(P)"
    TLS_OFFSET = "S + A - thread pointer"
    TLS_GOT_ABSOLUTE = "G(thread pointer offset) + A"
    TLS_GOT_RELATIVE = "G(thread pointer offset) + A - P"
    TLS_GOT_PAGE_RELATIVE = "Page(G(thread pointer offset) + A) - Page(P)"
    SIZE = "Z + A"
    OTHER = "not computed here"
    NOTHING = "nothing"


GOT_FORMS: Final = frozenset({Form.GOT_ABSOLUTE, Form.GOT_RELATIVE, Form.GOT_PAGE_RELATIVE})
TLS_GOT_FORMS: Final = frozenset({Form.TLS_GOT_ABSOLUTE, Form.TLS_GOT_RELATIVE, Form.TLS_GOT_PAGE_RELATIVE})
_FROM_PLACE: Final = frozenset({Form.RELATIVE, Form.GOT_RELATIVE, Form.TLS_GOT_RELATIVE})
_FROM_PAGE: Final = frozenset({Form.PAGE_RELATIVE, Form.GOT_PAGE_RELATIVE, Form.TLS_GOT_PAGE_RELATIVE})


class Part(NamedTuple):
    """`length` bits of the value from bit `value_bit` on, at bit `field_bit` of the little-endian bytes."""

    field_bit: int
    value_bit: int
    length: int


class RelocationKind(NamedTuple):
    """A row of a table of relocation types.

    Attributes:
        width: bytes that are read and written: the field, or the instruction that holds it.
        bounds: low <= value < high; None when it is not checked (what the field does not hold is left out).
        parts: which bits go where.
        alignment: what the value has to be a multiple of.
    """

    name: str
    form: Form
    width: int
    bounds: tuple[int, int] | None
    parts: tuple[Part, ...]
    alignment: int = 1

    @property
    def mask(self) -> int:
        """The bits of the field that the relocation writes."""
        return sum(((1 << p.length) - 1) << p.field_bit for p in self.parts)

    @property
    def bits(self) -> int:
        """How many bits a value may have that the field holds whole."""
        return max((p.value_bit + p.length for p in self.parts), default=0)


def whole(name: str, form: Form, width: int, signed: bool | None) -> RelocationKind:
    """A relocation that fills `width` bytes with the value."""
    bits = 8 * width
    bounds = None if signed is None else signed_bounds(bits) if signed else (0, 1 << bits)
    return RelocationKind(name, form, width, bounds, (Part(0, 0, bits),) if width else ())


def signed_bounds(bits: int) -> tuple[int, int]:
    """Those of a two's complement number."""
    return -(1 << bits - 1), 1 << bits - 1


def from_place(kind: RelocationKind, target: int, place: int) -> int:
    """The value of a relocation.

    Args:
        target: S + A, G + A or what else the form counts from the place.
        place: P.
    """
    if kind.form in _FROM_PLACE:
        return target - place
    if kind.form in _FROM_PAGE:
        return (target >> PAGE_BITS) - (place >> PAGE_BITS) << PAGE_BITS
    return target


def fits(kind: RelocationKind, value: int) -> bool:
    """Whether the field can hold the (unwrapped) value."""
    return not value % kind.alignment and (kind.bounds is None or kind.bounds[0] <= value < kind.bounds[1])


def write(kind: RelocationKind, data: bytearray, at: int, value: int) -> None:
    """Put a value into the field at data[at]; other bits of an instruction stay."""
    word = int.from_bytes(data[at : at + kind.width], "little") & ~kind.mask
    for part in kind.parts:
        word |= (value >> part.value_bit & (1 << part.length) - 1) << part.field_bit
    data[at : at + kind.width] = word.to_bytes(kind.width, "little")


def read(kind: RelocationKind, data: bytes | bytearray, at: int) -> int:
    """What a field holds of its value: bits that it does not hold are 0, or the sign's."""
    word = int.from_bytes(data[at : at + kind.width], "little")
    value = 0
    for part in kind.parts:
        value |= (word >> part.field_bit & (1 << part.length) - 1) << part.value_bit
    is_signed = kind.bounds is not None and kind.bounds[0] < 0
    return value - (1 << kind.bits) if is_signed and value >> (kind.bits - 1) & 1 else value


def kind_of(
    kinds: Mapping[int, RelocationKind], names: Mapping[int, str], number: int, where: str, remedy: str
) -> RelocationKind:
    """The row of a table for a relocation type.

    Raises:
        RefusedError: there is none.
    """
    kind = kinds.get(number)
    if kind is None:
        name = names.get(number, f"relocation type {number}")
        raise RefusedError(f"{name} is not supported in a patch", where=where, remedy=remedy)
    return kind
