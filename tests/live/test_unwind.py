"""The unwinder against gdb, on live threads."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from katana_cc.dwarf.unwind import Backtrace
from katana_cc.process import ptrace_binding as pt
from katana_cc.process.activity import backtrace_of
from katana_cc.process.cfi import FrameTables
from katana_cc.process.target import Target
from katana_cc.process.threads import Threads
from tests.live.handmade import build
from tests.live.programs import HEAD
from tests.live.server import serving

# Threads in a signal handler on an alternate stack, in qsort's callback, deep in recursion, in a vDSO or libc call.
DEEP = (
    HEAD
    + r"""
static int gate[2], tids[4], arrived; static pthread_barrier_t all;
static NOINLINE void hold(void) {
  char byte;
  tids[__sync_fetch_and_add(&arrived, 1)] = gettid();
  pthread_barrier_wait(&all);
  while (read(gate[0], &byte, 1) < 0) {}
}
static NOINLINE int deep(int n) { if (!n) { hold(); return 0; } return deep(n - 1) + 1; }
static void on_signal(int s) { (void)s; hold(); }
static int compare(const void *a, const void *b) {
  static int once; if (!once++) hold();
  return *(const int *)a - *(const int *)b;
}
static void *recursing(void *p) { printf("%d", deep(30)); return p; }
static void *sorting(void *p) { int v[] = {3, 1, 2}; qsort(v, 3, sizeof *v, compare); printf("%d", v[0]); return p; }
static void *handling(void *p) {
  stack_t s = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16}; sigaltstack(&s, 0);
  struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK}; sigaction(SIGUSR1, &a, 0);
  pthread_kill(pthread_self(), SIGUSR1); printf("handled"); return p;
}
static NOINLINE int variable(int n) { volatile char room[n]; room[0] = 1; hold(); return room[0]; }
static void *framed(void *p) { printf("%d", variable(1000)); return p; }
int main(void) {
  if (pipe(gate)) return 1;
  pthread_barrier_init(&all, 0, 5);
  void *(*f[])(void *) = {recursing, sorting, handling, framed};
  pthread_t t;
  for (int i = 0; i < 4; i++) pthread_create(&t, 0, f[i], 0);
  pthread_barrier_wait(&all);
  for (int i = 0; i < 4;) { // each in read() now
    char name[64], text[64] = ""; snprintf(name, sizeof name, "/proc/self/task/%d/syscall", tids[i]);
    FILE *file = fopen(name, "r");
    if (file) { if (fgets(text, sizeof text, file) && !strncmp(text, "0 ", 2)) i++; fclose(file); }
  }
  say("ready");
  char line[10]; return !fgets(line, sizeof line, stdin);
}
"""
)


def unwind_all(pid: int) -> dict[int, Backtrace]:
    """Our backtraces by thread."""
    with Target(pid) as target:
        tables = FrameTables(target.memory, target.modules, ())
        threads = Threads(pid)
        try:
            threads.seize()
            threads.stop()
            threads.read_registers()
            return {
                tid: backtrace_of(
                    tables.unwinder(), list(threads.registers[i * pt.REGISTER_WORDS : (i + 1) * pt.REGISTER_WORDS])
                )
                for i, tid in enumerate(threads.order)
            }
        finally:
            threads.release()


def gdb_all(pid: int, program: Path) -> dict[int, list[int]]:
    """gdb's: the pc of every physical frame by thread.  Inlined frames and guessed tail calls are none."""
    script = (
        "import gdb\n"
        "for t in gdb.selected_inferior().threads():\n"
        "    t.switch(); f = gdb.newest_frame(); pcs = []\n"
        "    while f:\n"
        "        if f.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME): pcs.append(f.pc())\n"
        "        f = f.older()\n"
        "    print('THREAD', t.ptid[1], *pcs)\n"
    )
    file = program.parent / "frames.py"
    file.write_text(script)
    words = ["gdb", "-nx", "-batch", "-ex", "set debuginfod enabled off", "-ex", "set backtrace past-main on"]
    done = subprocess.run(
        [*words, "-p", str(pid), "-x", str(file)], capture_output=True, text=True, check=False
    )  # fmt: skip
    return {int(m[1]): [int(x) for x in m[2].split()] for m in re.finditer(r"^THREAD (\d+) (.*)$", done.stdout, re.M)}


@pytest.mark.parametrize("flags", [("-O0",), ("-O2",), ("-O2", "-fno-omit-frame-pointer"), ("-Os",)], ids=" ".join)
@pytest.mark.parametrize("link", [(), ("-static",)], ids=["dynamic", "static"])
def test_backtraces_are_those_of_gdb(tmp_path: Path, flags: tuple[str, ...], link: tuple[str, ...]) -> None:
    """A bug: a frame is missed, invented, or unwound with the row of the neighbouring function."""
    program = build(tmp_path, "deep", DEEP, flags=flags, link=link)
    with serving(program.output) as server:
        theirs = gdb_all(server.pid, program.output)
        ours = unwind_all(server.pid)
        assert len(theirs) == 5
        assert {tid: [f.pc for f in trace.frames] for tid, trace in ours.items()} == theirs
        assert all(trace.is_complete for trace in ours.values()), [t.why for t in ours.values()]
