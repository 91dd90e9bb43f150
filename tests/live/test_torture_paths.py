"""Katana killed on its longer ways: in a tree of processes, while it waits for a return or for an entry, beside a
program that it starts.

As in `test_torture`: a few moments in `make test`, all that differ in `make torture`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.live.handmade import Built, build, patch_from
from tests.live.programs import HEAD, PREFORK
from tests.live.server import Server, code_of, katana, katana_json, serving, write_patch
from tests.live.situations import situation
from tests.live.test_launch import pair as launched_pair
from tests.live.test_torture import Moment, moments
from tests.live.test_torture_moves import is_writing, kill_both
from tests.live.test_waiting import LOOP
from tests.support.strike import Outcome, strike, strike_traced

pytestmark = pytest.mark.timeout(7200 if os.environ.get("KATANA_TORTURE") else 300)

NEW = "return 10 * x;"
NEVER = Moment(0)


def kill(pid: int) -> None:
    """Kill it."""
    os.kill(pid, signal.SIGKILL)


def struck(words: Sequence[str], when: Moment) -> Outcome:
    """Run a command that is killed at a moment."""
    return strike(words, when, kill)


def states(pid: int) -> list[str]:
    """What `katana status` says of the patches of one process."""
    return [p["state"] for p in katana_json("status", "--pid", pid)["processes"][0]["patches"]]


def are_running(pid: int) -> bool:
    """Whether no thread is stopped or traced."""
    stats = [t.joinpath("stat").read_text().rpartition(")")[2].split()[0] for t in Path(f"/proc/{pid}/task").iterdir()]
    return not {"t", "T"} & set(stats)


def pair(folder: Path, source: str) -> tuple[Built, str]:
    """A program, and the file of a patch that multiplies its answer by ten."""
    old = build(folder / "old", "server", source)
    new = build(folder / "new", "server", source.replace("/*ANSWER*/", NEW))
    return old, str(write_patch(folder, patch_from(old, new, ("answer",))))


@pytest.mark.parametrize("command", ["apply", "revert"])
@situation(49, "katana killed while it patches a tree (a few moments in make test)")
def test_killed_in_a_tree(tmp_path: Path, command: str) -> None:
    """A bug: a process that is neither old nor new, or a tree that cannot be made whole afterwards."""
    program, patch = pair(tmp_path, PREFORK)
    with serving(program.output) as server:
        pids = [*(int(x) for x in server.line().split()), server.pid]
        before = code_of(server.pid)
        ways = {"apply": ["apply", patch, "--tree", str(server.pid)], "revert": ["revert", "--tree", str(server.pid)]}

        def answers() -> list[str]:
            return [server.ask(f"a {n} 5") for n in range(len(pids))]

        if command == "revert":
            assert katana(*ways["apply"]).returncode == 0
        calls = struck(ways[command], NEVER).calls
        mixed = 0
        for moment in moments(calls, is_kill=True):
            number = moment.number
            assert katana(*ways["revert" if command == "apply" else "apply"]).returncode == 0
            struck(ways[command], moment)
            found = answers()
            for pid, answer in zip(pids, found, strict=True):
                told = states(pid)
                where = number, pid, answer, told
                assert are_running(pid), where
                assert answer == ("50" if "applied" in told else "6"), where
            mixed += len(set(found)) > 1
            last = ("apply", "revert")[number % 2]
            assert katana(*ways[last]).returncode == 0, number
            assert answers() == (["50"] if last == "apply" else ["6"]) * len(pids), number
        assert mixed or not os.environ.get("KATANA_TORTURE"), "no moment was between two of them"
        assert katana(*ways["revert"]).returncode == 0
        assert code_of(server.pid) == before


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Server, str, bytes]]:
    """A process of which a thread is inside `answer` but for moments, its patch, and its code."""
    # A katana that is traced is too slow for moments of 2 ms: it caught one in twenty.
    program, patch = pair(tmp_path, LOOP.replace("{0, 2000000}", "{0, 20000000}"))
    with serving(program.output) as server:
        yield server, patch, code_of(server.pid)


@pytest.mark.parametrize("options", [(), ("--at", "turn")], ids=["return", "entry"])
@situation(49, "katana killed while it waits for a return or an entry (a few moments in make test)")
def test_killed_while_it_waits(loop: tuple[Server, str, bytes], options: tuple[str, ...]) -> None:
    """A bug: a breakpoint or a stopped thread stays, or the next katana does not get through."""
    server, patch, code = loop
    words = ["apply", patch, "--pid", str(server.pid), "--wait", "60", *options]
    calls = struck(words, NEVER).calls
    few = [Moment(n) for n in range(1, len(calls) + 1, max(len(calls) // 3, 1))]
    # Those between its writes are for make torture: how many calls lie before them differs from run to run.
    for moment in moments(calls, is_kill=True) if os.environ.get("KATANA_TORTURE") else few:
        number = moment.number
        assert katana("revert", "--pid", server.pid, "--wait", 60).returncode == 0
        assert code_of(server.pid) == code, number
        struck(words, moment)
        assert server.ended is None, number
        answer = server.ask("a 5")
        assert are_running(server.pid), number
        assert answer == ("50" if "applied" in states(server.pid) else "6"), (number, states(server.pid))
        assert katana(*words).returncode == 0, number
        assert server.ask("a 5") == "50"


# `katana run`, of which the patcher says who it is, and waits until it is traced.
HELD = """
import os, sys
from katana_cc.cli.main import main
from katana_cc.process import launch
patch = launch._patch
def held(*arguments):
    os.write({say}, b"%d\\n" % os.getpid())
    os.close({say})
    os.read({heard}, 1)
    patch(*arguments)
