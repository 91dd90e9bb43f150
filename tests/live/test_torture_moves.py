"""Katana is killed while it moves live data, alone and together with its guardian: the process goes on whole.

`make test` takes a few of the moments in which threads are held, `make torture` (KATANA_TORTURE) all of them.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from katana_cc.cli.main import main
from katana_cc.patch.files import read_patch
from katana_cc.process import finishing, holding, proc, threads
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.proc import is_dead
from tests.live.server import identity, katana, katana_json, serving
from tests.live.situations import situation
from tests.live.test_moves_registers import SPINNING, moved_item
from tests.live.test_torture import LIST, NEW, OLD, Victim, is_whole, of_objects, settle, state_of
from tests.support.strike import strike

pytestmark = pytest.mark.timeout(7200 if os.environ.get("KATANA_TORTURE") else 300)

_SYS_PWRITE64: Final = 18
_SYS_TGKILL: Final = 234
_SYS_PROCESS_VM_WRITEV: Final = 311
_VERSION_AT: Final = 8  # of a journal
_SIGNALS: Final = 200
_THREADS: Final = 5
_BEHIND: Final = 90  # calls, among which all threads are let go

# It tells how often one of its calls was interrupted, and how many signals came.
STRICT: Final = (
    LIST.replace("&& errno == EINTR) {}", "&& errno == EINTR) leaked++;")
    .replace(
        "static void *work",
        """static volatile int leaked, came;
static void block_signal(void) {
  sigset_t s; sigemptyset(&s); sigaddset(&s, SIGRTMIN); pthread_sigmask(SIG_BLOCK, &s, NULL);
}
static void *work""",
        1,
    )
    .replace("(void *unused) {", "(void *unused) { block_signal();")
    .replace("int main(", "static void count_signal(int n) { came++; }\nint main(", 1)
    .replace("  grow();", "  signal(SIGRTMIN, count_signal); grow();", 1)
    .replace(
        "    sigprocmask(SIG_SETMASK, NULL, &blocked);",
        """    if (line[0] == 'l') { printf("%d\\n", leaked); fflush(stdout); continue; }
    if (line[0] == 's') { printf("%d\\n", came); fflush(stdout); continue; }
    sigprocmask(SIG_SETMASK, NULL, &blocked);""",
        1,
    )
)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    made = of_objects(tmp_path_factory.mktemp("moves"), STRICT)
    made.again()
    yield made
    made.server.close()


def _since_held(calls: Sequence[int]) -> int:
    """How many calls were made since the first by which threads are held, this one included."""
    return len(calls) - calls.index(_SYS_TGKILL) if _SYS_TGKILL in calls else 0


def _is_call(number: int) -> Callable[[Sequence[int]], bool]:
    return lambda calls: _since_held(calls) == number


def _guardian_of(pid: int) -> int:
    """The one child of a katana."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_both(pid: int) -> None:
    """Kill a katana and who is to finish for it."""
    guardian = _guardian_of(pid)
    os.kill(guardian, signal.SIGKILL)
    while not is_dead(guardian):  # until then it may hold what tells that a katana is at work
        os.sched_yield()
    os.kill(pid, signal.SIGKILL)


@situation(49, "katana killed while live data moves: the process goes on as new")
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_katana_killed_while_live_data_moves(victim: Victim, command: str) -> None:
    """A bug: threads run with half of it moved, or stand still, or see EINTR."""
    victim.put(command)
    undisturbed = victim.struck(command, 0, lambda _: None)
    assert undisturbed.status == 0, undisturbed.said
    every = range(1, min(_since_held(undisturbed.calls), _BEHIND))
    whole = 0
    for number in every if os.environ.get("KATANA_TORTURE") else every[::6]:
        victim.put(command)
        leaked = victim.server.ask("l")
        outcome = victim.struck_when(command, _is_call(number), _kill)
        assert outcome.status == -signal.SIGKILL
        settle(victim.server)
        state = state_of(victim)
        assert state in ("applied", "prepared", "reverted"), (number, outcome)
        assert is_whole(victim) == (NEW if state == "applied" else OLD), (number, state)
        whole += state == ("applied" if command == "apply" else "reverted")
        if outcome.calls.count(_SYS_TGKILL) == _THREADS and number > _THREADS:
            assert victim.server.ask("l") == leaked, (number, "EINTR", outcome.calls[-number:])
        assert victim.run("revert" if number % 2 else "apply") == "", (number, state)
        assert is_whole(victim) == (OLD if number % 2 else NEW), number
    assert whole > len(every) // 18


