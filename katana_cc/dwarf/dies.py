"""Units and debugging information entries (DIEs): a fast walk over all, and full reading of the few that matter.

pyelftools needs 200-300 ms for one compilation unit, and fails on objects with thread-local variables and on zstd
sections; the diff reads both versions of every changed object while the user waits for a link.  So the walk is our own.
It is in two parts:

1. The *outline*: one pass that steps over every DIE by its abbreviation's plan (two or three bytecode lines for the
   common one) and notes where scopes, functions, variables and types are, and inside what.
2. `DebugInfo.die(offset)`: all attributes of one DIE, decoded, cached.

So somebody who asks for functions only never decodes a type.

Source: DWARF 5, sections 2.3 (relationship of entries) and 7.5.2; version 4 likewise.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.abbrev import Abbreviation, skip_steps
from katana_cc.dwarf.leb128 import uleb
from katana_cc.dwarf.sections import DebugSections, Decompressor, DwarfProblem, Place, UnusableDebugSection
from katana_cc.dwarf.units import AddressField, Die, Reader, Unit
from katana_cc.elf.reader import ElfFile

_SCOPES: Final = frozenset(
    {
        d.DW_TAG_compile_unit, d.DW_TAG_partial_unit, d.DW_TAG_type_unit, d.DW_TAG_namespace, d.DW_TAG_subprogram,
        d.DW_TAG_structure_type, d.DW_TAG_class_type, d.DW_TAG_union_type,
    }
)  # fmt: skip
_NOTED: Final = _SCOPES | {d.DW_TAG_enumeration_type, d.DW_TAG_typedef, d.DW_TAG_variable}
# What can never hold anything noted: with a DW_AT_sibling it is passed in one step.  (The static variables of an
# inlined function are described in its abstract instance.)
_BARREN: Final = frozenset(
    {
        d.DW_TAG_call_site, d.DW_TAG_GNU_call_site, d.DW_TAG_inlined_subroutine, d.DW_TAG_enumeration_type,
        d.DW_TAG_subroutine_type, d.DW_TAG_array_type,
    }
)  # fmt: skip

_LANGUAGES_OF_CPP: Final = frozenset({0x04, 0x1A, 0x21, 0x2B})


class Entry(NamedTuple):
    """One noted DIE of the outline; `parent` is the number of the scope's entry, -1 for a unit."""

    offset: int
    tag: int
    parent: int
    unit: Unit


