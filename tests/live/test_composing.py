"""Two patches put together, in processes: as the one from the first build to the last, and on top of the first one."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from katana_cc.cpu.choice import of
from katana_cc.elf import constants as c
from katana_cc.patch.checks import problems
from katana_cc.patch.codec import decode, encode, patch_id
from katana_cc.patch.compose import compose
from katana_cc.process.ledger import CodeRange, Resident
from katana_cc.process.target import Target
from katana_cc.snapshot.answers import write_answers
from tests.live.matrix.cases import CASES
from tests.live.matrix.model import VARIANTS as MATRIX
from tests.live.matrix.model import WORKS
from tests.live.matrix.results import committed, label
from tests.live.matrix.runner import Workshop
from tests.live.programs import HEAD
from tests.live.server import Server, code_of, katana, katana_json, serving
from tests.live.situations import REFUSED, situation
from tests.live.test_stacking import ANSWERS, V1, V2, V3, VARIANTS, apply, refused, states
from tests.support.chain import Chain
from tests.support.project import Project, Result, project_in

pytestmark = pytest.mark.timeout(300)
project = project_in(VARIANTS)


@pytest.fixture
def plain(tmp_path: Path) -> Project:
    """An empty project built by gcc -O2 -pie: for what does not depend on the variant."""
    return Project(tmp_path, VARIANTS[0])


class Program(Chain):
    """Three builds; patches from each to the next, and from the first to the last, each in a folder of its own."""

    def __init__(self, project: Project, *sources: str) -> None:
        super().__init__(project, sources)
        last = len(sources) - 1
        self.patches = [self.file(n, n + 1, f"step{n + 1}/patch.kpo") for n in range(last)]
        self.direct = self.file(0, last, "direct/patch.kpo")

    def composed(self) -> Path:
        """The steps put together by the command."""
        path = self.project.folder / "composed.kpo"
        done = katana("compose", *self.patches, "-o", path)
        assert done.returncode == 0, done.stderr
        return path


def meanings(server: Server, patch: Path) -> dict[str, tuple[bytes, tuple[tuple[int, object], ...]]]:
    """Function or variable that came with a patch → its bytes in the process, zeros in the fields, and what each field
    leads to: read from memory, and told without the addresses that differ between processes."""
    po = decode(patch.read_bytes(), "patch")
    sizes = of(po.identity.machine).relocations.FIELD_SIZES
    with Target(server.pid) as target:
        (ledger,) = (m.ledger for m in target.patches if m.ledger and m.ledger.patch_id == patch_id(patch.read_bytes()))
        module = target.program_module()
        assert module is not None
        ranges: list[CodeRange | Resident] = [*ledger.new, *ledger.data, *ledger.residents]
        stubs = {r.address for r in ledger.new if r.name in ("import stub", "veneer")}

        def told(address: int) -> object:
            """What lies at an address."""
            if address in stubs:
                return "import"
            for r in ranges:
                if r.size and r.address <= address < r.address + r.size and r.name in names:
                    return r.name, address - r.address
            if module.holds(address):
                return "program", address - module.bias
            if ledger.base <= address < ledger.base + ledger.size:
                return target.memory.read(address, 12).split(b"\0")[0]  # a literal, or a slot
            return "elsewhere"

        named = {y.section: y for y in po.symbols if y.section is not None and y.name and y.value == 0}
        names = {y.name for y in named.values()} | {r.name for r in ledger.residents}
        found = {}
        for number, y in named.items():
            section = po.sections[number]
            where = [r.address for r in ranges if r.name == y.name and r.size == section.size]
            if len(set(where)) != 1 or not section.flags & c.SHF_ALLOC:
                continue
            code = bytearray(target.memory.read(where[0], section.size))
            ends = of(po.identity.machine).code.field_ends(bytes(code))
            fields = []
            for r in section.relocations:
                size = sizes[r.type]
                value = int.from_bytes(code[r.offset : r.offset + size], "little", signed=True)
                code[r.offset : r.offset + size] = bytes(size)
                is_code = section.flags & c.SHF_EXECINSTR and r.type != 1 and r.offset in ends
                absolute = value + where[0] + ends[r.offset] if is_code else value
                fields.append((r.offset, told(absolute)))
            found[y.name] = bytes(code), tuple(fields)
        return found


@situation(47, "two steps put together are the one")
def test_composed_is_as_the_one_from_the_first_to_the_last(project: Project) -> None:
    """A bug: code, variables or answers of the one process are not those of the other."""
    program = Program(project, V1, V2, V3)
    composed = program.composed()
    with serving(program.builds[0].path) as one, serving(program.builds[0].path) as other:
        before = code_of(one.pid)
        apply(one, composed)
        apply(other, program.direct)
        ours, theirs = meanings(one, composed), meanings(other, program.direct)
        assert {"first", "second", "text", "twice", "table", "hits"} <= ours.keys()
        assert ours == theirs
        questions = (*ANSWERS, "f 5", "s 0", "f 2", "t 0", "i 7", "d 1", "p 5")
        assert [one.ask(q) for q in questions] == [other.ask(q) for q in questions]
        assert one.ask("s 0").startswith("2")
        assert katana("revert", "--pid", one.pid).returncode == 0
        assert code_of(one.pid) == before
        assert (one.ask("f 5"), one.ask("s 0"), one.ask("t 0")) == ("5", "0", "one")


@situation(47, "a patch on top of the one that made its build")
def test_second_step_on_top_of_the_first(project: Project) -> None:
    """A bug: it is refused, what the first one brought begins anew, or a revert leads to the build in between."""
    program = Program(project, V1, V2, V3)
    with serving(program.builds[0].path, "thread", "thread") as server:
        before = code_of(server.pid)
        apply(server, program.patches[0])
        assert server.ask("f 5") == str(1000 + 5 + 10000)
        assert (server.ask("i 7"), server.ask("d 0")) == ("14", "1")
        apply(server, program.patches[1], "--on", str(program.patches[0]))
        assert server.ask("f 0") == str(2000 + 5 + 10000 + 550)
        assert server.ask("s 0") == str(2000 + 1)
        assert (server.ask("i 7"), server.ask("d 0"), server.ask("t 0")) == ("21", "4", "three")
        assert states(server) == ["applied", "reverted"]
        again = katana("apply", program.patches[1], "--pid", server.pid, "--on", str(program.patches[0]))
        assert again.stdout.count("already applied") == 1
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert code_of(server.pid) == before
        assert (server.ask("f 5"), server.ask("t 0"), server.ask("p 5")) == ("5", "one", "4")


@situation(47, "the patch beneath is found beside the other")
@pytest.mark.parametrize("where", ["beside", "bundle"])
def test_patch_beneath_is_found(plain: Project, where: str) -> None:
    program = Program(plain, V1, V2, V3)
    first, second = program.patches
    if where == "beside":
        beside = second.with_name("of another name.kpo")
        beside.write_bytes(first.read_bytes())
        first.unlink()
        second.with_name("broken.kpo").write_bytes(b"nothing")
    else:
        (plain.folder / "manifest.json").write_text("{}")
    with serving(program.builds[0].path) as server:
        apply(server, beside if where == "beside" else first)
        dry = katana_json("apply", second, "--pid", server.pid, "--dry-run")
        assert dry["processes"][0]["outcome"] == "would apply"
        apply(server, second)
        assert server.ask("s 0") == "2000"
        assert states(server) == ["applied", "reverted"]


@situation(47, "the patch beneath is not at hand: it is named", REFUSED)
def test_patch_beneath_that_is_not_at_hand_is_named(plain: Project) -> None:
    program = Program(plain, V1, V2, V3)
    first, second = program.patches
    with serving(program.builds[0].path) as server:
        apply(server, first)
        patched = code_of(server.pid)
        said = refused(server, second)
        assert patch_id(first.read_bytes()) in said
        assert "--on" in said
        assert code_of(server.pid) == patched
        wrong = refused(server, second, "--on", str(second))
        assert "does not start where the first one leads" in wrong
        assert code_of(server.pid) == patched
        assert server.ask("s 0") == "1000"


def test_three_steps_one_after_the_other(plain: Project) -> None:
    """What is in force then was put together itself: its parts are named."""
    v4 = V3.replace("return 2000 + hits", "return 3000 + hits").replace('"three"', '"four"')
    v4 = v4.replace("/ 1000 != 2 + 0", "/ 1000 != 3 + 0")
    program = Program(plain, V1, V2, V3, v4)
    first, second, third = program.patches
    with serving(program.builds[0].path) as server:
        apply(server, first)
        assert server.ask("f 5") == str(1000 + 5 + 10000)
        apply(server, second, "--on", str(first))
        apply(server, third, "--on", str(first), "--on", str(second))
        assert (server.ask("s 0"), server.ask("t 0"), server.ask("i 7")) == ("3001", "four", "21")
        assert server.ask("f 0") == str(2000 + 5 + 10000 + 550)
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert (server.ask("f 5"), server.ask("t 0")) == ("5", "one")


# Program, number of its first case, variant of the matrix; all cases in it are put into two steps.
CHAINS = [
    ("c", 0, 2), ("data", 0, 2),
    *(pytest.param(*words, marks=pytest.mark.rest) for words in (
        ("c", 20, 9), ("c", 40, 2), ("c", 60, 11), ("c", 80, 1), ("cxx", 0, 2),
        ("cxx", 0, 9), ("throws", 0, 10), ("throws", 0, 3), ("imports", 0, 2), ("startup", 0, 2),
        ("data", 80, 2), ("data", 100, 9),
    )),
]  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("program", "start", "number"), CHAINS)
def test_every_kind_of_change_in_two_steps(tmp_path: Path, program: str, start: int, number: int) -> None:
    """The cases of the matrix: one half in the first step, the other in the second, live data in the first only; and,
    of code, the first half back again in the second.  What decides is the last build itself, asked the same questions.
    A bug: the process answers as no build does."""
    every = [case for case in CASES if case.program == program][start : start + 20]
    shop = Workshop(tmp_path, MATRIX[number], every)
    if not shop.variant.available():
        pytest.skip(f"{shop.variant} needs a tool that is not installed")
    known = committed()
    fit = [x for x in every if x.refused is None and known[x.name, label(shop.asked_for)].state == WORKS]
    write_answers(shop.project.store.folder, {q: a for case in fit for q, a in case.answers.items()})
    is_data = program.startswith("data")
    moving = [x for x in fit if x.kind >= 25 and x.kind not in (29, 30)]
    halves = (moving, [x for x in fit if x not in moving]) if is_data else (fit[::2], fit[1::2])
    for last in (fit,) if is_data else (fit, halves[1]):
        between, end = shop.build(halves[0]), shop.build(last)
        first, second = shop.project.diff(shop.old, between), shop.project.diff(between, end)
        composed = compose(first.patch, second.patch)
        assert problems(composed) == []
        result = Result(second.changes, composed, encode(composed))
        with contextlib.ExitStack() as stack:
            shop.compare(stack, end, result, last)


MOVED = (
    HEAD
    + r"""
