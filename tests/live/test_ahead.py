"""What is found out before the stop, against a look at the whole in the same stop, while threads change everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from katana_cc.errors import BusyError
from katana_cc.patch.codec import patch_id
from katana_cc.patch.files import read_patch
from katana_cc.patch.needs import Grant, Option
from katana_cc.process import objections, rehearsal
from katana_cc.process.apply import apply_patch
from katana_cc.process.carry import Cargo, look
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.repair import UnrepairableError
from katana_cc.process.revert import revert_patch
from katana_cc.process.reverting import Wishes
from tests.live.programs import HEAD
from tests.live.server import Server, serving
from tests.support.outcomes import contents
from tests.support.project import Project, Variant

# A cache: entries in a table that grows, and in a list by when they were last used.
SOURCE = (
    HEAD
    + r"""
struct entry { long key; struct entry *chain, *newer, *older; /*LAST*/};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
struct entry **table, *newest, *oldest;
static long size = 256, count;
static volatile int stop;
static volatile long turns;
static long wrong;
NOINLINE void unlink_entry(struct entry *e) {
  if (e->newer) e->newer->older = e->older; else newest = e->older;
  if (e->older) e->older->newer = e->newer; else oldest = e->newer;
}
NOINLINE void link_entry(struct entry *e) {
  e->newer = 0; e->older = newest;
  if (newest) newest->newer = e; else oldest = e;
  newest = e;
}
NOINLINE void grow(void) {
  struct entry **bigger = calloc(2 * size, sizeof *bigger);
  for (long i = 0; i < size; i++)
    for (struct entry *e = table[i], *next; e; e = next) {
      next = e->chain;
      e->chain = bigger[e->key % (2 * size)]; bigger[e->key % (2 * size)] = e;
    }
  free(table); table = bigger; size *= 2;
}
NOINLINE void use(long key) {
  struct entry *e;
  for (e = table[key % size]; e && e->key != key; e = e->chain);
  if (e) unlink_entry(e);
  else {
    if (count > 2 * size) grow();
    e = calloc(1, sizeof *e);
    e->key = key; e->chain = table[key % size]; table[key % size] = e; count++; /*STAMP*/
  }
  link_entry(e);
}
NOINLINE void evict(void) {
  struct entry *e = oldest, **at;
  if (!e) return;
  unlink_entry(e);
  for (at = &table[e->key % size]; *at != e; at = &(*at)->chain);
  *at = e->chain;
  free(e); count--;
}
static void *churn(void *mine) {
  unsigned seed = (long)mine;
  while (!stop) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 20; i++) { seed = seed * 1103515245 + 12345; use(seed >> 8 & 0x1fff); }
    while (count > 3000) evict();
    turns++;
    pthread_mutex_unlock(&lock);
    volatile char wash[4096]; for (unsigned i = 0; i < sizeof wash; i++) wash[i] = 0;
    char none[40]; snprintf(none, sizeof none, "%d %d %d %d %d", 1, 2, 3, 4, 5);  /* in registers, too */
    usleep(3000);
  }
  return 0;
}
NOINLINE void check(void) {
  long there = 0, listed = 0;
  pthread_mutex_lock(&lock);
  for (long i = 0; i < size; i++)
    for (struct entry *e = table[i]; e; e = e->chain) there += e->key % size == i /*WRONG*/;
  for (struct entry *e = newest; e; e = e->older) listed += !e->older ? e == oldest : e->older->newer == e;
  wrong += there != count || listed != count;
  pthread_mutex_unlock(&lock);
  printf("%ld wrong, size %zu\n", wrong, sizeof(struct entry));
}
int main(void) {
  pthread_t threads[2];
  table = calloc(size, sizeof *table);
  for (int i = 0; i < 2000; i++) use(i * 7919L % 8192);
  for (long i = 0; i < 2; i++) pthread_create(&threads[i], 0, churn, (void *)(i + 1));
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 't') printf("%ld\n", turns);
    else check();
    fflush(stdout);
  }
  stop = 1;
  for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
  return wrong;
}
"""
)
CHANGED = (
    ("/*LAST*/", "long stamp[2]; "),
    ("/*STAMP*/", "e->stamp[1] = 3 * key;"),
    ("/*WRONG*/", "&& (!e->stamp[1] || e->stamp[1] == 3 * e->key)"),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The old program and the patch."""
    project = Project(tmp_path_factory.mktemp("cache"), Variant("gcc", "-O2", "pie"))
    old = project.build({"a.c": SOURCE})
    source = SOURCE
    for mark, text in CHANGED:
        source = source.replace(mark, text)
    result = project.diff(old, project.build({"a.c": source}))
    old.path.chmod(0o755)
    patch = project.folder / "patch.kpo"
    patch.write_bytes(result.data)
    return old.path, patch


