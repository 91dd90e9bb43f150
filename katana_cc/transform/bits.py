"""Numbers in bytes: bit-fields of a little-endian machine, and IEEE 754."""

from __future__ import annotations

import math
import struct

_FORMATS = {4: "<f", 8: "<d"}
_SHOWN = 16  # bytes of a field that is no number


def read_bits(data: bytes, bit: int, width: int, signed: bool) -> int:
    """The number in `width` bits from bit `bit` on."""
    start, end = bit // 8, (bit + width + 7) // 8
    value = int.from_bytes(data[start:end], "little") >> bit % 8 & (1 << width) - 1
    return value - (1 << width) if signed and value >> width - 1 else value


def write_bits(data: bytearray, bit: int, width: int, value: int) -> None:
    """Put the lowest `width` bits of `value` at bit `bit`; what is around them stays."""
    start, end = bit // 8, (bit + width + 7) // 8
    mask = (1 << width) - 1
    around = int.from_bytes(data[start:end], "little") & ~(mask << bit % 8)
    data[start:end] = (around | (value & mask) << bit % 8).to_bytes(end - start, "little")


def read_float(data: bytes, at: int, size: int) -> float:
    """The float or double, of 4 or 8 bytes, at a byte offset."""
    value: float = struct.unpack_from(_FORMATS[size], data, at)[0]
    return value


def float_bytes(value: float, size: int) -> bytes:
    """A number as a float or double, of 4 or 8 bytes, rounded to nearest."""
    try:
        return struct.pack(_FORMATS[size], value)
    except OverflowError:  # beyond the largest float: C rounds to infinity
        return struct.pack(_FORMATS[size], math.copysign(math.inf, value))


def plain(data: bytes, bit: int, bits: int, field: str) -> str:
    """The value of a field of which only the size is known, for a person: a number if it can be one (in hex where it
    may be an address), else its bytes; `field`, its path, tells several elements of an array."""
    if bits <= 64 and ".." not in field:
        value = read_bits(data, bit, bits, False)
        return f"{value:#x}" if value >> 32 else str(value)
    size = bits // 8
    held = data[bit // 8 : bit // 8 + size]
    if not any(held):
        return f"{size} bytes, all 0"
    return f"{size} bytes, {held[:_SHOWN].hex(' ')}{' ...' if size > _SHOWN else ''}"
