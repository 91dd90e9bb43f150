"""Types that the new build lays out otherwise, and what is known of their objects that are no variables.

Theory of operation.  Variables are made anew (`relayout.py`), but objects of a changed *type* may also lie on the heap
or in frames.

In a frame is one while its function runs, and debug information tells which functions have one.  Those that are
replaced do not run when the patch is applied (`reliance.py`: none of them may be active); any other is an obstacle.

On the heap there may be one where a pointer to such an object, or to something that holds one, is declared at all.
Without, its variables are all there is.  With one, typed pointers may lead to each object from some variable on, in
ways of which the types tell (`reach.py`): then whoever applies the patch finds them; where other pointers lead there,
too, somebody has to say that these lead to no more (`--only-reached TYPE`).  Where no types tell, somebody has to say
that there are none (`--only-static TYPE`); and if no variable is of the type at all, there is no doubt where its
objects are, and it is refused.

What no transformation follows for is refused, with the question that a person would have to answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from katana_cc.diff.handmade import makers_for
from katana_cc.diff.program import Place
from katana_cc.diff.reach import Reach
from katana_cc.diff.reasons import INFO, NEEDS, REFUSED, Code
from katana_cc.diff.relayout import live_variables
from katana_cc.diff.reliance import note_layouts
from katana_cc.diff.view import Kind
from katana_cc.dwarf.changes import ChangeKind, TypeChange, compare_layouts, without_consequences
from katana_cc.dwarf.detail import lines_only
from katana_cc.dwarf.sections import DwarfProblem
from katana_cc.dwarf.types import layouts
from katana_cc.dwarf.uses import Use, framed, holders_of, pointed_to
from katana_cc.patch.model import Reason
from katana_cc.transform.between import between_types
from katana_cc.transform.model import Transformation

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff

_NAMED: Final = 6  # variables that a reason names


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
                by_hand = makers_for(diff.makers, before, after)
                found = between_types(change.type, before, change.type, after, diff.answers, by_hand)
                for question in () if isinstance(found, Transformation) else found:
                    text = f"{change.text}; live objects have the old layout: {question.text}"
                    diff.changes.reasons.append(_reason(Code.TYPE_CHANGED, REFUSED, change, text))
                if isinstance(found, Transformation) and found.is_identity:
                    text = f"{change.text}; live objects mean the same"
                    diff.changes.reasons.append(_reason(Code.TYPE_CARRIED, INFO, change, text))
                elif isinstance(found, Transformation):
                    layout = after[change.type]
                    if change.type not in others:
                        gone = _units_gone(diff, change.type)
                        others[change.type] = _Others(change, f"{layout.kind} {layout.name}", units=gone)
                    one = others[change.type]
                    _look_for_others(diff, old_unit, new_unit, change.type, one)
    _find_ways(diff, others)
    note_layouts(diff, {one.title: one.units for one in others.values() if one.use or one.in_frames})
    for one in others.values():
        diff.changes.reasons += _said_of_others(one)


@dataclass(slots=True)
class _Others:
    """What is known of objects of a changed type that are no variables.

    `use`: that pointers to one exist; `in_frames`: that functions have one in their frames, `frame`: one that may be
    there when the patch is applied.  `units`: the old objects that know its layout; `variable`: whether any is one.
    `roots`: from which variables on types tell of the ways to all of them, `obstacle`: or why they do not.
    `hidden`: from where pointers lead there that cannot be followed; `handed_out`: a function by which other modules
    get at one.
    """

    change: TypeChange
    title: str
    use: Use | None = None
    in_frames: bool = False
    frame: Use | None = None
    units: set[int] = field(default_factory=set)
    variable: bool = False
    roots: tuple[str, ...] = ()
    obstacle: str = ""
    hidden: str = ""
    handed_out: str = ""

    @property
    def is_walked(self) -> bool:
        """Whether whoever applies the patch finds all objects."""
        return bool(self.roots) and not self.obstacle


def _units_gone(diff: Diff, key: str) -> set[int]:
    """The objects of the old build alone that know the layout of a type."""
    return {unit for unit in diff.correlation.removed_units if key in diff.debug.layouts(diff.old, unit)}


def _look_for_others(diff: Diff, old_unit: int, new_unit: int, key: str, found: _Others) -> None:
    for program, unit in ((diff.old, old_unit), (diff.new, new_unit)):
        info = diff.debug.readable(program, unit)
        assert info is not None
        holders = holders_of([key], layouts(info))
        found.use = found.use or next(pointed_to(info, holders), None)
        if program is diff.old:
            found.units.add(unit)
            frames = list(framed(info, holders))
            found.in_frames |= bool(frames)
            found.frame = found.frame or next(_staying_frames(diff, unit, frames), None)
        found.variable = found.variable or any(v.aggregate in holders for v in live_variables(diff, program, unit))


def _staying_frames(diff: Diff, unit: int, frames: Sequence[tuple[int, Use]]) -> Iterator[Use]:
    """Those of functions that go on as they are.  (One that is gone is not active, or `reliance.py` objects.)"""
    replaced, here = set(diff.changes.replaced.values()), set(diff.correlation.old_of.values())
    for section, use in frames:
        place = Place(unit, section)
        if place in here and place not in replaced:
            yield use


def _find_ways(diff: Diff, others: Mapping[str, _Others]) -> None:
    """Note from where all objects of each type are found, and what the patch is to know for that."""
    if all(one.use is None for one in others.values()) and not diff.changes.moved:
        return
    reach = Reach(diff, others)
    for key, one in others.items():
        if one.use is None:
            continue
        one.roots = tuple(reach.roots(key))
        one.hidden = reach.hidden(key)
        one.handed_out = reach.handed_out(key)
        if one.frame is not None:
            one.obstacle = f"{one.frame.how}{_where(one.frame)}, and that function goes on as it is"
        elif not one.roots:
            one.obstacle = f"typed pointers lead there {f'only {one.hidden}' if one.hidden else 'from no variable'}"
        else:
            one.obstacle = reach.obstacle(key)
    walked = {key for key, one in others.items() if one.is_walked}
    # A way through objects that stay as they are leads nowhere.
    while closed := {key: lost for key in walked if (lost := reach.passes(key) & others.keys() - walked)}:
        for key, lost in closed.items():
            others[key].obstacle = f"ways there lead through {others[min(lost)].title}, whose objects are not all found"
        walked -= closed.keys()
    diff.changes.walked = reach.walked(walked)


def _said_of_others(of: _Others) -> Iterator[Reason]:
    change, use = of.change, of.use or of.frame

    def said(code: Code, severity: str, text: str) -> Reason:
        return Reason(code.value, severity, of.title, change.file, change.line, f"{change.text}; {text}")

    if use is None:
        text = "no pointer to one is declared, and no function that goes on has one: variables are all"
        yield said(Code.TYPE_CARRIED, INFO, text)
        return
    if of.is_walked:
        yield said(Code.TYPE_WALKED, INFO, f"its objects are found by following pointers from: {_listed(of.roots)}")
        if of.hidden:
            text = f"pointers lead there that cannot be followed, {of.hidden} (all is well if others lead to the same)"
            yield said(Code.TYPE_HIDDEN, NEEDS, text)
    elif of.variable:
        text = (
            f"{use.how}{_where(use)}, so objects of it may live on the heap or in frames, where they would keep the "
            f"old layout and be misread ({f'{of.obstacle}; ' if of.obstacle else ''}all is well if variables are the "
            f"only ones)"
        )
        yield said(Code.TYPE_ELSEWHERE, NEEDS, text)
    else:
        text = (
            f"{change.text}; {use.how}{_where(use)}, and no variable is one: live objects elsewhere have the old "
            f"layout ({of.obstacle})"
        )
        yield _reason(Code.TYPE_CHANGED, REFUSED, change, text)
        return
    if of.handed_out:
        text = (
            f"other modules get at its objects by {of.handed_out}, and one that knows the layout would misread those "
            "that are made anew (all is well if none does)"
        )
        yield said(Code.TYPE_EXPORTED, NEEDS, text)


def _where(use: Use) -> str:
    return f" ({use.file}:{use.line})" if use.file else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


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
