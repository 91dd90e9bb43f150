"""Process trees and containers: together, or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from katana_cc.process import sharing
from tests.live.handmade import Built, build, patch_from
from tests.live.programs import COUNTER, PREFORK
from tests.live.server import Server, code_of, katana, katana_json, mappings, serving, write_patch
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


# A thread that waits in vfork until its child, in the same memory, is told to go on, and runs another program.
VFORK = COUNTER.replace(
    "static void *idle",
    "static int gate[2]; static void *forking(void *p) { char byte;\n"
    "  int child = vfork();\n"
    '  if (!child) { while (read(gate[0], &byte, 1) < 0) {} execl("/bin/true", "true", (char *)0); _exit(1); }\n'
    '  waitpid(child, 0, 0); say("over"); return p; }\nstatic void *idle',
).replace(
    "case 'm'",
    "case 'v': pipe(gate); pthread_create(&t, 0, forking, 0); printf(\"forked\\n\"); break;\n"
    "    case 'x': write(gate[1], \"x\", 1); break;\n    case 'm'",
)


def child_in_vfork(server: Server) -> int:
    """One that has the server's memory until the server is told "x"."""
    assert server.ask("v") == "forked"
    while not (children := [c for t in Path(f"/proc/{server.pid}/task").iterdir() for c in _children(t)]):
        pass
    return children[0]


def _children(task: Path) -> list[int]:
    return [int(pid) for pid in (task / "children").read_text().split()]


def through_vfork(server: Server, *words: str | Path | int) -> None:
    """A command that is at work when the child begins its own program."""
    program = "import sys; from katana_cc.cli.main import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", program, *(str(w) for w in words)], stderr=subprocess.PIPE) as command:
        while "TracerPid:\t0" in Path(f"/proc/{server.pid}/status").read_text() and command.poll() is None:
            pass
        server.tell("x")
        _, errors = command.communicate(timeout=60)
    assert command.returncode == 0, errors
    assert server.line() == "over"


@situation(46, "vfork child: it has its parent's memory, and a tree is patched without it")
def test_child_that_has_the_memory_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: what is written to the child is written to the parent, or a `system()` anywhere in a tree is a refusal."""
    old = build(tmp_path / "old", "server", VFORK)
    new = build(tmp_path / "new", "server", VFORK.replace("/*ANSWER*/", "x = 10 * x;"))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output) as server:
        child = child_in_vfork(server)
        assert sharing.owner_of_memory(child) == server.pid
        assert sharing.owner_of_memory(server.pid) == 0
        with monkeypatch.context() as without_kcmp:
            without_kcmp.setattr(sharing, "same_memory", lambda *_: None)
            assert sharing.owner_of_memory(child) == server.pid
            assert sharing.owner_of_memory(server.pid) == 0
        report = katana_json("apply", patch, "--tree", server.pid, "--dry-run")
        assert [p["pid"] for p in report["processes"]] == [server.pid]
        done = katana("apply", patch, "--pid", child)
        assert done.returncode == 3, done.stderr
        assert f"the memory of its parent, pid {server.pid}" in done.stderr
        assert server.ask("a 5") == "6"
        through_vfork(server, "apply", patch, "--tree", server.pid, "--wait", 60)
        assert server.ask("a 5") == "51"
        child_in_vfork(server)
        through_vfork(server, "revert", "--tree", server.pid, "--wait", 60)
        assert server.ask("a 5") == "6"
