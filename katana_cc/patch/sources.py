"""What a patch says of its sources: debug information of what it carries, taken from the objects' own.

A debugger needs it and nothing else does: where an object has none that can be read, a patch simply says less.  Each
object makes a unit of its own: it has one language, one directory that file names start from, and types of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.extract import entries_of
from katana_cc.dwarf.functions import Function, functions
from katana_cc.dwarf.lines import Row, line_rows
from katana_cc.dwarf.sections import DwarfProblem, Place
from katana_cc.dwarf.tree import Number, Text, TreeUnit, Value, moved_entry
from katana_cc.dwarf.units import Unit
from katana_cc.errors import FormatError
from katana_cc.patch.debuginfo import LANG_C11, CarriedFunction, stretch_of, unit_of, with_units
from katana_cc.patch.model import PatchObject, PatchSymbol

Existing = Callable[[Place], tuple[PatchSymbol, int] | None]
"""What lies at a place of an object, as an undefined symbol of the patch and the offset from there: None if it is not
in the target."""


class Origin(NamedTuple):
    """Where a carried section comes from: the debug information of an object, and its section there.  Sections of one
    unit share one `existing`."""

    number: int
    info: DebugInfo | DwarfProblem
    section: int
    existing: Existing = lambda _: None


def with_sources(po: PatchObject, origins: Iterable[Origin]) -> PatchObject:
    """`po` with debug information for the sections that come from `origins`."""
    # An object that is linked twice is one object, and two units.
    objects: dict[tuple[int, int], list[Origin]] = {}
    for origin in origins:
        if isinstance(origin.info, DebugInfo):
            objects.setdefault((id(origin.info), id(origin.existing)), []).append(origin)
    existing: list[PatchSymbol] = []
    units = []
    for found in objects.values():
        info = found[0].info
        assert isinstance(info, DebugInfo)
        unit = _unit(info, {o.section: o.number for o in found}, found[0].existing, existing)
        if unit is not None:
            units.append(unit)
    return with_units(po, units, existing)


def _unit(
    info: DebugInfo, numbers: Mapping[int, int], existing: Existing, symbols: list[PatchSymbol]
) -> TreeUnit | None:
    """The unit of an object, or None: nothing carried has a function there.

    Args:
        numbers: section of the object → of the patch.
        symbols: what it refers to in the target; added to.
    """
    named = list(_functions(info, numbers))
    if not named:
        return None

    def meaning(place: Place) -> Place | None:
        if place.section in numbers:
            return Place(numbers[place.section], place.offset, "")
        found = existing(place)
        if found is None:
            return None
        symbol, offset = found
        if symbol not in symbols:
            symbols.append(symbol)
        return Place(~symbols.index(symbol), offset, "")

    def translated(place: Place) -> Place:
        result = meaning(place)
        assert result is not None
        return result

    whole = list(dict.fromkeys(f for f, _ in named))
    root = info.unit_of(whole[0].die)
    try:
        entries = entries_of(info, whole, lambda p: meaning(p) is not None, numbers.__contains__)
    except FormatError:
        language = root.root.integer(d.DW_AT_language) or LANG_C11
        return unit_of([carried for _, carried in named], root.root.text(d.DW_AT_comp_dir), language)
    stretches = tuple(stretch_of(carried) for _, carried in named)
    return TreeUnit(
        tuple(_root(root)),
        root.root.text(d.DW_AT_comp_dir),
        tuple(moved_entry(e, translated) for e in entries),
        stretches,
    )


def _root(unit: Unit) -> Iterator[tuple[int, Value]]:
    # The producer is the compiler: debuggers know its versions' ways by it.
    yield d.DW_AT_producer, Text(unit.root.text(d.DW_AT_producer))
    yield d.DW_AT_language, Number(d.DW_FORM_data2, unit.root.integer(d.DW_AT_language) or 0)
    yield d.DW_AT_name, Text(unit.root.text(d.DW_AT_name))


def _functions(info: DebugInfo, numbers: Mapping[int, int]) -> Iterator[tuple[Function, CarriedFunction]]:
    for f in _known_functions(info):
        for part in (f.code, *f.parts):
            if part.section in numbers and part.size:
                rows = _rows(info, part.section, part.offset, part.size)
                yield f, CarriedFunction(f.name, numbers[part.section], part.offset, part.size, f.file, f.line, rows)


def _known_functions(info: DebugInfo) -> Sequence[Function]:
    try:
        return functions(info)
    except FormatError:
        return ()


def _rows(info: DebugInfo, section: int, offset: int, size: int) -> tuple[Row, ...]:
    try:
        return line_rows(info, section, offset, size)
    except FormatError:
        return ()
