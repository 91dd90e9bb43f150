"""Where builds come from, in release notes: commits of a real repository, compilers of real objects."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.installation import ROOT, Installation, clean_environment

MAIN = "int g(void);\nint main(void) { return g() - 42; }\n"
G = "int g(void) {{ return {}; }}\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit and the tag v1.0."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "main.c").write_text(MAIN)
    (folder / "g.c").write_text(G.format(42))
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "The first")
    git(folder, "tag", "v1.0")
    return folder


def git(folder: Path, *words: str) -> str:
    known = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(
        ["git", *who, *words], cwd=folder, env=clean_environment() | known, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(folder: Path, subject: str, number: int | None = None) -> str:
    """Commit all, with another answer in g.c if a number is given; the commit."""
    if number is not None:
        (folder / "g.c").write_text(G.format(number))
    git(folder, "add", "main.c", "g.c")
    git(folder, "commit", "-q", "-m", subject)
    return git(folder, "rev-parse", "HEAD")


def build(katana: Installation, folder: Path, **variables: str) -> None:
    words = ["gcc", "-O1", "main.c", "g.c", "-o", "prog"]
    done = katana.run(katana.cc, *words, cwd=folder, stdin=None, **variables)
    assert done.returncode == 0, done.stderr


def release(katana: Installation, folder: Path, *words: str, **variables: str) -> None:
    done = katana.run("katana-release", *words, cwd=folder, stdin=None, **variables)
    assert (done.returncode, done.stderr) == (0, b"")


def bundle(katana: Installation, folder: Path, name: str) -> tuple[dict[str, Any], str, str]:
    """The provenance of the one patch since v1, the notes and the page."""
    release(katana, folder, "--since", "v1", "-o", name)
    manifest = json.loads((folder / name / "manifest.json").read_text())
    (patch,) = manifest["patches"]
    schema = json.loads((ROOT / "docs/manifest.schema.json").read_text())["$defs"]
    assert patch["provenance"].keys() <= schema["patch"]["properties"]["provenance"]["properties"].keys()
    assert all(patch["provenance"][end].keys() == schema["sources"]["properties"].keys() for end in ("from", "to"))
    return (
        patch["provenance"],
        (folder / name / "RELEASE-NOTES.md").read_text(),
        (folder / name / "index.html").read_text(),
    )


def test_notes_tell_the_commits_between_two_builds(katana: Installation, repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    build(katana, repository)
    release(katana, repository, "v1")
    commits = [commit(repository, "Answer <43> for *all*", 43), commit(repository, "Answer 44", 44)]
    build(katana, repository)
    told, notes, page = bundle(katana, repository, "first")
    assert told["from"] == {"commit": first, "describe": "v1.0", "uncommitted": False}
    assert told["to"]["describe"] == f"v1.0-2-g{commits[1][:12]}"
    assert [(one["commit"], one["subject"]) for one in told["commits"]] == [
        (commits[1], "Answer 44"), (commits[0], "Answer <43> for *all*"),
    ]  # fmt: skip
    assert (told["commits_total"], told["commits_left_behind"]) == (2, 0)
    assert f"- Sources: from v1.0 to v1.0-2-g{commits[1][:12]}, 2 commits." in notes
    assert f"  - {commits[0][:12]} Answer \\<43\\> for \\*all\\*" in notes
    assert "Answer &lt;43&gt; for *all*" in page
    # The compiler, as readelf reads it.
    dwarf = subprocess.run(
        ["readelf", "--debug-dump=info", "prog"], cwd=repository, capture_output=True, text=True, check=True
    )
    (producer,) = {line.rpartition("): ")[2].strip() for line in dwarf.stdout.splitlines() if "DW_AT_producer" in line}
    assert told["compilers"] == [{"compiler": producer, "objects": 2}]
    assert "-O1" in producer
    # The same store and history, the same bytes.
    bundle(katana, repository, "second")
    for file in (repository / "first").iterdir():
        assert file.read_bytes() == (repository / "second" / file.name).read_bytes(), file.name


def test_what_is_not_committed_and_what_was_left_behind_is_told(katana: Installation, repository: Path) -> None:
    commit(repository, "Answer 41", 41)
    build(katana, repository)
    release(katana, repository, "v1")
    git(repository, "reset", "-q", "--hard", "HEAD~")
    (repository / "g.c").write_text(G.format(43))
    build(katana, repository)
    told, notes, _ = bundle(katana, repository, "notes")
    assert told["to"]["describe"] == "v1.0-dirty"
    assert (told["commits_total"], told["commits_left_behind"]) == (0, 1)
    assert "The new build had changes that are not committed." in notes
    assert "1 commit of the old build is not in the new one." in notes
    # git's own index is left as it was.
    assert git(repository, "status", "--porcelain", "--untracked-files=no") == "M g.c"


def test_a_repository_that_is_gone_leaves_the_ends(katana: Installation, repository: Path) -> None:
    build(katana, repository)
    release(katana, repository, "v1")
    commit(repository, "Answer 43", 43)
    build(katana, repository)
    shutil.rmtree(repository / ".git")
    told, notes, _ = bundle(katana, repository, "notes")
    assert set(told) == {"from", "to", "compilers"}
    assert "- Sources: from v1.0 to v1.0-1-g" in notes


@pytest.mark.parametrize("trouble", ["no repository", "no git", "a git that hangs", "a git that fails"])
def test_a_build_of_which_git_says_nothing_is_recorded_as_well(
    katana: Installation, repository: Path, tmp_path: Path, trouble: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    path = f"{katana.prefix / 'bin'}:{tools}:{clean_environment()['PATH']}"
    if trouble == "no repository":
        shutil.rmtree(repository / ".git")
        (repository / ".hg").mkdir()
    elif trouble == "no git":
        for folder in clean_environment()["PATH"].split(":"):
            for program in Path(folder).glob("*") if Path(folder).is_dir() else ():
                if program.name != "git" and not (tools / program.name).exists():
                    (tools / program.name).symlink_to(program)
        path = f"{katana.prefix / 'bin'}:{tools}"
    else:
        (tools / "git").write_text("#!/bin/sh\n" + ("exec sleep 60\n" if "hangs" in trouble else "echo v1; exit 1\n"))
        (tools / "git").chmod(0o755)
    build(katana, repository, PATH=path)
    release(katana, repository, "v1", PATH=path)
    (shown,) = json.loads(katana.run("katana", "show", "v1", "--json", cwd=repository).stdout)["snapshots"]
    assert shown["sources"] == ""


def test_a_hooks_variables_do_not_lead_to_its_repository(
    katana: Installation, repository: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    build(katana, repository)
    release(katana, repository, "v1", GIT_DIR=str(other / ".git"), GIT_WORK_TREE=str(other))
    (shown,) = json.loads(katana.run("katana", "show", "v1", "--json", cwd=repository).stdout)["snapshots"]
    assert shown["sources"].startswith("v1.0-0-g")
