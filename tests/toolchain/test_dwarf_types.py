"""Type layouts of compiled objects, against gdb and against the same source compiled otherwise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from katana_cc.dwarf.changes import ChangeKind, compare_layouts
from katana_cc.dwarf.forms import Encoding, Form
from katana_cc.dwarf.types import TypeKind, TypeLayout, layouts
from katana_cc.dwarf.variables import variables
from tests.support.dwarf import build, compile_object, gdb_types, read

C_BUILDS = [(c, v) for c in ("gcc", "clang") for v in ("-gdwarf-4", "-gdwarf-5")]
CPP_BUILDS = [(c, v) for c in ("g++", "clang++") for v in ("-gdwarf-4", "-gdwarf-5")]

SHAPES = r"""
#include <stddef.h>
typedef unsigned long long u64;
typedef struct { int a; char b : 3; unsigned c : 5; } pair_t;
struct node;
struct request {
    struct { int x, y; } at;
    union { int u; float f; };
    struct node *next, *const *volatile table[2][3];
    pair_t pairs[3];
    enum { LOW, HIGH = 5, NEGATIVE = -2 } level;
    void (*done)(int, const char *, ...);
    int (*(*lookup)(void))[4];
    u64 stamp;
    const size_t length;
    _Bool flag;
    long double wide;
    char tail[];
};
union word { char bytes[8]; long value; };
struct __attribute__((packed)) packed { char c; long l; short s : 9; };
enum color { RED, GREEN = 7 };
struct request *a; union word b; struct packed c; enum color d;
struct { int n; struct { short s; } inner; } counters;
"""


def random_source(seed: int, count: int) -> str:
    """Structs with bit-fields, nesting, arrays, packing and alignment, each used by a global."""
    chance = random.Random(seed)
    scalars = ("char", "short", "int", "long", "unsigned char", "unsigned", "float", "double", "_Bool", "void *")
    lines = []
    for number in range(count):
        fields = []
        for i in range(chance.randint(1, 9)):
            kind = chance.random()
            if kind < 0.3:
                base, most = chance.choice((("int", 32), ("unsigned char", 8), ("long", 64), ("short", 16)))
                fields.append(f"{base} f{i} : {chance.randint(1, most)};")
            elif kind < 0.4 and number:
                fields.append(f"struct s{chance.randrange(number)} f{i};")
            elif kind < 0.5:
                fields.append(f"{chance.choice(scalars)} f{i}[{chance.randint(1, 5)}][2];")
            elif kind < 0.55:
                fields.append("int : 0;")
            else:
                align = chance.choice(("", "", "", "__attribute__((aligned(16))) "))
                fields.append(f"{align}{chance.choice(scalars)} f{i};")
        packed = chance.choice(("", "", "__attribute__((packed)) "))
        keyword = chance.choice(("struct", "struct", "struct"))
        lines.append(f"{keyword} {packed}s{number} {{ {' '.join(fields)} int last; }}; struct s{number} v{number};")
    return "\n".join(lines)


def agree(layout: TypeLayout, known: dict[str, object]) -> Iterator[str]:
    """Where a layout differs from gdb's answer."""
    if layout.size != known["size"]:
        yield f"{layout.name}: size {layout.size}, gdb {known['size']}"
    if layout.kind is TypeKind.ENUM:
        if [[e.name, e.value] for e in layout.enumerators] != known["values"]:
            yield f"{layout.name}: {layout.enumerators}, gdb {known['values']}"
        return
    ours = [
        ["" if m.name.startswith("(anonymous") else m.name, m.bit_offset, m.bit_size or 0, m.size]
        for m in layout.members
    ]
    if ours != known["fields"]:
        yield f"{layout.name}: {ours}, gdb {known['fields']}"


@pytest.mark.parametrize("command", C_BUILDS, ids=" ".join)
@pytest.mark.parametrize("source", [SHAPES, random_source(1, 60), random_source(2, 60)], ids=["shapes", "one", "two"])
def test_layouts_agree_with_gdb(tmp_path: Path, command: tuple[str, ...], source: str) -> None:
    path = compile_object(tmp_path, source, *command)
    found = {k: v for k, v in layouts(read(path)).items() if "." not in k and "(" not in k}
    spelled = {k: k if k.endswith("_t") else f"{v.kind} {k}" for k, v in found.items()}
    known = gdb_types(path, list(spelled.values()))
    assert len(found) >= 5
    assert [w for k, layout in found.items() for w in agree(layout, known[spelled[k]])] == []


