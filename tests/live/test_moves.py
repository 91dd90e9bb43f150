"""Variables that get a new layout while the process runs, and get their old one back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.handmade import Built, build, patch_from
from tests.live.programs import HEAD
from tests.live.server import code_of, katana, serving, write_patch

STRUCT = "struct item { short count; int total; };"
GROWN = "struct item { long fresh; int count; long total; };"
# One variable of each kind; the words are hidden from the compiler, so that it keeps none in a register.
SOURCE = (
    HEAD
    + r"""
/*STRUCT*/
struct item item = {3, 40/*MORE*/};
int table[/*SIZE*/4] = {1, 2, 3, 4};
struct item *to_item = &item;
int *to_third = &table[2];
long packed_number;
void *hidden;
NOINLINE void show(int x) {
  int n = sizeof table / sizeof *table;
  printf("%d %ld %d of %d, %ld\n", (int)item.count, (long)item.total, table[x], n, /*FRESH*/0L);
}
NOINLINE void add(int x) { item.count += x; item.total += 10 * x; table[1] += x; seen++; /*ADD*/ }
NOINLINE void through(int x) { to_item->count += x; *to_third += x; seen++; /*THROUGH*/ }
NOINLINE void hide(int x) { void **p = malloc(64); p[x] = &item; hidden = p; seen++; /*HIDE*/ }
NOINLINE int reveal(void) { struct item **p = hidden; seen++; /*REVEAL*/ return p[1]->count; }
NOINLINE void fill(int x) { table[3] = x; item.count = x; seen++; /*FILL*/ }
int main(void) {
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    int x = atoi(line + 2);
    switch (line[0]) {
    case 's': show(x); break;
    case 'a': add(x); show(1); break;
    case 't': through(x); show(2); break;
    case 'h': hide(1); puts("hidden"); break;
    case 'r': printf("%d\n", reveal()); break;
    case 'f': fill(x); show(3); break;
    }
    fflush(stdout);
  }
  return 0;
}
"""
)
FUNCTIONS = ("show", "add", "through", "hide", "reveal", "fill")


def old_source() -> str:
    """The old build's."""
    return SOURCE.replace("/*STRUCT*/", STRUCT)


def new_source() -> str:
    """The new build's: `item` gains a field at its front and wider numbers, `table` two elements."""
    text = SOURCE.replace("/*STRUCT*/", GROWN).replace("{3, 40/*MORE*/}", "{77, 3, 40}").replace("/*SIZE*/4", "6")
    return text.replace("/*FRESH*/0L", "item.fresh").replace("/*ADD*/", "item.fresh++;")


Two = tuple[Built, Path]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    """The old program, and the patch."""
    folder = tmp_path_factory.mktemp("moves")
    old, new = build(folder / "old", "server", old_source()), build(folder / "new", "server", new_source())
    po = patch_from(old, new, FUNCTIONS, moved=("item", "table"), staying=("to_item", "to_third"))
    return old, write_patch(folder, po)


def test_variables_move_with_their_values_and_come_back(two: Two) -> None:
    old, patch = two
    with serving(old.output) as server:
        before = code_of(server.pid)
        assert server.ask("a 5") == "8 90 7 of 4, 0"
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert server.ask("s 1") == "8 90 7 of 6, 77"
        assert server.ask("s 5") == "8 90 0 of 6, 77", "what came begins as the new build says"
        assert server.ask("t 5") == "13 90 8 of 6, 77", "both pointers lead into the new objects"
        done = katana("revert", "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert server.ask("a 1") == "14 100 8 of 4, 0"
        assert server.ask("t 2") == "16 100 10 of 4, 0"
        assert code_of(server.pid) == before
