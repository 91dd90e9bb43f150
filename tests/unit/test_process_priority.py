"""What katana asks of the system for the moment in which a target stands still."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from katana_cc.process import priority


def test_score_is_lowered_and_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bug: also what katana does before and after is its to keep, and a server is killed for it."""
    score = tmp_path / "score"
    score.write_text("200")
    monkeypatch.setattr(priority, "_SCORE", score)
    with pytest.raises(MemoryError), priority.spared() as is_spared:
        assert is_spared
        assert score.read_text() == "-1000"
        raise MemoryError
    assert score.read_text() == "200"


def test_stop_goes_on_where_the_score_may_not_be_lowered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bug: katana without CAP_SYS_RESOURCE patches nothing."""
    monkeypatch.setattr(priority, "_SCORE", tmp_path)  # a folder: no open to write
    with priority.spared() as is_spared:
        assert not is_spared


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The scheduling policies that katana asks for, one after another, of a system that grants each."""
    asked = [os.SCHED_BATCH]
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: asked[-1])
    monkeypatch.setattr(os, "sched_setscheduler", lambda _, policy, __: asked.append(policy))
    yield asked
    assert not priority._turns


_FIRST = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK


def test_first_in_line_while_nothing_is_waited_for(policies: list[int]) -> None:
    """A bug: the stop is as long as a time slice of a busy machine, or katana stays in front of all others."""
    with priority.first_in_line() as is_first:
        assert is_first
        priority.stand_aside(0)
        with priority.first_in_line():
            pass
        assert policies[-1] == _FIRST
    assert policies == [os.SCHED_BATCH, _FIRST, _FIRST, _FIRST, os.SCHED_BATCH]


def test_who_waits_for_long_is_not_first_any_more(policies: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: katanas that wait for threads keep a processor from what these threads wait for."""
    with priority.first_in_line():
        with priority.first_in_line():
            begun = time.monotonic()
            monkeypatch.setattr(time, "monotonic", lambda: begun + 10)
            priority.stand_aside(0)
            assert policies[-1] == os.SCHED_BATCH
        assert policies[-1] == os.SCHED_BATCH
    assert policies[-1] == os.SCHED_BATCH
    with priority.first_in_line():  # for the next stop it is
        assert policies[-1] == _FIRST


def test_turn_ends_where_real_time_is_permitted_by_a_limit_only(
    policies: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug: without CAP_SYS_NICE what children do not inherit cannot be taken back, and katana stays in front of all
    others until it ends, whatever it computes (sched(7))."""
    granted = os.sched_setscheduler

    def unprivileged(pid: int, policy: int, parameters: os.sched_param) -> None:
        if policies[-1] & os.SCHED_RESET_ON_FORK and not policy & os.SCHED_RESET_ON_FORK:
            raise PermissionError
        granted(pid, policy, parameters)

    monkeypatch.setattr(os, "sched_setscheduler", unprivileged)
    with priority.first_in_line():
        assert policies[-1] == _FIRST
    assert policies[-1] == os.SCHED_BATCH | os.SCHED_RESET_ON_FORK


def test_stop_goes_on_where_nobody_may_be_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: katana without CAP_SYS_NICE patches nothing."""

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    with priority.first_in_line() as is_first:
        assert not is_first
        priority.stand_aside(0)
