"""C++ exceptions and new code: thrown in it, caught in it, passing through it, in every kind of build.

The patch comes from the real diff of two builds, and what is right is asked of the new build, which runs beside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from katana_cc.patch.model import PatchObject
from katana_cc.process.apply import ApplyReport, apply_patch
from katana_cc.process.revert import revert_patch
from tests.live.server import Server, identity, serving, write_patch
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
volatile int cleaned;
static volatile int sink;
Guard::~Guard() { cleaned = cleaned + k; sink = k; }
void start(int, char **) {}
NOINLINE int inner(int x) {
  sink = x;
  if (x % 10 == 7) throw Error{x};
  if (x % 10 == 8) throw Other{x};
  if (x % 10 == 9) throw std::out_of_range("inner " + std::to_string(x));
  return x;
}
NOINLINE int outer(int x) {
  try { return middle(x); } catch (const Error &e) { return 1000 + e.code; }
}
std::string answer(int x) {
  cleaned = 0;
  std::string text;
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
}


@pytest.mark.parametrize("mode", ["nopie", "pie"])
@pytest.mark.parametrize("kind", LINKS)
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
