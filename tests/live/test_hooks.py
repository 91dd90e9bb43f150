"""Functions of the user's that run when a patch is applied or reverted: in order, once, and harmless when they fail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from katana_cc.errors import ExitStatus
from tests.live.handmade import build
from tests.live.programs import HEAD
from tests.live.server import Server, code_of, katana, katana_json, serving, write_patch
from tests.support.chain import Chain
from tests.support.installation import ROOT
from tests.support.project import Build, Project, Result, Variant

INCLUDE = f"-I{ROOT}/wrappers/libexec/katana/include"
PROGRAM = (
    HEAD
    + r"""
#ifdef NEW
#include <katana.h>
#endif
char trail[400];
int calls;
static void note(const char *what) { strcat(trail, what); }
/*HOOKS*/
NOINLINE int answer(int x) { calls++; seen += x; return x + STEP; }
static void *churn(void *unused) {
  for (unsigned i = 0;; i++) { void *volatile p = malloc(16 + i % 2000); free(p); seen = i; }
  return unused;
}
static void *wait_long(void *unused) { for (;;) pause(); return unused; }
int main(int argc, char **argv) {
  pthread_t t;
  int churning = argc > 1 ? atoi(argv[1]) : 0;
  for (int i = 0; i < churning; i++) pthread_create(&t, 0, churn, 0);
  if (churning) pthread_create(&t, 0, wait_long, 0);
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    switch (line[0]) {
    case 'a': printf("%d\n", answer(atoi(line + 2))); break;
    case 't': printf("%s.\n", trail); break;
    case 'x': note("X"); puts("noted"); break;
    case 'f': { int child = fork_child(); if (!child) for (;;) pause(); printf("%d\n", child); break; }
    case 's': {
      struct timespec t = {atoi(line + 2), 0}, a, b;
      clock_gettime(CLOCK_MONOTONIC, &a);
      int r = nanosleep(&t, 0);
      clock_gettime(CLOCK_MONOTONIC, &b);
      int s = b.tv_sec - a.tv_sec;
      printf("slept %d, %s\n", r, s < t.tv_sec - 1 ? "too short" : s > 20 ? "too long" : "enough");
      break;
    }
    case 'e': errno = 77; kill(getpid(), 0); printf("%d\n", errno); break;
    }
    fflush(stdout);
  }
  return 0;
}
"""
)


@dataclass(frozen=True, slots=True)
class Made:
    """Two builds and the patch between them."""

    old: Build
    new: Build
    result: Result
    path: Path


def source(hooks: str, step: int, before: str = "") -> str:
    """The program with some hooks."""
    new = "#define NEW 1\n" if hooks or before else ""
    return f"#define STEP {step}\n{new}" + PROGRAM.replace("/*HOOKS*/", hooks or before)


def make(
    folder: Path,
    hooks: str,
    *,
    before: str = "",
    variant: Variant | None = None,
    link: Sequence[str] = ("-pthread",),
    name: str = "a.c",
) -> Made:
    """The patch to a build with hooks, from one with those of `before`."""
    project = Project(folder, variant or Variant("gcc", "-O2", "pie"))
    sources = {name: source("", 1, before)}, {name: source(hooks, 2)}
    return made_of(Chain(project, sources, compile_flags=[INCLUDE], link_flags=list(link)))


def made_of(chain: Chain) -> Made:
    """Two builds, and the patch in a file."""
    old, new = chain.builds
    return Made(old, new, chain.result(0, 1), chain.file(0, 1))


ALL = r"""
static int one(void) { note(calls ? "b" : "B"); return 0; }
KATANA_BEFORE(one);
static int two(void) { note("2"); return answer(0) == 2 ? 0 : 5; }
KATANA_BEFORE(two);
int three(void) { note("A"); return 0; }
KATANA_AFTER(three);
static int four(void) { note("R"); return 0; }
KATANA_BEFORE_REVERT(four);
static int five(void) { note("O"); return 0; }
KATANA_AFTER_REVERT(five);
"""


def test_each_runs_once_and_in_order(tmp_path: Path) -> None:
    """A bug: one is left out, runs twice, at another time, or calls the old code."""
    made = make(tmp_path, ALL)
    with serving(made.old.path) as live:
        assert live.ask("a 1") == "2"
        done = katana_json("apply", made.path, "--pid", live.pid)
        (process,) = done["processes"]
        assert [(h["name"], h["kind"], h["result"], h["failure"]) for h in process["hooks"]] == [
            ("one", "before", 0, None), ("two", "before", 0, None), ("three", "after", 0, None)
        ]  # fmt: skip
        assert live.ask("t") == "b2A."
        assert live.ask("a 1") == "3"
        assert katana_json("apply", made.path, "--pid", live.pid)["processes"][0]["hooks"] == []
        assert live.ask("t") == "b2A."
        (process,) = katana_json("revert", "--pid", live.pid)["processes"]
        assert [(h["name"], h["kind"]) for h in process["hooks"]] == [
            ("four", "before_revert"), ("five", "after_revert")
        ]  # fmt: skip
        assert live.ask("t") == "b2ARO."
        assert live.ask("a 1") == "2"
        katana_json("apply", made.path, "--pid", live.pid)
        assert live.ask("t") == "b2AROb2A."
        katana_json("revert", "--pid", live.pid)


def test_words_for_people(tmp_path: Path) -> None:
    """A bug: nobody is told what will run in his process."""
    made = make(tmp_path, ALL)
    shown = katana("show", made.path).stdout
    assert "runs 2 hooks before, 1 after, 1 before the revert, 1 after the revert" in shown
    assert "one    runs before" in shown
    assert "one runs before: it is of the program's authors" in katana("explain", made.path).stdout
    kinds = [h["kind"] for h in json.loads(katana("show", made.path, "--json").stdout)["hooks"]]
    assert kinds == ["before", "before", "after", "before_revert", "after_revert"]
    assert katana("check", made.path).returncode == 0
    with serving(made.old.path) as live:
        dry = katana("apply", made.path, "--pid", live.pid, "--dry-run").stdout
        assert "would run before the revert: four" in dry
        assert live.ask("t") == "."
        assert "hook two ran before, in" in katana("apply", made.path, "--pid", live.pid).stdout


def refused(made: Made, live: Server, *more: str) -> str:
    """The message of an apply that a hook forbids; the process must be as it was."""
    code, answer = code_of(live.pid), live.ask("a 1")
    done = katana("apply", made.path, "--pid", live.pid, *more)
    assert done.returncode == ExitStatus.HOOK, (done.stdout, done.stderr)
    assert code_of(live.pid) == code
    assert live.ask("a 1") == answer == "2"
    assert live.ask("e") == "77"
    return done.stderr


def test_hook_that_says_no(tmp_path: Path) -> None:
    """A bug: the patch goes in all the same, or later hooks run."""
    hooks = 'static int no(void) { note("N"); return -7; }\nKATANA_BEFORE(no);\n'
    hooks += 'static int later(void) { note("L"); return 0; }\nKATANA_BEFORE(later);\nKATANA_AFTER(later);\n'
    made = make(tmp_path, hooks)
    with serving(made.old.path) as live:
        assert "the hook no (before) returned -7" in refused(made, live)
        assert live.ask("t") == "N."
        katana_json("status", "--pid", live.pid)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("*(volatile int *)8 = 1; return 0;", "was ended by SIGSEGV in katana_before_hook_bad"),
        ("abort();", "was ended by SIGABRT in "),
        ("volatile int z = 0; return calls / z;", "was ended by SIGFPE"),
        ("volatile char big[1 << 16]; big[0] = 1; return bad() + big[0];", "was ended by SIGSEGV"),
    ],
    ids=["segfault", "abort", "division", "recursion"],
)
def test_hook_that_faults(body: str, told: str, tmp_path: Path) -> None:
    """A bug: the process ends with it."""
    made = make(tmp_path, f"static int bad(void) {{ {body} }}\nKATANA_BEFORE(bad);\n")
    with serving(made.old.path) as live:
        assert told in refused(made, live)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("for (;;) { seen++; }", "left in katana_before_hook_slow"),
        ("for (;;) pause();", "left in "),
        ("static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER; for (;;) pthread_mutex_lock(&m);", "left in "),
        ("for (;;) { free(malloc(100)); }", "left in "),
    ],
    ids=["loop", "waits", "deadlock", "malloc"],
)
def test_hook_that_does_not_end(body: str, told: str, tmp_path: Path) -> None:
    """A bug: the process or katana hangs, or the thread does not go on where it was."""
    made = make(tmp_path, f"static int slow(void) {{ {body} return 0; }}\nKATANA_BEFORE(slow);\n")
    with serving(made.old.path) as live:
        message = refused(made, live, "--hook-timeout", "0.2")
        assert "did not return within 0.2 s" in message
        assert told in message


def test_lock_of_the_allocator_is_not_left_behind(tmp_path: Path) -> None:
    """The hook is in malloc nearly always when its time is up.  A bug: it is left there, and the program hangs."""
    hooks = "static int busy(void) { for (;;) { free(malloc(5000)); } return 0; }\nKATANA_BEFORE(busy);\n"
    made = make(tmp_path, hooks)
    with serving(made.old.path, "1") as live:
        for _ in range(5):
            refused(made, live, "--hook-timeout", "0.05", "--wait", "20")


def test_failure_afterwards_is_reported(tmp_path: Path) -> None:
    """A bug: it is passed over, or takes the patch out again."""
    hooks = "static int bad(void) { return 3; }\nKATANA_AFTER(bad);\nKATANA_AFTER_REVERT(bad);\n"
    made = make(tmp_path, hooks)
    with serving(made.old.path) as live:
        done = katana("apply", made.path, "--pid", live.pid)
        assert done.returncode == ExitStatus.HOOK_AFTER
        assert "the hook bad (after) returned 3; the patch is applied" in done.stderr
        assert live.ask("a 1") == "3"
        done = katana("revert", "--pid", live.pid)
        assert done.returncode == ExitStatus.HOOK_AFTER
        assert "the hook bad (after the revert) returned 3; the patch is reverted" in done.stderr
        assert live.ask("a 1") == "2"


def test_revert_that_a_hook_forbids(tmp_path: Path) -> None:
    """A bug: the patch comes out all the same."""
    made = make(tmp_path, "static int no(void) { return 1; }\nKATANA_BEFORE_REVERT(no);\n")
    with serving(made.old.path) as live:
        katana_json("apply", made.path, "--pid", live.pid)
        done = katana("revert", "--pid", live.pid)
        assert done.returncode == ExitStatus.HOOK
        assert "the hook no (before the revert) returned 1" in done.stderr
        assert live.ask("a 1") == "3"


def test_hook_that_allocates_while_all_others_do(tmp_path: Path) -> None:
    """Eight threads in malloc.  A bug: it waits for a lock of a thread that is stopped, or breaks the heap."""
    hooks = r"""
