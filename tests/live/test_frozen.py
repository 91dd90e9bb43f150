"""Processes that are frozen, or of which a system call takes its time: nothing is left of them in between."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from katana_cc.errors import TargetError
from katana_cc.process import remote
from katana_cc.process.borrowing import BorrowedThread
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.proc import status_fields
from katana_cc.process.target import Target
from tests.live.handmade import build, patch_from
from tests.live.programs import COUNTER
from tests.live.server import Server, katana, serving, write_patch
from tests.live.situations import REFUSED, situation

GETPID, PAUSE = 39, 34


class Group(NamedTuple):
    """A control group of our own."""

    folder: Path
    is_unified: bool

    @contextmanager
    def frozen(self, pid: int) -> Iterator[None]:
        """With a process in it, and frozen."""
        (self.folder / "cgroup.procs").write_text(str(pid))
        control, frozen, thawed = (
            ("cgroup.freeze", "1", "0") if self.is_unified else ("freezer.state", "FROZEN", "THAWED")
        )
        state, told = ("cgroup.events", "frozen 1") if self.is_unified else ("freezer.state", "FROZEN\n")
        try:
            (self.folder / control).write_text(frozen)
            while told not in (self.folder / state).read_text():
                pass
            yield
        finally:
            (self.folder / control).write_text(thawed)


def _group(kind: str) -> Iterator[Group]:
    mounts = [line.partition(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    types = {"unified": ("cgroup2",), "legacy": ("cgroup", "freezer")}[kind]
    for mount, _, system in mounts:
        words = system.replace(",", " ").split()
        if words[0] == types[0] and set(types) <= set(words):
            folder = Path(mount.split()[4]) / f"katana-{uuid.uuid4().hex}"
            try:
                folder.mkdir()
            except OSError:
                continue
            yield Group(folder, kind == "unified")
            folder.rmdir()
            return
    pytest.skip("control groups cannot be made here")


@pytest.fixture(params=["unified", "legacy"])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A control group."""
    yield from _group(request.param)


@pytest.fixture
def unified() -> Iterator[Group]:
    """A control group of version 2, in which what is frozen can be stopped."""
    yield from _group("unified")


@situation(46, "frozen control group (docker pause)", REFUSED)
def test_frozen_process_is_left_alone(tmp_path: Path, group: Group) -> None:
    """A bug: katana waits for a system call that never begins, blames the machine, and leaves a thread in the midst of
    it: if it has no way back, it crashes when it is thawed."""
    old = build(tmp_path / "old", "server", COUNTER)
    new = build(tmp_path / "new", "server", COUNTER.replace("/*ANSWER*/", "x += 100;"))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output, "2") as server:
        with group.frozen(server.pid):
            for words in (("apply", patch), ("apply", patch, "--dry-run"), ("revert",)):
                done = katana(*words, "--pid", server.pid)
                assert done.returncode == 4
                assert "its control group is frozen" in done.stderr
            assert int(status_fields(server.pid)["SigBlk"], 16) == 0
        assert server.ask("a 5") == "6"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("a 5") == "106"


@pytest.mark.parametrize("has_frame", [True, False])
def test_process_that_is_frozen_meanwhile(
    tmp_path: Path, unified: Group, monkeypatch: pytest.MonkeyPatch, has_frame: bool
) -> None:
    """A bug: the thread goes on, once thawed, in the midst of what it was to do."""
    monkeypatch.setattr(remote, "_CALL_TIMEOUT", 0.2)
    if not has_frame:
        monkeypatch.setattr(remote, "way_back", None)
    with serving(build(tmp_path, "server", COUNTER).output) as server:
        with unified.frozen(server.pid), pytest.raises(TargetError, match="did not end: its control group is frozen"):
            _call(server, GETPID)
        assert server.ask("a 5") == "6"


@pytest.mark.parametrize("has_frame", [True, False])
def test_system_call_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_frame: bool) -> None:
    """A bug: the thread is left in it, traced and with all signals blocked; where it has no frame, it crashes."""
    monkeypatch.setattr(remote, "_CALL_TIMEOUT", 0.2)
    if not has_frame:
        monkeypatch.setattr(remote, "way_back", None)
    with serving(build(tmp_path, "server", COUNTER).output) as server:
        with pytest.raises(TargetError, match=r"system call 34 in the target did not end\n"):
            _call(server, PAUSE)
        assert status_fields(server.pid)["TracerPid"] == "0"
        assert int(status_fields(server.pid)["SigBlk"], 16) == 0
        assert server.ask("a 5") == "6"
        assert _call(server, GETPID) == server.pid


def _call(server: Server, number: int) -> int:
    with Target(server.pid) as target:
        gadgets = find_gadgets(target.memory, target.regions, target.where)
        with BorrowedThread(target.memory, gadgets) as thread:
            return thread.syscall(number)
