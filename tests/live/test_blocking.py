"""Every system call that blocks, with and without a time-out: none ends with EINTR because its process is patched.

A thread for each.  Those without a time-out must not come back at all; those with one come back again and again, and
never with EINTR.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from katana_cc.process.threads import Threads
from tests.live.handmade import build, patch_from
from tests.live.programs import HEAD
from tests.live.server import katana_json, serving, write_patch
from tests.live.situations import situation

ROUNDS = 6

PROGRAM = (
    HEAD
    + r"""
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
static char failures[4000];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile int arrived, rounds;
static const char *folder;
static void failed(const char *name, long r) {
  pthread_mutex_lock(&lock);
  sprintf(failures + strlen(failures), " %s=%ld/%d", name, r, errno);
  pthread_mutex_unlock(&lock);
}
#define STAYS(name, prepare, call) static void *stays_##name(void *p) { \
  prepare; __sync_fetch_and_add(&arrived, 1); errno = 0; long r = (call); failed(#name, r); return p; }
#define RETURNS(name, prepare, call) static void *returns_##name(void *p) { \
  prepare; __sync_fetch_and_add(&arrived, 1); \
  for (;;) { errno = 0; long r = (call); __sync_fetch_and_add(&rounds, 1); \
    if (r < 0 && errno == EINTR) { failed(#name " with a time-out", r); return p; } \
    if (r < 0 && errno != EAGAIN && errno != ETIMEDOUT) { failed(#name " cannot be tested", r); return p; } } }
static int a_pipe(int side) { int ends[2]; if (pipe(ends)) abort(); return ends[side]; }
static int full(int fd) {
  char block[4096] = ""; fcntl(fd, F_SETFL, O_NONBLOCK);
  while (write(fd, block, sizeof block) > 0) {} while (write(fd, block, 1) > 0) {}
  fcntl(fd, F_SETFL, 0); return fd;
}
static int a_socket(int limited) {
  int pair[2]; struct timeval t = {0, 150000};
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) abort();
  if (limited) {
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
  }
  return pair[0];
}
static struct sockaddr_un named(const char *name) {
  struct sockaddr_un a = {.sun_family = AF_UNIX}; snprintf(a.sun_path, 100, "%s/%s", folder, name); return a;
}
static int listening(const char *name, int limited) {
  struct timeval t = {0, 150000}; struct sockaddr_un a = named(name);
  int s = socket(AF_UNIX, SOCK_STREAM, 0);
  if (bind(s, (void *)&a, sizeof a) || listen(s, 0)) abort();
  if (limited) setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
  return s;
}
// A socket whose peer takes no more connections.
static int refused(const char *name, int limited) {
  struct timeval t = {0, 150000}; struct sockaddr_un a = named(name);
  listening(name, 0);
  for (int i = 0; i < 4; i++) {
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0); (void)!connect(s, (void *)&a, sizeof a);
  }
  int s = socket(AF_UNIX, SOCK_STREAM, 0);
  if (limited) setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
  return s;
}
static struct timespec moment = {0, 150000000};
static struct timespec soon(void) {
  struct timespec t; clock_gettime(CLOCK_REALTIME, &t); t.tv_nsec += 150000000;
  if (t.tv_nsec >= 1000000000) { t.tv_sec++; t.tv_nsec -= 1000000000; }
  return t;
}
static sigset_t usr2(void) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); return s; }
static int locked(const char *name, int kind) {
  char path[200]; snprintf(path, 200, "%s/%s", folder, name);
  int fd = open(path, O_RDWR | O_CREAT, 0600), gate = a_pipe(0);
  pid_t child = fork();
  if (!child) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int own = open(path, O_RDWR); struct flock l = {.l_type = F_WRLCK};
    if (kind ? flock(own, LOCK_EX) : fcntl(own, F_SETLK, &l)) _exit(1);
    char byte; strcat(path, ".is"); close(open(path, O_CREAT, 0600));
    while (read(gate, &byte, 1) < 0) {} _exit(0);
  }
  strcat(path, ".is"); while (access(path, F_OK)) usleep(1000);
  return fd;
}
static pid_t a_child(void) {
  pid_t child = fork();
  if (!child) { prctl(PR_SET_PDEATHSIG, SIGKILL); for (;;) pause(); }
  return child;
}
static int a_file(void) {
  char path[200], block[4096] = ""; snprintf(path, 200, "%s/file", folder);
  int fd = open(path, O_RDWR | O_CREAT, 0600); (void)!pwrite(fd, block, sizeof block, 0); return fd;
}
static int epoll(void) { return epoll_create1(0); }
static struct epoll_event event;
static char byte;
static struct iovec one = {&byte, 1};
static struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1};
static struct mmsghdr messages = {.msg_hdr = {.msg_iov = &one, .msg_iovlen = 1}};
static struct io_event done;
static aio_context_t aio(void) { aio_context_t c = 0; if (syscall(SYS_io_setup, 4, &c)) abort(); return c; }
static int ring(void) { struct io_uring_params p; memset(&p, 0, sizeof p); return syscall(SYS_io_uring_setup, 4, &p); }
static sem_t semaphore; static int semaphores, queue;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER; static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct sembuf down = {0, -1, 0};
static struct { long type; char text[8]; } mail;
STAYS(epoll_wait, int e = epoll(), epoll_wait(e, &event, 1, -1))
STAYS(epoll_pwait, int e = epoll(); sigset_t s = usr2(), epoll_pwait(e, &event, 1, -1, &s))
STAYS(epoll_pwait2, int e = epoll(), syscall(441, e, &event, 1, 0, 0, 8))
STAYS(poll, struct pollfd f = {.fd = a_pipe(0) COMMA .events = POLLIN}, poll(&f, 1, -1))
STAYS(ppoll, struct pollfd f = {.fd = a_pipe(0) COMMA .events = POLLIN}, ppoll(&f, 1, 0, 0))
STAYS(select, int f = a_pipe(0); fd_set s; FD_ZERO(&s); FD_SET(f, &s), select(f + 1, &s, 0, 0, 0))
STAYS(pselect, int f = a_pipe(0); fd_set s; FD_ZERO(&s); FD_SET(f, &s), pselect(f + 1, &s, 0, 0, 0, 0))
STAYS(pause, , pause())
STAYS(sigsuspend, sigset_t s = usr2(), sigsuspend(&s))
STAYS(sigwaitinfo, sigset_t s = usr2(); siginfo_t i, sigwaitinfo(&s, &i))
STAYS(read, int f = a_pipe(0), read(f, &byte, 1))
STAYS(readv, int f = a_pipe(0), readv(f, &one, 1))
STAYS(write, int f = full(a_pipe(1)), write(f, "x", 1))
STAYS(recv, int f = a_socket(0), recv(f, &byte, 1, 0))
STAYS(recvmsg, int f = a_socket(0), recvmsg(f, &message, 0))
STAYS(recvmmsg, int f = a_socket(0), recvmmsg(f, &messages, 1, 0, 0))
STAYS(send, int f = full(a_socket(0)), send(f, "x", 1, 0))
STAYS(writev, int f = full(a_pipe(1)), writev(f, &one, 1))
STAYS(sendmsg, int f = full(a_socket(0)), sendmsg(f, &message, 0))
STAYS(sendmmsg, int f = full(a_socket(0)), sendmmsg(f, &messages, 1, 0))
STAYS(splice, int f = a_socket(0); int to = a_pipe(1), splice(f, 0, to, 0, 1, 0))
STAYS(sendfile, int f = full(a_socket(0)); int from = a_file(), sendfile(f, from, 0, 1))
STAYS(accept, int f = listening("a", 0), accept(f, 0, 0))
STAYS(accept4, int f = listening("b", 0), accept4(f, 0, 0, SOCK_CLOEXEC))
STAYS(connect, int f = refused("c", 0); struct sockaddr_un a = named("c"), connect(f, (void *)&a, sizeof a))
STAYS(sem_wait, , sem_wait(&semaphore))
STAYS(cond_wait, pthread_mutex_lock(&mutex), pthread_cond_wait(&condition, &mutex))
STAYS(semop, , semop(semaphores, &down, 1))
STAYS(msgrcv, , msgrcv(queue, &mail, 8, 7, 0))
STAYS(wait4, pid_t c = a_child(), waitpid(c, 0, 0))
STAYS(waitid, pid_t c = a_child(); siginfo_t i, waitid(P_PID, c, &i, WEXITED))
STAYS(fcntl, int f = locked("l", 0); struct flock l = {.l_type = F_WRLCK}, fcntl(f, F_SETLKW, &l))
STAYS(flock, int f = locked("m", 1), flock(f, LOCK_EX))
STAYS(nanosleep, struct timespec t = {10000 COMMA 0}, nanosleep(&t, 0))
STAYS(clock_nanosleep, struct timespec t = {1L << 40 COMMA 0}, clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, 0))
STAYS(io_getevents, aio_context_t c = aio(), syscall(SYS_io_getevents, c, 1L, 1L, &done, 0))
STAYS(io_uring_enter, int f = ring(); if (f < 0) for (;;) pause(), syscall(SYS_io_uring_enter, f, 0, 1, 1, 0, 0))
RETURNS(epoll_wait, int e = epoll(), epoll_wait(e, &event, 1, 150))
RETURNS(epoll_pwait2, int e = epoll(), syscall(441, e, &event, 1, &moment, 0, 8))
RETURNS(poll, struct pollfd f = {.fd = a_pipe(0) COMMA .events = POLLIN}, poll(&f, 1, 150))
RETURNS(ppoll, struct pollfd f = {.fd = a_pipe(0) COMMA .events = POLLIN}, ppoll(&f, 1, &moment, 0))
RETURNS(select, struct timeval t, (t = (struct timeval){0 COMMA 150000}, select(0, 0, 0, 0, &t)))
RETURNS(pselect, , pselect(0, 0, 0, 0, &moment, 0))
RETURNS(sigtimedwait, sigset_t s = usr2(); siginfo_t i, sigtimedwait(&s, &i, &moment))
RETURNS(read, int f = a_socket(1), read(f, &byte, 1))
RETURNS(readv, int f = a_socket(1), readv(f, &one, 1))
RETURNS(recv, int f = a_socket(1), recv(f, &byte, 1, 0))
RETURNS(recvmsg, int f = a_socket(1), recvmsg(f, &message, 0))
RETURNS(recvmmsg, int f = a_socket(1), recvmmsg(f, &messages, 1, 0, 0))
RETURNS(write, int f = full(a_socket(1)), write(f, "x", 1))
RETURNS(writev, int f = full(a_socket(1)), writev(f, &one, 1))
RETURNS(send, int f = full(a_socket(1)), send(f, "x", 1, 0))
RETURNS(sendmsg, int f = full(a_socket(1)), sendmsg(f, &message, 0))
RETURNS(sendmmsg, int f = full(a_socket(1)), sendmmsg(f, &messages, 1, 0))
RETURNS(preadv2, int f = a_socket(1), preadv2(f, &one, 1, -1, 0))
RETURNS(pwritev2, int f = full(a_socket(1)), pwritev2(f, &one, 1, -1, 0))
RETURNS(splice, int f = a_socket(1); int to = a_pipe(1), splice(f, 0, to, 0, 1, 0))
RETURNS(sendfile, int f = full(a_socket(1)); int from = a_file(); off_t at, (at = 0, sendfile(f, from, &at, 1)))
RETURNS(epoll_pwait, int e = epoll(); sigset_t s = usr2(), epoll_pwait(e, &event, 1, 150, &s))
RETURNS(accept, int f = listening("d", 1), accept(f, 0, 0))
RETURNS(accept4, int f = listening("e", 1), accept4(f, 0, 0, 0))
RETURNS(connect, int f = refused("f", 1); struct sockaddr_un a = named("f"), connect(f, (void *)&a, sizeof a))
RETURNS(sem_timedwait, struct timespec t, (t = soon(), sem_timedwait(&semaphore, &t)))
RETURNS(semtimedop, , semtimedop(semaphores, &down, 1, &moment))
RETURNS(nanosleep, , nanosleep(&moment, 0))
RETURNS(clock_nanosleep, , -(errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &moment, 0)))
RETURNS(io_getevents, aio_context_t c = aio(), syscall(SYS_io_getevents, c, 1L, 1L, &done, &moment))
static void *(*const all[])(void *) = {/*ALL*/};
int main(int argc, char **argv) {
  pthread_t t; sigset_t s = usr2(); pthread_sigmask(SIG_BLOCK, &s, 0);
  folder = argv[1]; sem_init(&semaphore, 0, 0);
  semaphores = semget(IPC_PRIVATE, 1, 0600); queue = msgget(IPC_PRIVATE, 0600);
  int count = sizeof all / sizeof *all;
  for (int i = 0; i < count; i++) { pthread_create(&t, 0, all[i], 0); while (arrived <= i) usleep(1000); }
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'a') printf("%d\n", answer(atoi(line + 2)));
    if (line[0] == 'r') printf("%d\n", rounds);
    if (line[0] == 'w') printf("failed:%s\n", failures);
    fflush(stdout);
    if (line[0] == 'q') break;
  }
  semctl(semaphores, 0, IPC_RMID); msgctl(queue, IPC_RMID, 0);
  _exit(argc > 99);
}
"""
)


def _program() -> str:
    kinds = [line.split("(")[1].split(",")[0] for line in PROGRAM.splitlines() if line.startswith("STAYS(")]
    names = [f"stays_{kind}" for kind in kinds]
    kinds = [line.split("(")[1].split(",")[0] for line in PROGRAM.splitlines() if line.startswith("RETURNS(")]
    names += [f"returns_{kind}" for kind in kinds]
    assert len(names) == 67
    # A comma within an argument of a macro.
    return "#define COMMA ,\n" + PROGRAM.replace("/*ALL*/", ", ".join(names))


@pytest.mark.timeout(300)
@situation(42, "37 blocking system calls without a time-out, and 30 with one: no EINTR")
def test_no_blocking_system_call_ends_with_eintr(tmp_path: Path) -> None:
    """A bug: a kind of call that a stop interrupts is neither restarted by the kernel nor entered again."""
    source = _program()
    old = build(tmp_path / "old", "server", source)
    new = build(tmp_path / "new", "server", source.replace("/*ANSWER*/", "static int n; n++; return 10 * x + n;"))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    folder = tmp_path / "f"  # a socket's name is at most 107 bytes long
    folder.mkdir()
    with serving(old.output, folder) as server:
        restarted = 0
        for _ in range(ROUNDS):
            (report,) = katana_json("apply", patch, "--pid", server.pid, "--wait", 30)["processes"]
            restarted += report["restarted_system_calls"]
            assert server.ask("a 1").startswith("1")
            (report,) = katana_json("revert", "--pid", server.pid, "--wait", 30)["processes"]
            restarted += report["restarted_system_calls"]
        assert restarted > 20 * ROUNDS, "too few calls had to be entered again: the test tests little"
        assert server.ask("w") == "failed:"
        before = int(server.ask("r"))
        while int(server.ask("r")) < before + 60:  # they still come back by themselves
            pass
        assert server.ask("w") == "failed:"
        server.tell("q")
        server.finish()


# Huge pages where there are some, for which all kernels can be interrupted; else of tmpfs, for which older ones can.
ALLOCATING = (
    HEAD
    + r"""
