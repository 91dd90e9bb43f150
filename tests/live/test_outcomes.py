"""What came of each of several processes: counted, with an exit status, in text and JSON."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from katana_cc.errors import BusyError, PartlyError, TargetError
from katana_cc.outcomes import APPLYING, REVERTING
from katana_cc.patch.model import PatchObject
from katana_cc.process import apply, putback, revert, reverting
from katana_cc.process.ledger import Ledger
from katana_cc.process.survey import Found
from katana_cc.process.target import Target
from tests.live.handmade import Built, build, patch_from
from tests.live.programs import COUNTER, INSIDE, PREFORK
from tests.live.server import Server, code_of, identity, katana, serving, tracing, write_patch
from tests.live.test_recovery import VERSION_OFFSET
from tests.live.test_trees import Failing

NEW = INSIDE.replace("/*ANSWER*/", "static int news; news++; return 10 * x + news;")


class Several(NamedTuple):
    """Processes of one build: a quiet one, and one with a thread inside of what is replaced.  And one of another build,
    and the process id of one that has ended."""

    po: PatchObject
    patch: Path
    quiet: Server
    busy: Server
    foreign: Server
    dead: int


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    folder = tmp_path_factory.mktemp("inside")
    return build(folder / "old", "server", INSIDE), build(folder / "new", "server", NEW)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("other"), "other", PREFORK)


@pytest.fixture
def several(tmp_path: Path, inside: tuple[Built, Built], other: Built) -> Iterator[Several]:
    po = patch_from(*inside, ("answer",))
    ended = subprocess.Popen(["true"])
    ended.wait()
    with serving(inside[0].output) as quiet, serving(inside[0].output) as busy, serving(other.output) as foreign:
        yield Several(po, write_patch(tmp_path, po), quiet, busy, foreign, ended.pid)


def told(output: str) -> tuple[dict[int, str], dict[str, int], int]:
    """Outcomes by process id, counts that are not zero, and the status of what was printed as JSON."""
    result = json.loads(output)
    outcomes = {p["pid"]: p["outcome"] for p in result["processes"]}
    counts = {outcome: count for outcome, count in result["counts"].items() if count}
    assert sum(counts.values()) == len(outcomes)
    return outcomes, counts, result["error"]["status"] if "error" in result else 0


def test_each_of_several_named_processes_is_told_of(several: Several) -> None:
    """A bug: only the first that was in the way is named, and a script cannot tell how the others stand."""
    quiet, busy, foreign, dead = several.quiet.pid, several.busy.pid, several.foreign.pid, several.dead
    assert several.busy.ask("i") == "inside"
    words = ("apply", several.patch, "--wait", "0.1", "--pid")
    done = katana(*words, quiet, busy, foreign, dead, "--json")
    assert done.returncode == 3
    outcomes, counts, status = told(done.stdout)
    assert outcomes == {quiet: "not tried", busy: "not tried", foreign: "refused", dead: "failed"}
    assert (counts, status) == ({"not tried": 2, "refused": 1, "failed": 1}, 3)
    why = {p["pid"]: p["what"] for p in json.loads(done.stdout)["processes"]}
    assert why[dead] == f"there is no process {dead}"
    assert "build" in why[foreign]
    text = katana(*words, quiet, busy, foreign, dead)
    assert text.returncode == 3
    assert text.stdout.splitlines()[-1] == "1 refused, 1 failed, 2 not tried"
    assert f"pid {dead} (?): failed: there is no process {dead}" in text.stdout
    # The first in the way gives the status.
    assert katana(*words, dead, foreign).returncode == 5


def test_busy_process_among_several(several: Several) -> None:
    quiet, busy = several.quiet.pid, several.busy.pid
    assert several.busy.ask("i") == "inside"
    for selection in (("--pid", quiet, busy), ("--all",)):
        done = katana("apply", several.patch, "--wait", "0.1", *selection, "--json")
        assert done.returncode == 4, done.stderr
        outcomes, counts, status = told(done.stdout)
        assert outcomes == {quiet: "taken back", busy: "busy"}
        assert (counts, status) == ({"busy": 1, "taken back": 1}, 4)
        assert set(json.loads(done.stdout)["counts"]) == {str(x) for x in APPLYING}


def test_processes_that_carry_the_patch_are_counted_apart(several: Several) -> None:
    quiet, busy = several.quiet.pid, several.busy.pid
    assert katana("apply", several.patch, "--pid", quiet).returncode == 0
    done = katana("apply", several.patch, "--all", "--json")
    assert done.returncode == 0
    assert told(done.stdout)[:2] == (
        {quiet: "already applied", busy: "applied"},
        {"applied": 1, "already applied": 1},
    )
    assert katana("apply", several.patch, "--all").stdout.splitlines()[-1] == "2 already applied"


@pytest.mark.xdist_group("all processes")
def test_each_of_several_is_told_of_when_reverting(several: Several) -> None:
    quiet, busy, foreign, dead = several.quiet.pid, several.busy.pid, several.foreign.pid, several.dead
    assert katana("apply", several.patch, "--pid", quiet, busy).returncode == 0
    assert several.busy.ask("i") == "inside"
    id_of = identity(several.po)
    done = katana("revert", "--wait", "0.1", "--pid", quiet, busy, foreign, dead, "--json")
    assert done.returncode == 5
    outcomes, counts, status = told(done.stdout)
    assert outcomes == {quiet: "not tried", busy: "not tried", foreign: "nothing to revert", dead: "failed"}
    assert (counts, status) == ({"nothing to revert": 1, "failed": 1, "not tried": 2}, 5)
    for selection in (("--pid", quiet, busy), ("--all",)):
        done = katana("revert", id_of, "--wait", "0.1", *selection, "--json")
        assert done.returncode == 4, done.stderr
        assert told(done.stdout) == ({quiet: "not tried", busy: "busy"}, {"busy": 1, "not tried": 1}, 4)
        assert set(json.loads(done.stdout)["counts"]) == {str(x) for x in REVERTING}
    assert several.busy.ask("l").startswith("left")
    done = katana("revert", id_of, "--all")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2 reverted")


def test_patch_that_cannot_be_taken_back_has_a_status_of_its_own(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug: "nothing touched", and one process runs the new code."""
    quiet, busy = several.quiet, several.busy
    Failing(apply, monkeypatch, busy.pid)
    Failing(reverting, monkeypatch, quiet.pid)
    with pytest.raises(PartlyError) as raised:
        apply.apply_patch(several.po, identity(several.po), [quiet.pid, busy.pid])
    error = raised.value
    assert int(error.status) == 11
    assert {p.pid: str(p.outcome) for p in error.processes} == {quiet.pid: "stuck", busy.pid: "busy"}
    assert f"pid {quiet.pid} (server): the patch stays applied: never a safe moment" in str(error)
    assert "nothing was touched" not in str(error)
    assert quiet.ask("a 1") == "11"
    assert busy.ask("a 1") == "2"


