"""The C programs that the live tests patch.  Each speaks a line protocol: "ready", then one answer line a command."""

from __future__ import annotations

HEAD = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define NOINLINE __attribute__((noinline, noclone))
static volatile int seen; // makes `answer` long enough for a jump
static void say(const char *text) { puts(text); fflush(stdout); }
// A child that does not outlive the test.
static inline pid_t fork_child(void) {
  pid_t pid = fork();
  if (!pid) prctl(PR_SET_PDEATHSIG, SIGKILL);
  return pid;
}
"""

COUNTER = (
    HEAD
    + r"""
static int calls;
__thread int mine = 7;
const int *keep = 0;
int (*hook)(int) = 0;
static const char *const names[] = {"one", "two", "three"};
const char *const *volatile table = names;
NOINLINE int helper(int x) { return x + 1; }
/*GLOBALS*/
NOINLINE int answer(int x) { /*ANSWER*/ calls++; return helper(x); }
NOINLINE int other(int x) { /*OTHER*/ return x - 1; }
static void *idle(void *unused) {
  int e = epoll_create1(0); struct epoll_event ev;
  epoll_wait(e, &ev, 1, -1); return unused;
}
int main(int argc, char **argv) {
  int n = argc > 1 ? atoi(argv[1]) : 0;
  pthread_t t;
  for (int i = 0; i < n; i++) pthread_create(&t, 0, idle, 0);
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    int x = atoi(line + 2);
    switch (line[0]) {
    case 'a': printf("%d\n", answer(x)); break;
    case 'o': printf("%d\n", other(x)); break;
    case 'c': printf("%d\n", calls); break;
    case 'm': printf("%d\n", mine); break;
    case 'n': printf("%s\n", table[x]); break;
    case 'h': printf("%d\n", hook ? hook(x) : -1); break;
    }
    fflush(stdout);
  }
  return 0;
}
"""
)

# A thread that stays inside `answer` (below it: wait_inside, in read) until a byte comes through the pipe.
INSIDE = (
    HEAD
    + r"""
static int gate[2];
static int calls;
NOINLINE void wait_inside(void) { char byte; say("inside"); while (read(gate[0], &byte, 1) < 0) {} }
NOINLINE int answer(int x) { if (x < 0) wait_inside(); calls++; /*ANSWER*/ return x + 1; }
static void *enter(void *unused) { printf("left %d\n", answer(-5)); fflush(stdout); return unused; }
int main(void) {
  if (pipe(gate)) return 1;
  say("ready");
  char line[200];
  pthread_t t;
  while (fgets(line, sizeof line, stdin)) {
    switch (line[0]) {
    case 'a': printf("%d\n", answer(atoi(line + 2))); break;
    case 'i': pthread_create(&t, 0, enter, 0); break;
    case 'l': if (write(gate[1], "x", 1) != 1) return 1; break;
    }
    fflush(stdout);
  }
  return 0;
}
"""
)

# Threads that block in system calls which report how they ended.
BLOCKING = (
    HEAD
    + r"""
