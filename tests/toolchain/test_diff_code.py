"""Changes of code: what the diff carries, leaves out or refuses, for each compiler, optimisation and kind of output.

Every result that is not a refusal is compared with the new build by `tests.support.equivalence`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from katana_cc.elf.reader import ElfFile
from tests.support.project import MODES, Project, Result, Variant, project_in

LINKERS = {"pie": "bfd", "nopie": "gold", "shared": "lld"}
# Every compiler with every level and every kind of output, not their whole product.
VARIANTS = [
    Variant("gcc", "-O0", "pie"),
    Variant("gcc", "-O2", "pie"),
    Variant("gcc", "-O2", "nopie", "gold"),
    Variant("gcc", "-O3", "shared"),
    Variant("gcc", "-Os", "nopie"),
    Variant("clang", "-O0", "nopie", "lld"),
    Variant("clang", "-O2", "shared", "lld"),
    Variant("clang", "-O3", "pie", "mold"),
    Variant("clang", "-Os", "pie"),
]
NOINLINE = "__attribute__((noinline)) "
MAIN = (
    "int serve(int);\nint main(int c, char **v) { int s = 0; for (int i = 0; i < c; i++) s += serve(i); return s; }\n"
)
GCC = Variant("gcc", "-O2", "pie")


project = project_in(VARIANTS)


def change(
    project: Project, before: str, after: str, more: Mapping[str, str] | None = None, **options: object
) -> Result:
    """The diff when a.c changes from `before` to `after`, beside main and `more`."""
    return project.change({"main.c": MAIN, "a.c": before, **(more or {})}, {"a.c": after}, **options)


def test_body_of_a_global_function(project: Project) -> None:
    result = change(
        project, "int n; int serve(int x) { return x * 3 + n; }", "int n; int serve(int x) { return x * 5 + n; }"
    )
    assert result.replaced == ["serve"]
    assert result.carried == ["serve"]
    assert result.refusals == []


def test_body_of_a_static_function(project: Project) -> None:
    source = NOINLINE + "static int work(int x) {{ return x * {} + 1; }} int serve(int x) {{ return work(x) - 2; }}"
    result = change(project, source.format(7), source.format(9))
    assert result.replaced in (["work"], ["serve", "work"])
    assert result.refusals == []


def test_inlined_callee_changes_its_inliners_only(plain: Project) -> None:
    source = "static inline int scale(int x) {{ return x * {}; }} int serve(int x) {{ return scale(x) + 1; }}"
    more = "int other(int x) { return x + 77; }"
    result = change(plain, source.format(7) + more, source.format(9) + more)
    assert result.replaced == ["serve"]


def test_unchanged_sources_need_nothing(project: Project) -> None:
    result = change(project, "int serve(int x) { return x + 77; }", "/* more */ int serve(int x) { return x + 77; }")
    assert result.nothing
    assert result.patch.reasons == ()


def test_new_function_comes_along(project: Project) -> None:
    result = change(
        project,
        "int serve(int x) { return x * 13 + 2; }",
        NOINLINE + "static int twice(int x) { return x * 2 + 5; } int serve(int x) { return twice(x) * 13 + 2; }",
    )
    assert result.replaced == ["serve"]
    assert "twice" in result.carried or "twice" not in result.codes()
    assert result.refusals == []


def test_changed_signature_with_its_callers(project: Project) -> None:
    before = NOINLINE + "static int work(int x) { return x * 7; } int serve(int x) { return work(x) + 1; }"
    after = (
        NOINLINE + "static int work(int x, long y) { return x * 7 + y; } int serve(int x) { return work(x, 9L) + 1; }"
    )
    result = change(project, before, after)
    assert set(result.replaced) in ({"serve"}, {"work", "serve"}, {"work"})  # clang loads the argument in `work` itself
    assert result.refusals == []


def test_removed_function_is_noted(plain: Project) -> None:
    gone = "int gone(int x) { return x * 99; }"
    result = change(plain, "int serve(int x) { return x + 77; }" + gone, "int serve(int x) { return x + 78; }")
    assert result.about("function-removed") == ["gone"]


SWITCH = (
    "int serve(int x) {{ switch (x) {{ case 0: return 11; case 1: return 5 + v(x); case 2: return v(3);"
    " case 3: return 8 * v(1); case 4: return 77; case 5: return v(9) * v(2);"
    " case 6: return {}; case 7: return v(7) - 1;"
    " }} return 0; }}"
)


def test_jump_table(project: Project) -> None:
    v = {"v.c": "int v(int x) { return x * x; }"}
    result = change(project, "int v(int);" + SWITCH.format(3), "int v(int);" + SWITCH.format("v(88)"), v)
    assert result.replaced == ["serve"]
    assert result.refusals == []


GOTO = (
    "int serve(int x) {{ static {} void *{} tab[] = {{&&a, &&b, &&c}}; goto *tab[x % 3];"
    " a: return 1; b: return x * {}; c: return x - 2; }}"
)


@pytest.mark.parametrize("qualifiers", [("const", "const"), ("", "")], ids=["constant", "writable"])
def test_computed_goto_brings_its_table(project: Project, qualifiers: tuple[str, str]) -> None:
    """With the old table the new code would jump into the old one."""
    result = change(project, GOTO.format(*qualifiers, 3), GOTO.format(*qualifiers, 5))
    assert result.replaced == ["serve"]
    assert any("tab" in name for name in result.carried)


@pytest.mark.parametrize("qualifiers", ["const", ""], ids=["constant", "writable"])
def test_table_of_labels_that_shrinks_is_its_function_s(project: Project, qualifiers: str) -> None:
    """Its type changed, but no live value is in it."""
    after = GOTO.replace("&&a, &&b, &&c", "&&a, &&c").replace("x % 3", "x % 2")
    result = change(project, GOTO.format(qualifiers, qualifiers, 3), after.format(qualifiers, qualifiers, 3))
    assert result.replaced == ["serve"]
    assert result.refusals == []


def test_tables_of_labels_of_one_name_need_not_be_told_apart(project: Project) -> None:
    """Both come with their function, so it does not matter which was which."""
    source = (
        'int log(const char *); int serve(int x) {{ int y = log("a") {};'
        " {{ static void *const tab[] = {{&&a, &&b}}; goto *tab[x & 1]; }} a: y = 2; b: y += x;"
        " {{ static void *tab[] = {{&&c, &&d, &&e}}; goto *tab[y % 3u]; }} c: y += 7; d: y *= 3; e: return y; }}"
    )
    log = {"log.c": "int log(const char *s) { return *s; }"}
    result = change(project, source.format(""), source.format('+ log("b")'), log)
    assert result.refusals == []
    assert result.replaced == ["serve"]


COLD = (
    "void fail(const char *) __attribute__((cold)); int n;"
    'int serve(int x) {{ if (__builtin_expect(x < 0, 0)) {{ fail("{}"); n++; fail("again"); }} return x * {} + n; }}'
)
FAIL = {"fail.c": "int q; void fail(const char *s) { q += s[0]; }"}


@pytest.mark.parametrize(
    ("before", "after"),
    [(("low", 3), ("low", 5)), (("low", 3), ("negative", 3))],
    ids=["parent changes", "cold half changes"],
)
def test_cold_half(project: Project, before: tuple[str, int], after: tuple[str, int]) -> None:
    result = change(project, COLD.format(*before), COLD.format(*after), FAIL)
    assert result.replaced == ["serve"]
    assert result.refusals == []


def test_cold_half_appears_and_vanishes(project: Project) -> None:
    without = "int n; int serve(int x) { return x * 3 + n; }"
    assert change(project, without, COLD.format("low", 3), FAIL).replaced == ["serve"]
    assert change(project, COLD.format("low", 3), without, FAIL).replaced == ["serve"]


CLONES = (
    NOINLINE + "static int walk(int *p, int n, int step) {{ int s = {};"
    " for (int i = 0; i < n; i += step) s += p[i]; return s; }}"
    "int buffer[64]; int serve(int x) {{ return walk(buffer, x, 4) + walk(buffer, x + 1, 4){}; }}"
)  # fmt: skip


def test_constprop_clone(project: Project) -> None:
    result = change(project, CLONES.format(0, ""), CLONES.format(7, ""))
    assert result.refusals == []
    assert not result.nothing


def test_constprop_clone_vanishes_and_appears(project: Project) -> None:
    assert change(project, CLONES.format(0, ""), CLONES.format(0, " + walk(buffer, 3, x)")).refusals == []
    assert change(project, CLONES.format(0, " + walk(buffer, 3, x)"), CLONES.format(0, "")).refusals == []


def test_recursion_varargs_and_many_arguments(project: Project) -> None:
    source = (
        "#include <stdarg.h>\n"
        "int sum(int n, ...) {{ va_list a; va_start(a, n); double s = {}; while (n--) s += va_arg(a, double);"
        " va_end(a);"
        " return s; }}"
        "long many(long a, long b, long c, long d, long e, long f, long g, double h, float i)"
        " {{ return a - b + c - d + e - f + g * {} + h + i; }}"
        "int serve(int x) {{ return x <= 0 ? sum(2, 1.5, 2.5)"
        " : serve(x - 1) + many(1, 2, 3, 4, 5, 6, x, 1.25, 2.5f); }}"
    )
    result = change(project, source.format(0, 3), source.format(1, 5))
    assert "sum" in result.replaced
    assert result.refusals == []


def test_floating_constant(project: Project) -> None:
    source = "double rate = 1.0; int serve(int x) {{ return x * rate * {}; }}"
    result = change(project, source.format("2.125"), source.format("3.0625"))
    assert result.replaced == ["serve"]


def test_string_literal(project: Project) -> None:
    source = '#include <stdio.h>\nint serve(int x) {{ return printf("{} %d\\n", x) + printf("same %d\\n", x); }}'
    result = change(project, source.format("one"), source.format("another"))
    assert result.replaced == ["serve"]


def test_literal_elsewhere_does_not_matter(project: Project) -> None:
    """A new string before the others moves them all: nobody else changes for it."""
    source = '#include <stdio.h>\nint first(int x) {{ return {}; }}\nint serve(int x) {{ return printf("b%d\\n", x); }}'
    result = change(project, source.format("x * 33"), source.format('printf("a%d\\n", x)'))
    assert result.replaced in (["first"], [])
    assert result.refusals in ([], [("function-too-small", "first")])


def test_aggregate_initialiser_without_a_name(project: Project) -> None:
    source = (
        "struct b {{ int a[12]; }}; int use(struct b *); int serve(int x)"
        " {{ struct b v = {{{{1, 2, 3, {}, 5, 6, 7, 8, 9, 10, 11, 12}}}}; return use(&v) + x; }}"
    )
    more = {"use.c": "struct b { int a[12]; }; int use(struct b *p) { return p->a[3]; }"}
    result = change(project, source.format(4), source.format(44), more)
    assert result.replaced == ["serve"]


def test_only_lines_moved(project: Project) -> None:
    source = "#include <assert.h>\n{}int serve(int x) {{ assert(x >= 0); assert(x != 99); return x * 3; }}"
    result = change(project, source.format(""), source.format("\n\n\n"))
    # clang puts constants where no line is said to be: then the function is carried, which is right too.
    assert result.nothing or project.variant.compiler == "clang"
    if result.nothing:
        assert result.about("line-numbers-only") == ["serve"]


def test_constant_that_looks_like_a_line_is_carried(plain: Project) -> None:
    """The function moved by one line, and another number in it grew by one: that is a change."""
    source = (
        "void note(int a);\n{}int serve(int x) {{ note(__LINE__);\nreturn x * 4 + {}; }}\n"
        "volatile int z; void note(int a) {{ z = a; }}"
    )
    result = change(plain, source.format("", 2), source.format("\n", 3))
    assert result.replaced == ["serve"]


def test_time_of_the_build_is_left_out(plain: Project) -> None:
    source = 'const char *when(void) {{ return "built " {} " at " {}; }} int serve(int x) {{ return when()[x]; }}'
    result = change(plain, source.format('"Jan  2 2020"', '"01:02:03"'), source.format("__DATE__", "__TIME__"))
    assert result.nothing
    assert result.about("build-time-only")


def test_another_date_is_a_change(plain: Project) -> None:
    source = 'const char *until(void) {{ return "{}"; }} int serve(int x) {{ return until()[x]; }}'
    result = change(plain, source.format("Jan  2 2020"), source.format("Jan  2 2031"))
    assert "until" in result.replaced


def test_library_function_not_imported_before(project: Project) -> None:
    result = change(
        project,
        "#include <stdlib.h>\nint serve(int x) { return x * 33 + 1; }",
        "#include <stdlib.h>\nint serve(int x) { char *p = malloc(x); return p[3] * 5; }",
    )
    assert result.replaced == ["serve"]
    if any(y.name == "malloc" for y in result.patch.symbols):  # else the optimiser saw through it
        assert result.about("import-new") == ["malloc"]


def test_same_named_statics_in_two_files(project: Project) -> None:
    file = NOINLINE + "static int work(int x) {{ return x * {} + 700; }} int {}(int x) {{ return work(x) * 5 + 1; }}"
    more = {"b.c": file.format(3, "other")}
    result = change(project, file.format(7, "serve"), file.format(9, "serve"), more)
    assert result.replaced in (["work"], ["serve", "work"])
    assert all(r.name != "other" for r in result.patch.replacements)


def test_alias_of_a_changed_function(project: Project) -> None:
    source = (
        'int impl(int x) {{ return x * {} + 1; }} int pub(int) __attribute__((alias("impl")));'
        " int serve(int x) {{ return pub(x) * 3 + 1; }}"
    )
    result = change(project, source.format(33), source.format(35))
    assert result.replaced in (["impl"], ["impl", "serve"], ["pub"], ["pub", "serve"])


def test_alias_that_means_another_function_now_is_refused(project: Project) -> None:
    source = (
        "int one(int x) {{ return x * 33 + 1; }} int two(int x) {{ return x * 77 + 5; }}"
        ' int pub(int) __attribute__((alias("{}"))); int serve(int x) {{ return one(x) + two(x) * 2; }}'
    )
    more = {"user.c": "int pub(int); int user(int x) { return pub(x) + 1; }"}
    result = change(project, source.format("one"), source.format("two"), more)
    assert ("name-means-another", "pub") in result.refusals


def test_weak_function_overridden_by_a_new_object(project: Project) -> None:
    weak = "__attribute__((weak)) int hook(int x) { return x * 33 + 1; } int serve(int x) { return hook(x) * 5 + 1; }"
    old = project.build({"main.c": MAIN, "a.c": weak})
    new = project.build({"main.c": MAIN, "a.c": weak, "b.c": "int hook(int x) { return x * 55 + 500; }"})
    result = project.checked(old, new)
    assert result.replaced == ["hook"]
    assert result.about("function-moved") == ["hook"]


def test_function_of_a_library_defined_by_the_program_is_refused(project: Project) -> None:
    files = {
        "main.c": MAIN,
        "a.c": "long labs(long); int serve(int x) { return labs(x) + 3; }",
        "b.c": "int o(int x) { return x; }",
    }
    flags = ["-fno-builtin"]
    old = project.build(files, compile_flags=flags)
    own = "long labs(long x) { return x + 1; }"
    defined = project.build({**files, "b.c": files["b.c"] + own}, compile_flags=flags)
    assert ("name-means-another", "labs") in project.checked(old, defined).refusals
    back = project.build(files, compile_flags=flags)
    assert ("name-means-another", "labs") in project.checked(defined, back).refusals


def test_archive_member_pulled_in(project: Project) -> None:
    files = {
        "main.c": MAIN,
        "a.c": "int serve(int x) { return x * 33 + 1; }",
        "lib.c": "int helper(int x) { return x * 44 + 2; }",
    }
    result = project.change(
        files, {"a.c": "int helper(int); int serve(int x) { return helper(x) + 1; }"}, archive=["lib.c"]
    )
    assert result.replaced == ["serve"]
    assert "helper" in result.carried


def test_function_collected_before_and_used_now(project: Project) -> None:
    source = NOINLINE + "int extra(int x) {{ return x * 31 + 5; }} int serve(int x) {{ return {} * 9 + 1; }}"
    options = {
        "link_flags": ["-Wl,--gc-sections", "-Wl,--version-script=only"],
        "compile_flags": ["-fvisibility=hidden"],
    }
    (project.folder / "only").write_text("{ global: main; serve; local: *; };\n")
    if project.variant.mode == "shared":
        options["compile_flags"] = []
    result = change(project, source.format("x"), source.format("extra(x)"), None, **options)
    assert "serve" in result.replaced
    assert "extra" in result.carried


def test_renamed_file_keeps_its_statics(project: Project) -> None:
    """A new file with new statics would start its counters again."""
    source = "static int hits = 1; int serve(int x) {{ return hits += x * {}; }}"
    old = project.build({"main.c": MAIN, "a.c": source.format(3)})
    new = project.build({"main.c": MAIN, "renamed.c": source.format(4)})
    result = project.checked(old, new)
    assert result.replaced == ["serve"]
    assert result.carried == ["serve"]


def test_link_order_does_not_matter(project: Project) -> None:
    files = {
        "main.c": MAIN,
        "a.c": "static int n = 1; int serve(int x) { return n += x * 3; }",
        "b.c": "int o(int x) { return x; }",
    }
    old = project.build(files)
    new = project.build(files, order=["b.c", "a.c", "main.c"])
    assert project.checked(old, new).nothing


def test_interposable_names_of_a_library_are_looked_up_again(tmp_path: Path) -> None:
    """A program may define `pub` in the library's stead, or hold the copy of its variable that everybody uses."""
    project = Project(tmp_path, Variant("gcc", "-O2", "shared"))
    source = (
        'int opt = 2; int pub(int x) {{ return x + opt; }} __attribute__((visibility("hidden"), noinline))'
        " int own(int x)"
        " {{ return x * 77 + opt; }}"
        " int serve(int x) {{ return pub(x) * {} + own(x) + opt; }}"
    )
    result = change(project, source.format(3), source.format(5), None, compile_flags=["-fsemantic-interposition"])
    undefined = {y.name: y.value for y in result.patch.symbols if y.section is None}
    assert undefined["pub"] == undefined["opt"] == 0
    assert undefined["own"] != 0


