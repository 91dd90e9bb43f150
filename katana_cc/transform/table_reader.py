"""Call-frame tables back into transformations: the reverse of `katana_cc.transform.tables`.

The reader is strict: it accepts the one way in which the writer says a thing, and no other, so what it returns says all
that is in the section.  Errors name the section and the offset in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from katana_cc.errors import FormatError
from katana_cc.transform import expressions as x
from katana_cc.transform import tables as t
from katana_cc.transform.expressions import Cursor, Operation
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
from katana_cc.transform.rules import DEPTH_LIMIT, SIZE_LIMIT, broken

_ADVANCES: Final = {t.CFA_ADVANCE1: 1, t.CFA_ADVANCE2: 2, t.CFA_ADVANCE4: 4}
_FDE_HEAD: Final = 4 + 4 + 8 + 8 + 1  # length, CIE pointer, location, range, augmentation length


def decode(data: bytes) -> tuple[t.Table, ...]:
    """What each FDE of the section says, in order; `data` must begin with the one CIE.

    Raises:
        FormatError: anything that `katana_cc.transform.tables.encode` does not write.
    """
    try:
        return _tables(data)
    except FormatError as error:
        raise FormatError(f"{t.SECTION}: {error.what}") from error


def _tables(data: bytes) -> tuple[t.Table, ...]:
    cie = t.encode(())
    if not data.startswith(cie):
        raise FormatError("does not begin with the CIE of transformations")
    found: list[t.Table] = []
    at, location = len(cie), t.FIRST_LOCATION
    while at < len(data):
        table, size = _fde(data, at, location)
        # How large the old object is does not stand here; whoever knows it asks again.
        if wrong := broken(Transformation("", SIZE_LIMIT, table.new_size, table.steps)):
            raise FormatError(f"the FDE at {at:#x}: {wrong[0]}")
        found.append(table)
        at, location = at + size, t.next_location(location, table.new_size)
    written = t.encode([Transformation("", SIZE_LIMIT, f.new_size, f.steps) for f in found])
    if written != data:
        at = next(
            (i for i, (a, b) in enumerate(zip(written, data, strict=False)) if a != b), min(len(written), len(data))
        )
        raise FormatError(f"said in another way than a transformation is, at {at:#x}")
    return tuple(found)


def _fde(data: bytes, at: int, location: int) -> tuple[t.Table, int]:
    """(the FDE at an offset, its size in the section)."""
    head = Cursor(data[at : at + _FDE_HEAD], at)
    size = head.fixed(4) + 4
    if size > len(data) - at or size < _FDE_HEAD:
        raise FormatError(f"the record at {at:#x} is cut off")
    if head.fixed(4):
        raise FormatError(f"the record at {at:#x} is no FDE of the CIE at 0")
    if head.fixed(8) != location:
        raise FormatError(f"the FDE at {at:#x} is not for {location:#x}")
    new_size = head.fixed(8)
    if new_size > SIZE_LIMIT or head.fixed(1):
        raise FormatError(f"the FDE at {at:#x} is not of a form that is known")
    reader = _Reader(Cursor(data[at + _FDE_HEAD : at + size], at + _FDE_HEAD))
    return t.Table(at, new_size, reader.steps(0, 0, 0)), size


class _Reader:
    """The instructions of one FDE."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._location = 0

    def steps(self, new: int, old: int, depth: int) -> tuple[Step, ...]:
        """The steps up to the end of the FDE, or of the array; positions count from byte `new` and `old`."""
        cursor, found = self._cursor, []
        while not cursor.done:
            at, code = cursor.place, cursor.fixed(1)
            if code & 0xC0 == t.CFA_ADVANCE:
                self._location += code & 0x3F
            elif code in _ADVANCES:
                self._location += cursor.fixed(_ADVANCES[code])
            elif code in (t.CFA_EXPRESSION, t.CFA_VAL_EXPRESSION):
                found.append(self._rule(at, code, new, old, depth))
            elif code == t.CFA_RESTORE and depth:
                return tuple(found)
            elif code != t.CFA_NOP or depth:
                raise FormatError(f"instruction {code:#x} at {at:#x} does not belong here")
        if depth:
            raise FormatError(f"an array without an end at {cursor.place:#x}")
        return tuple(found)

    def _rule(self, at: int, code: int, new: int, old: int, depth: int) -> Step:
        cursor = self._cursor
        register, size = cursor.uleb(), cursor.uleb()
        place = cursor.place
        operations = x.disassembled(cursor.take(size), place)
        here = self._location - new
        if register == t.REPEAT and code == t.CFA_VAL_EXPRESSION:
            return self._repeat(at, operations, here, old, depth)
        if register >= t.NUMBERS and code == t.CFA_VAL_EXPRESSION:
            return _number(at, register, operations, here)
        make = _MAKERS.get((code, register))
        if make is None:
            raise FormatError(f"no rule for register {register} is known, at {at:#x}")
        return make(at, operations, here)

    def _repeat(self, at: int, operations: tuple[Operation, ...], here: int, old: int, depth: int) -> Step:
        if [o.code for o in operations] != [x.CONSTU] * 3:
            _unknown(at)
        if depth >= DEPTH_LIMIT:
            raise FormatError(f"arrays in arrays, more than {DEPTH_LIMIT} deep, at {at:#x}")
        count, new_stride, old_stride = (o.operands[0] for o in operations)
        cursor, new = self._cursor, self._location
        if cursor.take(2) != bytes([t.CFA_REMEMBER, t.CFA_DEF_CFA_OFFSET]):
            _unknown(at)
        first = cursor.uleb()
        steps = self.steps(new, first, depth + 1)
        return Repeat(count, here, new_stride, first - old, old_stride, steps)


