"""A second patch on top of the first: it takes its place in one stop, and what the first one brought lives on."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.live.programs import HEAD
from tests.live.server import Server, code_of, katana, katana_json, mappings, serving
from tests.live.situations import REFUSED, situation
from tests.support.chain import Chain
from tests.support.project import Project, Variant, project_in
from tests.support.strike import strike

WHOLE = bool(os.environ.get("KATANA_TORTURE"))
pytestmark = pytest.mark.timeout(7200 if WHOLE else 300)

# Variables, a function whose address is stored, and a constant that pointers lead to come with a patch; a thread goes
# through the functions all the time, and aborts when one function calls another of another build.
FRAME = (
    HEAD
    + r"""
typedef int step(int);
step *volatile stored;
const int *volatile pointed;
static int calls;
int zero;  // what functions return shall not be known to their callers
/*NEW*/
NOINLINE int second(int x) { seen += x; /*SECOND*/ return x + zero; }
NOINLINE int first(int x) {
  seen += x; calls++;
  if (second(0) / 1000 != /*BUILD*/ + 0) abort();
  /*FIRST*/ return x + zero;
}
NOINLINE int stay(int x) { seen += x; if (x) pause(); /*STAY*/ return x + zero; }
NOINLINE int plain(int x) { seen += x; return x - 1 + zero; }
NOINLINE const char *text(int x) { seen += x; /*TEXT*/ return zero ? "" : "one"; }
step *volatile entry = first;  // so that nothing of `first` is known to `work`, which is active all the time
static void *work(void *unused) {
  for (;;) {
    entry(0);
    struct timespec moment = {0, 100000};
    nanosleep(&moment, NULL);
  }
  return unused;
}
int main(int argc, char **argv) {
  pthread_t t;
  for (int i = 1; i < argc; i++) pthread_create(&t, 0, work, argv);
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    int x = atoi(line + 2);
    switch (line[0]) {
    case 'f': printf("%d\n", first(x)); break;
    case 's': printf("%d\n", second(x)); break;
    case 'p': printf("%d\n", plain(x)); break;
    case 't': printf("%s\n", text(x)); break;
    case 'c': printf("%d\n", calls > 0); break;
    case 'i': printf("%d\n", stored ? stored(x) : -1); break;
    case 'd': printf("%d\n", pointed ? pointed[x] : -1); break;
    case 'k': printf("%d\n", fork_child() ? 1 : stay(1)); break;
    case 'x': _exit(0);
    }
    fflush(stdout);
  }
  return 0;
}
"""
)


def source(**parts: str) -> str:
    """The program, with these parts in it."""
    result = FRAME
    for mark, code in parts.items():
        result = result.replace(f"/*{mark.upper()}*/", code)
    return result


HITS = "NOINLINE int twice(int x) { seen++; return x * 2; }\nint hits;\nconst int table[3] = {1, 2, 3};\n"
V1 = source()
V2 = source(
    build="1",
    new=HITS,
    first="static int kept; if (x > 0) { kept += x; hits++; stored = twice; pointed = table; } "
    "return 1000 + kept + 10000 * hits;",
    second="return 1000 + hits;",
    text='return zero ? "" : "two";',
)
V3 = source(
    build="2",
    new=HITS.replace("x * 2", "x * 3").replace("{1, 2, 3}", "{4, 5, 6}") + "static int more;\n",
    first="static int kept; if (x > 0) { kept += x; hits++; more++; } "
    "return 2000 + kept + 10000 * hits + (stored == twice ? 500 : 0) + (pointed == table ? 50 : 0);",
    second="return 2000 + hits + 100 * more;",
    text='return zero ? "" : "three";',
)

VARIANTS = [
    Variant("gcc", "-O2", "pie"),
    Variant("gcc", "-O0", "nopie"),
    Variant("clang", "-O2", "pie", "lld"),
    Variant("clang", "-O2", "nopie", "bfd"),
]
project = project_in(VARIANTS)


class Program(Chain):
    """A program's builds, and patches from the first to each later one, in their order."""

    def __init__(self, project: Project, *sources: str, **options: Any) -> None:
        super().__init__(project, sources, **options)
        self.old = self.builds[0]
        self.patches = tuple(self.file(0, n, f"v{n + 1}.kpo") for n in range(1, len(sources)))