static int pair[2], waker[2];
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
static pthread_barrier_t all;
static char results[4][80];
static int tids[4], arrived;
static void arrive(void) { tids[__sync_fetch_and_add(&arrived, 1)] = gettid(); pthread_barrier_wait(&all); }
static void *in_epoll(void *unused) {
  int e = epoll_create1(0); struct epoll_event ev = {.events = EPOLLIN}, got;
  epoll_ctl(e, EPOLL_CTL_ADD, waker[0], &ev);
  arrive();
  int r = epoll_wait(e, &got, 1, -1);
  snprintf(results[0], 80, "epoll %d %d", r, r < 0 ? errno : 0); return unused;
}
static void *in_sleep(void *unused) {
  struct timespec t = {2, 0}, rest = {0, 0};
  arrive();
  int r = nanosleep(&t, &rest);
  snprintf(results[1], 80, "nanosleep %d %d", r, r < 0 ? errno : 0); return unused;
}
static void *in_recv(void *unused) {
  struct timeval t = {60, 0}; char byte;
  setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
  arrive();
  int r = recv(pair[0], &byte, 1, 0);
  snprintf(results[2], 80, "recv %d %d", r, r < 0 ? errno : 0); return unused;
}
static void *in_sigwait(void *unused) {
  sigset_t s; siginfo_t i; sigemptyset(&s); sigaddset(&s, SIGUSR2);
  arrive();
  int r = sigwaitinfo(&s, &i);
  snprintf(results[3], 80, "sigwaitinfo %d %d", r, r < 0 ? errno : 0); return unused;
}
static int blocked_in(int tid) {
  char name[64], text[64]; snprintf(name, sizeof name, "/proc/self/task/%d/syscall", tid);
  FILE *f = fopen(name, "r"); if (!f) return 0;
  int ok = fgets(text, sizeof text, f) && text[0] >= '0' && text[0] <= '9' && strncmp(text, "202 ", 4);
  fclose(f); return ok;
}
int main(void) {
  pthread_t t[4]; sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); pthread_sigmask(SIG_BLOCK, &s, 0);
  if (pipe(waker) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
  pthread_barrier_init(&all, 0, 5);
  void *(*f[4])(void *) = {in_epoll, in_sleep, in_recv, in_sigwait};
  for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, f[i], 0);
  pthread_barrier_wait(&all);
  for (int i = 0; i < 4;) if (blocked_in(tids[i])) i++;
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'a') printf("%d\n", answer(atoi(line + 2)));
    if (line[0] == 'w') {
      if (write(waker[1], "x", 1) != 1 || write(pair[1], "x", 1) != 1) return 1;
      pthread_kill(t[3], SIGUSR2);
      for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
      printf("%s, %s, %s, %s\n", results[0], results[1], results[2], results[3]);
    }
    fflush(stdout);
  }
  return 0;
}
"""
)

# Counts real-time signals; "f N" makes a child send N of them, each with its number, "w" waits for the child.
SIGNALS = (
    HEAD
    + r"""
static volatile int got; static volatile long sum;
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
static void on(int s, siginfo_t *i, void *c) {
  (void)s; (void)c; __sync_fetch_and_add(&got, 1); __sync_fetch_and_add(&sum, i->si_value.sival_int);
}
static void *spin(void *unused) {
  for (;;) { volatile int x = 0; for (int i = 0; i < 1000; i++) x += answer(i); }
  return unused;
}
int main(void) {
  struct sigaction a = {.sa_sigaction = on, .sa_flags = SA_SIGINFO | SA_RESTART}; sigaction(SIGRTMIN + 3, &a, 0);
  pthread_t t; for (int i = 0; i < 3; i++) pthread_create(&t, 0, spin, 0);
  say("ready");
  char line[200]; pid_t child = 0; int sent = 0;
  while (fgets(line, sizeof line, stdin)) {
    int n = atoi(line + 2);
    if (line[0] == 'a') printf("%d\n", answer(n));
    if (line[0] == 'f') {
      pid_t self = getpid(); sent = n;
      child = fork_child();
      if (!child) {
        for (int i = 1; i <= n; i++) {
          union sigval v = {.sival_int = i};
          while (sigqueue(self, SIGRTMIN + 3, v)) { if (errno != EAGAIN) _exit(1); usleep(100); }
          if (i % 50 == 0) usleep(1000);
        }
        _exit(0);
      }
      printf("flooding\n");
    }
    if (line[0] == 'w') {
      int s; waitpid(child, &s, 0);
      // A thread that has taken one may wait for a processor, and its handler has not counted it.
      for (int i = 0; i < 10000 && got < sent; i++) usleep(1000);
      printf("%d %d %ld\n", s, got, sum);
    }
    fflush(stdout);
  }
  return 0;
}
"""
)

# Threads come and go all the time, each calling `answer`.
CHURN = (
    HEAD
    + r"""
