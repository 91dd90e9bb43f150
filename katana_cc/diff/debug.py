"""What debug information adds to a diff: where things are declared, which lines moved, whose layout changed.

Layouts decide whether live data can be trusted to new code.  A struct that changed may lie anywhere, on the heap too,
so any change of a type that both builds define is a refusal, until data can be transformed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator

from katana_cc.diff.correlate import Correlation
from katana_cc.diff.program import Place, Program
from katana_cc.diff.reasons import INFO, REFUSED, Code
from katana_cc.diff.scope import Scope
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.dwarf import lines
from katana_cc.dwarf.changes import ChangeKind, compare_layouts, without_consequences
from katana_cc.dwarf.detail import lines_only
from katana_cc.dwarf.dies import DebugInfo, open_debug_info
from katana_cc.dwarf.functions import functions, prototype
from katana_cc.dwarf.moved import only_lines_moved
from katana_cc.dwarf.sections import DwarfProblem
from katana_cc.dwarf.types import layouts
from katana_cc.dwarf.variables import Variable, variables
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError
from katana_cc.patch.model import Reason
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

    def scopes(self, program: Program, unit: int) -> dict[int, Scope]:
        """Section → qualified name (`f()::n`) of the one variable it holds, or holds a part of."""
        blob = program.snapshot.units[unit].blob
        if blob not in self._scopes:
            found: dict[int, Scope] = {}
            info = self.info(program, unit)
            if isinstance(info, DebugInfo):
                with contextlib.suppress(FormatError):
                    for v in variables(info):
                        if v.place and _stored(v):
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
            return  # names without a place are better than none; compare_types refuses damaged information

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
            return False  # said by compare_types

    def compare_types(self, old: Program, old_unit: int, new: Program, new_unit: int) -> list[Reason]:
        """Refusals for types laid out otherwise; notes for what is harmless."""
        before, after = self.info(old, old_unit), self.info(new, new_unit)
        for side, program, unit in ((before, old, old_unit), (after, new, new_unit)):
            problem = side if isinstance(side, DwarfProblem) else lines_only(side)
            if problem is not None:
                kinds = self.view(new, new_unit).kinds.values()
                if Kind.FUNCTION not in kinds and Kind.DATA not in kinds:
                    return []  # assembly: its code is compared as a whole
                name = program.unit_name(unit)
                text = f"{name}: {problem.text}; changes of types could not be seen ({problem.remedy})"
                return [Reason(Code.DEBUG_INFORMATION.value, REFUSED, name, "", 0, text)]
        assert isinstance(before, DebugInfo)
        assert isinstance(after, DebugInfo)
        found = []
        for change in without_consequences(compare_layouts(layouts(before), layouts(after))):
            if change.kind is ChangeKind.ENUMERATOR_ADDED:
                found.append(
                    Reason(Code.ENUMERATOR_ADDED.value, INFO, change.type, change.file, change.line, change.text)
                )
            elif not change.harmless:
                text = f"{change.text}; live objects have the old layout"
                found.append(Reason(Code.TYPE_CHANGED.value, REFUSED, change.type, change.file, change.line, text))
        return found

    def compare_variables(
        self, old: Program, new: Program, new_unit: int, correlation: Correlation, recreated: Collection[Place]
    ) -> Iterator[Reason]:
        """Refusals for variables of a unit that had another type, whichever unit they were in.

        What no code writes has no live value, also if it is not declared const.
        """
        after, kinds = self.info(new, new_unit), self.view(new, new_unit).kinds
        for v in variables(after) if isinstance(after, DebugInfo) else ():
            if not _stored(v) or v.constant:
                continue
            assert v.place is not None
            place = Place(new_unit, v.place.section)
            if kinds.get(place.section) is Kind.CONST or place in recreated:
                continue
            old_place = correlation.old_place(place)
            was = self._stored_in(old, old_place) if old_place else None
            if was is not None and was.type != v.type:
                text = f"{v.qualified} was {was.type} and is {v.type}; its live value would be misread"
                yield Reason(Code.VARIABLE_TYPE_CHANGED.value, REFUSED, v.name, v.file, v.line, text)

    def _stored_in(self, program: Program, place: Place) -> Variable | None:
        blob = program.snapshot.units[place.unit].blob
        if blob not in self._stored:
            info = self.info(program, place.unit)
            known = variables(info) if isinstance(info, DebugInfo) else ()
            self._stored[blob] = {v.place.section: v for v in known if v.place is not None and _stored(v)}
        return self._stored[blob].get(place.section)


def _stored(v: Variable) -> bool:
    return v.place is not None and 0 < v.place.section < c.SHN_LORESERVE and v.place.offset == 0
