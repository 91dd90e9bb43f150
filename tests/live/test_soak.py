"""A process that is patched and unpatched ten times a second, under everything at once, and must not notice.

KATANA_SOAK is for how many seconds (`make soak`: 600; else a few).  64 threads call the replaced functions, wait in
system calls that must not end with EINTR, take numbered real-time signals, and make threads that come and go; a client
asks all the time and checks each answer.  At the end there is no wrong answer, no lost signal, and neither the target
nor the patcher has more memory, mappings or descriptors than after the first rounds.
"""

from __future__ import annotations

import gc
import json
import os
import select
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from katana_cc.patch.codec import patch_id
from katana_cc.patch.files import read_patch
from katana_cc.process.apply import apply_patch
from katana_cc.process.revert import revert_patch
from tests.live.handmade import build, patch_from
from tests.live.programs import HEAD
from tests.live.server import Server, code_of, serving, write_patch
from tests.live.situations import situation

SECONDS: Final = float(os.environ.get("KATANA_SOAK", "6"))
PERIOD: Final = 0.1
SIGNALS_A_SECOND: Final = 1500
BIRTHS_A_SECOND: Final = 5000
THREADS: Final = 64
WAIT: Final = 30.0

pytestmark = pytest.mark.timeout(int(SECONDS) * 2 + 240)

PROGRAM = (
    HEAD
    + r"""
NOINLINE int twice(int x) { /*TWICE*/ seen += x; return 2 * x; }
NOINLINE int thrice(int x) { /*THRICE*/ seen += x; return 3 * x; }
static volatile long born, got, sum;
static void fail(const char *where, long result) {
  fprintf(stderr, "soak: %s: %ld, errno %d\n", where, result, errno); abort();
}
static void check(void) {
  int a = twice(7), b = thrice(7);
  if ((a != 14 && a != 1014) || (b != 21 && b != 1021)) fail("an answer", a * 10000L + b);
}
static void *work(void *p) {
  for (;;) {
    check();
    struct timespec t = {0, 2000000};
    long r = nanosleep(&t, 0);
    if (r) fail("nanosleep", r);
  }
  return p;
}
static void *in_epoll(void *p) {
  int e = epoll_create1(0); struct epoll_event event;
  for (;;) { long r = epoll_wait(e, &event, 1, 50); if (r) fail("epoll_wait", r); }
  return p;
}
static void *in_recv(void *p) {
  int pair[2]; char byte; struct timeval t = {0, 50000};
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) fail("socketpair", 0);
  setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
  for (;;) { long r = recv(pair[0], &byte, 1, 0); if (r != -1 || errno != EAGAIN) fail("recv", r); }
  return p;
}
static void *in_sigwait(void *p) {
  sigset_t s; siginfo_t i; sigemptyset(&s); sigaddset(&s, SIGUSR2);
  struct timespec t = {0, 50000000};
  for (;;) { long r = sigtimedwait(&s, &i, &t); if (r != -1 || errno != EAGAIN) fail("sigtimedwait", r); }
  return p;
}
static void *brief(void *p) { check(); return p; }
// As many a second as are wanted, where the machine can: after each millisecond those that are due.
static void *maker(void *p) {
  struct timespec begin, now;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (double made = 0;;) {
    struct timespec moment = {0, 1000000};
    nanosleep(&moment, 0);
    clock_gettime(CLOCK_MONOTONIC, &now);
    double due = ((double)(now.tv_sec - begin.tv_sec) + 1e-9 * (double)(now.tv_nsec - begin.tv_nsec)) * BIRTHS / 3;
    for (int n = 0; made < due && n < 50; n++, made++) {
      pthread_t t;
      if (pthread_create(&t, 0, brief, 0) || pthread_join(t, 0)) fail("a thread", 0);
      __sync_fetch_and_add(&born, 1);
    }
    if (due - made > 100) made = due - 100; // what a busy machine has missed is not made up for
  }
  return p;
}
static void on(int s, siginfo_t *i, void *c) {
  (void)s; (void)c; __sync_fetch_and_add(&got, 1); __sync_fetch_and_add(&sum, i->si_value.sival_int);
}
static void *take(void *p) {
  sigset_t s; sigemptyset(&s); sigaddset(&s, SIGRTMIN + 3); pthread_sigmask(SIG_UNBLOCK, &s, 0);
  for (;;) { pause(); check(); }
  return p;
}
int main(int argc, char **argv) {
  long n = atol(argv[1]); pid_t self = getpid(); pthread_t t; sigset_t s;
  struct sigaction a = {.sa_sigaction = on, .sa_flags = SA_SIGINFO | SA_RESTART}; sigaction(SIGRTMIN + 3, &a, 0);
  sigemptyset(&s); sigaddset(&s, SIGRTMIN + 3); sigaddset(&s, SIGUSR2); pthread_sigmask(SIG_BLOCK, &s, 0);
  pid_t child = fork();
  if (!child) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (long i = 1; i <= n; i++) {
      union sigval v = {.sival_int = (int)i};
      while (sigqueue(self, SIGRTMIN + 3, v)) { if (errno != EAGAIN) _exit(1); usleep(100); }
      if (i % 15 == 0) usleep(10000);
    }
    _exit(0);
  }
  void *(*all[])(void *) = {work, in_epoll, in_recv, in_sigwait};
  for (int i = 0; i < 56; i++) pthread_create(&t, 0, all[i % 4], 0);
  for (int i = 0; i < 3; i++) pthread_create(&t, 0, maker, 0);
  for (int i = 0; i < 4; i++) pthread_create(&t, 0, take, 0);
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'a') printf("%d %d\n", twice(atoi(line + 2)), thrice(atoi(line + 2)));
    if (line[0] == 'b') printf("%ld\n", born);
    if (line[0] == 'w') {
      int st; waitpid(child, &st, 0);
      while (got < n) usleep(1000);
      printf("%d %ld %ld\n", st, got, sum);
    }
    fflush(stdout);
  }
  return argc > 99;
}
"""
)


