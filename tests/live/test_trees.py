"""Process trees and containers: together, or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from katana_cc.cli.main import main
from katana_cc.errors import BusyError, TargetError
from katana_cc.process import apply, revert, reverting, sharing, survey
from katana_cc.process.proc import is_dead
from katana_cc.process.target import Target
from tests.live.conftest import TIMES_TEN
from tests.live.handmade import Built, build, patch_from
from tests.live.programs import COUNTER, FORKING, PREFORK
from tests.live.server import Server, code_of, identity, katana, katana_json, mappings, serving, write_patch
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


@pytest.fixture(scope="module")
def forking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """A parent with two children, all of which fork workers all the time."""
    folder = tmp_path_factory.mktemp("forking")
    new = FORKING.replace("/*ANSWER*/", "x = 10 * x;")
    return build(folder / "old", "server", FORKING), build(folder / "new", "server", new)


def states(root: int) -> set[tuple[str, ...]]:
    """How the patches stand in every process of a tree that lives; () where there is none."""
    found = set()
    for pid in survey.tree_pids(root):
        with contextlib.suppress(TargetError, OSError):
            state = tuple(p.state for p in survey.process_status(pid).patches)
            if Path(f"/proc/{pid}/maps").read_bytes():  # it did not end while it was looked at
                found.add(state)
    return found


@situation(43, "children forked meanwhile, by a parent and its children, all the time")
@pytest.mark.parametrize("words", ["--tree", "--all"])
def test_children_that_are_forked_meanwhile_are_patched_too(
    tmp_path: Path, forking: tuple[Built, Built], words: str
) -> None:
    """A bug: a worker that was forked before its parent's commit runs the old code, or the end never comes."""
    patch = write_patch(tmp_path, patch_from(*forking, ("answer",)))
    with serving(forking[0].output) as server:
        selection = ("--tree", server.pid) if words == "--tree" else ("--all",)
        report = katana_json("apply", patch, *selection)
        assert states(server.pid) == {("applied",)}
        assert server.ask("a 5") == "51"
        assert server.pid in {p["pid"] for p in report["processes"]}
        forked = int(server.ask("w"))
        while int(server.ask("w")) < forked + 10:
            pass


@situation(43, "children forked meanwhile, when the patch is taken out")
def test_children_that_are_forked_meanwhile_are_reverted_too(tmp_path: Path, forking: tuple[Built, Built]) -> None:
    """A bug: a worker that was forked before its parent's revert keeps the patch, and all is said to be well."""
    patch = write_patch(tmp_path, patch_from(*forking, ("answer",)))
    with serving(forking[0].output) as server:
        for _ in range(3):
            assert katana("apply", patch, "--tree", server.pid).returncode == 0
            report = katana_json("revert", "--tree", server.pid)
            assert states(server.pid) <= {("reverted",), ()}
            assert report["counts"]["reverted"] >= 3
            assert server.ask("a 5") == "6"


@situation(43, "one child busy: none is reverted", REFUSED)
def test_tree_with_a_busy_child_keeps_the_patch(tmp_path: Path, prefork: tuple[Built, Built]) -> None:
    """A bug: those that come before the busy one are reverted."""
    patch = write_patch(tmp_path, patch_from(*prefork, ("answer",)))
    with serving(prefork[0].output) as server:
        children = [int(x) for x in server.line().split()]
        pids = [server.pid, *children]
        assert katana("apply", patch, "--tree", server.pid).returncode == 0
        before = [code_of(pid) for pid in pids]
        assert server.ask("i 1") == "inside"
        done = katana("revert", "--tree", server.pid, "--wait", "0.1", "--json")
        assert done.returncode == 4, done.stderr
        told = json.loads(done.stdout)
        assert {p["pid"]: p["outcome"] for p in told["processes"]} == {
            server.pid: "not tried",
            children[0]: "not tried",
            children[1]: "busy",
        }
        assert (told["counts"]["not tried"], told["counts"]["busy"], told["counts"]["reverted"]) == (2, 1, 0)
        assert [code_of(pid) for pid in pids] == before
        assert [server.ask("a 0 5"), server.ask("a 2 5")] == ["51", "51"]
        assert server.ask("l 1") == "-9"
        assert katana("revert", "--tree", server.pid).returncode == 0


