"""Memory of patches that are not in force is given back, unless anything is found that leads there."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from katana_cc.errors import RefusedError
from katana_cc.process import everywhere, giving_back, uses
from katana_cc.process.giving_back import give_memory_back
from katana_cc.process.target import Target
from katana_cc.process.uses import Fate
from tests.live.handmade import Built, build, patch_from
from tests.live.programs import HEAD, SECCOMP
from tests.live.server import Server, code_of, katana, mappings, serving, write_patch
from tests.live.situations import REFUSED, situation
from tests.live.test_stacking import V1, V2, V3, Program
from tests.live.test_torture import NEW as THROUGH_NEW
from tests.live.test_torture import OLD as THROUGH_OLD
from tests.live.test_torture import Victim, _of_code, _of_frames
from tests.support.project import Project, Variant
from tests.support.strike import strike

WHOLE = bool(os.environ.get("KATANA_TORTURE"))
pytestmark = pytest.mark.timeout(7200 if WHOLE else 300)

# `answer` of the new build stores the address of a new function where `k` says; `u` has all of that forgotten.
PROGRAM = (
    HEAD
    + r"""
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
typedef int step(int);
step *volatile in_static;
step **volatile on_heap;
struct __attribute__((packed)) odd { char before; step *it; } *volatile packed;
jmp_buf place, empty;
void (*on_signal)(int);
int epoll = -1, ends[2];
unsigned char *volatile made;
static volatile int is_spinning;
// What new code calls has to be in a static program.
void *volatile linked[] = {epoll_create1, epoll_ctl, sigaltstack, sigqueue, sigemptyset, sigaddset, sigprocmask,
                           timer_create, mprotect, memcpy, getpid, read, _setjmp};
