"""Filters of seccomp that kill for the calls which katana makes in a thread of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.programs import HEAD
from tests.live.server import katana, katana_json, serving
from tests.live.situations import REFUSED, situation
from tests.live.test_hooks import INCLUDE, made_of
from tests.live.test_refusal_words import FILTERED
from tests.live.test_transformers import AFTER, BACK, BEFORE, FORTH, OLD, STATIC, make, new, told
from tests.support.chain import Chain
from tests.support.project import Project, Variant

# Whoever calls it is killed for mmap, mprotect, munmap and memfd_create from then on.
CONFINE = r"""
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
static void confine(void) {
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 9, 0, 1),
    BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 11, 0, 2),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 319, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
  struct sock_fprog program = {6, code};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) abort();
}
"""
# The first thread waits for a lock, so that no function may be called in it; another one is confined, and answers.
ONE_CONFINED = (
    HEAD
    + CONFINE
    + r"""
#ifdef NEW
#include <katana.h>
#endif
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static char trail[40];
/*HOOK*/
NOINLINE int answer(int x) { seen += x; return x + STEP; }
static int first_waits(void) {
  char name[64], text[64]; snprintf(name, sizeof name, "/proc/self/task/%d/syscall", getpid());
  FILE *file = fopen(name, "r"); if (!file) abort();
  int is_so = fgets(text, sizeof text, file) && !strncmp(text, "202 ", 4);
  fclose(file); return is_so;
}
static void *serve(void *unused) {
  static char line[200];
  while (!first_waits()) {}
  confine();
  dprintf(1, "ready\n");
  for (long n; (n = read(0, line, sizeof line - 1)) > 0;) {
    line[n] = 0;
    dprintf(1, "%d %s\n", answer(atoi(line)), trail);
  }
  exit(0);
  return unused;
}
int main(void) {
  pthread_t t;
  pthread_mutex_lock(&held); pthread_create(&t, 0, serve, 0); pthread_mutex_lock(&held);
  return 0;
}
"""
)
HOOK = 'static int one(void) { strcat(trail, "ran"); return 0; }\nKATANA_BEFORE(one);'
CONFINED_OLD = OLD.replace("NOINLINE void wipe", CONFINE + "NOINLINE void wipe")
AT_THE_START = CONFINED_OLD.replace('say("ready");', 'confine(); say("ready");').replace(
    "{ command(", "{ if (line[0] == 'k') syscall(11, 0, 0); command("
)
LATER = CONFINED_OLD.replace("{ command(", "{ if (line[0] == 'c') { confine(); puts(\"confined\"); } else command(")


def renewed(source: str) -> str:
    """The build in which live objects have another layout, of one of the sources above."""
    end = source[source.index("static void *churn") :]
    return new(FORTH + BACK).replace(OLD[OLD.index("static void *churn") :], end)


@situation(46, "a seccomp filter of one thread only, which has to be the one that calls functions")
def test_thread_that_alone_has_a_filter(tmp_path: Path) -> None:
    """A bug: the filter of the first thread is taken for that of all, and the process is killed."""
    sources = (
        {"a.c": "#define STEP 1\n" + ONE_CONFINED},
        {"a.c": "#define NEW\n#define STEP 10\n" + ONE_CONFINED.replace("/*HOOK*/", HOOK)},
    )
    project = Project(tmp_path, Variant("gcc", "-O2", "pie"))
    made = made_of(Chain(project, sources, compile_flags=[INCLUDE], link_flags=["-pthread"]))
    with serving(made.old.path) as live:
        assert live.ask("5") == "6 "
        done = katana("apply", made.path, "--pid", live.pid)
        assert live.ended is None, done.stderr
        assert done.returncode == 0, done.stderr
        assert live.ask("5") == "15 ran"


@situation(46, "a seccomp filter, and functions that make live objects anew in the stop")
def test_filter_in_the_stop(tmp_path: Path) -> None:
    """A bug: memory for the call is mapped in a thread whose filter is in force, and the process is killed."""
    made = make(tmp_path, AT_THE_START, renewed(AT_THE_START))
    with serving(made.old.path) as live:
        live.ask("f 10")
        for _ in range(2):
            katana_json("apply", made.path, "--pid", live.pid, *STATIC)
            assert told(live) == AFTER
            katana_json("revert", "--pid", live.pid)
            assert told(live) == BEFORE
        live.tell("k")
        assert live.finish() == [f"status {-signal.SIGSYS}"], "the filter is in force no more"


@situation(46, "a seccomp filter that cannot be suspended in the stop", REFUSED)
def test_filter_that_cannot_be_suspended_in_the_stop(tmp_path: Path) -> None:
    """The code is in the process from before it was confined.  A bug: it is killed, or partly new."""
    if os.getuid():
        pytest.skip("a process under a filter is traced by root")
    made = make(tmp_path, LATER, renewed(LATER))
    with serving(made.old.path) as live:
        live.ask("f 10")
        katana_json("apply", made.path, "--pid", live.pid, *STATIC)
        katana_json("revert", "--pid", live.pid)
        assert live.ask("c 0") == "confined"
        words = ["apply", str(made.path), "--pid", str(live.pid), *STATIC]
        done = subprocess.run([sys.executable, "-c", FILTERED, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
        assert "seccomp" in done.stderr
        assert "SystemCallFilter=" in done.stderr
        assert told(live) == BEFORE
        katana_json("apply", made.path, "--pid", live.pid, *STATIC)
        assert told(live) == AFTER
