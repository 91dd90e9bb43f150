"""The units of the space, and the values of their attributes in the form that users need.

Strings are resolved, references become offsets in the space (see `sections`), addresses and expressions become
*positions* in the space, where their relocations are found; an index into a table becomes what the table holds.

Source: DWARF 5, sections 7.5.1 (unit headers), 7.5.5 and 7.5.6 (forms); version 4 likewise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.abbrev import Table, abbreviations
from katana_cc.dwarf.leb128 import sleb, uleb
from katana_cc.dwarf.sections import DebugSections, DwarfProblem, ProblemKind, UnusableDebugSection
from katana_cc.errors import FormatError

_STRX: Final = {d.DW_FORM_strx1: 1, d.DW_FORM_strx2: 2, d.DW_FORM_strx3: 3, d.DW_FORM_strx4: 4}
_ADDRX: Final = {d.DW_FORM_addrx1: 1, d.DW_FORM_addrx2: 2, d.DW_FORM_addrx3: 3, d.DW_FORM_addrx4: 4}
_UNSIGNED: Final = {
    d.DW_FORM_data1: 1,
    d.DW_FORM_data2: 2,
    d.DW_FORM_data4: 4,
    d.DW_FORM_data8: 8,
    d.DW_FORM_data16: 16,
}
_REFERENCE: Final = {d.DW_FORM_ref1: 1, d.DW_FORM_ref2: 2, d.DW_FORM_ref4: 4, d.DW_FORM_ref8: 8}
_BLOCK: Final = {d.DW_FORM_block1: 1, d.DW_FORM_block2: 2, d.DW_FORM_block4: 4}


class AddressField(int):
    """The position in the space of an address: DW_FORM_addr, or the `.debug_addr` entry that DW_FORM_addrx names.

    A type of its own, since DW_AT_high_pc may be an address or a size.
    """

    __slots__ = ()


class Block(NamedTuple):
    """An expression or block: where it lies in the space."""

    start: int
    size: int


class Die:
    """One DIE with its attributes decoded; `end` is where its first child, or else the next DIE, starts."""

    __slots__ = ("attributes", "children", "end", "offset", "sibling", "tag", "unit")

    def __init__(self, offset: int, tag: int, children: bool, end: int, unit: Unit, attributes: dict[int, Any]) -> None:
        self.offset = offset
        self.tag = tag
        self.children = children
        self.end = end
        self.unit = unit
        self.attributes = attributes
        self.sibling: int | None = attributes.get(d.DW_AT_sibling)

    def integer(self, attribute: int) -> int | None:
        """The value, if it is there and a number (a dynamic bound is an expression: none)."""
        value = self.attributes.get(attribute)
        return value if isinstance(value, int) else None

    def text(self, attribute: int) -> str:
        """The string, or "" when there is none."""
        value = self.attributes.get(attribute)
        return value if isinstance(value, str) else ""


def initial_length(data: bytes, position: int) -> tuple[int, int, int]:
    """How long what begins there is, how many bytes its offsets have, and where it goes on (DWARF 5, 7.4).

    Raises:
        struct.error: it is cut off.
    """
    (length,) = struct.unpack_from("<I", data, position)
    if length != 0xFFFFFFFF:
        return length, 4, position + 4
    (length,) = struct.unpack_from("<Q", data, position + 4)
    return length, 8, position + 12


class Unit:
    """One unit: header, abbreviations, and the bases its indexed forms count from."""

    def __init__(
        self, start: int, end: int, first: int, version: int, offset_size: int, address_size: int, abbreviations: Table
    ) -> None:
        self.start = start
        self.end = end
        self.first = first
        self.version = version
        self.offset_size = offset_size
        self.address_size = address_size
        self.abbreviations = abbreviations
        self.str_offsets_base = 2 * offset_size  # what producers of split DWARF mean when they do not say
        self.addr_base = 0
        self.rnglists_base = 0
        self.loclists_base = 0
        self.root: Die


class Reader:
    """Reads unit headers and attribute values of one object."""

    def __init__(self, sections: DebugSections) -> None:
        self.sections = sections
        self._strings: dict[int, str] = {}
        self._signatures: dict[bytes, int] = {}

    def damaged(self, what: str) -> FormatError:
        """An error that says so."""
        return FormatError(f"damaged debug information: {what}", where=self.sections.where, remedy="rebuild the object")

    def split(self) -> UnusableDebugSection:
        """What to raise when the rest of a unit is in another file."""
        return UnusableDebugSection(
            DwarfProblem(
                ProblemKind.SPLIT,
                self.sections.where,
                "the debug information is split off into a .dwo file",
                "compile without -gsplit-dwarf",
            )
        )

    def units(self) -> Iterator[Unit]:
        """All units, in the order of the space; their `root` is still to be read."""
        data = self.sections.space
        for area in self.sections.areas:
            position = area.start
            while position < area.end:
                try:
                    unit, position = self._unit(data, position, area.end, area.types)
                except (struct.error, IndexError):
                    raise self.damaged("a unit header is cut off") from None
                yield unit

    def _unit(self, data: bytes, start: int, limit: int, types: bool) -> tuple[Unit, int]:
        length, offset_size, position = initial_length(data, start)
        end = position + length
        if end > limit:
            raise self.damaged("a unit is longer than its section")
        word = "<I" if offset_size == 4 else "<Q"
        (version,) = struct.unpack_from("<H", data, position)
        position += 2
        if version not in (4, 5):
            raise UnusableDebugSection(
                DwarfProblem(
                    ProblemKind.VERSION, self.sections.where, f"the debug information is of DWARF version {version}",
                    "compile with -gdwarf-5",
                )
            )  # fmt: skip
        kind = d.DW_UT_type if types else d.DW_UT_compile
        if version == 5:
            kind, address_size = data[position], data[position + 1]
            (abbrev,) = struct.unpack_from(word, data, position + 2)
            position += 2 + offset_size
        else:
            (abbrev,) = struct.unpack_from(word, data, position)
            address_size = data[position + offset_size]
            position += offset_size + 1
        if address_size != 8:
            raise self.damaged(f"addresses of {address_size} bytes")
        if kind in (d.DW_UT_skeleton, d.DW_UT_split_compile, d.DW_UT_split_type):
            raise self.split()
        if kind == d.DW_UT_type:
            signature = data[position : position + 8]
            (type_offset,) = struct.unpack_from(word, data, position + 8)
            self._signatures[signature] = start + type_offset
            position += 8 + offset_size
        table = abbreviations(self.sections.abbrev, abbrev, address_size, offset_size)
        return Unit(start, end, position, version, offset_size, address_size, table), end

    def value(self, unit: Unit, form: int, constant: int, position: int, skip: bool = False) -> tuple[Any, int]:
        """One attribute value in its final form, and the position after it.  None: it leads nowhere."""
        data = self.sections.space
        if form == d.DW_FORM_implicit_const:
            return constant, position
        if form == d.DW_FORM_flag_present:
            return True, position
        if size := _UNSIGNED.get(form):
            return (
                data[position] if size == 1 else int.from_bytes(data[position : position + size], "little")
            ), position + size
        if size := _REFERENCE.get(form):
            return unit.start + int.from_bytes(data[position : position + size], "little"), position + size
        if form in (d.DW_FORM_strp, d.DW_FORM_line_strp):
            end = position + unit.offset_size
            if skip:
                return None, end
            at = int.from_bytes(data[position:end], "little")
            return (self._string(at) if form == d.DW_FORM_strp else _text(self.sections.line_strings, at)), end
        if form == d.DW_FORM_string:
            end = data.index(b"\0", position)
            return data[position:end].decode("utf-8", "surrogateescape"), end + 1
        if form == d.DW_FORM_udata:
            return uleb(data, position)
        if form == d.DW_FORM_sdata:
            return sleb(data, position)
        if form == d.DW_FORM_exprloc or form == d.DW_FORM_block:
            size, position = uleb(data, position)
            return Block(position, size), position + size
        if form == d.DW_FORM_addr:
            return AddressField(position), position + unit.address_size
        if form == d.DW_FORM_sec_offset:
            end = position + unit.offset_size
            return int.from_bytes(data[position:end], "little"), end
        if form == d.DW_FORM_flag:
            return data[position] != 0 or None, position + 1
        if form == d.DW_FORM_ref_sig8:
            return self._signatures.get(data[position : position + 8]), position + 8
        return self._rare_value(unit, form, position, skip)

    def _rare_value(self, unit: Unit, form: int, position: int, skip: bool) -> tuple[Any, int]:
        data = self.sections.space
        if form == d.DW_FORM_strx or form in _STRX:
            index, position = uleb(data, position) if form == d.DW_FORM_strx else _fixed(data, position, _STRX[form])
            if skip:
                return None, position
            at = unit.str_offsets_base + index * unit.offset_size
            return self._string(_fixed(self.sections.str_offsets, at, unit.offset_size)[0]), position
        if form == d.DW_FORM_addrx or form in _ADDRX:
            index, position = uleb(data, position) if form == d.DW_FORM_addrx else _fixed(data, position, _ADDRX[form])
            return None if skip else self.address_field(unit, index), position
        if form == d.DW_FORM_rnglistx:
            index, position = uleb(data, position)
            at = unit.rnglists_base + index * unit.offset_size
            return (
                None if skip else unit.rnglists_base + _fixed(self.sections.rnglists[0], at, unit.offset_size)[0]
            ), position
        if form == d.DW_FORM_loclistx:
            return uleb(data, position)
        if form == d.DW_FORM_ref_udata:
            value, position = uleb(data, position)
            return unit.start + value, position
        if form == d.DW_FORM_ref_addr:
            return _fixed(data, position, unit.offset_size)
        if size := _BLOCK.get(form):
            length, position = _fixed(data, position, size)
            return Block(position, length), position + length
        if form == d.DW_FORM_indirect:
            actual, position = uleb(data, position)
            return self.value(unit, actual, 0, position, skip)
        # References into a supplementary (dwz) file: not in relocatable objects, but they can be passed.
        width = {d.DW_FORM_ref_sup4: 4, d.DW_FORM_ref_sup8: 8, d.DW_FORM_strp_sup: unit.offset_size}.get(form)
        if width is None:
            raise self.damaged(f"form {form:#x} is not known")
        return None, position + width

    def address_field(self, unit: Unit, index: int) -> AddressField:
        """Where in the space the unit's `.debug_addr` entry `index` lies."""
        # DW_AT_addr_base is relocated, so it is a position in the space already.
        position = unit.addr_base + index * unit.address_size
        if not self.sections.addr_start <= position <= self.sections.addr_end - unit.address_size:
            raise self.damaged("an address index out of range")
        return AddressField(position)

    def _string(self, at: int) -> str:
        found = self._strings.get(at)
        if found is None:
            found = self._strings[at] = _text(self.sections.strings, at)
        return found


def _fixed(data: bytes, position: int, size: int) -> tuple[int, int]:
    if position + size > len(data):
        raise IndexError
    return int.from_bytes(data[position : position + size], "little"), position + size


def _text(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    if offset >= len(table) or end < 0:
        raise IndexError
    return table[offset:end].decode("utf-8", "surrogateescape")
