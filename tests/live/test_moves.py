"""Variables that get a new layout while the process runs, and get their old one back."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from katana_cc.errors import TargetError
from katana_cc.patch.codec import patch_id
from katana_cc.patch.files import read_patch
from katana_cc.patch.needs import Grant, Option
from katana_cc.process.apply import apply_patch
from katana_cc.process.ledger import STATE_OFFSET, encode_state
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.phases import Phase
from katana_cc.process.revert import revert_patch
from katana_cc.process.target import Target
from tests.live.handmade import Built, build, patch_from
from tests.live.programs import HEAD
from tests.live.server import Server, code_of, katana, katana_json, mappings, serving, write_patch

OLD = r"""
struct item { short count; int total; };
struct node { int value; struct node *next; };
union either { struct item *pointer; long number; };
struct __attribute__((packed)) odd { char c; struct item *pointer; };
struct keeper { long number; union either either; };
struct item item = {3, 40};
int table[4] = {1, 2, 3, 4};
struct node one, two = {2, &one}, one = {1, &two};
struct keeper keeper;
"""
NEW = r"""
struct item { long fresh; int count; long total; };
struct node { long stamp; int value; struct node *next; struct node *previous; };
union either { struct item *pointer; long number; };
struct __attribute__((packed)) odd { char c; struct item *pointer; };
struct keeper { int extra; long number; union either either; };
struct item item = {77, 3, 40};
int table[6] = {1, 2, 3, 4, 5, 6};
struct node one, two = {22, 2, &one, &one}, one = {11, 1, &two, &two};
struct keeper keeper;
"""
SOURCE = (
    HEAD
    + r"""