@pytest.mark.parametrize("command", C_BUILDS, ids=" ".join)
def test_canonical_texts(tmp_path: Path, command: tuple[str, ...]) -> None:
    request = layouts(build(tmp_path, SHAPES, *command))["request"]
    texts = {m.name: m.type for m in request.members}
    assert texts == {
        "at": "struct request.at",
        "(anonymous 1)": "union request.(anonymous 1)",
        "next": "struct node *",
        "table": "struct node **[2][3]",
        "pairs": "struct pair_t[3]",
        "level": "enum request.level",
        "done": "void (*)(int, char *, ...)",
        "lookup": "int (*(*)(void))[4]",
        "stamp": "unsigned long",
        "length": "unsigned long",
        "flag": "bool",
        "wide": "long double",
        "tail": "char[]",
    }


@pytest.mark.parametrize("command", C_BUILDS, ids=" ".join)
def test_members_name_the_aggregate_they_hold(tmp_path: Path, command: tuple[str, ...]) -> None:
    found = layouts(build(tmp_path, SHAPES, *command))
    held = {m.name: m.aggregate for m in found["request"].members if m.aggregate}
    expected = {
        "at": "request.at",
        "(anonymous 1)": "request.(anonymous 1)",
        "pairs": "pair_t",
        "level": "request.level",
    }
    assert held == expected
    assert set(held.values()) <= found.keys()


