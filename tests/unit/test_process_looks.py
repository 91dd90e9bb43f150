"""Which processes a transaction is about, where they fork and are started meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from katana_cc.errors import BusyError
from katana_cc.outcomes import ProcessOutcome
from katana_cc.process.looks import Looks, Select
from katana_cc.process.members import Member
from katana_cc.process.survey import Found
from katana_cc.process.target import Target


class FakeTarget:
    """A process: its id, and what tells its start from those of others."""

    def __init__(self, pid: int, start: bytes) -> None:
        self.pid = pid
        self.name = "server"
        self.start = start
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def member(pid: int, start: bytes = b"one", before: ProcessOutcome | None = None) -> Member:
    return Member(target=cast("Target", FakeTarget(pid, start)), before=before)


def met(looks: Looks, meet: Callable[[int], Member | None]) -> list[list[int]]:
    """The process ids of each look; `meet` gives what a process is, None when it has ended."""
    every = []
    for todo in looks:
        every.append(todo)
        members = [m for m in map(meet, todo) if m is not None]
        looks.done(members, len(todo) - len(members))
    return every


def giving(*looks: list[int], vanished: tuple[int, ...] = ()) -> Select:
    """Each look in turn, and the last again and again."""
    number = 0

    def select() -> Found:
        nonlocal number
        gone = vanished[number] if number < len(vanished) else 0
        found = Found(tuple(looks[min(number, len(looks) - 1)]), (), gone)
        number += 1
        return found

    return select


def test_children_forked_before_their_parents_commit_are_found() -> None:
    looks = Looks([1], giving([1, 2], [1, 2, 3], [1, 2, 3]), 5.0, "processes")
    assert met(looks, member) == [[1], [2], [3]]


def test_what_a_child_inherited_makes_no_other_look() -> None:
    """A bug: a server that forks for each request is looked at for ever, each look holding descriptors open."""
    numbers = iter(range(2, 10**9))

    def select() -> Found:
        return Found((1, next(numbers)), ())

    children = []

    def meet(pid: int) -> Member:
        children.append(member(pid, before=ProcessOutcome.ALREADY if pid > 3 else None))
        return children[-1]

    assert met(Looks([1], select, 1000.0, "processes"), meet) == [[1], [2], [3], [4]]
    assert [cast("FakeTarget", m.target).is_closed for m in children] == [False, False, False, True]


def test_what_is_started_meanwhile_makes_no_other_look() -> None:
    """A bug: short commands that load the library are found for ever."""
    numbers = iter(range(2, 10**9))

    def select() -> Found:
        return Found((1, next(numbers)), ())

    looks = Looks([1], select, 1000.0, "processes")
    assert met(looks, lambda pid: member(pid, b"one" if pid == 1 else b"%d" % pid)) == [[1], [2]]


def test_it_is_given_up_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: processes that fork quicker than they are patched keep it going for ever."""
    numbers = iter(range(2, 10**9))
    now = iter(range(10**9))
    monkeypatch.setattr("katana_cc.process.looks.time.monotonic", lambda: next(now))

    def select() -> Found:
        return Found((next(numbers),), ())

    with pytest.raises(BusyError, match="are forked all the time: for 5 s each look found another"):
        met(Looks([1], select, 5.0, "processes without the patch"), member)


def test_what_ended_unseen_may_have_forked() -> None:
    """A bug: a worker is listed, forks and ends, and its child runs the old code."""
    looks = Looks([1], giving([1], [1, 2], [1, 2], vanished=(1,)), 5.0, "processes")
    assert met(looks, member) == [[1], [2]]
    looks = Looks([1], giving([1, 2], [1, 3], [1, 3]), 5.0, "processes")
    assert met(looks, lambda pid: None if pid == 2 else member(pid)) == [[1], [2], [3]]


def test_unrelated_ends_do_not_keep_it_going() -> None:
    looks = Looks([1], giving([1], vanished=(1,) * 1000), 5.0, "processes")
    assert met(looks, member) == [[1]]


def test_process_id_that_comes_again_is_another_process() -> None:
    looks = Looks([1, 2], giving([1, 3], [1, 2, 3], [1, 2, 3]), 5.0, "processes")
    assert met(looks, member) == [[1, 2], [3], [2]]


def test_named_processes_are_looked_at_once() -> None:
    assert met(Looks([3, 1, 3], None, 5.0, "processes"), member) == [[3, 1]]