#include <fcntl.h>
static volatile int interrupted, rounds;
static void *work(void *p) {
  int f = memfd_create("huge", MFD_HUGETLB);
  if (f < 0 || fallocate(f, 0, 0, 64 << 20)) f = memfd_create("small", 0);
  for (;; rounds++) {
    if (ftruncate(f, 0)) abort();
    if (fallocate(f, 0, 0, 64 << 20)) { if (errno != EINTR) abort(); interrupted++; }
  }
  return p;
}
int main(void) {
  pthread_t t; pthread_create(&t, 0, work, 0);
  while (!rounds) usleep(1000);
  say("ready");
  while (getchar() != EOF) { printf("%d\n", interrupted); fflush(stdout); getchar(); }
  return 0;
}
"""
)


def test_room_for_a_file_is_not_interrupted(tmp_path: Path) -> None:
    """A bug: posix_fallocate(3) of shared memory fails with EINTR in a program that handles no signal."""
    with serving(build(tmp_path, "server", ALLOCATING).output) as server:
        for _ in range(100):
            threads = Threads(server.pid)
            try:
                threads.seize()
                threads.stop(30.0)  # its zeroing of pages cannot be interrupted
                threads.read_registers()
                threads.repair_system_calls()
            finally:
                threads.release()
            os.sched_yield()
        assert server.ask("?") == "0"
