"""`compare_layouts`: each kind of difference, in the words a person reads."""

from __future__ import annotations

from katana_cc.dwarf.changes import ChangeKind, TypeChange, compare_layouts, without_consequences
from katana_cc.dwarf.types import Base, Enumerator, Member, TypeKind, TypeLayout


def field(
    name: str, offset: int, type_: str = "int", size: int = 4, *, bits: int | None = None, line: int = 0
) -> Member:
    return Member(name, offset * 8, bits, size, type_, "", line)


def struct(size: int, *members: Member, bases: tuple[Base, ...] = (), kind: TypeKind = TypeKind.STRUCT) -> TypeLayout:
    return TypeLayout("request", kind, size, members, (), bases, "src/request.h", 10)


def enum(*values: tuple[str, int], size: int = 4) -> TypeLayout:
    return TypeLayout("state", TypeKind.ENUM, size, (), tuple(Enumerator(*v) for v in values), (), "src/state.h", 3)


def changes(old: TypeLayout, new: TypeLayout) -> tuple[TypeChange, ...]:
    return compare_layouts({old.name: old}, {new.name: new})


def kinds(old: TypeLayout, new: TypeLayout) -> list[ChangeKind]:
    return [c.kind for c in changes(old, new)]


def test_growth_names_the_field_and_where_it_is() -> None:
    new = struct(104, field("id", 0), field("deadline", 96, "long", 8, line=17))
    grown, added = changes(struct(96, field("id", 0)), new)
    assert grown.text == "struct request grew from 96 to 104 bytes: new field `deadline` at offset 96"
    assert (added.kind, added.file, added.line) == (ChangeKind.FIELD_ADDED, "src/request.h", 17)


def test_equal_layouts_on_other_lines_are_no_change() -> None:
    old = struct(8, field("a", 0, line=3), field("b", 4, line=4))
    new = struct(8, field("a", 0, line=30), field("b", 4, line=40))
    assert changes(old, new) == ()


def test_type_known_on_one_side_only_is_no_change() -> None:
    assert compare_layouts({"a": struct(4)}, {}) == ()
    assert compare_layouts({}, {"a": struct(4)}) == ()


def test_moved_field_says_from_where_to_where() -> None:
    (moved,) = changes(struct(16, field("a", 4)), struct(16, field("a", 8)))
    assert moved.text == "field `a` of struct request moved from offset 4 to offset 8"


def test_type_of_a_field_changed() -> None:
    (changed,) = changes(struct(4, field("a", 0, "int")), struct(4, field("a", 0, "unsigned int")))
    assert changed.kind is ChangeKind.FIELD_TYPE_CHANGED
    assert changed.text == "field `a` of struct request was int, is unsigned int"


def test_width_of_a_bit_field_is_a_type_change() -> None:
    (changed,) = changes(struct(4, field("a", 0, bits=3)), struct(4, field("a", 0, bits=5)))
    assert changed.text == "field `a` of struct request was int:3, is int:5"


def test_rename_is_both_halves_flagged() -> None:
    gone, came = changes(struct(4, field("a", 0)), struct(4, field("b", 0)))
    assert (gone.kind, gone.member, gone.possible_rename) == (ChangeKind.FIELD_REMOVED, "a", True)
    assert (came.kind, came.member, came.possible_rename) == (ChangeKind.FIELD_ADDED, "b", True)


def test_removed_and_added_elsewhere_is_no_rename() -> None:
    assert not any(c.possible_rename for c in changes(struct(8, field("a", 0)), struct(8, field("b", 4))))


def test_field_that_came_into_padding_says_so() -> None:
    old = struct(16, field("a", 0), field("p", 8, "void *", 8))
    new = struct(16, field("a", 0), field("b", 4), field("p", 8, "void *", 8))
    (added,) = changes(old, new)
    assert added.text.endswith("at offset 4, in what was padding")


def test_struct_that_became_a_union_is_one_change() -> None:
    old = struct(4, field("a", 0))
    assert kinds(old, struct(8, field("b", 0), kind=TypeKind.UNION)) == [ChangeKind.KIND_CHANGED]


def test_enumerator_value_changed_is_not_harmless() -> None:
    (changed,) = changes(enum(("IDLE", 0), ("BUSY", 1)), enum(("IDLE", 0), ("BUSY", 2)))
    assert (changed.text, changed.harmless) == ("enumerator `BUSY` of enum state was 1, is 2", False)


def test_enumerators_that_come_and_go_are_harmless() -> None:
    found = changes(enum(("A", 0), ("B", 1)), enum(("A", 0), ("C", 2)))
    assert [(c.kind, c.harmless) for c in found] == [
        (ChangeKind.ENUMERATOR_REMOVED, True),
        (ChangeKind.ENUMERATOR_ADDED, True),
    ]


def test_base_class_moved() -> None:
    (changed,) = changes(struct(8, bases=(Base("struct A", 0),)), struct(8, bases=(Base("struct A", 4),)))
    assert changed.text == "the base classes of struct request were struct A (at 0), are struct A (at 4)"


def test_growth_by_an_embedded_type_is_told() -> None:
    old = struct(16, field("head", 0, "struct head", 8), field("n", 8))
    new = struct(24, field("head", 0, "struct head", 16), field("n", 16))
    assert kinds(old, new) == [ChangeKind.SIZE_CHANGED, ChangeKind.FIELD_MOVED]
    assert changes(old, new)[0].text.endswith("field `head` has 16 bytes, had 8")


def test_fields_that_merely_moved_are_told_once() -> None:
    """A bug: one new field at the front of a struct of a hundred fields gives a hundred lines of refusal."""
    old = struct(12, field("a", 0), field("b", 4), field("c", 8))
    new = struct(16, field("fresh", 0), field("a", 4), field("b", 8), field("c", 12))
    told = without_consequences(changes(old, new))
    assert [c.kind for c in told] == [ChangeKind.SIZE_CHANGED, ChangeKind.FIELD_MOVED, ChangeKind.FIELD_ADDED]
    text = "field `a` of struct request moved from offset 0 to offset 4, and 2 more fields of it moved"
    assert told[1].text == text


def test_one_field_that_moved_is_told_as_it_is() -> None:
    old, new = struct(16, field("a", 0)), struct(16, field("a", 8))
    assert without_consequences(changes(old, new)) == changes(old, new)