static void *kept[1000];
static int fill(void) {
  for (int i = 0; i < 1000; i++) if (!(kept[i] = malloc(64 + i))) return 1;
  for (int i = 0; i < 1000; i += 2) free(kept[i]);
  note("F"); return 0;
}
KATANA_BEFORE(fill);
"""
    made = make(tmp_path, hooks)
    with serving(made.old.path, "8") as live:
        katana_json("apply", made.path, "--pid", live.pid, "--wait", "20")
        assert live.ask("t") == "F."
        assert live.ask("a 1") == "3"


def test_what_a_hook_puts_into_a_new_variable_is_there(tmp_path: Path) -> None:
    """Also when the patch is applied once more: its variables begin anew, before the hook.  A bug: after it."""
    hooks = "int *cache;\nint filled = 1;\nstatic int fill(void) { cache = malloc(8); *cache = ++filled; return 0; }\n"
    hooks += "KATANA_BEFORE(fill);\n#undef STEP\n#define STEP (*cache + 10)\n"
    made = make(tmp_path, hooks)
    with serving(made.old.path) as live:
        for _ in range(3):
            katana_json("apply", made.path, "--pid", live.pid)
            assert live.ask("a 1") == "13"
            katana_json("revert", "--pid", live.pid)
            assert live.ask("a 1") == "2"


OLD_HOOK = 'static int one(void) { note("1"); return 0; }\nKATANA_BEFORE(one);\nKATANA_AFTER(one);\n'


def test_hook_of_a_former_release_does_not_run_again(tmp_path: Path) -> None:
    """It was left in the source.  A bug: it runs once more."""
    made = make(tmp_path, OLD_HOOK + ALL.replace("one", "six"), before=OLD_HOOK)
    assert [h.name for h in made.result.patch.hooks] == ["six", "two", "three", "four", "five"]
    assert made.result.about("hook-left-out") == ["one", "one"]
    with serving(made.old.path) as live:
        katana_json("apply", made.path, "--pid", live.pid)
        assert live.ask("t") == "B2A."


def test_hook_with_other_code_runs_again(tmp_path: Path) -> None:
    """A bug: it is taken for the old one, or the old one for code to replace."""
    made = make(tmp_path, OLD_HOOK.replace('"1"', '"one"'), before=OLD_HOOK)
    assert [h.name for h in made.result.patch.hooks] == ["one", "one"]
    assert [name for name in made.result.replaced if "katana" in name] == []
    with serving(made.old.path) as live:
        katana_json("apply", made.path, "--pid", live.pid)
        assert live.ask("t") == "oneone."


def test_only_a_hook(tmp_path: Path) -> None:
    """Nothing else changed.  A bug: there is no patch, or it cannot be told whether it is applied."""
    project = Project(tmp_path, Variant("gcc", "-O2", "pie"))
    link = ["-pthread"]
    old = project.build({"a.c": source("", 1)}, compile_flags=[INCLUDE], link_flags=list(link))
    new = project.build(
        {"a.c": source('static int go(void) { note("G"); return 0; }\nKATANA_AFTER(go);\n', 1)},
        compile_flags=[INCLUDE],
        link_flags=list(link),
    )
    result = project.checked(old, new)
    assert not result.nothing
    path = write_patch(tmp_path, result.patch)
    with serving(old.path) as live:
        assert katana_json("apply", path, "--pid", live.pid)["processes"][0]["outcome"] == "applied"
        assert katana_json("apply", path, "--pid", live.pid)["processes"][0]["outcome"] == "already applied"
        assert live.ask("t") == "G."
        assert katana_json("revert", "--pid", live.pid)["processes"][0]["outcome"] == "reverted"


def test_interrupted_wait_goes_on(tmp_path: Path) -> None:
    """The only thread sleeps, and the hook in it sleeps too until its time is up: the kernel remembers one of the two
    only.  A bug: the program's sleep ends early, or it sleeps the hook's."""
    made = make(tmp_path, "static int doze(void) { sleep(25); return 0; }\nKATANA_BEFORE(doze);\n")
    with serving(made.old.path) as live:
        live.tell("s 3")
        while Path(f"/proc/{live.pid}/syscall").read_text().split()[0] not in ("35", "230"):
            pass
        done = katana("apply", made.path, "--pid", live.pid, "--hook-timeout", "0.1")
        assert done.returncode == ExitStatus.HOOK, done.stderr
        assert "did not return within 0.1 s" in done.stderr
        assert live.line() == "slept 0, enough"


def test_whole_tree_or_nothing(tmp_path: Path) -> None:
    """The hook says no in one of three processes.  A bug: the others are patched, or their hooks ran after."""
    hooks = "static int vote(void) { note(\"V\"); return strchr(trail, 'X') != 0; }\nKATANA_BEFORE(vote);\n"
    hooks += 'static int done(void) { note("D"); return 0; }\nKATANA_AFTER(done);\n'
    made = make(tmp_path, hooks)
    with serving(made.old.path) as one, serving(made.old.path) as two, serving(made.old.path) as three:
        all_of_them = (one, two, three)
        two.ask("x")
        done = katana("apply", made.path, "--pid", *(s.pid for s in all_of_them))
        assert done.returncode == ExitStatus.HOOK
        assert f"pid {two.pid}" in done.stderr
        assert [s.ask("a 1") for s in all_of_them] == ["2", "2", "2"]
        assert [s.ask("t") for s in all_of_them] == ["V.", "XV.", "."]
        katana_json("apply", made.path, "--pid", one.pid, three.pid)
        assert [s.ask("a 1") for s in all_of_them] == ["3", "2", "3"]
        assert [s.ask("t") for s in all_of_them] == ["VVD.", "XV.", "VD."]
        katana_json("revert", "--pid", one.pid, three.pid)


def test_children(tmp_path: Path) -> None:
    """A process tree: before in all of them, then the commit.  A bug: a child is left out."""
    made = make(tmp_path, ALL)
    with serving(made.old.path) as live:
        child = int(live.ask("f"))
        done = katana_json("apply", made.path, "--tree", live.pid)
        ran = {p["pid"]: [h["name"] for h in p["hooks"]] for p in done["processes"]}
        assert ran == {live.pid: ["one", "two", "three"], child: ["one", "two", "three"]}
        katana_json("revert", "--tree", live.pid)


THROWS = r"""
static int thrower() { if (calls >= 0) throw 5; return 0; }
KATANA_BEFORE(thrower);
"""


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_hook_that_throws(compiler: str, tmp_path: Path) -> None:
    """A bug: std::terminate ends the process."""
    variant = Variant(compiler, "-O2", "pie")
    if not variant.available():
        pytest.skip(f"{compiler} is not installed")
    made = make(tmp_path, THROWS, variant=variant, link=("-pthread", "-Wl,--no-as-needed", "-lstdc++"), name="a.cc")
    with serving(made.old.path) as live:
        assert "the hook thrower (before) threw an exception" in refused(made, live)


def test_static_program(tmp_path: Path) -> None:
    """A bug: what the hook calls is not found, or no thread is ever fit."""
    hooks = 'static int fill(void) { void *p = malloc(10); free(p); note("F"); return !p; }\nKATANA_BEFORE(fill);\n'
    made = make(tmp_path, hooks, link=("-pthread", "-static"), variant=Variant("gcc", "-O2", "nopie"))
    with serving(made.old.path) as live:
        katana_json("apply", made.path, "--pid", live.pid)
        assert live.ask("t") == "F."
        assert live.ask("a 1") == "3"


LIBRARY = r"""
#include <stdio.h>
#include <string.h>
static int calls;
char trail[40];
const char *said(void) { return trail; }
__attribute__((noinline)) int answer(int x) { calls++; return x + STEP + calls * 0; }
#ifdef NEW
#include <katana.h>
int before(void) { strcat(trail, "B"); return answer(1) != 2; } // by its name: the old one still
KATANA_BEFORE(before);
static int after(void) { strcat(trail, "A"); return answer(1) != 3; }
KATANA_AFTER(after);
#endif
"""
LOADER = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) { puts(dlerror()); return 1; }
  int (*answer)(int) = (int (*)(int))dlsym(library, "answer");
  const char *(*said)(void) = (const char *(*)(void))dlsym(library, "said");
  puts("ready"); fflush(stdout);
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 't') puts(said()); else printf("%d\n", answer(atoi(line)));
    fflush(stdout);
  }
}
"""


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_hooks_of_a_library(compiler: str, tmp_path: Path) -> None:
    """One that was opened at run time.  A bug: what the hook calls is another module's, or nobody runs it."""
    variant = Variant(compiler, "-O2", "shared")
    if not variant.available():
        pytest.skip(f"{compiler} is not installed")
    project = Project(tmp_path, variant)
    old = project.build({"a.c": "#define STEP 1\n" + LIBRARY}, compile_flags=[INCLUDE], output="libx.so")
    source = "#define STEP 2\n#define NEW 1\n" + LIBRARY
    new = project.build({"a.c": source}, compile_flags=[INCLUDE], output="libx.so")
    result = project.checked(old, new)
    assert result.refusals == []
    path = write_patch(tmp_path, result.patch)
    loader = build(tmp_path, "loader", LOADER)
    with serving(loader.output, old.path) as live:
        assert live.ask("1") == "2"
        katana_json("apply", path, "--pid", live.pid)
        assert (live.ask("1"), live.ask("t")) == ("3", "BA")
        katana_json("revert", "--pid", live.pid)
        assert live.ask("1") == "2"
