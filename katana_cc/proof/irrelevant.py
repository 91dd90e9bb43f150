"""Differences that mean nothing to a running process, verified.

- *Line numbers.*  Only bytes of code differ, no field does; each run of differing bytes is part of the immediate of a
  `mov` or `push` that holds, before and after, a line of the same statement: a row of the old line table and the same
  one of the rows at that offset of the new one, from which both immediates are equally far, by no more than a long
  macro call.
- *Initial values.*  A writable variable keeps its live value, and the patch object says so (`initialiser-kept`): its
  bytes may differ, and which literals it points at; where it points at anything else it may not.
- *The time of the build.*  What looks like a date or a time and says when the new link was (`judge.py`, and here for
  constants).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from katana_cc.cpu.interface import Instructions
from katana_cc.diff.harmless import same_but_built_later
from katana_cc.diff.program import Place, Program
from katana_cc.diff.reasons import Code
from katana_cc.diff.view import Kind
from katana_cc.patch.model import PatchObject
from katana_cc.proof.image import Image
from katana_cc.proof.model import Content, Named, Target
from katana_cc.proof.walk import BYTES_DIFFER, Difference

Lines = Callable[[Program, Place], Sequence[tuple[int, int]]]  # (offset, line) of a code section

_MACRO_LINES: Final = 12  # the longest macro call of which __LINE__ may be the end


class Irrelevance:
    """Tells whether differences are irrelevant, for one patch object."""

    def __init__(self, old: Image, new: Image, lines: Lines, patch: PatchObject) -> None:
        self.old, self.new = old, new
        self.lines = lines
        self.kept = {r.subject for r in patch.reasons if r.code == Code.INITIALISER_KEPT.value}

    def explains(self, place: Place, theirs: Target, found: Iterable[Difference]) -> bool:
        """Whether all differences of a new place and the old thing it stands for are irrelevant."""
        kind = self.new.kind(place)
        if kind is Kind.DATA:
            return self.new.label(place) in self.kept and all(self._is_value(d) for d in found)
        if isinstance(theirs, Named) or not isinstance(theirs, Place):
            return False
        if any(d.text != BYTES_DIFFER for d in found):
            return False
        after, before = self.new.fields(place), self.old.fields(theirs)
        now = self.new.known.masked(self.new.data(place), after, relaxed=False)
        was = self.old.known.masked(self.old.data(theirs), before, relaxed=False)
        if kind in (Kind.FUNCTION, Kind.CODE):
            rows = self.lines(self.old.program, theirs), self.lines(self.new.program, place)
            return only_own_lines(was, now, *rows, code=self.new.code)
        return same_but_built_later(was, now, self.new.program.snapshot.time)

    def _is_value(self, difference: Difference) -> bool:
        if difference.after is None or difference.before is None:
            return difference.text == BYTES_DIFFER
        after, before = difference.after.target, difference.before.target
        return self._is_literal(self.new, after) and self._is_literal(self.old, before)

    @staticmethod
    def _is_literal(image: Image, target: Target) -> bool:
        """Whether a pointer to it is a value like a number: a literal, or unnamed data without pointers (gcc -O0)."""
        if not isinstance(target, Place):
            return isinstance(target, Content)
        return image.is_unnamed(target) and not image.fields(target)


def only_own_lines(
    old: bytes,
    new: bytes,
    old_rows: Sequence[tuple[int, int]],
    new_rows: Sequence[tuple[int, int]],
    code: Instructions,
) -> bool:
    """Whether all differences of two pieces of code are immediates that hold the line of a statement of theirs.

    Args:
        old, new: code of one size, relocated fields zeroed.
        old_rows, new_rows: (offset, line) of the line table of each.
        code: their CPU's instructions.
    """
    if len(old) != len(new):
        return False
    before, after = _by_offset(old_rows), _by_offset(new_rows)
    moved = {
        pair
        for offset, lines in before.items()
        if len(lines) == len(after.get(offset, ()))
        for pair in zip(lines, after[offset], strict=True)
        if all(pair) and pair[0] != pair[1]
    }
    blank, others = bytearray(old), bytearray(new)
    for constant in code.constants_moved(old):
        if constant.around(old) != constant.around(new):
            continue
        was, now = constant.value(old), constant.value(new)
        if was != now and any(0 <= was - a <= _MACRO_LINES and was - a == now - b for a, b in moved):
            blank[constant.start : constant.end] = others[constant.start : constant.end]
    return blank == others


def _by_offset(rows: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for offset, line in sorted(rows):
        found.setdefault(offset, []).append(line)
    return found
