"""Functions with restartable sequences (rseq(2)), which memory allocators use: refused where they change.

A descriptor in `__rseq_cs` tells the kernel where in a function a sequence begins and ends, and where its abort handler
is, mostly in `__rseq_failure`; `__rseq_cs_ptr_array` and `__rseq_exit_point_array` tell debuggers of them (librseq).
New code would need descriptors and handlers of its own, and none is made.  One whose sequence is gone is refused, too:
a thread may be at its old handler, outside of the function, from where it goes on inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from katana_cc.diff.program import Place, Program
from katana_cc.diff.reasons import REFUSED, Code
from katana_cc.diff.view import ObjectView

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff

_DESCRIPTORS: Final = "__rseq_cs"
_SECTIONS: Final = (_DESCRIPTORS, "__rseq_cs_ptr_array", "__rseq_exit_point_array", "__rseq_failure")
_ABOUT: Final = (Code.SECTION_CHANGED, Code.CODE_SHARED_SECTION)
_TEXT: Final = (
    "it has a restartable sequence (rseq) in one of the builds, which the kernel knows by addresses in the function, "
    "and Katana makes none for new code; restart the program with the new build"
)


def check_sequences(diff: Diff) -> None:
    """Refuse replaced and new functions that have one; what else was said of their sections says no more."""
    refused: set[int] = set()
    for new, old in diff.changes.replaced.items():
        if _has_sequence(diff, diff.new, new) or _has_sequence(diff, diff.old, old):
            diff.reason(Code.RESTARTABLE, REFUSED, new, _TEXT)
            refused.add(new.unit)
    for unit in (*(n for _, n in diff.correlation.changed_units), *diff.correlation.new_units):
        for number in sorted(set(_with_sequences(diff.view(diff.new, unit)))):
            place = Place(unit, number)
            if diff.correlation.old_of.get(place) is None and diff.new.address(place) is not None:
                diff.reason(Code.RESTARTABLE, REFUSED, place, _TEXT)
                refused.add(unit)
    for old_unit, unit in diff.correlation.changed_units:
        if unit in refused:
            _take_back(diff, diff.new, unit)
            _take_back(diff, diff.old, old_unit)
    for unit in refused:
        _take_back(diff, diff.new, unit)


def _has_sequence(diff: Diff, program: Program, place: Place) -> bool:
    return place.section in _with_sequences(diff.view(program, place.unit))


def _with_sequences(view: ObjectView) -> Iterator[int]:
    """The functions that descriptors lead into."""
    for number in _sections(view, (_DESCRIPTORS,)):
        for target in {r.section for r in view.references(number)}:
            if view.is_function(target):
                yield view.parent.get(target, target)


def _sections(view: ObjectView, names: Iterable[str]) -> list[int]:
    return [number for number in view.kinds if view.elf.sections[number].name in names]


def _take_back(diff: Diff, program: Program, unit: int) -> None:
    for number in _sections(diff.view(program, unit), _SECTIONS):
        diff.take_back(Place(unit, number), _ABOUT, program=program)
