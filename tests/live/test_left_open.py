"""Descriptors that a katana which was killed left open in its target."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from katana_cc.process.borrowing import BorrowedThread
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.inject import make_memfd
from katana_cc.process.leftopen import left_open
from katana_cc.process.maps import STACK
from katana_cc.process.target import Target
from tests.live.conftest import TIMES_TEN
from tests.live.handmade import build, patch_from
from tests.live.programs import COUNTER
from tests.live.server import Server, katana, serving, write_patch
from tests.live.situations import situation
from tests.support.strike import strike


def descriptors(pid: int) -> dict[str, str]:
    """What each descriptor of a process is."""
    return {path.name: str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}


def leave_open(server: Server, count: int) -> None:
    """Leave memfds as a katana does that is killed behind memfd_create."""
    with Target(server.pid) as target:
        gadgets = find_gadgets(target.memory, target.regions, target.where)
        with BorrowedThread(target.memory, gadgets) as remote:
            for _ in range(count):
                make_memfd(remote, target, STACK)
    assert len(left_open(server.pid)) == count


class _Opens:
    """When a katana has opened a memfd in a process that had none before, or none any more."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._had_none = False

    def __call__(self, _: Sequence[int]) -> bool:
        is_open = bool(left_open(self._pid))
        self._had_none |= not is_open
        return is_open and self._had_none


@situation(49, "a descriptor that a killed katana left open")
@pytest.mark.parametrize("program", ["server", "server stopped by SIGSTOP"])
def test_next_katana_closes_what_a_killed_one_left_open(tmp_path: Path, program: str) -> None:
    """A bug: with each katana that is killed, the program has one more file open, for ever."""
    old = build(tmp_path / "old", "server", COUNTER)
    new = build(tmp_path / "new", "server", TIMES_TEN)
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output) as server:
        before = descriptors(server.pid)
        for _ in range(2):  # the second one closes what the first one left, and leaves its own
            outcome = strike(
                ["apply", str(patch), "--pid", str(server.pid)],
                _Opens(server.pid),
                lambda pid: os.kill(pid, signal.SIGKILL),
            )
            assert outcome.status == -signal.SIGKILL
            assert len(left_open(server.pid)) == 1
            assert server.ask("a 1") == "2"
        if "SIGSTOP" in program:
            os.kill(server.pid, signal.SIGSTOP)
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert descriptors(server.pid) == before
        if "SIGSTOP" in program:
            assert "T" in Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0]
            os.kill(server.pid, signal.SIGCONT)
        assert server.ask("a 1") == "11"


@pytest.mark.parametrize("words", [["revert"], ["revert", "--give-back"]], ids=" ".join)
def test_whoever_takes_a_patch_out_closes_them_too(tmp_path: Path, words: list[str]) -> None:
    """A bug: the last katana of a process leaves behind what others did."""
    old = build(tmp_path / "old", "server", COUNTER)
    new = build(tmp_path / "new", "server", TIMES_TEN)
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output) as server:
        before = descriptors(server.pid)
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert descriptors(server.pid) == before
        leave_open(server, 3)
        done = katana(*words, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert descriptors(server.pid) == before
        if "--give-back" not in words:
            leave_open(server, 2)
            assert katana("revert", "--only-give-back", "--pid", server.pid).returncode == 0
            assert descriptors(server.pid) == before
        assert server.ask("a 1") == "2"


def test_a_refusal_closes_nothing(tmp_path: Path) -> None:
    """A bug: a process is stopped of which it was said that nothing is touched."""
    old = build(tmp_path / "old", "server", COUNTER)
    new = build(tmp_path / "new", "server", TIMES_TEN)
    patch = write_patch(tmp_path, patch_from(new, old, ("answer",)))
    with serving(old.output) as server:
        leave_open(server, 1)
        before = descriptors(server.pid)
        assert katana("apply", patch, "--pid", server.pid).returncode not in (0, 4)
        assert katana("apply", patch, "--dry-run", "--pid", server.pid).returncode != 0
        assert descriptors(server.pid) == before
