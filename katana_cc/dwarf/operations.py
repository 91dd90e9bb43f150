"""DWARF expressions taken apart, as far as moving them elsewhere needs: where they hold addresses and references.

Most operations mean the same wherever they stand, and are copied.  Those with an address, an index into a table of
addresses or a reference to an entry are translated.  An operation that is not known, or that jumps over bytes whose
number changes, makes the whole expression unknown: better none than a wrong one.

Source: DWARF 5, sections 2.5 and 7.7.1; the GNU extensions as gcc's dwarf2.def numbers them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.leb128 import uleb, uleb_bytes
from katana_cc.dwarf.sections import AddressFields, Place
from katana_cc.dwarf.tree import Address, Expression, Reference, Width

# Operands: a number of bytes, U (LEB128), B (a block with its length), I (an index of an address), R (a reference to a
# type in the unit, ULEB128), S (a reference into .debug_info), X (an expression with its length), C (a block with its
# length in one byte).
_ADDRESS: Final = "A"
_OPERANDS: Final[dict[int, str]] = {
    0x03: _ADDRESS, 0x08: "1", 0x09: "1", 0x0A: "2", 0x0B: "2", 0x0C: "4", 0x0D: "4", 0x0E: "8", 0x0F: "8",
    0x10: "U", 0x11: "U", 0x15: "1", 0x23: "U", 0x28: "J", 0x2F: "J",
    0x90: "U", 0x91: "U", 0x92: "UU", 0x93: "U", 0x94: "1", 0x95: "1", 0x9D: "UU", 0x9E: "B",
    0xA0: "SU", 0xA1: "I", 0xA3: "X", 0xA4: "RC", 0xA5: "UR", 0xA6: "1R", 0xA7: "1R", 0xA8: "R", 0xA9: "R",
    0xF2: "SU", 0xF3: "X", 0xF4: "RC", 0xF5: "UR", 0xF6: "1R", 0xF7: "R", 0xF9: "R", 0xFB: "I", 0xFD: "S",
    **dict.fromkeys(range(0x70, 0x90), "U"),
    **dict.fromkeys((0x06, 0x12, 0x13, 0x14, *range(0x16, 0x23), *range(0x24, 0x28), *range(0x29, 0x2F)), ""),
    **dict.fromkeys((*range(0x30, 0x70), 0x96, 0x97, 0x9C, 0x9F, 0xF0), ""),
}  # fmt: skip
_ULEB_WIDTH: Final = 4


class Source(NamedTuple):
    """Where an expression is read: bytes, what their address fields point at, start of its unit, what an index of an
    address means."""

    data: bytes
    addresses: AddressFields
    unit_start: int
    indexed: Callable[[int], Place | None]


class _Unknown(Exception):
    """The expression cannot be moved."""


def expression_at(source: Source, start: int, size: int) -> Expression | None:
    """The expression at [start, start + size), or None: it says what cannot be said elsewhere.

    Raises:
        IndexError: it is cut off.
    """
    try:
        return Expression(_pieces(source, start, start + size))
    except _Unknown:
        return None


def _pieces(source: Source, position: int, end: int) -> tuple[bytes | Address | Reference, ...]:
    data = source.data
    found: list[bytes | Address | Reference] = []
    copied = bytearray()
    jumps = changed = False

    def put(piece: Address | Reference) -> None:
        if copied:
            found.append(bytes(copied))
            copied.clear()
        found.append(piece)

    while position < end:
        code = data[position]
        kinds = _OPERANDS.get(code)
        if kinds is None:
            raise _Unknown
        copied.append(d.DW_OP_addr if kinds == "I" else code)
        position += 1
        for kind in kinds:
            if kind == _ADDRESS:
                put(_address(source.addresses.get(position)))
                position += 8
            elif kind == "I":
                index, position = uleb(data, position)
                put(_address(source.indexed(index)))
                changed = True
            elif kind == "R":
                target, position = uleb(data, position)
                changed = True
                if target:
                    put(Reference(source.unit_start + target, Width.ULEB))
                else:
                    copied += b"\0"  # the generic type
            elif kind == "S":
                put(Reference(int.from_bytes(data[position : position + 4], "little"), Width.SECTION))
                position += 4
            elif kind == "X":
                size, position = uleb(data, position)
                inner = Expression(_pieces(source, position, position + size))
                copied += uleb_bytes(inner.size)
                for piece in inner.pieces:
                    if isinstance(piece, bytes):
                        copied += piece
                    else:
                        put(piece)
                position += size
                changed = True
            else:
                size = 2 if kind == "J" else int(kind) if kind.isdigit() else _length(data, position, kind)
                if source.addresses.get(position) is not None:
                    raise _Unknown  # the offset of a thread-local variable, or half an address
                copied += data[position : position + size]
                position += size
                jumps |= kind == "J"
    if position != end:
        raise IndexError
    if jumps and changed:
        raise _Unknown
    if copied:
        found.append(bytes(copied))
    return tuple(found)


def _address(place: Place | None) -> Address:
    if place is None:
        raise _Unknown
    return Address(place)


def _length(data: bytes, position: int, kind: str) -> int:
    """The bytes of an operand with a length of its own."""
    if kind == "C":
        return 1 + data[position]
    value, after = uleb(data, position)
    return after - position + (value if kind == "B" else 0)
