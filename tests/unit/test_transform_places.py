"""Where pointers lie, and what people call a byte."""

from __future__ import annotations

import pytest

from katana_cc.dwarf.forms import Encoding
from katana_cc.transform.model import Copy, Dropped, Float, Initial, Integer, Pointer, Repeat, Transformation
from katana_cc.transform.places import PointerPlace, field_at, leading, moved_offset, pointer_at, pointers

U = Encoding.UNSIGNED
ROW = Repeat(2, 8, 8, 8, 8, (Pointer(0, 0, "char", "", ""),), "names[]", "names[]")
T = Transformation(
    "struct s", 72, 88,
    (
        Integer(0, 3, U, 0, 3, U, "low", "low"),
        Integer(3, 5, U, 3, 5, U, "high", "high"),
        Initial(64, 64, "fresh"),
        Repeat(2, 16, 32, 16, 24, (Copy(0, 0, 4, "n", "m"), ROW), "rows[]", "lines[]"),
        Pointer(80, 64, "struct s", "next", "next"),
        Dropped(64, 64, "gone"),
    ),
)  # fmt: skip


def test_a_pointer_is_found_by_its_place() -> None:
    every = {p.old: p for p in pointers(T)}
    assert {n: pointer_at(T, n) for n in range(72) if pointer_at(T, n)} == every


@pytest.mark.parametrize(
    ("offset", "moved"),
    [(0, 0), (4, None), (8, None), (17, 17), (20, None), (24, 24), (25, None), (40, 48), (64, 80), (72, None)],
)
def test_a_byte_is_found_again(offset: int, moved: int | None) -> None:
    assert moved_offset(T, offset) == moved


def test_the_middle_of_a_number_is_found_only_where_it_stays_as_it_is() -> None:
    kept, wider = Integer(64, 32, U, 64, 32, U, "a", "a"), Integer(128, 64, U, 96, 32, U, "b", "b")
    t = Transformation("v", 16, 24, (kept, wider))
    assert [moved_offset(t, n) for n in (8, 9, 11, 12, 13)] == [8, 9, 11, 16, None]


@pytest.mark.parametrize(
    ("pointee", "moved"),
    [("", 0), ("void", 0), ("struct s", 0), ("int", 8), ("char", None), ("char *", 8), ("struct s[2]", 0)],
)
def test_the_start_is_the_object_unless_the_pointer_says_otherwise(pointee: str, moved: int | None) -> None:
    t = Transformation("v", 8, 16, (Initial(0, 64, "fresh"), Copy(8, 0, 4, "a", "a")))
    assert moved_offset(t, 0, pointee) == moved


def test_a_struct_at_the_start_that_parts_from_it_is_not_told_apart() -> None:
    steps = Initial(0, 64, "fresh"), Copy(8, 0, 4, "in.x", "in.x"), Pointer(16, 8, "char", "in.p", "in.p")
    t = Transformation("v", 16, 24, steps)
    assert [moved_offset(t, 0, p) for p in ("", "struct in", "int")] == [0, None, 8]


@pytest.mark.parametrize("pointee", ["unsigned int", "int", "float"])
def test_a_typed_pointer_does_not_follow_a_number_to_another_width(pointee: str) -> None:
    """It would read and write what lies behind a narrower one, and half of a wider one."""
    for widths in ((32, 16), (16, 32)):
        number = Integer(64, widths[1], U, 64, widths[0], U, "a", "a")
        t = Transformation("v", 16, 16, (number,))
        assert moved_offset(t, 8, pointee) is None
        assert moved_offset(t, 8, "void") == 8
    real = Float(8, 8, 8, 4, "d", "d")
    assert moved_offset(Transformation("v", 16, 16, (real,)), 8, pointee) is None


def test_names_with_dots_in_brackets_are_one_name() -> None:
    """`rows[2..4]` and `(Box<1.5>)` are no structs called `rows[2` and `(Box<1`."""
    steps = Initial(0, 64, "rows[2..4]"), Copy(8, 4, 4, "(Box<1.5>).n", "(Box<1.5>).n"), Copy(16, 8, 4, "rows", "rows")
    assert moved_offset(Transformation("v", 12, 24, steps), 4) == 8