/*DATA*/
struct item *to_item = &item;
int *to_third = &table[2];
struct odd odd = {'x', &item};
void *shelf[4] = {0, table, &item, &two};
void **heap;
static int gate[2];
NOINLINE void show(int x) {
  int n = sizeof table / sizeof *table;
  printf("%d %ld %d of %d, %ld\n", (int)item.count, (long)item.total, table[x], n, /*FRESH*/0L);
}
NOINLINE void add(int x) { item.count += x; item.total += 10 * x; table[1] += x; seen++; }
NOINLINE void freshen(int x) { seen += x; /*FRESHEN*/ }
NOINLINE void through(int x) { to_item->count += x; *to_third += x; odd.pointer->total += 100; seen++; }
NOINLINE int count_of(void *p) { seen++; return ((struct item *)p)->count; }
NOINLINE void set(int x) { item.count = x; table[0] = x; seen++; }
NOINLINE void ring(void) {
  struct node *n = &one; char text[64] = "";
  for (int i = 0; i < 4; i++, n = n->next) sprintf(text + strlen(text), "%d%s ", n->value, n == &two ? "two" : "one");
  printf("%s%s\n", text, shelf[3] == &two ? "on the shelf" : "lost");
}
NOINLINE void keep(int x) {
  keeper.number = x == 1 ? (long)&item : 0; keeper.either.pointer = x == 2 ? &item : 0; seen++;
}
NOINLINE void kept(void) {
  struct item *p = keeper.number ? (struct item *)keeper.number : keeper.either.pointer;
  printf("%d\n", p ? (int)p->count : -1);
}
NOINLINE void pause_here(void) { char byte; say("waiting"); while (read(gate[0], &byte, 1) < 0) {} }
NOINLINE void *hold(void *p) { pause_here(); printf("%d\n", count_of(p)); fflush(stdout); return p; }
/* Far from the others, so that it is written by itself. */
__attribute__((aligned(1024))) NOINLINE void stay(int x) { seen += x; pause_here(); seen++; /*STAY*/ }
static void *enter(void *p) { stay(1); return p; }
static void *freshen_all_the_time(void *p) { for (;;) { freshen(1); sched_yield(); } return p; }
/* What calls leave behind on the stack is part of later frames, and looks like pointers that live. */
NOINLINE void wash(void) { volatile char room[16384]; for (unsigned i = 0; i < sizeof room; i++) room[i] = 0; }
int main(void) {
  if (pipe(gate)) return 1;
  heap = calloc(8, 8);
  say("ready");
  char line[200];
  pthread_t t;
  while (fgets(line, sizeof line, stdin)) {
    int x = atoi(line + 2);
    switch (line[0]) {
    case 's': show(x); break;
    case 'a': add(x); show(1); break;
    case 't': through(x); show(2); break;
    case 'f': freshen(x); show(0); break;
    case '=': set(x); show(0); break;
    case 'r': ring(); break;
    case 'h': heap[1] = x ? shelf[x] : 0; puts("put"); break;
    case 'H': printf("%d\n", count_of(heap[1])); break;
    case 'k': keep(x); kept(); break;
    case 'K': kept(); break;
    case 'w': pthread_create(&t, 0, hold, shelf[2]); continue;
    case 'i': pthread_create(&t, 0, enter, 0); continue;
    case 'x': pthread_create(&t, 0, freshen_all_the_time, 0); puts("busy"); break;
    case 'g': if (write(gate[1], "x", 1) != 1) return 1; pthread_join(t, 0); continue;
    }
    fflush(stdout);
    wash();
  }
  return 0;
}
"""
)
FUNCTIONS = ("show", "add", "freshen", "through", "count_of", "set", "ring", "keep", "kept", "stay")
MOVED = ("item", "table", "one", "two", "keeper")
STAYING = ("to_item", "to_third", "odd", "shelf")
ADDRESS = re.compile(r"0x[0-9a-f]+")
KINDS = {"pie": ((), ()), "nopie": (("-fno-pie",), ("-no-pie",)), "O0": (("-O0",), ())}


def _new_source() -> str:
    text = SOURCE.replace("/*DATA*/", NEW).replace("/*FRESH*/0L", "item.fresh")
    return text.replace("/*FRESHEN*/", "item.fresh += x;").replace("/*STAY*/", "item.fresh++;")


@dataclasses.dataclass(frozen=True)
class Two:
    """The old program, the new one and the patch between them."""

    old: Built
    new: Built
    patch: Path


def _two(folder: Path, kind: str = "pie") -> Two:
    compile_flags, link = KINDS[kind]
    flags = ("-O2", "-fno-toplevel-reorder", *compile_flags)
    old = build(folder / "old", "server", SOURCE.replace("/*DATA*/", OLD), flags=flags, link=link)
    new = build(folder / "new", "server", _new_source(), flags=flags, link=link)
    return Two(old, new, write_patch(folder, patch_from(old, new, FUNCTIONS, moved=MOVED, staying=STAYING)))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    """As compilers make programs by default."""
    return _two(tmp_path_factory.mktemp("moves"))


@pytest.fixture
def server(two: Two) -> Iterator[Server]:
    """The old program, running."""
    with serving(two.old.output) as running:
        yield running


def state_of(pid: int) -> str:
    """All writable memory that a program has from its file or its heap, its code, and what katana mapped: a digest."""
    digest = hashlib.sha256(code_of(pid))
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split()
            if fields[1].startswith("rw") and len(fields) > 5 and ("server" in fields[5] or fields[5] == "[heap]"):
                start, end = (int(x, 16) for x in fields[0].split("-"))
                memory.seek(start)
                digest.update(memory.read(end - start))
    return digest.hexdigest() + "".join(mappings(pid))


@pytest.mark.parametrize("kind", KINDS)
def test_variables_move_with_their_values_and_come_back(tmp_path: Path, kind: str) -> None:
    both = _two(tmp_path, kind)
    with serving(both.old.output) as server:
        before = code_of(server.pid)
        assert server.ask("a 5") == "8 90 7 of 4, 0"
        done = katana("apply", both.patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert server.ask("s 1") == "8 90 7 of 6, 77"
        assert server.ask("s 5") == "8 90 6 of 6, 77", "what came begins as the new build says"
        assert server.ask("t 5") == "13 190 8 of 6, 77", "pointers lead into the new objects, also a packed one"
        assert server.ask("r") == "1one 2two 1one 2two on the shelf", "a cycle of two that both moved"
        done = katana("revert", "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert server.ask("a 1") == "14 200 8 of 4, 0"
        assert server.ask("t 2") == "16 300 10 of 4, 0"
        assert server.ask("r") == "1one 2two 1one 2two on the shelf"
        assert code_of(server.pid) == before


def test_nothing_but_variables_and_code_is_different_after_a_revert(two: Two, server: Server) -> None:
    server.ask("r")  # its first read gets a buffer on the heap
    before = state_of(server.pid)
    assert katana("apply", two.patch, "--pid", server.pid).returncode == 0
    assert state_of(server.pid) != before
    assert katana("revert", "--pid", server.pid).returncode == 0
    mapped = "".join(mappings(server.pid))
    assert state_of(server.pid).removesuffix(mapped) == before


def test_what_was_moved_is_told(two: Two, server: Server) -> None:
    done = katana("apply", two.patch, "--pid", server.pid)
    lines = [ADDRESS.sub("X", line.strip()) for line in done.stdout.splitlines()[1:]]
    assert lines == [
        "moved item X -> X, 8 bytes -> 24 bytes",
        "moved table X -> X, 16 bytes -> 24 bytes",
        "moved one X -> X, 16 bytes -> 32 bytes",
        "moved two X -> X, 16 bytes -> 32 bytes",
        "moved keeper X -> X, 16 bytes -> 24 bytes",
    ]
    shown = katana("status", "--pid", server.pid).stdout
    assert "moved table 0x" in shown
    assert "pointers in shelf at 0x" in shown
    (patch,) = katana_json("status", "--pid", server.pid)["processes"][0]["patches"]
    assert [(m["name"], m["stays"]) for m in patch["moves"]] == [
        *((n, False) for n in MOVED),
        *((n, True) for n in STAYING),
    ]
    again = katana("apply", two.patch, "--pid", server.pid)
    assert (again.returncode, "already applied" in again.stdout) == (0, True)
    assert server.ask("s 0") == "3 40 1 of 6, 77"


def test_applied_again_after_a_revert(two: Two, server: Server) -> None:
    """A bug: the second time the objects begin as the first time left them, or in another mapping."""
    assert katana("apply", two.patch, "--pid", server.pid).returncode == 0
    where = mappings(server.pid)
    assert server.ask("a 2") == "5 60 4 of 6, 77"
    assert katana("revert", "--pid", server.pid).returncode == 0
    assert server.ask("a 2") == "7 80 6 of 4, 0"
    done = katana("apply", two.patch, "--pid", server.pid)
    assert done.returncode == 0, done.stderr
    assert mappings(server.pid) == where
    assert server.ask("t 0") == "7 180 3 of 6, 77"
    assert katana("revert", "--pid", server.pid).returncode == 0
    assert server.ask("s 1") == "7 180 6 of 4, 0"


def test_dry_run_tells_every_field_and_touches_nothing(two: Two, server: Server) -> None:
    assert server.ask("a -9") == "-6 -50 -7 of 4, 0"
    before = state_of(server.pid)
    done = katana("apply", two.patch, "--pid", server.pid, "--dry-run")
    assert done.returncode == 0, done.stderr
    text = ADDRESS.sub("X", done.stdout)
    for line in (
        "move     item X -> X, 8 bytes -> 24 bytes",
        "    comes      fresh = 77",
        "    converted  count: -6 -> -6",
        "    converted  total: -50 -> -50",
        "    comes      [4..5] = 8 bytes, 05 00 00 00 06 00 00 00",
        "pointers in to_item at X",
        "follow  to_item at X: item",
        "follow  to_third at X: table + 8",
        "follow  odd.pointer at X: item",
        "follow  one.next at X: two",
        "follow  shelf[1] at X: table",
    ):
        assert f"  {line}\n" in text, text
    assert "nothing explains" not in text
    (told,) = katana_json("apply", two.patch, "--pid", server.pid, "--dry-run")["processes"]
    assert told["outcome"] == "would apply"
    item = told["moves"][0]
    assert item["fields"][1] == {"kind": "converted", "field": "count", "old": "-6", "new": "-6"}
    assert {(w["in"], w["field"]) for w in told["words"]} >= {("shelf", "[3]"), ("two", "next")}
    assert all(w["explained"] for w in told["words"])
    assert state_of(server.pid) == before


def test_word_on_the_heap_is_refused_and_followed_by_name(two: Two, server: Server) -> None:
    assert server.ask("h 2") == "put"
    before = state_of(server.pid)
    done = katana("apply", two.patch, "--pid", server.pid)
    assert done.returncode == 3
    assert re.search(r"a word leads to variables that move.*\n    0x[0-9a-f]+ in \[heap\]: item\n", done.stderr)
    assert "apply it with --follow item" in done.stderr
    assert state_of(server.pid) == before
    told = katana("apply", two.patch, "--pid", server.pid, "--dry-run")
    assert (told.returncode, "would be refused" in told.stdout) == (3, True)
    assert re.search(r"nothing explains  0x[0-9a-f]+ in \[heap\]: item\n", told.stdout)
    assert katana("apply", two.patch, "--pid", server.pid, "--follow", "table").returncode == 3
    assert state_of(server.pid) == before
    done = katana("apply", two.patch, "--pid", server.pid, "--follow", "item")
    assert done.returncode == 0, done.stderr
    assert server.ask("a 4") == "7 80 6 of 6, 77"
    assert server.ask("H") == "7", "the word on the heap leads to the new object"
    assert katana("revert", "--pid", server.pid).returncode == 0, "what was followed is followed back"
    assert server.ask("a 1") == "8 90 7 of 4, 0"
    assert server.ask("H") == "8"


def test_word_that_came_since_is_refused_by_revert(two: Two, server: Server) -> None:
    assert katana("apply", two.patch, "--pid", server.pid).returncode == 0
    assert server.ask("h 2") == "put"
    before = state_of(server.pid)
    done = katana("revert", "--pid", server.pid)
    assert done.returncode == 3
    assert re.search(r"0x[0-9a-f]+ in \[heap\]: item\n", done.stderr)
    assert "revert it with --follow item" in done.stderr
    assert state_of(server.pid) == before
    assert katana("revert", "--pid", server.pid, "--follow", "item").returncode == 0
    assert server.ask("a 1") == "4 50 3 of 4, 0"
    assert server.ask("H") == "4"


def test_name_that_does_not_move_is_an_error(two: Two, server: Server) -> None:
    done = katana("apply", two.patch, "--pid", server.pid, "--follow", "shelf")
    assert done.returncode == 3
    assert "does not move shelf (it moves item, keeper, one, table, two)" in done.stderr
    assert mappings(server.pid) == []
    assert katana("apply", two.patch, "--pid", server.pid).returncode == 0
    done = katana("revert", "--pid", server.pid, "--follow", "shelf")
    assert (done.returncode, "does not move shelf" in done.stderr) == (3, True)


def test_thread_that_holds_a_pointer_is_refused_and_followed(two: Two, server: Server) -> None:
    """`hold` is no replaced function: its argument is in a register that calls preserve, or on the stack."""
    assert server.ask("w") == "waiting"
    before = code_of(server.pid)
    done = katana("apply", two.patch, "--pid", server.pid, "--wait", "0.2")
    assert done.returncode == 3
    assert re.search(r"(on the stack of thread \d+|thread \d+, r\w\w): item\n", done.stderr), done.stderr
    assert code_of(server.pid) == before
    done = katana("apply", two.patch, "--pid", server.pid, "--follow", "item")
    assert done.returncode == 0, done.stderr
    server.ask("a 30")
    assert server.ask("g") == "33", "new code reads a new object"


def test_thread_that_holds_a_pointer_back(two: Two, server: Server) -> None:
    assert katana("apply", two.patch, "--pid", server.pid).returncode == 0
    assert server.ask("w") == "waiting"
    assert katana("revert", "--pid", server.pid, "--wait", "0.2").returncode == 3
    assert katana("revert", "--pid", server.pid, "--follow", "item").returncode == 0
    server.ask("a 30")
    assert server.ask("g") == "33"


@pytest.mark.parametrize(("which", "field"), [(1, "number"), (2, "either")])
def test_number_or_union_that_holds_an_address_is_not_a_pointer(
    two: Two, server: Server, which: int, field: str
) -> None:
    """In a variable that moves itself: refused by its field, and followed into the new object."""
    assert server.ask(f"k {which}") == "3"
    done = katana("apply", two.patch, "--pid", server.pid)
    assert done.returncode == 3
    assert re.search(rf"0x[0-9a-f]+ in keeper\.{field}: item\n", done.stderr), done.stderr
    assert katana("apply", two.patch, "--pid", server.pid, "--follow", "item").returncode == 0
    server.ask("a 1")
    assert server.ask("K") == "4"
    assert katana("revert", "--pid", server.pid).returncode == 0
    server.ask("a 1")
    assert server.ask("K") == "5"


def test_value_that_does_not_fit_is_refused(tmp_path: Path, two: Two) -> None:
    """The other way round: `count` becomes a short again, and a field goes."""
    po = patch_from(two.new, two.old, FUNCTIONS, moved=MOVED, staying=STAYING)
    patch = write_patch(tmp_path, po)
    with serving(two.new.output) as server:
        assert server.ask("= 70000") == "70000 40 70000 of 6, 77"
        before = state_of(server.pid)
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 3
        assert "item: `count` is 70000, which 16 signed bits do not hold" in done.stderr
        assert state_of(server.pid) == before
        assert server.ask("= 7000") == "7000 40 7000 of 6, 77"
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert "left behind with the old item: `fresh` is 77, and there is no such field" in done.stdout
        assert server.ask("s 3") == "7000 40 4 of 4, 0"
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("s 0") == "7000 40 7000 of 6, 77", "what was left behind is where it was"
        assert server.ask("s 5") == "7000 40 6 of 6, 77"


def test_revert_refuses_to_lose_what_only_the_new_build_has(two: Two, server: Server) -> None:
    assert katana("apply", two.patch, "--pid", server.pid).returncode == 0
    assert server.ask("f 5") == "3 40 1 of 6, 82"
    before = state_of(server.pid)
    done = katana("revert", "--pid", server.pid)
    assert done.returncode == 3
    assert "item: `fresh` is 82, and there is no such field" in done.stderr
    assert state_of(server.pid) == before
    assert server.ask("f -5") == "3 40 1 of 6, 77"
    assert katana("revert", "--pid", server.pid).returncode == 0
    assert server.ask("s 0") == "3 40 1 of 4, 0"


def test_what_only_the_new_build_has_is_discarded_by_name(two: Two, server: Server) -> None:
    assert katana("apply", two.patch, "--pid", server.pid).returncode == 0
    assert server.ask("f 5") == "3 40 1 of 6, 82"
    done = katana("revert", "--pid", server.pid)
    assert "if that may be lost, revert it with --discard item;" in done.stderr
    wrong = katana("revert", "--pid", server.pid, "--discard", "nothing")
    assert wrong.returncode == 3
    assert "--discard: the patch does not move nothing" in wrong.stderr
    assert katana("revert", "--pid", server.pid, "--discard", "item").returncode == 0
    assert server.ask("s 0") == "3 40 1 of 4, 0"


def test_pointer_that_leads_nowhere_for_sure_is_refused(tmp_path: Path) -> None:
    """Into the middle of a number that is converted: no place of the new object is that."""
    data = "struct item { int count; }; struct item item = {3}; char *inside = (char *)&item + 1;"
    program = HEAD + "{} NOINLINE int answer(int x) {{ seen++; return item.count + x; }}" + MAIN
    sources = [
        program.replace("{}", d).replace("{{", "{").replace("}}", "}") for d in (data, data.replace("int c", "long c"))
    ]
    old, new = (build(tmp_path / n, "server", s) for n, s in zip(("old", "new"), sources, strict=True))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",), moved=("item",), staying=("inside",)))
    with serving(old.output) as server:
        for words in ((), ("--follow", "item")):
            done = katana("apply", patch, "--pid", server.pid, *words)
            assert done.returncode == 3
            assert "inside points to item.count (1 bytes into item), and nothing says where" in done.stderr
        assert mappings(server.pid) == []
        assert server.ask("a 1") == "4"


MAIN = r"""
int main(void) {
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) { printf("%d\n", answer(atoi(line + 2))); fflush(stdout); }
  return 0;
}
"""


def test_patch_that_only_moves(tmp_path: Path) -> None:
    """No code changes: whether it is applied is in its state alone."""
    program = HEAD + "{} int *to = &n[1]; NOINLINE int answer(int x) {{ seen++; return to[x]; }}" + MAIN
    sources = [
        program.replace("{}", f"int n[{size}] = {{7, 8, 9}};").replace("{{", "{").replace("}}", "}") for size in (3, 5)
    ]
    old, new = (build(tmp_path / n, "server", s) for n, s in zip(("old", "new"), sources, strict=True))
    patch = write_patch(tmp_path, patch_from(old, new, (), moved=("n",), staying=("to",)))
    with serving(old.output) as server:
        for _ in range(2):
            assert "applied" in katana("apply", patch, "--pid", server.pid).stdout
            assert "already applied" in katana("apply", patch, "--pid", server.pid).stdout
            assert (server.ask("a -1"), server.ask("a 1"), server.ask("a 3")) == ("7", "9", "0")
            assert "applied" in katana("status", "--pid", server.pid).stdout
            assert katana("revert", "--pid", server.pid).returncode == 0
            assert "nothing to revert" in katana("revert", "--pid", server.pid).stdout
            assert (server.ask("a -1"), server.ask("a 1")) == ("7", "9")


def test_all_or_none_with_variables(two: Two) -> None:
    """One process is busy for too long: the other, already changed, gets its variables back."""
    with serving(two.old.output) as first, serving(two.old.output) as second:
        assert first.ask("a 1") == "4 50 3 of 4, 0"
        assert second.ask("i") == "waiting"
        done = katana("apply", two.patch, "--pid", first.pid, second.pid, "--wait", "0.2")
        assert (done.returncode, "stay" in done.stderr) == (4, True)
        assert first.ask("a 1") == "5 60 4 of 4, 0"
        second.tell("g")
        assert second.ask("a 2") == "5 60 4 of 4, 0"
        assert first.ask("h 2") == "put"
        assert katana("apply", two.patch, "--pid", second.pid, first.pid).returncode == 3
        assert second.ask("a 1") == "6 70 5 of 4, 0"
        done = katana("apply", two.patch, "--pid", second.pid, first.pid, "--follow", "item")
        assert done.returncode == 0, done.stderr
        assert (first.ask("s 4"), second.ask("s 4")) == ("5 60 5 of 6, 77", "6 70 5 of 6, 77")


@pytest.mark.parametrize("phase", [Phase.COMMITTING, Phase.REVERTING])
def test_katana_killed_while_it_moved_variables(two: Two, server: Server, phase: Phase) -> None:
    """Neither object is known to be the right one: both commands say so."""
    assert katana("apply", two.patch, "--pid", server.pid).returncode == 0
    with Target(server.pid) as target:
        (mapping,) = target.patches
        assert mapping.ledger is not None
        edit = mapping.ledger.edits[0]
        target.memory.write(edit.address, edit.expected)
        target.memory.write(mapping.base + STATE_OFFSET, encode_state(phase))
    for words in (("apply", two.patch), ("revert",)):
        done = katana(*words, "--pid", server.pid)
        assert done.returncode == 3
        assert "a katana was killed while it moved item, table, one, two, keeper" in done.stderr
    assert "half applied" in katana("status", "--pid", server.pid).stdout


def test_all_or_none_also_when_a_new_field_was_written_since(two: Two) -> None:
    """Before the other process turned out to be busy for too long: what it holds goes, as no process is to keep it."""
    with serving(two.old.output) as first, serving(two.old.output) as second:
        assert first.ask("x") == "busy"
        assert second.ask("i") == "waiting"
        done = katana("apply", two.patch, "--pid", first.pid, second.pid, "--wait", "1")
        assert done.returncode == 4
        assert "stays applied" not in done.stderr, done.stderr
        assert "applied" not in katana("status", "--pid", first.pid).stdout.split("reverted")[0]
        assert mappings(second.pid) == []


def test_failed_write_puts_everything_back(two: Two, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects, words and edits: as if the kernel had refused the second jump."""
    data, po = read_patch(two.patch)
    assert server.ask("h 2") == "put"
    before = state_of(server.pid)
    jumps: list[int] = []
    write = ProcessMemory.write

    def fail(self: ProcessMemory, address: int, data: bytes, stopped_thread: int | None = None) -> None:
        if data[:1] == b"\xe9":
            jumps.append(address)
            if len(jumps) == 2:
                raise TargetError("forbidden")
        write(self, address, data, stopped_thread)

    def fail_back(self: ProcessMemory, address: int, data: bytes, stopped_thread: int | None = None) -> None:
        """The same of a revert, in which old code is written that is no jump."""
        if address == jumps[1]:
            jumps[1] = 0
            raise TargetError("forbidden")
        write(self, address, data, stopped_thread)

    granted = [Grant(Option.FOLLOW, "item")]
    with monkeypatch.context() as context:
        context.setattr(ProcessMemory, "write", fail)
        with pytest.raises(TargetError, match="forbidden"):
            apply_patch(po, patch_id(data), [server.pid], granted=granted)
    assert state_of(server.pid) == before, "and the mapping that nothing led into is gone"
    assert server.ask("H") == "3"
    apply_patch(po, patch_id(data), [server.pid], granted=granted)
    assert server.ask("s 5") == "3 40 6 of 6, 77"
    with monkeypatch.context() as context:
        context.setattr(ProcessMemory, "write", fail_back)
        before = state_of(server.pid)
        with pytest.raises(TargetError, match="forbidden"):
            revert_patch([server.pid])
    assert jumps[1] == 0
    assert state_of(server.pid) == before
    assert server.ask("H") == "3"
    assert katana("revert", "--pid", server.pid).returncode == 0
    assert server.ask("s 0") == "3 40 1 of 4, 0"


def test_large_array_of_zeros_is_not_in_the_ledger(tmp_path: Path) -> None:
    """A bug: the mapping is twice as large as it has to be."""
    program = HEAD + "/*TYPE*/int n[1 << 20]; NOINLINE int answer(int x) { seen++; n[x] += 5; return n[x]; }" + MAIN
    old = build(tmp_path / "old", "server", program)
    new = build(tmp_path / "new", "server", program.replace("/*TYPE*/int", "long"))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",), moved=("n",)))
    with serving(old.output) as server:
        assert server.ask("a 77777") == "5"
        # The loader cleared what begins there, and its frames are still on the stack.
        (told,) = katana_json("apply", patch, "--pid", server.pid, "--follow", "n")["processes"]
        assert 8 << 20 < told["mapping"]["size"] < 9 << 20
        assert server.ask("a 77777") == "10"
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("a 77777") == "15"
