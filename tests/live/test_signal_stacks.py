"""Signal handlers whose alternate stack lies in other stacks: what they interrupted lies anywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.live.handmade import build, patch_from
from tests.live.programs import HEAD
from tests.live.server import code_of, katana, serving, write_patch
from tests.live.situations import REFUSED, situation

NEW = "static int news; news++; return 10 * x + news;"

# "i" makes a thread that is inside `answer`, below a frame with a pointer that is nowhere else; "s" and "u" send it
# signals, "e" ends the innermost handler, "l" lets it leave.  Where the alternate stack lies, the argument says: in a
# frame of that same thread, among its thread-local variables, on the stack of another thread, in the heap of one.
PROGRAM = (
    HEAD
    + r"""
#include <sys/mman.h>
struct item { /*FRESH*/int count; };
struct item item = {/*SEVEN*/3};
enum { ROOM = 1 << 15 };
static __thread char in_tls[ROOM];
static char still[ROOM];
static int gate[2], hold[2], lent[2]; static char where;
static char *volatile borrowed;
NOINLINE void wash(void) { volatile char room[8192]; for (unsigned i = 0; i < sizeof room; i++) room[i] = 0; }
static void *lending(void *p) {
  char room[ROOM], byte; borrowed = room;
  while (read(lent[0], &byte, 1) < 0) {}
  return p;
}
NOINLINE void wait_inside(const char *said, int end) { // also in a handler
  char byte;
  if (write(1, said, strlen(said)) < 0) abort();
  while (read(end, &byte, 1) < 0) {}
}
NOINLINE int count_of(void *p) { seen++; return ((struct item *)p)->count; }
NOINLINE int answer(int x) { if (x < 0) wait_inside("inside\n", gate[0]); seen++; /*ANSWER*/ return x + 1; }
NOINLINE int holding(void) {
  struct item *volatile kept = &item;
  wash();
  int left = answer(-5);
  printf("left %d %d\n", left, count_of(kept)); fflush(stdout);
  return left;
}
static void on(int s) {
  stack_t other = {.ss_sp = still, .ss_size = ROOM, .ss_flags = 0};
  if (s == SIGUSR1) sigaltstack(&other, 0); // it was disarmed
  wait_inside("handling\n", hold[0]);
}
static void *pool(void) {
  char *start = mmap(0, 4 * ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(start, ROOM, PROT_NONE);
  *(struct item **)(start + ROOM) = &item;
  return start + 2 * ROOM;
}
static void *enter(void *p) {
  char room[ROOM];
  stack_t s = {.ss_sp = where == 'f' ? room : where == 't' ? in_tls : where == 'o' ? borrowed :
    where == 'p' ? pool() : malloc(ROOM), .ss_size = ROOM, .ss_flags = (int)(1U << 31)}; // SS_AUTODISARM
  if (sigaltstack(&s, 0)) abort();
  struct sigaction a = {.sa_handler = on, .sa_flags = SA_ONSTACK}; sigaction(SIGUSR1, &a, 0); sigaction(SIGUSR2, &a, 0);
  holding();
  return p;
}
int main(int argc, char **argv) {
  if (pipe(gate) || pipe(hold) || pipe(lent) || argc < 2) return 1;
  where = *argv[1];
  char line[200];
  pthread_t t, lender;
  pthread_create(&lender, 0, lending, 0);
  while (!borrowed) {}
  say("ready");
  while (fgets(line, sizeof line, stdin)) {
    switch (line[0]) {
    case 'a': printf("%d\n", answer(atoi(line + 2))); break;
    case 'c': printf("%d\n", count_of(&item)); break;
    case 'i': pthread_create(&t, 0, enter, 0); break;
    case 's': pthread_kill(t, SIGUSR1); break;
    case 'u': pthread_kill(t, SIGUSR2); break;
    case 'e': if (write(hold[1], "x", 1) != 1) return 1; break;
    case 'l': if (write(gate[1], "x", 1) != 1) return 1; break;
    }
    fflush(stdout);
    memset(line, 0, sizeof line);
    wash();
  }
  return 0;
}
"""
)


def _two(folder: Path, changed: str, *functions: str, moved: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """The old program, and the patch to the new one."""
    old, new = (
        build(folder / name, "server", source, flags=("-O2", "-fno-ipa-cp"))
        for name, source in (("old", PROGRAM), ("new", changed))
    )
    return old.output, write_patch(folder, patch_from(old, new, functions, moved=moved))


def _held(said: str, pid: int) -> int:
    """How many words lead to the variable from stacks of others than the first thread: there it may be stale."""
    return sum(int(tid) != pid for tid in re.findall(r"on the stack of thread (\d+): item\n", said))


@pytest.fixture(scope="module")
def replacing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The program, and a patch that replaces what the thread is in."""
    return _two(tmp_path_factory.mktemp("replacing"), PROGRAM.replace("/*ANSWER*/", NEW), "answer")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The program, and a patch by which what the thread has a pointer to moves."""
    changed = PROGRAM.replace("/*FRESH*/", "long fresh; ").replace("/*SEVEN*/", "7, ")
    return _two(tmp_path_factory.mktemp("moving"), changed, "count_of", moved=("item",))


@pytest.mark.parametrize("signals", ["s", "su"], ids=["one", "nested"])
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(
            "f", marks=situation(50, "a handler on an alternate stack in a frame of the same thread"), id="frame"
        ),
        pytest.param(
            "t", marks=situation(50, "a handler on an alternate stack in its thread-local variables"), id="thread-local"
        ),
        pytest.param(
            "o", marks=situation(50, "a handler on an alternate stack in the stack of another thread"), id="other-stack"
        ),
        pytest.param("h", marks=situation(50, "a handler on an alternate stack in the heap of a thread"), id="heap"),
    ],
)
def test_function_that_a_handler_interrupted_is_found(replacing: tuple[Path, Path], place: str, signals: str) -> None:
    """A bug: the frames below the handler's are not looked at, and the function is replaced under the thread."""
    output, patch = replacing
    with serving(output, place) as server:
        assert server.ask("i") == "inside"
        for signal in signals:
            assert server.ask(signal) == "handling"
        code = code_of(server.pid)
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0.1")
        assert done.returncode == 4, done.stderr
        assert re.search(r"is in answer: frame \d+,", done.stderr), done.stderr
        assert code_of(server.pid) == code
        for _ in signals:
            server.tell("e")
        server.tell("l")
        assert server.line() == "left -4 3"
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert server.ask("a 3") == "31"


@pytest.mark.parametrize("signals", ["s", "su"], ids=["one", "nested"])
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(
            "f",
            marks=situation(
                50, "a pointer to what moves, below a handler's stack in a frame of the same thread", REFUSED
            ),
            id="frame",
        ),
        pytest.param(
            "t",
            marks=situation(
                50, "a pointer to what moves, below a handler's stack in its thread-local variables", REFUSED
            ),
            id="thread-local",
        ),
        pytest.param(
            "o",
            marks=situation(
                50, "a pointer to what moves, below a handler's stack in the stack of another thread", REFUSED
            ),
            id="other-stack",
        ),
        pytest.param(
            "h",
            marks=situation(50, "a pointer to what moves, below a handler's stack in the heap of a thread", REFUSED),
            id="heap",
        ),
    ],
)
def test_pointer_below_a_handler_is_seen(moving: tuple[Path, Path], place: str, signals: str) -> None:
    """A bug: what lies below the stack pointer is taken for dead, and leads to where the variable was."""
    output, patch = moving
    with serving(output, place) as server:
        assert server.ask("i") == "inside"
        for signal in signals:
            assert server.ask(signal) == "handling"
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0.1")
        assert done.returncode == 3, done.stderr
        assert _held(done.stderr, server.pid) == 1, done.stderr
        done = katana("apply", patch, "--pid", server.pid, "--follow", "item")
        assert done.returncode == 0, done.stderr
        for _ in signals:
            server.tell("e")
        server.tell("l")
        assert server.line() == "left -4 3"
        assert server.ask("c") == "3"


def test_memory_that_a_handlers_stack_is_part_of_is_looked_at(moving: tuple[Path, Path]) -> None:
    """A pool may have memory before it that nobody may touch, as a stack has.  A bug: what lies below the stack pointer
    in it is taken for a dead part of a stack."""
    output, patch = moving
    with serving(output, "p") as server:
        assert server.ask("i") == "inside"
        assert server.ask("s") == "handling"
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0.1")
        assert done.returncode == 3, done.stderr
        assert _held(done.stderr, server.pid) == 2, done.stderr
