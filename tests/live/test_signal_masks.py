"""Calls that wait with a signal mask of their own, and sleeps that sleeps interrupt: nothing is lost of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import TargetError
from katana_cc.process.borrowing import BorrowedThread
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.imports import Linker
from katana_cc.process.inject import call_stack
from katana_cc.process.target import Target
from katana_cc.process.threads import Threads
from tests.live.handmade import build
from tests.live.programs import HEAD
from tests.live.server import Server, serving
from tests.live.situations import situation

# USR1 is blocked, but in the call: it alone ends it.
WAITS = (
    HEAD
    + r"""
#include <sys/syscall.h>
static volatile sig_atomic_t got;
static void on(int number) { got = number; }
int main(int argc, char **argv) {
  sigset_t blocked, none; sigemptyset(&none); sigemptyset(&blocked); sigaddset(&blocked, SIGUSR1);
  sigprocmask(SIG_BLOCK, &blocked, 0);
  struct sigaction action = {.sa_handler = on}; sigaction(SIGUSR1, &action, 0);
  int e = epoll_create1(0); struct epoll_event event;
  say("ready");
  int r = argc > 1 ? syscall(441, e, &event, 1, 0, &none, 8) : epoll_pwait(e, &event, 1, -1, &none);
  printf("%d, %s, %s\n", r, errno == EINTR ? "EINTR" : "other", got == SIGUSR1 ? "handled" : "not handled");
  fflush(stdout);
  pause();
}
"""
)
SLEEPS = (
    HEAD
    + r"""
#include <poll.h>
int main(int argc, char **argv) {
  say("ready");
  struct timespec t = {0, 600000000};
  int r = argc > 1 ? nanosleep(&t, 0) : poll(0, 0, 600);
  printf("%d %d\n", r, r < 0 ? errno : 0); fflush(stdout);
  pause();
}
"""
)
AGAIN = (
    HEAD
    + r"""
int main(int argc, char **argv) {
  char line[9];
  say("ready");
  while (fgets(line, 9, stdin)) execv("/proc/self/exe", argv);
}
"""
)


def waits(pid: int) -> None:
    """Until its first thread is in a system call."""
    while Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("running", "0"):
        pass


def before_repair(server: Server, threads: Threads) -> int:
    os.kill(server.pid, signal.SIGUSR1)
    return threads.repair_system_calls()


def behind_repair(server: Server, threads: Threads) -> int:
    repaired = threads.repair_system_calls()
    os.kill(server.pid, signal.SIGUSR1)
    return repaired


@situation(42, "a signal that only epoll_pwait lets in, sent while the process stands, ends it")
@pytest.mark.parametrize("send", [before_repair, behind_repair], ids=lambda f: f.__name__)
@pytest.mark.parametrize("words", [(), ("2",)], ids=["epoll_pwait", "epoll_pwait2"])
def test_signal_finds_the_call_waiting(
    tmp_path: Path, words: tuple[str, ...], send: Callable[[Server, Threads], int]
) -> None:
    """A bug: it was handled before the call was entered again, which then waited for it for ever."""
    program = build(tmp_path, "server", WAITS).output
    with serving(program, *words) as server:
        waits(server.pid)
        threads = Threads(server.pid)
        try:
            threads.seize()
            threads.stop()
            threads.read_registers()
            assert send(server, threads) == 1
        finally:
            threads.release()
        assert server.line() == "-1, EINTR, handled"


def test_the_same_of_a_thread_that_was_not_fit_for_calls(tmp_path: Path) -> None:
    with serving(build(tmp_path, "server", WAITS).output) as server, Target(server.pid) as target:
        waits(server.pid)

        def unfit(_: object) -> str:
            os.kill(server.pid, signal.SIGUSR1)
            return "is not"

        gadgets = find_gadgets(target.memory, target.regions, target.where)
        with pytest.raises(Exception, match="is not"), BorrowedThread(target.memory, gadgets, unfit):
            pass
        assert server.line() == "-1, EINTR, handled"


@situation(42, "poll and nanosleep of a thread in which a function is called that sleeps")
@pytest.mark.parametrize("words", [(), ("2",)], ids=["poll", "nanosleep"])
def test_sleep_goes_on_behind_a_function_that_sleeps(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A bug: the kernel remembers how one sleep goes on, and forgot that of the thread: it ended with EINTR."""
    with serving(build(tmp_path, "server", SLEEPS).output, *words) as server, Target(server.pid) as target:
        waits(server.pid)
        usleep = Linker.of(target.memory, target.modules).first("usleep")
        assert usleep is not None
        gadgets = find_gadgets(target.memory, target.regions, target.where)
        with BorrowedThread(target.memory, gadgets) as remote, call_stack(remote, target, 1 << 16) as stack:
            assert remote.call(usleep, "usleep", stack + (1 << 16), 1000) == 0
        assert server.line() == "0 0"


@situation(46, "the process calls execve while it is patched: nothing is called in what it has become")
def test_image_that_the_process_left_is_not_called(tmp_path: Path) -> None:
    """A bug: instructions of the old program were called in the new one, where something else lies."""
    with serving(build(tmp_path, "server", AGAIN).output) as server, Target(server.pid) as target:
        gadgets = find_gadgets(target.memory, target.regions, target.where)
        with BorrowedThread(target.memory, gadgets) as remote:
            assert remote.syscall(cpu.SYS_CLOSE, 77) < 0
        assert server.ask("again") == "ready"
        with pytest.raises(TargetError, match="another program by now"), BorrowedThread(target.memory, gadgets):
            pass
        assert server.ask("again") == "ready", "it lives, and is not traced"
