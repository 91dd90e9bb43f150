"""Whether objects of a type may lie elsewhere than in variables: on the heap, in frames of functions, behind `void *`.

Debug information does not list such objects, but code that has to do with one declares a pointer to it, or a variable
of a function that is one.  (What a cast alone makes, gcc does not describe.)  One in a frame lives as long as a call of
the function.

Source: DWARF 5, sections 5.3 (pointers and references), 4.1 (variables).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.functions import functions
from katana_cc.dwarf.lines import line_tables
from katana_cc.dwarf.naming import DEPTH_LIMIT, POINTERS, naming
from katana_cc.dwarf.texts import texts
from katana_cc.dwarf.types import TypeLayout
from katana_cc.dwarf.units import Die
from katana_cc.dwarf.variables import location

_BLOCKS: Final = frozenset({d.DW_TAG_lexical_block, d.DW_TAG_inlined_subroutine})
_OBJECTS: Final = frozenset({d.DW_TAG_variable, d.DW_TAG_formal_parameter})


class Use(NamedTuple):
    """That something leads to an object of aggregate `key`: `how` in words, and where that is declared ("", 0 for a
    pointer type, which has no place)."""

    key: str
    how: str
    file: str
    line: int


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


def pointed_to(info: DebugInfo, wanted: Collection[str]) -> Iterator[Use]:
    """Each pointer type of an object that leads to aggregates of these keys: they may lie anywhere.

    Raises:
        FormatError: damaged debug information.
    """
    names, types = naming(info), texts(info)
    for die in info.of_tags(frozenset(POINTERS)):
        key = types.facts(names.target(die))[2]
        if key in wanted:
            yield Use(key, f"pointers to {types.text(names.target(die))} exist", "", 0)


def framed(info: DebugInfo, wanted: Collection[str]) -> Iterator[tuple[int, Use]]:
    """(code section, the object) of each function whose frame may hold an aggregate of these keys: a variable or
    parameter of its own, or of what was inlined into it.

    Raises:
        FormatError: damaged debug information.
    """
    names, types = naming(info), texts(info)
    for function in functions(info):
        for die in _own(info, info.die(function.die), 0):
            if _is_static(info, die):
                continue
            chain = names.chain(die)
            holder = next((link for link in chain if d.DW_AT_type in link.attributes), None)
            key = types.facts(names.target(holder))[2] if holder is not None else ""
            if key in wanted:
                name = next((text for link in chain if (text := link.text(d.DW_AT_name))), "")
                told = next((link for link in chain if d.DW_AT_decl_line in link.attributes), die)
                file = line_tables(info).file(told.unit, told.integer(d.DW_AT_decl_file))
                line = told.integer(d.DW_AT_decl_line) or 0
                yield function.code.section, Use(key, f"`{name}` of {function.name} is one", file, line)


def _own(info: DebugInfo, die: Die, depth: int) -> Iterator[Die]:
    """The variables and parameters in a function, in its blocks and in what was inlined into it."""
    for child in info.children(die) if depth <= DEPTH_LIMIT else ():
        if child.tag in _OBJECTS:
            yield child
        elif child.tag in _BLOCKS:
            yield from _own(info, child, depth + 1)


def _is_static(info: DebugInfo, die: Die) -> bool:
    """Whether a variable of a function lies in static storage, or is declared only."""
    if die.tag == d.DW_TAG_formal_parameter:
        return False
    place, _thread_local, why = location(info, die)
    return place is not None or bool(why) or d.DW_AT_declaration in die.attributes or d.DW_AT_external in die.attributes