def test_bound_library_uses_its_own_names(tmp_path: Path) -> None:
    project = Project(tmp_path, Variant("gcc", "-O2", "shared", link_flags=("-Wl,-Bsymbolic",)))
    source = "int opt = 2; int serve(int x) {{ return opt * {}; }}"
    result = change(project, source.format(3), source.format(5))
    assert all(y.value for y in result.patch.symbols if y.section is None and y.name)


def test_ifunc_is_called_through_what_it_was_resolved_to(project: Project) -> None:
    source = (
        "static int one(int x) {{ return x + 1; }} static void *choose(void) {{ return one; }}"
        ' int pick(int) __attribute__((ifunc("choose"), visibility("hidden"))); int serve(int x)'
        " {{ return pick(x) * {}; }}"
    )
    result = change(project, source.format(3), source.format(5))
    (symbol,) = [y for y in result.patch.symbols if y.name == "pick"]
    assert (symbol.section, symbol.type) == (None, 10)  # SHN_UNDEF, STT_GNU_IFUNC
    assert symbol.value


def test_every_mode_is_tried() -> None:
    assert {v.mode for v in VARIANTS} == set(MODES)
    assert {v.optimise for v in VARIANTS if v.compiler == "gcc"} == {"-O0", "-O2", "-O3", "-Os"}
    assert {v.optimise for v in VARIANTS if v.compiler == "clang"} == {"-O0", "-O2", "-O3", "-Os"}