NOINLINE void wipe(void);
void *spin(void *);
NOINLINE void begin(void *(*what)(void *), void *argument);
/*NEW*/
NOINLINE int answer(int x, int kind) { seen += x; (void)kind; /*ANSWER*/ return x + 1; }
NOINLINE int stay(int x) { seen += x; /*STAY*/ return x; }
NOINLINE void wipe(void) { volatile char below[1 << 15]; for (int i = 0; i < 1 << 15; i++) below[i] = 0; }
void *spin(void *function) {
  is_spinning = 1;
  // The address is in a register only, and nowhere in memory.
  __asm__ volatile("mov %0, %%rax\n\tnot %%rax\n\tmovq %%rax, %%xmm9\n\txor %%eax, %%eax\n\t"
                   "1: cmpl $0, %1\n\tjne 1b\n\tpxor %%xmm9, %%xmm9"
                   : : "r"(function), "m"(is_spinning) : "rax", "xmm9", "memory");
  return 0;
}
static void *inside(void *unused) { stay(1); return unused; }
NOINLINE void begin(void *(*what)(void *), void *argument) {
  pthread_t t;
  pthread_create(&t, 0, what, argument);
  pthread_detach(t);
}
static int sharing(void *unused) { for (;;) pause(); return unused != 0; }
static int share(void) {
  char *stack = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return clone(sharing, stack + (1 << 16), CLONE_VM | SIGCHLD, 0);
}
static int open_queue(void) {
  char name[40];
  sprintf(name, "/katana-%d", getpid());
  int queue = mq_open(name, O_CREAT | O_RDWR, 0600, 0);
  mq_unlink(name);
  return queue;
}
static int other = -1;
NOINLINE void forget(void) {
  in_static = 0;
  if (on_heap) on_heap[3] = 0;
  if (packed) packed->it = 0;
  memcpy(place, empty, sizeof place);
  signal(SIGUSR1, SIG_DFL);
  if (epoll >= 0) close(epoll);
  if (made) { mprotect(made, 8192, PROT_READ | PROT_WRITE); memset(made, 0, 8192); }
  is_spinning = 0;
}
int main(int argc, char **argv) {
  char line[200];
  on_heap = calloc(4, sizeof *on_heap); packed = calloc(1, sizeof *packed);
  made = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  wipe();
  say("ready");
  while (wipe(), fgets(line, sizeof line, stdin)) {
    int x = atoi(line + 2);
    switch (line[0]) {
    case 'a': printf("%d\n", answer(x, 0)); break;
    case 'k': printf("%d\n", answer(1, x)); break;
    case 'i': printf("%d\n", in_static ? in_static(x) : -1); break;
    case 'u': forget(); printf("done\n"); break;
    case 'q': other = open_queue(); printf("%d\n", other >= 0); break;
    case 'o': other = open("/dev/ptmx", O_RDWR); printf("%d\n", other >= 0); break;
    case 'v': other = share(); printf("%d\n", other > 0); break;
    case 'x': kill(other, SIGKILL); printf("%d\n", waitpid(other, 0, 0) > 0); break;
    case 'z': close(other); printf("done\n"); break;
    case 'm': { unsigned long context = 0; printf("%ld\n", syscall(SYS_io_setup, 4, &context)); break; }
    case 'f': printf("%d\n", fork_child() ? 1 : (pause(), 0)); break;
    case 'w': if (pipe(ends)) return 1; begin(inside, 0); printf("done\n"); break;
    case 'l': write(ends[1], "x", 1); printf("done\n"); break;
    }
    fflush(stdout);
    wipe();
  }
  return argc > 99;
}
"""
)
NEW = (
    PROGRAM.replace(
        "/*NEW*/",
        "NOINLINE static int fresh(int x) { seen++; return x * %N%; }\n"
        "NOINLINE static void caught(int n) { seen += n; }\nstatic char room[1 << 14];\n"
        "NOINLINE static void keep_place(void) { if (setjmp(place)) seen++; }\n",
    )
    .replace(
        "/*ANSWER*/",
        r"""
  if (kind == 1) in_static = fresh;
  if (kind == 2) on_heap[3] = fresh;
  if (kind == 3) packed->it = fresh;
  if (kind == 4) keep_place();
  if (kind == 5) signal(SIGUSR1, caught);
  if (kind == 6) {
    struct epoll_event event = {EPOLLIN, {.ptr = fresh}};
    epoll = epoll_create1(0); epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
  }
  if (kind == 7) { begin(spin, (void *)~(long)fresh); while (!is_spinning) {} }
  if (kind == 8) { step *f = fresh; memcpy(made + 3, &f, 8); mprotect(made, 4096, PROT_READ | PROT_EXEC); }
  if (kind == 9) { stack_t s = {room, 0, sizeof room}; sigaltstack(&s, 0); }
  if (kind == 10) { union sigval value = {.sival_ptr = fresh};
    sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR2); sigprocmask(SIG_BLOCK, &set, 0);
    sigqueue(getpid(), SIGUSR2, value); }
  if (kind == 11) { timer_t t; struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
    e.sigev_value.sival_ptr = fresh; timer_create(CLOCK_MONOTONIC, &e, &t); }
  if (kind == 12) in_static = (step *)"a literal that nobody else has";
  if (kind == 13) { step *f = fresh; memcpy(made + 4093, &f, 8); }
  if (x == 99) return fresh(x);
  wipe();
  return x + 100 * %N%;
