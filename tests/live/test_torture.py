"""Katana is killed, or asked to end, or its target dies, at each system call that it makes from the first ptrace on.

`make test` takes a few of these moments, `make torture` (KATANA_TORTURE) all of them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.live.handmade import build, patch_from
from tests.live.programs import HEAD
from tests.live.server import Server, code_of, katana, katana_json, write_patch
from tests.support.strike import Outcome, strike

pytestmark = pytest.mark.timeout(7200 if os.environ.get("KATANA_TORTURE") else 300)

FEW: Final = 8
PROGRAM: Final = "import sys; from katana_cc.cli.main import main; sys.exit(main())"

# Threads that are in malloc and in the replaced functions all the time, and one that answers; `twice` and `thrice` are
# replaced together, and must never be of two builds at once but for a moment.
BUSY = (
    HEAD
    + r"""
NOINLINE int twice(int x) { /*TWICE*/ seen += x; return 2 * x; }
NOINLINE int thrice(int x) { /*THRICE*/ seen += x; return 3 * x; }
static void *work(void *unused) {
  for (;;) {
    char *block = malloc(1 + seen % 3000);
    block[0] = 1;
    int a = twice(7), b = thrice(7);
    if ((a != 14 && a != 1014) || (b != 21 && b != 1021)) abort();
    free(block);
    struct timespec moment = {0, 200000};
    errno = 0;
    if (nanosleep(&moment, NULL) && errno == EINTR) abort();
  }
  return unused;
}
static void *idle(void *unused) {
  int e = epoll_create1(0); struct epoll_event event;
  while (epoll_wait(e, &event, 1, -1) < 0 && errno == EINTR) {} // which only a killed katana leaves
  abort();
  return unused;
}
// What the thread that katana uses has in its registers while it waits is there afterwards.
static long steady_read(char *line, long size) {
  long result, vector, general;
  const long mark = 0x1122334455667788;
  __asm__ volatile("movq %[mark], %%xmm9\n\tmov %[mark], %%r13\n\tsyscall\n\t"
                   "movq %%xmm9, %[vector]\n\tmov %%r13, %[general]"
                   : "=a"(result), [vector] "=&r"(vector), [general] "=&r"(general)
                   : "0"(0L), "D"(0L), "S"(line), "d"(size), [mark] "r"(mark)
                   : "rcx", "r11", "r13", "xmm9", "memory");
  if (vector != mark || general != mark) abort();
  return result;
}
int main(int argc, char **argv) {
  pthread_t t;
  sigset_t wanted, blocked;
  sigemptyset(&wanted); sigaddset(&wanted, SIGUSR2);
  sigprocmask(SIG_SETMASK, &wanted, NULL);
  for (int i = 0; i < 2; i++) { pthread_create(&t, 0, work, argv); pthread_create(&t, 0, idle, argv); }
  say("ready");
  char line[200];
  while (steady_read(line, sizeof line) > 0) {
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    if (memcmp(&blocked, &wanted, 8)) abort();
    printf("%d %d\n", twice(7), thrice(7)); fflush(stdout);
  }
  return argc > 99;
}
"""
)
OLD, NEW = "14 21", "1014 1021"


@dataclass
class Victim:
    """The running program, its patch, and what its code was before."""

    program: Path
    patch: Path
    server: Server
    code: bytes

    @property
    def pid(self) -> str:
        return str(self.server.pid)

    def words(self, command: str) -> list[str]:
        """The command line of `katana apply` or `katana revert`."""
        named = [str(self.patch)] if command == "apply" else []
        return [sys.executable, "-c", PROGRAM, command, *named, "--pid", self.pid]

    def again(self) -> None:
        """A new process in place of one that is gone."""
        self.server.close()
        self.server = Server([self.program])

    def put(self, command: str) -> None:
        """Bring it into the state that a command starts from."""
        done = katana("revert" if command == "apply" else "apply", *([self.patch] if command == "revert" else []),
                      "--pid", self.pid)  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("torture")
    old = build(folder / "old", "server", BUSY)
    changed = BUSY.replace("/*TWICE*/", "if (x == 7) return 1014;").replace("/*THRICE*/", "if (x == 7) return 1021;")
    new = build(folder / "new", "server", changed)
    patch = write_patch(folder, patch_from(old, new, ("twice", "thrice")))
    made = Victim(old.output, patch, Server([old.output]), b"")
    made.code = code_of(made.server.pid)
    yield made
    made.server.close()


def moments(total: int) -> range:
    """The calls to strike at: all, or some that lie evenly."""
    return range(1, total + 1) if os.environ.get("KATANA_TORTURE") else range(1, total + 1, max(total // FEW, 1))


def is_whole(victim: Victim) -> str:
    """What the process answers; all its threads run."""
    answer = victim.server.ask("?")
    states = [
        (task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{victim.pid}/task").iterdir()
    ]
    assert not {"t", "T"} & set(states), states
    return answer


def state_of(victim: Victim) -> str:
    """What `katana status` says of the patch."""
    patches = katana_json("status", "--pid", victim.pid)["processes"][0]["patches"]
    return str(patches[0]["state"]) if patches else "none"


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_katana_struck_at_any_system_call(victim: Victim, command: str, blow: signal.Signals) -> None:
    """A bug: a crash, a wrong answer, a stopped thread, a state that `katana status` does not know, or one that can
    be neither finished nor undone."""
    victim.put(command)
    total = strike(victim.words(command), 0, lambda _: None).calls
    assert total > 50
    victim.put(command)
    for number in moments(total):
        where = f"{command}, {blow.name} at call {number} of {total}"
        outcome = strike(victim.words(command), number, lambda pid: os.kill(pid, blow))
        assert "Traceback" not in outcome.said, (where, outcome.said)
        assert victim.server.ended is None, (where, victim.server.ended)
        answer, state = is_whole(victim), state_of(victim)
        assert answer in {"applied": (NEW,), "half applied": (NEW, OLD, "14 1021", "1014 21")}.get(state, (OLD,)), (
            where, state, answer,
        )  # fmt: skip
        last = "apply" if number % 2 else "revert"
        named = [victim.patch] if last == "apply" else []
        done = katana(last, *named, "--pid", victim.pid)
        assert done.returncode == 0, (where, state, done.stderr)
        assert is_whole(victim) == (NEW if last == "apply" else OLD), where
        if last == "revert":
            assert code_of(victim.server.pid) == victim.code, where
        victim.put(command)


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_target_killed_at_any_system_call(victim: Victim, command: str) -> None:
    """A bug: katana hangs, or shows a traceback, or says that all is well."""
    victim.again()
    victim.put(command)
    total = strike(victim.words(command), 0, lambda _: None).calls
    for number in moments(total):
        victim.again()
        if command == "revert":
            victim.put(command)
        outcome: Outcome = strike(victim.words(command), number, _kill(victim.server.pid))
        assert "Traceback" not in outcome.said, (number, outcome.said)
        # Towards its end there is nothing left that it would have to ask.
        assert outcome.status in ((5,) if number < total // 2 else (0, 5)), (number, total, outcome)
    victim.again()


def _kill(pid: int) -> Callable[[int], None]:
    return lambda _: os.kill(pid, signal.SIGKILL)