@situation(49, "katana and its guardian killed while live data moves: the process stands still until the next katana")
@pytest.mark.parametrize("last", ["apply", "revert"])
@pytest.mark.parametrize("command", ["apply", "revert"])
@pytest.mark.parametrize("at", [_SYS_TGKILL, _SYS_PROCESS_VM_WRITEV], ids=["holding", "writing"])
def test_katana_and_its_guardian_killed(victim: Victim, command: str, last: str, at: int) -> None:
    """A bug: the process runs with half of it moved, `katana status` does not tell, or the next one cannot go on."""
    assert victim.run("apply") == ""  # else it may never have had the patch, and is prepared, not reverted
    victim.put(command)
    leaked = victim.server.ask("l")

    victim.struck_when(command, _is_holding if at == _SYS_TGKILL else is_writing, kill_both)
    assert state_of(victim) == "interrupted"
    assert "katana apply or katana revert finishes" in katana("status", "--pid", victim.pid).stdout
    assert _stands_still(victim)
    assert katana("apply", victim.patch, *victim.options, "--dry-run", "--pid", victim.pid).returncode == 3
    assert _stands_still(victim)
    victim.server.tell("?")
    assert victim.run(last) == ""
    assert victim.server.line() in (OLD, NEW)
    assert is_whole(victim) == (NEW if last == "apply" else OLD)
    assert state_of(victim) == ("applied" if last == "apply" else "reverted")
    # Of those that were not held yet, some may have gone on for a moment.
    assert at == _SYS_TGKILL or victim.server.ask("l") == leaked


def test_revert_of_several_finishes_what_carries_the_patch_only(victim: Victim, tmp_path: Path) -> None:
    """A bug: what somebody else was about to do to a process is done, since another patch was to go somewhere else."""
    other = of_objects(tmp_path, LIST)
    other.again()
    try:
        victim.put("apply")
        other.put("apply")
        other_id = identity(read_patch(str(other.patch))[1])
        for each in (victim, other):
            each.struck_when("apply", is_writing, kill_both)
            assert state_of(each) == "interrupted"
        done = katana("revert", identity(read_patch(str(victim.patch))[1]), *victim.options[-4:], "--tree", os.getpid())
        assert done.returncode == 0, done.stderr
        assert (state_of(victim), state_of(other)) == ("reverted", "interrupted")
        assert is_whole(victim) == OLD
        assert _stands_still(other)
        assert "nothing to revert" in katana("revert", "0" * 32, "--tree", os.getpid()).stdout
        assert state_of(other) == "interrupted"
        # One that is named is finished, whatever it carries.
        assert katana("revert", "0" * 32, "--pid", other.pid).returncode == 0
        assert (state_of(other), is_whole(other)) == ("applied", NEW)
        for command, when in (("revert", is_writing), ("apply", is_writing), ("apply", _is_holding)):
            other.put(command)
            other.struck_when(command, when, kill_both)
            assert state_of(other) == "interrupted"
            done = katana("revert", other_id[:8], *other.options[-4:], "--tree", os.getpid())
            assert done.returncode == 0, done.stderr
            assert (state_of(other), is_whole(other)) == ("reverted", OLD), command
    finally:
        other.server.close()


@pytest.mark.xdist_group("all processes")
def test_what_a_later_katana_began_is_left_to_it(victim: Victim) -> None:
    """A bug: its journal is taken away, or the process goes on with half of its data moved."""
    victim.put("apply")
    victim.struck_when("apply", is_writing, kill_both)
    memory = ProcessMemory(victim.server.pid)
    begun = finishing.find(memory)
    assert begun is not None
    version = memory.read(begun.address + _VERSION_AT, 4)
    memory.write(begun.address + _VERSION_AT, (99).to_bytes(4, "little"))
    maps = Path(f"/proc/{victim.pid}/maps").read_text()
    for words in (
        victim.words("apply"),
        [*victim.words("apply"), "--dry-run"],
        victim.words("revert"),
        ["revert", identity(read_patch(str(victim.patch))[1]), "--tree", str(os.getpid())],
    ):
        done = katana(*words)
        assert done.returncode == 5, (words, done.stdout, done.stderr)
        assert "a later katana was killed while it moved live data" in done.stderr + done.stdout, words
    done = katana("revert", "0" * 32, "--tree", os.getpid())
    assert done.returncode == 5
    assert f"pid {victim.pid} (output): not known: a later katana was killed" in done.stdout
    assert f"pid {victim.pid}: a later katana was killed" in katana("status").stderr
    assert Path(f"/proc/{victim.pid}/maps").read_text() == maps
    assert _stands_still(victim)
    memory.write(begun.address + _VERSION_AT, version)
    memory.close()
    assert victim.run("apply") == ""
    assert is_whole(victim) == NEW


