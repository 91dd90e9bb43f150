"""Programs that unwind themselves with libunwind (heap profilers, crash handlers, `g++ -lunwind`), through new code.

What is right is asked of the new build, which runs beside.  No function has a frame pointer, so that nothing can be
guessed.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from katana_cc.errors import RefusedError
from katana_cc.patch.codec import patch_id
from katana_cc.patch.files import read_patch
from katana_cc.process.apply import apply_patch
from katana_cc.process.target import Target
from tests.live.handmade import Built, build, patch_from, run
from tests.live.programs import COUNTER
from tests.live.server import Server, katana, mappings, serving, write_patch
from tests.live.situations import situation
from tests.support.strike import Outcome, strike_program

pytestmark = pytest.mark.timeout(7200 if os.environ.get("KATANA_TORTURE") else 300)

# `helper`, which stays, tells its frames from the inside out: the names, or where libunwind has none the address.
WALKER = COUNTER.replace(
    "NOINLINE int helper(int x) { return x + 1; }",
    r"""
#define UNW_LOCAL_ONLY
#include <libunwind.h>
static char told[4000];
NOINLINE int helper(int x) {
  unw_context_t context; unw_cursor_t cursor; char name[100]; unw_word_t rest, pc;
  char *at = told;
  unw_getcontext(&context); unw_init_local(&cursor, &context);
  do {
    unw_get_reg(&cursor, UNW_REG_IP, &pc);
    if (unw_get_proc_name(&cursor, name, sizeof name, &rest) || !strcmp(name, "")) sprintf(name, "%#lx", (long)pc);
    at += sprintf(at, " %s", name);
  } while (unw_step(&cursor) > 0 && at < told + 3800);
  return x + 1;
}
""",
).replace("case 'o':", "case 'w': answer(x); printf(\"%s\\n\", told); break;\n    case 'o':")  # fmt: skip
CHANGED = WALKER.replace(
    "/*GLOBALS*/",
    "NOINLINE int deeper(int x) { volatile char room[99]; room[x & 7] = 1; return x ? deeper(x - 1) + room[0] :"
    " helper(x) + 7; }",
).replace("/*ANSWER*/", "if (x >= 0) { volatile char more[333]; more[0] = 1; return deeper(x) + more[0]; }")
FLAGS = ("-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls")


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built, Path]:
    """Both builds, and the patch."""
    folder = tmp_path_factory.mktemp("walker")
    old, new = (
        build(folder / name, "server", text, flags=FLAGS, link=("-Wl,--no-as-needed", "-lunwind"))
        for name, text in (("old", WALKER), ("new", CHANGED))
    )
    return old, new, write_patch(folder, patch_from(old, new, ("answer",)))


def frames(server: Server, question: str = "w 3") -> list[str]:
    """What libunwind says: names of functions, "new" for code of a patch, which it cannot name."""
    spans = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in mappings(server.pid)]
    said = server.ask(question).split()
    inside = [w.startswith("0x") and any(a <= int(w, 16) < b for a, b in spans) for w in said]
    return ["new" if found else re.sub("^0x.*", "?", word) for word, found in zip(said, inside, strict=True)]


def expected(server: Server, question: str = "w 3") -> list[str]:
    """The same of the new build: what would be of a patch in the old one is "new"."""
    return ["new" if word in ("answer", "deeper") else word for word in frames(server, question)]


@situation(51, "libunwind in the process: unw_step through new code, without frame pointers")
def test_libunwind_steps_through_new_code(walker: tuple[Built, Built, Path]) -> None:
    """A bug: the trace of a profiler or a crash handler ends at the first frame of new code, or goes astray there."""
    old, new, patch = walker
    with serving(old.output) as live, serving(new.output) as after:
        before = frames(live)
        assert before[:3] == ["helper", "answer", "main"]
        assert katana("apply", patch, "--pid", live.pid).returncode == 0
        for depth in range(6):
            assert frames(live, f"w {depth}") == expected(after, f"w {depth}")
            assert frames(live, f"w {depth}").count("new") == depth + 2
        assert katana("revert", "--pid", live.pid).returncode == 0
        assert frames(live) == before
        assert katana("apply", patch, "--pid", live.pid).returncode == 0
        assert frames(live) == expected(after)


def listed(pid: int) -> bool:
    """Whether the patch in a process is known to libunwind, as its ledger says."""
    with Target(pid) as target:
        (patch,) = target.patches
        assert patch.ledger is not None
        assert len(patch.ledger.listings) == 1
        return patch.ledger.is_registered


def test_what_libunwind_knows_stays_mapped(walker: tuple[Built, Built, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The apply fails after that.  A bug: a thread that looks code up reads memory that is gone."""
    old, new, patch = walker
    data, po = read_patch(patch)

    def refuse(*_: object) -> None:
        raise RefusedError("not today")

    with serving(old.output) as live, serving(new.output) as after:
        with monkeypatch.context() as context, pytest.raises(RefusedError, match="not today"):
            context.setattr("katana_cc.process.apply._run_before", refuse)
            apply_patch(po, patch_id(data), [live.pid])
        there = mappings(live.pid)
        assert there
        assert listed(live.pid)
        assert frames(live)[:3] == ["helper", "answer", "main"]
        assert katana("apply", patch, "--pid", live.pid).returncode == 0
        assert mappings(live.pid) == there
        assert frames(live) == expected(after)


