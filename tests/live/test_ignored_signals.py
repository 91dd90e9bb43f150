"""Signals that a process ignores, sent while it stands: they end no system call of it, as if it ran."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from katana_cc.errors import BusyError
from katana_cc.process.borrowing import BorrowedThread
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.target import Target
from katana_cc.process.threads import Threads
from tests.live.handmade import build
from tests.live.programs import HEAD
from tests.live.server import Server, serving
from tests.live.situations import situation
from tests.live.test_signal_masks import waits

# It handles no signal, waits for a byte of its input, and tells how that ended.
IGNORES = (
    HEAD
    + r"""
int main(void) {
  int e = epoll_create1(0); struct epoll_event event = {.events = EPOLLIN};
  signal(SIGUSR1, SIG_IGN);
  epoll_ctl(e, EPOLL_CTL_ADD, 0, &event);
  say("ready");
  int r = epoll_wait(e, &event, 1, -1);
  say(r == 1 ? "woken" : errno == EINTR ? "EINTR" : "failed");
  pause();
}
"""
)


def _all_stopped(server: Server, send: Callable[[], None]) -> None:
    threads = Threads(server.pid)
    try:
        threads.seize()
        threads.stop()
        threads.read_registers()
        send()
        assert threads.repair_system_calls() == 1
    finally:
        threads.release()


def _one_borrowed(server: Server, send: Callable[[], None]) -> None:
    with _borrowed(server):
        send()


def _one_that_is_not_fit(server: Server, send: Callable[[], None]) -> None:
    def unfit(_: object) -> str:
        send()
        return "is not"

    with pytest.raises(BusyError, match="is not"), _borrowed(server, unfit):
        pass


@contextmanager
def _borrowed(server: Server, unfit: Callable[[Sequence[int]], str] | None = None) -> Iterator[None]:
    with Target(server.pid) as target:
        gadgets = find_gadgets(target.memory, target.regions, target.where)
        with BorrowedThread(target.memory, gadgets, unfit):
            yield


@situation(42, "a signal that the process ignores, sent while it stands: no EINTR")
@pytest.mark.parametrize("stopped", [_all_stopped, _one_borrowed, _one_that_is_not_fit], ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("number", [signal.SIGCHLD, signal.SIGWINCH, signal.SIGUSR1], ids=lambda n: n.name)
def test_signal_that_is_ignored_interrupts_nothing(
    tmp_path: Path, number: signal.Signals, stopped: Callable[[Server, Callable[[], None]], None]
) -> None:
    """A bug: a child ends meanwhile, and a program that handles no signal at all sees EINTR."""
    with serving(build(tmp_path, "server", IGNORES).output) as server:
        waits(server.pid)
        stopped(server, lambda: os.kill(server.pid, number))
        assert server.ask("wake") == "woken"