def is_writing(calls: Sequence[int]) -> bool:
    """Whether a katana is about to write what moves, by its calls so far."""
    return calls[-1] == _SYS_PROCESS_VM_WRITEV and _SYS_TGKILL in calls


def _is_holding(calls: Sequence[int]) -> bool:
    return calls[-1] == _SYS_TGKILL and calls.count(_SYS_TGKILL) == 3


def test_katana_that_lives_is_not_said_to_be_killed(victim: Victim) -> None:
    """Another one looks while live data moves.  A bug: it says that the first was killed, or finishes for it."""
    victim.put("apply")
    said = []

    def look(_: int) -> None:
        for words in ([*victim.words("apply"), "--dry-run"], ["revert", "--wait", "0.2", "--pid", victim.pid]):
            done = katana(*words)
            said.append((done.returncode, done.stderr))
        said.append((0, katana("status", "--pid", victim.pid).stdout))

    outcome = victim.struck_when("apply", lambda c: c[-1] == _SYS_PROCESS_VM_WRITEV and _SYS_TGKILL in c, look)
    assert outcome.status == 0, outcome.said
    assert [status for status, _ in said] == [4, 4, 0]
    assert all("another katana (pid" in text for _, text in said[:2]), said
    assert not any("killed" in text or "interrupted" in text for _, text in said), said
    assert is_whole(victim) == NEW


def test_memory_is_given_back_of_a_process_that_stands_still(victim: Victim) -> None:
    """A bug: it is not finished first, as by every `katana revert`, and stands still for ever."""
    victim.put("apply")
    victim.struck_when("apply", lambda calls: calls.count(_SYS_TGKILL) == _THREADS, kill_both)
    assert state_of(victim) == "interrupted"
    assert _stands_still(victim)
    done = katana("revert", "--only-give-back", "--pid", victim.pid)
    assert done.returncode in (0, 3, 4), done.stderr
    assert is_whole(victim) == OLD
    assert state_of(victim) != "interrupted"


def _stands_still(victim: Victim) -> bool:
    """Whether all its threads come to be stopped by a signal."""
    tasks = list(Path(f"/proc/{victim.pid}/task").iterdir())
    until = time.monotonic() + 10
    while {(t / "stat").read_text().rpartition(")")[2].split()[0] for t in tasks} != {"T"}:
        if time.monotonic() > until:
            return False
        os.sched_yield()
    return True


@situation(49, "katana killed while live data moves: no signal is lost")
@pytest.mark.parametrize("blow", [_kill, None], ids=["killed", "not killed"])
def test_signals_while_threads_are_held(victim: Victim, blow: Callable[[int], None] | None) -> None:
    """A bug: a signal that comes while threads are held is lost, or comes twice."""
    victim.put("apply")
    before = int(victim.server.ask("s"))

    def strike(pid: int) -> None:
        for _ in range(_SIGNALS):
            os.kill(victim.server.pid, signal.SIGRTMIN)
        if blow is not None:
            blow(pid)

    victim.struck_when("apply", lambda c: c[-1] == _SYS_PROCESS_VM_WRITEV and _SYS_TGKILL in c, strike)
    settle(victim.server)
    assert is_whole(victim) == NEW
    assert int(victim.server.ask("s")) == before + _SIGNALS


