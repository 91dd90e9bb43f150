"""Debugging information as values: entries with their attributes, apart from any encoding.

What one object's DWARF says is taken apart into these (`extract.py`), and what a patch says of its functions is put
together from them again (`patch/debugwriter.py`).  An entry is known by its `key`, an integer of its maker's choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from katana_cc.dwarf.lines import Row
from katana_cc.dwarf.sections import Place


class Width(Enum):
    """How a reference stands in the bytes."""

    UNIT = "four bytes, counted from the start of the unit"
    ULEB = "an ULEB128 number of four bytes, counted likewise"
    SECTION = "four bytes, counted from the start of .debug_info"


class Number(NamedTuple):
    """A constant, and the DW_FORM_* that says how wide it is and whether it has a sign."""

    form: int
    value: int


class Text(NamedTuple):
    """A string."""

    value: str


class Bytes(NamedTuple):
    """A value as memory holds it."""

    value: bytes


class File(NamedTuple):
    """A source file, by its name: its number is the writer's business."""

    name: str


class Flag(NamedTuple):
    """That something is so."""


class Address(NamedTuple):
    """An address of code or data."""

    place: Place


class Reference(NamedTuple):
    """Another entry, by its key."""

    key: int
    width: Width = Width.UNIT


class Expression(NamedTuple):
    """A DWARF expression: its bytes, and in between what only the writer knows as bytes."""

    pieces: tuple[bytes | Address | Reference, ...]

    @property
    def size(self) -> int:
        """Bytes it will take."""
        return sum(len(p) if isinstance(p, bytes) else 8 if isinstance(p, Address) else 4 for p in self.pieces)

    @property
    def references(self) -> tuple[Reference, ...]:
        """The entries it names."""
        return tuple(p for p in self.pieces if isinstance(p, Reference))


class Located(NamedTuple):
    """Where something is while the program counter is in [start, start + size)."""

    start: Place
    size: int
    expression: Expression


class Locations(NamedTuple):
    """A location list."""

    entries: tuple[Located, ...]


class Ranges(NamedTuple):
    """Code: (start, size) of each piece."""

    pieces: tuple[tuple[Place, int], ...]


Value = Number | Text | Bytes | File | Flag | Address | Reference | Expression | Locations | Ranges


@dataclass(slots=True)
class TreeEntry:
    """One debugging information entry.  `attributes` are (DW_AT_*, value), each attribute once."""

    key: int
    tag: int
    attributes: tuple[tuple[int, Value], ...]
    children: list[TreeEntry] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Code that a unit tells of: [start, start + size), with its rows of the line table (offsets in its section)."""

    start: Place
    size: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class TreeUnit:
    """One compilation unit: what its root says beside its addresses and lines, and what is in it."""

    attributes: tuple[tuple[int, Value], ...]
    directory: str
    children: tuple[TreeEntry, ...]
    stretches: tuple[Stretch, ...]


def moved(value: Value, to: Callable[[Place], Place]) -> Value:
    """A value with its addresses translated."""
    if isinstance(value, Address):
        return Address(to(value.place))
    if isinstance(value, Expression):
        return Expression(tuple(Address(to(p.place)) if isinstance(p, Address) else p for p in value.pieces))
    if isinstance(value, Locations):
        entries = (Located(to(x.start), x.size, _moved_expression(x.expression, to)) for x in value.entries)
        return Locations(tuple(entries))
    if isinstance(value, Ranges):
        return Ranges(tuple((to(start), size) for start, size in value.pieces))
    return value


def _moved_expression(expression: Expression, to: Callable[[Place], Place]) -> Expression:
    result = moved(expression, to)
    assert isinstance(result, Expression)
    return result


def moved_entry(entry: TreeEntry, to: Callable[[Place], Place]) -> TreeEntry:
    """An entry, and all in it, with its addresses translated."""
    attributes = tuple((attribute, moved(value, to)) for attribute, value in entry.attributes)
    return replace(entry, attributes=attributes, children=[moved_entry(child, to) for child in entry.children])
