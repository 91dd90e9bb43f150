"""Live data, initial values and hooks where one patch takes the place of another; and what a debugger sees then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.live.debugger import gdb, script_of
from tests.live.programs import HEAD
from tests.live.server import Server, code_of, katana, katana_json, mappings, serving
from tests.live.situations import REFUSED, situation
from tests.live.test_hooks import INCLUDE
from tests.live.test_stacking import Program, apply, refused, states
from tests.support.project import Project, Variant, project_in

FRAME = (
    HEAD
    + r"""
#ifdef HOOKS
#include <katana.h>
#endif
char trail[100];
int zero, limit = /*LIMIT*/ 5;
struct item { int number; /*FIELD*/ };
struct item head = {1}, *last = &head;
/*NEW*/
NOINLINE int answer(int x) { seen += x; /*ANSWER*/ return x + head.number + zero; }
int main(void) {
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    int x = atoi(line + 2);
    switch (line[0]) {
    case 'a': printf("%d\n", answer(x)); break;
    case 'n': last->number = x; puts("set"); break;
    case 'l': if (x) limit = x; printf("%d\n", limit); break;
    case 't': printf("%s.\n", trail); break;
    }
    fflush(stdout);
  }
  return 0;
}
"""
)
pytestmark = pytest.mark.timeout(300)
project = project_in([Variant("gcc", "-O2", "pie"), Variant("clang", "-O0", "nopie")])


@pytest.fixture
def plain(tmp_path: Path) -> Project:
    """A project for what does not depend on the toolchain."""
    return Project(tmp_path, Variant("gcc", "-O2", "pie"))


def source(**parts: str) -> str:
    """The program, with these parts in it."""
    result = FRAME.replace("/*LIMIT*/ 5", parts.pop("limit", "5"))
    for mark, code in parts.items():
        result = result.replace(f"/*{mark.upper()}*/", code)
    return ("#define HOOKS\n" if "KATANA_" in result else "") + result


def made(project: Project, *sources: str) -> Program:
    """The program, with hooks or without."""
    return Program(project, *sources, compile_flags=[INCLUDE])


def revert(server: Server, *words: str) -> None:
    """Take out what is applied; it must succeed."""
    done = katana("revert", "--pid", server.pid, *words)
    assert done.returncode == 0, done.stderr


def test_same_layout_in_both_stays_as_it_is(project: Project) -> None:
    """A bug: the variable is made anew from its first build's layout, and what it holds since is lost."""
    field = "long more;"
    program = made(
        project,
        source(),
        source(field=field, answer="head.more += 10; return head.number + head.more;"),
        source(field=field, answer="head.more += 100; return head.number + head.more;"),
    )
    with serving(program.old.path) as server:
        before = code_of(server.pid)
        assert server.ask("n 7") == "set"
        apply(server, program.patches[0])
        assert [server.ask("a 0"), server.ask("a 0")] == ["17", "27"]
        apply(server, program.patches[1])
        assert server.ask("n 1000") == "set"  # `last` leads to where it is
        assert server.ask("a 0") == "1120"
        apply(server, program.patches[0])
        assert server.ask("a 0") == "1130"
        apply(server, program.patches[1])
        revert(server, "--discard", "head")
        assert server.ask("a 0") == "1000"
        assert code_of(server.pid) == before


@situation(47, "another layout than the earlier patch gave live data", REFUSED)
def test_another_layout_than_the_earlier_patch_is_refused(plain: Project) -> None:
    """A bug: a live object of v2 is read as one of v1."""
    program = made(
        plain,
        source(),
        source(field="long more;", answer="return head.more;"),
        source(field="long between, more;", answer="return head.more;"),
        source(answer="return 77;"),
    )
    with serving(program.old.path) as server:
        apply(server, program.patches[0])
        for patch in program.patches[1:]:
            assert "it gave head, struct item another layout" in refused(server, patch)
        revert(server)
        apply(server, program.patches[1])
        assert server.ask("a 0") == "0"


def test_new_layout_beside_variables_of_the_earlier_patch_is_refused(plain: Project) -> None:
    """A bug: a pointer that the earlier patch's variable holds leads to the old object."""
    program = made(
        plain,
        source(),
        source(new="struct item *first;", answer="first = &head; return first->number;"),
        source(new="struct item *first;", field="long more;", answer="first = &head; return first->number;"),
        source(field="long more;", answer="return head.number;"),
        source(answer="return 3;"),
    )
    with serving(program.old.path) as server:
        apply(server, program.patches[0])
        for patch in program.patches[1:3]:
            assert "the variable first of that patch may lead there" in refused(server, patch)
        assert server.ask("a 0") == "1"
    with serving(program.old.path) as server:
        # Over one that brought nothing, live data gets its new layout.
        apply(server, program.patches[3])
        apply(server, program.patches[2])
        assert server.ask("n 9") == "set"
        assert server.ask("a 0") == "9"
        revert(server)
        assert server.ask("a 5") == "14"


@situation(47, "initial values taken by the earlier patch stay")
def test_initial_values_that_were_taken_stay(project: Project) -> None:
    """A bug: a value is set back with the earlier patch, or revert does not know the first one."""
    answers = [f"return {n};" for n in (2, 3)]
    program = made(project, source(), source(limit="20", answer=answers[0]), source(limit="30", answer=answers[1]))
    with serving(program.old.path) as server:
        apply(server, program.patches[0], "--take-initialiser", "limit")
        assert server.ask("l 0") == "20"
        apply(server, program.patches[1])
        assert (server.ask("l 0"), server.ask("a 0")) == ("20", "3")
        revert(server)
        assert (server.ask("l 0"), server.ask("a 0")) == ("5", "1")
        # The later one's own, where it is asked for.
        apply(server, program.patches[0], "--take-initialiser", "limit")
        apply(server, program.patches[1], "--take-initialiser", "limit")
        assert server.ask("l 0") == "30"
        revert(server)
        assert server.ask("l 0") == "5"
        # What the program wrote since is its own.
        apply(server, program.patches[0], "--take-initialiser", "limit")
        assert server.ask("l 11") == "11"
        apply(server, program.patches[1])
        revert(server)
        assert server.ask("l 0") == "11"


