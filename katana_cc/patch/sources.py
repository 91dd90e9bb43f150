"""What a patch says of its sources: debug information of the carried functions, taken from their objects' own.

A debugger needs it and nothing else does: where an object has none that can be read, a patch simply says less.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import replace

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.functions import Function, functions
from katana_cc.dwarf.lines import Row, line_rows
from katana_cc.dwarf.sections import DwarfProblem
from katana_cc.errors import FormatError
from katana_cc.patch.debuginfo import LANG_C11, LANG_C_PLUS_PLUS_14, CarriedFunction, with_debug_information
from katana_cc.patch.model import PatchObject


def with_sources(po: PatchObject, origins: Iterable[tuple[int, DebugInfo | DwarfProblem, int]]) -> PatchObject:
    """`po` with debug information for its functions.

    Args:
        origins: (section of `po`, debug information of the object it comes from, its section there), for each carried
            section of code.
    """
    carried: list[CarriedFunction] = []
    directory = None
    language = LANG_C11
    for number, info, section in origins:
        if isinstance(info, DwarfProblem):
            continue
        here = _directory(info)
        directory = here if directory is None else directory
        language = LANG_C_PLUS_PLUS_14 if info.cpp else language
        found = list(_functions(info, section, number))
        # A unit has one directory that relative names start from: those that start elsewhere become absolute.
        carried += found if here == directory else [_moved(f, here) for f in found]
    return with_debug_information(po, carried, directory=directory or "", language=language)


def _functions(info: DebugInfo, section: int, number: int) -> Iterator[CarriedFunction]:
    for f in _known_functions(info):
        for part in (f.code, *f.parts):
            if part.section == section and part.size:
                rows = _rows(info, section, part.offset, part.size)
                yield CarriedFunction(f.name, number, part.offset, part.size, f.file, f.line, rows)


def _known_functions(info: DebugInfo) -> tuple[Function, ...]:
    try:
        return functions(info)
    except FormatError:
        return ()


def _rows(info: DebugInfo, section: int, offset: int, size: int) -> tuple[Row, ...]:
    try:
        return line_rows(info, section, offset, size)
    except FormatError:
        return ()


def _directory(info: DebugInfo) -> str:
    return next((name for u in info.units if (name := u.root.text(d.DW_AT_comp_dir))), "")


def _moved(f: CarriedFunction, directory: str) -> CarriedFunction:
    rows = tuple(row._replace(file=posixpath.join(directory, row.file)) for row in f.rows)
    return replace(f, decl_file=posixpath.join(directory, f.decl_file) if f.decl_file else "", rows=rows)
