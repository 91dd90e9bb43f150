"""The heap of a process as it is read from outside, against what the process itself knows of it."""

from __future__ import annotations

import random
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from katana_cc.errors import RefusedError
from katana_cc.process.allocation import Blocks
from katana_cc.process.heap import Heap, find_allocator, look
from katana_cc.process.imports import Linker
from katana_cc.process.memory import BulkReader
from katana_cc.process.target import Target
from tests.live.handmade import run
from tests.live.server import Server, serving

PROGRAM = r"""
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static void *kept[40000];
static int taken;
/* Commands of a thread, one after the other: nothing else runs meanwhile. */
static void work(const char *line) {
  unsigned long a, b;
  switch (line[0]) {
  case 'm': sscanf(line + 1, "%lu", &a); kept[taken++] = malloc(a); break;
  case 'c': sscanf(line + 1, "%lu", &a); kept[taken++] = calloc(1, a); break;
  case 'a': sscanf(line + 1, "%lu %lu", &a, &b); kept[taken++] = memalign(b, a); break;
  case 'r': sscanf(line + 1, "%lu %lu", &a, &b); kept[a % taken] = realloc(kept[a % taken], b); break;
  case 'f': sscanf(line + 1, "%lu", &a); free(kept[a % taken]); kept[a % taken] = 0; break;
  }
}
static const char *given;
static pthread_barrier_t begin, end;
static void *thread(void *mine) {
  for (int turn = 0;; turn++) {
    pthread_barrier_wait(&begin);
    if (turn % 3 == (int)(long)mine) work(given);
    pthread_barrier_wait(&end);
  }
}
int main(int argc, char **argv) {
  setvbuf(stdin, 0, _IONBF, 0);
  setvbuf(stdout, 0, _IONBF, 0);
  pthread_t t;
  pthread_barrier_init(&begin, 0, 4);
  pthread_barrier_init(&end, 0, 4);
  if (argc > 1) for (long i = 0; i < 3; i++) pthread_create(&t, 0, thread, (void *)i);
  puts("ready");
  static char line[100];
  int turn = 0;
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == '?') {
      for (int i = 0; i < taken; i++)
        if (kept[i]) printf("%lu %zu\n", (unsigned long)kept[i], malloc_usable_size(kept[i]));
      puts("end");
    } else if (argc > 1 && turn++ % 4) {
      given = line;
      pthread_barrier_wait(&begin);
      pthread_barrier_wait(&end);
    } else work(line);
  }
}
"""


def _build(folder: Path, source: str = PROGRAM, *flags: str) -> Path:
    file, out = folder / "program.c", folder / "program"
    file.write_text(source)
    run("gcc", "-O1", "-g", *flags, file, "-o", out, "-pthread")
    return out


@contextmanager
def _looking(server: Server) -> Iterator[Heap]:
    with Target(server.pid) as target:
        allocator = find_allocator(target, Linker.of(target.memory, target.modules))
        yield look(target, allocator, target.read_map(), BulkReader(target.memory, 1 << 20))


def _commands(seed: int, count: int) -> Iterator[str]:
    random.seed(seed)
    made = 0
    for _ in range(count):
        size = random.choice((8, 24, 25, 56, 100, 120, 121, 640, 1000, 1032, 1033, 5000, 40000, 200000))
        kind = random.choice("mmcmfffarf" if made else "m")
        made += kind in "mca"
        if kind == "a":
            yield f"a {size} {random.choice((16, 64, 256, 4096, 1 << 16))}"
        elif kind == "r":
            yield f"r {random.randrange(made)} {size}"
        else:
            yield f"{kind} {random.randrange(made) if kind == 'f' else size}"