struct conn { int a; /*FIELD*/ int b; };
struct conn held = {1, 2}, *volatile where = &held;
int zero;
NOINLINE int get(int x) { return held.a * 100 + where->b * 10 + x + zero; }
NOINLINE int put(int x) { held.a += x; where->b++; return held.a + zero; }
NOINLINE int other(int x) { /*OTHER*/ return x + zero; }
int main(void) {
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    int x = atoi(line + 2);
    switch (line[0]) {
    case 'g': printf("%d\n", get(x)); break;
    case 'p': printf("%d\n", put(x)); break;
    case 'o': printf("%d\n", other(x)); break;
    }
    fflush(stdout);
  }
  return 0;
}
"""
)


@pytest.mark.parametrize("first", ["layout", "code"])
def test_live_value_goes_through_a_layout_of_one_step(project: Project, first: str) -> None:
    """A bug: the live value is lost, or read as it was laid out before."""
    layout, code = MOVED.replace("/*FIELD*/", "long c;"), MOVED.replace("/*OTHER*/", "x += 5;")
    last = layout.replace("/*OTHER*/", "x += 5;")
    program = Program(project, MOVED, layout if first == "layout" else code, last)
    composed = program.composed()
    with serving(program.builds[0].path) as server:
        assert (server.ask("p 2"), server.ask("g 0"), server.ask("o 1")) == ("3", "330", "1")
        apply(server, composed)
        assert (server.ask("g 0"), server.ask("o 1"), server.ask("p 1")) == ("330", "6", "4")
        # What the program left on its stack may be a pointer.
        assert katana("revert", "--pid", server.pid, "--follow", "held").returncode == 0
        assert (server.ask("g 0"), server.ask("o 1")) == ("440", "1")
    if first == "layout":
        with serving(program.builds[0].path) as server:
            assert server.ask("p 2") == "3"
            apply(server, program.patches[0], "--follow", "held")
            assert server.ask("p 1") == "4"
            apply(server, program.patches[1], "--on", str(program.patches[0]))
            assert (server.ask("g 0"), server.ask("o 1")) == ("440", "6")
