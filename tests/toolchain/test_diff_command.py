"""`katana diff` for scripts: its exit statuses, and the file and line of every change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from katana_cc.cli.main import main
from katana_cc.release.naming import name_release
from tests.support.project import Project, Variant, project_of
from tests.toolchain.test_diff_code import MAIN

SOURCE = """\
struct item { int a; int b; };
static struct item one;
int limit = 4;
enum color { RED, GREEN };
static const char *const names[] = {"x", "y"};

__attribute__((noinline)) static int work(int x)
{
  enum color c = x & 1;
  return x * 3 + one.a + c + names[x & 1][0] + (int)sizeof one;
}

int serve(int x)
{
  return work(x) + limit;
}
"""


@pytest.fixture(params=["gcc", "clang"])
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose first build is released as v1; the current folder."""
    project = project_of(tmp_path, Variant(request.param))
    project.build({"main.c": MAIN, "a.c": SOURCE})
    name_release(project.store, "v1", deployed=True)
    monkeypatch.chdir(tmp_path)
    return project


def rebuild(project: Project, *texts: str) -> None:
    """Build again with other texts: old, new, old, new."""
    source = SOURCE
    for old, new in zip(texts[::2], texts[1::2], strict=True):
        assert old in source
        source = source.replace(old, new)
    project.build({"main.c": MAIN, "a.c": source})


def reasons(capsys: pytest.CaptureFixture[str]) -> dict[str, list[tuple[str, str, int]]]:
    """Code → (subject, file, line) of the reasons that `katana diff --json` gives."""
    capsys.readouterr()
    assert main(["diff", "v1", "--json"]) == 0
    (output,) = json.loads(capsys.readouterr().out)
    found: dict[str, list[tuple[str, str, int]]] = {}
    for r in output["reasons"]:
        found.setdefault(r["code"], []).append((r["subject"], Path(r["file"]).name, r["line"]))
    return found


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("limit = 4", "limit = 4", 0),
        ("int serve(int x)", "/* said */ int serve(int x)", 0),
        ("x * 3", "x * 5", 1),
        ("int limit = 4", "float limit = 4", 3),
    ],
    ids=["same", "nothing-to-patch", "safe", "refused"],
)
def test_exit_status_is_the_verdict(project: Project, old: str, new: str, status: int) -> None:
    """A bug: a script ships a patch that was refused, or restarts for nothing."""
    rebuild(project, old, new)
    assert main(["diff", "v1", "--exit-code"]) == status
    assert main(["diff", "v1"]) == 0


def test_gravest_verdict_of_several_outputs_counts(project: Project) -> None:
    """A bug: a refused output is hidden by another that is the same."""
    project.build({"main.c": MAIN, "a.c": SOURCE}, output="other")
    name_release(project.store, "v2", deployed=True)
    project.build({"main.c": MAIN, "a.c": SOURCE.replace("int limit = 4", "float limit = 4")}, output="other")
    assert main(["diff", "v2", "--exit-code"]) == 3


def test_needed_says_whether_there_is_anything_to_patch(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """A bug: a script cannot tell a harmless rebuild from a patch."""
    for old, new, needed in (("int serve(int x)", "/**/ int serve(int x)", False), ("x * 3", "x * 5", True)):
        rebuild(project, old, new)
        capsys.readouterr()
        assert main(["diff", "v1", "--json"]) == 0
        results: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        assert [r["needed"] for r in results] == [needed]


def test_changes_of_functions_have_file_and_line(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """A bug: a person has to search for what changed."""
    rebuild(project, "x * 3", "x * 5")
    found = reasons(capsys)
    assert ("work", "a.c", 7) in found["function-changed"]


def test_changes_of_variables_have_file_and_line(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    rebuild(project, "limit = 4", "limit = 5")
    assert reasons(capsys)["initialiser-kept"] == [("limit", "a.c", 3)]
    rebuild(project, "int limit = 4", "long limit = 4")
    assert ("limit", "a.c", 3) in reasons(capsys)["data-transformed"]
    rebuild(project, '{"x", "y"}', '{"x", "z"}')
    found = {where for several in reasons(capsys).values() for where in several}
    assert found
    # The table, or whatever the compiler folded it into.
    assert {(file, line) for _, file, line in found} <= {("a.c", 5), ("a.c", 7), ("a.c", 13)}


def test_changes_of_types_have_file_and_line(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    rebuild(project, "int a; int b;", "int a; long b;")
    assert reasons(capsys)["type-carried-over"] == [("struct item", "a.c", 1)]
    rebuild(project, "RED, GREEN }", "RED, GREEN, BLUE }", "x * 3", "x * 5")
    assert {(file, line) for _, file, line in reasons(capsys)["enumerator-added"]} == {("a.c", 4)}
