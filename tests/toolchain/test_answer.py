"""`katana answer`: a field that was renamed, said by a person at the build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from katana_cc.cli.main import main
from katana_cc.errors import ExitStatus
from katana_cc.patch import codec
from katana_cc.patch.model import PatchObject, Verdict
from katana_cc.release.emit import emit_patches
from katana_cc.release.naming import name_release
from katana_cc.transform.model import Copy, Dropped, Integer, Step
from tests.support.project import Project
from tests.toolchain.test_diff_code import MAIN

SOURCE = """\
struct s {{ int {0}; {1} long b; }};
static struct s g = {{ .b = 3 }};
int serve(int x) {{ return g.{0} += x + g.b++ * {2}; }}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose released build has a field that the present one calls otherwise."""
    project = Project(tmp_path)
    project.build({"main.c": MAIN, "a.c": SOURCE.format("count", "", 1)})
    name_release(project.store, "v1", deployed=True)
    build = project.build({"main.c": MAIN, "a.c": SOURCE.format("total", "long more;", 2)})
    list(emit_patches(project.store, build.snapshot))
    monkeypatch.chdir(tmp_path)
    return project


def verdict(project: Project) -> str:
    return project.store.patches()[0].verdict


def newest(project: Project) -> PatchObject:
    path = Path(project.store.patches()[0].path)
    return codec.decode(path.read_bytes(), str(path))


def steps(project: Project) -> list[Step]:
    patch = newest(project)
    (found,) = [d.transformation.steps for d in patch.transforms if d.symbol is not None]
    return list(found)


def test_the_refusal_says_how_to_answer(project: Project) -> None:
    assert verdict(project) == Verdict.REFUSED
    assert any("katana answer 'struct s.count' total, or --gone" in r.text for r in newest(project).reasons)


def test_a_rename_that_is_confirmed_makes_the_patch_anew(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["answer", "struct s.count", "total"]) == ExitStatus.DONE
    assert capsys.readouterr().out.startswith("katana: prog (v1 ")
    assert verdict(project) == Verdict.SAFE
    assert ("count", "total") in [(s.source, s.field) for s in steps(project) if isinstance(s, Copy | Integer)]
    assert not any(isinstance(s, Dropped) for s in steps(project))
    main(["answer"])
    assert capsys.readouterr().out == "s.count: total\n"


def test_a_rename_that_is_denied_drops_the_value(project: Project) -> None:
    main(["answer", "s.count", "--gone"])
    assert verdict(project) == Verdict.SAFE
    assert [s.source for s in steps(project) if isinstance(s, Dropped)] == ["count"]


def test_an_answer_can_be_taken_back(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    main(["answer", "s.count", "--gone"])
    main(["answer", "s.count", "--forget"])
    assert verdict(project) == Verdict.REFUSED
    capsys.readouterr()
    main(["answer", "--json"])
    assert json.loads(capsys.readouterr().out) == []
    assert main(["answer", "s.count", "--forget"]) == ExitStatus.USAGE


def test_an_answer_that_names_no_field_is_no_answer(project: Project) -> None:
    """A bug: a slip of the pen, and the value is dropped."""
    main(["answer", "s.count", "totl"])
    assert verdict(project) == Verdict.REFUSED
    assert any("is said to be called `totl` now, and there is none" in r.text for r in newest(project).reasons)


@pytest.mark.parametrize("words", [["s.count"], ["s.count", "a", "--gone"], ["--gone"], ["count", "total"]])
@pytest.mark.usefixtures("project")
def test_half_an_answer_is_refused(words: list[str]) -> None:
    assert main(["answer", *words]) == ExitStatus.USAGE


def test_an_answer_holds_for_objects_on_the_heap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "void *malloc(unsigned long);\nstruct node {{ struct node *next; int {0}; {1} }};\nstatic struct node *head;\n"
        "int serve(int x) {{ struct node *n = malloc(sizeof *n); n->next = head; n->{0} = x; head = n; "
        "return head->{0} * {2}; }}\n"
    )
    project = Project(tmp_path)
    project.build({"main.c": MAIN, "a.c": source.format("count", "", 1)})
    name_release(project.store, "v1", deployed=True)
    build = project.build({"main.c": MAIN, "a.c": source.format("total", "long more[3];", 2)})
    list(emit_patches(project.store, build.snapshot))
    monkeypatch.chdir(tmp_path)
    assert verdict(project) == Verdict.REFUSED
    main(["answer", "struct node.count", "total"])
    assert verdict(project) == Verdict.SAFE
    (made,) = [d.transformation for d in newest(project).transforms if d.transformation.name == "struct node"]
    assert ("count", "total") in [(s.source, s.field) for s in made.steps if isinstance(s, Copy | Integer)]
