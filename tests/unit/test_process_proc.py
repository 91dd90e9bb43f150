"""What /proc tells of processes and threads."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from katana_cc.process.proc import (
    all_waiting,
    has_ended,
    is_dead,
    is_traced_by_us,
    list_threads,
    process_name,
    status_fields,
    waiting_at,
)


@pytest.fixture
def gone() -> int:
    """A process that has been."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@contextlib.contextmanager
def child(body: Callable[[], object]) -> Iterator[int]:
    """A process that does the same for ever, and has begun."""
    told, telling = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(telling, b"1")
        while True:
            body()
    os.read(told, 1)
    os.close(told)
    os.close(telling)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_zombie_is_dead_and_what_runs_is_not() -> None:
    """A bug: a process that was killed is taken for one that does not stop, or the other way round."""
    assert not is_dead(os.getpid())
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(pid)
    assert has_ended(pid)
    os.waitpid(pid, 0)
    assert is_dead(pid), "gone"


def test_what_is_gone_is_empty_and_no_error(gone: int) -> None:
    """A bug: a process that ends between two looks ends katana."""
    assert not list_threads(gone)
    assert not all_waiting(gone)
    assert status_fields(gone) == status_fields(os.getpid(), gone) == {}
    assert waiting_at(gone, gone) is None
    assert process_name(gone) == "?"
    assert is_dead(gone)
    assert not is_traced_by_us({})


def test_threads_are_those_that_run() -> None:
    """A bug: a thread is missed, which nobody stops then."""
    may_end = threading.Event()
    others = [threading.Thread(target=may_end.wait) for _ in range(5)]
    for thread in others:
        thread.start()
    try:
        assert {threading.get_native_id(), *(t.native_id for t in others)} <= set(list_threads(os.getpid()))
    finally:
        may_end.set()
        for thread in others:
            thread.join()


def test_a_thread_that_waits_is_on_its_stack_and_one_that_runs_nowhere() -> None:
    """A bug: what a thread had in its registers long ago is taken for what it has."""
    with child(signal.pause) as pid:
        while (place := waiting_at(pid, pid)) is None:
            os.sched_yield()  # it is on its way
        with open(f"/proc/{pid}/maps", encoding="utf-8") as file:  # noqa: PTH123
            ranges = {line.split()[-1]: line.split()[0] for line in file}
        low, high = (int(x, 16) for x in ranges["[stack]"].split("-"))
        assert low <= place[0] < high
        assert all_waiting(pid) == [(pid, *place)]
    with child(lambda: None) as pid:
        while waiting_at(pid, pid) is not None:
            os.sched_yield()  # it still writes that it has begun
        assert not all_waiting(pid)


def test_fields_are_those_of_the_thread() -> None:
    """A bug: what is said of a thread is true of the first one only."""
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(status_fields(os.getpid(), threading.get_native_id())["Pid"]))
    thread.start()
    thread.join()
    assert seen == [str(thread.native_id)]
    assert status_fields(os.getpid())["Tgid"] == str(os.getpid())
    assert not is_traced_by_us(status_fields(os.getpid()))
