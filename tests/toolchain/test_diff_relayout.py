"""Variables and types that are laid out otherwise: what is carried over, what is asked of code, what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from katana_cc.errors import FormatError
from katana_cc.patch.model import Basis, DataTransform, Verdict
from katana_cc.report.summary import summarise
from katana_cc.transform.execute import apply
from katana_cc.transform.model import Initial
from tests.support.project import Project, Result, Variant, project_in, project_of
from tests.toolchain.test_diff_code import MAIN, NOINLINE, change

VARIANTS = [
    Variant("gcc", "-O0", "pie"),
    Variant("gcc", "-O2", "pie"),
    Variant("gcc", "-O2", "nopie"),
    Variant("clang", "-O2", "pie", "lld"),
    Variant("clang", "-O0", "nopie", "gold"),
]


project = project_in(VARIANTS)


def moved(result: Result) -> dict[str, DataTransform]:
    """The variables that a patch carries over, by name."""
    return {d.transformation.name: d for d in result.patch.transforms if d.symbol is not None}


def staying(result: Result) -> set[str]:
    """The variables whose pointers are followed."""
    return {d.transformation.name for d in result.patch.transforms if d.symbol is None and not d.is_type}


def needs(result: Result) -> set[tuple[str, str]]:
    """Code and subject of what somebody has to decide."""
    return {(r.code, r.subject) for r in result.patch.reasons if r.severity == "needs"}


STRUCT = "struct stats {{ {} int a; long b; }}; struct stats g = {{ .a = 3, .b = 4 }};"
SERVE = NOINLINE + "int other(int x) {{ return g.a + x; }} int serve(int x) {{ g.b += x; return other(x) + {}; }}"


def test_struct_that_gains_a_field_is_carried_over(project: Project) -> None:
    result = change(project, (STRUCT + SERVE).format("", 0), (STRUCT + SERVE).format("int hits;", "g.hits++"))
    assert result.refusals == []
    assert result.patch.verdict is Verdict.SAFE
    (transform,) = moved(result).values()
    assert (transform.transformation.old_size, transform.transformation.new_size) == (16, 16)
    assert [s.field for s in transform.transformation.steps if isinstance(s, Initial)] == ["hits"]
    # Every function that uses it is other code or leads elsewhere.
    touched = {e.name.partition("+")[0] for e in result.patch.data_edits} | set(result.replaced)
    assert touched >= {"other", "serve"}


def test_what_only_uses_a_variable_that_moves_stays_where_it_is(project: Project) -> None:
    """A field at the end: code that uses the first ones is the same, and need not be left by its threads."""
    struct = "struct stats {{ int a; long b; {} }}; struct stats g = {{ .a = 3, .b = 4 }};"
    result = change(project, (struct + SERVE).format("", 0), (struct + SERVE).format("int hits;", "g.hits++"))
    assert result.refusals == []
    assert result.replaced == ["serve"]
    edits = [e for e in result.patch.data_edits if e.name.startswith("other+")]
    assert edits
    assert all(result.patch.sections[e.replacement].size == 4 for e in edits)


def test_main_that_uses_it_need_not_be_left(tmp_path: Path) -> None:
    struct = "struct stats { long a, b; %s }; extern struct stats g; int serve(int);"
    main = '#include "s.h"\nint main(void) { while (serve(g.b)) {} return 0; }'
    serve = '#include "s.h"\nstruct stats g; int serve(int x) { return %s; }'
    result = Project(tmp_path).change(
        {"s.h": struct % "", "main.c": main, "a.c": serve % "x * 7 + x % 5"},
        {"s.h": struct % "int hits;", "a.c": serve % "g.hits += x"},
    )
    assert result.refusals == []
    assert needs(result) == set()
    assert {e.name.partition("+")[0] for e in result.patch.data_edits} == {"main"}


def test_code_that_only_leads_to_another_offset_stays(tmp_path: Path) -> None:
    """A field in front: everything behind it moves, and main is never left."""
    struct = "struct stats { %s long a, b; }; extern struct stats g; int serve(int);"
    main = '#include "s.h"\nint main(void) { while (serve(g.b)) {} return 0; }'
    serve = '#include "s.h"\nstruct stats g; int serve(int x) { return %s; }'
    result = Project(tmp_path).change(
        {"s.h": struct % "", "main.c": main, "a.c": serve % "x * 7 + x % 5"},
        {"s.h": struct % "long hits;", "a.c": serve % "g.hits += x"},
    )
    assert result.refusals == []
    assert needs(result) == set()
    assert result.replaced == ["serve"]
    assert {e.name.partition("+")[0] for e in result.patch.data_edits} == {"main"}


def test_code_that_leads_to_another_field_is_replaced(plain: Project) -> None:
    """It must not be active: half of it would use the one field, half the other."""
    source = "struct s {{ long a, b; {} }} g; int serve(int x) {{ g.{} += x; return x * 3; }}"
    result = change(plain, source.format("", "a"), source.format("long c;", "b"))
    assert result.replaced == ["serve"]
    result = change(plain, source.format("", "b"), source.format("long c;", "b"))
    assert result.replaced == []


@pytest.mark.parametrize("storage", ["", "static "])
def test_array_that_grows_is_carried_over(project: Project, storage: str) -> None:
    source = storage + "int tab[{0}]; int n; int serve(int x) {{ tab[n++ % {0}] += x; return tab[0]; }}"
    result = change(project, source.format(4), source.format(9))
    assert result.refusals == []
    (transform,) = moved(result).values()
    assert (transform.transformation.old_size, transform.transformation.new_size) == (16, 36)
    assert result.patch.verdict is Verdict.SAFE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("int a, b;", "int a; long n; int b;"),
        ("int a, b;", "int b, a;"),
        ("int a, b;", "int a; long b;"),
        ("int a:3, b:5;", "int a:4, b:4;"),
        ("char a; int b;", "char a; int b __attribute__((packed));"),
    ],
)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_fields_that_move_widen_or_are_packed(tmp_path: Path, compiler: str, before: str, after: str) -> None:
    source = "struct s {{ {} }} v; int serve(int x) {{ return v.b + x * 33; }}"
    result = change(project_of(tmp_path, Variant(compiler, "-O2", "pie")), source.format(before), source.format(after))
    assert result.refusals == []
    assert list(moved(result)) == ["v"]
    assert result.patch.verdict is Verdict.SAFE


def test_static_of_a_function_is_carried_over(project: Project) -> None:
    source = "int serve(int x) {{ static volatile struct {{ int a; {} }} s = {{ 5 }}; return s.a += x + {}; }}"
    result = change(project, source.format("", 0), source.format("int b;", "s.b++"))
    assert result.refusals == []
    assert list(moved(result)) == ["serve()::s"]


def test_variable_that_widens_is_carried_over(project: Project) -> None:
    source = "static {} n = -5; int serve(int x) {{ n += x; return n >> 3; }}"
    result = change(project, source.format("int"), source.format("long"))
    assert result.refusals == []
    assert list(moved(result)) == ["n"]


def test_other_name_of_the_same_type_moves_nothing(plain: Project) -> None:
    source = "static {} n = 5; int serve(int x) {{ n += x; return n % {}; }}"
    result = change(plain, source.format("int", 3), source.format("unsigned", 5))
    assert result.refusals == []
    assert moved(result) == {}


def test_pointers_that_other_variables_hold_are_named(project: Project) -> None:
    more = "int *into = &g.a; struct stats *whole = &g; struct {{ struct stats *in[3]; }} held; "
    use = "int serve(int x) {{ *into += x; whole->b++; held.in[x % 3] = whole; return other(x) + {}; }}"
    other = NOINLINE + "int other(int x) {{ return g.a + x; }}"
    source = STRUCT + more + other + use
    result = change(project, source.format("", 0), source.format("int hits;", "g.hits++"))
    assert result.refusals == []
    assert staying(result) == {"into", "whole", "held"}
    # There is a pointer type, so that there may be other objects, which are found by it.
    assert result.about("type-walked") == ["struct stats"]


def test_opaque_pointer_needs_a_decision(plain: Project) -> None:
    source = (
        "struct stats {{ int a; {} }} g; void *opaque = &g; int serve(int x) {{ return (g.a += x) + {} + !opaque; }}"
    )
    result = change(plain, source.format("", 0), source.format("int hits;", "g.hits++"))
    assert result.refusals == []
    assert needs(result) == {("pointer-opaque", "g")}


def test_bytes_that_may_be_two_things_are_refused(plain: Project) -> None:
    """It may be a pointer to `g.a`, or one to `g`."""
    source = "struct s {{ {} int a; }} g; char *p = (char *)&g; int serve(int x) {{ return (g.a += x) + {} + *p; }}"
    result = change(plain, source.format("", 0), source.format("int hits;", "g.hits++"))
    assert "data-pointers-changed" in refused(result)


def test_typed_pointer_to_what_is_converted_is_refused(plain: Project) -> None:
    """It would read half of the new field, and write only half."""
    source = (
        "struct stats {{ int a; {} b; }} g; int *into = (int *)&g.b; "
        "int serve(int x) {{ return (g.a += x) + *into + {}; }}"
    )
    result = change(plain, source.format("int", 0), source.format("long", "g.b"))
    assert "data-pointers-changed" in refused(result)


def test_local_variable_of_a_function_that_is_replaced(plain: Project) -> None:
    """There is none when the patch is applied, if the function must not be active then."""
    source = STRUCT + "int serve(int x) {{ struct stats mine = g; mine.a += x; g = mine; return g.a + {}; }}"
    result = change(plain, source.format("", 0), source.format("int hits;", "g.hits"))
    assert result.refusals == []
    assert needs(result) == set()
    assert ("serve", "struct stats") in unallowed(result)


@pytest.mark.parametrize("inline", [False, True])
def test_local_variable_of_a_function_that_stays_needs_a_decision(plain: Project, inline: bool) -> None:
    """Its code is the same, and its object has the old layout if it is active."""
    body = "{ struct stats mine; fill(&mine, x); return mine.a; } "
    more = ("static inline __attribute__((always_inline)) " if inline else NOINLINE) + "int other(int x) " + body
    use = "int serve(int x) { return other(x + 1); } "
    fill = NOINLINE + "void fill(struct stats *p, int x) { p->a = x; p->b += x; p->c -= x; g = *p; }"
    source = "struct stats { long a; %s }; struct stats g = { 3 }; void fill(struct stats *p, int x); "
    before, after = ((source % fields) + more + use + fill for fields in ("int b; int c;", "int c; int b;"))
    result = change(plain, before, after)
    assert result.refusals == []
    assert result.replaced == ["fill"]
    assert needs(result) == {("type-changed-elsewhere", "struct stats")}
    (told,) = [r.text for r in result.patch.reasons if r.severity == "needs"]
    assert f"`mine` of {'serve' if inline else 'other'} is one" in told


def unallowed(result: Result) -> set[tuple[str, str]]:
    """(function, type) of those that must not be active, since they may use objects of the type."""
    return {
        (result.patch.replacements[r.caller].name, r.through)
        for r in result.patch.reliances
        if r.basis is Basis.TYPE_CHANGED
    }


def test_variable_that_nothing_writes_is_in_no_frame(plain: Project) -> None:
    """The compiler keeps no storage for it."""
    source = "struct s {{ int a; {} }}; static struct s never; int serve(int x) {{ return x * 33 + never.a + {}; }}"
    result = change(plain, source.format("", "1"), source.format("int b;", "never.b + 2"))
    assert result.refusals == []
    assert needs(result) == set()


def refused(result: Result) -> set[str]:
    """The codes of what was refused."""
    return {code for code, _ in result.refusals}


def test_renamed_field_is_asked_about(plain: Project) -> None:
    source = "struct s {{ int {0}; }}; static struct s g = {{ 3 }}; int serve(int x) {{ return g.{0} += x * {1}; }}"
    result = change(plain, source.format("a", 1), source.format("b", 3))
    assert refused(result) == {"type-changed", "variable-type-changed"}
    assert any("rename" in r.text for r in result.patch.reasons)


def test_common_variable_is_refused(tmp_path: Path) -> None:
    """The linker chooses its place; there is no section of its own."""
    source = "struct s {{ {} }} v; int tab[{}]; int serve(int x) {{ return v.b += tab[0] += x; }}"
    project = Project(tmp_path, Variant("gcc", "-O2", "pie", compile_flags=("-fcommon",)))
    result = change(project, source.format("int a, b;", 4), source.format("int b, a;", 5))
    assert {("data-resized", "v"), ("data-resized", "tab")} <= set(result.refusals)


def test_exported_variable_is_refused(tmp_path: Path) -> None:
    project = Project(tmp_path, Variant("gcc", "-O2", "shared"))
    result = change(project, (STRUCT + SERVE).format("", 0), (STRUCT + SERVE).format("int hits;", "g.hits++"))
    assert "data-resized" in refused(result)


def test_variable_that_a_program_exports_needs_a_decision(plain: Project) -> None:
    sources = ((STRUCT + SERVE).format("", 0), (STRUCT + SERVE).format("int hits;", "g.hits++"))
    result = change(plain, *sources, link_flags=["-rdynamic"])
    assert result.refusals == []
    assert needs(result) == {("data-exported", "g")}


def test_thread_local_is_refused(plain: Project) -> None:
    source = "static _Thread_local struct {{ int a; {} }} g; int serve(int x) {{ return g.a += x + {}; }}"
    result = change(plain, source.format("", 0), source.format("int b;", "g.b++"))
    assert "thread-local-changed" in refused(result)


def test_table_with_an_element_in_its_midst_is_taken_as_it_is_if_nothing_wrote_to_it(plain: Project) -> None:
    source = "int tab[] = {{ 1, {} 3 }}; int serve(int x) {{ tab[0] += x; return tab[x & 1]; }}"
    result = change(plain, source.format(""), source.format("2,"))
    assert not result.refusals
    assert result.about("table-taken-over") == ["tab"]
    (condition,) = [e for e in result.patch.data_edits if e.name == "tab"]
    assert condition.is_condition
    assert summarise(result.patch).rewritten == ()
    assert result.patch.sections[condition.expected].data == struct.pack("<2i", 1, 3)
    (move,) = [d.transformation for d in result.patch.transforms if d.symbol is not None]
    assert apply(move, struct.pack("<2i", 1, 3), struct.pack("<3i", 1, 2, 3)) == struct.pack("<3i", 1, 2, 3)


def test_one_pointer_that_begins_otherwise_is_no_table(plain: Project) -> None:
    source = (
        "int a, b; struct s {{ int *at; int n{}; }} s = {{ &{} }}; int serve(int x) {{ s.n += x; return *s.at + b; }}"
    )
    result = change(plain, source.format("", "a"), source.format(", m", "b"))
    assert refused(result) == {"data-pointers-changed"}


def test_pointers_to_data_in_a_table_become_the_new_ones_if_nothing_wrote_to_it(plain: Project) -> None:
    source = "int a, b; int *tab[] = {{ &a, &{} }}; int serve(int x) {{ return *tab[x & 1] + b; }}"
    result = change(plain, source.format("a"), source.format("b"))
    assert not result.refusals
    assert result.about("table-taken-over") == ["tab"]
    assert result.edited == ["tab"]


@pytest.mark.parametrize("field", ["union {{ int (*run)(int); long n; }} u;", "long u;"], ids=["union", "number"])
@pytest.mark.parametrize("side", ["changed", "came"])
def test_address_that_no_type_calls_a_pointer_begins_otherwise(plain: Project, field: str, side: str) -> None:
    """The live one would still be the old one, and nothing would say so."""
    source = (
        "int f(int x) {{ return x * 3; }} int h(int x) {{ return x * 5; }} static volatile struct {{ "
        + field
        + " int a; "
        "{} }} s = {{ {}, 3 }}; int serve(int x) {{ return s.a += x + ((int (*)(int))*(volatile long *)&s.u)(x); }}"
    )
    begins = "{ .run = %s }" if "union" in field else "(long)%s"
    before = begins % "f" if side == "changed" else ("{ .n = 0 }" if "union" in field else "0")
    result = change(plain, source.format("", before), source.format("int b;", begins % "h"))
    assert refused(result) == {"data-pointers-changed"}
    result = change(plain, source.format("", begins % "f"), source.format("int b;", begins % "f"))
    assert refused(result) == set()


def test_variables_that_cannot_be_read_are_no_variables_without_changes(
    plain: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged debug information must stop the diff, not hide what it cannot tell."""

    def damaged(_info: object) -> object:
        raise FormatError("damaged debug information")

    monkeypatch.setattr("katana_cc.diff.relayout.variables", damaged)
    with pytest.raises(FormatError):
        change(plain, (STRUCT + SERVE).format("", 0), (STRUCT + SERVE).format("int hits;", "g.hits++"))


