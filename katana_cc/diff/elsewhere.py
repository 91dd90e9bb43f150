"""Types that the new build lays out otherwise, and what is known of their objects that are no variables.

Theory of operation.  Variables are made anew (`relayout.py`), but objects of a changed *type* may also lie on the heap
or in frames.  Debug information tells whether anything could lead to one: a pointer to such an object, or to something
that holds one, or a variable of a function that is one.  Without any, its variables are all there is.  With one,
somebody has to say that there are none (`--only-static TYPE`); and if no variable is of the type at all, there is no
doubt where its objects are, and it is refused.

What no transformation follows for is refused, with the question that a person would have to answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from katana_cc.diff.reasons import INFO, NEEDS, REFUSED, Code
from katana_cc.diff.relayout import live_variables
from katana_cc.diff.view import Kind
from katana_cc.dwarf.changes import ChangeKind, TypeChange, compare_layouts, without_consequences
from katana_cc.dwarf.detail import lines_only
from katana_cc.dwarf.sections import DwarfProblem
from katana_cc.dwarf.types import layouts
from katana_cc.dwarf.uses import Use, holders_of, used_outside
from katana_cc.patch.model import Reason
from katana_cc.transform.between import between_types
from katana_cc.transform.model import Transformation

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff


def check_types(diff: Diff) -> None:
    """Decide on every type that two builds of an object lay out otherwise, and on debug information that is not there.

    Comes last, when it is known which variables are made anew.
    """
    others: dict[str, _Others] = {}
    for old_unit, new_unit in diff.correlation.changed_units:
        if problem := _problem(diff, old_unit, new_unit):
            diff.changes.reasons.append(problem)
            continue
        before, after = diff.debug.layouts(diff.old, old_unit), diff.debug.layouts(diff.new, new_unit)
        for change in without_consequences(compare_layouts(before, after)):
            if change.kind is ChangeKind.ENUMERATOR_ADDED:
                diff.changes.reasons.append(_reason(Code.ENUMERATOR_ADDED, INFO, change, change.text))
            elif not change.harmless:
                found = between_types(change.type, before, change.type, after, diff.answers)
                for question in () if isinstance(found, Transformation) else found:
                    text = f"{change.text}; live objects have the old layout: {question.text}"
                    diff.changes.reasons.append(_reason(Code.TYPE_CHANGED, REFUSED, change, text))
                if isinstance(found, Transformation) and found.is_identity:
                    text = f"{change.text}; live objects mean the same"
                    diff.changes.reasons.append(_reason(Code.TYPE_CARRIED, INFO, change, text))
                elif isinstance(found, Transformation):
                    layout = after[change.type]
                    one = others.setdefault(change.type, _Others(change, f"{layout.kind} {layout.name}"))
                    _look_for_others(diff, old_unit, new_unit, change.type, one)
    diff.changes.reasons += [_said_of_others(one) for one in others.values()]


@dataclass(slots=True)
class _Others:
    """What is known of objects of a changed type that are no variables: whether there may be some, and whether any
    variable is one."""

    change: TypeChange
    title: str
    use: Use | None = None
    variable: bool = False


def _look_for_others(diff: Diff, old_unit: int, new_unit: int, key: str, found: _Others) -> None:
    for program, unit in ((diff.old, old_unit), (diff.new, new_unit)):
        info = diff.debug.readable(program, unit)
        assert info is not None
        holders = holders_of([key], layouts(info))
        found.use = found.use or next(used_outside(info, holders), None)
        found.variable = found.variable or any(v.aggregate in holders for v in live_variables(diff, program, unit))


def _said_of_others(of: _Others) -> Reason:
    change, use = of.change, of.use
    if use is None:
        text = f"{change.text}; no pointer to one and no such variable of a function is declared: variables are all"
        return Reason(Code.TYPE_CARRIED.value, INFO, of.title, change.file, change.line, text)
    where = f" ({use.file}:{use.line})" if use.file else ""
    if not of.variable:
        text = f"{change.text}; {use.how}{where}, and no variable is one: live objects elsewhere have the old layout"
        return _reason(Code.TYPE_CHANGED, REFUSED, change, text)
    text = (
        f"{change.text}; {use.how}{where}, so objects of it may live on the heap or in frames, where they would keep "
        f"the old layout and be misread (all is well if variables are the only ones)"
    )
    return Reason(Code.TYPE_ELSEWHERE.value, NEEDS, of.title, change.file, change.line, text)


def _problem(diff: Diff, old_unit: int, new_unit: int) -> Reason | None:
    """The refusal for debug information that does not tell of types."""
    for program, unit in ((diff.old, old_unit), (diff.new, new_unit)):
        side = diff.debug.info(program, unit)
        problem = side if isinstance(side, DwarfProblem) else lines_only(side)
        if problem is not None:
            kinds = diff.view(diff.new, new_unit).kinds.values()
            if Kind.FUNCTION not in kinds and Kind.DATA not in kinds:
                return None  # assembly: its code is compared as a whole
            name = program.unit_name(unit)
            text = f"{name}: {problem.text}; changes of types could not be seen ({problem.remedy})"
            return Reason(Code.DEBUG_INFORMATION.value, REFUSED, name, "", 0, text)
    return None


def _reason(code: Code, severity: str, change: TypeChange, text: str) -> Reason:
    return Reason(code.value, severity, change.type, change.file, change.line, text)
