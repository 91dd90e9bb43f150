"""Another compiler, or other options, than before: said, with what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.diff.compilers import difference
from tests.support.project import Project, Result, Variant
from tests.toolchain.test_diff_code import MAIN

SOURCE = "static int n; int serve(int x) { for (int i = 0; i < x; i++) n += i * x; return n; }"
SOURCES = {"main.c": MAIN, "a.c": SOURCE}


def said(result: Result) -> list[tuple[str, str]]:
    """What the patch says of compilers: (objects, text)."""
    return [(r.subject, r.text) for r in result.patch.reasons if r.code == "compiled-otherwise"]


def test_other_options(tmp_path: Path) -> None:
    project = Project(tmp_path, Variant("gcc", "-O2", "pie"))
    old = project.build(SOURCES)
    new = project.build(SOURCES, compile_flags=["-O3", "-fno-strict-aliasing"])
    (found,) = said(project.checked(old, new))
    assert found[0].endswith(", and 1 more")
    assert found[1].startswith("compiled otherwise (none -> -O3 -fno-strict-aliasing); ")


def test_other_compiler(tmp_path: Path) -> None:
    if not Variant("clang").available():
        pytest.skip("clang is not installed")
    project = Project(tmp_path, Variant("gcc", "-O2", "pie"))
    old = project.build(SOURCES)
    project.variant = Variant("clang", "-O2", "pie")
    found = said(project.diff(old, project.build(SOURCES)))
    assert found
    assert all("(GNU C" in text and "-> " in text and "clang version" in text for _, text in found)


def test_same_options(tmp_path: Path) -> None:
    """A bug: it is said of every patch."""
    project = Project(tmp_path, Variant("gcc", "-O2", "pie"))
    old = project.build(SOURCES)
    changed = {**SOURCES, "a.c": SOURCE.replace("i * x", "i + x")}
    assert said(project.checked(old, project.build(changed, compile_flags=["-g3", "-fdebug-prefix-map=/a=/b"]))) == []


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (["GNU C17 12.2.0 -O2 -g"], ["GNU C17 12.2.0 -g3 -O2"], ""),
        (["GNU C17 12.2.0 -O2"], ["GNU C17 12.3.0 -O2"], "compiled otherwise (GNU C17 12.2.0 -> GNU C17 12.3.0)"),
        (["GNU C17 12.2.0 -O2 -fwrapv"], ["GNU C17 12.2.0 -O2"], "compiled otherwise (-fwrapv -> none)"),
        (["GNU AS 2.40", "GNU C17 1"], ["GNU C17 1", "GNU AS 2.40"], ""),
    ],
)
def test_words(before: list[str], after: list[str], text: str) -> None:
    assert difference(tuple(before), tuple(after)).partition(";")[0] == text
