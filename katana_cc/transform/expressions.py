"""DWARF expressions that fetch a number from the old object, both ways: assembled, and recognised.

The address of the old object (or element) is on the stack when an expression begins, as for every rule of a call-frame
table.  A number of `bits` bits at bit `position`:

    DW_OP_plus_uconst BYTE; DW_OP_deref_size N                        N: the bytes it touches; 8: DW_OP_deref
    DW_OP_const1u LEFT; DW_OP_shl; DW_OP_const1u RIGHT; DW_OP_shra    what is around it shifted out; unsigned: DW_OP_shr

One that touches nine bytes (packed) is put together from eight and one.  Where nothing is to be shifted out, the shifts
are left out; so each number has exactly one expression, and the reader accepts no other.

Source: DWARF 5, 2.5.1 (operations), 2.6.1.2 (pieces), 6.4.2.3 (rules that are expressions), 7.7.1 (numbers).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from katana_cc.dwarf.leb128 import uleb_bytes
from katana_cc.errors import FormatError

DEREF: Final = 0x06
CONST1U: Final = 0x08
CONSTU: Final = 0x10
DUP: Final = 0x12
SWAP: Final = 0x16
OR: Final = 0x21
PLUS_UCONST: Final = 0x23
SHL: Final = 0x24
SHR: Final = 0x25
SHRA: Final = 0x26
NE: Final = 0x2E
LIT0: Final = 0x30
PIECE: Final = 0x93
DEREF_SIZE: Final = 0x94
BIT_PIECE: Final = 0x9D

# Operands of each operation: "B" one byte, "U" unsigned LEB128.
_OPERANDS: Final = {
    DEREF: "", CONST1U: "B", CONSTU: "U", DUP: "", SWAP: "", OR: "", PLUS_UCONST: "U", SHL: "", SHR: "", SHRA: "",
    NE: "", LIT0: "", PIECE: "U", DEREF_SIZE: "B", BIT_PIECE: "UU",
}  # fmt: skip
_LEB_LIMIT: Final = 10  # bytes: what 64 bits take


class Operation(NamedTuple):
    """One operation with its operands."""

    code: int
    operands: tuple[int, ...] = ()


def op(code: int, *operands: int) -> Operation:
    """An operation."""
    return Operation(code, operands)


def assembled(operations: tuple[Operation, ...]) -> bytes:
    """The bytes of an expression."""
    result = bytearray()
    for code, operands in operations:
        result.append(code)
        for kind, value in zip(_OPERANDS[code], operands, strict=True):
            result += bytes([value]) if kind == "B" else uleb_bytes(value)
    return bytes(result)


class Cursor:
    """Reads bytes, LEB128 and blocks; `base` is the place in the section that offset 0 has, for errors."""

    def __init__(self, data: bytes, base: int) -> None:
        self._data = data
        self._base = base
        self.at = 0

    @property
    def place(self) -> int:
        """The offset in the section of what is read next."""
        return self._base + self.at

    @property
    def done(self) -> bool:
        """Whether all was read."""
        return self.at >= len(self._data)

    def take(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            FormatError: there are not as many.
        """
        if size > len(self._data) - self.at:
            raise FormatError(f"cut off at {self.place:#x}")
        self.at += size
        return self._data[self.at - size : self.at]

    def fixed(self, size: int) -> int:
        """An unsigned number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def uleb(self) -> int:
        """An unsigned LEB128 number of at most 64 bits, as short as it can be."""
        start, result = self.place, 0
        for i in range(_LEB_LIMIT):
            byte = self.fixed(1)
            result |= (byte & 0x7F) << 7 * i
            if not byte & 0x80:
                if (byte == 0 and i) or result >> 64:
                    break
                return result
        raise FormatError(f"number at {start:#x} is longer than it must be")


def disassembled(data: bytes, place: int) -> tuple[Operation, ...]:
    """The operations of the expression at `place` of its section.

    Raises:
        FormatError: cut off, or with an operation that no transformation uses.
    """
    cursor = Cursor(data, place)
    result = []
    while not cursor.done:
        at, code = cursor.place, cursor.fixed(1)
        if code not in _OPERANDS:
            raise FormatError(f"operation {code:#x} at {at:#x} is not known")
        operands = tuple(cursor.fixed(1) if kind == "B" else cursor.uleb() for kind in _OPERANDS[code])
        result.append(Operation(code, operands))
    return tuple(result)


def piece(bits: int, offset: int = 0) -> Operation:
    """The operation that says how many bits there are, from bit `offset` on."""
    return op(BIT_PIECE, bits, offset) if bits % 8 or offset else op(PIECE, bits // 8)


def piece_bits(operation: Operation) -> tuple[int, int] | None:
    """(bits, offset) of a piece; None when it is another operation."""
    if operation.code == PIECE:
        return operation.operands[0] * 8, 0
    if operation.code == BIT_PIECE:
        return operation.operands[0], operation.operands[1]
    return None


def fetch(position: int, bits: int, signed: bool) -> tuple[Operation, ...]:
    """What fetches the number of `bits` bits at bit `position`."""
    byte, bit = divmod(position, 8)
    touched = (bit + bits + 7) // 8
    right = 64 - bits
    if touched == 9:
        low = (op(DUP), op(DEREF), op(CONST1U, bit), op(SHR))
        high = (op(SWAP), op(PLUS_UCONST, 8), op(DEREF_SIZE, 1), op(CONST1U, 64 - bit), op(SHL), op(OR))
        return (op(PLUS_UCONST, byte), *low, *high, *_shifts(right, right, signed))
    load = op(DEREF) if touched == 8 else op(DEREF_SIZE, touched)
    whole = bit == 0 and bits == touched * 8 and (touched == 8 or not signed)
    shifts = () if whole else _shifts(right - bit, right, signed)
    return (op(PLUS_UCONST, byte), load, *shifts)


def _shifts(left: int, right: int, signed: bool) -> tuple[Operation, ...]:
    up = (op(CONST1U, left), op(SHL)) if left else ()
    down = (op(CONST1U, right), op(SHRA if signed else SHR)) if right else ()
    return up + down


def fetched(operations: tuple[Operation, ...], signed: bool) -> tuple[int, int] | None:
    """(position, bits) of the number that the operations fetch; None when they do nothing of the kind."""
    if len(operations) < 2 or operations[0].code != PLUS_UCONST:
        return None
    byte, rest = operations[0].operands[0], operations[1:]
    shifts = [o.operands[0] for o in rest if o.code == CONST1U]
    if rest[0].code == DUP:
        bit = shifts[0] if shifts else 0
        bits = 64 - shifts[-1] if len(shifts) == 4 else 64
    elif len(rest) == 1:
        bit, bits = 0, 64 if rest[0].code == DEREF else 8 * sum(rest[0].operands)
    elif shifts:
        left, right = shifts[0] if len(shifts) == 2 else 0, shifts[-1]
        bit, bits = right - left, 64 - right
    else:
        return None
    if not (0 <= bit < 8 and 1 <= bits <= 64):
        return None
    # Whatever it was guessed from: only the one expression of this number is accepted.
    position = byte * 8 + bit
    return (position, bits) if fetch(position, bits, signed) == operations else None
