"""Time-outs of calls that are entered again: when they are over, and when it is another call."""

from __future__ import annotations

import pytest

from katana_cc.cpu.native import system as cpu
from katana_cc.process.timers import Timers

INDEX = 3
AGAIN = {cpu.RESULT: 232}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(cpu, "time_out", lambda _: INDEX)
    return Clock()


def waiting(value: int) -> list[int]:
    words = [0] * cpu.REGISTER_WORDS
    words[INDEX] = value
    return words


def test_call_is_over_when_its_time_is(clock: Clock) -> None:
    known = Timers(clock)
    words = waiting(100)
    for _ in range(3):
        changes = known.entered_again(7, words, AGAIN, False)
        assert changes[cpu.RESULT] == 232
        words[INDEX] = changes.get(INDEX, words[INDEX])
        assert words[INDEX] & 0xFFFF_FFFF == 100, "the kernel sees the same time-out"
        clock.now += 0.033
    clock.now += 0.002
    assert known.entered_again(7, words, AGAIN, False) == {cpu.RESULT: 0, INDEX: 100}


def test_new_call_with_the_same_arguments_begins_anew(clock: Clock) -> None:
    known = Timers(clock)
    known.entered_again(7, waiting(100), AGAIN, False)
    clock.now += 1
    assert known.entered_again(7, waiting(100), AGAIN, False)[cpu.RESULT] == 232


def test_threads_are_told_apart(clock: Clock) -> None:
    known = Timers(clock)
    marked = known.entered_again(7, waiting(100), AGAIN, False)[INDEX]
    other = known.entered_again(8, waiting(100), AGAIN, False)[INDEX]
    assert marked != other
    clock.now += 1
    assert known.entered_again(8, waiting(marked), AGAIN, False)[cpu.RESULT] == 232


@pytest.mark.parametrize("value", [0, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 1 << 31])
def test_call_without_an_end_is_entered_as_it_was(clock: Clock, value: int) -> None:
    known = Timers(clock)
    assert known.entered_again(7, waiting(value), AGAIN, False) == AGAIN


def test_last_stop_marks_nothing(clock: Clock) -> None:
    assert Timers(clock).entered_again(7, waiting(100), AGAIN, True) == AGAIN


def test_call_of_another_kind_is_entered_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "time_out", lambda _: None)
    assert Timers().entered_again(7, waiting(100), AGAIN, False) == AGAIN