def _unknown(at: int) -> NoReturn:
    raise FormatError(f"the rule at {at:#x} is not of a form that is known")


def _piece(at: int, operations: tuple[Operation, ...]) -> tuple[int, int]:
    """(bits, offset) of the piece that ends a rule."""
    found = x.piece_bits(operations[-1]) if operations else None
    if found is None:
        _unknown(at)
    return found


def _old(at: int, operations: tuple[Operation, ...]) -> int:
    """The offset in the old object of a rule that gives a place."""
    if len(operations) != 2 or operations[0].code != x.PLUS_UCONST:
        _unknown(at)
    return operations[0].operands[0]


def _copy(at: int, operations: tuple[Operation, ...], new: int) -> Step:
    return Copy(new, _old(at, operations), _piece(at, operations)[0] // 8)


def _pointer(at: int, operations: tuple[Operation, ...], new: int) -> Step:
    if _piece(at, operations) != (POINTER_SIZE * 8, 0):
        _unknown(at)
    return Pointer(new, _old(at, operations), "")


def _initial(at: int, operations: tuple[Operation, ...], new: int) -> Step:
    bits, offset = _piece(at, operations)
    if len(operations) != 1:
        _unknown(at)
    return Initial(new * 8 + offset, bits)


def _dropped(at: int, operations: tuple[Operation, ...], _new: int) -> Step:
    bits, offset = _piece(at, operations)
    return Dropped(_old(at, operations) * 8 + offset, bits)


def _float(at: int, operations: tuple[Operation, ...], new: int) -> Step:
    size = _piece(at, operations)[0] // 8
    found = x.fetched(operations[:-1], signed=False)
    if found is None or found[0] % 8:
        _unknown(at)
    return Float(new, size, found[0] // 8, found[1] // 8)


def _number(at: int, register: int, operations: tuple[Operation, ...], new: int) -> Step:
    ways = register - t.NUMBERS
    if ways >= len(t.ENCODINGS) ** 2:
        _unknown(at)
    old_encoding, new_encoding = (t.ENCODINGS[n] for n in divmod(ways, len(t.ENCODINGS)))
    bits, bit = _piece(at, operations)
    plain = Integer(new * 8 + bit, bits, new_encoding, 0, 64, old_encoding)
    rest = operations[:-3] if plain.truth else operations[:-1]
    found = x.fetched(rest, signed=t.is_signed(old_encoding))
    if found is None:
        _unknown(at)
    return Integer(plain.new, bits, new_encoding, *found, old_encoding)


_MAKERS: Final[dict[tuple[int, int], Callable[[int, tuple[Operation, ...], int], Step]]] = {
    (t.CFA_EXPRESSION, t.COPY): _copy,
    (t.CFA_EXPRESSION, t.POINTER): _pointer,
    (t.CFA_EXPRESSION, t.INITIAL): _initial,
    (t.CFA_EXPRESSION, t.DROPPED): _dropped,
    (t.CFA_VAL_EXPRESSION, t.FLOAT): _float,
}
