"""C++ exceptions and new code: thrown in it, caught in it, passing through it, in every kind of build.

The patch comes from the real diff of two builds, and what is right is asked of the new build, which runs beside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from katana_cc.elf import constants as c
from katana_cc.errors import BusyError
from katana_cc.patch.model import REGISTRATION, PatchObject, PatchSymbol
from katana_cc.process.apply import ApplyReport, apply_patch
from katana_cc.process.inject import inject
from katana_cc.process.ledger import REGISTERED_OFFSET, encode_registered
from katana_cc.process.plan import prepare
from katana_cc.process.registration import register
from katana_cc.process.revert import revert_patch
from katana_cc.process.target import Target
from tests.live import handmade
from tests.live.handmade import run
from tests.live.programs import COUNTER
from tests.live.server import Server, code_of, identity, katana, katana_json, mappings, serving, write_patch
from tests.support.project import Build, Project, Variant

DRIVER = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <csignal>
#include <pthread.h>
#include <string>
#include "shared.h"
int main(int argc, char **argv) {
  start(argc, argv);
  puts("ready"); fflush(stdout);
  char line[200];
  while (fgets(line, sizeof line, stdin)) { puts(answer(atoi(line)).c_str()); fflush(stdout); }
  return 0;
}
"""
SHARED = r"""
#include <string>
#include <stdexcept>
#define NOINLINE __attribute__((noinline))
struct Error { int code; }; struct Other { int code; };
extern volatile int cleaned;
struct Guard { int k; explicit Guard(int k) : k(k) {} NOINLINE ~Guard(); };
void start(int, char **);
std::string answer(int x);
int outer(int x);   // old: catches, calls middle
int middle(int x);  // changed
int inner(int x);   // old: throws
"""
OLD = r"""
#include "shared.h"
#include <execinfo.h>
#include <pthread.h>
#include <semaphore.h>
#include <unistd.h>
volatile int cleaned;
static volatile int sink;
static sem_t inside, leave;
Guard::~Guard() { cleaned = cleaned + k; sink = k; }
void start(int, char **) { sem_init(&inside, 0, 0); sem_init(&leave, 0, 0); }
NOINLINE int inner(int x) {
  sink = x;
  if (x == 42) { sem_post(&inside); for (;;) pause(); }
  if (x == 43) { void *frames[64]; return backtrace(frames, 64); }
  if (x == 44) { sem_post(&inside); sem_wait(&leave); throw Error{44}; }
  if (x % 10 == 7) throw Error{x};
  if (x % 10 == 8) throw Other{x};
  if (x % 10 == 9) throw std::out_of_range("inner " + std::to_string(x));
  return x;
}
NOINLINE int outer(int x) {
  try { return middle(x); } catch (const Error &e) { return 1000 + e.code; }
}
static void *in_thread(void *x) { middle((int)(long)x); return 0; }
static void *caught_in_thread(void *x) { return (void *)(long)outer((int)(long)x); }
std::string answer(int x) {
  static pthread_t other;
  void *result = 0;
  cleaned = 0;
  std::string text;
  if (x == 100 || x == 200) {
    pthread_create(&other, 0, x == 100 ? in_thread : caught_in_thread, (void *)(long)(x == 100 ? 42 : 44));
    sem_wait(&inside);
    if (x == 200) return "inside";
    pthread_cancel(other);
  }
  if (x == 201) sem_post(&leave);
  if (x == 100 || x == 201) {
    pthread_join(other, &result);
    text = result == PTHREAD_CANCELED ? "cancelled" : std::to_string((long)result);
    return text + " cleaned " + std::to_string(cleaned);
  }
  try { text = std::to_string(outer(x)); }
  catch (const Other &e) { text = "other " + std::to_string(e.code); }
  catch (const std::exception &e) { text = std::string("std ") + e.what(); }
  catch (...) { text = "something"; }
  return text + " cleaned " + std::to_string(cleaned);
}
"""
HEAD = '#include "shared.h"\nstatic volatile int sink;\n'
BEFORE = HEAD + "NOINLINE int middle(int x) { sink = x; sink = x + 1; return inner(x) + 1; }\n"
AFTER = {
    "throws": "NOINLINE int middle(int x) { sink = x; if (x == 3) throw Error{30}; if (x == 4) throw Other{40};"
    ' if (x == 5) throw std::runtime_error("new"); return inner(x) + 2; }\n',
    "catches": "NOINLINE int middle(int x) { sink = x; try { return inner(x); } catch (const Error &e) { return e.code"
    " + 5; } catch (const std::out_of_range &e) { return 66; } }\n",
    "passes": "NOINLINE int middle(int x) { sink = x; int r = inner(x); sink = r; return r + 3; }\n",
    "cleans": "NOINLINE int middle(int x) { Guard one(1); Guard two(x); return inner(x) + 4; }\n",
    "rethrows": "NOINLINE int middle(int x) { Guard g(x); try { return inner(x); } catch (const Other &) { sink = 3;"
    ' throw; } catch (...) { sink = 4; throw std::runtime_error("in its place"); } }\n',
    "nests": "NOINLINE int middle(int x) { int sum = 0; for (int i = 6; i < 10; i++) { Guard g(i); try { try { sum +="
    " inner(i); } catch (const Error &e) { sum += 100; throw Other{e.code + sum}; } } catch (const Other &o)"
    " { sum += 1000 * o.code; } catch (...) { sum += 7; } } return sum + inner(x); }\n",
    "new_type": "namespace { struct Fresh : std::runtime_error { int k; Fresh(int k) : std::runtime_error(\"fresh\"),"
    " k(k) {} }; struct Local { int k; }; }\nNOINLINE static int deeper(int x) { if (x == 2) throw Fresh(x); if (x =="
    " 3) throw Local{x}; return inner(x); }\nNOINLINE int middle(int x) { sink = x; try { return deeper(x); } catch"
    " (const Local &l) { return 70 + l.k; } catch (const Other &o) { throw Fresh(o.code); } }\n",
    "function_try": "struct Holder { Guard g; int v; Holder(int x); };\nNOINLINE Holder::Holder(int x) try : g(x),"
    " v(inner(x)) {} catch (const Other &o) { sink = o.code; throw Error{o.code + 1}; }\n"
    "NOINLINE int middle(int x) { Holder h(x); return h.v + 6; }\n",
}  # fmt: skip
ASKED = (0, 1, 2, 3, 4, 5, 7, 8, 9, 17, 18, 19)
VARIANTS = [
    Variant("gcc", "-O0", "pie"),
    Variant("gcc", "-O2", "nopie"),
    Variant("gcc", "-O2", "pie", "lld"),
    Variant("gcc", "-O0", "nopie", "gold"),
    Variant("clang", "-O0", "nopie", "lld"),
    Variant("clang", "-O2", "pie"),
    Variant("clang", "-O2", "nopie"),
    Variant("clang", "-O0", "pie", "mold"),
]
GCC = Variant("gcc", "-O2", "pie")
CXX = ("-Wl,--no-as-needed", "-lstdc++")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two builds and the patch from the one to the other."""

    old: Build
    new: Build
    patch: PatchObject
    path: Path


def pairs(
    folder: Path,
    variant: Variant,
    before: str,
    afters: Mapping[str, str],
    *,
    link: Sequence[str] = CXX,
    more: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, Pair]]:
    """Both builds of a program whose middle.cc changes, for each change by its name."""
    if not variant.available():
        pytest.skip(f"{variant} needs a tool that is not installed")
    project = Project(folder, variant)
    files = {"shared.h": SHARED, "main.cc": DRIVER, "old.cc": OLD, "middle.cc": before, **(more or {})}
    flags = [*link, "-pthread"]
    old = project.build(files, link_flags=flags)
    for name, after in afters.items():
        kept = [file for file in files if file.endswith(".cc") and file != "middle.cc"]
        new = project.build({**files, "middle.cc": after}, link_flags=flags, keep=kept)
        result = project.checked(old, new)
        assert result.refusals == [], name
        yield name, Pair(old, new, result.patch, write_patch(folder, result.patch, f"{name}.kpo"))


def pair(folder: Path, variant: Variant, before: str, after: str) -> Pair:
    """The builds for one change."""
    return next(found for _, found in pairs(folder, variant, before, {"it": after}))


def apply(made: Pair, server: Server) -> tuple[ApplyReport, ...]:
    """Apply the patch, in this process."""
    return apply_patch(made.patch, identity(made.patch), [server.pid])


@contextlib.contextmanager
def patched(made: Pair) -> Iterator[tuple[Server, Server, Server]]:
    """A patched process, the old build and the new build."""
    with serving(made.old.path) as live, serving(made.old.path) as before, serving(made.new.path) as after:
        apply(made, live)
        yield live, before, after


def told(server: Server, asked: Sequence[int] = ASKED) -> list[str]:
    """All answers."""
    return [server.ask(str(x)) for x in asked]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_exceptions_and_new_code(variant: Variant, tmp_path: Path) -> None:
    """Each way to meet new code.  A bug: the process ends, a cleanup is left out or runs twice."""
    for name, made in pairs(tmp_path, variant, BEFORE, {name: HEAD + after for name, after in AFTER.items()}):
        with patched(made) as (live, before, new):
            expected = told(new)
            assert expected != told(before), name
            assert told(live) == expected, name
            revert_patch([live.pid])
            assert told(live) == told(before), name


@pytest.mark.parametrize("variant", [GCC, Variant("clang", "-O2", "nopie")], ids=str)
def test_exceptions_where_one_patch_takes_the_place_of_another(variant: Variant, tmp_path: Path) -> None:
    """Each of the changes over the one before, in one process.  A bug: the unwinder finds frames of the wrong patch, or
    a type that both bring is two types."""
    made = [p for _, p in pairs(tmp_path, variant, BEFORE, {name: HEAD + after for name, after in AFTER.items()})]
    with serving(made[0].old.path) as live, serving(made[0].old.path) as before:
        for each in (*made, *reversed(made)):
            with serving(each.new.path) as new:
                (report,) = apply(each, live)
                assert report.outcome in ("applied", "already applied")
                assert told(live) == told(new)
        revert_patch([live.pid])
        assert told(live) == told(before)


@pytest.mark.parametrize("variant", VARIANTS[:2] + VARIANTS[5:7], ids=str)
def test_handler_that_changed_its_type(variant: Variant, tmp_path: Path) -> None:
    """No byte of code differs.  A bug: nothing is patched, or the old table goes on being used."""
    source = (
        "NOINLINE int middle(int x) {{ sink = x; try {{ return inner(x); }} catch (const {} &) {{ return 5; }} }}\n"
    )
    made = pair(tmp_path, variant, HEAD + source.format("Error"), HEAD + source.format("Other"))
    with patched(made) as (live, before, new):
        assert told(live) == told(new) != told(before)
        revert_patch([live.pid])
        assert told(live) == told(before)


def test_cancelled_thread_runs_the_cleanups_of_new_code(tmp_path: Path) -> None:
    """Forced unwinding goes the way of exceptions.  A bug: the process ends, or the cleanups are left out."""
    made = pair(tmp_path, GCC, BEFORE, HEAD + AFTER["cleans"])
    with patched(made) as (live, before, new):
        assert live.ask("100") == new.ask("100") == "cancelled cleaned 43"
        assert before.ask("100") == "cancelled cleaned 0"


def test_backtrace_goes_on_beyond_new_code(tmp_path: Path) -> None:
    """A bug: it ends at the first frame of new code."""
    made = pair(tmp_path, GCC, BEFORE, HEAD + AFTER["cleans"])
    with patched(made) as (live, _, new):
        depth = int(new.ask("43").split()[0])
        assert depth > 8
        assert live.ask("43").split()[0] == str(depth)


def test_exception_after_the_revert_passes_through_code_that_stayed(tmp_path: Path) -> None:
    """A pointer to a function of the patch may be held on.  A bug: its frames went with the revert, and the process
    ends."""
    old = "int (*kept)(int);\nNOINLINE int middle(int x) { sink = x; return kept ? kept(x) + 1 : inner(x); }\n"
    new = "extern int (*kept)(int);\nNOINLINE static int fresh(int x) { Guard g(x); return inner(x) + 70; }\n"
    new += "int (*kept)(int);\nNOINLINE int middle(int x) { kept = fresh; return fresh(x) + 5; }\n"
    made = pair(tmp_path, GCC, HEAD + old, HEAD + new)
    with patched(made) as (live, _, _new):
        assert live.ask("1") == "76 cleaned 1"
        revert_patch([live.pid])
        assert live.ask("1") == "72 cleaned 1"
        assert live.ask("7") == "1007 cleaned 7"
        assert live.ask("9") == "std inner 9 cleaned 9"


def test_one_patch_after_the_other(tmp_path: Path) -> None:
    """The frames of both stay registered.  A bug: those of the one are not found when the other's are there."""
    afters = {name: HEAD + AFTER[name] for name in ("throws", "cleans")}
    first, second = (made for _, made in pairs(tmp_path, GCC, BEFORE, afters))
    with serving(first.old.path) as live:
        for made in (first, second, first, second):
            with serving(made.new.path) as new:
                apply(made, live)
                assert told(live) == told(new)
                revert_patch([live.pid])
        apply(first, live)
        with serving(first.new.path) as new:
            assert told(live) == told(new)
        assert len({line.split()[4] for line in mappings(live.pid)}) == 2


