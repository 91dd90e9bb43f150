"""A second patch on top of the first: it takes its place in one stop, and what the first one brought lives on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live.programs import HEAD
from tests.live.server import Server, code_of, katana, katana_json, mappings, serving
from tests.support.project import Build, Project, Variant, project_in

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
NOINLINE int plain(int x) { seen += x; return x - 1 + zero; }
NOINLINE const char *text(int x) { seen += x; /*TEXT*/ return zero ? "" : "one"; }
static void *work(void *unused) {
  for (;;) {
    first(0);
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
    case 'k': if (!fork()) { pthread_create(&t, 0, work, argv); for (;;) pause(); } say("forked"); break;
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


@dataclass(frozen=True, slots=True)
class Made:
    """A program's first build, and patches from it to later ones, in their order."""

    old: Build
    patches: tuple[Path, ...]


def made(project: Project, *sources: str) -> Made:
    """Patches from the first of these sources to each other."""
    builds = [project.build({"prog.c": text}) for text in sources]
    paths = []
    for n, build in enumerate(builds[1:], 2):
        result = project.checked(builds[0], build)
        assert result.refusals == [], result.refusals
        path = project.folder / f"v{n}.kpo"
        path.write_bytes(result.data)
        paths.append(path)
    return Made(builds[0], tuple(paths))


def apply(server: Server, patch: Path, *words: str) -> None:
    """Apply a patch; it must succeed."""
    done = katana("apply", patch, "--pid", server.pid, *words)
    assert done.returncode == 0, done.stderr


def states(server: Server) -> list[str]:
    """How the patches of a process stand, in the order of their mappings, sorted."""
    return sorted(p["state"] for p in katana_json("status", "--pid", server.pid)["processes"][0]["patches"])


def test_later_patch_takes_the_place_of_the_earlier_one(project: Project) -> None:
    """A bug: a live value begins anew, a stored pointer leads to old code, or the first build does not come back."""
    program = made(project, V1, V2, V3)
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


def test_one_after_the_other_is_as_the_last_alone(project: Project) -> None:
    """A bug: what was patched twice is not what was patched once."""
    program = made(project, V1, V2, V3)
    (project.folder / "v1.out").write_bytes(program.old.path.read_bytes())
    with serving(program.old.path) as one, serving(program.old.path) as other:
        apply(one, program.patches[0])
        apply(one, program.patches[1])
        apply(other, program.patches[1])
        assert contents(one, project) == contents(other, project)
        assert "jump" in [x.decode(errors="replace") for x in contents(one, project).values()]
        assert [one.ask(a) for a in ANSWERS] == [other.ask(a) for a in ANSWERS]


def test_earlier_patch_takes_the_place_of_the_later_one(project: Project) -> None:
    """Back to an older fix.  A bug: it is mixed with the later one, or what both brought begins anew."""
    program = made(project, V1, V2, V3)
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


def test_fifty_exchanges_take_no_more_memory_than_two(plain: Project) -> None:
    """A bug: each exchange leaves a mapping."""
    program = made(plain, V1, V2, V3)
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


@pytest.fixture
def plain(tmp_path: Path) -> Project:
    """A project for what does not depend on the toolchain."""
    return Project(tmp_path, Variant("gcc", "-O2", "pie"))