def test_definition_place_is_told(tmp_path: Path) -> None:
    request = layouts(build(tmp_path, SHAPES, "gcc", "-g"))["request"]
    line = SHAPES.split("\n").index("struct request {") + 1
    assert (request.file, request.line) == ("unit.c", line)
    assert next(m.line for m in request.members if m.name == "pairs") == line + 4


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_spelling_of_a_type_is_no_change(tmp_path: Path, compiler: str) -> None:
    old = "typedef long id_t; struct s { long a; const char *p; id_t i; unsigned long n; } v;"
    new = "typedef long long number; struct s { long long a; char *const volatile p; number i; __SIZE_TYPE__ n; } v;"
    before = layouts(build(tmp_path, old, compiler, "-g"))
    after = layouts(build(tmp_path, new, compiler, "-g", "-gdwarf-4"))
    assert compare_layouts(before, after) == ()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("struct s { int a; } v;", "struct s { int a, b; } v;", {ChangeKind.SIZE_CHANGED, ChangeKind.FIELD_ADDED}),
        ("struct s { int a, b; } v;", "struct s { int b, a; } v;", {ChangeKind.FIELD_MOVED}),
        ("struct s { int a; } v;", "struct s { unsigned a; } v;", {ChangeKind.FIELD_TYPE_CHANGED}),
        ("struct s { int *a; } v;", "struct s { long *a; } v;", {ChangeKind.FIELD_TYPE_CHANGED}),
        ("struct s { int a:3; } v;", "struct s { int a:4; } v;", {ChangeKind.FIELD_TYPE_CHANGED}),
        ("struct s { char c; int a; } v;", "struct __attribute__((packed)) s { char c; int a; } v;",
         {ChangeKind.SIZE_CHANGED, ChangeKind.FIELD_MOVED}),
        ("struct s { int a; } v;", "struct __attribute__((aligned(64))) s { int a; } v;", {ChangeKind.SIZE_CHANGED}),
        ("struct s { void (*f)(int); } v;", "struct s { void (*f)(long); } v;", {ChangeKind.FIELD_TYPE_CHANGED}),
        ("struct s { int a[4]; } v;", "struct s { int a[5]; } v;",
         {ChangeKind.SIZE_CHANGED, ChangeKind.FIELD_TYPE_CHANGED}),
        ("struct s { union { int i; } u; int z; } v;", "struct s { union { int i; float f; } u; int z; } v;",
         {ChangeKind.FIELD_ADDED}),
        ("enum e { A, B } v;", "enum e { N, A, B } v;",
         {ChangeKind.ENUMERATOR_ADDED, ChangeKind.ENUMERATOR_VALUE_CHANGED}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compiled_change_is_found(tmp_path: Path, compiler: str, old: str, new: str, expected: set[ChangeKind]) -> None:
    before, after = (layouts(build(tmp_path, text, compiler, "-g")) for text in (old, new))
    assert {c.kind for c in compare_layouts(before, after)} == expected


def test_change_inside_a_nameless_member_is_reported_once_and_there(tmp_path: Path) -> None:
    old = "struct s { struct { int a; int b; } in; } v;"
    new = "struct s { struct { int a; float b; } in; } v;"
    before, after = (layouts(build(tmp_path, text, "gcc", "-g")) for text in (old, new))
    (change,) = compare_layouts(before, after)
    assert change.text == "field `b` of struct s.in was int, is float"


def test_recursive_types_have_finite_texts(tmp_path: Path) -> None:
    source = "struct b; struct a { struct b *p; void (*f)(struct a); }; struct b { struct a x; struct b *n; } v;"
    found = layouts(build(tmp_path, source, "gcc", "-g"))
    assert [m.type for m in found["a"].members] == ["struct b *", "void (*)(struct a)"]


def test_same_name_in_two_blocks_keeps_both(tmp_path: Path) -> None:
    blocks = "{ struct l { int a; } x = {n}; n += x.a; } { struct l { long b; } y = {n}; n += y.b; }"
    source = f"int f(int n) {{ {blocks} return n; }}"
    found = layouts(build(tmp_path, source, "gcc", "-g"))
    assert [(k, v.size) for k, v in found.items()] == [("f()::l", 4), ("f()::l#2", 8)]


CPP = r"""
namespace ns {
struct Base { int b; virtual ~Base(); };
Base::~Base() {}
template <class T, int N> struct Box { T held[N]; static int count; };
struct Left : Base { int l; };
struct Both : Left, Box<char, 3> { struct Inner { char c; long l; } in; int bits : 3; int Both::*member; };
struct Virtual : virtual Base { int v; };
}
namespace { struct Hidden { int h; int &r; int &&rr; }; }
enum class Mode : unsigned char { Off, On = 9 };
ns::Both both; ns::Virtual virt; Mode mode;
int use(Hidden *h) { struct Local { int q; } l = {h->h}; return l.q; }
int main() { return use(0); }
"""


@pytest.mark.parametrize("command", CPP_BUILDS, ids=" ".join)
def test_cpp_layouts_agree_with_gdb(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = compile_object(tmp_path, CPP, *command, name="unit.cc")
    found = {k: v for k, v in layouts(read(path)).items() if "()" not in k and "va_list" not in k}
    known = gdb_types(path, list(found))
    assert {"ns::Both", "ns::Both::Inner", "ns::Virtual", "Mode", "(anonymous namespace)::Hidden"} <= found.keys()
    for layout in found.values():
        if layout.kind is TypeKind.ENUM:  # gdb says Mode::On
            assert [e.value for e in layout.enumerators] == [0, 9]
        elif layout.kind is TypeKind.STRUCT:
            assert list(agree(layout, known[layout.name])) == []


@pytest.mark.parametrize("command", CPP_BUILDS, ids=" ".join)
def test_cpp_bases_and_local_types(tmp_path: Path, command: tuple[str, ...]) -> None:
    found = layouts(build(tmp_path, CPP, *command, name="unit.cc"))
    assert [(b.name, b.offset) for b in found["ns::Both"].bases] == [
        ("struct ns::Left", 0),
        ("struct ns::Box<char, 3>", 16),
    ]
    assert [b.offset for b in found["ns::Virtual"].bases] == [-1]
    assert "use()::Local" in found


@pytest.mark.parametrize("command", CPP_BUILDS, ids=" ".join)
def test_type_units_give_the_same_layouts(tmp_path: Path, command: tuple[str, ...]) -> None:
    """With -fdebug-types-section definitions lie in units of their own; what is laid out does not change."""
    plain = layouts(build(tmp_path, CPP, *command, name="unit.cc"))
    split = layouts(build(tmp_path, CPP, *command, "-fdebug-types-section", name="unit.cc"))
    assert {k: (v.shape, v.file, v.line) for k, v in plain.items()} == {
        k: (v.shape, v.file, v.line) for k, v in split.items() if k in plain
    }


def test_type_behind_a_handle_has_a_layout(tmp_path: Path) -> None:
    """`typedef struct { ... } *handle;` names no struct; left out, a change of what handles point at would pass."""
    old = "typedef struct { int a; } *handle; int f(handle h) { return h->a; }"
    new = "typedef struct { long z; int a; } *handle; int f(handle h) { return h->a; }"
    before, after = (layouts(build(tmp_path, text, "gcc", "-g")) for text in (old, new))
    grown = compare_layouts(before, after)[0]
    assert grown.text == "struct (*handle) grew from 4 to 16 bytes: new field `z` at offset 0"


def test_tag_and_typedef_of_one_name_are_both_kept(tmp_path: Path) -> None:
    source = "typedef struct { int a; } item; struct item { long b; }; item one; struct item two;"
    found = layouts(build(tmp_path, source, "gcc", "-g"))
    assert sorted((k, v.size) for k, v in found.items()) == [("item", 4), ("item#2", 8)]


def test_texts_that_double_at_each_level_stay_short_and_exact(tmp_path: Path) -> None:
    def source(innermost: str) -> str:
        levels = [
            f"typedef void f0({innermost});",
            *(f"typedef void f{i}(f{i - 1} *, f{i - 1} *);" for i in range(1, 40)),
        ]
        return " ".join(levels) + " struct s { f39 *call; } v;"

    one, same, other = (layouts(build(tmp_path, source(t), "gcc", "-g"))["s"] for t in ("int", "int", "long"))
    assert len(one.members[0].type) < 10_000
    assert one.members[0].type == same.members[0].type != other.members[0].type


FORMS = r"""
#include <stddef.h>
typedef short row_t[4];
enum plain { ONE, TWO }; enum minus { M = -1, N }; enum __attribute__((packed)) small { S };
struct all {
    const unsigned char u; char c; _Bool b; double d; float f; long double x; float _Complex z;
    row_t grid[3]; int (*to_array)[4]; void (*call)(int); void *any; struct all *next[2]; char *volatile names[2][3];
    enum plain p; enum minus m; enum small s; __int128 wide; wchar_t w;
    struct { int i; } in[5]; int bit : 3; unsigned ubit : 2;
    int __attribute__((vector_size(16))) v;
    long tail[];
} *a;
"""
S, U, B, P = Encoding.SIGNED, Encoding.UNSIGNED, Encoding.BOOL, Encoding.POINTER


@pytest.mark.parametrize("command", C_BUILDS, ids=" ".join)
def test_forms_say_what_kind_of_value_a_member_is(tmp_path: Path, command: tuple[str, ...]) -> None:
    found = {m.name: m.form for m in layouts(build(tmp_path, FORMS, *command))["all"].members}
    assert found == {
        "u": Form(U, 1),
        "c": Form(S, 1),
        "b": Form(B, 1),
        "d": Form(Encoding.FLOAT, 8),
        "f": Form(Encoding.FLOAT, 4),
        "x": Form(Encoding.OTHER, 16),
        "z": Form(Encoding.OTHER, 8),
        "grid": Form(S, 2, (3, 4)),
        "to_array": Form(P, 8, (), "int[4]"),
        "call": Form(P, 8, (), "void(int)"),
        "any": Form(P, 8, (), "void"),
        "next": Form(P, 8, (2,), "struct all"),
        "names": Form(P, 8, (2, 3), "char"),
        "p": Form(U, 4),
        "m": Form(S, 4),
        "s": Form(U, 1),
        "wide": Form(S, 16),
        "w": Form(S, 4),
        "in": Form(Encoding.AGGREGATE, 4, (5,)),
        "bit": Form(S, 4),
        "ubit": Form(U, 4),
        "v": Form(Encoding.OTHER, 16),
        "tail": Form(S, 8, (None,)),
    }


@pytest.mark.parametrize("command", C_BUILDS, ids=" ".join)
def test_forms_of_variables(tmp_path: Path, command: tuple[str, ...]) -> None:
    source = "unsigned short table[7]; static struct s { int a; } *head; struct s *use(void) { return head++; }"
    found = {v.name: v.form for v in variables(build(tmp_path, source, *command))}
    assert found == {"table": Form(U, 2, (7,)), "head": Form(P, 8, (), "struct s")}


@pytest.mark.parametrize("command", CPP_BUILDS, ids=" ".join)
def test_cpp_forms(tmp_path: Path, command: tuple[str, ...]) -> None:
    source = """
    enum class Small : signed char { A }; enum Big : unsigned long { B };
    struct All { Small s; Big b; int &r; char16_t c16; char32_t c32; int All::*m; void (All::*f)(); };
    int use(All *a) { return a->r; }
    """
    found = {m.name: m.form for m in layouts(build(tmp_path, source, *command, name="unit.cc"))["All"].members}
    assert found == {
        "s": Form(S, 1),
        "b": Form(U, 8),
        "r": Form(P, 8, (), "int"),
        "c16": Form(U, 2),
        "c32": Form(U, 4),
        "m": Form(Encoding.OTHER, 8),
        "f": Form(Encoding.OTHER, 16),
    }