def apply(server: Server, patch: Path, *words: str) -> None:
    """Apply a patch; it must succeed."""
    done = katana("apply", patch, "--pid", server.pid, *words)
    assert done.returncode == 0, done.stderr


def states(server: Server) -> list[str]:
    """How the patches of a process stand, in the order of their mappings, sorted."""
    return sorted(p["state"] for p in katana_json("status", "--pid", server.pid)["processes"][0]["patches"])


@situation(47, "a cumulative patch takes the place of a single one")
def test_later_patch_takes_the_place_of_the_earlier_one(project: Project) -> None:
    """A bug: a live value begins anew, a stored pointer leads to old code, or the first build does not come back."""
    program = Program(project, V1, V2, V3)
    with serving(program.old.path, "thread", "thread") as server:
        before = code_of(server.pid)
        apply(server, program.patches[0])
        assert server.ask("f 5") == str(1000 + 5 + 10000)
        assert (server.ask("i 7"), server.ask("d 0"), server.ask("t 0")) == ("14", "1", "two")
        apply(server, program.patches[1])
        # `kept` and `hits` hold what they held; the function and the constant are where they were, and as of now.
        assert server.ask("f 0") == str(2000 + 5 + 10000 + 550)
        assert server.ask("s 0") == str(2000 + 1)
        assert (server.ask("i 7"), server.ask("d 0"), server.ask("t 0")) == ("21", "4", "three")
        assert states(server) == ["applied", "reverted"]
        assert katana("apply", program.patches[1], "--pid", server.pid).stdout.count("already applied") == 1
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert code_of(server.pid) == before
        assert (server.ask("f 5"), server.ask("t 0"), server.ask("p 5")) == ("5", "one", "4")
        assert states(server) == ["reverted", "reverted"]


def contents(server: Server, project: Project) -> dict[str, bytes]:
    """What the program's own code is, by name; jumps by the code that they lead to."""
    from katana_cc.elf import constants as c
    from katana_cc.elf.reader import ElfFile
    from katana_cc.process.target import Target

    elf = ElfFile((project.folder / "v1.out").read_bytes())
    with Target(server.pid) as target:
        module = target.program_module()
        assert module is not None
        found = {}
        for s in elf.symbols:
            if (
                s.type == c.STT_FUNC
                and s.section
                and s.size >= 5
                and s.name in ("first", "second", "plain", "text", "main")
            ):
                at = module.bias + s.value
                code = target.memory.read(at, s.size)
                ledger = next((m.ledger for m in target.patches if m.ledger and m.ledger.state == 2), None)
                new = next((r for r in ledger.new if r.name == s.name), None) if ledger else None
                is_jump = code[0] == 0xE9 and new is not None
                where = at + 5 + int.from_bytes(code[1:5], "little", signed=True) if is_jump else 0
                found[s.name] = b"jump" if new is not None and where == new.address else code
        return found


ANSWERS = ("f 0", "s 0", "p 5", "t 0", "i 7", "d 1")


@situation(47, "one after the other ends as the last alone")
def test_one_after_the_other_is_as_the_last_alone(project: Project) -> None:
    """A bug: what was patched twice is not what was patched once."""
    program = Program(project, V1, V2, V3)
    (project.folder / "v1.out").write_bytes(program.old.path.read_bytes())
    with serving(program.old.path) as one, serving(program.old.path) as other:
        apply(one, program.patches[0])
        apply(one, program.patches[1])
        apply(other, program.patches[1])
        assert contents(one, project) == contents(other, project)
        assert "jump" in [x.decode(errors="replace") for x in contents(one, project).values()]
        assert [one.ask(a) for a in ANSWERS] == [other.ask(a) for a in ANSWERS]