def test_table_with_an_element_at_its_end_is_carried_over(project: Project) -> None:
    source = (
        "static int f(int x) {{ return x * 3; }} static int h(int x) {{ return x * 5; }} "
        "static int (*tab[])(int) = {{ f, h, {} }}; "
        "int serve(int x) {{ if (x == 77) tab[0] = h; return tab[x % (sizeof tab / 8)](x); }}"
    )
    result = change(project, source.format(""), source.format("f"))
    assert result.refusals == []
    assert list(moved(result)) == ["tab"]


def test_removed_function_that_uses_it_and_may_be_called_is_refused(plain: Project) -> None:
    keep = NOINLINE + "static int old(int x) {{ return g.a + x; }} int (*volatile hook)(int); "
    before = STRUCT + keep + "int serve(int x) {{ hook = old; return hook(x) + {}; }}"
    after = STRUCT + "int (*volatile hook)(int); int serve(int x) {{ return (hook ? hook(x) : 1) + {}; }}"
    result = change(plain, before.format("", 0), after.format("int hits;", "g.hits++"))
    assert "removed-code-relies-on-old" in refused(result)


def test_old_code_must_not_go_on_with_the_old_object(plain: Project) -> None:
    result = change(plain, (STRUCT + SERVE).format("", 0), (STRUCT + SERVE).format("int hits;", "g.hits++"))
    found = {(result.patch.replacements[r.caller].name, r.through) for r in result.patch.reliances
             if r.basis is Basis.DATA_MOVED}  # fmt: skip
    assert ("serve", "g") in found


