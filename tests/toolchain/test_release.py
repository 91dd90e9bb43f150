"""Releases, patches after a link, and bundles, over real builds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from katana_cc.cli.main import main
from katana_cc.cli.release import release
from katana_cc.errors import StoreError, UsageError
from katana_cc.patch import codec
from katana_cc.patch.files import read_patch
from katana_cc.release.bundle import make_bundle, write_bundle
from katana_cc.release.emit import emit_patches
from katana_cc.release.naming import name_release, unrecorded
from katana_cc.snapshot.garbage import collect
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.verify import verify_store
from tests.support.project import Project
from tests.toolchain.test_diff_code import MAIN

SOURCE = "static int n; int serve(int x) {{ return n += x * {}; }}"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose first build is released as v1."""
    project = Project(tmp_path)
    project.build({"main.c": MAIN, "a.c": SOURCE.format(3)})
    name_release(project.store, "v1", deployed=True)
    return project


def rebuild(project: Project, factor: int) -> list[str]:
    """Build again with another factor; the lines that the build would print."""
    build = project.build({"main.c": MAIN, "a.c": SOURCE.format(factor)})
    return list(emit_patches(project.store, build.snapshot))


def written(project: Project, since: str, folder: Path) -> dict[str, Any]:
    """Write a bundle; its manifest."""
    bundle = make_bundle(project.store, since)
    write_bundle(bundle, folder)
    return bundle.manifest


def test_changed_link_emits_a_patch_that_every_tool_accepts(project: Project) -> None:
    (line,) = rebuild(project, 5)
    (row,) = project.store.patches()
    assert row.path.split("/")[-1] in line
    assert (row.output, row.from_name, row.verdict) == ("prog", "v1", "safe")
    assert main(["check", row.path]) == 0
    read = subprocess.run(["readelf", "-aW", row.path], check=True, capture_output=True, text=True)
    assert read.stderr == ""
    subprocess.run(["ld", "-r", "-o", "/dev/null", row.path], check=True)


def test_unchanged_link_prints_nothing(project: Project) -> None:
    assert rebuild(project, 3) == []
    assert project.store.patches() == []


