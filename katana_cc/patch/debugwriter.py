"""Debugging information as the bytes of DWARF 5 sections.

    .debug_info      a unit for each object that code comes from
    .debug_abbrev    one table for all: an abbreviation for each combination of attributes and forms there is
    .debug_line      a line program for each unit: a sequence for each stretch of code
    .debug_rnglists  ranges of units, and of entries in several pieces
    .debug_loclists  where variables are, by the place in code

Addresses are relocations against sections.  In lists each section is named once, as the base that pairs of offsets
count from.  References are four bytes wide, so that all is laid out in one pass, and they are filled in at its end.

Source: DWARF 5, sections 7.5 (units, abbreviations, forms), 7.25 and 7.28 (range lists), 7.29 (location lists).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.leb128 import sleb_bytes, uleb_bytes
from katana_cc.dwarf.sections import Place
from katana_cc.dwarf.tree import (
    Address,
    Bytes,
    Expression,
    File,
    Flag,
    Located,
    Locations,
    Number,
    Ranges,
    Reference,
    Text,
    TreeEntry,
    TreeUnit,
    Value,
    Width,
)
from katana_cc.patch.lineprogram import ADDRESS_SIZE, VERSION, Buffer, LineSequence, line_section, string

_OFFSET_SIZE: Final = 4
_LISTS_HEADER: Final = struct.Struct("<HBBI")  # version, address size, segment selector size, offset entry count
_FORMS: Final[dict[type[Value], int]] = {
    Text: d.DW_FORM_string, File: d.DW_FORM_udata, Flag: d.DW_FORM_flag_present, Address: d.DW_FORM_addr,
    Reference: d.DW_FORM_ref4, Expression: d.DW_FORM_exprloc, Locations: d.DW_FORM_sec_offset,
    Ranges: d.DW_FORM_sec_offset, Bytes: d.DW_FORM_block,
}  # fmt: skip
_WIDTHS: Final = {d.DW_FORM_data1: 1, d.DW_FORM_data2: 2, d.DW_FORM_data4: 4, d.DW_FORM_data8: 8, d.DW_FORM_data16: 16}

_Shape = tuple[int, bool, tuple[tuple[int, int], ...]]  # of an entry: tag, has children, (attribute, form) each


def debug_sections(units: Sequence[TreeUnit], first: int) -> dict[str, Buffer]:
    """The sections, by name, in their order; the first of them will be section `first` of the file.

    `Place.section` of the addresses in `units` is a section of that file.
    """
    writer = _Writer(first)
    for unit in units:
        writer.unit(unit)
    return writer.finish()


@dataclass(slots=True)
class _Writer:
    first: int
    info: Buffer = field(default_factory=Buffer)
    lines: Buffer = field(default_factory=Buffer)
    ranges: Buffer = field(default_factory=lambda: _lists())
    locations: Buffer = field(default_factory=lambda: _lists())
    shapes: dict[_Shape, int] = field(default_factory=dict)
    # Of the unit under way.
    start: int = 0
    files: dict[str, int] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)
    wanted: list[tuple[Buffer, int, Reference]] = field(default_factory=list)

    def unit(self, unit: TreeUnit) -> None:
        """Appends a unit, with its lines."""
        abbrev, line, ranges = self.first + 1, self.first + 2, self.first + 3
        self.start = len(self.info.data)
        self.files = {name: n for n, name in enumerate(dict.fromkeys(_file_names(unit)))} or {"": 0}
        self.offsets, self.wanted = {}, []
        self.info.add(bytes(4), struct.pack("<HBB", VERSION, d.DW_UT_compile, ADDRESS_SIZE))
        self.info.refer(_OFFSET_SIZE, abbrev, 0)
        at_lines, at_ranges = len(self.lines.data), self._range_list((s.start, s.size) for s in unit.stretches)
        own = (
            (d.DW_AT_comp_dir, d.DW_FORM_string), (d.DW_AT_stmt_list, d.DW_FORM_sec_offset),
            (d.DW_AT_low_pc, d.DW_FORM_addr), (d.DW_AT_ranges, d.DW_FORM_sec_offset),
        )  # fmt: skip
        shape = d.DW_TAG_compile_unit, True, (*_forms(unit.attributes), *own)
        self.info.add(uleb_bytes(self._code(shape)))
        for _, value in unit.attributes:
            self._value(value)
        self.info.add(string(unit.directory))
        self.info.refer(_OFFSET_SIZE, line, at_lines)
        self.info.add(bytes(ADDRESS_SIZE))  # no base: every range states its own start
        self.info.refer(_OFFSET_SIZE, ranges, at_ranges)
        self._entries(unit.children)
        self.info.add(b"\0")
        # From here on every entry of the unit has its place.
        for wanted in self.wanted:
            self._fill_in(*wanted)
        length = len(self.info.data) - self.start - 4
        self.info.data[self.start : self.start + 4] = struct.pack("<I", length)
        sequences = (LineSequence(s.start.section, s.start.offset + s.size, s.rows) for s in unit.stretches)
        self.lines.append(line_section(sequences, self.files, unit.directory))

    def finish(self) -> dict[str, Buffer]:
        """All sections."""
        abbrev = Buffer()
        for (tag, has_children, attributes), code in self.shapes.items():
            abbrev.add(uleb_bytes(code), uleb_bytes(tag), bytes((has_children,)))
            for attribute, form in attributes:
                abbrev.add(uleb_bytes(attribute), uleb_bytes(form))
            abbrev.add(b"\0\0")
        abbrev.add(b"\0")
        found = {
            ".debug_info": self.info,
            ".debug_abbrev": abbrev,
            ".debug_line": self.lines,
            ".debug_rnglists": self.ranges.with_length(),
        }
        if len(self.locations.data) > _LISTS_HEADER.size:
            found[".debug_loclists"] = self.locations.with_length()
        return found

    def _entries(self, entries: Sequence[TreeEntry]) -> None:
        for entry in entries:
            self.offsets[entry.key] = len(self.info.data) - self.start
            has_children = bool(entry.children)
            self.info.add(uleb_bytes(self._code((entry.tag, has_children, _forms(entry.attributes)))))
            for _, value in entry.attributes:
                self._value(value)
            if has_children:
                self._entries(entry.children)
                self.info.add(b"\0")

    def _code(self, shape: _Shape) -> int:
        return self.shapes.setdefault(shape, len(self.shapes) + 1)

    def _value(self, value: Value) -> None:
        out = self.info
        if isinstance(value, Number):
            width = _WIDTHS.get(value.form)
            if width is not None:
                out.add(value.value.to_bytes(width, "little"))
            else:
                out.add(sleb_bytes(value.value) if value.form == d.DW_FORM_sdata else uleb_bytes(value.value))
        elif isinstance(value, Text):
            out.add(string(value.value))
        elif isinstance(value, Bytes):
            out.add(uleb_bytes(len(value.value)), value.value)
        elif isinstance(value, File):
            out.add(uleb_bytes(self.files[value.name]))
        elif isinstance(value, Address):
            out.refer(ADDRESS_SIZE, *value.place[:2])
        elif isinstance(value, Reference):
            self._want(out, value)
        elif isinstance(value, Expression):
            self._expression(out, value)
        elif isinstance(value, Locations):
            out.refer(_OFFSET_SIZE, self.first + 4, self._location_list(value.entries))
        elif isinstance(value, Ranges):
            out.refer(_OFFSET_SIZE, self.first + 3, self._range_list(iter(value.pieces)))

    def _want(self, out: Buffer, reference: Reference) -> None:
        """Four bytes for a reference, to be filled in."""
        self.wanted.append((out, len(out.data), reference))
        out.add(bytes(4))

    def _fill_in(self, out: Buffer, at: int, reference: Reference) -> None:
        offset = self.offsets[reference.key]
        if reference.width is Width.SECTION:
            out.fields.append((at, _OFFSET_SIZE, self.first, self.start + offset))
        elif reference.width is Width.ULEB:
            groups = [offset >> shift & 0x7F for shift in (0, 7, 14, 21)]
            out.data[at : at + 4] = bytes((*(g | 0x80 for g in groups[:3]), groups[3]))
        else:
            out.data[at : at + 4] = struct.pack("<I", offset)

    def _expression(self, out: Buffer, value: Expression) -> None:
        out.add(uleb_bytes(value.size))
        for piece in value.pieces:
            if isinstance(piece, bytes):
                out.add(piece)
            elif isinstance(piece, Address):
                out.refer(ADDRESS_SIZE, *piece.place[:2])
            else:
                self._want(out, piece)

    def _range_list(self, pieces: Iterator[tuple[Place, int]]) -> int:
        """Where the list of these ranges starts, counted from the start of its section."""
        out = self.ranges
        at = 4 + len(out.data)
        base = None
        for start, size in pieces:
            if base != start.section:
                base = start.section
                out.add(bytes((d.DW_RLE_base_address,)))
                out.refer(ADDRESS_SIZE, base, 0)
            out.add(bytes((d.DW_RLE_offset_pair,)), uleb_bytes(start.offset), uleb_bytes(start.offset + size))
        out.add(bytes((d.DW_RLE_end_of_list,)))
        return at

    def _location_list(self, entries: Sequence[Located]) -> int:
        """Where the list starts, counted from the start of its section."""
        out = self.locations
        at = 4 + len(out.data)
        base = None
        for entry in entries:
            if base != entry.start.section:
                base = entry.start.section
                out.add(bytes((d.DW_LLE_base_address,)))
                out.refer(ADDRESS_SIZE, base, 0)
            low = entry.start.offset
            out.add(bytes((d.DW_LLE_offset_pair,)), uleb_bytes(low), uleb_bytes(low + entry.size))
            self._expression(out, entry.expression)
        out.add(bytes((d.DW_LLE_end_of_list,)))
        return at


def _lists() -> Buffer:
    """A section of lists, up to its first; the length is put before it at the end."""
    out = Buffer()
    out.add(_LISTS_HEADER.pack(VERSION, ADDRESS_SIZE, 0, 0))
    return out


def _forms(attributes: Sequence[tuple[int, Value]]) -> tuple[tuple[int, int], ...]:
    return tuple((a, v.form if isinstance(v, Number) else _FORMS[type(v)]) for a, v in attributes)


def _file_names(unit: TreeUnit) -> Iterator[str]:
    """The files of a unit, the first one being what names it."""
    yield from (
        value.value for attribute, value in unit.attributes if attribute == d.DW_AT_name and isinstance(value, Text)
    )
    yield from (row.file for stretch in unit.stretches for row in stretch.rows)
    pending = list(unit.children)
    while pending:
        entry = pending.pop()
        yield from (value.name for _, value in entry.attributes if isinstance(value, File))
        pending += entry.children