INLINE = "inline NOINLINE int shared(int x) {{ static int n; n++; return x * {} + n; }}\n".replace("NOINLINE", NOINLINE)


def inline_files(a: int, b: int) -> dict[str, str]:
    """Two C++ files with the same inline function, and main."""
    return {
        "main.c": MAIN,
        "a.cc": INLINE.format(a) + 'int other(int); extern "C" int serve(int x) { return shared(x) + other(x); }',
        "b.cc": INLINE.format(b) + "int other(int x) { return shared(x + 1) * 3; }",
    }


PLAIN_CXX = ("-fno-exceptions",)


def test_inline_function_in_two_files_is_replaced_once(tmp_path: Path) -> None:
    """A bug: the copy that the link left out is taken for the function, and its static variable begins anew."""
    project = Project(tmp_path, Variant("gcc", "-O1", "pie"))
    old = project.build(inline_files(5, 5), compile_flags=PLAIN_CXX)
    new = project.build(inline_files(7, 7), compile_flags=PLAIN_CXX)
    result = project.checked(old, new)
    assert result.replaced == ["_Z6sharedi"]
    assert "data-new" not in result.codes()


def test_inline_function_kept_from_another_file_is_the_same(tmp_path: Path) -> None:
    """A bug: with another order in the link, the function is replaced twice, or not at all."""
    project = Project(tmp_path, Variant("gcc", "-O1", "pie"))
    old = project.build(inline_files(5, 5), compile_flags=PLAIN_CXX, order=["main.c", "a.cc", "b.cc"])
    new = project.build(inline_files(7, 7), compile_flags=PLAIN_CXX, order=["main.c", "b.cc", "a.cc"])
    result = project.checked(old, new)
    assert result.refusals == [] or {code for code, _ in result.refusals} <= {"name-means-another"}
    assert result.replaced.count("_Z6sharedi") == 1 or result.refusals
    assert "data-new" not in result.codes()


