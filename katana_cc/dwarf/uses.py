"""Whether objects of a type may lie elsewhere than in variables: on the heap, in frames of functions, behind `void *`.

Debug information does not list such objects, but code that has to do with one declares a pointer to it, or a variable
of a function that is one.  (What a cast alone makes, gcc does not describe.)

Source: DWARF 5, sections 5.3 (pointers and references), 4.1 (variables).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.lines import line_tables
from katana_cc.dwarf.naming import POINTERS, naming
from katana_cc.dwarf.texts import texts
from katana_cc.dwarf.types import TypeLayout
from katana_cc.dwarf.units import Die
from katana_cc.dwarf.variables import location

_OBJECTS: Final = frozenset({d.DW_TAG_variable, d.DW_TAG_formal_parameter})


class Use(NamedTuple):
    """That something leads to an object of aggregate `key`: `how` in words, and where that is declared ("", 0 for a
    pointer type, which has no place).  `in_frame`: it is such an object itself, a function's own."""

    key: str
    how: str
    file: str
    line: int
    in_frame: bool


def holders_of(wanted: Collection[str], layouts: Mapping[str, TypeLayout]) -> frozenset[str]:
    """The aggregates of these keys, and all that hold one by value, however deep."""
    found = set(wanted)
    size = -1
    while size != len(found):
        size = len(found)
        for key, layout in layouts.items():
            inner = [m.aggregate for m in layout.members] + [b.key for b in layout.bases]
            if key not in found and not found.isdisjoint(inner):
                found.add(key)
    return frozenset(found)


def used_outside(info: DebugInfo, wanted: Collection[str]) -> Iterator[Use]:
    """Each way in which an object declares that aggregates of these keys may lie elsewhere than in variables.

    Raises:
        FormatError: damaged debug information.
    """
    names, types = naming(info), texts(info)
    for die in info.of_tags(frozenset(POINTERS)):
        key = types.facts(names.target(die))[2]
        if key in wanted:
            yield Use(key, f"pointers to {types.text(names.target(die))} exist", "", 0, False)
    # One of the file or of a class may lie nowhere, since nothing writes it: it is in no frame all the same.
    scopes = info.outline
    outside = {e.offset for e in scopes if e.parent < 0 or scopes[e.parent].tag != d.DW_TAG_subprogram}
    for die in info.of_tags(_OBJECTS):
        if d.DW_AT_type in die.attributes and die.offset not in outside and not _is_static(info, die):
            key = types.facts(names.target(die))[2]
            if key in wanted:
                file = line_tables(info).file(die.unit, die.integer(d.DW_AT_decl_file))
                name = die.text(d.DW_AT_name)
                yield Use(key, f"`{name}` is one in a function", file, die.integer(d.DW_AT_decl_line) or 0, True)


def _is_static(info: DebugInfo, die: Die) -> bool:
    """Whether a variable of a function lies in static storage, or is declared only."""
    if die.tag == d.DW_TAG_formal_parameter:
        return False
    place, _thread_local, why = location(info, die)
    return place is not None or bool(why) or d.DW_AT_declaration in die.attributes or d.DW_AT_external in die.attributes