_SYS_PTRACE: Final = 101
_SYS_GETPPID: Final = 110  # which katana makes nowhere else: the marks around the registration
REGISTERING: Final = """
import os, sys
from katana_cc.patch.codec import patch_id
from katana_cc.patch.files import read_patch
from katana_cc.process.inject import inject
from katana_cc.process.plan import prepare
from katana_cc.process.registration import register
from katana_cc.process.target import Target
with Target(int(sys.argv[1])) as target:
    data, po = read_patch(sys.argv[2])
    plan, _ = inject(target, prepare(target, po, patch_id(data)))
    os.getppid()
    register(target, plan.ledger, 5.0)
    os.getppid()
"""


def struck(pid: int, patch: Path, step: int) -> Outcome:
    """Map and register the patch, katana being killed as it enters the ptrace call `step` of the registration (0:
    never)."""

    def when(calls: Sequence[int]) -> bool:
        if calls.count(_SYS_GETPPID) != 1 or calls[-1] != _SYS_PTRACE:
            return False
        return calls[calls.index(_SYS_GETPPID) :].count(_SYS_PTRACE) == step

    words = [sys.executable, "-c", REGISTERING, str(pid), str(patch)]
    return strike_program(words, when, lambda katana: os.kill(katana, signal.SIGKILL))


@situation(49, "katana killed while libunwind is told of new code")
def test_katana_killed_while_it_tells_libunwind(walker: tuple[Built, Built, Path]) -> None:
    """At some of its steps, with KATANA_TORTURE at each.

    A bug: a list of which an entry leads to itself, or nowhere; new code that is never told, since the memory of the
    entry is not empty.
    """
    old, new, patch = walker
    with serving(old.output) as live:
        before = frames(live)
        whole = struck(live.pid, patch, 0)
        assert whole.status == 0, whole.said
        assert listed(live.pid)
    begin, end = (i for i, number in enumerate(whole.calls) if number == _SYS_GETPPID)
    steps = whole.calls[begin:end].count(_SYS_PTRACE)
    assert steps > 30
    with serving(new.output) as after:
        right = expected(after)
    for step in range(1, steps + 1, 1 if os.environ.get("KATANA_TORTURE") else steps // 8):
        with serving(old.output) as live:
            assert struck(live.pid, patch, step).status == -signal.SIGKILL
            assert frames(live) == before, f"killed at step {step} of {steps}: {live.ended}"
            done = katana("apply", patch, "--pid", live.pid)
            assert done.returncode == 0, done.stderr
            assert frames(live) == right, f"killed at step {step} of {steps}: {live.ended}"


# A list as libunwind's, whose entries have WORDS words before the table.
OTHER = r"""
#include <string.h>
struct entry {
  struct entry *next, *prev; unsigned long start, end, gp; int format, pad; unsigned long more[WORDS + 4];
};
static struct { unsigned version, generation; struct entry *first; } list;
static int a_space; void *_ULx86_64_local_addr_space = &a_space;
void _U_dyn_register(struct entry *e) { list.generation++; e->next = list.first; e->prev = 0; list.first = e; }
void _U_dyn_cancel(struct entry *e) {
  struct entry **at = &list.first;
  while (*at != e) at = &(*at)->next;
  *at = e->next; list.generation++;
}
unsigned long _U_dyn_info_list_addr(void) { return (unsigned long)&list; }
int _ULx86_64_get_proc_info_by_ip(void *space, unsigned long pc, unsigned long *told, void *argument) {
  struct entry *e = list.first;
  while (e && !(e->start <= pc && pc < e->end)) e = e->next;
  if (!e || space != &a_space) __builtin_trap();
  told[0] = e->start; told[1] = e->end;
  unsigned long *more = e->more + WORDS;
  if (e->format == 0) { told[3] = more[1]; return 0; }
  int *table = (int *)more[3];
  for (unsigned long n = 0; n < more[2]; n++) if (more[1] + table[2 * n] <= pc) told[0] = more[1] + table[2 * n];
  return 0;
}
"""


@pytest.mark.parametrize(("words", "is_known"), [(0, True), (1, True), (2, False)])
def test_entries_are_laid_out_as_the_libunwind_of_the_process_reads_them(
    words: int, is_known: bool, tmp_path: Path, counter: tuple[Built, Built]
) -> None:
    """1.2 knows no word before the table.  A bug: it takes a length for an address, and the process ends."""
    (tmp_path / "other.c").write_text(OTHER)
    library = tmp_path / "other.so"
    run("gcc", "-shared", "-fPIC", f"-DWORDS={words}", tmp_path / "other.c", "-o", library)
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving("env", f"LD_PRELOAD={library}", counter[0].output) as live:
        assert katana("apply", patch, "--pid", live.pid).returncode == 0
        assert live.ask("a 4") == "41"
        assert listed(live.pid) == is_known
