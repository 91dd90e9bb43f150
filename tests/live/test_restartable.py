"""Restartable sequences (rseq(2)), as memory allocators use them: a thread that lost its processor inside one must not
go on in it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.live.handmade import build, patch_from
from tests.live.programs import HEAD
from tests.live.server import katana, serving, write_patch
from tests.live.situations import situation

ROUNDS = 12

# The first thread, which makes katana's calls, is in its sequence nearly always.  At the end of it, it looks whether
# the kernel still knows of it: 0 there means that nothing would have undone what was begun on another processor.
SOURCE = (
    HEAD
    + r"""
#include <stddef.h>
#include <sys/rseq.h>
static volatile long committed, aborted, forgotten;
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
static void *serve(void *unused) {
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    switch (line[0]) {
    case 'a': printf("%d\n", answer(atoi(line + 2))); break;
    case 'r': printf("%ld %ld %ld\n", committed, aborted, forgotten); break;
    }
    fflush(stdout);
  }
  _exit(0);
  return unused;
}
static struct rseq *mine(void) { return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset); }
NOINLINE static void sequence(struct rseq *r) {
  __asm__ goto(
      ".pushsection __rseq_cs, \"aw\"\n .balign 32\n"
      "3: .long 0, 0\n .quad 1f, 2f - 1f, 4f\n .popsection\n"
      "lea 3b(%%rip), %%rax\n mov %%rax, %c[cs](%[r])\n"
      "1: mov $3000000, %%rcx\n"
      "5: dec %%rcx\n jnz 5b\n"
      "cmpq $0, %c[cs](%[r])\n"
      "2: je %l[lost]\n jmp %l[done]\n"
      ".pushsection __rseq_failure, \"ax\"\n .byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n"
      "4: jmp %l[again]\n .popsection\n"
      :: [r] "r"(r), [cs] "i"(offsetof(struct rseq, rseq_cs)) : "rax", "rcx", "memory", "cc" : lost, done, again);
done: committed++; return;
lost: forgotten++; return;
again: aborted++;
}
int main(void) {
  pthread_t t;
  if (!__rseq_size) { say("none"); return 0; }
  pthread_create(&t, 0, serve, 0);
  say("ready");
  for (;;) sequence(mine());
}
"""
)


@situation(42, "threads inside a restartable sequence (rseq): the abort handler runs")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the sequence is written for x86-64")
def test_sequence_that_a_stop_falls_into_is_aborted(tmp_path: Path) -> None:
    """A bug: a thread that made system calls for katana went on in its sequence, on whatever processor it was now."""
    old = build(tmp_path / "old", "server", SOURCE)
    new = build(tmp_path / "new", "server", SOURCE.replace("/*ANSWER*/", "x *= 10;"))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output) as server:
        for _ in range(ROUNDS):
            before = int(server.ask("r").split()[1])
            assert katana("apply", patch, "--pid", server.pid).returncode == 0
            assert server.ask("a 1") == "11"
            assert katana("revert", "--pid", server.pid).returncode == 0
            assert server.ask("a 1") == "2"
            while int(server.ask("r").split()[0]) == 0:
                pass
            committed, aborted, forgotten = (int(word) for word in server.ask("r").split())
            assert forgotten == 0
            assert aborted > before
        assert committed > 0