@situation(47, "an older patch takes the place of a newer one")
def test_earlier_patch_takes_the_place_of_the_later_one(project: Project) -> None:
    """Back to an older fix.  A bug: it is mixed with the later one, or what both brought begins anew."""
    program = Program(project, V1, V2, V3)
    with serving(program.old.path, "thread") as server:
        before = code_of(server.pid)
        apply(server, program.patches[1])
        assert server.ask("f 5") == str(2000 + 5 + 10000)
        apply(server, program.patches[0])
        assert server.ask("f 5") == str(1000 + 10 + 20000)
        assert (server.ask("i 7"), server.ask("d 2"), server.ask("t 0")) == ("14", "3", "two")
        apply(server, program.patches[1])
        assert server.ask("f 0") == str(2000 + 10 + 20000 + 550)
        assert (server.ask("i 7"), server.ask("d 2"), server.ask("t 0")) == ("21", "6", "three")
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert code_of(server.pid) == before


@situation(47, "fifty exchanges: no growth of memory")
def test_fifty_exchanges_take_no_more_memory_than_two(plain: Project) -> None:
    """A bug: each exchange leaves a mapping."""
    program = Program(plain, V1, V2, V3)
    with serving(program.old.path, "thread") as server:
        for patch in program.patches * 2:
            apply(server, patch)
        maps = mappings(server.pid)
        assert server.ask("f 1") == str(2000 + 1 + 10000)
        for patch in program.patches * 23:
            apply(server, patch)
        assert mappings(server.pid) == maps
        assert server.ask("f 0") == str(2000 + 1 + 10000)
        assert katana("revert", "--pid", server.pid).returncode == 0


def refused(server: Server, patch: Path, *words: str) -> str:
    """Why a patch is refused."""
    done = katana("apply", patch, "--pid", server.pid, *words)
    assert done.returncode == 3, (done.stdout, done.stderr)
    return done.stderr


# What is named cannot be carried over: the variable has another type, the name is two things, a type is laid out
# otherwise.
NOT_CARRIED = {
    "of another type": (
        "int gauge;",
        "gauge++;",
        "long gauge;",
        "gauge++;",
        "the variable gauge, which that patch brought, is of another type now",
    ),
    "of another kind": (
        "int gauge[2];",
        "gauge[1]++;",
        "extern const int gauge[2]; const int gauge[2] = {1, 2};",
        "seen += gauge[x & 1];",
        "gauge, which that patch brought, was a variable and is a constant now",
    ),
    "in another scope": (
        "static int gauge;",
        "gauge++;",
        "",
        "static int gauge; gauge++;",
        "it cannot be told whether",
    ),
    "pointing to another layout": (
        "struct load { int a; }; struct load *gauge;",
        "if (!gauge) gauge = calloc(1, sizeof *gauge); gauge->a++;",
        "struct load { int b, a; }; struct load *gauge;",
        "if (!gauge) gauge = calloc(1, sizeof *gauge); gauge->a++;",
        "gauge, which that patch brought, is of another type now",
    ),
    "on the heap only": (
        "struct load { int a; }; void *gauge;",
        "struct load *l = gauge; if (!l) gauge = l = calloc(1, sizeof *l); l->a++;",
        "struct load { int b, a; }; void *gauge;",
        "struct load *l = gauge; if (!l) gauge = l = calloc(1, sizeof *l); l->a++;",
        "struct load is laid out otherwise now than by that patch",
    ),
}


@situation(47, "what cannot be carried over from the earlier patch", REFUSED)
@pytest.mark.parametrize("how", NOT_CARRIED)
def test_what_cannot_be_carried_over_is_refused(plain: Project, how: str) -> None:
    """A bug: a live value is read as something else."""
    new, use, newer, newer_use, why = NOT_CARRIED[how]
    later = source(build="1", new=newer, first=newer_use, second="return 1001;")
    program = Program(plain, V1, source(build="1", new=new, first=use, second="return 1000;"), later)
    with serving(program.old.path) as server:
        apply(server, program.patches[0])
        patched = code_of(server.pid)
        said = refused(server, program.patches[1])
        assert why in said
        assert "take that patch out first (katana revert" in said
        assert code_of(server.pid) == patched
        assert server.ask("s 0") == "1000"
        assert katana("revert", "--pid", server.pid).returncode == 0
        apply(server, program.patches[1])
        assert server.ask("s 0") == "1001"