def test_recording_what_does_not_differ_imports_no_diff(project: Project) -> None:
    """It is what most links pay; dataclasses alone would take a seventh of it."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-I", "-m", "katana_cc.cli.release", "again", "--not-deployed"],
        cwd=project.folder, check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.split("|")[2].strip() for line in lines}
    assert not imported & {"dataclasses", "inspect", "shutil"}
    packages = {name.split(".")[1] for name in imported if name.startswith("katana_cc.")}
    assert packages <= {"cli", "cpu", "elf", "errors", "recorder", "release", "settings", "snapshot", "telling"}
    # Of the CPU only what a linker may write.
    lean = {"choice", "extent", "x86_64", "x86_64.relocations"}
    assert {n.removeprefix("katana_cc.cpu.") for n in imported if n.startswith("katana_cc.cpu.")} <= lean


def test_patch_is_the_same_to_the_byte(project: Project) -> None:
    rebuild(project, 5)
    path = Path(project.store.patches()[0].path)
    before = path.read_bytes()
    rebuild(project, 7)
    rebuild(project, 5)
    assert path.read_bytes() == before


def test_each_deployed_release_gets_its_patch(project: Project) -> None:
    rebuild(project, 5)
    name_release(project.store, "v2", deployed=True)
    name_release(project.store, "v2-again", deployed=False)
    lines = rebuild(project, 7)
    assert len(lines) == 2


def test_naming_the_new_build_leaves_its_patch_the_same(project: Project, tmp_path: Path) -> None:
    """A process patched before v2 was named must not be told that it carries another patch."""
    rebuild(project, 5)
    (before,) = project.store.patches()
    name_release(project.store, "v2", deployed=True)
    (packed,) = written(project, "v1", tmp_path / "bundle")["patches"]
    assert (packed["id"], packed["to"]) == (before.id, "v2")
    (after,) = project.store.patches()
    assert codec.patch_id(Path(after.path).read_bytes()) == before.id


def test_bundle_holds_every_later_release_and_is_reproducible(project: Project, tmp_path: Path) -> None:
    rebuild(project, 5)
    name_release(project.store, "v2", deployed=True)
    rebuild(project, 7)
    manifest = written(project, "v1", tmp_path / "one")
    written(project, "v1", tmp_path / "two")
    assert [p["from"] for p in manifest["patches"]] == ["v1", "v2"]
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    read = ["manifest.json", "RELEASE-NOTES.md", "SHA256SUMS", "index.html"]
    assert files == sorted([*read, *(p["file"] for p in manifest["patches"])])
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path / "one", check=True)
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "one" / "manifest.json").read_text()) == manifest


def test_files_of_a_bundle_are_named_by_releases(project: Project, tmp_path: Path) -> None:
    """A bug: `prog-v1..b09c98c1f2e4.kpo`, whose end nobody can tell, though the present build is v2."""
    rebuild(project, 5)
    (unnamed,) = written(project, "v1", tmp_path / "unnamed")["patches"]
    assert unnamed["file"] == f"prog-v1..{unnamed['to_build_id'][:12]}.kpo"
    name_release(project.store, "v2~rc1", deployed=True)
    (named,) = written(project, "v1", tmp_path / "named")["patches"]
    assert named["file"] == "prog-v1..v2~rc1.kpo"
    assert main(["check", str(tmp_path / "named")]) == 0


@pytest.mark.parametrize(("end", "name_of"), [("build", "to_build_id"), ("patch", "id")])
def test_no_file_of_a_bundle_takes_the_place_of_another(
    project: Project, tmp_path: Path, end: str, name_of: str
) -> None:
    """A bug: the patches of `a/b` and `a_b` get one name, and one of them is lost; they may be of one build-id, too."""
    (project.folder / "a").mkdir()

    def build(factor: int) -> None:
        for number, output in enumerate(("a/b", "a_b")):
            own = f"int own(void) {{ return {number}; }}" if end == "build" else ""
            project.build({"main.c": MAIN, "a.c": SOURCE.format(factor) + own}, output=output)

    build(3)
    name_release(project.store, "v2", deployed=True)
    build(5)
    name_release(project.store, "v3", deployed=True)
    patches = written(project, "v2", tmp_path / "bundle")["patches"]
    assert [p["output"] for p in patches] == ["a/b", "a_b"]
    assert [p["file"] for p in patches] == [f"a_b-v2..{p[name_of][:12]}.kpo" for p in patches]
    assert main(["check", str(tmp_path / "bundle")]) == 0


def test_name_of_a_file_is_not_too_long(project: Project, tmp_path: Path) -> None:
    """A bug: two releases of 100 characters, and no bundle can be written."""
    output = "p" * 60
    for factor, name in ((3, "1" * 100), (5, "2" * 100)):
        project.build({"main.c": MAIN, "a.c": SOURCE.format(factor)}, output=output)
        name_release(project.store, name, deployed=True)
    (patch,) = written(project, "1" * 100, tmp_path / "bundle")["patches"]
    assert patch["file"] == f"{output}-{'1' * 100}..{patch['to_build_id'][:12]}.kpo"


def test_releases_whose_names_differ_in_a_tilde_have_patches_of_their_own(project: Project) -> None:
    """A bug: one's file is written over the other's."""
    name_release(project.store, "v2~1", deployed=True)
    rebuild(project, 5)
    name_release(project.store, "v2_1", deployed=True)
    rebuild(project, 7)
    assert len(project.store.patches()) == 3
    assert verify_store(project.store.folder) == []


def test_bundle_since_the_present_build_is_empty(project: Project, tmp_path: Path) -> None:
    manifest = written(project, "v1", tmp_path / "bundle")
    assert manifest["patches"] == []
    assert manifest["unchanged"] == [{"output": "prog", "release": "v1"}]


def test_unknown_release_suggests_the_nearest(project: Project, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no release v11") as caught:
        written(project, "v11", tmp_path / "bundle")
    assert "v1?" in caught.value.remedy
    assert not (tmp_path / "bundle").exists()


def test_bundle_never_mixes_with_other_files(project: Project, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        written(project, "v1", tmp_path / "bundle")
    assert [p.name for p in (tmp_path / "bundle").iterdir()] == ["mine"]


def test_bundle_that_cannot_be_written_leaves_nothing(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild(project, 5)
    target = tmp_path / "out" / "bundle"
    target.parent.mkdir()

    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    bundle = make_bundle(project.store, "v1")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="the disk is full"):
        write_bundle(bundle, target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "-x", "..", "a b", "v1\n"])
def test_release_name_that_could_not_be_a_file(project: Project, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a release name"):
        name_release(project.store, name, deployed=True)


def test_collecting_keeps_what_releases_and_patches_need(project: Project) -> None:
    for factor in (5, 7, 9):
        rebuild(project, factor)
    project.build({"main.c": MAIN, "a.c": SOURCE.format(11)})  # in no patch, and not the newest in a moment
    rebuild(project, 13)
    assert collect(project.store).snapshots == 1
    assert verify_store(project.store.folder) == []
    assert len(rebuild(project, 15)) == 1


def test_commands_over_a_store(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    rebuild(project, 5)
    assert release(["v2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"][0]["output"] == "prog"
    assert main(["diff", "v1", "v2", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["verdict"], [r["subject"] for r in one["reasons"]]) == ("safe", ["serve"])
    assert main(["patches", "--json"]) == 0
    assert {"output", "from", "to", "verdict", "size", "path"} <= json.loads(capsys.readouterr().out)[0].keys()
    assert main(["log"]) == 0
    assert "v2" in capsys.readouterr().out
    assert main(["show", "v1"]) == 0
    assert "prog" in capsys.readouterr().out
    assert main(["gc"]) == 0
    assert main(["check"]) == 0


def test_release_taken_by_other_builds_is_a_clear_error(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    assert release(["v1"]) == 0
    rebuild(project, 5)
    assert release(["v1"]) == 6
    error = capsys.readouterr().err
    assert "holds other builds" in error
    assert "Choose another name" in error


def link_unrecorded(project: Project) -> None:
    """A link of `prog` that the store never hears of."""
    (project.folder / "a.c").write_text(SOURCE.format(11))
    command = ["gcc", "-O2", "main.c", "a.c", "-Wl,--build-id=sha1", "-o", "prog"]
    subprocess.run(command, cwd=project.folder, check=True)


def test_diff_does_not_call_an_unrecorded_build_the_same(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug: with a read-only store, or KATANA_DISABLE, the last recorded build was compared instead."""
    monkeypatch.chdir(project.folder)
    assert main(["diff"]) == 0
    capsys.readouterr()
    link_unrecorded(project)
    assert main(["diff", "--json"]) == 6
    out, err = capsys.readouterr()
    assert [(r["output"], r["verdict"]) for r in json.loads(out)] == [("prog", "unknown")]
    assert "another build" in err