@pytest.mark.parametrize("optimise", ["-O0", "-O2"])
def test_vtable_that_grows_is_refused(compiler: str, optimise: str, tmp_path: Path) -> None:
    """Objects that live have the old one.  A bug: new code calls what lies behind its end."""
    source = (
        "struct Shape {{ virtual ~Shape() {{}} virtual long a(long x) {{ return x; }} {} }};\n"
        'static Shape *kept; extern "C" int serve(int x) {{ if (!kept) kept = new Shape; return kept->a(x) + {}; }}\n'
    )
    files = {"main.c": MAIN, "a.cc": source.format("", 0)}
    more = {"a.cc": source.format("virtual long b(long x) { return x * 5; }", "kept->b(x)")}
    project = Project(tmp_path, Variant(compiler, optimise))
    result = project.change(files, more, compile_flags=PLAIN_CXX, link_flags=["-Wl,--no-as-needed", "-lstdc++"])
    assert ("type-changed", "_ZTV5Shape") in result.refusals


def test_weak_function_of_the_same_file_is_not_meant_where_it_is_overridden(plain: Project) -> None:
    """A bug: new code calls the weak one, which no other code does."""
    source = (
        "__attribute__((weak, noinline)) int pick(int x) {{ return x * 3 + 1; }}"
        " int serve(int x) {{ return pick(x) * {}; }}"
    )
    more = {"strong.c": NOINLINE + "int pick(int x) { return x * 7 + 2; }"}
    old = plain.build({"main.c": MAIN, "a.c": source.format(5), **more})
    new = plain.build({"main.c": MAIN, "a.c": source.format(9), **more})
    result = plain.checked(old, new)
    assert result.replaced == ["serve"]
    meant = {s.value for s in ElfFile(old.path.read_bytes()).symbols if s.name == "pick"}
    assert {y.value for y in result.patch.symbols if y.name == "pick"} == meant


