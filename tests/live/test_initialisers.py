"""Variables whose initial value changed: the live value stays, or is exchanged where somebody asked for it by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.report.summary import headline, summarise
from tests.live.programs import HEAD
from tests.live.server import katana, katana_json, serving
from tests.support.installation import ROOT
from tests.support.project import Build, Project, Result, Variant

SOURCE = (
    HEAD
    + r"""
int limit = /*LIMIT*/ 5;
static const char *banner = /*BANNER*/ "old";
static int step[] = {1, 2, /*STEP*/ 3, 4};
int main(void) {
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 's') limit = atoi(line + 2);
    if (line[0] == 'r') { int *volatile p = step; p[0] = atoi(line + 2); banner = "set"; }
    printf("%d %s %d %d\n", limit, banner, step[0], step[2]);
    fflush(stdout);
  }
  return 0;
}
"""
)
INCLUDE = f"{ROOT}/wrappers/libexec/katana/include"
VARIANTS = [Variant("gcc", "-O2", "pie"), Variant("clang", "-O0", "nopie")]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def changed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """The old program, the patch object and what is in it: no function differs."""
    variant: Variant = request.param
    if not variant.available():
        pytest.skip(f"{variant} needs a tool that is not installed")
    project = Project(tmp_path_factory.mktemp("initialisers"), variant)
    old = project.build({"a.c": SOURCE})
    source = SOURCE
    for mark, value in (("/*LIMIT*/ 5", "9"), ('/*BANNER*/ "old"', '"new"'), ("/*STEP*/ 3", "7")):
        source = source.replace(mark, value)
    result = project.checked(old, project.build({"a.c": source}))
    old.path.chmod(0o755)
    patch = project.folder / "patch.kpo"
    patch.write_bytes(result.data)
    return old.path, patch, result


def test_patch_offers_them_and_takes_none(changed: tuple[Path, Path, Result]) -> None:
    program, patch, result = changed
    offered = sorted((e.name, e.is_initialiser) for e in result.patch.data_edits)
    assert offered == [("banner", True), ("limit", True), ("step", True)]
    assert result.replaced == []
    with serving(program) as server:
        assert katana_json("apply", patch, "--pid", server.pid)["processes"][0]["edits"] == []
        assert server.ask("q") == "5 old 1 3"
        assert katana("apply", patch, "--pid", server.pid).stdout.endswith("already applied\n")
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert "reverted" in katana("status", "--pid", server.pid).stdout


def test_taken_where_asked_and_put_back(changed: tuple[Path, Path, Result]) -> None:
    program, patch, _ = changed
    words = [w for name in ("limit", "banner", "step") for w in ("--take-initialiser", name)]
    with serving(program) as server:
        server.ask("s 77")
        (process,) = katana_json("apply", patch, "--pid", server.pid, *words)["processes"]
        assert {(e["kind"], e["name"]) for e in process["edits"]} == {
            ("value", "limit"),
            ("value", "banner"),
            ("value", "step"),
        }
        assert server.ask("q") == "9 new 1 7"
        assert "applied" in katana("status", "--pid", server.pid).stdout
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("q") == "77 old 1 3", "the value that lived there when it was applied"
        assert katana("apply", patch, "--pid", server.pid, *words[:2]).returncode == 0
        assert server.ask("q") == "9 old 1 3"


def test_what_was_written_since_stays(changed: tuple[Path, Path, Result]) -> None:
    program, patch, _ = changed
    with serving(program) as server:
        words = ("--take-initialiser", "limit", "--take-initialiser", "step")
        assert katana("apply", patch, "--pid", server.pid, *words).returncode == 0
        assert server.ask("s 42") == "42 old 1 7"
        assert katana("apply", patch, "--pid", server.pid, *words).stdout.endswith("already applied\n")
        done = katana("revert", "--pid", server.pid)
        assert done.returncode == 0
        assert "limit was written to after it got its new initial value, and keeps what it holds" in done.stdout
        assert server.ask("q") == "42 old 1 3"


def test_wishes_that_cannot_be_met(changed: tuple[Path, Path, Result]) -> None:
    program, patch, _ = changed
    with serving(program) as server:
        done = katana("apply", patch, "--pid", server.pid, "--take-initialiser", "limits")
        assert done.returncode == 3
        assert "no new initial value of limits (it has those of banner, limit, step)" in done.stderr
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        done = katana("apply", patch, "--pid", server.pid, "--take-initialiser", "limit")
        assert done.returncode == 3
        assert "applied already, without the initial value of limit" in done.stderr
        assert "revert it first" in done.stderr
        assert server.ask("q") == "5 old 1 3"


@pytest.mark.parametrize("variant", [*VARIANTS, Variant("g++", "-O2", "pie")], ids=str)
def test_taken_where_the_source_says_so(variant: Variant, tmp_path: Path) -> None:
    """A bug: it has to be named at each apply, on each host; or one that has no mark is overwritten."""
    if not variant.available():
        pytest.skip(f"{variant} needs a tool that is not installed")
    mark = (
        "#if __has_include(<katana.h>)\n#include <katana.h>\n"
        "KATANA_TAKE_INITIALISER(limit);\nKATANA_TAKE_INITIALISER(step);\n#endif\nint main(void)"
    )
    project = Project(tmp_path, variant)
    name = "a.cc" if variant.compiler.endswith("++") else "a.c"
    flags = [f"-I{INCLUDE}", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-sign-compare"]
    old = project.build({name: SOURCE}, compile_flags=flags)
    source = SOURCE.replace("int main(void)", mark)
    for here, value in (("/*LIMIT*/ 5", "9"), ('/*BANNER*/ "old"', '"new"'), ("/*STEP*/ 3", "7")):
        source = source.replace(here, value)
    result = project.checked(old, project.build({name: source}, compile_flags=flags))
    kept, taken = (result.about(f"initialiser-{how}") for how in ("kept", "taken"))
    assert (len(kept), len(taken)) == (1, 2)
    assert "2 new initial values taken, 1 new initial value not taken" in headline(summarise(result.patch))
    old.path.chmod(0o755)
    patch = tmp_path / "patch.kpo"
    patch.write_bytes(result.data)
    with serving(old.path) as server:
        server.ask("s 77")
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("q") == "9 old 1 7"
        assert katana("apply", patch, "--pid", server.pid).stdout.endswith("already applied\n")
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("q") == "77 old 1 3"
        banner = next(e.name for e in result.patch.data_edits if not e.is_taken)
        assert katana("apply", patch, "--pid", server.pid, "--take-initialiser", banner).returncode == 0
        assert server.ask("q") == "9 new 1 7"


FOLDED = (
    HEAD
    + r"""