""",
    )
    .replace("/*STAY*/", "char byte; if (x) read(ends[0], &byte, 1); seen++;")
)


def new_source(number: int) -> str:
    """The source of the new build of that number, from 1 on."""
    return NEW.replace("%N%", str(number))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Path]:
    """The program, and a patch of it."""
    folder = tmp_path_factory.mktemp("giving")
    old = build(folder / "old", "server", PROGRAM)
    new = build(folder / "new", "server", new_source(1))
    return old, write_patch(folder, patch_from(old, new, ("answer", "stay")))


@pytest.fixture
def server(two: tuple[Built, Path]) -> Iterator[Server]:
    """The program."""
    with serving(two[0].output) as it:
        yield it


def revert(server: Server, *words: str, status: int = 0) -> str:
    """Take the patch out and give its memory back; what is said."""
    done = katana("revert", "--pid", server.pid, "--give-back", *words)
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout + done.stderr


def apply(server: Server, patch: Path) -> None:
    """Apply a patch; it must succeed."""
    done = katana("apply", patch, "--pid", server.pid)
    assert done.returncode == 0, done.stderr


def lines(server: Server) -> list[str]:
    """All of its memory map, without how far the heap reaches."""
    text = Path(f"/proc/{server.pid}/maps").read_text().splitlines()
    return [line for line in text if "[heap]" not in line and "[stack]" not in line]


def outcomes(server: Server, *words: str, status: int) -> list[dict[str, Any]]:
    """What `--only-give-back` says of each mapping."""
    done = katana("revert", "--pid", server.pid, "--only-give-back", "--json", *words)
    assert done.returncode == status, (done.stdout, done.stderr)
    print(done.stdout)
    found: list[dict[str, Any]] = json.loads(done.stdout)["memory"][0]["mappings"]
    return found


@situation(47, "memory given back after a revert: mappings and code are as at the start")
def test_memory_is_given_back(two: tuple[Built, Path], server: Server) -> None:
    """A bug: it stays, or something else is gone with it."""
    assert server.ask("a 1") == "2"
    before, code = lines(server), code_of(server.pid)
    for _ in range(50 if WHOLE else 5):
        apply(server, two[1])
        assert (server.ask("a 1"), server.ask("a 99")) == ("101", "99")
        assert "gave back the 32768 bytes of " in revert(server)
        assert server.ask("a 1") == "2"
        assert lines(server) == before
        assert code_of(server.pid) == code
    assert "no memory to give back" in revert(server)
    assert "no memory to give back" in revert(server, "1234")


# What the new code does with an address, where that is found, and whether only a thread holds it.
KEPT = {
    "a static": (1, "server+0x", False),
    "a block on the heap": (2, "on the heap", False),
    "a packed struct": (3, "on the heap", False),
    "a jmp_buf": (4, "(hidden by glibc)", False),
    "a handler of a signal": (5, "the handler of signal 10", False),
    "epoll_data": (6, "epoll_data of descriptor 0", False),
    "a vector register of a thread that spins": (7, "a vector register", True),
    "code made at run time": (8, "in anonymous memory", False),
    "a literal in a static": (12, "server+0x", False),
    "a word across two pages": (13, "in anonymous memory", False),
    "an alternate signal stack": (9, "the alternate signal stack of thread", False),
    "a signal that is queued": (10, "a signal that is queued", True),
    "a timer": (11, "sigev_value of timer", False),
}
STAYS = ("an alternate signal stack", "a signal that is queued", "a timer")


@situation(47, "memory given back only where nothing leads there: what does is named", REFUSED)
@pytest.mark.parametrize("where", KEPT)
def test_memory_stays_where_something_leads_there(two: tuple[Built, Path], server: Server, where: str) -> None:
    """A bug: the program uses memory that is gone."""
    kind, place, is_passing = KEPT[where]
    apply(server, two[1])
    assert server.ask(f"k {kind}") == "101"
    said = revert(server, "--wait", "0.3", status=4 if is_passing else 3)
    assert place in said
    things = {5: "caught", 9: "room", 4: "keep_place+0x", 12: ""}
    assert f"leads to {things.get(kind, 'fresh')}" in said
    assert server.ask("a 1") == "2"
    assert len(mappings(server.pid)) == 3
    if kind == 1:
        assert server.ask("i 5") == "5"
    (found,) = outcomes(server, "--wait", "0", status=4 if is_passing else 3)
    assert found["outcome"] == ("busy" if is_passing else "in use")
    assert any(place in u["place"] for u in found["uses"])
    if where in STAYS:
        return
    assert server.ask("u 0") == "done"
    assert [m["outcome"] for m in outcomes(server, status=0)] == ["given back"]
    assert mappings(server.pid) == []
    assert server.ask("a 1") == "2"


UNKNOWN = {
    "a message queue": ("q 0", "is the message queue /katana-", "z 0"),
    "native AIO": ("m 0", "native AIO is in use", ""),
    "memory that a child shares": ("v 0", "shares its memory", "x 0"),
}


@situation(47, "memory given back only where all can be looked at: kernel objects, shared memory", REFUSED)
@pytest.mark.parametrize("what", UNKNOWN)
def test_memory_stays_where_not_all_can_be_looked_at(two: tuple[Built, Path], server: Server, what: str) -> None:
    """A bug: what nobody can see is taken for nothing."""
    command, why, undone = UNKNOWN[what]
    apply(server, two[1])
    assert server.ask(command) in ("0", "1")
    assert why in revert(server, status=3)
    assert len(mappings(server.pid)) == 3
    assert server.ask("a 1") == "2"
    if undone:
        assert server.ask(undone) in ("1", "done")
        assert [m["outcome"] for m in outcomes(server, status=0)] == ["given back"]


@situation(47, "memory given back: a thread inside the new code is waited for", REFUSED)
def test_thread_inside_the_new_code(two: tuple[Built, Path], server: Server) -> None:
    """A bug: it goes on in memory that is gone."""
    apply(server, two[1])
    assert server.ask("w 0") == "done"
    while not Path(f"/proc/{server.pid}/task").exists() or len(list(Path(f"/proc/{server.pid}/task").iterdir())) < 2:
        pass
    done = katana("revert", "--pid", server.pid, "--give-back", "--wait", "0.2")
    assert done.returncode == 4
    assert len(mappings(server.pid)) == 3
    assert server.ask("a 1") == "101"
    assert server.ask("l 0") == "done"
    assert "gave back" in revert(server)
    assert (server.ask("a 1"), mappings(server.pid)) == ("2", [])


@situation(43, "memory given back in each process of a forked tree")
def test_forked_tree(two: tuple[Built, Path], server: Server) -> None:
    """A bug: the child's copy stays, or what one keeps another loses."""
    apply(server, two[1])
    assert server.ask("f 0") == "1"
    (child,) = map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())
    assert server.ask("k 1") == "101"  # the parent alone has stored an address
    done = katana("revert", "--tree", server.pid, "--give-back")
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert f"pid {child} (server): gave back" in done.stdout
    assert (len(mappings(server.pid)), mappings(child)) == (3, [])
    assert server.ask("i 5") == "5"
    assert server.ask("u 0") == "done"
    assert katana("revert", "--tree", server.pid, "--only-give-back").returncode == 0
    assert mappings(server.pid) == []


