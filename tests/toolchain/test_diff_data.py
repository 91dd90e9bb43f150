"""Changes of data and of what surrounds it: what is kept, rewritten in place, made anew, or refused, and why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from katana_cc.patch.model import REGISTRATION, BroughtKind
from katana_cc.report.handlers import HandlerRow, handler_rows
from tests.support.project import Build, Project, Result, Variant, project_in, project_of
from tests.toolchain.test_diff_code import MAIN, NOINLINE, change

VARIANTS = [
    Variant("gcc", "-O0", "pie"),
    Variant("gcc", "-O2", "nopie"),
    Variant("gcc", "-O3", "shared"),
    Variant("clang", "-O2", "pie", "lld"),
    Variant("clang", "-Os", "nopie", "gold"),
]


project = project_in(VARIANTS)


# Identity of variables: each test would fail by a carried copy, that is, by a live value lost.


def new_variables(result: object) -> list[str]:
    """Names of the variables a patch brings along."""
    from tests.support.project import Result

    assert isinstance(result, Result)
    return sorted(y.name for y in result.patch.symbols if y.section is not None and y.type == 1)


def test_renumbered_static_keeps_its_value(project: Project) -> None:
    work = NOINLINE + "static int work(int x) {{ static int n = 4; return n += x * {}; }}"
    first = NOINLINE + "static int other(int x) { static int n = 9; return n -= x; }"
    serve = "int serve(int x) { return work(x) - 1; }"
    both = "int serve(int x) { return work(x) - other(x); }"
    result = change(project, work.format(3) + serve, first + work.format(3) + both)
    (new,) = new_variables(result)
    assert "n" in new
    assert result.refusals == []


def test_statics_of_inlined_functions_that_change_places(project: Project) -> None:
    f = "static inline int f(int x) { static int n; return n += x; }"
    g = "static inline int g(int x) { static int n; return n -= x * 7; }"
    result = change(
        project,
        f + g + "int serve(int x) { return f(x) + g(x); }",
        g + f + "int serve(int x) { return g(x) + f(x) + 1; }",
    )
    assert new_variables(result) == []
    assert result.refusals == []


def test_static_of_another_function_is_another_variable(plain: Project) -> None:
    """f's counter went, and g got one of the same name: g must not start with f's value."""
    f = NOINLINE + "int f(int x) {{ {} return x * 33 + {}; }}"
    g = NOINLINE + "int g(int x) {{ {} return x * 99 + {}; }}"
    static = "static int n;"
    result = change(
        plain,
        f.format(static, "n++") + g.format("", 1) + "int serve(int x) { return f(x) + g(x); }",
        f.format("", 2) + g.format(static, "n++") + "int serve(int x) { return f(x) + g(x); }",
    )
    assert new_variables(result) == ["n.0"]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
def test_static_of_a_function_in_place_of_another_is_refused(plain: Project, beside: bool) -> None:
    """Both are inlined into the same caller, so that who uses them does not tell: it may be renamed, or a new one."""
    one = "static int f(int x) { static int n = 3; return n += x; } int serve(int x) { return f(x) + f(x + 1); }"
    two = "static int g(int x) { static int n = 5; return n -= x; } int serve(int x) { return g(x) + g(x + 1); }"
    if beside:
        other = "static int h(int x) { static int n = 9; return n += x; } int more(int x) { return h(x) * 3; }"
        one, two = other + one, other + two
    assert {code for code, _ in change(plain, one, two).refusals} == {"data-ambiguous"}


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("suffix", ["c", "cc"])
@pytest.mark.parametrize("outward", [False, True], ids=["into its function", "out of it"])
def test_static_that_moves_keeps_its_value(tmp_path: Path, compiler: str, suffix: str, outward: bool) -> None:
    """clang and C++ call it otherwise then."""
    project = project_of(tmp_path, Variant(compiler, "-O2", "pie"))
    extern = 'extern "C" ' if suffix == "cc" else ""
    outside = "static volatile int n = 4; " + extern + "int serve(int x) {{ n += x; return n * {}; }}"
    inside = extern + "int serve(int x) {{ static volatile int n = 4; n += x; return n * {}; }}"
    before, after = (inside, outside) if outward else (outside, inside)
    name = f"a.{suffix}"
    builds = [project.build({"main.c": MAIN, name: text}) for text in (before.format(3), after.format(5))]
    result = project.diff(*builds)  # (the oracle goes by the symbols' names, which are others)
    assert result.refusals == []
    assert result.replaced == ["serve"]
    assert new_variables(result) == []


def test_static_of_a_function_is_not_another_file_s_of_its_name(tmp_path: Path) -> None:
    """The static that went was another function's: nothing says that the new one is it."""
    project = project_of(tmp_path, Variant("clang", "-O2", "pie"))
    f = NOINLINE + "int f(int x) {{ {} return x * 33; }} "
    g = NOINLINE + "int g(int x) {{ {0} += x; return {0} * 99; }} "
    serve = "int serve(int x) { return f(x) + g(x); }"
    before = "static volatile int m; " + f.format("static volatile int n; n++;") + g.format("m")
    after = "static volatile int n; " + f.format("") + g.format("n")
    result = change(project, before + serve, after + serve)
    assert new_variables(result) == ["n"]


