"""Single cases of transformations from compiled sources: what is moved how, and what a person has to decide."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from katana_cc.dwarf.types import layouts
from katana_cc.dwarf.variables import variables
from katana_cc.transform.between import Outcome, between_types, between_variables
from katana_cc.transform.execute import apply
from katana_cc.transform.model import Copy, Dropped, Float, Initial, Integer, Pointer, Repeat, Step, Transformation
from katana_cc.transform.problems import Problem, ProblemKind
from tests.support.dwarf import build

USE = {"c": "struct s v;", "cc": "s &use(s *p) { return p[1]; }"}


def between(
    folder: Path, old: str, new: str, *command: str, renames: dict[tuple[str, str], str] | None = None
) -> Outcome:
    """What becomes of `struct s`."""
    suffix = "cc" if "++" in command[0] else "c"
    sides = [
        layouts(build(folder, f"{text}\n{USE[suffix]}", *command, "-g", name=f"unit.{suffix}")) for text in (old, new)
    ]
    return between_types("s", sides[0], "s", sides[1], renames)


def steps(folder: Path, old: str, new: str, *command: str) -> tuple[Step, ...]:
    made = between(folder, old, new, *(command or ("gcc",)))
    assert isinstance(made, Transformation), made
    return made.steps


def of_variable(folder: Path, old: str, new: str, compiler: str = "gcc") -> Outcome:
    """What becomes of the variable `v`."""
    sides = []
    for text in (old, new):
        info = build(folder, text, compiler, "-g")
        sides.append((next(x for x in variables(info) if x.name == "v"), layouts(info)))
    return between_variables(*sides[0], *sides[1])


P = ProblemKind
REFUSED = [
    ("struct s { int a; };", "struct s { int b; };", P.POSSIBLE_RENAME, "b"),
    ("struct s { int a; long z; };", "struct s { int n[4]; int b; long z; };", P.POSSIBLE_RENAME, "b"),
    ("struct s { int a; };", "struct s { long b; };", P.POSSIBLE_RENAME, "b"),
    ("struct s { char a[4]; long z; };", "struct s { char b[8]; long z; };", P.POSSIBLE_RENAME, "b"),
    ("struct s { int x, y; };", "struct s { struct { int x, y; } at; };", P.POSSIBLE_RENAME, "at"),
    ("struct s { struct { int x, y; } at; };", "struct s { long z; int x; };", P.POSSIBLE_RENAME, "x"),
    ("struct in { int n; long l; }; struct s { struct in in; };",
     "struct in { long l; }; struct s { struct in in; int n; };", P.POSSIBLE_RENAME, "n"),
    ("struct s { char *a; };", "struct s { long a; };", P.TYPE_CHANGED, "a"),
    ("struct s { float a; };", "struct s { int a; };", P.TYPE_CHANGED, "a"),
    ("struct s { float a[2][3]; };", "struct s { int a[2][3]; };", P.TYPE_CHANGED, "a[][]"),
    ("struct s { int a; };", "struct s { int a[2]; };", P.TYPE_CHANGED, "a"),
    ("struct s { int a; };", "struct s { struct { int x; } a; };", P.TYPE_CHANGED, "a"),
    ("struct s { struct { int x; } a; };", "struct s { union { int x; } a; };", P.TYPE_CHANGED, "a"),
    ("struct s { long double a; };", "struct s { double a; };", P.TYPE_CHANGED, "a"),
    ("struct s { _Complex float a; };", "struct s { _Complex double a; };", P.TYPE_CHANGED, "a"),
    ("struct x; struct y; struct s { struct x *a; };", "struct x; struct y; struct s { struct y *a; };",
     P.POINTEE_CHANGED, "a"),
    ("struct s { void (*a)(int); };", "struct s { void (*a)(long); };", P.POINTEE_CHANGED, "a"),
    ("struct s { void (*a)(int); };", "struct s { void *a; };", P.POINTEE_CHANGED, "a"),
    ("struct s { enum e { A, B } a; };", "struct s { enum e { N, A, B } a; };", P.ENUMERATORS_CHANGED, "a"),
    ("enum e { A, B }; struct s { enum e a; };", "enum f { C, D }; struct s { enum f a; };",
     P.ENUMERATORS_CHANGED, "a"),
    ("struct s { union { int i; float f; } u; int z; };", "struct s { union { long i; float f; } u; int z; };",
     P.UNION_CHANGED, "u"),
    ("struct s { union { int i; float f; } u; };", "struct s { union { int i; } u; };", P.UNION_CHANGED, "u"),
    ("struct s { union { struct { int a; } i; float f; } u; };",
     "struct s { union { struct { int z, a; } i; float f; } u; };", P.UNION_CHANGED, "u"),
    ("struct s { union { int i; float f; }; };", "struct s { int i; };", P.UNION_CHANGED, "i"),
    ("struct s { int i; };", "struct s { union { int i; float f; }; };", P.UNION_CHANGED, "i"),
    ("struct s { int n; char data[]; };", "struct s { long n; char data[]; };", P.FLEXIBLE_ARRAY, ""),
    ("struct s { int n; char data[0]; };", "struct s { long n; char data[0]; };", P.FLEXIBLE_ARRAY, ""),
    ("struct s { int n; };", "struct s { int n; char data[]; };", P.FLEXIBLE_ARRAY, "data"),
    ("struct s { __int128 a; };", "struct s { int a; };", P.NOT_SUPPORTED, "a"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "kind", "field"), REFUSED)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_what_a_person_must_decide_is_asked(
    tmp_path: Path, compiler: str, old: str, new: str, kind: ProblemKind, field: str
) -> None:
    found = between(tmp_path, old, new, compiler)
    assert not isinstance(found, Transformation), found
    assert {(p.kind, p.field, p.file) for p in found} == {(kind, field, "unit.c")}
    assert all(p.line == 1 and p.text for p in found)


def test_the_question_names_both_fields_and_the_line(tmp_path: Path) -> None:
    found = between(tmp_path, "struct s {\n int a;\n};", "struct s {\n\n int b;\n};", "gcc")
    text = (
        "field `a` (int) of struct s is gone, and `b` (int) is where it was: whether it was renamed only a person "
        "knows (katana answer 'struct s.a' b, or --gone)"
    )
    assert found == (Problem(P.POSSIBLE_RENAME, "struct s", "b", text, "unit.c", 3),)


def test_a_rename_that_a_person_confirmed_is_carried_out(tmp_path: Path) -> None:
    texts = "struct s { int a; };", "struct s { long b; };"
    found = between(tmp_path, *texts, "gcc", renames={("s", "a"): "b"})
    assert isinstance(found, Transformation)
    (step,) = found.steps
    assert isinstance(step, Integer)
    assert (step.field, step.source, step.new_bits) == ("b", "a", 64)


def test_a_rename_that_a_person_denied_drops_and_adds(tmp_path: Path) -> None:
    texts = "struct s { int a; };", "struct s { int b; };"
    found = between(tmp_path, *texts, "gcc", renames={("s", "a"): ""})
    assert isinstance(found, Transformation)
    assert found.steps == (Initial(0, 32, "b"), Dropped(0, 32, "a"))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_typedefs_and_qualifiers_are_no_change(tmp_path: Path, compiler: str) -> None:
    old = "typedef long t; struct s { t a; const char *p; };"
    new = "struct s { long long a; char *const volatile p; };"
    made = between(tmp_path, old, new, compiler)
    assert isinstance(made, Transformation)
    assert made.is_identity
    assert made.steps == (Copy(0, 0, 8, "a", "a"), Pointer(8, 8, "char", "p", "p"))


def test_pointers_are_told_also_in_what_did_not_change(tmp_path: Path) -> None:
    inner = "struct in { int a; struct s *up; };"
    old, new = f"{inner} struct s {{ struct in i[3]; }};", f"{inner} struct s {{ int z; struct in i[3]; }};"
    (came, repeat) = steps(tmp_path, old, new)
    assert came == Initial(0, 32, "z")
    body = (Copy(0, 0, 4, "a", "a"), Pointer(8, 8, "struct s", "up", "up"))
    assert repeat == Repeat(3, 8, 16, 0, 16, body, "i[]", "i[]")


def test_an_object_pointer_may_become_opaque(tmp_path: Path) -> None:
    (step,) = steps(tmp_path, "struct s { int *a; };", "struct s { void *a; };")
    assert step == Pointer(0, 0, "int", "a", "a")


def test_what_is_alike_and_holds_no_pointer_is_copied_whole(tmp_path: Path) -> None:
    inner = "struct in { char a; long b; };"
    old, new = f"{inner} struct s {{ struct in i[100]; }};", f"{inner} struct s {{ long z; struct in i[120]; }};"
    found = steps(tmp_path, old, new)
    assert found == (Initial(0, 64, "z"), Copy(8, 0, 1600, "i", "i"), Initial(1608 * 8, 320 * 8, "i[100..119]"))


def test_a_change_deep_inside_is_seen(tmp_path: Path) -> None:
    old = "struct a { short x; }; struct b { struct a a[2]; }; struct s { struct b b[3]; };"
    new = "struct a { int x; }; struct b { struct a a[2]; }; struct s { struct b b[3]; };"
    (outer,) = steps(tmp_path, old, new)
    assert isinstance(outer, Repeat)
    (inner,) = outer.steps
    assert isinstance(inner, Repeat)
    assert (outer.field, inner.field, outer.count, inner.count) == ("b[]", "a[]", 3, 2)


def test_an_array_that_shrinks_drops_its_tail(tmp_path: Path) -> None:
    found = steps(tmp_path, "struct s { short n[5]; };", "struct s { short n[3]; };")
    assert found == (Copy(0, 0, 6, "n", "n"), Dropped(48, 32, "n[3..4]"))


def test_rows_of_an_array_of_arrays_may_grow(tmp_path: Path) -> None:
    made = between(tmp_path, "struct s { char n[2][3]; };", "struct s { char n[2][4]; };", "gcc")
    assert isinstance(made, Transformation)
    assert apply(made, b"abcdef", b"........") == b"abc.def."


def test_a_union_that_gained_a_member_is_copied_whole(tmp_path: Path) -> None:
    old = "struct s { int z; union { int i; void *p; }; };"
    new = "struct s { union { int i; void *p; char c[24]; }; int z; };"
    found = steps(tmp_path, old, new)
    assert found == (
        Copy(0, 8, 8, "(anonymous 1)", "(anonymous 1)"),
        Copy(24, 0, 4, "z", "z"),
    )


def test_anonymous_unions_are_known_by_their_members_when_one_came_before(tmp_path: Path) -> None:
    old = "struct s { union { int i; float f; }; };"
    new = "struct s { union { long l; double d; }; union { int i; float f; }; };"
    found = steps(tmp_path, old, new)
    assert found == (Initial(0, 64, "(anonymous 1)"), Copy(8, 0, 4, "(anonymous 2)", "(anonymous 1)"))


def test_fields_go_into_and_out_of_anonymous_structs(tmp_path: Path) -> None:
    old, new = "struct s { int a; struct { long b; int c; }; };", "struct s { struct { int c, a; }; long b; };"
    found = [(x.field, x.new, x.old) for x in steps(tmp_path, old, new) if isinstance(x, Copy)]
    assert found == [("c", 0, 16), ("a", 4, 0), ("b", 8, 8)]


def test_enum_that_gained_an_enumerator_widens_by_its_sign(tmp_path: Path) -> None:
    old = "enum __attribute__((packed)) e { A = -1, B }; struct s { enum e a; };"
    new = "enum e { A = -1, B, C = 70000 }; struct s { enum e a; };"
    made = between(tmp_path, old, new, "gcc")
    assert isinstance(made, Transformation)
    assert apply(made, b"\xff", bytes(4)) == b"\xff\xff\xff\xff"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_variables_of_every_kind(tmp_path: Path, compiler: str) -> None:
    made = of_variable(tmp_path, "int v = -5;", "long v;", compiler)
    assert isinstance(made, Transformation)
    assert apply(made, struct.pack("<i", -5), bytes(8)) == struct.pack("<q", -5)
    made = of_variable(tmp_path, "float v[2] = {1.5, -2};", "double v[3];", compiler)
    assert isinstance(made, Transformation)
    assert made.steps[0] == Repeat(2, 0, 8, 0, 4, (Float(0, 8, 0, 4),), "[]", "[]")
    assert apply(made, struct.pack("<2f", 1.5, -2), bytes(24)) == struct.pack("<3d", 1.5, -2, 0)
    made = of_variable(tmp_path, "struct t { int *a; } v[2];", "struct t { long z; int *a; } v[4];", compiler)
    assert isinstance(made, Transformation)
    assert made.name == "v"
    assert apply(made, b"A" * 8 + b"B" * 8, bytes(64)) == bytes(8) + b"A" * 8 + bytes(8) + b"B" * 8 + bytes(32)


def test_a_field_that_is_called_like_a_vtable_is_none(tmp_path: Path) -> None:
    found = steps(tmp_path, "struct s { int my_vptr; long z; };", "struct s { long z; };")
    assert found == (Copy(0, 8, 8, "z", "z"), Dropped(0, 32, "my_vptr"))


def test_an_unchanged_open_array_is_no_question(tmp_path: Path) -> None:
    text = "struct s { struct s *next; char data[]; };"
    assert steps(tmp_path, text, text) == (Pointer(0, 0, "struct s", "next", "next"),)


CPP = [("g++", "-gdwarf-5"), ("clang++", "-gdwarf-5"), ("g++", "-gdwarf-4")]


@pytest.mark.parametrize("command", CPP, ids=" ".join)
def test_bases_are_moved_field_by_field(tmp_path: Path, command: tuple[str, ...]) -> None:
    """`c` lies in the padding of the base: copying the base whole would carry its old neighbour along."""
    old = "struct B { long l; short s; virtual ~B(); }; B::~B() {} struct M { int m; };"
    old += "struct s : B, M { char c; ~s(); }; s::~s() {}"
    new = old.replace("long l;", "long l, k;").replace("char c;", "char z; int c;")
    found = steps(tmp_path, old, new, *command)
    moved = {x.field: (x.new, x.old) for x in found if isinstance(x, Copy)}
    assert moved == {"(B).l": (8, 8), "(B).s": (24, 16), "(M).m": (28, 20)}
    (vtable,) = (x for x in found if isinstance(x, Pointer))
    assert (vtable.new, vtable.old) == (0, 0)
    assert [x.field for x in found if isinstance(x, Initial)] == ["(B).k", "z"]
    (c,) = (x for x in found if isinstance(x, Integer))
    assert (c.field, c.old, c.new, c.new_bits) == ("c", 24 * 8, 36 * 8, 32)


@pytest.mark.parametrize("command", CPP, ids=" ".join)
def test_an_empty_class_is_no_field_and_shares_its_byte(tmp_path: Path, command: tuple[str, ...]) -> None:
    """As in std::unique_ptr: pointer and stateless deleter begin in one byte."""
    parts = "struct E {}; struct F {}; struct H { [[no_unique_address]] E e; }; struct P { int *p; };"
    old = f"{parts} struct s : H, P {{ [[no_unique_address]] E gone; short n; }};"
    new = f"{parts} struct s : H, P {{ [[no_unique_address]] F came; int n; }};"
    pointer, number = steps(tmp_path, old, new, *command, "-std=c++20")
    assert pointer == Pointer(0, 0, "int", "(P).p", "(P).p")
    assert isinstance(number, Integer)
    assert (number.field, number.new, number.old) == ("n", 64, 64)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("struct A { int a; }; struct B { int b; }; struct s : A {};",
         "struct A { int a; }; struct B { int b; }; struct s : A, B {};", P.BASES_CHANGED),
        ("struct A { int a; }; struct s : virtual A { s(); }; s::s() {}",
         "struct A { int a; }; struct s : virtual A { s(); int z; }; s::s() {}", P.VIRTUAL_BASE),
        ("struct s { int a; };", "struct s { int a; virtual void f(); }; void s::f() {}", P.VTABLE_CHANGED),
        ("struct s { int a; };", "struct s { int a; int &r; };", P.NO_VALUE),
        ("struct V { virtual void f(); }; void V::f() {} struct s { V v[1]; };",
         "struct V { virtual void f(); }; void V::f() {} struct s { V v[2]; };", P.NO_VALUE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", CPP, ids=" ".join)
def test_classes_that_only_a_person_can_carry_over(
    tmp_path: Path, command: tuple[str, ...], old: str, new: str, kind: ProblemKind
) -> None:
    found = between(tmp_path, old, new, *command)
    assert not isinstance(found, Transformation), found
    assert {p.kind for p in found} == {kind}


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_variable_of_a_nameless_struct(tmp_path: Path, compiler: str) -> None:
    old = "static struct { int hits; struct { short s; } in; } v[2]; int use(void) { return v[1].hits++; }"
    new = "static struct { long hits; struct { int s; } in; } v[2]; long use(void) { return v[1].hits++; }"
    made = of_variable(tmp_path, old, new, compiler)
    assert isinstance(made, Transformation)
    found = apply(made, struct.pack("<ihxxihxx", -1, 2, 3, -4), bytes(32))
    assert found == struct.pack("<qixxxxqixxxx", -1, 2, 3, -4)