@dataclass
class Client:
    """Asks, and checks each answer; `wrong` are answers of neither build."""

    server: Server
    asked: int = 0
    wrong: list[str] = field(default_factory=list)

    def ask(self) -> bool | None:
        """Whether the new build answers; None for an answer of neither, or of both."""
        x = self.asked % 9 + 1
        self.asked += 1
        answer = self.server.ask(f"a {x}")
        if answer == f"{1000 + 2 * x} {1000 + 3 * x}":
            return True
        if answer == f"{2 * x} {3 * x}":
            return False
        self.wrong.append(f"{x}: {answer!r}")
        return None


def patch_again_and_again(file: str, pid: int) -> None:
    """The patcher, a process of its own: applies or reverts for each line, and answers with the pause in ms and its own
    usage."""
    data, po = read_patch(file)
    identity = patch_id(data)
    for line in sys.stdin:
        if line == "apply\n":
            (applied,) = apply_patch(po, identity, [pid], wait=WAIT)
            report = applied.commit
        else:
            (reverted,) = revert_patch([pid], identity, wait=WAIT)
            report = reverted.commit
        assert report is not None
        gc.collect()  # what is not collected yet is no leak
        print(json.dumps([report.pause_us / 1000, report.tries, *_usage("self")]), flush=True)


def _status(pid: int | str, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(name)


def _usage(pid: int | str) -> tuple[int, int, int]:
    """Anonymous memory in kB, mappings, descriptors."""
    maps = Path(f"/proc/{pid}/maps").read_text().count("\n")
    return _status(pid, "RssAnon"), maps, len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


@situation(40, "64 threads, churn and signals: applied and reverted ten times a second")
def test_soak(tmp_path: Path) -> None:
    """A bug: one of a thousand stops loses a signal, lets EINTR through, or leaves something behind."""
    # By hand no patch is made that knows what old callers rely on (-fipa-ra).
    flags = ("-O2", "-fno-ipa-ra", f"-DBIRTHS={BIRTHS_A_SECOND}.0")
    old = build(tmp_path / "old", "server", PROGRAM, flags=flags)
    source = PROGRAM.replace("/*TWICE*/", "if (x) x += 500;").replace("/*THRICE*/", "if (x) return 1000 + 3 * x;")
    new = build(tmp_path / "new", "server", source, flags=flags)
    file = write_patch(tmp_path, patch_from(old, new, ("twice", "thrice")))
    most_tries = 0
    signals = int(SECONDS * SIGNALS_A_SECOND)
    usage: list[tuple[int, int, int]] = []
    own: list[tuple[int, int, int]] = []
    pauses: list[float] = []
    with serving(old.output, str(signals)) as server:
        code = code_of(server.pid)
        assert len(os.listdir(f"/proc/{server.pid}/task")) >= THREADS  # noqa: PTH208
        client = Client(server)
        program = f"from tests.live.test_soak import *; patch_again_and_again({str(file)!r}, {server.pid})"
        begun = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as patcher:
            assert patcher.stdin is not None
            assert patcher.stdout is not None
            while time.monotonic() < begun + SECONDS:
                for is_new in (True, False):
                    due = time.monotonic() + PERIOD
                    patcher.stdin.write("apply\n" if is_new else "revert\n")
                    patcher.stdin.flush()
                    while not select.select([patcher.stdout], [], [], 0.002)[0]:
                        client.ask()
                    line = patcher.stdout.readline()
                    assert line, "the patcher died"
                    pause, tries, *used = json.loads(line)
                    assert client.ask() is is_new
                    pauses.append(pause)
                    most_tries = max(most_tries, tries)
                    while time.monotonic() < due:
                        assert client.ask() is is_new
                        select.select([], [], [], 0.002)
                usage.append(_usage(server.pid))
                own.append((used[0], used[1], used[2]))
            patcher.stdin.close()
        assert server.ended is None, "the target died"
        assert not client.wrong
        assert server.ask("w") == f"0 {signals} {signals * (signals + 1) // 2}"
        born = int(server.ask("b"))
        assert code_of(server.pid) == code
    elapsed = time.monotonic() - begun
    quarter = max(1, len(usage) // 4)
    late, early = usage[-quarter:], usage[quarter : 2 * quarter] or usage[:quarter]
    own_late, own_early = own[-quarter:], own[quarter : 2 * quarter] or own[:quarter]
    highest = statistics.quantiles(pauses, n=100, method="inclusive")[98]
    print(
        f"\nsoak: {elapsed:.0f} s, {len(pauses)} applied or reverted, {client.asked} answers, {signals} signals, "
        f"{born} threads born ({born / elapsed:.0f} a second); "
        f"pause median {statistics.median(pauses):.2f} ms, largest {max(pauses):.1f} ms, "
        f"99 % at most {highest:.1f} ms; at most {most_tries} tries"
    )
    names = ("memory (kB)", "mappings", "descriptors")
    for who, before, after in (("target", early, late), ("patcher", own_early, own_late)):
        for n, (name, slack) in enumerate(zip(names, (1024, 6, 2), strict=True)):
            first, last = (statistics.median(u[n] for u in part) for part in (before, after))
            print(f"  {who} {name}: {first:.0f} after the first quarter, {last:.0f} in the last")
            assert last <= first + slack, f"{who}: {name} grew from {first} to {last}"
