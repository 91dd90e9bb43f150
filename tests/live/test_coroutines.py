"""Coroutines that are switched out inside of a replaced function: waited for, and told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.process.switching import find_switching, is_used
from katana_cc.process.target import Target
from tests.live.handmade import Built, build, patch_from, run
from tests.live.programs import HEAD, INSIDE
from tests.live.server import Server, code_of, katana, katana_json, serving, write_patch
from tests.live.situations import situation

NEW = "static int news; news++; return 10 * x + news;"
FLAGS = ("-O2", "-Wno-unused-function")

# "i N" makes coroutine N, which is switched out inside of `answer`; "o N" one that was, and is elsewhere now, with a
# stale word far down on its stack; "p N" one that a signal interrupted there, whose handler switched; "l N" lets it go
# on, until it ends; "e N" makes and ends so many.  With "fiber" as argument all of this runs on a coroutine's stack.
PROGRAM = (
    HEAD.replace("#include <unistd.h>", "#include <unistd.h>\n#include <sys/mman.h>")
    + r"""
enum { SIZE = 1 << 16 };
typedef struct fiber { void *sp; char *stack; int way, is_over; CONTEXT } fiber;
static fiber every[20000], first, *current = &first;
static void body(void);
SWITCH
static void to(fiber *next) { fiber *from = current; current = next; switch_to(from, next); }
NOINLINE void wait_inside(void) { to(&first); }
static volatile int fired;
static void on(int s) { fired = s; to(&first); }
NOINLINE int answer(int x) {
  if (x == -7) while (!fired) {} else if (x < 0) wait_inside();
  seen++; /*ANSWER*/ return x + 1;
}
NOINLINE int far(int x) { volatile char room[3000]; room[0] = x; return answer(x) + room[0]; }
static void body(void) {
  fiber *self = current;
  if (self->way == 'i') { printf("left %d\n", answer(-5)); fflush(stdout); }
  if (self->way == 'p') {
    signal(SIGALRM, on); fired = 0; ualarm(1000, 0);
    printf("left %d\n", answer(-7)); fflush(stdout);
  }
  if (self->way == 'o') { far(-5); to(&first); }
  if (self->way == 'e') { far(3); }
  if (self->way == 'L') { extern int loop(void); exit(loop()); }
  self->is_over = 1;
  to(&first);
}
static void start(fiber *f, int way) {
  f->stack = TAKE_ROOM; f->way = way; f->is_over = 0;
  prepare(f);
  to(f);
}
int loop(void) {
  char line[200]; fiber *home = current;
  first = *home; current = &first;
  say("ready");
  while (fgets(line, sizeof line, stdin)) {
    int n = atoi(line + 2);
    switch (line[0]) {
    case 'a': printf("%d\n", answer(n)); break;
    case 'i': start(&every[n], 'i'); printf("inside\n"); break;
    case 'p': start(&every[n], 'p'); printf("inside\n"); break;
    case 'o': start(&every[n], 'o'); to(&every[n]); printf("outside\n"); break;
    case 'e':
      for (int i = 0; i < n; i++) start(&every[i], 'e');
      for (int i = 0; i < n; i++) { int n = i; GIVE_BACK }
      printf("ended\n"); break;
    case 'l': to(&every[n]); if (every[n].is_over) { GIVE_BACK } break;
    }
    fflush(stdout);
  }
  return 0;
}
int main(int argc, char **argv) {
  if (argc > 1) start(&every[19999], 'L');
  return loop();
}
"""
)
MAPPED = {
    "TAKE_ROOM": "mmap(0, SIZE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)",
    "GIVE_BACK": "munmap(every[n].stack, SIZE);",
}
KEPT = {"TAKE_ROOM": "f->stack ? f->stack : malloc(SIZE)", "GIVE_BACK": ""}
FREED = {"TAKE_ROOM": "malloc(SIZE)", "GIVE_BACK": "free(every[n].stack);"}
UCONTEXT = {
    "CONTEXT": "ucontext_t context;",
    "SWITCH": """