# Units of which only debug information differs.

HEADER = "/* {} */ struct s {{ int a, b; }}; extern int shared; int other(struct s *); "


def test_units_that_differ_in_debug_information_are_not_compared(project: Project) -> None:
    """A line more in a header: the declarations of every unit that includes it moved."""
    files = {"main.c": MAIN, "o.c": HEADER.format("") + "int shared; int other(struct s *p) { return p->a * 7; }"}
    serve = "int serve(int x) {{ struct s s = {{ x, 1 }}; return other(&s) * {} + shared; }}"
    before = {**files, "a.c": HEADER.format("") + serve.format(3)}
    after = {name: text.replace("/*  */", "/* more\n */") for name, text in before.items()}
    assert project.change(before, after).nothing
    after["a.c"] = HEADER.format("more\n") + serve.format(5)
    result = project.change(before, after)
    assert result.replaced == ["serve"]
    assert result.refusals == []
    assert len(result.changes.replaced) == 1


def test_variable_of_a_unit_whose_code_is_the_same_changes_its_type(project: Project) -> None:
    """Nothing of b.o that is loaded differs, but a.c reads what it holds in another way."""
    serve = "extern {} shared; int serve(int x) {{ return (int)shared * {} + x; }}"
    result = project.change(
        {"main.c": MAIN, "a.c": serve.format("int", 3), "b.c": "int shared;"},
        {"a.c": serve.format("float", 3), "b.c": "float shared;"},
    )
    assert result.refusals == [("variable-type-changed", "shared")]


def test_struct_that_changed_is_carried_over_where_its_object_is_the_same(project: Project) -> None:
    """b.o holds the variable and is the same: its size did not change."""
    struct = "struct s {{ int {}; }}; extern struct s shared; "
    serve = "int serve(int x) { return shared.a * 3 + shared.b * x; }"
    result = project.change(
        {"main.c": MAIN, "a.c": struct.format("a, b") + serve, "b.c": struct.format("a, b") + "struct s shared;"},
        {"a.c": struct.format("b, a") + serve, "b.c": struct.format("b, a") + "struct s shared;"},
    )
    if project.variant.mode == "shared":
        assert {code for code, _ in result.refusals} == {"data-resized"}  # exported
    else:
        assert result.refusals == []
        assert [d.transformation.name for d in result.patch.transforms] == ["shared"]