@pytest.mark.parametrize(("before", "after"), [("", "static "), ("static ", "")], ids=["to static", "to global"])
def test_variable_that_changes_its_binding_keeps_its_value(project: Project, before: str, after: str) -> None:
    source = "{}int counter = 3; int serve(int x) {{ return counter += x * {}; }}"
    result = change(project, source.format(before, 3), source.format(after, 5))
    assert result.replaced == ["serve"]
    assert new_variables(result) == []


def test_global_that_moves_to_another_file_keeps_its_value(project: Project) -> None:
    result = project.change(
        {
            "main.c": MAIN,
            "a.c": "int n = 1; int serve(int x) { return n += x * 3; }",
            "b.c": "int o(int x) { return x; }",
        },
        {
            "a.c": "extern int n; int serve(int x) { return n += x * 5; }",
            "b.c": "int n = 1; int o(int x) { return x; }",
        },
    )
    assert result.replaced == ["serve"]
    assert new_variables(result) == []


def test_static_of_a_function_that_moves_to_another_file_keeps_its_value(project: Project) -> None:
    count = NOINLINE + "int count(int x) { static int n = 4; return n += x; }"
    old = project.build({"main.c": MAIN, "a.c": "int serve(int x) { return x; }" + count, "b.c": "int z;"})
    new = project.build({"main.c": MAIN, "a.c": "int serve(int x) { return x; }", "b.c": "int z;" + count})
    result = project.checked(old, new)
    assert new_variables(result) == []
    assert result.about("data-removed") == []


def test_static_that_moves_with_its_functions_keeps_its_value(project: Project) -> None:
    count = "static int n = 4;" + NOINLINE + "int count(int x) { return n += x; }"
    old = project.build({"main.c": MAIN, "a.c": "int serve(int x) { return x; }" + count, "b.c": "int z;"})
    new = project.build({"main.c": MAIN, "a.c": "int serve(int x) { return x; }", "b.c": "int z;" + count})
    result = project.checked(old, new)
    assert new_variables(result) == []


def test_static_that_could_come_from_two_files_is_refused(plain: Project) -> None:
    serve = "int one(int); int two(int); int serve(int x) { return one(x) + two(x); }"
    one = "static int n = 4; int one(int x) { return n += x; }"
    two = "static int n = 5; int two(int x) { return n -= x; }"
    files = {"main.c": MAIN, "a.c": serve, "b.c": "int b;" + one, "c.c": "int c;" + two}
    both = one + two.replace("static int n = 5;", "")
    new = {"a.c": serve + both, "b.c": "int b;", "c.c": "int c;"}
    assert {code for code, _ in plain.change(files, new).refusals} == {"data-ambiguous"}


@pytest.mark.parametrize("there", ["int z;", None], ids=["to a file that was there", "to a new file"])
def test_variable_that_changes_its_type_on_the_way_is_refused(plain: Project, there: str | None) -> None:
    serve = "extern {} n; int serve(int x) {{ return n += x; }}"
    before = {"main.c": MAIN, "a.c": serve.format("int") + "int n = 4;", **({"b.c": there} if there else {})}
    old = plain.build(before)
    new = plain.build({"main.c": MAIN, "a.c": serve.format("float"), "b.c": f"{there or ''} float n = 4;"})
    assert plain.diff(old, new).refusals == [("variable-type-changed", "n")]


@pytest.mark.parametrize(("before", "after"), [("", " = 3"), (" = 3", "")], ids=["from common", "to common"])
def test_common_variable_keeps_its_value(project: Project, before: str, after: str) -> None:
    source = "int counter{}; int serve(int x) {{ return counter += x * {}; }}"
    result = change(project, source.format(before, 3), source.format(after, 5), None, compile_flags=["-fcommon"])
    assert result.replaced == ["serve"]
    assert new_variables(result) == []


def test_common_variable_that_turns_static_is_refused(tmp_path: Path) -> None:
    """A bug: a new variable, and the live value is lost."""
    project = Project(tmp_path, Variant("gcc", "-O2", "pie", "bfd", ("-fcommon",)))
    source = "{}int n; int serve(int x) {{ return n += x; }}"
    result = change(project, source.format(""), source.format("static "))
    assert result.refusals == [("data-kind-changed", "n")]


def test_common_variable_of_a_stripped_output_is_refused(project: Project) -> None:
    source = "int counter; int serve(int x) {{ return counter += x * {}; }}"
    flags = {"compile_flags": ["-fcommon"], "link_flags": ["-s"]}
    result = change(project, source.format(3), source.format(5), None, **flags)
    assert ("place-not-confirmed", "serve") in result.refusals


def test_stripped_output_is_patched_like_another(project: Project) -> None:
    source = "static int n; int serve(int x) {{ return n += x * {}; }}"
    old = project.build({"main.c": MAIN, "a.c": source.format(3)}, link_flags=["-s"])
    new = project.build({"main.c": MAIN, "a.c": source.format(5)}, link_flags=["-s"])
    assert project.diff(old, new).replaced == ["serve"]


