"""Which processes are meant, which patch is meant, and what is said of processes nobody may look into."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.handmade import Built, build, patch_from
from tests.live.programs import COUNTER, PREFORK
from tests.live.server import Server, code_of, identity, katana, katana_json, serving, write_patch

NOBODY = 65534


def test_several_different_patches_are_never_reverted_by_guess(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: one word takes every patch out of every process of the machine."""
    third = build(tmp_path / "third", "server", COUNTER.replace("/*ANSWER*/", "if (x > 100) return 0;"))
    one, two = patch_from(*counter, ("answer",)), patch_from(counter[0], third, ("answer",), releases=("v1", "v3"))
    with serving(counter[0].output) as first, serving(counter[0].output) as second:
        assert katana("apply", write_patch(tmp_path, one), "--pid", first.pid).returncode == 0
        assert katana("apply", write_patch(tmp_path, two, "two.kpo"), "--pid", second.pid).returncode == 0
        codes = code_of(first.pid), code_of(second.pid)
        for words in (("--all",), ("--pid", first.pid, second.pid)):
            done = katana("revert", *words)
            assert done.returncode == 3, done.stderr
            for po, pid in ((one, first.pid), (two, second.pid)):
                (line,) = [x for x in done.stderr.splitlines() if identity(po) in x]
                assert str(pid) in line
            assert "PO-ID" in done.stderr
        assert (code_of(first.pid), code_of(second.pid)) == codes
        done = katana("revert", "--pid", first.pid, second.pid, tmp_path / "two.kpo")
        assert done.returncode == 0, done.stderr
        assert first.ask("a 1") == "11"
        assert second.ask("a 200") == "201"


def test_the_one_patch_of_a_tree_needs_no_name(tmp_path: Path) -> None:
    """A bug: the PO-ID is asked for although there is only one patch."""
    prefork = (
        build(tmp_path / "old", "server", PREFORK),
        build(tmp_path / "new", "server", PREFORK.replace("/*ANSWER*/", "x = 10 * x;")),
    )
    with serving(prefork[0].output) as server:
        server.line()
        patch = write_patch(tmp_path, patch_from(*prefork, ("answer",)))
        assert katana("apply", patch, "--tree", server.pid).returncode == 0
        report = katana_json("revert", "--tree", server.pid)
        assert [p["outcome"] for p in report["processes"]] == ["reverted"] * 3
        assert report["passed_over"]["count"] == 0


@pytest.mark.parametrize("word", ["v1.0", "nothing.kpo", "0x12", "12 34", "f" * 33])
def test_word_that_names_no_patch_is_a_usage_error(word: str) -> None:
    """A bug: a misspelt name is a patch that nobody carries, and all is said to be well."""
    done = katana("revert", "--pid", os.getpid(), word)
    assert done.returncode == 2
    assert "neither a patch object nor the beginning of a PO-ID" in done.stderr


# As an ordinary user.  The modules are read first: the interpreter may be where that user may not look.
UNPRIVILEGED = f"""
import os, sys, katana_cc.cli.apply, katana_cc.cli.revert, katana_cc.cli.status
from katana_cc.cli.main import main
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
sys.exit(main())
"""


def as_nobody(*words: str | Path | int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", UNPRIVILEGED, *(str(w) for w in words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def public(*files: Path) -> Iterator[list[Path]]:
    """Copies of files where every user can read them."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="katana-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        copies = [Path(shutil.copy(f, folder / f.name)) for f in files]
        for copy in copies:
            copy.chmod(0o755)
        yield copies


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_status_says_how_many_processes_may_not_be_read(counter: tuple[Built, Built]) -> None:
    """A bug: "no process carries a patch", of a machine that nobody could look into."""
    with serving(counter[0].output) as server:
        done = as_nobody("status", "--json")
        assert done.returncode == 0, done.stderr
        passed = json.loads(done.stdout)["passed_over"]
        assert server.pid in passed["pids"]
        assert passed["count"] == len(passed["pids"])
        assert passed["why"] == "may not be read"
        (line,) = as_nobody("status").stderr.splitlines()
        assert "passed over, since they may not be read" in line
        assert server.pid not in katana_json("status")["passed_over"]["pids"]


def _may_trace_own() -> bool:
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return not scope.exists() or scope.read_text().strip() == "0"


@pytest.mark.xdist_group("all processes")
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_all_does_not_claim_what_nobody_could_see(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: status 0, and a process of another user runs the hole on."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving(counter[0].output) as roots, public(patch, counter[0].output) as (po, program):
        done = as_nobody("apply", po, "--all")
        assert done.returncode == 5
        assert "no process that could be read runs" in done.stdout
        assert "whether this build of server runs there is not known" in done.stderr
        assert roots.ask("a 1") == "2"
        server = Server(["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", program])
        try:
            done = as_nobody("apply", po, "--all", "--json")
            if _may_trace_own():
                result = json.loads(done.stdout)
                assert [(p["pid"], p["outcome"]) for p in result["processes"]] == [(server.pid, "applied")]
                assert roots.pid in result["passed_over"]["pids"]
                assert server.ask("a 1") == "11"
            assert done.returncode == 5
            assert as_nobody("apply", po, "--pid", server.pid).returncode == 0, "of named ones all is known"
        finally:
            server.close()
        done = as_nobody("revert", "--all", identity(patch_from(*counter, ("answer",))))
        assert done.returncode == 5
        assert "nothing to revert: no process that could be read carries the patch" in done.stdout