class DebugInfo:
    """The debug information of one relocatable object.  Made by `open_debug_info`."""

    def __init__(self, sections: DebugSections) -> None:
        self.sections = sections
        self.elf = sections.elf
        self.where = sections.where
        self._reader = Reader(sections)
        self._dies: dict[int, Die] = {}
        self.memo: dict[str, object] = {}  # what other modules of this package derived, computed once
        self.units: tuple[Unit, ...] = tuple(self._reader.units())
        self._starts = [u.start for u in self.units]
        for unit in self.units:
            self._read_root(unit)

    # -- units ---------------------------------------------------------------------------------------------------------

    def _read_root(self, unit: Unit) -> None:
        # The bases stand in the very DIE whose strings need them: take them from a first reading.
        abbreviation, position = self._abbreviation(unit, unit.first)
        names = (d.DW_AT_str_offsets_base, d.DW_AT_addr_base, d.DW_AT_rnglists_base, d.DW_AT_loclists_base)
        bases = dict.fromkeys(names, 0)
        for attribute, form, _constant in abbreviation.attributes:
            if attribute in bases:
                bases[attribute] = int.from_bytes(self.sections.space[position : position + unit.offset_size], "little")
            elif attribute in (d.DW_AT_GNU_dwo_name, d.DW_AT_dwo_name):
                raise self._reader.split()
            position = self._reader.value(unit, form, 0, position, skip=True)[1]
        unit.str_offsets_base = bases[d.DW_AT_str_offsets_base] or unit.str_offsets_base
        unit.addr_base = bases[d.DW_AT_addr_base]
        unit.rnglists_base = bases[d.DW_AT_rnglists_base]
        unit.loclists_base = bases[d.DW_AT_loclists_base]
        unit.root = self.die(unit.first, unit)

    def unit_of(self, offset: int) -> Unit:
        """The unit that holds a DIE.

        Raises:
            FormatError: no unit does.
        """
        index = bisect_right(self._starts, offset) - 1
        if index < 0 or offset >= self.units[index].end:
            raise self._reader.damaged(f"a reference to {offset:#x}, where no unit is")
        return self.units[index]

    @property
    def cpp(self) -> bool:
        """Whether any unit was written in C++."""
        return any(u.root.attributes.get(d.DW_AT_language) in _LANGUAGES_OF_CPP for u in self.units)

    # -- single DIEs ---------------------------------------------------------------------------------------------------

    def _abbreviation(self, unit: Unit, offset: int) -> tuple[Abbreviation, int]:
        code, position = uleb(self.sections.space, offset)
        found = unit.abbreviations.get(code)
        if found is None:
            raise self._reader.damaged(f"no abbreviation {code} for the entry at {offset:#x}")
        return found, position

    def die(self, offset: int, unit: Unit | None = None) -> Die:
        """The DIE at `offset` of the space; `unit` saves looking up whose it is.

        Raises:
            FormatError: there is none, or it is damaged.
        """
        cached = self._dies.get(offset)
        if cached is not None:
            return cached
        if unit is None:
            unit = self.unit_of(offset)
        try:
            abbreviation, position = self._abbreviation(unit, offset)
            attributes: dict[int, Any] = {}
            read = self._reader.value
            for attribute, form, constant in abbreviation.attributes:
                value, position = read(unit, form, constant, position)
                if value is not None:
                    attributes[attribute] = value
        except (IndexError, struct.error):
            raise self._reader.damaged(f"the entry at {offset:#x} is cut off") from None
        result = Die(offset, abbreviation.tag, abbreviation.children, position, unit, attributes)
        self._dies[offset] = result
        return result

    def address_field(self, unit: Unit, index: int) -> AddressField:
        """The `.debug_addr` entry that an index in an expression or range list means.

        Raises:
            FormatError: it is out of range.
        """
        return self._reader.address_field(unit, index)

    def place(self, field: object) -> Place | None:
        """What the value of an address attribute (`DW_AT_low_pc`) points at; None when it is no address."""
        return self.sections.addresses.get(field) if isinstance(field, AddressField) else None

    # -- walking -------------------------------------------------------------------------------------------------------

    def children(self, die: Die) -> Iterator[Die]:
        """The DIEs directly below `die`."""
        if not die.children:
            return
        data, position, unit = self.sections.space, die.end, die.unit
        while position < unit.end and data[position]:
            child = self.die(position, unit)
            yield child
            if not child.children:
                position = child.end
            elif child.sibling is not None and child.sibling > child.end:
                position = child.sibling
            else:
                position = self._after(child)

    def forms(self, die: Die) -> dict[int, int]:
        """The form of each attribute of a DIE: what kind of value it is."""
        found = self._abbreviation(die.unit, die.offset)[0]
        return {attribute: form for attribute, form, _constant in found.attributes}

    def end_of_tree(self, die: Die) -> int:
        """Where the DIE after `die` and all below it starts."""
        return self._after(die) if die.children else die.end

    def _after(self, die: Die) -> int:
        """Where the DIE after `die` and all below it starts."""
        try:
            return self._end_of_tree(die)
        except IndexError:
            raise self._reader.damaged("a unit ends in the middle of an entry") from None

    def _end_of_tree(self, die: Die) -> int:
        data, unit = self.sections.space, die.unit
        position, depth = die.end, 1
        while depth:
            if not data[position]:
                position += 1
                depth -= 1
                continue
            abbreviation, position = self._abbreviation(unit, position)
            position = (
                position + abbreviation.size
                if abbreviation.size >= 0
                else skip_steps(data, position, abbreviation.steps, unit.address_size, unit.offset_size)
            )
            depth += abbreviation.children
        return position

    @cached_property
    def outline(self) -> tuple[Entry, ...]:
        """Scopes, functions, variables, typedefs and aggregates of all units, in the order they stand."""
        entries: list[Entry] = []
        for unit in self.units:
            try:
                self._outline_unit(unit, entries.append, lambda: len(entries))
            except IndexError:
                raise self._reader.damaged("a unit ends in the middle of an entry") from None
        return tuple(entries)

    def of_tags(self, tags: frozenset[int]) -> Iterator[Die]:
        """Every DIE that has one of these tags, wherever it stands, in the order they stand.

        Raises:
            FormatError: damaged debug information.
        """
        data = self.sections.space
        for unit in self.units:
            position, depth = unit.first, 0
            try:
                while position < unit.end:
                    here = position
                    if not data[position]:
                        position, depth = position + 1, depth - 1
                    else:
                        abbreviation, position = self._abbreviation(unit, position)
                        if abbreviation.size >= 0:
                            position += abbreviation.size
                        else:
                            sizes = unit.address_size, unit.offset_size
                            position = skip_steps(data, position, abbreviation.steps, *sizes)
                        depth += abbreviation.children
                        if abbreviation.tag in tags:
                            yield self.die(here, unit)
                    if depth <= 0:
                        break
            except IndexError:
                raise self._reader.damaged("a unit ends in the middle of an entry") from None

    def _outline_unit(self, unit: Unit, note: Callable[[Entry], None], count: Callable[[], int]) -> None:
        data, table = self.sections.space, unit.abbreviations
        address_size, offset_size = unit.address_size, unit.offset_size
        position, end, base = unit.first, unit.end, unit.start
        scope = -1
        scopes: list[int] = []
        while position < end:
            here = position
            code = data[position]
            position += 1
            if not code:
                if not scopes:
                    break
                scope = scopes.pop()
                continue
            if code >= 0x80:
                code, position = uleb(data, here)
            try:
                _code, tag, children, _attributes, size, steps, sibling = table[code]
            except KeyError:
                raise self._reader.damaged(f"no abbreviation {code} in the unit at {base:#x}") from None
            if size >= 0:
                position += size
            else:
                position = skip_steps(data, position, steps, address_size, offset_size)
            if tag in _NOTED:
                number = count()
                note(Entry(here, tag, scope, unit))
                if children and not (sibling and tag in _BARREN):
                    scopes.append(scope)
                    if tag in _SCOPES:
                        scope = number
                    continue
            if children:
                if sibling and tag in _BARREN:
                    target = base + int.from_bytes(data[position - 4 : position], "little")
                    if target <= position:
                        raise self._reader.damaged(f"an entry whose next is before it, at {target:#x}")
                    position = target
                else:
                    scopes.append(scope)
            if not scopes:
                break  # a unit without children, or all of them read


def open_debug_info(elf: ElfFile, zstd: Decompressor | None = None) -> DebugInfo | DwarfProblem:
    """The debug information of a relocatable object, or why it has none that can be used.

    Args:
        elf: the object, ET_REL.
        zstd: expands zstd-compressed debug sections; without it they are a problem of kind COMPRESSED.

    Raises:
        FormatError: it is damaged.
    """
    try:
        return DebugInfo(DebugSections(elf, zstd))
    except UnusableDebugSection as unusable:
        return unusable.problem
