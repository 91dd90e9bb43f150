"""The completeness proof: changes that the diff is made to miss are refused, and none that it sees.

Each test plants one blindness in the diff, at the place where the bug would be, and expects the proof to name what was
lost.  The same edit without the blindness must come through without a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from katana_cc.diff import engine, recreate
from katana_cc.diff.compare import Comparison, Outcome
from katana_cc.diff.correlate import Correlation, correlate
from katana_cc.diff.frames import Handlers
from katana_cc.diff.program import Place
from katana_cc.dwarf.lsda import read_lsda
from katana_cc.patch.handlers import HandlerTables
from tests.support.project import Project, Result, Variant, project_in

VARIANTS = [
    Variant("gcc", "-O2", "pie"),
    Variant("gcc", "-O0", "nopie"),
    Variant("clang", "-O2", "pie", "lld"),
    Variant("gcc", "-O2", "shared", "gold"),
    Variant("clang", "-O1", "nopie", "mold"),
]
GCC = Variant("gcc", "-O2", "pie")
MAIN = "int serve(int);\nint main(int c, char **v) { return serve(c); }\n"
NOINLINE = "__attribute__((noinline)) "
Blind = Callable[[pytest.MonkeyPatch], None]


project = project_in(VARIANTS)


def blind_to(*names: str) -> Blind:
    """The comparison takes sections that hold these names for unchanged ("" for those without a name)."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        real = Comparison.compare

        def compare(self: Comparison, old: Place, new: Place) -> Outcome:
            symbols = self.view(self.new, new.unit).symbols_in.get(new.section, [])
            label = symbols[0].name if symbols else ""
            return Outcome.SAME if label.partition(".")[0] in names else real(self, old, new)

        monkeypatch.setattr(Comparison, "compare", compare)

    return plant


def lost(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    before: Mapping[str, str],
    after: Mapping[str, str],
    plant: Blind,
    **options: Any,
) -> tuple[Result, set[str]]:
    """The diff as it is, and the subjects that the proof names when the diff is made blind."""
    old = project.build(before, **options)
    new = project.build({**before, **after}, **options)
    seeing = project.checked(old, new)
    assert "unaccounted" not in seeing.codes()
    with monkeypatch.context() as context:
        plant(context)
        blind = project.diff(old, new)
    return seeing, {subject for code, subject in blind.refusals if code == "unaccounted"}


def change(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    before: str,
    after: str,
    plant: Blind,
    **options: Any,
) -> tuple[Result, set[str]]:
    """`lost` for a.c, in which `@` is `before` and then `after`."""
    files = {"main.c": MAIN, "a.c": source.replace("@", before)}
    return lost(project, monkeypatch, files, {"a.c": source.replace("@", after)}, plant, **options)


