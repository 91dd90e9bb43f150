"""What debug information adds to a diff: where things are declared, which lines moved, how types are laid out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from katana_cc.diff.program import Place, Program
from katana_cc.diff.scope import Scope
from katana_cc.diff.view import ObjectView
from katana_cc.dwarf import lines
from katana_cc.dwarf.detail import lines_only
from katana_cc.dwarf.dies import DebugInfo, open_debug_info
from katana_cc.dwarf.functions import functions, prototype
from katana_cc.dwarf.moved import only_lines_moved
from katana_cc.dwarf.sections import DwarfProblem
from katana_cc.dwarf.types import TypeLayout, layouts
from katana_cc.dwarf.variables import Variable, variables
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError
from katana_cc.snapshot.blobs import expand_zstd


class DebugCache:
    """Debug information of the objects of a diff, read when something asks for it."""

    def __init__(self, view: Callable[[Program, int], ObjectView]) -> None:
        self.view = view
        self._infos: dict[str, DebugInfo | DwarfProblem] = {}
        self._scopes: dict[str, dict[int, Scope]] = {}
        self._stored: dict[str, dict[int, Variable]] = {}
        self._declared: dict[str, dict[int, tuple[str, int]]] = {}

    def info(self, program: Program, unit: int) -> DebugInfo | DwarfProblem:
        """The debug information of a unit, or why there is none."""
        blob = program.snapshot.units[unit].blob
        if blob not in self._infos:
            self._infos[blob] = open_debug_info(program.object(unit), expand_zstd)
        return self._infos[blob]

    def readable(self, program: Program, unit: int) -> DebugInfo | None:
        """The debug information of a unit, if it tells of types."""
        info = self.info(program, unit)
        return info if isinstance(info, DebugInfo) and lines_only(info) is None else None

    def layouts(self, program: Program, unit: int) -> Mapping[str, TypeLayout]:
        """The layouts of all aggregates that a unit defines; none where its debug information does not tell.

        Raises:
            FormatError: damaged debug information.
        """
        info = self.readable(program, unit)
        return layouts(info) if info is not None else {}

    def scopes(self, program: Program, unit: int) -> dict[int, Scope]:
        """Section → qualified name (`f()::n`) of the one variable it holds, or holds a part of."""
        blob = program.snapshot.units[unit].blob
        if blob not in self._scopes:
            found: dict[int, Scope] = {}
            info = self.info(program, unit)
            if isinstance(info, DebugInfo):
                with contextlib.suppress(FormatError):
                    for v in variables(info):
                        if v.place and v.is_stored:
                            found[v.place.section] = Scope(v.qualified)
                        for at, piece in v.pieces:
                            found[piece.section] = Scope(v.qualified, at)
            self._scopes[blob] = found
        return self._scopes[blob]

    def declared(self, program: Program, place: Place) -> tuple[str, int]:
        """(file, line) of the declaration of what `place` holds; ("", 0) when not known."""
        blob = program.snapshot.units[place.unit].blob
        if blob not in self._declared:
            self._declared[blob] = dict(self._declarations(program, place.unit))
        return self._declared[blob].get(place.section, ("", 0))

    def _declarations(self, program: Program, unit: int) -> Iterator[tuple[int, tuple[str, int]]]:
        info = self.info(program, unit)
        if isinstance(info, DwarfProblem):
            return
        try:
            for v in variables(info):
                if v.place is not None and 0 < v.place.section < c.SHN_LORESERVE:
                    yield v.place.section, (v.file, v.line)
            for f in functions(info):
                for part in (f.code, *f.parts):
                    yield part.section, (f.file, f.line)
        except FormatError:
            return  # names without a place are better than none; check_types refuses damaged information

    def prototype(self, program: Program, place: Place) -> str | None:
        """The type of the function that `place` holds, as text; None when debug information does not tell."""
        info = self.info(program, place.unit)
        if isinstance(info, DwarfProblem):
            return None
        try:
            return next((prototype(info, f) for f in functions(info) if f.code.section == place.section), None)
        except FormatError:
            return None

    def lines(self, program: Program, place: Place) -> list[tuple[int, int]]:
        """(offset, line) of the line table of a code section, by offset; empty where there is none."""
        info = self.info(program, place.unit)
        if isinstance(info, DwarfProblem):
            return []
        try:
            return sorted((r.offset, r.line) for r in lines.line_rows(info, place.section))
        except FormatError:
            return []

    def only_lines_moved(self, old: Program, old_unit: int, new: Program, new_unit: int) -> bool:
        """Whether two objects that are otherwise alike describe the same types and variables."""
        before, after = self.info(old, old_unit), self.info(new, new_unit)
        try:
            return (
                isinstance(before, DebugInfo)
                and isinstance(after, DebugInfo)
                and lines_only(after) is None
                and only_lines_moved(before, after)
            )
        except FormatError:
            return False  # said by check_types

    def stored_in(self, program: Program, place: Place) -> Variable | None:
        """The variable that a section holds, if it is one variable's own."""
        blob = program.snapshot.units[place.unit].blob
        if blob not in self._stored:
            info = self.info(program, place.unit)
            known = variables(info) if isinstance(info, DebugInfo) else ()
            self._stored[blob] = {v.place.section: v for v in known if v.place is not None and v.is_stored}
        return self._stored[blob].get(place.section)