def test_frames_are_taken_out_with_a_mapping_nothing_led_into(tmp_path: Path) -> None:
    """The commit finds no safe moment.  A bug: the unwinder goes on reading memory that is gone."""
    made = pair(tmp_path, GCC, BEFORE, HEAD + AFTER["cleans"])
    with serving(made.old.path) as live, serving(made.new.path) as new:
        expected = told(live)
        assert live.ask("200") == "inside"
        with pytest.raises(BusyError, match="_Z6middlei"):
            apply_patch(made.patch, identity(made.patch), [live.pid], wait=0.2)
        assert mappings(live.pid) == []
        assert told(live) == expected
        assert live.ask("201") == "1044 cleaned 0"
        (report,) = apply(made, live)
        assert report.register_pause_us > 0
        assert told(live) == told(new)


@pytest.mark.parametrize("is_noted", [True, False], ids=["noted", "not noted"])
def test_katana_that_died_before_the_commit(is_noted: bool, tmp_path: Path) -> None:
    """The frames are registered, and the ledger may not say so yet.  A bug: they are registered twice, or not found."""
    made = pair(tmp_path, GCC, BEFORE, HEAD + AFTER["throws"])
    with serving(made.old.path) as live, serving(made.new.path) as new:
        with Target(live.pid) as target:
            plan, _ = inject(target, prepare(target, made.patch, identity(made.patch)))
            register(target, plan.ledger, 5.0)
            if not is_noted:
                target.memory.write(plan.base + REGISTERED_OFFSET, encode_registered(False))
        (patch,) = katana_json("status", "--pid", live.pid)["processes"][0]["patches"]
        assert (patch["state"], patch["frames_registered"]) == ("prepared", is_noted)
        before = mappings(live.pid)
        done = katana("apply", made.path, "--pid", live.pid)
        assert done.returncode == 0, done.stderr
        assert mappings(live.pid) == before
        assert told(live) == told(new)
        with Target(live.pid) as target:
            (mapping,) = target.patches
            assert mapping.ledger is not None
            assert mapping.ledger.is_registered
            head = target.memory.read(mapping.ledger.registrations[0].record, 48)
        # `struct object` of libgcc: begin, bases, the table; a second registration would make a list of itself.
        assert head.count(plan.base.to_bytes(8, "little")[2:]) <= 2