def test_patch_that_cannot_be_put_back_has_a_status_of_its_own(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, busy = several.quiet, several.busy
    apply.apply_patch(several.po, identity(several.po), [quiet.pid, busy.pid])
    Failing(reverting, monkeypatch, busy.pid, after=1)
    Failing(putback, monkeypatch, quiet.pid)
    with pytest.raises(PartlyError) as raised:
        revert.revert_patch([quiet.pid, busy.pid])
    assert {p.pid: str(p.outcome) for p in raised.value.processes} == {quiet.pid: "stuck", busy.pid: "busy"}
    assert "the patch stays reverted: never a safe moment" in str(raised.value)
    assert quiet.ask("a 1") == "2"
    assert busy.ask("a 1") == "11"


def test_child_that_cannot_be_reverted_brings_the_patch_back(several: Several) -> None:
    """A bug: what is found at a later look is in the way, and those before it stay reverted."""
    parent, child = several.quiet, several.busy
    apply.apply_patch(several.po, identity(several.po), [parent.pid, child.pid])
    every = Found((parent.pid, child.pid), ())
    with tracing(child.pid), pytest.raises(TargetError, match="already traced") as raised:
        revert.revert_patch([parent.pid], must_match=False, select=lambda: every)
    assert {p.pid: str(p.outcome) for p in raised.value.processes} == {parent.pid: "taken back", child.pid: "failed"}
    assert parent.ask("a 1") == "11"
    assert [r.pid for r in revert.revert_patch([parent.pid], must_match=False, select=lambda: every)] == list(
        every.pids
    )
    assert (parent.ask("a 1"), child.ask("a 1")) == ("2", "2")


def test_interrupted_with_one_half_done_says_so(several: Several, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: only "interrupted" is said, and a process keeps the patch."""
    quiet, busy = several.quiet, several.busy

    def interrupted() -> None:
        raise KeyboardInterrupt

    failing = Failing(apply, monkeypatch, busy.pid)
    failing.before_it_fails = interrupted
    Failing(reverting, monkeypatch, quiet.pid)
    with pytest.raises(PartlyError, match="interrupted"):
        apply.apply_patch(several.po, identity(several.po), [quiet.pid, busy.pid])
    monkeypatch.undo()
    revert.revert_patch([quiet.pid])
    failing = Failing(apply, monkeypatch, busy.pid)
    failing.before_it_fails = interrupted
    with pytest.raises(KeyboardInterrupt):
        apply.apply_patch(several.po, identity(several.po), [quiet.pid, busy.pid])
    assert quiet.ask("a 1") == "2"
    with pytest.raises(BusyError):
        Failing(apply, monkeypatch, busy.pid)
        apply.apply_patch(several.po, identity(several.po), [quiet.pid, busy.pid])


class Beside(NamedTuple):
    """A process that carries a patch, and one of the same build that carries another one, by its ledger."""

    po: PatchObject
    first: Server
    second: Server
    ledger: Ledger

    def revert(self, *words: str | int) -> tuple[int, dict[int, str], dict[str, int], str]:
        """Status, outcomes and counts of a revert of the one patch, and what is said on stderr."""
        done = katana("revert", identity(self.po), *words, "--json")
        return done.returncode, *told(done.stdout)[:2], done.stderr


@pytest.fixture
def beside(tmp_path: Path, counter: tuple[Built, Built]) -> Iterator[Beside]:
    third = build(tmp_path / "third", "server", COUNTER.replace("/*ANSWER*/", "if (x > 100) return 0;"))
    one, two = patch_from(*counter, ("answer",)), patch_from(counter[0], third, ("answer",), releases=("v1", "v3"))
    with serving(counter[0].output) as first, serving(counter[0].output) as second:
        assert katana("apply", write_patch(tmp_path, one), "--pid", first.pid).returncode == 0
        assert katana("apply", write_patch(tmp_path, two, "two.kpo"), "--pid", second.pid).returncode == 0
        with Target(second.pid) as target:
            (mapping,) = target.patches
        assert mapping.ledger is not None
        yield Beside(one, first, second, mapping.ledger)


def _write(pid: int, address: int, data: bytes) -> None:
    with Target(pid) as target:
        target.memory.write(address, data)


def _make_later(pid: int, ledger: Ledger) -> None:
    """As if a later katana had written it."""
    _write(pid, ledger.base + VERSION_OFFSET, (99).to_bytes(4, "little"))


@pytest.mark.xdist_group("all processes")
def test_process_of_a_later_katana_is_no_reason_to_leave_a_patch_in_the_others(beside: Beside) -> None:
    """A bug: one process that a newer katana patched keeps every patch of this one in all others; or it is left out,
    and a script takes it for done."""
    first, second = beside.first.pid, beside.second.pid
    _make_later(second, beside.ledger)
    code = code_of(second)
    status, outcomes, counts, _ = beside.revert("--pid", first, second)
    assert (status, outcomes) == (5, {first: "not tried", second: "failed"}), "it was named"
    done = katana("revert", "--tree", os.getpid())
    assert done.returncode == 5, "any patch is meant"
    assert "name the patch to take out" in done.stderr
    assert beside.first.ask("a 1") == "11"
    status, outcomes, counts, said = beside.revert("--tree", os.getpid())
    assert (status, outcomes, counts) == (5, {first: "reverted", second: "not known"}, {"reverted": 1, "not known": 1})
    assert "katana revert: 1 process was left alone, since a later katana patched it: whether" in said
    assert beside.first.ask("a 1") == "2"
    done = katana("revert", identity(beside.po), "--tree", os.getpid())
    assert done.returncode == 5
    (line, last) = done.stdout.splitlines()
    assert line.startswith(
        f"pid {second} (server): not known: the patch at {beside.ledger.base:#x} was applied by a later"
    )
    assert last == "nothing to revert: no process that could be read carries the patch"
    assert code_of(second) == code
    assert (
        f"pid {second} (server): the patch at {beside.ledger.base:#x} was applied by a later" in katana("status").stderr
    )


@pytest.mark.xdist_group("all processes")
def test_patch_beside_one_of_a_later_katana_stays(tmp_path: Path, beside: Beside) -> None:
    """A bug: what a later katana made of the process is not known, and the patch is taken out all the same; or only of
    the others."""
    first, second = beside.first.pid, beside.second.pid
    # The patch takes the place of the other, whose ledger cannot be read.
    assert katana("apply", write_patch(tmp_path, beside.po), "--pid", second).returncode == 0
    _make_later(second, beside.ledger)
    status, outcomes, _, _ = beside.revert("--tree", os.getpid())
    assert (status, outcomes) == (5, {first: "not tried", second: "failed"})
    assert beside.first.ask("a 1") == "11"
    assert beside.second.ask("a 1") == "11"


def test_altered_jumps_of_another_patch_are_in_nobodys_way(beside: Beside) -> None:
    """A bug: a breakpoint in one process keeps another patch in all others."""
    first, second = beside.first.pid, beside.second.pid
    (edit,) = (e for e in beside.ledger.edits if e.is_jump)
    _write(second, edit.address, b"\xcc")
    code = code_of(second)
    assert katana("revert", beside.ledger.patch_id, "--pid", second).returncode == 3
    status, outcomes, _, _ = beside.revert("--pid", first, second)
    assert (status, outcomes) == (0, {first: "reverted", second: "nothing to revert"})
    assert code_of(second) == code
