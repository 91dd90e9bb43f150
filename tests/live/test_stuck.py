"""Threads that do not stop in time, in vfork: they go on as soon as they can, and stand in nobody's way."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from katana_cc.errors import BusyError, KatanaError
from katana_cc.process import borrowing, ptrace_binding, stuck, threads
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.proc import list_threads, status_fields
from katana_cc.process.target import Target
from katana_cc.process.threads import Threads
from tests.live.handmade import build
from tests.live.programs import CHURN, COUNTER, HEAD
from tests.live.server import Server, serving
from tests.live.situations import situation

# The first thread is in vfork until the child has read a byte; then it echoes what it reads.  With an argument another
# thread waits beside it.
VFORKING = (
    HEAD
    + r"""
static void *idle(void *p) { for (;;) pause(); return p; }
int main(int argc, char **argv) {
  char byte, line[100]; pthread_t t;
  if (argc > 1) pthread_create(&t, 0, idle, argv);
  if (!vfork()) {
    if (write(1, "ready\n", 6) == 6 && read(0, &byte, 1) == 1) _exit(0);
    _exit(1);
  }
  say("over");
  while (fgets(line, sizeof line, stdin)) { fputs(line, stdout); fflush(stdout); }
  return 0;
}
"""
)
GETPID = 39


@pytest.fixture(scope="module")
def vforking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program."""
    return build(tmp_path_factory.mktemp("vforking"), "server", VFORKING).output


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrowing, "STOP_TIMEOUT", 0.05)
    monkeypatch.setattr(threads, "_RELEASE_TIMEOUT", 0.05)


@contextmanager
def _thread(target: Target) -> Iterator[borrowing.BorrowedThread]:
    with borrowing.BorrowedThread(target.memory, find_gadgets(target.memory, target.regions, target.where)) as thread:
        yield thread


def _traced(pid: int) -> list[int]:
    return [tid for tid in list_threads(pid) if status_fields(pid, tid).get("TracerPid", "0") != "0"]


def _goes_on(server: Server) -> None:
    """It does, without any more of katana than that it lives."""
    server.tell("")  # the child reads it, or a part
    assert server.line() == "over"
    assert server.ask("hello") in ("", "hello")
    assert not _traced(server.pid)
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


@situation(46, "thread in vfork, while another one makes system calls for katana")
def test_thread_in_vfork_is_left_alone_where_there_is_another(vforking: Path) -> None:
    """A bug: it is traced for the rest of katana's life, and stands still as soon as its child has gone."""
    with serving(vforking, "1") as server, Target(server.pid) as target:
        for _ in range(2):
            with _thread(target) as thread:
                assert thread.tid != server.pid
                assert thread.syscall(GETPID) == server.pid
                assert status_fields(server.pid)["TracerPid"] == "0"
        server.tell("")
        assert server.line() == "over"


@situation(46, "thread that comes out of vfork after katana has given up")
def test_thread_that_did_not_stop_goes_on(vforking: Path) -> None:
    """A bug: it stands still until katana ends, which for the next try calls itself another tracer."""
    with serving(vforking) as server, Target(server.pid) as target:
        for _ in range(2):
            with pytest.raises(BusyError, match="does not stop"), _thread(target):
                pass
        target.refuse_if_traced()
        assert stuck.holds(server.pid)
        _goes_on(server)
        with _thread(target) as thread:
            assert thread.syscall(GETPID) == server.pid


def test_thread_is_taken_again_when_it_can_stop(vforking: Path) -> None:
    """A bug: what stopped meanwhile is not known to whoever wants it, or has other options than it was seized with."""
    with serving(vforking) as server, Target(server.pid) as target:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            with pytest.raises(BusyError, match="does not stop"), _thread(target):
                pass
            server.tell("")
            with _thread(target) as thread:
                assert thread.syscall(GETPID) == server.pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert server.line() == "over"
        assert not stuck.holds(server.pid)


def test_stop_of_all_that_failed_lets_all_go_on(vforking: Path) -> None:
    """A bug: the one that could not be stopped stands still later, after all have been let go."""
    with serving(vforking, "1") as server:
        every = Threads(server.pid)
        try:
            every.seize()
            with pytest.raises(BusyError, match="does not stop"):
                every.stop(0.05)
        finally:
            every.release()
        assert stuck.holds(server.pid)
        _goes_on(server)


def _killed_while_all_stand(server: Server) -> None:
    every = Threads(server.pid)
    try:
        every.seize()
        every.stop()
        server.kill()
        every.read_registers()
    finally:
        every.release()


def _killed_before_they_stand(server: Server) -> None:
    every = Threads(server.pid)
    try:
        every.seize()
        server.kill()
    finally:
        every.release()


def _killed_while_held(server: Server) -> None:
    every = Threads(server.pid)
    try:
        every.seize()
        every.stop()
        every.read_registers()
        assert every.hold()
        server.kill()
    finally:
        every.release()


def _killed_while_one_stands(server: Server) -> None:
    with Target(server.pid) as target, _thread(target):
        server.kill()


def _killed_when_found_not_fit(server: Server) -> None:
    def unfit(_: Sequence[int]) -> str:
        server.kill()
        return "is not"

    with Target(server.pid) as target:
        gadgets = find_gadgets(target.memory, target.regions, target.where)
        with pytest.raises(KatanaError), borrowing.BorrowedThread(target.memory, gadgets, unfit):
            pass


@situation(49, "target killed while it stands: its parent is told at once")
@pytest.mark.parametrize(
    "killed",
    [
        _killed_while_all_stand,
        _killed_before_they_stand,
        _killed_while_held,
        _killed_while_one_stands,
        _killed_when_found_not_fit,
    ],
    ids=lambda f: f.__name__[1:],
)
def test_end_of_a_process_is_told(tmp_path: Path, killed: Callable[[Server], None]) -> None:
    """A bug: threads that katana traced are never reaped, so that the parent (a supervisor) hears of the end of its
    child when katana ends, which may go on with others for minutes."""
    with serving(build(tmp_path, "server", COUNTER).output, "8") as server:
        killed(server)
        deadline = time.monotonic() + 10
        while server.ended is None:
            assert time.monotonic() < deadline
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


def test_threads_that_are_made_while_all_are_let_go_run(tmp_path: Path) -> None:
    """A bug: a thread that another makes in that moment is traced, stands, and is never let go."""
    with serving(build(tmp_path, "server", CHURN).output) as server:
        for _ in range(100):
            every = Threads(server.pid)
            every.seize()
            every.release()
            deadline = time.monotonic() + 10
            while traced := _traced(server.pid):
                assert time.monotonic() < deadline, traced


def test_thread_that_ends_before_it_stops_is_not_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: "the process died"."""
    wait = ptrace_binding.wait
    gone: list[int] = []

    def ended(tid: int) -> ptrace_binding.Stop | None:
        if tid in gone:
            return ptrace_binding.Stop(True, 0, 0)  # and so it stays; it is no thread of ours, whose end we would hear
        stop = wait(tid)
        if stop is None or tid != server.pid:
            return stop
        ptrace_binding.detach(tid)
        gone.append(tid)
        return ptrace_binding.Stop(True, 0, 0)

    with serving(build(tmp_path, "server", COUNTER).output, "2") as server, Target(server.pid) as target:
        monkeypatch.setattr(ptrace_binding, "wait", ended)
        with _thread(target) as thread:
            assert thread.tid != server.pid
            assert thread.syscall(GETPID) == server.pid
        assert gone == [server.pid]
        assert not stuck.holds(server.pid)
        assert server.ask("a 5") == "6"