RACE = OLD.replace(
    "void start(int, char **) {",
    """static volatile long rounds[4];
static volatile int wrong;
static void *thrower(void *which) {
  for (int i = 1;; i = i % 9 + 1) {
    int result;
    try { result = outer(i); } catch (const Other &e) { result = -e.code; } catch (const std::exception &) {
      result = -9;
    }
    bool is_old = result == (i == 7 ? 1007 : i == 8 ? -8 : i == 9 ? -9 : i + 1);
    bool is_new = result == (i == 7 ? 1007 : i == 8 ? -8 : i == 9 ? -9 : i + 4);
    if (!is_old && !is_new) wrong = i * 10000 + result;
    rounds[(long)which] = rounds[(long)which] + 1;
    for (int n = 0; n < 300000; n++) sink = n;  // most of the time outside, or there is no safe moment
  }
  return 0;
}
void start(int, char **) {
  pthread_t t; for (long i = 0; i < 4; i++) pthread_create(&t, 0, thrower, (void *)i);
""",
).replace(
    "  cleaned = 0;\n",
    """  if (x == 300) {
    long least = rounds[0];
    for (long r : rounds) least = r < least ? r : least;
    return std::to_string(wrong) + " " + std::to_string(least);
  }
  cleaned = 0;
""",
)