# Values.


def initial_values(result: Result) -> list[str]:
    """The variables that a patch offers a new initial value for."""
    return sorted(e.name for e in result.patch.data_edits if e.is_initialiser)


def test_initial_value_is_kept_and_said(project: Project) -> None:
    result = change(project, "int g = 4; int serve(int x) { return g; }", "int g = 5; int serve(int x) { return g; }")
    assert initial_values(result) == ["g"]
    assert (result.replaced, result.edited) == ([], [])
    assert result.about("initialiser-kept") == ["g"]


def test_pointer_to_a_literal_is_kept_and_said(project: Project) -> None:
    source = 'char *name = "{}"; int serve(int x) {{ return name[x]; }}'
    result = change(project, source.format("one"), source.format("two"))
    assert initial_values(result) == ["name"]
    assert (result.replaced, result.edited) == ([], [])
    assert result.about("initialiser-kept") == ["name"]


def test_initial_values_of_one_name_are_offered_by_their_files(plain: Project) -> None:
    source = "static int g = {}; int {}(int x) {{ return g += x; }}"
    result = plain.change(
        {"main.c": MAIN, "a.c": source.format(1, "serve"), "b.c": source.format(2, "other")},
        {"a.c": source.format(3, "serve"), "b.c": source.format(4, "other")},
    )
    assert initial_values(result) == ["a.c:g", "b.c:g"]


def test_initial_value_in_a_shared_section_is_not_offered(plain: Project) -> None:
    """It could not be taken without its neighbours."""
    source = "int g = {}, h = 7; int serve(int x) {{ return g += h += x; }}"
    flags = ["-fno-data-sections"]
    result = change(plain, source.format(1), source.format(3), compile_flags=flags)
    assert initial_values(result) == []
    assert result.about("initialiser-kept")


def test_initial_value_that_becomes_zero_is_offered(plain: Project) -> None:
    source = "static int g[3]{}; int serve(int x) {{ return g[x & 1] += x; }}"
    (edit,) = change(plain, source.format(" = {1, 2, 3}"), source.format("")).patch.data_edits
    assert edit.is_initialiser


def test_function_pointer_in_a_writable_table_is_rewritten(project: Project) -> None:
    functions = NOINLINE + "static int f(int x) {{ return x * 9 + 1; }} static int g(int x) {{ return x * 77; }}"
    source = functions + "int (*table[2])(int) = {{f, {}}}; int serve(int x) {{ return table[x & 1](x); }}"
    result = change(project, source.format("f"), source.format("g"))
    assert result.edited == ["table+0x8"]
    assert result.refusals == []


def test_function_pointer_that_is_not_the_last_is_rewritten(project: Project) -> None:
    functions = NOINLINE + "static int f(int x) {{ return x * 9 + 1; }} static int g(int x) {{ return x * 77; }}"
    source = functions + "int (*table[3])(int) = {{f, {}, f}}; int serve(int x) {{ return table[x % 3u](x) + g(x); }}"
    result = change(project, source.format("f"), source.format("g"))
    assert result.edited == ["table+0x8"]
    assert result.refusals == []


def test_pointer_to_data_in_a_writable_variable_is_refused(plain: Project) -> None:
    source = "int a, b; int *current = &{}; int serve(int x) {{ return *current + a + b; }}"
    result = change(plain, source.format("a"), source.format("b"))
    assert result.refusals == [("data-pointers-changed", "current")]


def test_constant_table_is_rewritten_where_it_is(plain: Project) -> None:
    source = "static const int t[] = {{1, 2, {}, 4}}; int serve(int x) {{ return t[x & 3]; }}"
    result = change(plain, source.format(3), source.format(7))
    assert result.edited == ["t"]
    assert result.replaced == []


def test_constant_table_of_functions_gains_a_new_one(project: Project) -> None:
    source = (
        "static int one(int x) { return x * 33 + 1; } static int two(int x) { return x * 33 + 2; } NEW"
        "int (*const table[])(int) = {one, LAST}; int serve(int x) { return table[x & 1](x); }"
    )
    new = source.replace("NEW", "static int three(int x) { return x * 33 + 3; }").replace("LAST", "three")
    result = change(project, source.replace("NEW", "").replace("LAST", "two"), new)
    assert result.edited == ["table"]
    assert "three" in result.carried


