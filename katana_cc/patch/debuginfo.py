"""DWARF for what a patch carries: enough that a debugger shows function, file and line in new code.

The compiler's own debug information cannot travel: a unit's .debug_info describes all of its object, refers to sections
that are not carried, and is hundreds of times larger than the change.  So a small unit is written anew, in DWARF 5:

    .debug_info      one unit: a DW_TAG_subprogram for each function, with its addresses and its declaration
    .debug_abbrev    its three abbreviations
    .debug_line      one line program: a sequence for each function
    .debug_rnglists  the unit's address ranges, since each function lies in a section of its own

Addresses are relocations against the section symbols, as a compiler makes them, so that the same bytes serve gdb's
`add-symbol-file PO -s .text.f ADDRESS` and an image that is placed in memory.  Out of scope: variables and types.

Source: DWARF 5, sections 2.17 (ranges), 3.1 (units), 3.3 (subprograms), 7.5 (encodings).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katana_cc import __version__
from katana_cc.cpu.choice import of
from katana_cc.dwarf import constants as d
from katana_cc.dwarf.lines import Row
from katana_cc.elf import constants as c
from katana_cc.errors import InvalidPatchError
from katana_cc.patch.lineprogram import ADDRESS_SIZE, VERSION, Buffer, LineSequence, line_section, string, uleb
from katana_cc.patch.model import PatchObject, PatchRelocation, PatchSection, PatchSymbol

LANG_C11: Final = 0x1D  # DWARF 5, table 7.17
LANG_C_PLUS_PLUS_14: Final = 0x21
_OFFSET_SIZE: Final = 4
_RANGES_HEADER: Final = struct.Struct("<HBBI")  # version, address size, segment selector size, offset entry count
_UNIT, _DECLARED, _UNDECLARED = 1, 2, 3  # abbreviation codes
_ABBREVIATIONS: Final[tuple[tuple[int, int, bool, tuple[tuple[int, int], ...]], ...]] = (
    (
        _UNIT,
        d.DW_TAG_compile_unit,
        True,
        (
            (d.DW_AT_producer, d.DW_FORM_string),
            (d.DW_AT_language, d.DW_FORM_data2),
            (d.DW_AT_name, d.DW_FORM_string),
            (d.DW_AT_comp_dir, d.DW_FORM_string),
            (d.DW_AT_stmt_list, d.DW_FORM_sec_offset),
            (d.DW_AT_low_pc, d.DW_FORM_addr),
            (d.DW_AT_ranges, d.DW_FORM_sec_offset),
        ),
    ),
    (
        _DECLARED,
        d.DW_TAG_subprogram,
        False,
        (
            (d.DW_AT_name, d.DW_FORM_string),
            (d.DW_AT_low_pc, d.DW_FORM_addr),
            (d.DW_AT_high_pc, d.DW_FORM_udata),
            (d.DW_AT_decl_file, d.DW_FORM_udata),
            (d.DW_AT_decl_line, d.DW_FORM_udata),
        ),
    ),
    (
        _UNDECLARED,
        d.DW_TAG_subprogram,
        False,
        (
            (d.DW_AT_name, d.DW_FORM_string),
            (d.DW_AT_low_pc, d.DW_FORM_addr),
            (d.DW_AT_high_pc, d.DW_FORM_udata),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class CarriedFunction:
    """A function that a patch object carries, with what its own object's DWARF says of it.

    `section` is an index into `PatchObject.sections`; `offset` and `size` are bytes in it.  `rows` are those that
    `katana_cc.dwarf.lines.line_rows` gives for the section; those outside of the function are left out.  `decl_line` 0:
    not known.
    """

    name: str
    section: int
    offset: int
    size: int
    decl_file: str = ""
    decl_line: int = 0
    rows: Sequence[Row] = ()


def with_debug_information(
    po: PatchObject, functions: Sequence[CarriedFunction], *, directory: str = "", language: int = LANG_C11
) -> PatchObject:
    """`po` with debug information for `functions`.  Sections and symbols are added at the end: no index changes.

    Args:
        directory: what relative file names are relative to (DW_AT_comp_dir).
        language: DW_LANG_*, which decides how a debugger shows names.

    Raises:
        InvalidPatchError: a function lies outside its section, or a name holds a NUL.
    """
    if not functions:
        return po
    for f in functions:
        if not 0 <= f.section < len(po.sections) or not 0 <= f.offset <= po.sections[f.section].size - f.size:
            raise InvalidPatchError(f"debug information for {f.name}, which lies outside its section")
    info, abbrev, line, ranges = range(len(po.sections), len(po.sections) + 4)
    numbers = _files(functions)
    contents = {
        info: (".debug_info", _info(functions, numbers, (directory, language), (abbrev, line, ranges))),
        abbrev: (".debug_abbrev", _abbreviations()),
        line: (".debug_line", line_section(map(_line_sequence, functions), numbers, directory)),
        ranges: (".debug_rnglists", _ranges(functions)),
    }
    wanted = [section for _, buffer in contents.values() for _, _, section, _ in buffer.fields]
    symbols = list(po.symbols)
    of_section = {
        y.section: i for i, y in enumerate(symbols) if y.type == c.STT_SECTION and y.section is not None and not y.value
    }
    for section in dict.fromkeys(wanted):
        if section not in of_section:
            of_section[section] = len(symbols)
            symbols.append(PatchSymbol("", c.STB_LOCAL, c.STT_SECTION, section, 0, 0))
    # From here on every address has its symbol.
    absolute = of(po.identity.machine).relocations.ABSOLUTE
    added = tuple(_section(name, buffer, of_section, absolute) for name, buffer in contents.values())
    return replace(po, sections=(*po.sections, *added), symbols=tuple(symbols))


def _section(name: str, buffer: Buffer, of_section: dict[int, int], absolute: Mapping[int, int]) -> PatchSection:
    relocations = tuple(
        PatchRelocation(at, absolute[width], of_section[section], addend)
        for at, width, section, addend in buffer.fields
    )
    data = bytes(buffer.data)
    return PatchSection(name, c.SHT_PROGBITS, 0, 1, data, len(data), 0, relocations)


def _files(functions: Sequence[CarriedFunction]) -> dict[str, int]:
    """The files, numbered from 0.  Number 0 names the unit: where the first function stands."""
    names = [f.decl_file for f in functions if f.decl_file]
    names += [row.file for f in functions for row in f.rows]
    return {name: i for i, name in enumerate(dict.fromkeys(names or [""]))}


def _info(
    functions: Sequence[CarriedFunction],
    numbers: dict[str, int],
    unit: tuple[str, int],
    sections: tuple[int, int, int],
) -> Buffer:
    directory, language = unit
    abbrev, line, ranges = sections
    out = Buffer()
    out.add(struct.pack("<HBB", VERSION, d.DW_UT_compile, ADDRESS_SIZE))
    out.refer(_OFFSET_SIZE, abbrev, 0)
    out.add(uleb(_UNIT), string(f"katana {__version__}"), struct.pack("<H", language))
    out.add(string(next(iter(numbers))), string(directory))
    out.refer(_OFFSET_SIZE, line, 0)
    out.add(bytes(ADDRESS_SIZE))  # no base: every range states its own start
    out.refer(_OFFSET_SIZE, ranges, 4 + _RANGES_HEADER.size)  # behind the length and the header
    for f in functions:
        declared = bool(f.decl_file and f.decl_line)
        out.add(uleb(_DECLARED if declared else _UNDECLARED), string(f.name))
        out.refer(ADDRESS_SIZE, f.section, f.offset)
        out.add(uleb(f.size))
        if declared:
            out.add(uleb(numbers[f.decl_file]), uleb(f.decl_line))
    out.add(b"\0")  # no more children
    return out.with_length()


def _abbreviations() -> Buffer:
    out = Buffer()
    for code, tag, children, attributes in _ABBREVIATIONS:
        out.add(uleb(code), uleb(tag), bytes((children,)))
        for attribute, form in attributes:
            out.add(uleb(attribute), uleb(form))
        out.add(b"\0\0")
    out.add(b"\0")
    return out


def _ranges(functions: Sequence[CarriedFunction]) -> Buffer:
    out = Buffer()
    out.add(_RANGES_HEADER.pack(VERSION, ADDRESS_SIZE, 0, 0))
    for f in functions:
        out.add(bytes((d.DW_RLE_start_length,)))
        out.refer(ADDRESS_SIZE, f.section, f.offset)
        out.add(uleb(f.size))
    out.add(bytes((d.DW_RLE_end_of_list,)))
    return out.with_length()


def _line_sequence(f: CarriedFunction) -> LineSequence:
    return LineSequence(f.section, f.offset + f.size, tuple(_rows_inside(f)))


def _rows_inside(f: CarriedFunction) -> Iterator[Row]:
    """The rows of a function, rising by offset; rows of one offset keep their order.

    A function that shares its section may begin in the middle of a row: that row then starts at the function.
    """
    rows = sorted(f.rows, key=lambda row: row.offset)
    inside = [row for row in rows if f.offset <= row.offset < f.offset + f.size]
    before = [row for row in rows if row.offset < f.offset]
    if before and not (inside and inside[0].offset == f.offset):
        yield before[-1]._replace(offset=f.offset)
    yield from inside