@pytest.mark.parametrize("factor", [3, 5], ids=["the same build", "another one"])
def test_gap_is_over_when_the_output_is_recorded(
    project: Project, monkeypatch: pytest.MonkeyPatch, factor: int
) -> None:
    """A bug: a clock that was wrong for an hour, or a link to what the last recorded build was, and the gap stayed."""
    with monkeypatch.context() as wrong:
        later = time.time() + 3600
        wrong.setattr(time, "time", lambda: later)
        project.store.add_gap("prog", str(project.folder / "prog"), "no space")
    assert unrecorded(project.store) == {"prog": "no space"}
    rebuild(project, factor)
    assert unrecorded(project.store) == {}
    assert [g.reason for g in project.store.gaps()] == ["no space"]


def test_bundle_says_which_output_it_has_no_patch_for(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug: the output is left out without a word, and a fleet stays on the old code."""
    monkeypatch.chdir(project.folder)
    link_unrecorded(project)
    assert release(["--since", "v1", "-o", str(tmp_path / "out")]) == 6
    assert "prog: v1: NO PATCH" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [(m["output"], m["release"]) for m in manifest["missing"]] == [("prog", "v1")]


def test_release_does_not_name_a_build_that_is_no_longer_there(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug: v2 would name the recorded build, while the other one is what gets deployed."""
    monkeypatch.chdir(project.folder)
    link_unrecorded(project)
    assert release(["v2"]) == 6
    assert [r.name for r in project.store.releases()] == ["v1"]


def test_retired_release_makes_no_more_patches(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: what nobody runs any more costs a patch at each link for ever, for its builds are past."""
    assert len(rebuild(project, 5)) == 1
    monkeypatch.chdir(project.folder)
    assert release(["v1", "--not-deployed"]) == 0
    assert rebuild(project, 7) == []
    assert [(r.name, r.deployed) for r in project.store.releases()] == [("v1", False)]
    assert (project.store.folder / "deployed").read_text() == ""


def test_moved_project_knows_its_own_files(project: Project, tmp_path: Path) -> None:
    """A bug: a copy of a project talks of the original's outputs and patch objects."""
    rebuild(project, 5)
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.move(project.folder, moved)
    store = Store(moved / ".katana")
    assert unrecorded(store) == {}
    (patch,) = store.patches()
    assert Path(patch.path).is_file()
    assert Path(patch.path).is_relative_to(moved)


def test_patches_says_what_is_gone_or_damaged(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug: a file that is not there any more is listed as safe, and nothing tells how to make it again."""
    rebuild(project, 5)
    monkeypatch.chdir(project.folder)
    path = Path(project.store.patches()[0].path)
    whole = path.read_bytes()
    for spoil, state in ((lambda: path.write_bytes(whole[:-1]), "damaged"), (path.unlink, "gone")):
        spoil()
        assert main(["patches"]) == 0
        assert f"({state}: `katana-release --since v1` makes it again)" in capsys.readouterr().out
    assert release(["--since", "v1", "-o", "bundle"]) == 0
    assert path.read_bytes() == whole


def test_pulled_store_gives_the_same_diff_and_the_same_bundle(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CI builds, a laptop that has neither sources nor outputs examines."""
    monkeypatch.delenv("KATANA_DIR", raising=False)
    rebuild(project, 5)
    name_release(project.store, "v2", deployed=True)
    rebuild(project, 7)
    name_release(project.store, "v3", deployed=True)
    laptop, there = tmp_path / "laptop", str(tmp_path / "there")
    laptop.mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["push", there]) == 0
    assert release(["--since", "v1", "-o", "here"]) == 0
    capsys.readouterr()
    assert main(["diff", "v1", "v3", "--json"]) == 0
    here = capsys.readouterr().out
    monkeypatch.chdir(laptop)
    assert main(["pull", there]) == 0
    capsys.readouterr()
    assert main(["diff", "v1", "v3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(here)
    assert release(["--since", "v1", "--to", "v3", "-o", "there"]) == 0
    bundles = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in (tmp_path / "here", laptop / "there")]
    assert bundles[0] == bundles[1]
    assert len([name for name in bundles[0] if name.endswith(".kpo")]) == 2
    assert main(["check"]) == 0


def test_bundle_to_an_earlier_release_than_now(project: Project) -> None:
    rebuild(project, 5)
    name_release(project.store, "v2", deployed=True)
    rebuild(project, 7)
    name_release(project.store, "v3", deployed=True)
    manifest = make_bundle(project.store, "v1", "v2").manifest
    assert [(p["from"], p["to"]) for p in manifest["patches"]] == [("v1", "v2")]
    assert manifest["unchanged"] == [{"output": "prog", "release": "v2"}]
    with pytest.raises(UsageError, match="named before"):
        make_bundle(project.store, "v3", "v1")
    with pytest.raises(StoreError, match="there is no release v9"):
        make_bundle(project.store, "v1", "v9")
    assert release(["v4", "--to", "v1"]) == 2


def test_outputs_whose_names_are_alike_as_folders_keep_their_patches_apart(tmp_path: Path) -> None:
    """Linked from the same objects they have one build-id.  A bug: the second patch is written over the first, whose
    identity no file has any more."""
    outputs = ("a/b", "a_b", "a b", "c/d")
    (tmp_path / "a").mkdir()
    (tmp_path / "c").mkdir()
    project = Project(tmp_path)
    objects = project.compile({"main.c": MAIN, "a.c": SOURCE.format(3)})
    for output in outputs:
        project.link(list(objects.values()), output=output)
    name_release(project.store, "v1", deployed=True)
    project.compile({"main.c": MAIN, "a.c": SOURCE.format(5)})
    for output in outputs:
        list(emit_patches(project.store, project.link(list(objects.values()), output=output).snapshot))
    rows = {row.output: row for row in project.store.patches()}
    assert set(rows) == set(outputs)
    for output, row in rows.items():
        data, po = read_patch(row.path)
        assert (po.identity.output, codec.patch_id(data)) == (output, row.id)
    # Scripts know the paths of the others.
    folders = {output: Path(row.path).parent.name for output, row in rows.items()}
    assert (folders["a_b"], folders["c/d"]) == ("a_b", "c_d")
    assert folders["a/b"].startswith("a_b-")