static volatile long born;
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
static void *brief(void *p) { __sync_fetch_and_add(&born, answer(0) != 0); return p; }
static void *maker(void *p) {
  for (;;) { pthread_t t; if (!pthread_create(&t, 0, brief, 0)) pthread_join(t, 0); }
  return p;
}
int main(void) {
  pthread_t t; for (int i = 0; i < 4; i++) pthread_create(&t, 0, maker, 0);
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'a') printf("%d\n", answer(atoi(line + 2)));
    if (line[0] == 'b') printf("%ld\n", born);
    fflush(stdout);
  }
  return 0;
}
"""
)

# A parent with two children; each answers on its own pipe through the parent: "a CHILD X"; "i CHILD" goes inside.
PREFORK = (
    HEAD
    + r"""
static int to[3][2], from[3][2], gate[2];
NOINLINE void wait_inside(void) { char byte; while (read(gate[0], &byte, 1) < 0) {} }
NOINLINE int answer(int x) { if (x == -1) { write(from[2][1], "i", 1); wait_inside(); } /*ANSWER*/ return x + 1; }
static void child(int n) {
  int x;
  while (read(to[n][0], &x, sizeof x) == sizeof x) { x = answer(x); write(from[n][1], &x, sizeof x); }
  _exit(0);
}
int main(void) {
  for (int n = 0; n < 3; n++) if (pipe(to[n]) || pipe(from[n])) return 1;
  if (pipe(gate)) return 1;
  pid_t pid[2];
  for (int n = 0; n < 2; n++) if (!(pid[n] = fork_child())) child(n);
  printf("ready\n%d %d\n", pid[0], pid[1]); fflush(stdout);
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    int n = line[2] - '0', x = atoi(line + 4);
    if (line[0] == 'a' && n == 2) { printf("%d\n", answer(x)); }
    else if (line[0] == 'a') { write(to[n][1], &x, sizeof x); read(from[n][0], &x, sizeof x); printf("%d\n", x); }
    else if (line[0] == 'i') {
      char byte; x = -1;
      write(to[n][1], &x, sizeof x); read(from[2][0], &byte, 1); printf("inside\n");
    }
    else if (line[0] == 'l') { write(gate[1], "x", 1); read(from[n][0], &x, sizeof x); printf("%d\n", x); }
    fflush(stdout);
  }
  return 0;
}
"""
)

# A parent and two children, each of which forks workers all the time: some end at once, some after a while, and some
# fork another before.  "w": how many so far; "k": a child that stays.
FORKING = (
    HEAD
    + r"""
static volatile unsigned long *forked;
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
static void worker(int n) {
  if (n % 3 == 2 && !fork_child()) { usleep(50000); _exit(answer(0) == 0); }
  usleep(n % 5 * 30000); _exit(answer(0) == 0);
}
static void *fork_workers(void *unused) {
  for (int n = 0;; n++) {
    pid_t pid = fork_child();
    if (!pid) worker(n);
    __atomic_add_fetch(forked, 1, __ATOMIC_RELAXED);
    usleep(5000);
    while (waitpid(-1, 0, WNOHANG | __WALL) > 0) {}
  }
  return unused;
}
int main(void) {
  forked = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  for (int n = 0; n < 2; n++) if (!fork_child()) fork_workers(0);
  pthread_t t; pthread_create(&t, 0, fork_workers, 0);
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'a') printf("%d\n", answer(atoi(line + 2)));
    else if (line[0] == 'k') {
      pid_t pid = fork_child();
      if (!pid) for (;;) pause();
      printf("%d\n", pid);
    } else printf("%lu\n", *forked);
    fflush(stdout);
  }
  return 0;
}
"""
)

# A filter that kills the process for memfd_create and for mmap with PROT_EXEC.
SECCOMP = (
    HEAD
    + r"""
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
int main(void) {
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 319, 2, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 9, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
  struct sock_fprog program = {5, code};
  setvbuf(stdout, 0, _IONBF, 0);
  char line[200];
  puts("ready"); fgets(line, sizeof line, stdin);
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 1;
  puts("confined");
  while (fgets(line, sizeof line, stdin)) printf("%d\n", answer(atoi(line + 2)));
  return 0;
}
"""
)
