"""Katana is killed, or asked to end, or its target dies, at each system call that it makes from the first ptrace on.

`make test` takes a few of these moments, `make torture` (KATANA_TORTURE) all of them; of kills only those behind a call
that something outside of katana can tell from none, since between two others nothing but time has passed for the
target, and of the many in one wait one in ten.  KATANA_TORTURE=literally takes those, too: twice as many and more, of
which each comes to what another one does.  With KATANA_TORTURE_PART=2/5 every fifth is taken, from the second on: for
several runs at once.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from katana_cc.cli.main import main
from katana_cc.patch.needs import needs_of
from katana_cc.process import commit, finishing, priority
from katana_cc.process.leftopen import left_open
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.threads import Threads
from tests.live.handmade import build, patch_from
from tests.live.programs import HEAD
from tests.live.server import Server, code_of, katana, write_patch
from tests.live.situations import situation
from tests.support.project import Project, Variant
from tests.support.strike import Outcome, strike

pytestmark = pytest.mark.timeout(7200 if os.environ.get("KATANA_TORTURE") else 300)

_SYS_PWRITE64: Final = 18
_SYS_WAIT4: Final = 61
_SYS_PROCESS_VM_WRITEV: Final = 311
# Those that may fail for want of memory or room (brk says so otherwise): read, mmap, mprotect, pread64, pwrite64,
# mremap, getdents64, openat, perf_event_open, process_vm_readv, process_vm_writev.
_MAY_FAIL: Final = frozenset((0, 9, 10, 17, _SYS_PWRITE64, 25, 217, 257, 298, 310, _SYS_PROCESS_VM_WRITEV))

# Of these none can fail for want of room but those that write, or make a file.
_MAY_FIND_NO_ROOM: Final = frozenset((1, _SYS_PWRITE64, 257, 285))
# What nobody but the caller notices: read, stat, fstat, lseek, mmap, mprotect, munmap, brk, rt_sigaction,
# rt_sigprocmask, pread64, access, sched_yield, madvise, getpid, readlink, gettid, getdents64, clock_nanosleep, openat,
# newfstatat, process_vm_readv, getrandom.
_UNNOTICED: Final = frozenset(
    (0, 4, 5, 8, 9, 10, 11, 12, 13, 14, 17, 21, 24, 28, 39, 89, 186, 217, 230, 257, 262, 310, 318)
)

# Threads that are in malloc and in the replaced functions all the time, and one that answers; `twice` and `thrice` are
# replaced together, by two writes since they lie apart, and must never be of two builds at once but for a moment.
BUSY = (
    HEAD
    + r"""