launch._patch = held
sys.exit(main())
"""


def run_struck(
    words: Sequence[str], when: Callable[[Sequence[int]], bool], blow: Callable[[int], None] = kill
) -> tuple[tuple[int, ...], subprocess.CompletedProcess[str]]:
    """`katana run`, of which the patcher is killed at a moment: the patcher's calls, and how the program ended."""
    said, say = os.pipe()
    heard, hear = os.pipe()
    command = [sys.executable, "-c", HELD.format(say=say, heard=heard), "run", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, pass_fds=(say, heard), stdout=pipe, stderr=pipe, text=True) as run:
        os.close(say)
        os.close(heard)
        with open(said) as line:  # noqa: PTH123
            patcher = int(line.readline())
        calls = strike_traced(patcher, lambda: os.close(hear), when, blow)
        try:
            output, errors = run.communicate(timeout=60)
        finally:
            run.kill()
    return calls, subprocess.CompletedProcess(command, run.returncode, output, errors)


@situation(49, "katana run: the patcher killed at each of its system calls (a few moments in make test)")
def test_killed_beside_a_program_that_starts(tmp_path: Path) -> None:
    """A bug: the program waits at its entry point for ever, dies, or is of two builds; or nobody is told."""
    program, patch = launched_pair(tmp_path)
    words = ["--patch", str(patch), str(program.output)]
    calls, done = run_struck(words, NEVER)
    assert done.stdout.startswith("answers 102 102\n"), done
    news = 0
    for moment in moments(calls, is_kill=True):
        made, done = run_struck(words, moment)
        where = moment.number, made[-2:], done
        if not done.stdout:
            # It was not traced yet: then nothing is started.
            assert done.returncode == 5, where
            assert "cannot be traced" in done.stderr, where
            continue
        assert done.returncode == 9, where
        answers = done.stdout.splitlines()[0]
        assert answers in ("answers 2 2", "answers 102 102"), where
        news += answers == "answers 102 102"
        assert answers == "answers 102 102" or "the patcher was killed" in done.stderr, where
    assert news or not os.environ.get("KATANA_TORTURE")


MOVING = (
    HEAD
    + r"""
int n[3] = {7, 8, 9}; int *to = &n[1];
NOINLINE int answer(int x) { seen++; return to[x]; }
int main(void) { printf("answers %d %d\n", answer(-1), answer(1)); return 9; }
"""
)


@situation(49, "katana run: the patcher and its guardian killed while live data moves")
def test_killed_with_its_guardian_beside_a_program_that_starts(tmp_path: Path) -> None:
    """Yama lets nobody else finish it.  A bug: the program stands still before its first step."""
    sources = {"old": MOVING, "new": MOVING.replace("n[3]", "n[5]")}
    old, new = (build(tmp_path / name, "server", source) for name, source in sources.items())
    patch = write_patch(tmp_path, patch_from(old, new, (), moved=("n",), staying=("to",)))
    calls, done = run_struck(["--patch", str(patch), str(old.output)], is_writing, kill_both)
    assert is_writing(calls)
    assert "the patcher was killed" in done.stderr
    assert (done.stdout, done.returncode) == ("answers 7 9\n", 9)
