"""Numbers of variable length, as debug information and call frame information have them (DWARF 5, 7.6): both ways."""

from __future__ import annotations


def uleb(data: bytes, position: int) -> tuple[int, int]:
    """The ULEB128 number at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def sleb(data: bytes, position: int) -> tuple[int, int]:
    """The SLEB128 number at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value - (1 << shift) if byte & 0x40 else value), position


def uleb_bytes(value: int) -> bytes:
    """`value` as ULEB128, as short as it can be."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sleb_bytes(value: int) -> bytes:
    """`value` as SLEB128, as short as it can be."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)