def test_changed_function(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing, missed = change(
        project, monkeypatch, "int n; int serve(int x) { return x * @ + n; }", "3", "5", blind_to("serve")
    )
    assert seeing.replaced == ["serve"]
    assert missed == {"serve"}


def test_one_function_of_two(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is carried, so that the patch is not an empty one."""
    source = NOINLINE + "int work(int x) { return x * @; } int serve(int x) { return work(x) + 10@; }"
    seeing, missed = change(project, monkeypatch, source, "3", "5", blind_to("work"))
    assert {"work", "serve"} <= set(seeing.replaced)
    assert missed == {"work"}


def test_changed_constant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "const int table[40] = {1, 2, @}; int serve(int x) { return table[x & 31]; }"
    seeing, missed = change(project, monkeypatch, source, "3", "5", blind_to("table"))
    assert seeing.edited == ["table"]
    assert missed == {"table"}


def test_changed_literal(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    source = '#include <stdio.h>\nint serve(int x) { return printf("@ %d\\n", x); }'
    seeing, missed = change(project, monkeypatch, source, "one", "two", blind_to("serve"))
    assert seeing.replaced == ["serve"]
    assert missed == {"serve"}


def test_changed_floating_constant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "double serve(double x) { return x * @; }"
    seeing, missed = change(project, monkeypatch, source, "3.25", "5.5", blind_to("serve"))
    assert seeing.replaced == ["serve"]
    assert missed == {"serve"}


def test_changed_jump_table(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is the same to the byte; only the order of the entries changed."""
    table = (
        'asm(".section .text.pick,\\"ax\\",@progbits\\n.globl pick\\n.type pick,@function\\n"\n'
        '"pick:\\n.cfi_startproc\\n"\n'
        '"lea table_(%rip), %rax\\nmovslq (%rax,%rdi,4), %rdx\\nadd %rax, %rdx\\njmp *%rdx\\n"\n'
        '"first_: mov $1, %eax\\nret\\nsecond_: mov $2, %eax\\nret\\n.cfi_endproc\\n.size pick,.-pick\\n"\n'
        '".section .rodata.pick,\\"a\\",@progbits\\n.align 4\\ntable_: .long ENTRIES\\n.text\\n");\n'
        "int pick(long); int serve(int x) { return pick(x & 1); }"
    )
    entries = [f"{a}_-table_, {b}_-table_" for a, b in (("first", "second"), ("second", "first"))]
    files = {"main.c": MAIN, "a.c": table.replace("ENTRIES", entries[0])}
    after = {"a.c": table.replace("ENTRIES", entries[1])}
    seeing, missed = lost(project, monkeypatch, files, after, blind_to("table_"))
    assert seeing.replaced == ["pick"]
    assert missed == {"pick"}


def test_changed_reference(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, calling another function."""
    source = NOINLINE + "int one(int x) { return x * 3; } " + NOINLINE + "int two(int x) { return x * 5; }\n"
    source += "int serve(int x) { return @(x) + 7; }"

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Comparison, "correspond", lambda *_: True)

    seeing, missed = change(project, monkeypatch, source, "one", "two", plant)
    assert "serve" in seeing.replaced
    assert missed == {"serve"}


def test_changed_variable_meant(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "static int one = 1, two = 2; int peek(void) { return one++ + 3 * two++; } int serve(int x) { return x + @; }"
    )

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Comparison, "correspond", lambda *_: True)

    seeing, missed = change(project, monkeypatch, source, "one", "two", plant)
    assert "serve" in seeing.replaced
    assert "serve" in missed


def test_initial_value_that_nobody_was_told_of(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "int limit = @; int serve(int x) { return x + limit++; }"
    seeing, missed = change(project, monkeypatch, source, "5", "6", blind_to("limit"))
    assert seeing.about("initialiser-kept") == ["limit"]
    assert missed == {"limit"}


@pytest.mark.parametrize("linker", ["bfd", "gold", "lld", "mold"])
def test_thread_local_without_an_initial_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linker: str) -> None:
    """.tbss has an address and takes no room: lld puts it where nothing is."""
    variant = Variant("gcc", "-O2", "pie", linker)
    if not variant.available():
        pytest.skip(f"ld.{linker} is not installed")
    source = "static _Thread_local int calls[9]; int serve(int x) { return calls[x & 7]++ + x * @; }"
    seeing, missed = change(Project(tmp_path, variant), monkeypatch, source, "3", "5", blind_to("serve"))
    assert seeing.replaced == ["serve"]
    assert missed == {"serve"}


def test_table_of_handlers(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    source = NOINLINE + "int one(int x) { return x * 3; } " + NOINLINE + "int two(int x) { return x * 5; }\n"
    source += "int (*handler)(int) = @; int serve(int x) { return handler(x); }"
    seeing, missed = change(project, monkeypatch, source, "one", "two", blind_to("handler"))
    assert seeing.about("pointer-rewritten") == ["handler"]
    assert missed == {"handler"}


def test_constant_made_anew_that_others_use(plain: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that goes on with the old table: also one in a file that did not change."""
    files = {"main.c": MAIN, "a.c": "extern const int t[]; int serve(int x) { return t[x & 3]; }"}
    files["b.c"] = "const int t[] = {1, 2, 3, 4}; int own(int x) { return t[x & 3] + 1; }"
    after = {"b.c": "const int t[] = {1, 2, 3, 4, 5, 6, 7, 8}; int own(int x) { return t[x & 3] + 1; }"}

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        real = recreate._refers_to_recreated

        def forget(diff: Any, view: Any, place: Place, target: Place) -> None:
            if view.label(place.section) != "serve":
                real(diff, view, place, target)

        monkeypatch.setattr(recreate, "_refers_to_recreated", forget)

    seeing, missed = lost(plain, monkeypatch, files, after, plant)
    assert seeing.replaced == ["own", "serve"]
    assert missed == {"serve"}


def test_name_that_means_another(plain: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of a library that the program defines now, used by a file that did not change."""
    files = {"main.c": MAIN, "a.c": "long labs(long); int serve(int x) { return labs(x) + 1; }", "b.c": "int other;"}
    flags = ["-fno-builtin"]
    old = plain.build(files, compile_flags=flags)
    after = {**files, "b.c": "int other; long labs(long x) { return x + 7; }"}
    new = plain.build(after, keep=["a.c"], compile_flags=flags)
    assert plain.diff(old, new).refusals == [("name-means-another", "labs")]
    monkeypatch.setattr(engine, "check_names", lambda _: None)
    assert plain.diff(old, new).refusals == [("unaccounted", "serve")]


def test_export_that_would_reach_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its callers within the library are carried and call the new one; nothing leads to it from the old entry."""
    project = Project(tmp_path, Variant("gcc", "-O2", "shared", link_flags=("-Wl,-Bsymbolic",)))
    source = NOINLINE + "int work(int x) { return x * @; } int serve(int x) { return work(x) + 10@; }"

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        real = engine.Diff.run

        def run(self: engine.Diff) -> engine.Changes:
            changes = real(self)
            place = next(p for p in changes.replaced if self.view(self.new, p.unit).label(p.section) == "work")
            del changes.replaced[place]
            changes.renewed.add(place)
            self.correlation.forget(place)
            changes.reliances.clear()
            return changes

        monkeypatch.setattr(engine.Diff, "run", run)

    seeing, missed = change(project, monkeypatch, source, "3", "5", plant)
    assert {"work", "serve"} <= set(seeing.replaced)
    assert missed == {"work"}


def test_statics_taken_for_each_other(plain: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live values of two variables of one name would be exchanged, in code that is all carried."""
    one = "int one(int x) { static int n = 5; return n += x * @; }\n"
    two = "int two(int x) { static int n = 7; return n += x * 9@; }\n"
    source = NOINLINE + one + NOINLINE + two + "int serve(int x) { return one(x) + two(x); }"

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        real = correlate

        def swapped(*arguments: Any) -> Correlation:
            result = real(*arguments)
            view, new = arguments[2], arguments[1]
            statics = [p for p in result.old_of if view(new, p.unit).label(p.section).startswith("n.")]
            first, second = statics
            result.old_of[first], result.old_of[second] = result.old_of[second], result.old_of[first]
            return result

        monkeypatch.setattr(engine, "correlate", swapped)

    seeing, missed = change(plain, monkeypatch, source, "3", "4", plant)
    assert {"one", "two"} <= set(seeing.replaced)
    assert missed & {"one", "two"}


def test_constructor(plain: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "int n; @ int serve(int x) { return x + n; }"
    old = plain.build({"main.c": MAIN, "a.c": source.replace("@", "")})
    new = plain.build(
        {"main.c": MAIN, "a.c": source.replace("@", "__attribute__((constructor)) static void set(void) { n = 9; }")}
    )
    assert ("startup-code-changed", ".init_array") in plain.diff(old, new).refusals
    monkeypatch.setattr(engine.Diff, "_compare_whole", lambda *_: None)
    assert plain.diff(old, new).refusals == [("unaccounted", ".init_array")]
    monkeypatch.setattr(engine.Diff, "_note_removed", lambda *_: None)
    assert plain.diff(new, old).refusals == [("unaccounted", ".init_array")]


def test_line_numbers_are_verified(plain: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that changed otherwise than the lines did is no line number, whatever the diff says."""
    source = "#include <assert.h>\n@int serve(int x) { assert(x >= 0); return x * 3 + VALUE; }"
    files = {"main.c": MAIN, "a.c": source.replace("@", "").replace("VALUE", "700")}
    moved = source.replace("@", "\n\n\n")
    monkeypatch.setattr(engine, "only_lines_differ", lambda *_: True)
    assert plain.change(files, {"a.c": moved.replace("VALUE", "700")}).nothing
    result = plain.change(files, {"a.c": moved.replace("VALUE", "900")})
    assert result.refusals == [("unaccounted", "serve")]
    assert "a.c" in result.patch.reasons[0].file
    assert result.patch.reasons[0].line == 5


CLASSES = """struct base { virtual int f(int x) { return x * 3; } virtual int g(int x) { return x * 5; } };
struct derived : base { int f(int x) override; @ };
int derived::f(int x) { return x * 7; }
int use(base *b, int x) { return b->f(x) + b->g(x); }
extern "C" int serve(int x) { static derived d; return use(&d, x); }
"""


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_virtual_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    project = Project(tmp_path, Variant(compiler, "-O1", compile_flags=("-fno-exceptions", "-fno-rtti")))
    main = 'extern "C" ' + MAIN
    before = {"main.cc": main, "a.cc": CLASSES.replace("@", "")}
    after = {"a.cc": CLASSES.replace("@", "int g(int x) override { return x * 11; }")}
    seeing, missed = lost(project, monkeypatch, before, after, blind_to("_ZTV7derived"))
    assert "_ZTV7derived" in seeing.edited
    assert missed == {"_ZTV7derived"}


CATCHES = """struct a {}; struct b {}; int raise(int);
extern "C" int serve(int x) { try { return raise(x); } catch (@ &) { return 7; } catch (...) { return 9; } }
"""


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_handler_of_another_type(tmp_path: Path, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is the same.  A diff that does not look at what it catches is found out."""
    project = Project(tmp_path, Variant(compiler, "-O2"))
    files = {
        "main.cc": 'extern "C" ' + MAIN,
        "b.cc": "struct a {}; struct b {}; int raise(int x) { if (x) throw a(); throw b(); }",
        "a.cc": CATCHES.replace("@", "a"),
    }
    old = project.build(files)
    assert project.diff(old, project.build({**files, "a.cc": "\n" + CATCHES.replace("@", "a")})).nothing
    new = project.build({**files, "a.cc": CATCHES.replace("@", "b")})
    result = project.diff(old, new)
    assert (result.refusals, result.replaced) == ([], ["serve"])
    monkeypatch.setattr(Comparison, "same_handlers", lambda *_: True)
    assert ("unaccounted", "serve") in project.diff(old, new).refusals


TWO_CATCHES = """struct a {}; struct b {}; int raise(int); struct c { int n; ~c(); };
extern "C" int serve(int x) {
  try { c guard{x}; return raise(x) * @; } catch (a &) { return 7; } catch (b &) { return 8; } catch (...) { return 9; }
}
"""


@pytest.mark.parametrize("what", ["types exchanged", "pad of a call", "a type more", "nothing"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("mode", ["pie", "nopie"])
def test_exception_table_that_says_something_else(
    tmp_path: Path, compiler: str, mode: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patch object is made wrongly: what it carries as the table of a function is not the new build's."""
    project = Project(tmp_path, Variant(compiler, "-O2", mode))
    raising = "struct a {}; struct b {}; int raise(int x) { if (x) throw a(); throw b(); } struct c { int n; ~c(); };"
    files = {
        "main.cc": 'extern "C" ' + MAIN,
        "b.cc": raising + "int last; c::~c() { last = n; }",
        "a.cc": TWO_CATCHES.replace("@", "3"),
    }
    old = project.build(files)
    new = project.build({**files, "a.cc": TWO_CATCHES.replace("@", "5")})
    real = HandlerTables.table

    def table(self: HandlerTables, place: Place, handlers: Handlers) -> int | None:
        symbol = real(self, place, handlers)
        assert symbol is not None
        number = self.carrier.symbols[symbol].section
        assert number is not None
        section = self.carrier.sections[number]
        assert section is not None
        data, rows = bytearray(section.data), list(section.relocations)
        if what == "types exchanged" and len(rows) > 1:
            rows = [replace(rows[0], symbol=rows[1].symbol), replace(rows[1], symbol=rows[0].symbol), *rows[2:]]
        elif what == "pad of a call":
            pad = next((site.pad for site in read_lsda(section.data, 0).call_sites if site.pad), None)
            if pad is None:
                return symbol  # that of a part
            data[data.index(pad.to_bytes(1, "little"), 4)] += 1
        elif what == "a type more":
            rows = rows[1:]
        self.carrier.sections[number] = replace(section, data=bytes(data), relocations=tuple(rows))
        return symbol

    monkeypatch.setattr(HandlerTables, "table", table)
    refusals = project.diff(old, new).refusals
    assert {(code, subject.removesuffix(".cold")) for code, subject in refusals} == (
        set() if what == "nothing" else {("unaccounted", "serve")}
    )


# What must not be found.


def test_static_function_of_a_name_that_turned_global_elsewhere(project: Project) -> None:
    """A bug: of the name `work` only the global one was looked at, and b.c's called unaccounted for."""
    work = NOINLINE + "{}int work(int x) {{ return x * {} + 1; }} int {}(int x) {{ return work(x) * 7; }}"
    result = project.change(
        {"main.c": MAIN, "a.c": work.format("static ", 3, "serve"), "b.c": work.format("static ", 5, "other")},
        {"a.c": work.format("", 3, "serve"), "b.c": work.format("static ", 9, "other")},
    )
    assert result.refusals == []
    assert "work" in result.replaced or "other" in result.replaced


def test_constant_that_grew_and_that_nothing_reads(plain: Project) -> None:
    """A bug: a table without readers is not carried, and was called unaccounted for."""
    source = "const {} table[] = {{1, 2, 3, 4, 5, 6, 7, 8}}; {} int serve(int x) {{ return x * {}; }}"
    reader = "int read(int x) { return table[x & 7]; }"
    result = plain.change(
        {"main.c": "int read(int); " + MAIN.replace("serve(c)", "serve(c) + read(c)"),
         "a.c": source.format("short", reader, 3)},
        {"main.c": MAIN, "a.c": source.format("long", "", 5)},
    )  # fmt: skip
    assert result.refusals == []