@pytest.mark.parametrize("variant", [GCC, Variant("clang", "-O2", "nopie")], ids=str)
def test_threads_that_throw_all_the_time(variant: Variant, tmp_path: Path) -> None:
    """A bug: an exception on its way is lost, a thread dies or hangs, or a registration corrupts the unwinder."""
    ((_, made),) = pairs(tmp_path, variant, BEFORE, {"cleans": HEAD + AFTER["cleans"]}, more={"old.cc": RACE})
    with serving(made.old.path) as live:
        for _ in range(8):
            (report,) = apply_patch(made.patch, identity(made.patch), [live.pid], wait=30.0)
            assert report.outcome == "applied"
            _one_more_round(live)
            revert_patch([live.pid], wait=30.0)
            _one_more_round(live)


def _one_more_round(live: Server) -> None:
    """Wait until every thread has thrown once more; none may have seen anything but old or new."""
    wrong, start = live.ask("300").split()
    while True:
        wrong, rounds = live.ask("300").split()
        assert wrong == "0"
        if int(rounds) > int(start) + 9:
            return


# An allocator of its own, with a lock that is held for milliseconds when it is asked for nothing.
ALLOCATOR = OLD.replace(
    "void start(int, char **) {",
    """#include <cstddef>
#include <cerrno>
alignas(64) static char arena[1 << 26];
static size_t taken;
static volatile int held;
extern "C" void *malloc(size_t n) {
  while (__sync_lock_test_and_set(&held, 1)) {}
  if (!n) for (int i = 0; i < 1000000; i++) sink = i;
  char *found = arena + 16 + taken;
  *(size_t *)(found - 16) = n;
  taken += (n + 31) & ~(size_t)15;
  __sync_lock_release(&held);
  return found;
}
extern "C" void free(void *) {}
extern "C" void *calloc(size_t a, size_t b) { return memset(malloc(a * b + 1), 0, a * b); }
extern "C" void *realloc(void *p, size_t n) {
  void *found = malloc(n + 1);
  return p ? memcpy(found, p, n < ((size_t *)p)[-2] ? n : ((size_t *)p)[-2]) : found;
}
static void *waiting(void *p) { for (;;) pause(); return p; }
void start(int, char **) {
  pthread_t t; pthread_create(&t, 0, waiting, 0);
""",
).replace("#include <execinfo.h>", "#include <execinfo.h>\n#include <cstring>")
NEVER_WAITS = (
    DRIVER.replace(
        "while (fgets(line",
        "struct pollfd in = {0, POLLIN, 0}; setvbuf(stdin, 0, _IONBF, 0);\n"
        "  while (true) { while (!poll(&in, 1, 0)) { void *volatile p = malloc(0); free(p); }\n"
        "  if (!fgets(line",
    )
    .replace("stdin)) {", "stdin)) break;")
    .replace("#include <cstring>", "#include <cstring>\n#include <poll.h>")
)