def _without_variables(source: str) -> str:
    return source.replace("static char room[1 << 14];", "").replace(
        "{ stack_t s = {room, 0, sizeof room};", "{ stack_t s;"
    )


@situation(47, "fifty different patches, one after the other: their memory is given back")
def test_fifty_different_patches(two: tuple[Built, Path], tmp_path: Path) -> None:
    """Each takes the place of the one before.  A bug: one mapping is left for each."""
    number = 50 if WHOLE else 6
    patches = []
    for n in range(1, number + 1):
        folder = tmp_path / str(n)
        new = build(folder, "server", _without_variables(new_source(n)))
        patches.append(write_patch(folder, patch_from(two[0], new, ("answer", "stay"), releases=("v0", f"v{n}"))))
    with serving(two[0].output) as server:
        before, code = lines(server), code_of(server.pid)
        for n, patch in enumerate(patches, 1):
            apply(server, patch)
            assert server.ask("a 1") == str(1 + 100 * n)
        assert len(mappings(server.pid)) == 2 * number  # it brings no variables
        # All but the one that is in force.
        assert [m["outcome"] for m in outcomes(server, status=0)] == ["given back"] * (number - 1)
        assert len(mappings(server.pid)) == 2
        assert (server.ask("a 1"), server.ask("a 99")) == (str(1 + 100 * number), str(99 * number))
        assert "gave back" in revert(server)
        assert (lines(server), code_of(server.pid)) == (before, code)
        for n, patch in enumerate(patches[:5], 1):
            apply(server, patch)
            assert server.ask("a 1") == str(1 + 100 * n)
            revert(server)
            assert lines(server) == before
        assert server.ask("a 1") == "2"


@situation(47, "memory of a patch whose variables a later one uses is given back with that one's")
def test_what_a_later_patch_uses_stays_as_long_as_that_does(tmp_path: Path) -> None:
    """A bug: variables that the later patch goes on with are gone."""
    program = Program(Project(tmp_path, Variant("gcc", "-O2", "pie")), V1, V2, V3)
    with serving(program.old.path) as server:
        before, code = lines(server), code_of(server.pid)
        apply(server, program.patches[0])
        assert server.ask("f 0") == "1000"
        apply(server, program.patches[1])
        assert server.ask("f 0") == "2000"
        (found,) = outcomes(server, "--wait", "0", status=3)
        assert found["outcome"] == "in use"
        assert any(u["place"].endswith("which stays") for u in found["uses"])
        assert (server.ask("f 0"), server.ask("t 0")) == ("2000", "three")
        assert revert(server).count("gave back") == 2
        assert (lines(server), code_of(server.pid)) == (before, code)
        assert (server.ask("f 5"), server.ask("t 0")) == ("5", "one")


