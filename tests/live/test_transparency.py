"""What a process must not notice: signals, system calls, job control."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.live.handmade import Built, build, patch_from
from tests.live.programs import BLOCKING, CHURN, SECCOMP, SIGNALS
from tests.live.server import katana, katana_json, serving, write_patch
from tests.live.situations import situation

ROUNDS = 5


def _pair(folder: Path, source: str) -> tuple[Built, Built]:
    new = source.replace("/*ANSWER*/", "static int news; news++; return 10 * x + news;")
    return build(folder / "old", "server", source), build(folder / "new", "server", new)


@situation(42, "epoll_wait, nanosleep, recv with a time-out, sigwaitinfo: no EINTR")
def test_blocking_system_calls_never_return_eintr(tmp_path: Path) -> None:
    """A bug: epoll_wait, nanosleep, recv with a timeout or sigwaitinfo ends with EINTR (4)."""
    pair = _pair(tmp_path, BLOCKING)
    patch = write_patch(tmp_path, patch_from(*pair, ("answer",)))
    with serving(pair[0].output) as server:
        restarted = 0
        for _ in range(ROUNDS):
            restarted += katana_json("apply", patch, "--pid", server.pid)["processes"][0]["restarted_system_calls"]
            katana_json("revert", "--pid", server.pid)
        assert restarted > 0, "no call had to be entered again: the test tests nothing"
        assert server.ask("w") == "epoll 1 0, nanosleep 0 0, recv 1 0, sigwaitinfo 12 0"


@situation(42, "the same where the stop ends in a refusal")
def test_a_stop_that_ends_in_a_refusal_is_not_noticed_either(tmp_path: Path) -> None:
    """A thread holds the address of a variable that would move: each try stops everything, and writes nothing."""
    source = BLOCKING.replace(
        "struct timespec t = {2, 0}", "void *volatile held = tids; (void)held; struct timespec t = {2, 0}"
    )
    old = build(tmp_path / "old", "server", source)
    new = build(tmp_path / "new", "server", source.replace("tids[4]", "tids[5]").replace("/*ANSWER*/", "x *= 10;"))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",), moved=("tids",)))
    with serving(old.output) as server:
        done = katana("apply", patch, "--pid", server.pid, "--wait", "1")
        assert done.returncode == 3
        assert "on the stack of thread" in done.stderr
        assert server.ask("a 1") == "2"
        assert server.ask("w") == "epoll 1 0, nanosleep 0 0, recv 1 0, sigwaitinfo 12 0"


@situation(42, "real-time signals, counted and summed")
@situation(40, "threads spinning in the changed function")
def test_no_real_time_signal_is_lost(tmp_path: Path) -> None:
    """A bug: a signal reported to katana during a stop is swallowed."""
    pair = _pair(tmp_path, SIGNALS)
    patch = write_patch(tmp_path, patch_from(*pair, ("answer",)))
    count = 1_000_000 if os.environ.get("KATANA_TORTURE") else 60_000
    with serving(pair[0].output) as server:
        assert server.ask(f"f {count}") == "flooding"
        for _ in range(count // 12_000):
            # Three threads spin in the function: on a slow machine it takes a while until all are outside at once.
            assert katana("apply", patch, "--pid", server.pid, "--wait", 60).returncode == 0
            assert katana("revert", "--pid", server.pid, "--wait", 60).returncode == 0
        assert server.ask("w") == f"0 {count} {count * (count + 1) // 2}"


@situation(40, "threads that come and go all the time")
def test_threads_that_come_and_go_are_all_stopped(tmp_path: Path) -> None:
    """A bug: a thread born during the stop is missed, or left stopped for ever."""
    pair = _pair(tmp_path, CHURN)
    patch = write_patch(tmp_path, patch_from(*pair, ("answer",)))
    with serving(pair[0].output) as server:
        for _ in range(ROUNDS):
            assert katana("apply", patch, "--pid", server.pid).returncode == 0
            assert int(server.ask("a 1")) > 10
            assert katana("revert", "--pid", server.pid).returncode == 0
            assert server.ask("a 1") == "2"
        before = int(server.ask("b"))
        while int(server.ask("b")) < before + 200:
            pass


@situation(46, "SIGSTOPped, and stays so")
def test_stopped_process_is_patched_and_stays_stopped(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: SIGSTOP's effect is lost, so that job control breaks."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving(counter[0].output) as server:
        os.kill(server.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, server.pid, os.WSTOPPED | os.WNOWAIT)
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        state = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state == "T"
        os.kill(server.pid, signal.SIGCONT)
        assert server.ask("a 1") == "11"


@situation(46, "a seccomp filter that kills for memfd_create and mmap")
def test_seccomp_does_not_kill_the_process(tmp_path: Path) -> None:
    """A bug: the remote mmap meets the filter, and the process dies."""
    pair = _pair(tmp_path, SECCOMP)
    patch = write_patch(tmp_path, patch_from(*pair, ("answer",)))
    with serving(pair[0].output) as server:
        assert server.ask("go") == "confined"
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert server.ask("a 1") == "11"
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("a 1") == "2"


@situation(42, "what the program decided about SIGTRAP stays")
def test_ignored_sigtrap_stays_ignored(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: stepping through the remote system calls resets what the program decided about SIGTRAP."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving("env", "--ignore-signal=TRAP", counter[0].output) as server:
        before = _signal_lines(server.pid)
        assert any(line.startswith("SigIgn") and int(line.split()[1], 16) >> 4 & 1 for line in before)
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert _signal_lines(server.pid) == before


def _signal_lines(pid: int) -> list[str]:
    return [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith(("SigB", "SigI", "SigC"))]