@situation(47, "patch from a build that only a patch made: the one to use is named", REFUSED)
def test_patch_of_the_build_that_a_patch_made_names_the_one_to_use(plain: Project) -> None:
    """A bug: nobody knows what to do about "does not run"."""
    builds = [plain.build({"prog.c": text}) for text in (V1, V2, V3)]
    paths = []
    for old, new in ((0, 1), (1, 2)):
        path = plain.folder / str(old) / f"{new}.kpo"
        path.parent.mkdir()
        path.write_bytes(plain.checked(builds[old], builds[new]).data)
        paths.append(path)
    with serving(builds[0].path) as server:
        apply(server, paths[0])
        said = refused(server, paths[1])
        assert "to the build that this one starts from" in said
        assert "name its file with --on" in said
        assert "which takes the place of that one" in said
        assert server.ask("t 0") == "two"


def test_tree_of_which_one_cannot_goes_back_to_the_earlier_patch(plain: Project) -> None:
    """A bug: the processes before it are left with the later patch, or without any."""
    program = Program(plain, V1, V2, V3.replace("/*STAY*/", "seen++;"))
    with serving(program.old.path, "thread") as server:
        apply(server, program.patches[0])
        before = code_of(server.pid)
        assert server.ask("f 5") == str(1000 + 5 + 10000)
        assert server.ask("k 0") == "1"  # its child is in `stay`, which only the later patch replaces
        done = katana("apply", program.patches[1], "--tree", server.pid, "--wait", "0.2")
        assert done.returncode == 4, done.stderr
        assert "in stay" in done.stderr
        assert code_of(server.pid) == before
        assert server.ask("f 1") == str(1000 + 6 + 20000)
        assert (server.ask("i 7"), server.ask("d 0"), server.ask("t 0")) == ("14", "1", "two")
        assert states(server) == ["applied", "reverted"]
        assert katana("revert", "--tree", server.pid).returncode == 0


@situation(43, "the whole tree takes a later patch")
def test_whole_tree_takes_the_later_patch(plain: Project) -> None:
    """A bug: a child that was forked from a patched process is not understood."""
    program = Program(plain, V1, V2, V3)
    with serving(program.old.path) as server:
        apply(server, program.patches[0])
        assert server.ask("f 5") == str(1000 + 5 + 10000)
        assert server.ask("k 0") == "1"
        found = katana_json("apply", program.patches[1], "--tree", server.pid)["processes"]
        assert [len(p["replaces"]) for p in found] == [1, 1]
        assert server.ask("t 0") == "three"
        assert katana("revert", "--tree", server.pid).returncode == 0


@situation(49, "katana killed while one patch takes the place of another")
def test_katana_killed_while_one_takes_the_place_of_another(plain: Project) -> None:
    """A bug: the program crashes, or the next katana can neither finish nor undo."""
    # Until the next katana, some functions may be of one build and some of another.
    program = Program(plain, *(text.replace("abort();", "seen++;") for text in (V1, V2, V3)))
    words = ["apply", str(program.patches[1])]
    with serving(program.old.path, "thread", "thread") as server:
        before = code_of(server.pid)
        apply(server, program.patches[0])
        assert server.ask("f 5") == str(1000 + 5 + 10000)
        for _ in range(2):  # the second time, and from then on, the mapping is there
            total = len(strike([*words, "--pid", str(server.pid)], lambda _: False, lambda _: None).calls)
            apply(server, program.patches[0])
        struck = 0
        few = range(total - 24, total, 3)  # the last ones write
        for number in range(1, total) if WHOLE else few:
            at = partial(reached, number)
            outcome = strike([*words, "--pid", str(server.pid)], at, lambda pid: os.kill(pid, signal.SIGKILL))
            struck += outcome.status == -signal.SIGKILL
            assert server.ask("t 0") in ("two", "three")
            if number % 2:
                apply(server, program.patches[1])
                assert server.ask("f 0") == str(2000 + 5 + 10000 + 550)
                assert (server.ask("i 7"), server.ask("d 0"), server.ask("t 0")) == ("21", "4", "three")
                apply(server, program.patches[0])
                assert server.ask("f 0") == str(1000 + 5 + 10000)
            else:
                done = katana("revert", "--pid", server.pid)
                assert done.returncode == 0, done.stderr
                assert code_of(server.pid) == before
                apply(server, program.patches[0])
                assert server.ask("f 5") == str(1000 + 5 + 10000)
        assert struck