def test_hooks_of_the_one_that_comes_run_and_no_others(plain: Project) -> None:
    """A bug: hooks for a revert run where nothing is reverted, or a hook before calls old code."""
    hooks = (
        "int rate(void) {{ seen++; return {n}; }}\nint started;\n"
        'static int open_it(void) {{ started++; strcat(trail, rate() == {n} ? "{a}" : "!"); return 0; }}\n'
        "KATANA_BEFORE(open_it);\n"
        'static int close_it(void) {{ strcat(trail, "{b}"); return 0; }}\nKATANA_BEFORE_REVERT(close_it);\n'
    )
    use = "return 100 * started + rate();"
    program = made(
        plain,
        source(),
        source(new=hooks.format(n=2, a="o", b="c"), answer=use),
        source(new=hooks.format(n=3, a="O", b="C"), answer=use),
    )
    with serving(program.old.path) as server:
        apply(server, program.patches[0])
        assert (server.ask("t 0"), server.ask("a 0")) == ("o.", "102")
        apply(server, program.patches[1])
        assert (server.ask("t 0"), server.ask("a 0")) == ("oO.", "203")
        revert(server)
        assert server.ask("t 0") == "oOC."


def test_failing_hook_leaves_the_earlier_patch(plain: Project) -> None:
    """A bug: the process is left with neither."""
    failing = "static int no(void) { return 1; }\nKATANA_BEFORE(no);\n"
    program = made(plain, source(), source(answer="return 2;"), source(new=failing, answer="return 3;"))
    with serving(program.old.path) as server:
        apply(server, program.patches[0])
        patched = code_of(server.pid)
        done = katana("apply", program.patches[1], "--pid", server.pid)
        assert done.returncode == 9, done.stderr
        assert code_of(server.pid) == patched
        assert server.ask("a 0") == "2"
        assert "applied" in states(server)
        revert(server)


@situation(47, "three patches in any order, and reverted")
def test_three_patches_in_any_order(project: Project) -> None:
    """What came with the first lives through all that have it, and mappings are used again."""
    counts = [f"int count;\nint other{n};\n" for n in range(3)]
    program = made(
        project,
        source(),
        *(
            source(new=c, answer=f"count += x; other{n}++; return count + 1000 * {n + 1};")
            for n, c in enumerate(counts)
        ),
    )
    with serving(program.old.path) as server:
        before = code_of(server.pid)
        seen = []
        for total, which in enumerate((0, 1, 2, 0, 2, 1, 0, 1, 2, 0, 2, 1, 0), 1):
            apply(server, program.patches[which])
            assert server.ask("a 1") == str(total + 1000 * (which + 1))
            seen.append(len(mappings(server.pid)))
        assert seen[-1] == seen[6]
        shown = katana_json("status", "--pid", server.pid)["processes"][0]["patches"]
        assert sum(p["state"] == "applied" for p in shown) == 1
        revert(server)
        assert code_of(server.pid) == before


def test_dry_run_tells_whose_place_it_takes(plain: Project) -> None:
    gauge = "static int gauge; gauge += x; return gauge;"
    program = made(plain, source(), source(answer=gauge), source(answer="return 3;"))
    with serving(program.old.path) as server:
        first = katana_json("apply", program.patches[0], "--pid", server.pid)["patch"]
        shown = katana("apply", program.patches[1], "--pid", server.pid, "--dry-run").stdout
        assert f"in the place of {first} (to new)" in shown
        assert "left behind with it, since the new build has none: prog.o: answer()::gauge" in shown
        assert server.ask("a 2") == "2"
        (done,) = katana_json("apply", program.patches[1], "--pid", server.pid)["processes"]
        assert (done["replaces"], done["left_behind"]) == ([first], ["prog.o: answer()::gauge"])


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_gdb_sees_variables_where_they_live(plain: Project) -> None:
    """A bug: gdb shows the unused copy in the later patch's mapping."""
    new = "int count;\nNOINLINE int add(int x) { seen++; return count += x; }\n"
    program = made(
        plain, source(), source(new=new, answer="return add(x);"), source(new=new, answer="return add(2 * x);")
    )
    with serving(program.old.path) as server:
        apply(server, program.patches[0])
        server.ask("a 4")
        apply(server, program.patches[1])
        assert server.ask("a 4") == "12"
        said = gdb(
            server.pid, script_of(server.pid, plain.folder), "print count", "info line add", "info symbol answer"
        )
        assert "$1 = 12" in said
        ((patch,),) = [
            [p for p in process["patches"] if p["state"] == "applied"]
            for process in katana_json("status", "--pid", server.pid)["processes"]
        ]
        (variable,) = patch["variables"]
        (earlier,) = [
            p for p in katana_json("status", "--pid", server.pid)["processes"][0]["patches"] if p["state"] == "reverted"
        ]
        assert earlier["address"] <= variable["address"] < earlier["address"] + earlier["size"]
        assert earlier["used_by"] == [patch["patch"]]
        assert "in use by" in katana("status", "--pid", server.pid).stdout