def test_no_call_is_made_where_the_allocator_holds_its_lock(tmp_path: Path) -> None:
    """The first thread nearly always holds it, another one waits.  A bug: a call in the first waits for itself."""
    more = {"old.cc": ALLOCATOR, "main.cc": NEVER_WAITS}
    ((_, made),) = pairs(tmp_path, GCC, BEFORE, {"throws": HEAD + AFTER["throws"]}, more=more)
    with serving(made.old.path) as live, serving(made.new.path) as new:
        (report,) = apply(made, live)
        assert report.register_pause_us > 0
        assert told(live) == told(new)


def _library(tmp_path: Path) -> tuple[Pair, Path, Path]:
    """Pair of a shared library whose `middle` changes; folders with the old and the new one."""
    variant = Variant("gcc", "-O2", "shared")
    project = Project(tmp_path / "library", variant)
    inner = OLD[OLD.index("NOINLINE int inner") : OLD.index("NOINLINE int outer")]
    low = '#include "shared.h"\n#include <execinfo.h>\n#include <semaphore.h>\n#include <unistd.h>\n'
    low += "volatile int cleaned;\nstatic volatile int sink;\nsem_t inside, leave;\n"
    low += "Guard::~Guard() { cleaned = cleaned + k; sink = k; }\n" + inner
    flags = [*CXX, "-Wl,-soname,libmiddle.so"]
    builds, folders = [], []
    for name, source in (("old", BEFORE), ("new", HEAD + AFTER["new_type"])):
        files = {"shared.h": SHARED, "low.cc": low, "middle.cc": source}
        builds.append(project.build(files, link_flags=flags, output="libmiddle.so"))
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        shutil.copy(builds[-1].path, folders[-1] / "libmiddle.so")
    result = project.checked(builds[0], builds[1])
    assert result.refusals == []
    made = Pair(builds[0], builds[1], result.patch, write_patch(tmp_path, result.patch))
    return made, folders[0], folders[1]