@pytest.mark.parametrize("words", ["--tree", "--all"])
def test_parents_are_patched_before_their_children(
    tmp_path: Path, prefork: tuple[Built, Built], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """A bug: what a parent forks after its child's commit runs the old code."""
    po = patch_from(*prefork, ("answer",))
    patch = write_patch(tmp_path, po)
    with serving(prefork[0].output) as server:
        children = [int(x) for x in server.line().split()]
        selection = [words, str(server.pid)] if words == "--tree" else [words]
        both = ((apply, ["apply", str(patch)]), (reverting, ["revert", identity(po)]))
        for module, command in both[: 2 if words == "--tree" else 1]:  # other tests' processes are patched, too
            order: list[int] = []
            real = module.run

            def recording(target: Target, *arguments: Any, order: list[int] = order, real: Any = real) -> None:
                order.append(target.pid)
                real(target, *arguments)

            monkeypatch.setattr(module, "run", recording)
            assert main([*command, *selection]) == 0
            assert order[:3] == [server.pid, *children]


class Failing:
    """What fails with an error in place of the commit of one process, once it is called `after` times for it."""

    def __init__(self, module: Any, monkeypatch: pytest.MonkeyPatch, pid: int, after: int = 0) -> None:
        self._real = module.run
        self._pid = pid
        self._left = after
        self.before_it_fails: Any = None
        monkeypatch.setattr(module, "run", self)

    def __call__(self, target: Target, *arguments: Any, **more: Any) -> None:
        if target.pid == self._pid:
            self._left -= 1
            if self._left < 0:
                if self.before_it_fails is not None:
                    self.before_it_fails()
                raise BusyError("never a safe moment", where=target.where)
        self._real(target, *arguments, **more)


def test_what_was_reverted_gets_its_patch_back(
    tmp_path: Path, prefork: tuple[Built, Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug: a tree of which some run the old code and others the new."""
    po = patch_from(*prefork, ("answer",))
    with serving(prefork[0].output) as server:
        pids = [server.pid, *(int(x) for x in server.line().split())]
        assert katana("apply", write_patch(tmp_path, po), "--tree", server.pid).returncode == 0
        before = [code_of(pid) for pid in pids]
        failing = Failing(reverting, monkeypatch, pids[2], after=1)
        asked: list[str] = []
        failing.before_it_fails = lambda: asked.append(server.ask("a 2 5"))
        with pytest.raises(BusyError) as raised:
            revert.revert_patch(pids, identity(po), must_match=False)
        assert asked == ["6"], "it was reverted before"
        assert [(p.pid, str(p.outcome)) for p in raised.value.processes] == [
            (pids[0], "taken back"),
            (pids[1], "taken back"),
            (pids[2], "busy"),
        ]
        assert [code_of(pid) for pid in pids] == before
        assert [server.ask(f"a {n} 5") for n in range(3)] == ["51"] * 3
        assert states(server.pid) == {("applied",)}
        monkeypatch.undo()
        revert.revert_patch(pids, identity(po))
        assert [server.ask(f"a {n} 5") for n in range(3)] == ["6"] * 3


def failing_late(server: Server, module: Any, monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Let a child fail when its parent is done, and has forked one more since: the process id of that one."""
    forked: list[int] = []
    failing = Failing(module, monkeypatch, survey.tree_pids(server.pid)[1], after)
    failing.before_it_fails = lambda: forked.append(int(server.ask("k")))
    return forked


def test_children_that_inherited_a_patch_are_reverted_with_their_parent(
    tmp_path: Path, forking: tuple[Built, Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug: another process is in the way, and what a parent forked when it was patched keeps the patch."""
    patch = write_patch(tmp_path, patch_from(*forking, ("answer",)))
    with serving(forking[0].output) as server:
        forked = failing_late(server, apply, monkeypatch, 0)
        assert main(["apply", str(patch), "--tree", str(server.pid)]) == 4
        assert [p.state for p in survey.process_status(forked[0]).patches] == ["reverted"]
        assert not any("applied" in state for state in states(server.pid))
        assert server.ask("a 5") == "6"
        monkeypatch.undo()
        assert katana("apply", patch, "--tree", server.pid).returncode == 0
        assert states(server.pid) == {("applied",)}


def test_children_that_lack_a_patch_get_it_back_with_their_parent(
    tmp_path: Path, forking: tuple[Built, Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug: another process is in the way, and what a parent forked when it was reverted runs the old code."""
    patch = write_patch(tmp_path, patch_from(*forking, ("answer",)))
    with serving(forking[0].output) as server:
        assert katana("apply", patch, "--tree", server.pid).returncode == 0
        forked = failing_late(server, reverting, monkeypatch, 1)
        assert main(["revert", "--tree", str(server.pid)]) == 4
        assert [p.state for p in survey.process_status(forked[0]).patches] == ["applied"]
        assert states(server.pid) == {("applied",)}
        assert server.ask("a 5") == "51"


def test_programs_that_are_started_all_the_time_do_not_keep_it_going(tmp_path: Path) -> None:
    """A bug: with a library that short commands load, `--all` finds another process at each look, and never ends."""
    old, new = build(tmp_path / "old", "server", COUNTER), build(tmp_path / "new", "server", TIMES_TEN)
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    is_done = threading.Event()

    def starting() -> None:
        while not is_done.is_set():
            with serving(old.output), serving(old.output):
                is_done.wait(0.1)

    with serving(old.output) as server, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(starting) for _ in range(2)]
        try:
            report = katana_json("apply", patch, "--all", "--wait", "1000")
        finally:
            is_done.set()
        for each in running:
            each.result()
        assert server.pid in {p["pid"] for p in report["processes"]}
        assert server.ask("a 1") == "11"


def killing(server: Server, function: Any, calls: int) -> Any:
    """The function, before whose call of that number (of one process each) the process is killed."""
    count = 0

    def wrapped(*arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            server.kill()
            while not is_dead(server.pid):
                pass
        return function(*arguments, **more)

    return wrapped


@pytest.mark.parametrize("step", ["prepare", "inject", "_register", "_run_before", "_commit", "run"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_process_that_ends_meanwhile_is_left_out(
    counter: tuple[Built, Built], monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """A bug: all others are left unpatched, because one that nobody named has ended."""
    po = patch_from(*counter, ("answer",))
    with serving(counter[0].output) as one, serving(counter[0].output) as two:
        pids = [one.pid, two.pid] if number == 2 else [two.pid, one.pid]
        monkeypatch.setattr(apply, step, killing(two, getattr(apply, step), number))
        reports = apply.apply_patch(po, identity(po), pids, must_match=False)
        assert {r.pid: str(r.outcome) for r in reports} == {one.pid: "applied", two.pid: "skipped"}
        assert one.ask("a 1") == "11"


@pytest.mark.parametrize("step", ["prepare", "inject", "_commit", "run"])
def test_a_process_that_becomes_another_program_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A bug: a child that was forked to run another program keeps its parent from being patched."""
    source = COUNTER.replace("/*OTHER*/", 'if (x == 77) execl("/bin/cat", "cat", (char *)0);')
    old = build(tmp_path / "old", "server", source)
    new = build(tmp_path / "new", "server", source.replace("/*ANSWER*/", "calls += 2;"))
    po = patch_from(old, new, ("answer",))
    with serving(old.output) as one, serving(old.output) as two:
        real = getattr(apply, step)
        count = 0

        def becoming(*arguments: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == 2:
                two.tell("o 77")
                while Path(f"/proc/{two.pid}/comm").read_text() != "cat\n":
                    pass
            return real(*arguments, **more)

        monkeypatch.setattr(apply, step, becoming)
        reports = apply.apply_patch(po, identity(po), [one.pid, two.pid], must_match=False)
        assert {r.pid: str(r.outcome) for r in reports} == {one.pid: "applied", two.pid: "skipped"}
        assert two.ask("hello") == "hello"
        assert [one.ask("a 1"), one.ask("c")] == ["2", "3"]


@pytest.mark.parametrize("step", ["prepare", "inject", "run"])
def test_a_named_process_that_ends_meanwhile_keeps_the_others_as_they_were(
    counter: tuple[Built, Built], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A bug: of several that were named, some are patched."""
    po = patch_from(*counter, ("answer",))
    with serving(counter[0].output) as one, serving(counter[0].output) as two:
        before = code_of(one.pid)
        monkeypatch.setattr(apply, step, killing(two, getattr(apply, step), 2))
        with pytest.raises(TargetError) as raised:
            apply.apply_patch(po, identity(po), [one.pid, two.pid])
        told = {p.pid: str(p.outcome) for p in raised.value.processes}
        assert told == {one.pid: "taken back" if step == "run" else "not tried", two.pid: "failed"}
        assert one.ask("a 1") == "2"
        assert code_of(one.pid) == before


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