def test_unchanged_object_that_uses_it_by_name(tmp_path: Path) -> None:
    """An object that does not see the type does not change, and leads to the variable all the same."""
    result = Project(tmp_path).change(
        {
            "main.c": MAIN,
            "a.c": "struct s { int a; } g = { 3 }; int look(void); int serve(int x) { g.a += x; return look(); }",
            "b.c": "extern int g; int look(void) { return g; }",
        },
        {"a.c": "struct s { int a, b; } g = { 3 }; int look(void); int serve(int x) { g.b += x; return look(); }"},
    )
    assert result.refusals == []
    assert {e.name.partition("+")[0] for e in result.patch.data_edits} == {"look"}


ALIGNED = "{} long v[2] = {{ 3, 4 }}; int serve(int x) {{ v[0] += x; v[1] -= x; return v[x & 1] + {}; }}"


@pytest.mark.parametrize("storage", ["", "static volatile"])
def test_variable_that_needs_more_alignment_is_made_anew(project: Project, storage: str) -> None:
    """A bug: new code reads it by an instruction that faults where the old one lies."""
    aligned = f"__attribute__((aligned(4096))) {storage}"
    result = change(project, ALIGNED.format(storage, 0), ALIGNED.format(aligned, 1))
    assert result.refusals == []
    (transform,) = moved(result).values()
    assert transform.transformation.is_identity
    assert transform.symbol is not None
    number = result.patch.symbols[transform.symbol].section
    assert number is not None
    assert result.patch.sections[number].alignment == 4096


