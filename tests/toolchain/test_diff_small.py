"""Functions too small for a jump: over their padding, by redirecting callers, or refused; with each linker's fill."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.elf.reader import ElfFile
from tests.support.project import Build, Project, Result, Variant, project_of
from tests.toolchain.test_diff_code import MAIN, NOINLINE

LINKERS = ("bfd", "gold", "lld", "mold")
TIGHT = ("-falign-functions=1", "-fcf-protection=none")
TINY = NOINLINE + "int first(void) { return 0; } " + NOINLINE + "int tiny(int x) { return %s; } "
NEXT = NOINLINE + "int after(int x) { return x; } "
SERVE = "int serve(int x) { return tiny(x) * 3 + after(x) + first(); }"


@pytest.fixture(params=LINKERS)
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    """An empty project for each linker."""
    return project_of(tmp_path, Variant("gcc", "-O2", "pie", request.param))


def change(project: Project, before: str, after: str, **options: object) -> tuple[Result, Build]:
    """The diff when a.c changes, and the old build."""
    files = {"main.c": MAIN, "a.c": before}
    old = project.build(files, **options)  # type: ignore[arg-type]
    new = project.build({**files, "a.c": after}, **options)  # type: ignore[arg-type]
    return project.checked(old, new), old


def next_symbol(build: Build, address: int) -> int:
    """The lowest address of a symbol above `address`."""
    elf = ElfFile(build.path.read_bytes())
    return min(s.value for s in elf.symbols if s.value > address and s.section)


def test_jump_over_padding_says_what_is_expected(project: Project) -> None:
    """A bug: the padding is written over without being compared, or the jump reaches the neighbour."""
    source = TINY + NEXT + SERVE
    result, old = change(project, source % "x", source % "x * 2", compile_flags=("-fcf-protection=none",))
    (replacement,) = (r for r in result.patch.replacements if r.name == "tiny")
    assert replacement.size == 5
    assert replacement.address + 5 <= next_symbol(old, replacement.address)
    assert result.refusals == []


def test_callers_are_redirected_where_the_neighbour_starts_at_once(project: Project) -> None:
    """A bug: five bytes are written over three."""
    source = TINY + NEXT + SERVE
    result, _ = change(project, source % "x", source % "x * 2", compile_flags=TIGHT)
    assert result.replaced == ["serve"]
    assert "tiny" in result.carried
    assert result.about("caller-redirected") == ["serve"]
    assert result.about("function-changed") == ["tiny"]


def test_callers_in_other_files_are_redirected(project: Project) -> None:
    """A bug: only the file that changed is looked at."""
    caller = "int tiny(int); int elsewhere(int x) { return tiny(x + 1) * 7; } "
    files = {"main.c": MAIN, "a.c": TINY % "x" + NEXT + SERVE, "b.c": caller}
    old = project.build(files, compile_flags=TIGHT)
    new = project.build({**files, "a.c": TINY % "x * 2" + NEXT + SERVE}, compile_flags=TIGHT)
    result = project.checked(old, new)
    assert result.replaced == ["elsewhere", "serve"]


@pytest.mark.parametrize("keep", ["int (*volatile kept)(int) = tiny; ", "int (*const kept[])(int) = {tiny, after}; "])
def test_address_that_is_used_otherwise_is_refused(project: Project, keep: str) -> None:
    """A bug: calls through a pointer go on reaching the old code, and nobody is told."""
    source = TINY + NEXT + keep + SERVE
    result, _ = change(project, source % "x", source % "x * 2", compile_flags=TIGHT)
    assert result.refusals == [("function-too-small", "tiny")]
    assert "kept" in next(r.text for r in result.patch.reasons if r.severity == "refused")


def test_exported_function_is_refused(tmp_path: Path) -> None:
    """A bug: other modules go on calling the old code."""
    project = Project(tmp_path, Variant("gcc", "-O2", "shared"))
    source = TINY + NEXT + SERVE
    old = project.build({"a.c": source % "x"}, compile_flags=TIGHT)
    new = project.build({"a.c": source % "x * 2"}, compile_flags=TIGHT)
    assert ("function-too-small", "tiny") in project.checked(old, new).refusals