@pytest.mark.parametrize("register", ["rbx", pytest.param("xmm7", marks=pytest.mark.rest)])
@pytest.mark.parametrize("behind", [1, *(pytest.param(n, marks=pytest.mark.rest) for n in (2, 3, 4, 6))])
def test_registers_follow_when_katana_is_killed(tmp_path: Path, register: str, behind: int) -> None:
    """A bug: a thread goes on with a register that leads to the old object, or a handler comes back with it."""
    source = SPINNING.replace("%%rbx", f"%%{register}").replace("  say(", "  signal(SIGUSR1, nothing); say(", 1)
    old, patch = moved_item(tmp_path, source.replace("int main(", "static void nothing(int n) {}\nint main("))
    with serving(old.output) as server:
        assert server.ask("= 5") == "5"
        assert server.ask("s") == "spinning"
        (spinning,) = (int(t.name) for t in Path(f"/proc/{server.pid}/task").iterdir() if t.name != str(server.pid))

        def blow(pid: int) -> None:
            pt.send_signal(server.pid, spinning, signal.SIGUSR1)
            _kill(pid)

        words = ["apply", str(patch), "--pid", str(server.pid), "--follow", "item"]
        strike(words, lambda calls: _since_written(calls) == behind, blow)
        settle(server)
        assert server.ask("g") == "5", "of the new object"
        (patched,) = katana_json("status", "--pid", server.pid)["processes"][0]["patches"]
        assert patched["state"] == "applied"
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("c") == "5"


def _since_written(calls: Sequence[int]) -> int:
    """How many calls were made since the one that writes live data, this one included."""
    held = _since_held(calls)
    stop = calls[-held:] if held else ()
    return len(stop) - stop.index(_SYS_PROCESS_VM_WRITEV) if _SYS_PROCESS_VM_WRITEV in stop else 0


def test_process_that_was_stopped_stays_so(victim: Victim) -> None:
    """A bug: a process that somebody stopped goes on since katana was killed, or is not finished."""
    victim.put("apply")
    os.kill(victim.server.pid, signal.SIGSTOP)
    assert _stands_still(victim)
    victim.struck_when("apply", lambda c: c[-1] == _SYS_PROCESS_VM_WRITEV and c[-2] == _SYS_PWRITE64, _kill)
    settle(victim.server)
    assert state_of(victim) == "applied"
    assert _stands_still(victim)
    os.kill(victim.server.pid, signal.SIGCONT)
    assert is_whole(victim) == NEW


def test_nothing_is_left_behind(victim: Victim) -> None:
    """A bug: the journal stays mapped, or the guardian outlives the command."""
    victim.put("apply")
    assert victim.run("apply") == ""
    memory = ProcessMemory(victim.server.pid)
    assert finishing.find(memory) is None
    memory.close()
    assert "katana:journal" not in Path(f"/proc/{victim.pid}/maps").read_text()


@pytest.mark.parametrize("patience", [0.0, threads.STOP_TIMEOUT])
def test_held_threads_are_let_go(victim: Victim, monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    """A bug: one that lacks a processor when it is to be let go keeps its SIGSTOP, and the process stands still."""
    monkeypatch.setattr(threads, "STOP_TIMEOUT", patience)
    for _ in range(200):
        held = threads.Threads(victim.server.pid)
        try:
            held.seize()
            held.stop(5.0)
            held.read_registers()
            assert held.hold()
            held.repair_system_calls()
        finally:
            held.release()
        assert is_whole(victim) in (OLD, NEW)
        assert victim.server.ended is None


def test_held_threads_are_let_go_after_a_sigcont(victim: Victim) -> None:
    """A bug: a thread whose SIGSTOP somebody's SIGCONT has taken away is waited for in vain, or stays traced."""
    held = threads.Threads(victim.server.pid)
    try:
        held.seize()
        held.stop()
        held.read_registers()
        assert held.hold()
        os.kill(victim.server.pid, signal.SIGCONT)
        held.repair_system_calls()
    finally:
        held.release()
    assert is_whole(victim) in (OLD, NEW)
    assert proc.status_fields(victim.server.pid)["TracerPid"] == "0"


@pytest.mark.parametrize("lacking", ["room", "permission"])
def test_without_room_or_permission_it_is_done_all_the_same(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """A bug: a patch that could be applied before is refused, or a thread stays as it is held."""

    def forbidden(*_: int) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    victim.put("apply")
    if lacking == "room":
        monkeypatch.setattr(holding, "_SIZES", ())
    else:
        monkeypatch.setattr(pt, "send_signal", forbidden)
    assert main(victim.words("apply")) == 0
    assert is_whole(victim) == NEW
    assert main(victim.words("revert")) == 0
    assert is_whole(victim) == OLD