@pytest.fixture
def server(cache: tuple[Path, Path]) -> Iterator[Server]:
    """The old program, with its threads at work."""
    with serving(cache[0]) as server:
        yield server


class Both:
    """Looks in both ways in each stop, and compares."""

    def __init__(self, pid: int) -> None:
        self.memory = ProcessMemory(pid)
        self.compared = self.uneven = self.alone = 0

    def look(self, carry: Any, bulk: Any, regions: Any, stacks: Any, registers: Any, kept: Any, pages: Any,
             watch: Any = None, ahead: Any = None, *, is_stopped: bool) -> Cargo:  # fmt: skip
        kept = list(kept)
        if ahead is None:
            self.alone += 1
            return look(carry, bulk, regions, stacks, registers, kept, pages, is_stopped=is_stopped)
        try:
            mine = look(carry, bulk, regions, stacks, registers, kept, pages, watch, ahead, is_stopped=is_stopped)
        except UnrepairableError:
            self.uneven += 1
            raise
        its = look(carry, bulk, regions, stacks, registers, kept, pages, is_stopped=is_stopped)
        assert self.known(carry, mine) == self.known(carry, its)
        self.compared += 1
        return mine

    def known(self, carry: Any, cargo: Cargo) -> object:
        assert cargo.heap is not None
        words = sorted((f.word, f.lead.passage.source, f.lead.offset) for f in cargo.followed)
        strays = sorted((s.place, s.lead.passage.source, s.lead.offset) for s in cargo.strays)
        left = [(u.kind.name, u.count, u.likely, u.first) for u in cargo.heap.unreached]
        made = contents(cargo.heap, carry.objects.kinds, self.memory.read)
        return cargo.heap.reached.problems, made, words, strays, left, sorted(cargo.heap.to_free)


def test_each_stop_finds_what_a_look_at_the_whole_finds(
    cache: tuple[Path, Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, po = read_patch(str(cache[1]))
    both = Both(server.pid)
    monkeypatch.setattr(rehearsal, "look", both.look)
    monkeypatch.setattr("katana_cc.process.commit._SHARE", 0)
    monkeypatch.setattr("katana_cc.process.ahead._DEAR", 1)  # where everything changed, too
    judge = objections.judge
    refused = 0

    def strict(carry: Any, cargo: Any) -> None:
        nonlocal refused
        if refused < 2:  # so that there are many stops
            refused += 1
            raise BusyError("not yet", where="here")
        judge(carry, cargo)

    monkeypatch.setattr("katana_cc.process.commit.judge", strict)
    assert server.ask("c") == "0 wrong, size 32"
    for _ in range(2):
        refused = 0
        apply_patch(po, patch_id(data), [server.pid], wait=120.0, granted=[Grant(Option.FOLLOW, "struct entry")])
        assert server.ask("c") == "0 wrong, size 48"
        before = int(server.ask("t"))
        while int(server.ask("t")) < before + 50:
            pass
        refused = 0
        revert_patch([server.pid], wait=120.0, wishes=Wishes(followed=["struct entry"], discards_all=True))
        assert server.ask("c") == "0 wrong, size 32"
    print("stops:", both.compared, both.uneven, both.alone)
    assert both.compared >= 6, (both.compared, both.uneven, both.alone)
    assert server.finish() == ["status 0"]
