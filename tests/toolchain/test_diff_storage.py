"""Statics for which an optimising compiler keeps no storage in one of two builds: a live value that nothing holds.

Without a statement that writes a static, or without one that reads it, the compiler takes it away: what it is
initialised with is folded into its readers, or what is written to it is dropped.  Debug information tells neither from
the other.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.project import Project, Variant, project_in, project_of
from tests.toolchain.test_diff_code import MAIN, NOINLINE, change

OPTIMISED = [
    Variant("gcc", "-O2", "pie"),
    Variant("gcc", "-Os", "nopie"),
    Variant("gcc", "-O3", "shared"),
    Variant("clang", "-O2", "pie", "lld"),
    Variant("clang", "-Os", "nopie"),
]
LOST, UNKNOWN = {"data-storage-lost"}, {"data-storage-unknown"}
RESET = "void reset(int x) {{ {} }} "


project = project_in(OPTIMISED)


@pytest.fixture
def clang(tmp_path: Path) -> Project:
    """An empty project built by clang -O2 -pie."""
    return project_of(tmp_path, Variant("clang", "-O2", "pie", "lld"))


def test_last_writer_of_a_static_goes(project: Project) -> None:
    source = "static int n{}; " + RESET + "int serve(int x) {{ return n * 3 + x; }}"
    result = change(project, source.format(" = 4", "n = x;"), source.format(" = 4", ""))
    assert set(result.needs) == {("data-storage-lost", "n")}
    (reason,) = [r for r in result.patch.reasons if r.severity == "needs"]
    assert (Path(reason.file).name, reason.line) == ("a.c", 1)
    assert "volatile" in reason.text, "what to do about it"


def test_last_writer_of_a_static_local_goes(project: Project) -> None:
    source = "int serve(int x) {{ static int n; {} return n + x; }}"
    result = change(project, source.format("n += x;"), source.format("x++;"))
    assert set(result.needs) == {("data-storage-lost", "serve()::n")}


def test_last_writer_of_a_static_of_an_inlined_function_goes(project: Project) -> None:
    source = "static inline int work(int x) {{ static int n; {} return n + x; }} int serve(int x) {{ return work(x); }}"
    result = change(project, source.format("n += x;"), source.format("x++;"))
    assert {code for code, _ in result.needs} == LOST


def test_last_writer_goes_with_the_function_it_was_in(project: Project) -> None:
    source = "static int n; {}int serve(int x) {{ return n * 3 + x; }}"
    result = change(project, source.format("void reset(int x) { n = x; } "), source.format(""))
    assert {code for code, _ in result.needs} == LOST


def test_last_reader_of_a_static_goes(project: Project) -> None:
    """Harmless, but debug information looks the same."""
    source = "static int n; void set(int x) {{ n = x; }} int serve(int x) {{ return {}; }}"
    result = change(project, source.format("n + x"), source.format("x + 3"))
    assert {code for code, _ in result.needs} == LOST


def test_first_reader_of_a_static_comes(project: Project) -> None:
    """The old build dropped what was written to it: the live value is nowhere."""
    source = "static int n; void set(int x) {{ n = x; }} int serve(int x) {{ return {}; }}"
    result = change(project, source.format("x * 77 + 3"), source.format("n + x * 77"))
    assert set(result.needs) == {("data-storage-unknown", "n")}


def test_first_reader_of_a_static_local_comes(project: Project) -> None:
    source = "int serve(int x) {{ static int n; {} n = x; return x * 77 + 3; }}"
    result = change(project, source.format(""), source.format("if (x > 3) return n;"))
    assert {code for code, _ in result.needs} == UNKNOWN


def test_removed_and_new_statics_need_nothing(project: Project) -> None:
    before = "static int n; void set(int x) { n = x; } int serve(int x) { return n + x; }"
    after = "static int m; void set(int x) { m = x; } int serve(int x) { return m + x; }"
    result = change(project, before, after)
    assert (result.refusals, result.needs) == ([], [])
    assert result.about("data-removed") == ["n"]


def test_static_that_turned_automatic_is_none(plain: Project) -> None:
    work = NOINLINE + "static void fill(char *p, int x) {{ for (int i = 0; i < 64; i++) p[i] = (char)(x + i); }} "
    source = work + "int serve(int x) {{ {}char b[64]; fill(b, x); return b[x & 63]; }}"
    result = change(plain, source.format("static "), source.format(""))
    assert result.refusals == []


def test_one_of_two_statics_of_one_name_loses_its_storage(plain: Project) -> None:
    source = (
        "int serve(int x) {{ if (x & 1) {{ static int n; n += x; return n; }} "
        "else {{ static int n; {} return n * 5 + 1; }} }}"
    )
    result = change(plain, source.format("n -= x;"), source.format("x++;"))
    assert result.refusals or {code for code, _ in result.needs} == LOST


def test_static_loses_its_storage_in_a_file_it_moves_to(plain: Project) -> None:
    work = NOINLINE + "int work(int x) {{ static int n; {} return n + x; }} "
    a, b = "int work(int); int serve(int x) { return work(x); }", "int other(int x) { return x * 7; }"
    result = plain.change(
        {"main.c": MAIN, "a.c": work.format("n += x;") + a, "b.c": b}, {"a.c": a, "b.c": b + work.format("x++;")}
    )
    assert {code for code, _ in result.needs} == LOST


def test_part_of_a_struct_loses_its_storage(clang: Project) -> None:
    source = (
        "static struct {{ int a, b; }} s; void set(int x) {{ s.a = x; {} }}int serve(int x) {{ return s.a * x + s.b; }}"
    )
    result = change(clang, source.format("s.b = -x;"), source.format(""))
    assert {code for code, _ in result.needs} >= LOST


def test_part_of_a_struct_that_had_no_storage_gets_it(clang: Project) -> None:
    source = (
        "static struct {{ int a, b; }} s; void set(int x) {{ s.a = x; s.b = -x; }} "
        "int serve(int x) {{ return s.a * x + {}; }}"
    )
    result = change(clang, source.format("x"), source.format("s.b"))
    assert {code for code, _ in result.needs} >= UNKNOWN


def test_byte_of_which_only_whether_it_was_written_is_kept(clang: Project) -> None:
    """With one value left that is ever written, clang keeps a truth value: 5 or 0, whatever lives there."""
    source = "static unsigned char n; void set(int x) {{ {} }} int serve(int x) {{ return n * 3 + x; }}"
    result = change(clang, source.format("n = x > 3 ? 5 : (unsigned char)x;"), source.format("if (x > 3) n = 5;"))
    assert {code for code, _ in result.refusals} == {"data-storage-restyled"}
