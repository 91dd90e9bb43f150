"""Tasks shared with forked processes: the same answers whoever gives them, and none lost with a process."""

from __future__ import annotations

import marshal
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from katana_cc.recorder.workers import Workers, helpers_for

# The test runner has threads of its own; what is forked here takes none of their locks.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def square(number: int) -> int:
    return number * number


def in_workers_only(harm: Callable[[], object]) -> Callable[[int], int]:
    """A task that does harm where it is not done by this process."""
    here = os.getpid()

    def work(number: int) -> int:
        if os.getpid() != here:
            harm()
        return square(number)

    return work


@pytest.fixture(autouse=True)
def no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does, its workers are gone after it."""
    real, forked = os.fork, []

    def fork() -> int:
        process = real()
        if process:
            forked.append(process)
        return process

    monkeypatch.setattr(os, "fork", fork)
    yield
    for process in forked:
        with pytest.raises(ChildProcessError):
            os.waitpid(process, os.WNOHANG)


@pytest.mark.parametrize("helpers", [1, 2, 5])
@pytest.mark.parametrize("tasks", [1, 40, 1024, 1025, 5000])
def test_every_task_is_answered_once_asked(tasks: int, helpers: int) -> None:
    with Workers(square, tasks, helpers) as shared:
        assert shared.results() == {n: n * n for n in range(tasks)}


def test_alone_nothing_is_done_before_it_is_asked_for() -> None:
    with Workers(square, 40, 0) as shared:
        assert shared.results() == {}


def test_answers_may_be_larger_than_a_pipe() -> None:
    with Workers(lambda number: bytes([number]) * 1_000_000, 12, 2) as shared:
        assert shared.results() == {n: bytes([n]) * 1_000_000 for n in range(12)}


def test_task_that_fails_has_no_answer_and_takes_none_along() -> None:
    def work(number: int) -> int:
        if number == 7:
            raise ValueError("seven")
        return number

    with Workers(work, 40, 2) as shared:
        assert shared.results() == {n: n for n in range(40) if n != 7}


@pytest.mark.parametrize("harm", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(0)])
def test_worker_that_dies_takes_its_own_answers_only(harm: Callable[[], object]) -> None:
    with Workers(in_workers_only(harm), 40, 3) as shared:
        done = shared.results()
    assert len(done) >= 40 - 3  # each died of its first task
    assert all(done[n] == n * n for n in done)


def test_answers_that_are_cut_off_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = marshal.dumps
    monkeypatch.setattr(marshal, "dumps", lambda value: whole(value)[:-1])
    here = os.getpid()
    with Workers(lambda _: os.getpid(), 40, 2) as shared:
        assert set(shared.results().values()) <= {here}


@pytest.mark.parametrize("first", [0, 1])
def test_process_that_cannot_be_forked_is_done_without(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    real, calls = os.fork, iter(range(9))

    def fork() -> int:
        if next(calls) >= first:
            raise BlockingIOError("no more processes")
        return real()

    monkeypatch.setattr(os, "fork", fork)
    with Workers(square, 40, 2) as shared:
        assert shared.results() == ({n: n * n for n in range(40)} if first else {})


def test_no_descriptor_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    with Workers(square, 40, 3) as shared:
        shared.results()
    with Workers(square, 40, 3):
        pass  # not asked
    monkeypatch.setattr(os, "fork", lambda: os.close(-1))
    with Workers(square, 40, 3):
        pass
    assert held() == before


def test_workers_end_with_the_block() -> None:
    with suppress(KeyboardInterrupt), Workers(in_workers_only(lambda: time.sleep(60)), 40, 2):
        raise KeyboardInterrupt


def test_where_nobody_waits_for_children() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Workers(square, 40, 2) as shared:
            assert len(shared.results()) == 40
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("tasks", "processors", "helpers"),
    [(200, 1, 0), (200, 2, 1), (1, 2, 1), (1, 64, 1), (9, 64, 2), (0, 2, 0), (200, 64, 7)],
)
def test_how_many_workers(monkeypatch: pytest.MonkeyPatch, tasks: int, processors: int, helpers: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert helpers_for(tasks) == helpers


def test_none_where_other_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert helpers_for(200) == 0


def test_value_that_cannot_be_sent_is_no_answer() -> None:
    answers: dict[int, Any] = {}
    here = os.getpid()
    with Workers(lambda _: object() if os.getpid() != here else 1, 40, 1) as shared:
        answers = shared.results()
    assert set(answers.values()) <= {1}
