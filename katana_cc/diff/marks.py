"""Variables of which the source says that a new initial value is to be taken over: KATANA_TAKE_INITIALISER."""

from __future__ import annotations

from typing import TYPE_CHECKING

from katana_cc.diff.hooks import marked_variables
from katana_cc.diff.program import Place
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.variables import variables

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff


def is_marked(diff: Diff, place: Place) -> bool:
    """Whether the new source marks the variable that a section of the new build holds."""
    view = diff.view(diff.new, place.unit)
    marked = marked_variables(view)
    if not marked:
        return False
    variable = diff.debug.stored_in(diff.new, place)
    if variable is None:
        return view.label(place.section) in marked
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