def test_variable_that_has_the_alignment_by_chance_stays(project: Project) -> None:
    source = "{} long v[32] = {{ 3, 4 }}; int serve(int x) {{ v[0] += x; return v[x & 1] + {}; }}"
    before, after = "__attribute__((aligned(2048)))", "__attribute__((aligned(1024)))"
    result = change(project, source.format(before, 0), source.format(after, 1))
    assert result.refusals == []
    assert moved(result) == {}


def test_constant_that_needs_more_alignment_is_made_anew(project: Project) -> None:
    source = "{} const int t[4] = {{ 3, 4, 5, {} }}; int serve(int x) {{ return t[x & 3]; }}"
    result = change(project, source.format("", 6), source.format("__attribute__((aligned(4096)))", 6))
    assert result.refusals == []
    assert result.about("constant-recreated") == ["t"]


def test_thread_local_that_needs_more_alignment_is_refused(plain: Project) -> None:
    source = "{} _Thread_local long v = 3; int serve(int x) {{ v += x; return v + {}; }}"
    result = change(plain, source.format("", 0), source.format("__attribute__((aligned(64)))", 1))
    assert "thread-local-changed" in refused(result)


KEY = "struct Vb {{ Vb(); virtual long f(long); int {}; }};"
HOME = '#include "v.h"\nVb::Vb() {} long Vb::f(long x) { return x + a * 3 + c; }'


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize(
    ("declared", "used"),
    [
        ("Vb v;", "v"),
        ("static Vb v[2];", "v[x & 1]"),
        ("struct H { long n; Vb in; } v;", "v.in"),
        ("struct D : Vb { D() {} long n; }; D v;", "v"),
    ],
)
def test_class_that_another_object_describes(tmp_path: Path, compiler: str, declared: str, used: str) -> None:
    """A bug: compilers describe a class in one object only, that of its first virtual function, and its variables
    elsewhere are taken for unchanged."""
    project = Project(tmp_path, Variant(compiler, "-O2", "pie"))
    user = (
        f'#include "v.h"\n{declared} extern "C" int serve(int x) {{ {used}.a += x; return {used}.a + {used}.c * %d; }}'
    )
    main = 'extern "C" int serve(int); int main(int c, char **) { return serve(c); }'
    files = {"v.h": KEY.format("a = 3, c = 5"), "main.cc": main, "a.cc": user % 1, "b.cc": HOME}
    flags = {"compile_flags": ("-fno-exceptions",), "link_flags": ("-Wl,--no-as-needed", "-lstdc++")}
    result = project.change(files, {"v.h": KEY.format("c = 5, a = 3"), "a.cc": user % 2}, **flags)
    assert ("variable-type-changed", "v") in result.refusals
    assert any("struct Vb" in r.text and "-femit-class-debug-always" in r.text for r in result.patch.reasons)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_class_that_another_object_describes_as_before(tmp_path: Path, compiler: str) -> None:
    project = Project(tmp_path, Variant(compiler, "-O2", "pie"))
    user = '#include "v.h"\nVb v; extern "C" int serve(int x) { v.a += x; return v.a + v.c * %d; }'
    main = 'extern "C" int serve(int); int main(int c, char **) { return serve(c); }'
    files = {"v.h": KEY.format("a = 3, c = 5"), "main.cc": main, "a.cc": user % 1, "b.cc": HOME}
    flags = {"compile_flags": ("-fno-exceptions",), "link_flags": ("-Wl,--no-as-needed", "-lstdc++")}
    result = project.change(files, {"a.cc": user % 2, "b.cc": HOME.replace("* 3", "* 4")}, **flags)
    assert result.refusals == []
    assert moved(result) == {}


def test_common_variable_that_grows_is_refused(project: Project) -> None:
    """A bug: it has no section, and the diff broke."""
    source = "int tab[{0}]; int serve(int x) {{ tab[x % {0}] += x; return tab[0]; }}"
    result = change(project, source.format(4), source.format(9), compile_flags=["-fcommon"])
    assert ("data-resized", "tab") in result.refusals
    assert any("-fno-common" in r.text for r in result.patch.reasons)


@pytest.mark.parametrize("storage", ["", "__attribute__((used)) static"])
def test_variable_that_nothing_uses_is_carried_over_too(project: Project, storage: str) -> None:
    """A bug: the proof did not find what fills it, and refused the patch.  (A pointer to it may be held on.)"""
    source = "struct s {{ int a; {} }}; {} struct s spare = {{ 7 }}; int serve(int x) {{ return x * {}; }}"
    result = change(project, source.format("", storage, 3), source.format("long more;", storage, 5))
    assert result.refusals == []
    assert list(moved(result)) == ["spare"]