@pytest.mark.parametrize("flags", [(), ("-Wl,-z,pack-relative-relocs",)], ids=["rela", "relr"])
def test_relocated_constants_have_expected_contents(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """What must be in the target is the table as the dynamic linker relocated it."""
    project = Project(tmp_path, Variant("gcc", "-O2", "pie", "lld", (), flags))
    if not project.variant.available():
        pytest.skip("lld is not installed")
    source = (
        "static int one(int x) {{ return x * 33 + 1; }} static int two(int x) {{ return x * 33 + 2; }}"
        " int (*const table[])(int) = {{one, {}}}; int serve(int x) {{ return table[x & 1](x) + two(x); }}"
    )
    old = project.build({"main.c": MAIN, "a.c": source.format("one")})
    result = project.checked(old, project.build({"main.c": MAIN, "a.c": source.format("two")}))
    (edit,) = result.patch.data_edits
    symbols = {y.name: y.value for y in result.patch.symbols if y.value}
    expected = result.patch.sections[edit.expected]
    import subprocess

    lines = subprocess.run(["nm", old.path], check=True, capture_output=True, text=True).stdout.splitlines()
    one = next(int(x.split()[0], 16) for x in lines if x.endswith(" one"))
    assert [r.offset for r in expected.relocations] == [0, 8]
    assert {result.patch.symbols[r.symbol].value + r.addend for r in expected.relocations} == {one}
    assert symbols


# clang takes a static struct apart (`s.0`, `s.1`), and keeps what is 0 or one other value in a byte.

APART = (
    "static struct {{ int a, b; }} s; {noinline} int set(int x) {{ s.a = x; s.b += x; return 1; }}"
    "{noinline} int show(int x) {{ return s.a * 3 + s.b; }} {noinline} int get(int x) {{ return {get}; }}"
    "int serve(int x) {{ return set(x) + get(x) + show(x); }}"
)


@pytest.fixture
def clang(tmp_path: Path) -> Project:
    """An empty project built by clang -O2 -pie."""
    if not shutil.which("clang"):
        pytest.skip("clang is not installed")
    return Project(tmp_path, Variant("clang", "-O2", "pie"))


def test_parts_of_a_struct_are_told_apart_by_where_they_belong(clang: Project) -> None:
    """By who uses them, the one field would be the other."""
    before, after = (APART.format(noinline=NOINLINE, get=f"s.{field} * 5") for field in "ab")
    result = change(clang, before, after)
    assert result.replaced == ["get"]
    assert new_variables(result) == []


def test_part_of_a_struct_is_not_another_part(clang: Project) -> None:
    """There is one part before and one after; whether the other was ever written, nothing tells."""
    source = (
        "static struct {{ int a, b; }} s; {0} int set(int x) {{ s.{1} += x; return 1; }}"
        "{0} int get(int x) {{ return s.{1} * 5; }} int serve(int x) {{ return set(x) + get(x); }}"
    )
    result = change(clang, source.format(NOINLINE, "a"), source.format(NOINLINE, "b"))
    assert set(result.needs) == {("data-storage-lost", "s"), ("data-storage-unknown", "s")}


@pytest.mark.parametrize("order", [1, -1], ids=["comes together", "is taken apart"])
def test_struct_that_is_taken_apart_otherwise_is_refused(clang: Project, order: int) -> None:
    """Its live value lies elsewhere than new code would look."""
    source = ["int read(void *);" + APART.format(noinline=NOINLINE, get=get) for get in ("s.a", "read(&s)")]
    reader = {"r.c": "int read(void *s) { return *(volatile int *)s; }"}
    result = change(clang, source[::order][0], source[::order][1], reader)
    assert {code for code, _ in result.refusals} == {"data-ambiguous", "data-storage-restyled"}


def test_flag_that_stands_for_another_value_is_refused(clang: Project) -> None:
    """It is a byte that is 0 or 1, and means 7 to the old code and 9 to the new."""
    source = (
        "static int flag; {0} int set(int x) {{ flag = {1}; return 1; }} {0} int get(int x) {{ return flag * x; }}"
        "int serve(int x) {{ return set(x) + get(x); }}"
    )
    result = change(clang, source.format(NOINLINE, 7), source.format(NOINLINE, 9))
    assert result.refusals == [("data-storage-restyled", "flag")]


@pytest.mark.skipif(not shutil.which("clang"), reason="clang is not installed")
def test_table_of_distances_is_untouched_by_other_literals(tmp_path: Path) -> None:
    """clang turns a table of strings into distances from its start (`reltable.serve`)."""
    project = Project(tmp_path, Variant("clang", "-O2", "pie"))
    source = (
        'static const char *const t[] = {{"first", "second", "third"}};'
        " int serve(int x) {{ return t[x % 3u][1]; }} const char *more(void) {{ return {}; }}"
    )
    result = change(project, source.format('"first"'), source.format('"another"'))
    assert result.replaced == ["more"]
    assert result.edited == []


def test_grown_table_is_made_anew_with_its_users(plain: Project) -> None:
    source = "static const int t[] = {{1, 2, 3, 4{}}}; int serve(int x) {{ return t[x & 3]; }}"
    result = change(plain, source.format(""), source.format(", 5, 6, 7, 8"))
    assert result.replaced == ["serve"]
    assert result.about("constant-recreated") == ["t"]


def test_grown_global_table_brings_users_in_unchanged_files(plain: Project) -> None:
    files = {"main.c": MAIN, "a.c": "extern const int t[]; int serve(int x) { return t[x & 3]; }"}
    result = plain.change(
        {**files, "b.c": "const int t[] = {1, 2, 3, 4};"}, {"b.c": "const int t[] = {1, 2, 3, 4, 5, 6, 7, 8};"}
    )
    assert result.replaced == ["serve"]
    assert result.about("uses-new-constant") == ["serve"]


def test_new_variables_of_every_kind(project: Project) -> None:
    result = change(
        project,
        "int serve(int x) { return x * 33 + 1; }",
        "int fresh = 7; static int hidden[100]; int serve(int x) { static int n = 5; return fresh++ +"
        " hidden[x]++ + n++; }",
    )
    assert len(new_variables(result)) == 3
    assert result.refusals == []


def test_removed_variable_is_noted(plain: Project) -> None:
    result = change(plain, "int gone = 3; int serve(int x) { return gone * x; }", "int serve(int x) { return 9 * x; }")
    assert result.about("data-removed") == ["gone"]


def test_thread_local_that_exists(project: Project) -> None:
    source = "__thread int t = 3; int serve(int x) {{ return t += x * {}; }}"
    result = change(project, source.format(3), source.format(5))
    if project.variant.mode == "shared":
        assert {c for c, _ in result.refusals} <= {"relocation-not-supported", "thread-local-changed"}
        assert result.refusals
    else:
        assert result.replaced == ["serve"]
        assert result.refusals == []


# Refusals: (before, after, code, subject), for gcc and clang alike.
SET = (
    "typedef int (*F)(int); extern F __start_set[], __stop_set[]; int one(int x) { return x * 33 + 1; }"
    ' static F p1 __attribute__((section("set"), used)) = one; MORE int serve(int x)'
    " { int s = 0; for (F *f = __start_set; f < __stop_set; f++) s += (*f)(x); return s; }"
)
MORE = 'static F p2 __attribute__((section("set"), used)) = one;'
CONSTRUCTOR = (
    "extern int q(int); int n; __attribute__((constructor)) static void up(void) {{ n = q({}); }}"
    " int serve(int x) {{ return n + x * 33; }}"
)
WORK = "int serve(int x) { return x * 33 + 1; }"
REFUSED = {
    "enumerators renumbered": (
        "enum e { A, B, C } st; int serve(int x) { return st == C ? x * 33 : 0; }",
        "enum e { A, X, B, C } st; int serve(int x) { return st == C ? x * 33 : 0; }",
        "type-changed",
        "e",
    ),
    "variable of another type": (
        "int v; int serve(int x) { return v * x + 33; }",
        "float v; int serve(int x) { return v * x + 33; }",
        "variable-type-changed",
        "v",
    ),
    "variable became constant": (
        "int v[2] = {3, 4}; int serve(int x) { return x * 33 + *(volatile int *)v; }",
        "const int v[2] = {3, 4}; int serve(int x) { return x * 33 + *(volatile int *)v; }",
        "data-kind-changed",
        "v",
    ),
    "constant became variable": (
        "const int v[2] = {3, 4}; int serve(int x) { return x * 33 + *(volatile int *)v; }",
        "int v[2] = {3, 4}; int serve(int x) { return x * 33 + *(volatile int *)v; }",
        "data-kind-changed",
        "v",
    ),
    "variable became thread-local": (
        "int t = 3; int serve(int x) { return t += x * 33; }",
        "__thread int t = 3; int serve(int x) { return t += x * 33; }",
        "data-kind-changed",
        "t",
    ),
    "new thread-local": (
        WORK,
        "__thread int t = 3; int serve(int x) { return t += x * 33; }",
        "thread-local-changed",
        "serve",
    ),
    "thread-local with another value": (
        "__thread int t = 3; int serve(int x) { return t += x * 33; }",
        "__thread int t = 4; int serve(int x) { return t += x * 33; }",
        "thread-local-changed",
        "t",
    ),
    "constructor changed": (CONSTRUCTOR.format(3), CONSTRUCTOR.format(4), "startup-code-changed", "up"),
    "constructor added": (
        "extern int q(int); int n; int serve(int x) { return n + x * 33; }",
        CONSTRUCTOR.format(4),
        "startup-code-changed",
        ".init_array",
    ),
    "linker set grew": (SET.replace("MORE", ""), SET.replace("MORE", MORE), "section-changed", None),
    "function too small": (
        "int q; void hook(void) {} int serve(int x) { hook(); return x * 33; } void (*volatile p)(void) = hook;",
        "int q; void hook(void) { q++; } int serve(int x) { hook(); return x * 33; } void (*volatile p)(void) = hook;",
        "function-too-small",
        "hook",
    ),
    "ifunc resolver": (
        "static int i1(int x) { return x; } static int i2(int x) { return x + 2; }"
        ' static void *r(void) { return i1; } int pick(int) __attribute__((ifunc("r"))); int serve(int x)'
        " { return pick(x); }",
        "static int i1(int x) { return x; } static int i2(int x) { return x + 2; }"
        ' static void *r(void) { return i2; } int pick(int) __attribute__((ifunc("r"))); int serve(int x)'
        " { return pick(x); }",
        "ifunc-resolver-changed",
        None,
    ),
}


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("kind", REFUSED)
def test_refused(tmp_path: Path, kind: str, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    before, after, code, subject = REFUSED[kind]
    project = Project(tmp_path, Variant(compiler, "-Os" if kind == "function too small" else "-O2"))
    flags = ["-fno-inline", "-fcf-protection=none", "-fomit-frame-pointer"]
    more = {"q.c": "int q(int x) { return x * 2; }"} if "q(int)" in before + after else None
    result = change(project, before, after, more, compile_flags=flags)
    assert code in {c for c, s in result.refusals if subject in (None, s)}, result.patch.reasons
    assert (result.patch.sections, result.patch.replacements, result.patch.data_edits) == ((), (), ())
    reason = next(r for r in result.patch.reasons if r.severity == "refused" and r.code == code)
    assert reason.text
    assert reason.file


def test_destructor_is_a_function_like_others(plain: Project) -> None:
    down = "int n; __attribute__((destructor)) static void down(void) {{ n = {}; }}"
    source = down + " int serve(int x) {{ return n + x * 33; }}"
    assert change(plain, source.format(3), source.format(4)).replaced == ["down"]


@pytest.mark.parametrize("strip", [False, True], ids=["with symbols", "stripped"])
def test_folded_function_is_refused(tmp_path: Path, strip: bool) -> None:
    project = Project(tmp_path, Variant("gcc", "-O2", "pie", "lld"))
    if not project.variant.available():
        pytest.skip("lld is not installed")
    main = "int f(int), g(int); int main(int c, char **v) { return f(c) + g(c); }"
    same = "int f(int x) {{ return x * 77 + 1; }} int g(int x) {{ return x * 77 + {}; }}"
    flags = ["-Wl,--icf=all", *(["-s"] if strip else [])]
    old = project.build({"main.c": main, "a.c": same.format(1)}, link_flags=flags)
    result = project.checked(old, project.build({"main.c": main, "a.c": same.format(2)}, link_flags=flags))
    assert ("function-folded", "g") in result.refusals


def test_assembly_is_refused_when_it_changed(plain: Project) -> None:
    source = ".globl a\n.globl b\n.text\na: mov ${},%eax\n ret\nb: mov $2,%eax\n ret\n"
    source += '.section .note.GNU-stack,"",@progbits\n'
    files = {"main.c": MAIN, "a.c": "int a(void), b(void); int serve(int x) { return a() + b() * x; }"}
    old = plain.build({**files, "z.S": source.format(1)})
    assert plain.checked(old, plain.build({**files, "z.S": source.format(3)})).refusals == [
        ("code-in-shared-section", "a")
    ]
    files["a.c"] = files["a.c"].replace("* x", "* x * 33")
    assert plain.checked(old, plain.build({**files, "z.S": source.format(1)})).refusals == []


def test_function_between_a_cleanup_and_what_unwinds_needs_an_unwinder(plain: Project) -> None:
    """It has no handlers of its own, but an unwind that has to pass through new code would end the process."""
    cleans = (
        "void done(int *);\nint mid(int);\n"
        "int serve(int x) { __attribute__((cleanup(done))) int held = x; return mid(held); }\n"
    )
    source = "int leave(int);\nint mid(int x) {{ return leave(x) + {}; }}\n"
    more = {"cleans.c": cleans, "leave.c": "int leave(int x) { return x; }\nvoid done(int *p) { *p = 0; }\n"}
    result = change(plain, source.format(1), source.format(1000), more, compile_flags=["-fexceptions"])
    assert (result.refusals, result.replaced) == ([], ["mid"])
    assert set(REGISTRATION) <= {y.name for y in result.patch.symbols if y.section is None}


def test_cleanup_of_c_is_carried(plain: Project) -> None:
    """A bug: the new function leaves what it holds behind when it is cancelled."""
    source = (
        "int z; void done(int *p) {{ z += *p; }} int ext(int);"
        " int serve(int x) {{ int v __attribute__((cleanup(done))) = x + {}; ext(x); return v; }}"
    )
    more = {"b.c": "int ext(int x) { return x; }"}
    result = change(plain, source.format(0), source.format(1), more, compile_flags=["-fexceptions"])
    assert (result.refusals, result.replaced) == ([], ["serve"])
    assert handler_rows(result.patch) == (HandlerRow("serve", (), (), True),)


def test_function_that_only_constructors_call_is_startup_code(compiler: str, tmp_path: Path) -> None:
    """gcc's `__static_initialization_and_destruction_0`, clang's `__cxx_global_var_init`: a bug replaces them, and what
    they do differently never happens."""
    project = Project(tmp_path, Variant(compiler, "-O0"))
    main = MAIN.replace("int serve", 'extern "C" int serve', 1)
    source = (
        "struct Big {{ long v; Big(long x) : v(x + 7) {{}} ~Big(); }}; Big::~Big() {{ v = {}; }}\n"
        'static Big one({});\nextern "C" int serve(int x) {{ return one.v * x; }}\n'
    )

    def built(body: int, value: int) -> Build:
        return project.build(
            {"main.cc": main, "a.cc": source.format(body, value)},
            compile_flags=["-fno-exceptions"],
            link_flags=["-lstdc++"],
        )

    old = built(1, 40)
    result = project.checked(old, built(1, 41))
    assert {code for code, _ in result.refusals} == {"startup-code-changed"}
    result = project.checked(old, built(2, 40))
    assert result.refusals == []
    assert set(result.replaced) <= {"_ZN3BigD1Ev", "_ZN3BigD2Ev"}


def test_function_that_a_constructor_also_registers_is_no_startup_code(plain: Project) -> None:
    """A bug: what runs at exit, or whenever a pointer leads there, is taken for what runs once."""
    source = (
        "#include <stdlib.h>\nint z; static void bye(void) {{ z += {}; }}\n"
        "__attribute__((constructor)) static void up(void) {{ atexit(bye); bye(); }} int serve(int x) {{ return x; }}"
    )
    result = change(plain, source.format(100), source.format(20000), compile_flags=["-O0"])
    assert (result.refusals, result.replaced) == ([], ["bye"])


# Sections that hold several things.


@pytest.mark.parametrize("storage", ["", "static "])
def test_rearranged_variables_without_data_sections_are_refused(plain: Project, storage: str) -> None:
    """Read by its old place, each would have the other's value."""
    source = "int serve(int x) {{ a += x; return a + (b += x) * {}; }}"
    one, two = f"{storage}int a = 1, b = 2;", f"{storage}int b = 2, a = 1;"
    result = change(plain, one + source.format(3), two + source.format(4), None, compile_flags=["-fno-data-sections"])
    assert "data-rearranged" in result.codes("refused")


def test_untouched_variables_without_data_sections_are_no_obstacle(plain: Project) -> None:
    source = "int a = 1, b = 2; int serve(int x) {{ a += x; return a + (b += x) * {}; }}"
    result = change(plain, source.format(3), source.format(4), None, compile_flags=["-fno-data-sections"])
    assert result.replaced == ["serve"]
    assert result.carried == ["serve"]


def test_code_without_function_sections_is_refused_only_where_it_changed(plain: Project) -> None:
    files = {
        "main.c": MAIN,
        "a.c": WORK + "int two(int x) { return x * 44; }",
        "b.c": "int o(int x) { return x * 33; }",
    }
    old = plain.build(files, compile_flags=["-fno-function-sections"])
    changed = {**files, "b.c": files["b.c"].replace("33", "35")}
    # b.o holds one function: its .text is that function's own.
    assert plain.checked(old, plain.build(changed, compile_flags=["-fno-function-sections"])).replaced == ["o"]
    changed = {**files, "a.c": files["a.c"].replace("44", "45")}
    result = plain.checked(old, plain.build(changed, compile_flags=["-fno-function-sections"]))
    assert "code-in-shared-section" in result.codes("refused")


def test_function_that_leaves_a_shared_section_is_refused(plain: Project) -> None:
    """Unchanged callers would go on calling the old one."""
    files = {"main.c": MAIN, "a.c": WORK + "int one(int x) { return x * 99; }"}
    old = plain.build(files, compile_flags=["-fno-function-sections"])
    new = plain.build(
        {**files, "a.c": WORK, "b.c": "int one(int x) { return x * 98; }"}, compile_flags=["-fno-function-sections"]
    )
    assert ("code-in-shared-section", "one") in plain.checked(old, new).refusals


# What the link changes.


def test_linker_set_member_of_a_new_file_is_refused(plain: Project) -> None:
    files = {"main.c": MAIN, "a.c": SET.replace("MORE", "")}
    more = "typedef int (*F)(int); int two(int x) { return 2; }" + MORE.replace("one", "two")
    old = plain.build(files)
    new = plain.build({**files, "b.c": more})
    assert "section-changed" in plain.checked(old, new).codes("refused")
    assert "section-changed" in plain.checked(new, old).codes("refused")


@pytest.mark.parametrize("option", ["--wrap=helper", "--defsym=other=serve"])
def test_option_that_gives_names_another_meaning_is_refused(plain: Project, option: str) -> None:
    files = {
        "main.c": MAIN,
        "a.c": "int helper(int); int serve(int x) { return helper(x) * 33; }",
        "b.c": "int helper(int x) { return x * 2; } int __wrap_helper(int x) { return x * 3; }",
    }
    result = plain.checked(plain.build(files), plain.build(files, link_flags=[f"-Wl,{option}"]))
    assert "link-options-changed" in result.codes("refused")


def test_wrapped_name_leads_to_its_wrapper(project: Project) -> None:
    source = "int helper(int); int serve(int x) {{ return helper(x) * {}; }}"
    wrapper = NOINLINE + "int __real_helper(int); int __wrap_helper(int x) { return __real_helper(x) + 3; }"
    more = {"b.c": NOINLINE + "int helper(int x) { return x * 2 + 700; }", "c.c": wrapper}
    result = change(project, source.format(33), source.format(35), more, link_flags=["-Wl,--wrap=helper"])
    assert result.replaced == ["serve"]
    assert "__wrap_helper" in {y.name for y in result.patch.symbols if y.section is None}


def test_relinked_with_harmless_options_needs_nothing(plain: Project) -> None:
    files = {"main.c": MAIN, "a.c": WORK}
    assert plain.checked(plain.build(files), plain.build(files, link_flags=["-Wl,-z,now"])).nothing


def test_pie_turned_off_is_refused(tmp_path: Path) -> None:
    project = Project(tmp_path)
    old = project.build({"main.c": MAIN, "a.c": WORK})
    new = project.build({"main.c": MAIN, "a.c": WORK}, compile_flags=["-fno-pie"], link_flags=["-no-pie"])
    assert "machine-or-type-changed" in project.checked(old, new).codes("refused")


def test_constant_that_holds_addresses_is_carried_with_them(tmp_path: Path) -> None:
    """gcc without -fPIC loads a function pointer from .rodata.cst8; taken for a literal it would be a null pointer."""
    source = (
        "int f(int x) { return x + 1; } int g(int x) { return x * 3; }"
        " struct p { int (*a)(int); int (*b)(int); } pp; volatile int n;"
        " __attribute__((noipa)) void serve(void) { n = 1; pp.a = f; pp.b = g; }"
        " int main(void) { serve(); return pp.a(pp.b(1)); }"
    )
    project = Project(tmp_path, Variant("gcc", "-O2", "nopie"))
    result = project.change({"a.c": source}, {"a.c": source.replace("n = 1", "n = 2")})
    assert result.refusals == []
    assert result.replaced == ["serve"]
    meant = {
        result.patch.symbols[r.symbol].name
        for s in result.patch.sections
        if s.name.startswith((".text", ".rodata"))
        for r in s.relocations
    }
    assert {"f", "g"} <= meant


def test_table_that_is_taken_as_a_whole_is_not_rewritten_in_parts(project: Project) -> None:
    """A bug: a function pointer in it was, too, and Katana called that a bug of its own."""
    source = (
        NOINLINE + "int one(int x) {{ return x; }} " + NOINLINE + "int two(int x) {{ return x + 7; }} "
        "static const int list[] = {{ 1, 2{1} }}; struct c {{ int (*f)(int); const int *p; long n; }} "
        "tab[] = {{ {{ {0}, list, 3 }}, {{ two, list, {2} }} }}; "
        "int serve(int x) {{ return tab[x & 1].f(x) + tab[x & 1].p[1] + (int)sizeof list + one(x); }}"
    )
    result = change(project, source.format("one", "", 4), source.format("two", ", 3", 5))
    assert result.refusals == []
    assert result.about("table-taken-over") == ["tab"]
    assert result.edited == ["tab"]
    assert not result.codes() & {"pointer-rewritten", "initialiser-kept"}


# What a patch brings, by names that another patch from the same build has for it, too.


def brought(result: Result) -> dict[str, tuple[int, bytes]]:
    """Name → (kind, digest)."""
    return {b.name: (int(b.kind), b.digest) for b in result.patch.brought}


def test_patches_call_what_is_the_same_by_the_same_name(project: Project) -> None:
    """A bug: one takes the place of the other, and a live value begins anew or is read as something else."""
    roomy = "int serve(int x) { for (volatile int i = 0; i < 3; i++) x += i; return x; }"  # for a jump, in each build
    before = project.build({"main.c": MAIN, "a.c": roomy})
    head = NOINLINE + "int twice(int x) { static int n; return n += x; }\n"
    second = "struct s { int a; }; int hits; struct s *first; static volatile int calls;\nint serve(int x) { "
    body = "calls++; hits += x; if (first) hits += first->a; return hits + twice(x); }"
    one = project.checked(before, project.build({"main.c": MAIN, "a.c": head + second + body}))
    shifted = "static int other(int x) { static int n; return n -= x; }\n" + head
    later = second.replace("int a;", "int b, a;")
    body = body.replace("twice(x)", "twice(x) - other(x)")
    other = project.checked(before, project.build({"main.c": MAIN, "a.c": shifted + later + body}))
    here, there = brought(one), brought(other)
    same = {"hits", "twice", *(n for n in here if n.endswith((": calls", ": twice()::n")))}
    assert len(same) == 4, here
    for name in same:
        assert here[name] == there[name]
        assert any(here[name][1])
    assert here["first"][1] != there["first"][1]
    assert {x.name for x in one.patch.layouts} == {"struct s"}
    assert one.patch.layouts != other.patch.layouts


def test_what_cannot_be_told_apart_has_no_digest(plain: Project) -> None:
    """A bug: of two variables of one name one takes the other's value."""
    before = plain.build({"main.c": MAIN, "a.c": "int serve(int x) { return x; }"})
    both = "if (x) { static int n; x += n++; } else { static int n; x -= n--; }"
    after = plain.build({"main.c": MAIN, "a.c": f"int serve(int x) {{ {both} return x; }}"})
    found = plain.checked(before, after).patch.brought
    assert [b.digest for b in found if b.kind is BroughtKind.VARIABLE] == [bytes(32)] * 2
    flags = ["-fno-data-sections"]
    shared = "static int n, m; int serve(int x) { n += x; m -= n; return m; }"
    after = plain.build({"main.c": MAIN, "a.c": shared}, compile_flags=flags)
    found = plain.checked(before, after).patch.brought
    assert {b.digest for b in found if b.kind is BroughtKind.VARIABLE} == {bytes(32)}