@pytest.fixture(scope="module", params=[_of_code, _of_frames], ids=["code", "frames"])
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A program whose threads are in the patched functions all the time; in C++, exceptions pass through these."""
    made: Victim = request.param(tmp_path_factory.mktemp("giving"))
    made.again()
    yield made
    made.server.close()


@situation(47, "memory given back under load, with frames that unwinders know")
def test_memory_is_given_back_under_load(victim: Victim) -> None:
    """A bug: an exception finds frames that are gone, or they keep the memory for good."""
    victim.again()
    for _ in range(20 if WHOLE else 4):
        assert victim.run("apply") == ""
        assert victim.server.ask("?") == THROUGH_NEW
        done = katana("revert", "--pid", victim.pid, "--give-back", "--wait", "20")
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert mappings(victim.server.pid) == []
        assert victim.server.ask("?") == THROUGH_OLD
        assert code_of(victim.server.pid) == victim.code


@situation(49, "katana killed at each system call of giving memory back (a few in make test)")
@pytest.mark.parametrize("option", ["--give-back", "--only-give-back"])
def test_katana_killed_while_it_gives_memory_back(victim: Victim, option: str) -> None:
    """A bug: a mapping of which a part is gone, a crash, or one that the next katana cannot give back."""
    victim.again()
    words = ["revert", "--pid", victim.pid, "--wait", "20", option]

    def begin() -> int:
        assert victim.run("apply") == ""
        if option == "--only-give-back":
            assert victim.run("revert") == ""
        return len(mappings(victim.server.pid))

    parts = begin()
    calls = strike(words, lambda _: False, lambda _: None).calls
    assert mappings(victim.server.pid) == []
    assert len(calls) > 50
    for number in range(1, len(calls) + 1, 1 if WHOLE else len(calls) // 6):
        where = f"{option}, at call {number} of {len(calls)}"
        assert begin() == parts
        strike(words, partial(_reached, number), lambda pid: os.kill(pid, signal.SIGKILL))
        assert victim.server.ended is None, (where, victim.server.ended)
        left = [m for m in mappings(victim.server.pid) if "katana:stack" not in m]
        assert len(left) in (0, parts), (where, left)
        halves = ("14 1021", "1014 21") if option == "--give-back" else ()  # of a revert that was struck
        assert victim.server.ask("?") in (THROUGH_OLD, THROUGH_NEW, *halves), where
        if number % 2 and mappings(victim.server.pid):
            assert victim.run("apply") == "", where
            assert victim.server.ask("?") == THROUGH_NEW, where
        done = katana("revert", "--pid", victim.pid, "--give-back", "--wait", "20")
        assert done.returncode == 0, (where, done.stdout, done.stderr)
        assert mappings(victim.server.pid) == [], where
        assert victim.server.ask("?") == THROUGH_OLD, where


def _reached(number: int, calls: Sequence[int]) -> bool:
    return len(calls) == number


@situation(45, "memory given back: static executable, static-PIE, non-PIE")
@pytest.mark.parametrize("link", [("-no-pie",), ("-static",), ("-static-pie",)], ids=lambda w: w[0][1:])
def test_other_executables(tmp_path: Path, link: tuple[str, ...]) -> None:
    """A bug: numbers are taken for addresses, or addresses that glibc hides are not seen."""
    flags = ("-O2", "-fno-pie" if link[0] != "-static-pie" else "-fPIE")
    old = build(tmp_path / "old", "server", PROGRAM, flags=flags, link=link)
    new = build(tmp_path / "new", "server", new_source(1), flags=flags, link=link)
    patch = write_patch(tmp_path, patch_from(old, new, ("answer", "stay")))
    with serving(old.output) as server:
        before = lines(server)
        apply(server, patch)
        assert server.ask("k 4") == "101"
        assert "(hidden by glibc) leads to keep_place+0x" in revert(server, status=3)
        assert server.ask("u 0") == "done"
        assert [m["outcome"] for m in outcomes(server, status=0)] == ["given back"]
        assert (server.ask("a 1"), lines(server)) == ("2", before)


@situation(46, "memory given back under seccomp; of a process that SIGSTOP stopped")
def test_confined_and_stopped(tmp_path: Path, two: tuple[Built, Path], server: Server) -> None:
    """A bug: the process is killed for a system call of ours, or goes on."""
    old = build(tmp_path / "old", "server", SECCOMP)
    new = build(tmp_path / "new", "server", SECCOMP.replace("/*ANSWER*/", "if (x < 100) return 100 + x;"))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output) as confined:
        assert confined.ask("go") == "confined"
        apply(confined, patch)
        assert confined.ask("a 1") == "101"
        assert "gave back" in revert(confined)
        assert (confined.ask("a 1"), mappings(confined.pid)) == ("2", [])
    apply(server, two[1])
    os.kill(server.pid, signal.SIGSTOP)
    assert "gave back" in revert(server)
    assert os.waitpid(server.pid, os.WUNTRACED | os.WNOHANG)[0] == server.pid
    assert mappings(server.pid) == []
    os.kill(server.pid, signal.SIGCONT)
    assert server.ask("a 1") == "2"


def test_guard_that_is_not_where_the_kernel_put_it(
    two: tuple[Built, Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may have wiped the kernel's random bytes.  A bug: what glibc hides is not seen."""
    monkeypatch.setattr(everywhere, "first_guard", lambda _: [])
    apply(server, two[1])
    assert server.ask("k 4") == "101"
    assert katana("revert", "--pid", server.pid).returncode == 0
    (report,) = give_memory_back([server.pid], wait=0.2)
    assert [u.thing.partition("+")[0] for u in report.mappings[0].uses] == ["keep_place"]
    assert report.tries == 1  # which the stop had told


