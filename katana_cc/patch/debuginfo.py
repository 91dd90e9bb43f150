"""DWARF for what a patch carries: what a debugger needs to show functions, lines, arguments and variables of new code.

The compiler's own debug information cannot travel: a unit's .debug_info describes all of its object, refers to sections
that are not carried, and is hundreds of times larger than the change.  So units are written anew, in DWARF 5
(`debugwriter.py`), of the few entries that the carried code needs (`katana_cc/dwarf/extract.py`).

Addresses are relocations against section symbols, as a compiler makes them, so that the same bytes serve gdb's
`add-symbol-file PO -s .text.f ADDRESS` and the image in a target's memory.  Those of what exists in the target are
against undefined symbols with its link-time address.

Source: DWARF 5, sections 2.17 (ranges), 3.1 (units), 3.3 (subprograms).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katana_cc import __version__
from katana_cc.cpu.choice import of
from katana_cc.dwarf import constants as d
from katana_cc.dwarf.lines import Row
from katana_cc.dwarf.sections import Place
from katana_cc.dwarf.tree import Address, File, Number, Stretch, Text, TreeEntry, TreeUnit, Value
from katana_cc.elf import constants as c
from katana_cc.errors import InvalidPatchError
from katana_cc.patch.debugwriter import debug_sections
from katana_cc.patch.lineprogram import Buffer
from katana_cc.patch.model import PatchObject, PatchRelocation, PatchSection, PatchSymbol

LANG_C11: Final = 0x1D  # DWARF 5, table 7.17
PRODUCER: Final = f"katana {__version__}"


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
    """`po` with names and lines of `functions`, and nothing else of them.

    Args:
        directory: what relative file names are relative to (DW_AT_comp_dir).
        language: DW_LANG_*, which decides how a debugger shows names.

    Raises:
        InvalidPatchError: a function lies outside its section, or a name holds a NUL.
    """
    return with_units(po, [unit_of(functions, directory, language)] if functions else [])


def unit_of(functions: Sequence[CarriedFunction], directory: str, language: int) -> TreeUnit:
    """A unit that tells names and lines of functions."""
    names = [f.decl_file for f in functions if f.decl_file] + [row.file for f in functions for row in f.rows]
    root = (
        (d.DW_AT_producer, Text(PRODUCER)),
        (d.DW_AT_language, Number(d.DW_FORM_data2, language)),
        (d.DW_AT_name, Text(next(iter(names), ""))),
    )
    entries = tuple(_named(key, f) for key, f in enumerate(functions))
    return TreeUnit(root, directory, entries, tuple(map(stretch_of, functions)))


def _named(key: int, f: CarriedFunction) -> TreeEntry:
    attributes: list[tuple[int, Value]] = [
        (d.DW_AT_name, Text(f.name)),
        (d.DW_AT_low_pc, Address(Place(f.section, f.offset, ""))),
        (d.DW_AT_high_pc, Number(d.DW_FORM_udata, f.size)),
    ]
    if f.decl_file and f.decl_line:
        attributes += [
            (d.DW_AT_decl_file, File(f.decl_file)),
            (d.DW_AT_decl_line, Number(d.DW_FORM_udata, f.decl_line)),
        ]
    return TreeEntry(key, d.DW_TAG_subprogram, tuple(attributes))


def stretch_of(f: CarriedFunction) -> Stretch:
    """The code of a function, with the rows inside it."""
    return Stretch(Place(f.section, f.offset, ""), f.size, tuple(_rows_inside(f)))


def with_units(po: PatchObject, units: Sequence[TreeUnit], existing: Sequence[PatchSymbol] = ()) -> PatchObject:
    """`po` with debug information.  Sections and symbols are added at the end: no index changes.

    Args:
        units: with addresses whose `section` is an index into `PatchObject.sections`, or below 0: -1 for the first of
            `existing`, -2 for the second.
        existing: undefined symbols of what exists in the target.

    Raises:
        InvalidPatchError: code lies outside its section, or a name holds a NUL.
    """
    if not units:
        return po
    for s in (s for unit in units for s in unit.stretches):
        if not 0 <= s.start.section < len(po.sections):
            raise InvalidPatchError("debug information for a section that is not there")
        section = po.sections[s.start.section]
        if not 0 <= s.start.offset <= section.size - s.size:
            raise InvalidPatchError(f"debug information for code outside its section {section.name}")
    contents = debug_sections(units, len(po.sections))
    symbols = list(po.symbols)
    numbers = {y: i for i, y in reversed(list(enumerate(symbols)))}
    of_section = {
        y.section: i for i, y in enumerate(symbols) if y.type == c.STT_SECTION and y.section is not None and not y.value
    }
    for n in dict.fromkeys(number for buffer in contents.values() for _, _, number, _ in buffer.fields):
        if n not in of_section:
            wanted = PatchSymbol("", c.STB_LOCAL, c.STT_SECTION, n, 0, 0) if n >= 0 else existing[~n]
            of_section[n] = numbers.get(wanted, len(symbols))
            if of_section[n] == len(symbols):
                symbols.append(wanted)
    # From here on every address has its symbol.
    absolute = of(po.identity.machine).relocations.ABSOLUTE
    added = tuple(_section(name, buffer, of_section, absolute) for name, buffer in contents.items())
    return replace(po, sections=(*po.sections, *added), symbols=tuple(symbols))


def _section(name: str, buffer: Buffer, of_section: dict[int, int], absolute: Mapping[int, int]) -> PatchSection:
    relocations = tuple(
        PatchRelocation(at, absolute[width], of_section[section], addend)
        for at, width, section, addend in sorted(buffer.fields)
    )
    data = bytes(buffer.data)
    return PatchSection(name, c.SHT_PROGBITS, 0, 1, data, len(data), 0, relocations)


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
