"""Process trees and containers: together, or not at all."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.live.handmade import Built, build, patch_from
from tests.live.programs import PREFORK
from tests.live.server import code_of, katana, katana_json, mappings, serving, write_patch
from tests.live.situations import REFUSED, situation


@pytest.fixture(scope="module")
def prefork(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """A parent with two children."""
    folder = tmp_path_factory.mktemp("prefork")
    new = PREFORK.replace("/*ANSWER*/", "x = 10 * x;")
    return build(folder / "old", "server", PREFORK), build(folder / "new", "server", new)


@situation(43, "a prefork server, the whole tree")
def test_tree_is_patched_whole(tmp_path: Path, prefork: tuple[Built, Built]) -> None:
    """A bug: only the parent, or only the children."""
    patch = write_patch(tmp_path, patch_from(*prefork, ("answer",)))
    with serving(prefork[0].output) as server:
        children = {int(x) for x in server.line().split()}
        report = katana_json("apply", patch, "--tree", server.pid)
        assert {p["pid"] for p in report["processes"]} == {server.pid, *children}
        assert [server.ask(f"a {n} 5") for n in range(3)] == ["51"] * 3
        assert katana("revert", "--tree", server.pid).returncode == 0
        assert [server.ask(f"a {n} 5") for n in range(3)] == ["6"] * 3


@situation(43, "one child busy: none is patched", REFUSED)
def test_tree_with_a_busy_child_is_left_as_it_was(tmp_path: Path, prefork: tuple[Built, Built]) -> None:
    """A bug: the others stay patched."""
    patch = write_patch(tmp_path, patch_from(*prefork, ("answer",)))
    with serving(prefork[0].output) as server:
        children = [int(x) for x in server.line().split()]
        before = code_of(server.pid)
        assert server.ask("i 1") == "inside"
        done = katana("apply", patch, "--tree", server.pid, "--wait", "0.1")
        assert done.returncode == 4, done.stderr
        assert f"pid {children[1]}" in done.stderr
        assert code_of(server.pid) == before
        assert code_of(children[0]) == before
        assert mappings(children[1]) == []
        assert server.ask("a 0 5") == "6"
        assert server.ask("l 1") == "0"


@situation(43, "one child alone; its siblings are untouched")
def test_forked_child_inherits_the_patch_and_is_reverted_alone(tmp_path: Path, prefork: tuple[Built, Built]) -> None:
    """A bug: patched memory is shared between parent and child."""
    patch = write_patch(tmp_path, patch_from(*prefork, ("answer",)))
    with serving(prefork[0].output) as server:
        children = [int(x) for x in server.line().split()]
        assert katana("apply", patch, "--pid", children[0]).returncode == 0
        assert [server.ask(f"a {n} 5") for n in range(3)] == ["51", "6", "6"]


@situation(46, "PID and mount namespaces of a container")
def test_process_in_its_own_pid_namespace_is_patched_by_its_host_pid(
    tmp_path: Path, prefork: tuple[Built, Built]
) -> None:
    """A bug: pids or paths of the wrong namespace are used."""
    probe = subprocess.run(["unshare", "--pid", "--mount", "--fork", "true"], capture_output=True, check=False)
    if shutil.which("unshare") is None or probe.returncode:
        pytest.skip("namespaces cannot be made here")
    patch = write_patch(tmp_path, patch_from(*prefork, ("answer",)))
    words = ("unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", prefork[0].output)
    with serving(*words) as server:
        assert server.line().split() == ["2", "3"], "the children's pids as they see them"
        report = katana_json("apply", patch, "--tree", server.pid)
        assert len(report["processes"]) == 3
        assert [server.ask(f"a {n} 5") for n in range(3)] == ["51"] * 3