@pytest.mark.parametrize("opened", [False, True], ids=["linked", "dlopen"])
def test_shared_library(opened: bool, tmp_path: Path) -> None:
    """Types and handlers lie on both sides of its boundary.  A bug: a type is not recognised as the same."""
    made, old, new = _library(tmp_path)
    outer = OLD[OLD.index("NOINLINE int outer") : OLD.index("static void *in_thread")]
    tell = OLD[OLD.index("  try { text = std::to_string(outer(x)); }") :]
    source = '#include "shared.h"\n#include <dlfcn.h>\nvoid start(int, char **argv);\n'
    if opened:
        source += "static int (*opened)(int);\nstatic volatile int *counter;\n#define middle opened\n"
        source += "#define cleaned (*counter)\n"
    source += outer + "std::string answer(int x) {\n  cleaned = 0;\n  std::string text;\n" + tell
    if opened:
        source += "void start(int, char **argv) { void *h = dlopen(argv[1], RTLD_NOW); opened = (int (*)(int))dlsym(h, "
        source += '"_Z6middlei"); counter = (volatile int *)dlsym(h, "cleaned"); }\n'
    else:
        source += "void start(int, char **) {}\n"
    for name, text in (("shared.h", SHARED), ("main.cc", DRIVER), ("user.cc", source)):
        (tmp_path / name).write_text(text)
    program = tmp_path / "program"
    link = [] if opened else [f"-L{old}", "-lmiddle"]
    run("g++", "-O2", tmp_path / "main.cc", tmp_path / "user.cc", *link, "-ldl", "-pthread", "-o", program)

    def words(folder: Path) -> tuple[str | Path, ...]:
        return ("env", f"LD_LIBRARY_PATH={folder}", program, folder / "libmiddle.so")

    with serving(*words(old)) as live, serving(*words(old)) as before, serving(*words(new)) as after:
        apply(made, live)
        assert told(live) == told(after) != told(before)
        revert_patch([live.pid])
        assert told(live) == told(before)


def _needing(tmp_path: Path) -> tuple[Path, PatchObject]:
    """A C program without an unwinder, and a patch that must have its frames registered."""
    old = handmade.build(tmp_path / "old", "server", COUNTER)
    new = handmade.build(tmp_path / "new", "server", COUNTER.replace("/*ANSWER*/", "x *= 3;"))
    po = handmade.patch_from(old, new, ("answer",))
    names = tuple(PatchSymbol(name, c.STB_GLOBAL, c.STT_NOTYPE, None, 0, 0) for name in REGISTRATION)
    return old.output, dataclasses.replace(po, symbols=(*po.symbols, *names))