@pytest.mark.parametrize("is_first", [True, False], ids=["first time", "mapped before"])
def test_interrupted_while_one_takes_the_place_of_another(plain: Project, is_first: bool) -> None:
    """Ctrl-C in the stop.  A bug: what was written is not known, and memory is taken from the process; or it goes back
    further than to the patch that it carried."""
    program = Program(plain, V1, V2, V3)
    words = ["apply", str(program.patches[1])]
    with serving(program.old.path, "thread", "thread") as server:
        apply(server, program.patches[0])
        if not is_first:
            apply(server, program.patches[1])
            apply(server, program.patches[0])
        assert server.ask("f 5") == str(1000 + 5 + 10000)
        outcome = strike([*words, "--pid", str(server.pid)], in_stop, lambda pid: os.kill(pid, signal.SIGINT))
        assert outcome.status == 130, outcome
        assert server.ask("f 0") == str(1000 + 5 + 10000)
        assert server.ask("t 0") == "two"
        assert states(server).count("applied") == 1
        apply(server, program.patches[1])
        assert server.ask("t 0") == "three"
        assert katana("revert", "--pid", server.pid).returncode == 0


def in_stop(calls: Sequence[int]) -> bool:
    """Whether it is writing in the stop: nowhere else are so many calls of pwrite64 in a row."""
    return list(calls[-4:]) == [18] * 4


def reached(number: int, calls: Sequence[int]) -> bool:
    """Whether it enters its system call of that number."""
    return len(calls) == number


@pytest.fixture
def plain(tmp_path: Path) -> Project:
    """A project for what does not depend on the toolchain."""
    return Project(tmp_path, Variant("gcc", "-O2", "pie"))


INSIDE = FRAME.replace("/*NEW*/", "/*NEW*/\nstatic int gate[2];", 1).replace(
    "    case 'x': _exit(0);",
    "    case 'w': if (!gate[1] && pipe(gate)) return 1; pthread_create(&t, 0, enter, 0); break;\n"
    "    case 'o': if (write(gate[1], \"x\", 1) != 1) return 1; break;",
)


def test_thread_in_a_function_of_the_earlier_patch_is_waited_for(plain: Project) -> None:
    """A bug: it goes on in code that calls functions of another patch, or that nobody guards."""
    enter = (
        'static void *enter(void *unused) { printf("left %d\\n", text(-1)[0]); fflush(stdout); return unused; }\n'
        "static void *work(void *unused) {"
    )
    base = INSIDE.replace("static void *work(void *unused) {", enter)
    waits = 'NOINLINE void wait_here(void) { char byte; say("inside"); while (read(gate[0], &byte, 1) < 0) {} }\n'
    texts = [
        base,
        base.replace("static void *work", "static void *work")
        .replace("NOINLINE const char *text", waits + "NOINLINE const char *text")
        .replace("/*TEXT*/", 'if (x < 0) wait_here(); return zero ? "" : "two";'),
        base.replace("/*TEXT*/", 'return zero ? "" : "three";'),
    ]
    program = Program(plain, *texts)
    with serving(program.old.path) as server:
        apply(server, program.patches[0])
        server.tell("w 0")
        assert server.line() == "inside"
        done = katana("apply", program.patches[1], "--pid", server.pid, "--wait", "0.2")
        assert done.returncode == 4, done.stderr
        assert "is in wait_here" in done.stderr or "is in text" in done.stderr
        assert server.ask("t 0") == "two"
        server.tell("o 0")
        assert server.line() == f"left {ord('t')}"
        apply(server, program.patches[1])
        assert server.ask("t 0") == "three"
