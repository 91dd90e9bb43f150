"""What kind of value a type is to the machine: its array bounds, the encoding of its elements, what pointers point to.

`texts` says whether two types are the same; where they are not, whoever turns a live value of the one into the other
has to know what it is: an `int` becomes a `long` by extending its sign, a pointer never becomes a number.

Source: DWARF 5, sections 5.1 (base types), 5.5 (arrays), 5.7 (enumerations: DW_AT_type is the underlying type).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Final

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.naming import AGGREGATES, POINTERS, Naming, naming
from katana_cc.dwarf.texts import texts
from katana_cc.dwarf.units import Die


class Encoding(StrEnum):
    """How the bytes of a value are read."""

    SIGNED = "signed"  # two's complement; also an enum with a signed underlying type
    UNSIGNED = "unsigned"
    BOOL = "bool"
    FLOAT = "float"  # IEEE 754, of 4 or 8 bytes
    POINTER = "pointer"  # also a C++ reference
    AGGREGATE = "aggregate"  # struct, union or class: has a layout of its own
    OTHER = "other"  # complex, decimal, long double, vectors, pointers to members: only ever copied


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a type.

    `bounds` are the element counts of an array, outermost first, () for what is none; None is an open one (`[]`).
    `encoding` and `element_size` (bytes) are those of one element.  `pointee` is the canonical text of what it points
    to, "" when it is no pointer.
    """

    encoding: Encoding = Encoding.OTHER
    element_size: int = 0
    bounds: tuple[int | None, ...] = ()
    pointee: str = ""

    @property
    def is_integer(self) -> bool:
        """Whether its elements are numbers that C converts into each other by value."""
        return self.encoding in (Encoding.SIGNED, Encoding.UNSIGNED, Encoding.BOOL)

    @property
    def count(self) -> int:
        """Elements in all; 0 for an open array."""
        return prod(n or 0 for n in self.bounds)


NO_FORM: Final = Form()

_BASE: Final = {
    d.DW_ATE_signed: Encoding.SIGNED,
    d.DW_ATE_signed_char: Encoding.SIGNED,
    d.DW_ATE_unsigned: Encoding.UNSIGNED,
    d.DW_ATE_unsigned_char: Encoding.UNSIGNED,
    d.DW_ATE_UTF: Encoding.UNSIGNED,
    d.DW_ATE_boolean: Encoding.BOOL,
}
_QUADRUPLE: Final = ("__float128", "_Float128")


class Forms:
    """Forms of the types of one object.  Made by `forms`."""

    def __init__(self, info: DebugInfo) -> None:
        self._info = info
        self._names: Naming = naming(info)
        self._found: dict[int, Form] = {}

    def form(self, die: Die | None) -> Form:
        """The form of a type; None is void.

        Raises:
            FormatError: damaged debug information.
        """
        if die is None:
            return NO_FORM
        found = self._found.get(die.offset)
        if found is None:
            found = self._found[die.offset] = self._form(die)
        return found

    def _form(self, die: Die) -> Form:
        bounds: list[int | None] = []
        element = self._names.peeled(die)
        while (
            element is not None and element.tag == d.DW_TAG_array_type and d.DW_AT_GNU_vector not in element.attributes
        ):
            bounds += texts(self._info).bounds(element) or [None]
            if len(bounds) > 1000:
                raise self._names.endless(die)
            element = self._names.peeled(self._names.target(element))
        size = texts(self._info).size(element)
        pointee = ""
        if element is not None and element.tag in POINTERS:
            pointee = texts(self._info).text(self._names.target(element))
        return Form(self._encoding(element, size), size, tuple(bounds), pointee)

    def _encoding(self, die: Die | None, size: int) -> Encoding:
        if die is None:
            return Encoding.OTHER
        if die.tag in POINTERS:
            return Encoding.POINTER
        if die.tag == d.DW_TAG_enumeration_type:
            return self._of_enum(die)
        if die.tag in AGGREGATES:
            return Encoding.AGGREGATE
        if die.tag != d.DW_TAG_base_type:
            return Encoding.OTHER
        encoding = die.integer(d.DW_AT_encoding)
        if encoding == d.DW_ATE_float:
            exact = size in (4, 8) and die.text(d.DW_AT_name) not in _QUADRUPLE
            return Encoding.FLOAT if exact else Encoding.OTHER
        return _BASE.get(encoding, Encoding.OTHER) if encoding is not None else Encoding.OTHER

    def _of_enum(self, die: Die) -> Encoding:
        underlying = self._names.peeled(self._names.target(die))
        if underlying is not None and underlying.tag == d.DW_TAG_base_type:
            return self._encoding(underlying, 0)
        # C leaves the type to the compiler: gcc and clang take an unsigned one unless a value is negative.
        values = (c.integer(d.DW_AT_const_value) or 0 for c in self._info.children(die))
        return Encoding.SIGNED if any(v < 0 for v in values) else Encoding.UNSIGNED


def forms(info: DebugInfo) -> Forms:
    """The forms of an object's types; one instance an object."""
    found = info.memo.get("forms")
    if not isinstance(found, Forms):
        found = info.memo["forms"] = Forms(info)
    return found