static int level = 3;
NOINLINE int answer(int x) { return level * 100 + x /*READ*/; }
NOINLINE void store(int x) { /*WRITE*/ seen = x; }
int main(void) {
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 's') store(atoi(line + 2));
    printf("%d\n", answer(atoi(line + 2)));
    fflush(stdout);
  }
  return 0;
}
"""
)


def test_static_without_storage_is_decided_by_name(tmp_path: Path) -> None:
    """With its last writer gone, gcc folds it: at source level the live value should be used on."""
    project = Project(tmp_path, Variant("gcc", "-O2", "pie"))
    old: Build = project.build({"a.c": FOLDED.replace("/*WRITE*/", "level = x;")})
    new = project.build({"a.c": FOLDED})
    result = project.diff(old, new)
    patch = tmp_path / "patch.kpo"
    patch.write_bytes(result.data)
    old.path.chmod(0o755)
    with serving(old.path) as server:
        assert server.ask("s 8") == "808"
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 3
        assert "if that is right, apply it with --take-initialiser level" in done.stderr
        assert server.ask("q 1") == "801"
        done = katana("apply", patch, "--pid", server.pid, "--take-initialiser", "level")
        assert done.returncode == 0, done.stderr
        assert server.ask("q 1") == "301", "what the new build says"
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("q 1") == "801"


def test_static_without_storage_that_the_source_has_decided_on(tmp_path: Path) -> None:
    """A bug: the mark is for those with storage only."""
    project = Project(tmp_path, Variant("gcc", "-O2", "pie"))
    flags = [f"-I{INCLUDE}"]
    old = project.build({"a.c": FOLDED.replace("/*WRITE*/", "level = x;")}, compile_flags=flags)
    marked = FOLDED.replace("int main(void)", "#include <katana.h>\nKATANA_TAKE_INITIALISER(level);\nint main(void)")
    result = project.diff(old, project.build({"a.c": marked}, compile_flags=flags))
    assert (result.needs, result.about("data-storage-lost")) == ([], ["level"])
    patch = tmp_path / "patch.kpo"
    patch.write_bytes(result.data)
    old.path.chmod(0o755)
    with serving(old.path) as server:
        assert server.ask("s 8") == "808"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("q 1") == "301"


@pytest.mark.parametrize(
    ("old", "new", "flags"),
    [
        ("struct { int a; } limit = {5};", "struct { int a; long b; } limit = {9, 1};", []),
        ("int other = 3, limit = 5;", "int other = 3, limit = 9;", ["-fno-data-sections"]),
    ],
    ids=["it moves", "in a section with others"],
)
def test_mark_that_cannot_be_followed_is_refused(old: str, new: str, flags: list[str], tmp_path: Path) -> None:
    """A bug: the source says that the new value is to be taken, and the live one stays with a word of information."""
    project = Project(tmp_path, Variant("gcc", "-O2", "pie"))
    main = "\nint main(void) { int *volatile p = (int *)&limit; return *p; }\n"
    mark = "\n#include <katana.h>\nKATANA_TAKE_INITIALISER(limit);\n"
    before = project.build({"a.c": old + main}, compile_flags=[f"-I{INCLUDE}", *flags])
    after = project.build({"a.c": new + mark + main}, compile_flags=[f"-I{INCLUDE}", *flags])
    result = project.checked(before, after)
    assert [code for code, _ in result.refusals] == ["hook-unusable"]
    assert result.about("initialiser-kept") == []
