"""Cancellation, terminals and job control: what a program and its shell see of threads must not change."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.live.handmade import Built, build, patch_from
from tests.live.programs import HEAD
from tests.live.server import katana, serving, write_patch
from tests.live.situations import situation

ROUNDS = 4

# Threads at points of cancellation; `c` cancels one of each kind, and tells what pthread_join had of it.
CANCELLED = (
    HEAD
    + r"""
static int gate[2];
static volatile int arrived;
static volatile long cleaned;
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
static void clean(void *unused) { __sync_fetch_and_add(&cleaned, 1); }
static void *in_read(void *unused) {
  char byte; pthread_cleanup_push(clean, 0); arrived++; (void)!read(gate[0], &byte, 1); pthread_cleanup_pop(0);
  return unused;
}
static void *in_epoll(void *unused) {
  struct epoll_event ev; int e = epoll_create1(0);
  pthread_cleanup_push(clean, 0); arrived++; epoll_wait(e, &ev, 1, -1); pthread_cleanup_pop(0); return unused;
}
static void *in_cond(void *unused) {
  pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER; pthread_cond_t c = PTHREAD_COND_INITIALIZER;
  pthread_mutex_lock(&m);
  pthread_cleanup_push(clean, 0); arrived++; pthread_cond_wait(&c, &m); pthread_cleanup_pop(0); return unused;
}
static void *in_loop(void *unused) {
  pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, 0);
  pthread_cleanup_push(clean, 0); arrived++; for (;;) seen++; pthread_cleanup_pop(0); return unused;
}
static void *(*const kinds[])(void *) = {in_read, in_epoll, in_cond, in_loop};
static pthread_t threads[4];
int main(void) {
  if (pipe(gate)) return 1;
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'a') printf("%d\n", answer(atoi(line + 2)));
    if (line[0] == 's') {
      arrived = 0;
      for (int i = 0; i < 4; i++) { pthread_create(threads + i, 0, kinds[i], 0); while (arrived <= i) usleep(100); }
      printf("started\n");
    }
    if (line[0] == 'c') {
      int well = 0;
      for (int i = 0; i < 4; i++) pthread_cancel(threads[i]);
      for (int i = 0; i < 4; i++) { void *r = 0; well += !pthread_join(threads[i], &r) && r == PTHREAD_CANCELED; }
      printf("%d %ld\n", well, cleaned);
    }
    fflush(stdout);
  }
  return 0;
}
"""
)

# The foreground job of a terminal: it tells each line that was typed, and each signal of job control that it saw.
JOB = (
    HEAD
    + r"""
static volatile int stops, goes, interrupts;
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
static void on(int number) {
  if (number == SIGTSTP) { stops++; raise(SIGSTOP); }
  if (number == SIGCONT) goes++;
  if (number == SIGINT) interrupts++;
}
int main(void) {
  struct sigaction action = {.sa_handler = on, .sa_flags = SA_RESTART};
  sigaction(SIGTSTP, &action, 0); sigaction(SIGCONT, &action, 0); sigaction(SIGINT, &action, 0);
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    printf("[%s] %d, %d stops, %d goes, %d interrupts\n", line, answer(1), stops, goes, interrupts);
    fflush(stdout);
  }
  printf("end %d\n", ferror(stdin));
  return 0;
}
"""
)


def _pair(folder: Path, source: str) -> tuple[Built, Path]:
    old = build(folder / "old", "server", source)
    new = build(folder / "new", "server", source.replace("/*ANSWER*/", "x *= 10;"))
    return old, write_patch(folder, patch_from(old, new, ("answer",)))


@situation(42, "threads are cancelled (pthread_cancel) that were stopped in the call they wait in")
def test_thread_that_was_stopped_can_be_cancelled(tmp_path: Path) -> None:
    """A bug: a call is entered again behind the point where a thread looks whether it is cancelled."""
    old, patch = _pair(tmp_path, CANCELLED)
    with serving(old.output) as server:
        for number in range(1, ROUNDS + 1):
            assert server.ask("s") == "started"
            assert katana("apply", patch, "--pid", server.pid).returncode == 0
            assert server.ask("a 1") == "11"
            assert katana("revert", "--pid", server.pid).returncode == 0
            assert server.ask("a 1") == "2"
            assert server.ask("c") == f"4 {4 * number}"


@dataclass(frozen=True, slots=True)
class _Job:
    process: subprocess.Popen[bytes]
    end: int  # the other one of its terminal

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def line(self) -> str:
        found = b""
        while not found.endswith(b"\n"):
            found += os.read(self.end, 1)
        return found.decode().strip()

    def settings(self) -> list[object]:
        return termios.tcgetattr(self.end)

    def state(self) -> str:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def foreground(self) -> int:
        return os.tcgetpgrp(self.end)


@contextmanager
def _foreground(program: Path) -> Iterator[_Job]:
    """A program that leads a session of its own, in front of a terminal that does not echo."""
    end, terminal = pty.openpty()
    mode = termios.tcgetattr(terminal)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, mode)
    helper = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    try:
        with subprocess.Popen(
            ["python3", "-c", helper, program], stdin=terminal, stdout=terminal, start_new_session=True
        ) as process:
            os.close(terminal)
            job = _Job(process, end)
            assert job.line() == "ready"
            try:
                yield job
            finally:
                process.kill()
    finally:
        os.close(end)


@situation(42, "the foreground job of a terminal: lines, Ctrl-C, Ctrl-Z and continuing")
def test_foreground_job_keeps_its_terminal(tmp_path: Path) -> None:
    """A bug: a read of the terminal ends early, the job is put into the background, or a SIGCONT appears."""
    old, patch = _pair(tmp_path, JOB)
    with _foreground(old.output) as job:
        pid = job.process.pid
        settings, group = job.settings(), job.foreground()
        job.type("half")
        assert katana("apply", patch, "--pid", pid).returncode == 0
        job.type(" a line\n")
        assert job.line() == "[half a line] 11, 0 stops, 0 goes, 0 interrupts"
        job.type("\x03")
        job.type("interrupted\n")
        assert job.line() == "[interrupted] 11, 0 stops, 0 goes, 1 interrupts"
        job.type("\x1a")
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        assert katana("revert", "--pid", pid).returncode == 0
        assert job.state() == "T", "stopped by Ctrl-Z, and not by us: it stays so"
        os.kill(pid, signal.SIGCONT)
        job.type("on\n")
        assert job.line() == "[on] 2, 1 stops, 1 goes, 1 interrupts"
        assert (job.settings(), job.foreground()) == (settings, group)
        job.type("\x04")
        assert job.line() == "end 0"
        assert job.process.wait() == 0
