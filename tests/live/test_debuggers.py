"""Debuggers and profilers see new code: gdb, elfutils and perf, each against what it says of the new build itself."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from katana_cc.elf.reader import ElfFile
from tests.live.conftest import TIMES_TEN
from tests.live.debugger import below, differing, gdb, gdb_at, plain, script_of
from tests.live.handmade import Built, build, patch_from
from tests.live.programs import COUNTER
from tests.live.server import Server, katana, mappings, serving, write_patch
from tests.live.situations import situation
from tests.support.project import Build, Project, Variant

SHARED = """\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <pthread.h>
#include <execinfo.h>
#define NOINLINE __attribute__((noinline))
struct item { int id; const char *name; double weight[2]; };
enum mode { SLOW = 1, FAST = 4 };
#ifdef __cplusplus
extern "C" {
#endif
extern long total;
void wait_inside(int depth);
int depth_here(void);
long work(struct item *item, long times, enum mode mode);
#ifdef __cplusplus
}
#endif
"""
MAIN = r"""
#include "shared.h"
long total = 7;
static int gate[2];
static volatile int sink;
NOINLINE void wait_inside(int depth) {
  static char byte;
  if (depth == 99) { puts("inside"); fflush(stdout); }
  while (depth == 99 && read(gate[0], &byte, 1) < 0) {}
  sink = depth;
}
NOINLINE int depth_here(void) { void *frames[64]; return backtrace(frames, 64); }
NOINLINE long outer(long x) {
  struct item one = {(int)x, "first", {1.5, 2.5}};
  long result = work(&one, x, x > 5 ? FAST : SLOW);
  sink = (int)result;
  return result + one.id;
}
static void *in_thread(void *x) { return (void *)outer((long)x); }
int main(void) {
  if (pipe(gate)) return 1;
  void *frames[2]; sink = backtrace(frames, 2);
  puts("ready"); fflush(stdout);
  char line[200];
  pthread_t t;
  while (fgets(line, sizeof line, stdin)) {
    long x = atol(line + 2);
    if (line[0] == 'a') printf("%ld\n", outer(x));
    if (line[0] == 'i') pthread_create(&t, 0, in_thread, (void *)99L);
    if (line[0] == 'l') { if (write(gate[1], "x", 1) != 1) return 1; pthread_join(t, 0); puts("left"); }
    fflush(stdout);
  }
  return 0;
}
"""
WORK = r"""
#include "shared.h"
static long kept = 40;
static inline long twice(long k) { long doubled = k * 2; wait_inside((int)k); return doubled + kept; }
static NOINLINE long step(struct item *item, long left)
{
  static int calls;
  char label[8] = "step";
  calls++;
  if (left > 0 && left < 90) return step(item, left - 1) + calls;
  @CHANGE@
  total += label[0];
  return total + depth_here();
}
long work(struct item *item, long times, enum mode mode)
{
  struct item copy = *item;
  copy.weight[0] += (double)mode;
  long result = step(&copy, times);
  return result + copy.id;
}
"""
_BEFORE = "{ long sum = left + item->id; wait_inside((int)sum); sum += kept; kept += sum & 1; }"
_AFTER = "{ long more = left * 3; long sum = more; sum += twice(item->id); kept += sum & 1; sum += more; }"
OLD, NEW = (WORK.replace("@CHANGE@", text) for text in (_BEFORE, _AFTER))
_WORKER = """\
namespace space { struct Worker { long base; NOINLINE long run(struct item *item, long left) const; };
NOINLINE long Worker::run(struct item *item, long left) const
{
  @METHOD@
  wait_inside(item->id);
  return sum + depth_here();
} }
static NOINLINE long step"""
CPP = WORK.replace("static NOINLINE long step", _WORKER).replace(
    "return total + depth_here();", "{ space::Worker worker{total}; return worker.run(item, left) + 1; }"
)
_LAMBDA = "long sum = base * 2 + left; auto add = [&](int k) { sum += k; }; add(item->id);"
CPP_OLD = CPP.replace("@CHANGE@", _BEFORE).replace("@METHOD@", "long sum = base + left;")
CPP_NEW = CPP.replace("@CHANGE@", _BEFORE).replace("@METHOD@", _LAMBDA)


@dataclass(frozen=True, slots=True)
class Builds:
    """The old build, the new one, and the patch between them."""

    old: Build
    new: Build
    patch: Path
    folder: Path
    variant: Variant


def made(folder: Path, variant: Variant, suffix: str, old: str, new: str) -> Builds:
    """Both builds, as a project records them, and the patch of their diff."""
    if not variant.available():
        pytest.skip(f"{variant} needs a tool that is not installed")
    project = Project(folder, variant)
    first = project.build(
        {"shared.h": SHARED, "main.c": MAIN, f"work.{suffix}": old}, order=["main.c", f"work.{suffix}"]
    )
    second = project.build(
        {"shared.h": SHARED, "main.c": MAIN, f"work.{suffix}": new}, order=["main.c", f"work.{suffix}"]
    )
    result = project.diff(first, second)
    assert result.refusals == []
    path = folder / "patch.kpo"
    path.write_bytes(result.data)
    return Builds(first, second, path, folder, variant)


_LINK = ("-pthread", "-Wl,--no-as-needed", "-lstdc++")
VARIANTS = {
    "gcc-O0-pie": ("c", Variant("gcc", "-O0", "pie", compile_flags=("-pthread",), link_flags=_LINK)),
    "gcc-O2-nopie": ("c", Variant("gcc", "-O2", "nopie", compile_flags=("-pthread",), link_flags=_LINK)),
    "clang-O1-pie": ("c", Variant("clang", "-O1", "pie", compile_flags=("-pthread",), link_flags=_LINK)),
    "g++-O2-pie": ("cc", Variant("gcc", "-O2", "pie", compile_flags=("-pthread",), link_flags=_LINK)),
    "g++-O0-nopie": ("cc", Variant("gcc", "-O0", "nopie", compile_flags=("-pthread",), link_flags=_LINK)),
}


@pytest.fixture(scope="module", params=VARIANTS)
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """The program in C or C++, in one way to build it."""
    suffix, variant = VARIANTS[request.param]
    sources = (OLD, NEW) if suffix == "c" else (CPP_OLD, CPP_NEW)
    return made(tmp_path_factory.mktemp("debuggers"), variant, suffix, *sources)


def applied(server: Server, patch: Path) -> None:
    done = katana("apply", patch, "--pid", server.pid)
    assert done.returncode == 0, done.stderr


@situation(51, "gdb: function, line, arguments and locals of new code, as of the new build")
def test_gdb_says_of_new_code_what_it_says_of_the_new_build(builds: Builds) -> None:
    """A bug: a frame without name or line, a wrong argument, local or type, a backtrace that ends in new code."""
    with serving(builds.old.path) as live, serving(builds.new.path) as after:
        applied(live, builds.patch)
        said = []
        for server in (live, after):
            script = script_of(server.pid, builds.folder)
            where = "wait_inside if depth == 3"
            text, answer = gdb_at(server, "a 3", script, where, "backtrace full", "up", "info line", "up", "ptype item")
            said.append((below(plain(text), "wait_inside", "outer"), plain(text)[-6:], answer))
            assert "in main (" in text
        assert differing(said[0][0], said[1][0]) == []
        assert said[0][1:] == said[1][1:]
        assert any("# step (" in line for line in said[0][0])
        if "-O0" in str(builds.variant):
            assert said[0] == said[1], "nothing is optimized out"
            assert any(re.search(r"(sum|more) = \d", line) for line in said[0][0])


@situation(51, "gdb and eu-stack: a thread blocked in new code, to its start")
def test_a_thread_blocked_in_new_code_is_unwound_to_its_start(builds: Builds) -> None:
    """A bug: gdb and eu-stack stop at the first frame of new code."""
    with serving(builds.old.path) as live, serving(builds.new.path) as after:
        applied(live, builds.patch)
        stacks = []
        for server in (live, after):
            assert server.ask("i") == "inside"
            text = gdb(server.pid, script_of(server.pid, builds.folder), "thread 2", "backtrace full")
            assert "start_thread" in text.splitlines()[-1] or "start_thread" in text
            elf = subprocess.run(
                ["eu-stack", "-p", str(server.pid)], capture_output=True, text=True, check=False
            ).stdout
            second = re.sub(r"0x[0-9a-f]+", "0x", elf.split("TID ")[2])
            stacks.append((below(plain(text), "wait_inside", "outer"), second.splitlines()[1:]))
            assert server.ask("l") == "left"
        assert differing(stacks[0][0], stacks[1][0]) == []
        assert stacks[0][1] == stacks[1][1]


@situation(51, "backtrace() of the C library through new code")
def test_backtrace_of_the_c_library_goes_through_new_code(builds: Builds) -> None:
    """A bug: the frames of new code are not registered with the unwinder that is loaded, and a crash handler's trace
    ends there."""
    with serving(builds.old.path) as live, serving(builds.new.path) as after:
        applied(live, builds.patch)
        assert [live.ask(f"a {x}") for x in (1, 2, 3)] == [after.ask(f"a {x}") for x in (1, 2, 3)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """One build that is enough for the rest."""
    suffix, variant = VARIANTS["gcc-O2-nopie"]
    return made(tmp_path_factory.mktemp("one"), variant, suffix, OLD, NEW)


@situation(51, "gdb: a breakpoint by line in new code")
def test_a_breakpoint_in_new_code_stops_there(one: Builds) -> None:
    """A bug: a breakpoint by line is set in the old code only, where nobody comes by."""
    line = next(n for n, text in enumerate(NEW.splitlines(), 1) if "long more" in text)
    with serving(one.old.path) as live:
        applied(live, one.patch)
        script = script_of(live.pid, one.folder)
        text, answer = gdb_at(live, "a 0", script, f"work.c:{line}", "frame", "delete", "finish", "info symbol $pc")
        assert re.search(rf"step \(.*\) at .*work\.c:{line}", text)
        assert re.search("^(work|outer) .*in section .text", text, re.M), "it returns to the old caller"
        assert int(answer)


def test_old_and_new_variables_are_both_told(one: Builds) -> None:
    """A bug: a static of the file or of the function, which the target has, is not found from new code."""
    with serving(one.old.path) as live, serving(one.new.path) as after:
        applied(live, one.patch)
        said = []
        for server in (live, after):
            server.ask("a 2")
            script = script_of(server.pid, one.folder)
            asks = ["print total", "print kept", "up", "print kept", "print calls", "ptype item"]
            text, _ = gdb_at(server, "a 3", script, "wait_inside", "up", *asks)
            said.append([x for x in plain(text) if x.startswith(("$", "type = "))])
        assert said[0] == said[1]
        assert [x.partition(" = ")[0] for x in said[0]] == ["$1", "$2", "$3", "$4", "type"]


def test_after_a_revert_nothing_is_said_of_the_patch(one: Builds) -> None:
    """A bug: symbols of code that nothing leads to any more."""
    with serving(one.old.path) as live:
        assert katana("status", "--pid", live.pid, "--gdb").stdout == "# no patch is applied\n"
        applied(live, one.patch)
        assert "add-symbol-file-from-memory 0x" in katana("status", "--pid", live.pid, "--gdb").stdout
        assert katana("revert", "--pid", live.pid).returncode == 0
        assert katana("status", "--pid", live.pid, "--gdb").stdout == "# no patch is applied\n"
        applied(live, one.patch)
        assert katana("status", "--pid", live.pid, "--gdb").stdout.count("add-symbol-file-from-memory") == 1


@situation(51, "gdb: new code of a stripped program")
def test_a_stripped_program_shows_its_new_code(one: Builds, tmp_path: Path) -> None:
    """A bug: what a debugger needs is looked for in the program."""
    program = tmp_path / "stripped"
    subprocess.run(["strip", "-o", program, one.old.path], check=True)
    with serving(program) as live:
        applied(live, one.patch)
        assert live.ask("i") == "inside"
        text = gdb(live.pid, script_of(live.pid, tmp_path), "thread 2", "backtrace")
        frames = plain(text)
        assert any(re.search(r"step \(item=.*, left=99\) at work\.c:\d+", x) for x in frames), text
        assert "start_thread" in text


def test_without_debug_information_names_and_frames_remain(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: symbols come from DWARF only."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving(counter[0].output) as live:
        applied(live, patch)
        text, answer = gdb_at(live, "a 5", script_of(live.pid, tmp_path), "*answer", "stepi", "backtrace")
        assert answer == "51"
        assert "#0  0x" in text
        assert "answer ()" in text
        assert "in main (" in text


def test_several_patches_are_all_told(tmp_path: Path) -> None:
    """A bug: of a program and its library, only one is shown."""
    library = "volatile int side; int other_side(int x) { side = x; return /*X*/ x + 2; }\n"
    outs = []
    for name, text in (("old", library), ("new", library.replace("/*X*/", "x * x +"))):
        flags = ("-O2", "-fPIC")
        outs.append(build(tmp_path / name, "libside.so", text, flags=flags, link=("-shared",)))
    source = COUNTER.replace("/*GLOBALS*/", "int other_side(int);").replace("/*OTHER*/", "return other_side(x);")
    changed = source.replace("/*ANSWER*/", "calls += 2;")
    programs = [
        build(tmp_path / f"p{n}", "server", text, more=(outs[0].output,)) for n, text in enumerate((source, changed))
    ]
    first = write_patch(tmp_path, patch_from(programs[0], programs[1], ("answer",)), "a.kpo")
    second = write_patch(tmp_path, patch_from(outs[0], outs[1], ("other_side",)), "b.kpo")
    with serving(programs[0].output) as live:
        applied(live, first)
        applied(live, second)
        script = script_of(live.pid, tmp_path)
        assert script.read_text().count("add-symbol-file-from-memory") == 2
        text = gdb(live.pid, script, "info symbol 'answer'", "info functions -n ^answer$", "info line other_side")
        starts = [int(m, 16) for m in re.findall(r"from-memory (0x[0-9a-f]+)", script.read_text())]
        assert len(starts) == len(set(starts)) == len(mappings_of(live.pid))
        assert text.count("answer") >= 2
        refused = katana("status", "--pid", live.pid, "--symfs", tmp_path / "fs")
        assert refused.returncode == 3
        assert "under one name" in refused.stderr
        assert not (tmp_path / "fs").exists()


def mappings_of(pid: int) -> set[str]:
    """The inodes of what katana mapped."""
    return {line.split()[4] for line in mappings(pid)}


def test_the_image_is_an_elf_file_that_tools_accept(one: Builds, tmp_path: Path) -> None:
    with serving(one.old.path) as live:
        applied(live, one.patch)
        done = katana("status", "--pid", live.pid, "--symfs", tmp_path / "fs")
        assert done.returncode == 0, done.stderr
        path = Path(done.stdout.strip())
    assert path.name == "memfd:katana:old..new (deleted)"
    told = subprocess.run(["readelf", "-aW", path], capture_output=True, text=True, check=False)
    assert told.stderr == ""
    assert re.search(r"FUNC +LOCAL +DEFAULT +\d+ step$", told.stdout, re.M)
    lint = subprocess.run(["eu-elflint", "--gnu-ld", path], capture_output=True, text=True, check=False)
    known = "unknown program header entry type 0x6b61746e"
    assert [x for x in (lint.stdout + lint.stderr).splitlines() if known not in x and x != "No errors"] == []
    listing = subprocess.run(["objdump", "-dl", path], capture_output=True, text=True, check=True).stdout
    assert re.search(r"<step>:\n.*step\(\):\n.*work\.c:\d+", listing)
    elf = ElfFile(path.read_bytes())
    assert elf.build_id is not None
    assert (tmp_path / "fs" / "usr").exists()


@pytest.fixture
def perf() -> Iterator[str]:
    """perf, where it may count."""
    found = shutil.which("perf")
    if found is None:
        pytest.skip("needs perf")
    done = subprocess.run(
        [found, "record", "-e", "cpu-clock", "-o", "/dev/null", "true"], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("perf may not count here")
    yield found


HOT = COUNTER.replace(
    "/*GLOBALS*/", "NOINLINE long spin(long n) { long s = 0; for (long i = 0; i < n; i++) s += i ^ seen; return s; }"
)


@situation(51, "perf: names of new code, and callers beyond it")
def test_perf_names_new_code_and_what_called_it(perf: str, tmp_path: Path) -> None:
    """A bug: samples in new code are bare addresses, or callers are lost."""
    flags = ("-O1", "-g")
    old = build(tmp_path / "old", "server", HOT, flags=flags)
    new = build(tmp_path / "new", "server", HOT.replace("/*ANSWER*/", "seen = (int)spin(x * 1000L);"), flags=flags)
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",), carry=("spin",)))
    data = tmp_path / "perf.data"
    with serving(old.output) as live:
        applied(live, patch)
        _record(perf, live, data, "a 150000")
        done = katana("status", "--pid", live.pid, "--symfs", tmp_path / "fs")
        assert done.returncode == 0, done.stderr
    report = subprocess.run(
        [perf, "report", "--stdio", "--symfs", tmp_path / "fs", "-i", data, "--no-children", "-g", "none"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    top = next(line for line in report.splitlines() if line.strip() and not line.startswith("#"))
    assert top.split()[-1] == "spin", report
    script = subprocess.run(
        [perf, "script", "--symfs", tmp_path / "fs", "-i", data, "-F", "ip,sym"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    chains = {" ".join(re.findall(r"^\s*[0-9a-f]+ (\S+)", chain, re.M)) for chain in script.split("\n\n")}
    assert any(chain.startswith("spin answer main") for chain in chains), script[:2000]


def _record(perf: str, server: Server, data: Path, question: str) -> None:
    """Record while the server answers a question."""
    ours, theirs = os.pipe(), os.pipe()
    words = [perf, "record", "-e", "cpu-clock", "-F", "500", "--call-graph", "dwarf", "-o", str(data), "-D", "-1"]
    control = f"fd:{ours[0]},{theirs[1]}"
    process = subprocess.Popen(
        [*words, "--control", control, "-p", str(server.pid)], pass_fds=(ours[0], theirs[1]), stderr=subprocess.PIPE
    )
    os.write(ours[1], b"enable\n")
    assert os.read(theirs[0], 10).startswith(b"ack")
    server.ask(question)
    process.send_signal(signal.SIGINT)
    process.communicate()
    for fd in (*ours, *theirs):
        os.close(fd)


@situation(51, "gdb and eu-stack: a core file")
def test_a_core_file_tells_of_new_code(one: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: what a debugger needs is in pages that no core file holds."""
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core":
        pytest.skip("core files do not come here")
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    try:
        with serving(one.old.path) as live:
            applied(live, one.patch)
            assert live.ask("i") == "inside"
            os.kill(live.pid, signal.SIGABRT)
            assert live.finish() == [f"status {-signal.SIGABRT}"]
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
    core = next(tmp_path.glob("core*"), None)
    if core is None:
        pytest.skip("core files are limited")
    words = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", str(one.old.path), str(core), "-ex"]
    listed = subprocess.run([*words, "info proc mappings"], capture_output=True, text=True, check=False).stdout
    start = re.search(r"^ *(0x[0-9a-f]+) .*/memfd:katana:old\.\.new \(deleted\)$", listed, re.M)
    assert start is not None, listed
    more = [f"add-symbol-file-from-memory {start[1]}", "-ex", "thread apply all backtrace"]
    told = subprocess.run([*words, *more], capture_output=True, text=True, check=False).stdout
    assert re.search(r"step \(item=.*, left=99\) at work\.c:\d+\n#\d+ .* in work \(", told), told
    assert "start_thread" in told
    code = subprocess.run([*words, f"x/i {start[1]} + 0x2000"], capture_output=True, text=True, check=False)
    assert "Cannot access memory" not in code.stderr
    stack = subprocess.run(
        ["eu-stack", "--core", core, "-e", one.old.path], capture_output=True, text=True, check=False
    ).stdout
    assert re.search(r" step\n#\d+ +0x[0-9a-f]+ work\n", stack), stack


def test_options_of_debuggers_are_of_one_process(tmp_path: Path) -> None:
    for words in (["--gdb"], ["--symfs", tmp_path / "fs"]):
        assert katana("status", *words).returncode == 2


def test_a_folder_with_something_in_it_is_left_alone(one: Builds, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with serving(one.old.path) as live:
        applied(live, one.patch)
        assert katana("status", "--pid", live.pid, "--symfs", tmp_path).returncode == 2
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_mapping_taken_out_goes_with_its_head(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: pages of symbols stay when an apply fails."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    assert TIMES_TEN
    with serving(counter[0].output) as live:
        before = Path(f"/proc/{live.pid}/maps").read_text()
        from katana_cc.patch.codec import decode
        from katana_cc.process.inject import inject, unmap
        from katana_cc.process.plan import prepare
        from katana_cc.process.target import Target

        with Target(live.pid) as target:
            plan, _ = inject(target, prepare(target, decode(patch.read_bytes(), "p"), "0" * 32))
            assert len(mappings(live.pid)) >= 2
            (mapping,) = target.patches
            unmap(target, plan.base, plan.layout.size, mapping.inode)
        assert Path(f"/proc/{live.pid}/maps").read_text() == before