static void switch_to(fiber *from, fiber *to) { swapcontext(&from->context, &to->context); }
static void prepare(fiber *f) {
  getcontext(&f->context); f->context.uc_stack.ss_sp = f->stack; f->context.uc_stack.ss_size = SIZE;
  f->context.uc_link = 0; makecontext(&f->context, body, 0);
}
""",
}
# Nobody imports anything.
ASSEMBLY = {
    "CONTEXT": "",
    "SWITCH": r"""
void swap(void **from, void *to);
asm(".globl swap; .type swap, @function\nswap: push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp, (%rdi); mov %rsi, %rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret\n"
    ".size swap, .-swap");
static void switch_to(fiber *from, fiber *to) { swap(&from->sp, to->sp); }
static void prepare(fiber *f) {
  void **top = (void **)(f->stack + SIZE) - 2; *top = (void *)body; f->sp = top - 6;
}
""",
}


def source_of(*choices: dict[str, str]) -> str:
    """The program with these ways to switch, and kinds of stacks."""
    text = PROGRAM
    for choice in choices:
        for name, words in choice.items():
            assert name in text
            text = text.replace(name, words)
    return text.replace("#include <unistd.h>", "#include <ucontext.h>\n#include <unistd.h>")


def made(folder: Path, source: str, *link: str) -> tuple[Built, Path]:
    """The program, and a patch of its `answer`."""
    old = build(folder / "old", "server", source, flags=FLAGS, link=link)
    new = build(folder / "new", "server", source.replace("/*ANSWER*/", NEW), flags=FLAGS, link=link)
    return old, write_patch(folder, patch_from(old, new, ("answer",)))


def refused_for_now(server: Server, patch: Path, *words: str) -> str:
    """What is said of a process in which a coroutine may be inside; it is as it was."""
    code = code_of(server.pid)
    done = katana("apply", patch, "--pid", server.pid, "--wait", "0.05", *words)
    while "does not stop" in done.stderr:  # the machine is under load
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0.05", *words)
    assert done.returncode == 4, done.stderr
    assert "a coroutine that is switched out may be in answer" in done.stderr
    assert code_of(server.pid) == code
    return done.stderr


@situation(50, "a coroutine that is switched out: waited for")
def test_coroutine_that_is_switched_out_is_waited_for(tmp_path: Path) -> None:
    """A bug: the function is replaced, and taken out, under it."""
    old, patch = made(tmp_path, source_of(UCONTEXT, MAPPED))
    with serving(old.output) as server:
        assert server.ask("i 1") == "inside"
        said = refused_for_now(server, patch)
        assert "goes on in it" in said
        assert "--allow-active answer" in said
        assert "--coroutines ignore" in said
        server.tell("l 1")
        assert server.line() == "left -4"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("a 3") == "31"
        assert server.ask("i 2") == "inside"
        done = katana("revert", "--pid", server.pid, "--wait", "0.05")
        assert done.returncode == 4, done.stderr
        assert "a coroutine that is switched out may be in answer" in done.stderr
        assert server.ask("a 3") == "32"
        server.tell("l 2")
        assert server.line() == "left -47"
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("a 3") == "4"


@situation(50, "a coroutine that is switched out, in a function that is allowed to be active")
def test_function_of_a_coroutine_may_be_allowed(tmp_path: Path) -> None:
    """A bug: what the user allows of threads is not allowed of coroutines."""
    old, patch = made(tmp_path, source_of(UCONTEXT, MAPPED))
    with serving(old.output) as server:
        assert server.ask("i 1") == "inside"
        done = katana("apply", patch, "--pid", server.pid, "--allow-active", "answer")
        assert done.returncode == 0, done.stderr
        assert server.ask("a 3") == "31"
        server.tell("l 1")
        assert server.line() == "left -4"
        assert katana("revert", "--pid", server.pid).returncode == 0


@situation(50, "a program with coroutines, none of which is inside")
def test_program_with_coroutines_elsewhere_is_patched(tmp_path: Path) -> None:
    """A bug: whoever imports swapcontext can not be patched."""
    old, patch = made(tmp_path, source_of(UCONTEXT, MAPPED))
    with serving(old.output) as server:
        assert server.ask("o 1") == "outside"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("a 3") == "31"
        assert katana("revert", "--pid", server.pid).returncode == 0


@situation(50, "a library that can make coroutines and has made none (OpenSSL's, in all that speaks TLS)")
def test_memory_is_not_searched_where_no_coroutine_was_ever_made(tmp_path: Path) -> None:
    """A bug: each program that has libcrypto stands still while all its memory is read."""
    old, _ = made(tmp_path, source_of(UCONTEXT, MAPPED))
    with serving(old.output) as server, Target(server.pid) as target:
        switching = find_switching(target)
        assert "makecontext" in switching.names
        assert not is_used(target, switching)
        assert server.ask("o 1") == "outside"
        assert is_used(target, switching)
        assert server.ask("e 5") == "ended"
        assert is_used(target, switching), "the first is there still"


def test_another_library_that_switches_has_all_searched(tmp_path: Path) -> None:
    """A bug: what glibc did not make is taken for not there."""
    source = source_of(UCONTEXT, MAPPED).replace(
        "enum { SIZE", "void co_switch(void *p) { seen += !p; }\nenum { SIZE", 1
    )
    with serving(build(tmp_path, "server", source, flags=FLAGS).output) as server, Target(server.pid) as target:
        switching = find_switching(target)
        assert "co_switch" in switching.names
        assert is_used(target, switching)


@situation(50, "stale words on the stacks of coroutines that were inside, and are elsewhere or have ended (ucontext)")
@pytest.mark.parametrize("room", [KEPT, FREED, MAPPED], ids=["kept", "freed", "unmapped"])
def test_stale_words_do_not_count_where_contexts_tell(tmp_path: Path, room: dict[str, str]) -> None:
    """A bug: a program that uses stacks again and again can never be patched; or one inside is lost among the stale."""
    old, patch = made(tmp_path, source_of(UCONTEXT, room))
    with serving(old.output) as server:
        assert server.ask("e 3000") == "ended"
        assert server.ask("o 1") == "outside"
        assert server.ask("i 3001") == "inside"
        said = refused_for_now(server, patch)
        assert "the context at" in said
        server.tell("l 3001")
        assert server.line() == "left -4"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("o 2") == "outside"
        assert katana("revert", "--pid", server.pid).returncode == 0


def test_stale_words_count_where_nothing_tells(tmp_path: Path) -> None:
    """A bug: the test above shows nothing, since there are no stale words."""
    old, patch = made(tmp_path, source_of(ASSEMBLY, KEPT))
    with serving(old.output, "fiber") as server:
        assert server.ask("o 1") == "outside"
        said = refused_for_now(server, patch)
        assert "the word is stale" in said


def test_stack_that_no_context_was_made_with_is_not_explained(tmp_path: Path) -> None:
    """A bug: of two ways to switch only contexts are looked at, and a coroutine of the other kind is patched under."""
    also = "static void *volatile keep[] = {(void *)swapcontext, (void *)makecontext};\n"
    assembly = ASSEMBLY | {"SWITCH": also + ASSEMBLY["SWITCH"]}
    old, patch = made(
        tmp_path, source_of(assembly, MAPPED).replace("int loop(void) {", "int loop(void) { (void)keep[0];")
    )
    with serving(old.output, "fiber") as server:
        assert server.ask("i 1") == "inside"
        refused_for_now(server, patch)
    with serving(old.output) as server:
        assert server.ask("i 1") == "inside"
        refused_for_now(server, patch, "--coroutines", "search")


@situation(50, "a coroutine that a signal interrupted, whose handler switched it out")
@pytest.mark.parametrize(
    ("switch", "words"), [(UCONTEXT, ()), (ASSEMBLY, ("--coroutines", "search"))], ids=["ucontext", "assembly"]
)
def test_coroutine_may_be_interrupted_anywhere(tmp_path: Path, switch: dict[str, str], words: tuple[str, ...]) -> None:
    """A bug: only what leads behind a call counts."""
    old, patch = made(tmp_path, source_of(switch, MAPPED))
    with serving(old.output) as server:
        assert server.ask("p 1") == "inside"
        refused_for_now(server, patch, *words)
        server.tell("l 1")
        assert server.line() == "left -6"
        assert katana("apply", patch, "--pid", server.pid, *words).returncode == 0
        assert server.ask("a 3") == "31"


def test_switcher_that_is_linked_in_is_known_by_its_symbol(tmp_path: Path) -> None:
    """A bug: a library that is linked statically is overlooked, since nobody imports it."""
    known = {name: text.replace("swap", "co_switch") for name, text in ASSEMBLY.items()}
    old, patch = made(tmp_path, source_of(known, MAPPED))
    with serving(old.output) as server:
        assert server.ask("i 1") == "inside"
        refused_for_now(server, patch)
        server.tell("l 1")
        assert server.line() == "left -4"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0


def test_user_may_know_better(tmp_path: Path) -> None:
    """A bug: a stale word keeps a patch out for ever, or nobody looks where only the user knows that it is needed."""
    old, patch = made(tmp_path, source_of(ASSEMBLY, MAPPED))
    with serving(old.output) as server:
        assert server.ask("i 1") == "inside"
        refused_for_now(server, patch, "--coroutines", "search")
        done = katana("apply", patch, "--pid", server.pid, "--coroutines", "ignore")
        assert done.returncode == 0, done.stderr
        server.tell("l 1")
        assert server.line() == "left -4"


@situation(50, "a coroutine that is switched out, in a program that is linked statically")
@pytest.mark.parametrize("strip", [False, True], ids=["", "stripped"])
@pytest.mark.parametrize("link", [("-static", "-no-pie"), ("-static-pie",)], ids=["fixed", "pie"])
def test_static_program_is_known_to_switch_stacks(tmp_path: Path, link: tuple[str, ...], strip: bool) -> None:
    """A bug: what imports nothing is taken for a program without coroutines."""
    old, patch = made(tmp_path, source_of(UCONTEXT, MAPPED), *link)
    if strip:
        run("strip", old.output)
    with serving(old.output) as server:
        assert server.ask("i 1") == "inside"
        refused_for_now(server, patch)
        server.tell("l 1")
        assert server.line() == "left -4"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("a 3") == "31"


@situation(50, "stacks switched by own assembly: known once a thread is seen on one")
def test_own_assembly_is_known_by_a_thread_on_such_a_stack(tmp_path: Path) -> None:
    """A bug: only functions with a name that is known are taken for what switches stacks."""
    old, patch = made(tmp_path, source_of(ASSEMBLY, MAPPED))
    with serving(old.output, "fiber") as server:
        assert server.ask("i 1") == "inside"
        refused_for_now(server, patch)
        server.tell("l 1")
        assert server.line() == "left -4"
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert server.ask("a 3") == "31"


@situation(50, "a coroutine that is switched out: the dry run says where one may be")
def test_coroutine_that_is_switched_out_is_told_of_beforehand(tmp_path: Path) -> None:
    """A bug: nobody hears that a function may be suspended, or of a program that knows no coroutines."""
    old, patch = made(tmp_path, source_of(UCONTEXT, MAPPED))
    with serving(old.output) as server:
        before = katana_json("apply", patch, "--pid", server.pid, "--dry-run")["processes"][0]["forecast"]
        assert before["switchers"] == before["suspended"] == [], "none was made so far"
        assert server.ask("i 1") == "inside"
        looked = katana_json("explain", patch, "--pid", server.pid)["forecast"]
        assert looked["switchers"] == ["makecontext", "swapcontext"]
        (found,) = looked["suspended"]
        assert (found["name"], found["words"]) == ("answer", 1)
        said = katana("explain", patch, "--pid", server.pid).stdout
        assert "the program switches stacks by itself (makecontext, swapcontext)" in said
        assert "answer may be on such a stack, unless what is there is stale: a word leads back into it" in said
        assert f"first at {found['first']}" in said


def test_program_without_coroutines_hears_nothing_of_them(tmp_path: Path) -> None:
    """A bug: everybody is told."""
    old, patch = made(tmp_path, INSIDE)
    with serving(old.output) as server:
        assert server.ask("i") == "inside"
        looked = katana_json("explain", patch, "--pid", server.pid)["forecast"]
        assert (looked["switchers"], looked["suspended"]) == ([], [])
        assert [f["name"] for f in looked["functions"]] == ["answer"]