#define FAR __attribute__((aligned(1024)))
NOINLINE FAR int twice(int x) { /*TWICE*/ seen += x; return 2 * x; }
NOINLINE FAR int thrice(int x) { /*THRICE*/ seen += x; return 3 * x; }
static void *work(void *unused) {
  for (;;) {
    int size = 1 + seen % 3000;
    char *block = malloc(size);
    memset(block, 1, size); // what malloc's lists left there may lead into objects, which is refused
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
# The same with objects that get new blocks from the program's own malloc.
LIST = (
    BUSY.replace(
        "NOINLINE FAR int twice",
        r"""
struct node { int key; struct node *next; /*MORE*/};
struct node *head;
NOINLINE void grow(void) {
  for (int i = 0; i < 40; i++) { struct node *p = calloc(1, sizeof *p); p->next = head; head = p; }
}
NOINLINE int count(void) { int n = 0; for (struct node *p = head; p; p = p->next) n++; return n; }
NOINLINE void wipe(void) { volatile char below[1 << 14]; for (int i = 0; i < 1 << 14; i++) below[i] = 0; }
NOINLINE FAR int twice""",
    )
    .replace("  pthread_t t;\n", "  pthread_t t;\n  grow(); wipe();\n")
    .replace("{ printf(", "{ if (count() != 40) abort(); printf(")
)
# The same in C++, whose frames are registered: exceptions pass through new code all the time.
THROWING = (
    BUSY.replace(
        "NOINLINE FAR int twice",
        r"""
struct guard { int *n; ~guard() { ++*n; } };
static int unwound;
NOINLINE void refuse(int x) { if (x > 5) throw x; }
NOINLINE int guarded(int x) { guard g = {&unwound}; refuse(x); return 0; }
NOINLINE int caught(int x) { try { return guarded(x); } catch (int y) { if (y != x) abort(); return 7; } }
NOINLINE FAR int twice""",
    )
    .replace("int a = twice(7), ", "int a = twice(caught(7)), ")
    .replace("char *block = malloc(", "char *block = (char *)malloc(")
    .replace("thrice(int x) { ", "thrice(int x) { guard g = {&unwound}; refuse(x - 3); ")
)


@dataclass
class Victim:
    """The running program, its patch with what that needs, and what the code of its process was before."""

    program: Path
    patch: Path
    options: Sequence[str] = ()
    code: bytes = b""
    _server: Server | None = None

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    @property
    def pid(self) -> str:
        return str(self.server.pid)

    @property
    def moves_objects(self) -> bool:
        """Whether live data has another layout with the patch."""
        return "--follow" in self.options

    def words(self, command: str) -> list[str]:
        """The command line of `katana apply` or `katana revert`."""
        named = [str(self.patch), *self.options] if command == "apply" else list(self.options[2:] and self.options[-4:])
        return [command, *named, "--pid", self.pid]

    def again(self) -> None:
        """A new process in place of one that is gone."""
        if self._server is not None:
            self._server.close()
        self._server = Server([self.program])
        self.code = code_of(self._server.pid)

    def run(self, command: str) -> str:
        """Run a command, which has to succeed; else what it says."""
        done = katana(*self.words(command))
        return "" if done.returncode == 0 else done.stderr

    def put(self, command: str) -> None:
        """Bring it into the state that a command starts from."""
        assert self.run("revert" if command == "apply" else "apply") == ""

    def struck(self, command: str, number: int, blow: Callable[[int], None], error: int = 0) -> Outcome:
        """Run a command that is struck as it enters its system call `number`, from 1 on (0: never)."""
        return self.struck_when(command, lambda calls: len(calls) == number, blow, error)

    def struck_when(
        self, command: str, when: Callable[[Sequence[int]], bool], blow: Callable[[int], None], error: int = 0
    ) -> Outcome:
        """Run a command that is struck as soon as `when` says so of the numbers of its system calls."""
        return strike(self.words(command), when, blow, error)


def _of_code(folder: Path) -> Victim:
    old = build(folder / "old", "server", BUSY)
    new = build(folder / "new", "server", _changed(BUSY))
    return Victim(old.output, write_patch(folder, patch_from(old, new, ("twice", "thrice"))))


def _changed(source: str) -> str:
    return source.replace("/*TWICE*/", "if (x == 7) return 1014;").replace("/*THRICE*/", "if (x == 7) return 1021;")


def of_objects(folder: Path, source: str = LIST) -> Victim:
    return _built(folder, "a.c", source, _changed(source).replace("/*MORE*/", "long more[3]; "), "gcc")


def _of_frames(folder: Path) -> Victim:
    return _built(folder, "a.cc", THROWING, _changed(THROWING), "g++")


def _built(folder: Path, name: str, old: str, new: str, compiler: str) -> Victim:
    project = Project(folder, Variant(compiler, "-O2", "pie"))
    before = project.build({name: old}, compile_flags=["-w", "-fpermissive"][: 1 + (compiler == "g++")])
    after = project.build({name: new}, compile_flags=["-w", "-fpermissive"][: 1 + (compiler == "g++")])
    result = project.checked(before, after)
    assert result.refusals == []
    options = [word for n in needs_of(result.patch) if n.grant for word in (n.grant.option.value, n.grant.value)]
    if result.patch.transforms:
        options += ["--only-reached", "struct node", "--follow", "struct node"]
    return Victim(before.path, write_patch(folder, result.patch), options)


@pytest.fixture(
    scope="module",
    params=[_of_code, pytest.param(_of_frames, marks=pytest.mark.rest), of_objects],
    ids=["code", "frames", "objects"],
)
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    made: Victim = request.param(tmp_path_factory.mktemp("torture"))
    made.again()
    yield made
    made.server.close()


class Moment:
    """When a command is struck: as it enters its system call `number`, from 1 on.  With `noticed`, as it enters the
    first call behind so many that are noticed, whatever else lies between: that differs from run to run."""

    def __init__(self, number: int, noticed: int | None = None) -> None:
        self.number = number
        self._noticed = noticed
        self._seen = self._count = 0

    def __call__(self, calls: Sequence[int]) -> bool:
        """Whether it is come, by the numbers of the calls so far, the one that is entered among them."""
        if self._noticed is None:
            return len(calls) == self.number
        self._count += sum(call not in _UNNOTICED for call in calls[self._seen : -1])
        self._seen = len(calls) - 1
        return self._count == self._noticed


def moments(calls: Sequence[int], *, is_kill: bool = False) -> list[Moment]:
    """The calls to strike at: all that differ, or one before the stop, two between its writes, and the last."""
    torture = os.environ.get("KATANA_TORTURE")
    first, _, step = os.environ.get("KATANA_TORTURE_PART", "1/1").partition("/")
    part = slice(int(first) - 1, None, int(step))
    if torture and is_kill and torture != "literally":
        noticed = [n for n, call in enumerate(calls, 1) if call not in _UNNOTICED]
        chosen = _telling([calls[n - 1] for n in noticed])
        behind = [(0, 0), *(each for each in enumerate(noticed, 1) if each[0] in chosen)]
        return [Moment(n + 1, count) for count, n in behind if n < len(calls)][part]
    if torture:
        return [Moment(n) for n in range(1, len(calls) + 1)][part]
    writes = [number for number, call in enumerate(calls, 1) if call in (_SYS_PWRITE64, _SYS_PROCESS_VM_WRITEV)]
    chosen = {len(calls) // 3, *writes[-2:], len(calls)}
    return [Moment(n) for n in sorted(chosen) if n]


def _telling(calls: Sequence[int]) -> set[int]:
    """Which of the calls that are noticed to strike behind, from 1 on: all but those in the midst of a wait, of which
    each tenth will do: they differ only by the time that has passed."""
    chosen: set[int] = set()
    for call, those in itertools.groupby(enumerate(calls, 1), lambda each: each[1]):
        run = [count for count, _ in those]
        chosen.update(run[:2] + run[-2:] + run[::10] if call == _SYS_WAIT4 else run)
    return chosen


def settle(server: Server) -> None:
    """Return once nobody is about to finish what a katana that was killed had begun."""
    memory = ProcessMemory(server.pid)
    try:
        while server.ended is None and finishing.find(memory) is not None:
            os.sched_yield()
    finally:
        memory.close()


def is_whole(victim: Victim) -> str:
    """What the process answers; all its threads run."""
    answer = victim.server.ask("?")
    states = [
        (task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{victim.pid}/task").iterdir()
    ]
    assert not {"t", "T"} & set(states), states
    return answer


def state_of(victim: Victim, where: str = "") -> str:
    """What `katana status` says of the patch."""
    done = katana("status", "--pid", victim.pid, "--json")
    assert done.returncode == 0, (where, done.stderr)
    patches = json.loads(done.stdout)["processes"][0]["patches"]
    return str(patches[0]["state"]) if patches else "none"


@situation(49, "katana killed or asked to end at each system call (a few in make test)")
@pytest.mark.parametrize(
    "blow",
    [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.rest), signal.SIGINT],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_katana_struck_at_any_system_call(victim: Victim, command: str, blow: signal.Signals) -> None:
    """A bug: a crash, a wrong answer, a stopped thread, a state that `katana status` does not know, or one that can
    be neither finished nor undone."""
    if victim.server.ended is not None:
        victim.again()
    victim.put(command)
    calls = victim.struck(command, 0, lambda _: None).calls
    total = len(calls)
    assert total > 50
    victim.put(command)
    for moment in moments(calls, is_kill=blow == signal.SIGKILL):
        number = moment.number
        where = f"{command}, {blow.name} at call {number} of {total}"
        outcome = victim.struck_when(command, moment, lambda pid: os.kill(pid, blow))
        assert "Traceback" not in outcome.said, (where, outcome.said)
        settle(victim.server)
        state = state_of(victim, where)
        assert victim.server.ended is None, (where, victim.server.ended)
        assert state != "half applied" or not victim.moves_objects, where
        answer = is_whole(victim)
        assert answer in {"applied": (NEW,), "half applied": (NEW, OLD, "14 1021", "1014 21")}.get(state, (OLD,)), (
            where, state, answer,
        )  # fmt: skip
        last = "apply" if number % 2 else "revert"
        assert victim.run(last) == "", (where, state)
        assert is_whole(victim) == (NEW if last == "apply" else OLD), where
        if last == "revert":
            assert code_of(victim.server.pid) == victim.code, where
        victim.put(command)
    # Whoever does something closes what those that were killed had left open.
    assert [victim.run(each) for each in ("revert", "apply")] == ["", ""]
    assert not left_open(victim.server.pid)


@situation(49, "katana interrupted in the midst of its writes (Ctrl-C)")
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_interrupted_in_the_stop_of_a_process_that_was_never_patched(victim: Victim, command: str) -> None:
    """A bug: what was written is not known, and the memory that the process now uses is taken from it."""
    victim.again()
    if command == "revert":
        victim.put(command)
    # Nowhere else are so many in a row, and nowhere else is written by vectors.
    in_stop = ([_SYS_PWRITE64] * 4, [_SYS_PROCESS_VM_WRITEV, _SYS_PWRITE64])
    outcome = victim.struck_when(
        command,
        lambda calls: any(list(calls[-len(those) :]) == those for those in in_stop),
        lambda pid: os.kill(pid, signal.SIGINT),
    )
    assert outcome.status == 130, outcome
    # An apply is taken back; a revert that was done stays so.
    assert is_whole(victim) == OLD
    assert state_of(victim) == "reverted"
    assert victim.run("apply") == ""
    assert is_whole(victim) == NEW


@situation(49, "target killed at each system call of katana's (a few in make test)")
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_target_killed_at_any_system_call(victim: Victim, command: str) -> None:
    """A bug: katana hangs, or shows a traceback, or says that all is well."""
    victim.again()
    victim.put(command)
    calls = victim.struck(command, 0, lambda _: None).calls
    for number in (moment.number for moment in moments(calls)):
        victim.again()
        if command == "revert":
            victim.put(command)
        outcome = victim.struck(command, number, _kill(victim.server.pid))
        assert "Traceback" not in outcome.said, (number, outcome.said)
        # What dies can be written to until it is gone: once all have stopped, nothing tells.  And towards its end
        # katana has nothing left that it would have to ask.
        writes = [n for n, call in enumerate(outcome.calls) if call in (_SYS_PWRITE64, _SYS_PROCESS_VM_WRITEV)]
        is_told = _SYS_WAIT4 in outcome.calls[number - 1 : writes[-1] if writes else None]
        is_late = number > len(outcome.calls) // 2
        assert outcome.status == 5 or (outcome.status == 0 and (is_late or not is_told)), (number, outcome)
    victim.again()


@situation(49, "a system call of katana's fails: no memory, a full disk (a few in make test)")
@pytest.mark.parametrize("command", ["apply", "revert"])
@pytest.mark.parametrize(
    "error", [errno.ENOMEM, pytest.param(errno.ENOSPC, marks=pytest.mark.rest)], ids=["memory", "disk"]
)
def test_system_call_of_katana_fails(victim: Victim, command: str, error: int) -> None:
    """A bug: a jump into memory which was taken back, a thread that stays stopped, a traceback, or false success."""
    if victim.server.ended is not None:
        victim.again()
    victim.put(command)
    calls = victim.struck(command, 0, lambda _: None).calls
    victim.put(command)
    wanted = NEW if command == "apply" else OLD
    failing = _MAY_FAIL if error == errno.ENOMEM else _MAY_FIND_NO_ROOM
    for number in (moment.number for moment in moments(calls) if calls[moment.number - 1] in failing):
        # How many calls lie before it differs from run to run, and what cannot fail so must not.
        outcome = victim.struck_when(command, _is_one_of(failing, number), lambda _: None, error)
        where = f"{command}, call {number} ({outcome.calls[number - 1 :][:1]}) fails: {outcome}"
        assert "Traceback" not in outcome.said, where
        assert victim.server.ended is None, (where, victim.server.ended)
        answer, state = is_whole(victim), state_of(victim)
        assert answer == (NEW if state == "applied" else OLD), (where, state, answer)
        assert outcome.status != 0 or answer == wanted, (where, state)
        assert victim.run("revert") == "", (where, state)
        assert is_whole(victim) == OLD, where
        assert code_of(victim.server.pid) == victim.code, where
        victim.put(command)


@situation(49, "no memory left behind the last write")
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_no_memory_behind_the_last_write(victim: Victim, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: what was written is taken for not done, and blocks that the process uses now are freed."""
    victim.again()
    if command == "revert":
        victim.put(command)
    write, repair = commit._write, Threads.repair_system_calls
    written: list[bool] = []

    def writing(*arguments: Any) -> None:
        write(*arguments)
        written.append(True)

    def repairing(threads: Threads, *arguments: Any) -> int:
        repair(threads, *arguments)
        if written.pop() if written else False:
            raise MemoryError
        return 0

    monkeypatch.setattr(commit, "_write", writing)
    monkeypatch.setattr(Threads, "repair_system_calls", repairing)
    assert main(victim.words(command)) != 0
    monkeypatch.undo()
    assert victim.server.ended is None
    # An apply is taken back; a revert that was done stays so.
    assert is_whole(victim) == OLD
    assert state_of(victim) == "reverted"
    assert victim.run("apply") == ""
    assert is_whole(victim) == NEW
    assert victim.run("revert") == ""
    assert is_whole(victim) == OLD


def test_katana_is_not_killed_for_want_of_memory_in_the_stop(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bug: the kernel chooses it there, or never any more.  (Not every machine lets us lower the score itself.)"""
    score, write, seen = tmp_path / "oom_score_adj", commit._write, []
    score.write_text("17")

    def writing(*arguments: Any) -> None:
        seen.append(score.read_text())
        write(*arguments)

    monkeypatch.setattr(priority, "_SCORE", score)
    monkeypatch.setattr(commit, "_write", writing)
    victim.again()
    assert main(victim.words("apply")) == main(victim.words("revert")) == 0
    assert seen == ["-1000", "-1000"]
    assert score.read_text() == "17"


def _is_one_of(calls: frozenset[int], number: int) -> Callable[[Sequence[int]], bool]:
    """Whether a call is the first of some kinds from `number` on."""
    return lambda made: len(made) >= number and made[-1] in calls


def _kill(pid: int) -> Callable[[int], None]:
    return lambda _: os.kill(pid, signal.SIGKILL)
