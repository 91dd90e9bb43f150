"""Parts of objects that functions of the user's make: where they lie, and what they begin as."""

from __future__ import annotations

import pytest

from katana_cc.dwarf.forms import Encoding
from katana_cc.transform.byhand import Level, Part, may_lose, parts, rows
from katana_cc.transform.model import Copy, Float, Integer, Pointer, Repeat

SIGNED, UNSIGNED, BOOL = Encoding.SIGNED, Encoding.UNSIGNED, Encoding.BOOL


def places(found: list[Part]) -> set[tuple[int, int]]:
    """(old, new) byte of each part."""
    return {(p.old + i * p.old_stride, p.new + i * p.new_stride) for p in found for i in range(p.number)}


def test_one_by_itself() -> None:
    """A bug: it counts as an array of none."""
    assert list(parts("s", 8, 16, (4, 12), [])) == [Part("s", 8, 16, 1, 4, 12)]


def test_an_array_is_one_row() -> None:
    """However long it is.  A bug: a patch object as long as the data."""
    (part,) = parts("s", 4, 8, (12, 20), [Level(1000, 100, 16, 200, 32)])
    assert part == Part("s", 104, 208, 1000, 16, 32)


def test_arrays_in_arrays() -> None:
    """A bug: the outer array's place is left out, or its stride taken for the inner one's."""
    levels = [Level(3, 1000, 100, 2000, 300), Level(2, 10, 40, 20, 60)]
    found = list(parts("s", 1, 2, (4, 4), levels))
    assert rows(levels) == len(found) == 3
    expected = {
        (1000 + 100 * o + 10 + 40 * i + 1, 2000 + 300 * o + 20 + 60 * i + 2) for o in range(3) for i in range(2)
    }
    assert places(found) == expected


@pytest.mark.parametrize(
    ("new", "old", "loses"),
    [
        ((64, SIGNED), (32, SIGNED), False),
        ((32, SIGNED), (64, SIGNED), True),
        ((32, UNSIGNED), (32, SIGNED), True),
        ((64, UNSIGNED), (32, SIGNED), True),
        ((32, SIGNED), (32, UNSIGNED), True),
        ((64, SIGNED), (32, UNSIGNED), False),
        ((1, BOOL), (8, UNSIGNED), True),
        ((3, UNSIGNED), (3, UNSIGNED), False),
    ],
)
def test_conversions_that_may_lose_a_value(new: tuple[int, Encoding], old: tuple[int, Encoding], loses: bool) -> None:
    """Those are the function's affair.  A bug: it finds a cut-off number, or has to fill in what is plain."""
    step = Integer(0, *new, 0, *old)
    assert may_lose([step]) is loses
    assert may_lose([Copy(0, 0, 4), Repeat(3, 0, 16, 0, 16, (step, Pointer(8, 8, "char")))]) is loses
    assert may_lose([Float(0, 4, 0, 8)])
    assert not may_lose([Float(0, 8, 0, 4)])