def test_process_without_an_unwinder_is_refused(tmp_path: Path) -> None:
    """A bug: it is found out when an exception is thrown."""
    program, po = _needing(tmp_path)
    with serving(program) as live:
        code = code_of(live.pid)
        done = katana("apply", write_patch(tmp_path, po), "--pid", live.pid)
        assert (done.returncode, "no unwinder is loaded" in done.stderr) == (3, True), done.stderr
        assert (mappings(live.pid), code_of(live.pid)) == ([], code)


def test_unwinder_that_does_not_take_frames_is_refused(tmp_path: Path) -> None:
    """LLVM's has functions of these names that do nothing.  A bug: it is believed."""
    program, po = _needing(tmp_path)
    (tmp_path / "none.c").write_text(
        "void __register_frame_info(void *b, void *o) {}\nvoid *__deregister_frame_info(void *b) { return 0; }\n"
        "void *_Unwind_Find_FDE(void *pc, void *b) { return 0; }\n"
    )
    run("gcc", "-shared", "-fPIC", tmp_path / "none.c", "-o", tmp_path / "none.so")
    with serving("env", f"LD_PRELOAD={tmp_path / 'none.so'}", program) as live:
        code = code_of(live.pid)
        done = katana("apply", write_patch(tmp_path, po), "--pid", live.pid)
        assert (done.returncode, "does not take new frames" in done.stderr) == (3, True), done.stderr
        assert (mappings(live.pid), code_of(live.pid), live.ask("a 4")) == ([], code, "5")


def test_noexcept_ends_the_process(tmp_path: Path) -> None:
    """A bug: what must not get out gets out."""
    after = HEAD + "NOINLINE static int still(int x) noexcept { sink = x; return inner(x) + 9; }\n"
    after += "NOINLINE int middle(int x) { sink = x; return still(x) + 1; }\n"
    made = pair(tmp_path, GCC, BEFORE, after)
    with patched(made) as (live, _, new):
        assert live.ask("1") == new.ask("1")
        for server in (live, new):
            server.tell("7")
        assert live.finish()[-1] == new.finish()[-1] == "status -6"


LINKS = {
    "static-libgcc": (*CXX, "-static-libgcc"),
    "static": ("-Wl,--no-as-needed", "-static", "-lstdc++"),
    "static-libstdc++": ("-Wl,-Bstatic", "-lstdc++", "-Wl,-Bdynamic", "-static-libgcc"),
    "stripped": (*CXX, "-Wl,-s"),
    "libunwind": ("-Wl,--no-as-needed", "-lunwind", "-lstdc++"),  # which throws then, in libgcc's place
}


def _links() -> Iterator[ParameterSet]:
    """Each with both modes, of which one is of `make test-rest`."""
    for number, kind in enumerate(LINKS):
        for place, mode in enumerate(("nopie", "pie")):
            marks = [pytest.mark.rest] if (number + place) % 2 else []
            yield pytest.param(kind, mode, marks=marks, id=f"{kind}-{mode}")


@pytest.mark.parametrize(("kind", "mode"), list(_links()))
def test_unwinder_of_its_own(kind: str, mode: str, tmp_path: Path) -> None:
    """Frames are registered with the unwinder that will look for them.  A bug: with another one only."""
    link = LINKS[kind]
    if kind == "static" and mode == "pie":
        link = tuple("-static-pie" if flag == "-static" else flag for flag in link)
    if kind.startswith("static-libstdc"):
        link = ("-lm", "-Wl,--start-group", *link, "-Wl,--end-group")
    variant = Variant("g++" if kind != "stripped" else "gcc", "-O2", mode)
    afters = {name: HEAD + AFTER[name] for name in ("throws", "cleans", "new_type")}
    for name, made in pairs(tmp_path, variant, BEFORE, afters, link=link):
        with patched(made) as (live, before, new):
            assert told(live) == told(new) != told(before), name
