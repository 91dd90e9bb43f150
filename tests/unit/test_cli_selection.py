"""Which processes a command line means."""

from __future__ import annotations

import argparse

import pytest

from katana_cc.cli import apply, revert
from katana_cc.cli.selection import candidates
from katana_cc.process import survey


def parsed(words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    revert.add_arguments(parser)
    return parser.parse_args(revert.prepare(words.split()))


@pytest.mark.parametrize(
    "words",
    ["--pid 12 13 ebb4aaaf", "ebb4aaaf --pid 12 13", "--pid 12 --pid 13 ebb4aaaf", "--pid 12 13 ebb4aaaf --json"],
)
def test_patch_may_stand_before_or_after_the_processes(words: str) -> None:
    """The advice that errors print has to be accepted as it is."""
    arguments = parsed(words)
    assert (arguments.pid, arguments.patch) == ([12, 13], "ebb4aaaf")


def test_identity_of_digits_is_not_a_process() -> None:
    arguments = parsed("--pid 12 12345678901234567890123456789012")
    assert (arguments.pid, arguments.patch) == ([12], "12345678901234567890123456789012")


def test_path_may_follow_the_process_in_apply() -> None:
    parser = argparse.ArgumentParser()
    apply.add_arguments(parser)
    arguments = parser.parse_args(apply.prepare(["--pid", "12", "x.kpo", "--dry-run"]))
    assert (arguments.pid, arguments.po, arguments.dry_run) == ([12], "x.kpo", True)


def test_all_gives_parents_before_their_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: process ids have begun anew, and a child that is patched before its parent has a sibling that is not."""
    parents = {2: 0, 3: 900, 5: 3, 7: 2, 40: 41, 900: 2}  # 41 is outside of this namespace, or has just ended
    monkeypatch.setattr(survey, "all_pids", lambda: sorted(parents))
    monkeypatch.setattr(survey, "_parent_of", parents.get)
    every = candidates(argparse.Namespace(pid=None, tree=None, all=True))
    assert every is not None
    found = every()
    assert sorted(found) == sorted(parents)
    order = {pid: i for i, pid in enumerate(found)}
    assert all(order[parents[pid]] < order[pid] for pid in parents if parents[pid] in parents)


@pytest.mark.parametrize("words", ["--pid 0", "--pid -1", "--tree x", "--pid 1 --wait soon"])
def test_nonsense_is_a_usage_error(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(words)
    assert stop.value.code == 2
    assert "_process_id" not in capsys.readouterr().err