def test_another_katana_at_work(two: tuple[Built, Path], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be about to use the mapping again, where it sees the process through another mount of /proc and so does
    not meet the lock.  A bug: jumps lead to memory that is gone."""
    monkeypatch.setattr(Target, "claim", lambda *_: None)
    apply(server, two[1])
    assert katana("revert", "--pid", server.pid).returncode == 0
    look_ahead = giving_back._Attempt._look_ahead

    def begun_meanwhile(attempt: giving_back._Attempt) -> None:
        look_ahead(attempt)
        apply(server, two[1])

    monkeypatch.setattr(giving_back._Attempt, "_look_ahead", begun_meanwhile)
    (report,) = give_memory_back([server.pid])
    assert (report.mappings[0].fate, report.mappings[0].why) == (
        Fate.UNKNOWN,
        "another katana is at work in the process",
    )
    assert server.ask("a 1") == "101"


@pytest.mark.parametrize("when", ["in the second stop", "before it", "a refusal"])
def test_frames_are_known_again_where_the_memory_stays_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Something comes up between both stops.  A bug: an exception that passes there ends the process."""
    victim = _of_frames(tmp_path)
    victim.again()
    try:
        assert victim.run("apply") == ""
        assert victim.run("revert") == ""
        judge = uses.Look.judge
        withdrawn: list[bool] = []

        def found_later(look: uses.Look) -> list[uses.Wanted]:
            clear = judge(look)
            for w in clear:
                if w.was_withdrawn:
                    withdrawn.append(True)
                    w.uses = [uses.Use("somewhere", "something")]
            return [w for w in clear if not w.uses]

        ahead, stop = giving_back._Attempt._look_ahead, giving_back._Attempt._in_stop

        def found_ahead(attempt: giving_back._Attempt) -> None:
            ahead(attempt)
            for w in attempt._wanted:
                if w.was_withdrawn:
                    withdrawn.append(True)
                    w.uses = [uses.Use("somewhere", "something")]

        def refused(attempt: giving_back._Attempt) -> list[uses.Wanted]:
            if any(w.was_withdrawn for w in attempt._wanted):
                withdrawn.append(True)
                raise RefusedError("a filter came meanwhile")
            return stop(attempt)

        place: tuple[Any, str, Any] = {
            "in the second stop": (uses.Look, "judge", found_later),
            "before it": (giving_back._Attempt, "_look_ahead", found_ahead),
            "a refusal": (giving_back._Attempt, "_in_stop", refused),
        }[when]
        monkeypatch.setattr(*place)
        (report,) = give_memory_back([victim.server.pid], wait=20)
        assert withdrawn
        assert report.mappings[0].fate in ((Fate.BUSY, Fate.UNKNOWN) if when == "a refusal" else (Fate.IN_USE,))
        with Target(victim.server.pid) as target:
            (mapping,) = target.patches
            assert mapping.ledger is not None
            assert mapping.ledger.is_registered
        monkeypatch.undo()
        assert victim.run("apply") == ""
        assert victim.server.ask("?") == THROUGH_NEW
        done = katana("revert", "--pid", victim.pid, "--give-back", "--wait", "20")
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert victim.server.ask("?") == THROUGH_OLD
    finally:
        victim.server.close()
