"""Whether two objects describe the same types and variables, and only lines of declarations moved.

A line more in a header moves every declaration behind it in every unit that includes it.  Nearly all of these units are
otherwise unchanged, so it is worth to find that out by stepping over the DIEs of one object, without decoding any.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.abbrev import Abbreviation, skip_steps, step_of
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.leb128 import uleb
from katana_cc.dwarf.units import Unit
from katana_cc.errors import FormatError

_PLACES: Final = frozenset({d.DW_AT_decl_file, d.DW_AT_decl_line, d.DW_AT_decl_column})


def only_lines_moved(old: DebugInfo, new: DebugInfo) -> bool:
    """Whether the debug information of two objects with equal symbol tables is equal but for where things are declared.

    Where a value needs more room than before (line 256), it is not: then the objects have to be compared.

    Raises:
        FormatError: damaged debug information.
    """
    a, b = old.sections, new.sections
    if len(a.space) != len(b.space) or a.abbrev != b.abbrev:
        return False
    if (a.strings, a.str_offsets) != (b.strings, b.str_offsets) or not a.addresses.alike(b.addresses):
        return False
    if a.space == b.space:
        return True
    # Equal but for these fields, and with equal abbreviations, they have the fields at the same offsets.
    masked = bytearray(b.space)
    for at, size in _line_fields(old):
        masked[at : at + size] = a.space[at : at + size]
    return masked == a.space


def _line_fields(info: DebugInfo) -> Iterator[tuple[int, int]]:
    """(offset in the space, size) of the fields that hold where something is declared."""
    for unit in info.units:
        try:
            yield from _fields_of(info.sections.space, unit)
        except (IndexError, KeyError):
            raise FormatError(f"damaged debug information in the unit at {unit.start:#x}", where=info.where) from None


def _fields_of(data: bytes, unit: Unit) -> Iterator[tuple[int, int]]:
    table, address_size, offset_size = unit.abbreviations, unit.address_size, unit.offset_size
    position, end = unit.first, unit.end
    plans: dict[int, tuple[tuple[tuple[int, ...], int], ...]] = {}
    while position < end:
        code = data[position]
        position += 1
        if not code:
            continue
        if code >= 0x80:
            code, position = uleb(data, position - 1)
        plan = plans.get(code)
        if plan is None:
            plan = plans[code] = _plan(table[code], address_size, offset_size)
        for steps, size in plan:
            if len(steps) == 1 and steps[0] >= 0:
                position += steps[0]
            elif steps:
                position = skip_steps(data, position, steps, address_size, offset_size)
            if size:
                yield position, size
                position += size


@lru_cache(maxsize=4096)
def _plan(entry: Abbreviation, address_size: int, offset_size: int) -> tuple[tuple[tuple[int, ...], int], ...]:
    """(steps to pass, size of the field behind them) until the end of a DIE; the last size is 0."""
    result: list[tuple[tuple[int, ...], int]] = []
    steps: list[int] = []
    for attribute, form, _constant in entry.attributes:
        step = step_of(form, address_size, offset_size)
        if attribute in _PLACES and step > 0:
            result.append((tuple(steps), step))
            steps = []
        elif step < 0 or not steps or steps[-1] < 0:
            steps.append(step)
        else:
            steps[-1] += step
    return (*result, (tuple(steps), 0))
