"""Variables of which the source says that a new initial value is to be taken over: KATANA_TAKE_INITIALISER."""

from __future__ import annotations

from typing import TYPE_CHECKING

from katana_cc.diff.hooks import marked_variables
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import INFO, REFUSED, Code
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.variables import variables

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff


def is_marked(diff: Diff, place: Place) -> bool:
    """Whether the new source marks the variable, or one of several, that a section of the new build holds."""
    view = diff.view(diff.new, place.unit)
    marked = marked_variables(view)
    if not marked:
        return False
    variable = diff.debug.stored_in(diff.new, place)
    if variable is None:
        return any(s.name in marked for s in view.symbols_in.get(place.section, ()))
    return names_marked(diff, place.unit, variable.qualified)


def names_marked(diff: Diff, unit: int, qualified: str) -> bool:
    """The same of a variable by its name with its scope (`shop::limit`, `serve()::count`).

    A mark has the bare name.  It means a static of a function only where nothing else in the file is called so.
    """
    scope, _, name = qualified.rpartition("::")
    if name not in marked_variables(diff.view(diff.new, unit)):
        return False
    if not scope.endswith(")"):
        return True
    info = diff.debug.info(diff.new, unit)
    return isinstance(info, DebugInfo) and {v.qualified for v in variables(info) if v.name == name} == {qualified}


def note_kept(diff: Diff, place: Place, why: str) -> None:
    """Say that a variable whose initial value changed keeps its live value; where the source says otherwise, that is
    refused: `why` it cannot be done."""
    if is_marked(diff, place):
        text = f"its initial value changed, and KATANA_TAKE_INITIALISER cannot be followed: {why}"
        diff.reason(Code.HOOK_UNUSABLE, REFUSED, place, text)
    else:
        diff.reason(Code.INITIALISER_KEPT, INFO, place, "its initial value changed; the live value is kept")