def test_every_pointer_is_found_with_its_path() -> None:
    assert list(pointers(T)) == [
        PointerPlace(24, 24, "char", "rows[0].names[0]"),
        PointerPlace(32, 32, "char", "rows[0].names[1]"),
        PointerPlace(48, 56, "char", "rows[1].names[0]"),
        PointerPlace(56, 64, "char", "rows[1].names[1]"),
        PointerPlace(64, 80, "struct s", "next"),
    ]


@pytest.mark.parametrize(
    ("offset", "old", "new"),
    [
        (0, "low", "low"),
        (4, "", ""),
        (9, "gone", "fresh"),
        (17, "lines[0].m", "rows[0].n"),
        (21, "lines[0]", "rows[0]"),
        (40, "lines[1].m", "rows[0]"),
        (57, "lines[1].names[1]", "rows[1].names[0]"),
        (66, "next", "rows[1].names[1]"),
    ],
)
def test_a_byte_is_called_after_its_field(offset: int, old: str, new: str) -> None:
    assert (field_at(T, offset), field_at(T, offset, new=True)) == (old, new)


def test_pointer_to_an_element_is_not_one_to_its_first_field() -> None:
    """The first field moves within the element; a pointer to such a struct cannot mean it."""
    steps = (Initial(0, 64, "fresh"), Copy(8, 0, 4, "key", "key"), Pointer(16, 8, "struct node", "next", "next"))
    t = Transformation("pool", 64, 96, (Repeat(4, 0, 24, 0, 16, steps, "[]", "[]"),), "struct node[4]")
    assert [moved_offset(t, 16 * n, "struct node") for n in range(4)] == [0, 24, 48, 72]
    assert moved_offset(t, 16) is None
    assert moved_offset(t, 8, "struct node") == 16  # (no such field begins there: as if nobody knew)


def test_pointer_to_a_pointer_at_the_start_is_none_to_the_object() -> None:
    t = Transformation("struct node", 8, 16, (Initial(0, 64, "fresh"), Pointer(8, 0, "struct node", "next", "next")))
    assert moved_offset(t, 0, "struct node *") == 8
    assert moved_offset(t, 0, "struct node") == 0


def test_pointer_to_an_element_in_a_struct_means_no_field_of_it() -> None:
    """A bug: its first field lies elsewhere in the element now, so nobody seemed to know."""
    element = (
        Initial(0, 32, "fresh"),
        Integer(32, 16, U, 0, 16, U, "a", "a"),
        Pointer(8, 8, "char", "to", "to"),
    )
    t = Transformation(
        "struct pair", 40, 40, (Copy(0, 0, 8, "n", "n"), Repeat(2, 8, 16, 8, 16, element, "in[]", "in[]"))
    )
    assert [moved_offset(t, at, "struct one") for at in (8, 24)] == [8, 24]
    assert moved_offset(t, 24) is None


def test_types_that_lead_to_what_is_made_anew() -> None:
    """Those are all that whoever looks for objects has to know."""

    def one(name: str, *pointees: str, grows: bool = False) -> Transformation:
        size = 8 * (len(pointees) + 1)
        held = (Pointer(8 * n, 8 * n, p) for n, p in enumerate(pointees, 1))
        return Transformation(name, size, size + 8 * grows, (Copy(0, 0, 8), *held))

    types = {
        t.name: t
        for t in (
            one("struct node", "struct node", "char", grows=True),
            one("struct link", "struct link"),
            one("struct table", "struct node *"),
            one("struct node *", "struct node"),
            one("struct other", "struct other", "char"),
            one("char"),
        )
    }
    begins = {"struct node": "struct link", "struct table": "char"}
    assert leading(types, begins) == {"struct node", "struct link", "struct table", "struct node *"}
    assert leading({"struct other": types["struct other"]}, {}) == frozenset()