@pytest.mark.parametrize("threads", ["one thread", "four threads"])
@pytest.mark.parametrize("build", [(), ("-static",), ("-no-pie",)], ids=["pie", "static", "no-pie"])
def test_blocks_are_those_that_the_process_holds(tmp_path: Path, threads: str, build: tuple[str, ...]) -> None:
    """What the program freed must be free (thread caches and fast bins look used), what it holds of its size."""
    with serving(_build(tmp_path, PROGRAM, *build), *(["x"] if threads == "four threads" else [])) as server:
        freed: set[int] = set()
        held: dict[int, int] = {}
        for seed in range(4):
            for command in _commands(seed, 800):
                server.tell(command)
            server.tell("?")
            now = {}
            while (line := server.line()) != "end":
                address, usable = map(int, line.split())
                now[address] = usable
            freed = (freed | set(held)) - set(now)
            held = now
            with _looking(server) as heap:
                assert len(held) > 100
                for address, usable in held.items():
                    assert heap.at(address) == (address, usable, True)
                    assert heap.at(address + usable - 1) == (address, usable, True)
                    before = heap.at(address - 1)
                    assert before is None or before.start + before.size <= address
                for address in freed:
                    block = heap.at(address)
                    assert block is None or not block.is_used or block.start != address, hex(address)
                # What else is in use are the program's and the library's few own blocks.
                own = set(heap.used) - set(held)
                assert len(own) < 40, own
                ours = {a: usable for a, usable in held.items() if usable < 100_000}
                assert heap.used.items() >= ours.items()


def test_an_allocator_of_the_program_is_refused_by_name(tmp_path: Path) -> None:
    """Blocks of a malloc that is not glibc's would be taken for what they are not."""
    own = r"""
#include <stdio.h>
static char pool[1 << 20]; static unsigned long at;
void *malloc(unsigned long n) { void *p = pool + at; at += (n + 15) & -16; return p; }
void free(void *p) { (void)p; }
void *calloc(unsigned long n, unsigned long m) { return malloc(n * m); }
void *realloc(void *p, unsigned long n) { (void)p; return malloc(n); }
int main(void) { puts("ready"); fflush(stdout); return getchar(); }
"""
    with (
        serving(_build(tmp_path, own)) as server,
        pytest.raises(RefusedError, match="not glibc's"),
        _looking(server),
    ):
        pass


@pytest.mark.parametrize("threads", ["one thread", "four threads"])
def test_blocks_are_had_and_given_back_through_the_targets_own_malloc(tmp_path: Path, threads: str) -> None:
    """More than one batch of them; the process goes on as if nothing had been."""
    with serving(_build(tmp_path), *(["x"] if threads == "four threads" else [])) as server:
        server.tell("m 100")
        assert server.ask("?").endswith(" 104")
        assert server.line() == "end"
        with Target(server.pid) as target:
            allocator = find_allocator(target, Linker.of(target.memory, target.modules))
            before = list(target.regions.regions)
            blocks = Blocks(target, allocator, 5)
            got = blocks.allocate(72, 20_000)
            assert len(set(got)) == 20_000
            with _looking(server) as heap:
                assert {heap.at(a) for a in got} == {(a, 72, True) for a in got}
            for at in got:
                target.memory.write(at, struct.pack("<9Q", *(at + 16,) * 9))
            blocks.release(got)
            with _looking(server) as heap:
                assert not heap.used.keys() & set(got)
            # A katana that is killed now leaves them behind, and words in them must not lead anywhere.
            again = blocks.allocate(72, 5000)
            assert set(again) & set(got)
            assert not any(any(target.memory.read(at, 72)) for at in again)
            blocks.release(again)
            assert [r.path for r in before if r.path] == [r.path for r in target.read_map().regions if r.path]
        server.tell("m 100")
        assert server.ask("?").endswith(" 104")


def test_memory_that_is_not_there_is_refused_and_given_back(tmp_path: Path) -> None:
    with serving(_build(tmp_path)) as server, Target(server.pid) as target:
        server.tell("m 100")
        assert server.ask("?").endswith(" 104")
        assert server.line() == "end"
        allocator = find_allocator(target, Linker.of(target.memory, target.modules))
        with _looking(server) as heap:
            before = len(heap.used)
        resource.prlimit(server.pid, resource.RLIMIT_AS, (1 << 27, 1 << 27))
        with pytest.raises(RefusedError, match="no memory for 50 more blocks"):
            Blocks(target, allocator, 5).allocate(10_000_000, 50)
        with _looking(server) as heap:
            assert len(heap.used) == before
        server.tell("m 100")
        assert server.ask("?").endswith(" 104")
