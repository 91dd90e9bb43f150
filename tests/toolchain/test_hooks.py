"""`katana.h` under all compilers and linkers: what the program keeps, what a patch finds, what nobody is warned of."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from katana_cc.diff.hooks import SECTION, hooks_in, marked_variables
from katana_cc.diff.view import ObjectView
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError
from katana_cc.patch.model import HookKind
from tests.support.installation import ROOT, Installation
from tests.support.project import Project, Result, Variant

INCLUDE = f"-I{ROOT}/wrappers/libexec/katana/include"
PROGRAM = r"""
#include <stdlib.h>
static int count;
static int *cache;
int answer(int x) { count++; return x + STEP; }
#ifdef NEW
#if __has_include(<katana.h>)
#include <katana.h>
static int fill(void) { cache = (int *)malloc(40); return cache ? 0 : 1; }
KATANA_BEFORE(fill);
int tell(void) { return answer(count) < 0; }
KATANA_AFTER(tell);
static int stay(void) { return count > 1000; }
KATANA_BEFORE_REVERT(stay);
static int drop(void) { free(cache); cache = 0; return 0; }
KATANA_AFTER_REVERT(drop);
#endif
#endif
int main(int argc, char **argv) { (void)argv; return answer(argc) > 100; }
"""
ALL = [
    (HookKind.BEFORE, "fill"),
    (HookKind.AFTER, "tell"),
    (HookKind.BEFORE_REVERT, "stay"),
    (HookKind.AFTER_REVERT, "drop"),
]
_PROGRAM = (".text", ".data", ".rodata", ".bss")
WRAPPERS = ["katana_before_hook_fill", "katana_after_hook_tell", "katana_before_revert_hook_stay",
            "katana_after_revert_hook_drop"]  # fmt: skip


def run(*words: str | Path, cwd: Path) -> str:
    """A tool's output; it must succeed and say nothing on stderr."""
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), (words, done.stderr)
    return done.stdout


@pytest.mark.parametrize("optimise", ["-O0", "-O2"])
@pytest.mark.parametrize("compiler", ["gcc", "g++", "clang", "clang++"])
@pytest.mark.parametrize("collected", [False, True], ids=["all", "gc-sections"])
def test_hooks_are_kept_and_found(compiler: str, optimise: str, linker: str, collected: bool, tmp_path: Path) -> None:
    """A bug: the linker drops the functions, or keeps the records, or the diff finds other ones."""
    variant = Variant(compiler, optimise, "pie", linker)
    if not variant.available():
        pytest.skip(f"{variant} needs a tool that is not installed")
    project = Project(tmp_path, variant)
    name = "a.cc" if "++" in compiler else "a.c"
    link = ["-Wl,--gc-sections"] if collected else []
    flags = [INCLUDE, "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    old = project.build({name: "#define STEP 1\n" + PROGRAM}, compile_flags=[*flags, "-Wno-unused"], link_flags=link)
    source = "#define STEP 2\n#define NEW 1\n" + PROGRAM
    new = project.build({name: source}, compile_flags=flags, link_flags=link)
    result = project.checked(old, new)
    assert [(h.kind, h.name) for h in result.patch.hooks] == ALL
    assert result.refusals == []
    names = run("nm", new.path, cwd=tmp_path)
    assert all(wrapper in names for wrapper in WRAPPERS)
    assert SECTION not in run("readelf", "-SW", new.path, cwd=tmp_path)
    assert run("readelf", "-SW", tmp_path / "a.o", cwd=tmp_path).count(f" {SECTION} ") == 1


def compiled(folder: Path, source: str, *flags: str, compiler: str = "gcc", name: str = "a.c") -> ElfFile:
    """An object; no warning is allowed."""
    (folder / name).write_text(source)
    run(compiler, INCLUDE, "-Wall", "-Wextra", "-Wpedantic", *flags, "-c", name, "-o", "a.o", cwd=folder)
    return ElfFile((folder / "a.o").read_bytes(), "a.o")


def recorded(elf: ElfFile) -> list[tuple[HookKind, str]]:
    """Kinds and names, in order."""
    return [(h.kind, h.name) for h in hooks_in(elf)]


@pytest.mark.parametrize(
    "flags",
    [
        ["-std=c99", "-O1"], ["-std=c11", "-fPIC"], ["-O3", "-fcf-protection"],
        ["-Os", "-fno-asynchronous-unwind-tables"],
        ["-O2", "-ffunction-sections", "-fdata-sections"], ["-O2", "-pg"], ["-O2", "-mcmodel=large", "-fno-pie"],
        ["-Og", "-g3", "-gz"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_under_other_options(compiler: str, flags: Sequence[str], tmp_path: Path) -> None:
    """A bug: a warning, or a record that is not found."""
    elf = compiled(tmp_path, "#define STEP 1\n#define NEW 1\n" + PROGRAM, *flags, compiler=compiler)
    assert recorded(elf) == ALL


@pytest.mark.parametrize(
    "flags", [["-std=c99", "-O2"], ["-O0", "-fPIC"], ["-xc++", "-std=c++98", "-O2"], ["-xc++", "-O0"]], ids=" ".join
)
def test_mark_of_a_variable(compiler: str, flags: Sequence[str], tmp_path: Path) -> None:
    """A bug: a warning, or it changes what the compiler makes of the program."""
    source = "static int limit = 5;\nint answer(int x) { return x + limit; }\n"
    mark = "#include <katana.h>\nKATANA_TAKE_INITIALISER(limit);\n"
    plain = compiled(tmp_path, source, *flags, compiler=compiler)
    marked = compiled(tmp_path, source + mark, *flags, compiler=compiler)
    names = {s.name for s in plain.sections}
    assert {s.name for s in marked.sections} - names == {SECTION}
    before, after = ({s.name: bytes(e.contents(s)) for s in e.sections if s.name in _PROGRAM} for e in (plain, marked))
    assert before == after
    assert marked_variables(ObjectView(marked)) == {"limit"}
    wrong = source + mark.replace("limit", "limits")
    (tmp_path / "a.c").write_text(wrong)
    done = subprocess.run(
        [compiler, INCLUDE, *flags, "-c", "a.c", "-o", "a.o"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "limits" in done.stderr


@pytest.mark.parametrize("standard", ["-std=c++98", "-std=c++11", "-std=c++20", "-fno-exceptions"])
def test_in_namespaces(compiler: str, standard: str, tmp_path: Path) -> None:
    """A bug: it is not found by its mangled name."""
    source = "#include <katana.h>\nnamespace a { namespace { int f() { return 0; } KATANA_BEFORE(f); } }\n"
    source += "namespace b { static int f() { return 1; } KATANA_AFTER(f); }\n"
    plus = compiler.replace("gcc", "g++").replace("clang", "clang++")
    assert recorded(compiled(tmp_path, source, standard, "-O2", compiler=plus, name="a.cc")) == [
        (HookKind.BEFORE, "f"), (HookKind.AFTER, "f")
    ]  # fmt: skip


def test_order_is_that_of_the_source(compiler: str, tmp_path: Path) -> None:
    """Compilers make functions in the order they like.  A bug: the second hook runs first."""
    source = "#include <katana.h>\n"
    for n in range(12):
        source += f"static int f{n}(void) {{ return {n}; }}\nKATANA_BEFORE(f{n});\n"
    for optimise in ("-O0", "-O2"):
        assert [name for _, name in recorded(compiled(tmp_path, source, optimise, compiler=compiler))] == [
            f"f{n}" for n in range(12)
        ]


def test_objects_joined_by_a_linker(linker: str, tmp_path: Path) -> None:
    """`ld -r`.  A bug: the records of the second object are lost."""
    for name in ("b", "c"):
        elf = compiled(tmp_path, f"#include <katana.h>\nint {name}(void) {{ return 0; }}\nKATANA_AFTER({name});\n")
        assert recorded(elf) == [(HookKind.AFTER, name)]
        shutil.move(tmp_path / "a.o", tmp_path / f"{name}.o")
    run(f"ld.{linker}", "-r", "b.o", "c.o", "-o", "a.o", cwd=tmp_path)
    found = recorded(ElfFile((tmp_path / "a.o").read_bytes(), "a.o"))
    assert sorted(found) == [(HookKind.AFTER, "b"), (HookKind.AFTER, "c")]


def test_damaged_record(tmp_path: Path) -> None:
    """A bug: a hook is lost in silence."""
    compiled(tmp_path, "#include <katana.h>\nint b(void) { return 0; }\nKATANA_AFTER(b);\n")
    data = (tmp_path / "a.o").read_bytes()
    at = data.index(b"\x02\0\0\0\0\0\0\0\x02\0\0\0b\0")
    for damaged in (data[:at] + b"\x63" + data[at + 1 :], data[: at + 8] + b"\x70" + data[at + 9 :]):
        with pytest.raises(FormatError, match=r"of a later katana\.h, or a damaged one"):
            hooks_in(ElfFile(damaged, "a.o"))


SHARED = "#include <katana.h>\nint n;\nint f(void) { return n; }\nint main(void) { return f(); }\n"


def test_hook_in_a_shared_section_is_refused(plain: Project) -> None:
    """A bug: all of `.text` is carried, or the hook is left out in silence."""
    flags = [INCLUDE, "-fno-function-sections", "-DKATANA_RETAIN_="]
    header = "#undef KATANA_RETAIN_\n#define KATANA_RETAIN_\n"
    before = {"a.c": SHARED}
    after = {"a.c": SHARED.replace("int n;", header + "int n;") + "KATANA_BEFORE(f);\n"}
    result = plain.change(before, after, compile_flags=flags[:2])
    assert ("hook-unusable", "f") in result.refusals


def test_hook_that_the_linker_dropped_is_refused(plain: Project) -> None:
    """A compiler that knows no `retain`.  A bug: the patch goes in without it."""
    header = "#undef KATANA_RETAIN_\n#define KATANA_RETAIN_\n"
    after = {"a.c": SHARED.replace("int n;", header + "int n;") + "KATANA_BEFORE(f);\n"}
    result = plain.change({"a.c": SHARED}, after, compile_flags=[INCLUDE], link_flags=["-Wl,--gc-sections"])
    assert result.refusals == [("hook-unusable", "f")]


def test_builds_find_the_header_by_themselves(katana: Installation, project: Path, compiler: str) -> None:
    """Through katana-cc; without it the idiom leaves the hooks out.  A bug: it is not found, or breaks the build."""
    (project / "a.c").write_text("#define STEP 1\n#define NEW 1\n" + PROGRAM)
    assert katana.run(katana.cc, compiler, "-O1", "-Werror", "-c", "a.c", cwd=project).returncode == 0
    assert recorded(ElfFile((project / "a.o").read_bytes(), "a.o")) == ALL
    run(compiler, "-c", "a.c", "-w", cwd=project)
    assert recorded(ElfFile((project / "a.o").read_bytes(), "a.o")) == []
    code = "from katana_cc.cli.main import include_folder; print(include_folder())"
    folder = katana.run(katana.prefix / "bin" / "python3", "-c", code, cwd=project).stdout.decode().strip()
    assert folder == f"{katana.prefix}/libexec/katana/include"
    assert (Path(folder) / "katana.h").is_file()


# Functions that make live objects.

MAKER = "static int renew(const struct s_1 *a, struct s *b) { b->number = a->port; return 0; }\n"
MAKER += "KATANA_TRANSFORM(struct s_1, struct s, renew);\n"
USE = "__attribute__((noinline)) int f(void) { return v.%s; }\nint main(void) { return f(); }\n"


def made(plain: Project, old: str, declared: str, new: str, more: str = MAKER) -> Result:
    """The diff where `struct s` had the fields `old`, its new ones are `new`, and the function takes `declared`."""
    before = f"struct s {{ {old} }};\nstruct s v;\n" + USE % "port"
    after = f"#include <katana.h>\nstruct s {{ {new} }};\nstruct s_1 {{ {declared} }};\nstruct s v;\n"
    after += more + USE % "number"
    return plain.change({"a.c": before}, {"a.c": after}, compile_flags=[INCLUDE])


def test_rename_is_not_asked_about(plain: Project) -> None:
    """A bug: the function is passed over, and the question asked."""
    result = made(plain, "int port; int n;", "int port; int n;", "int number; int n;")
    assert result.refusals == []
    assert [h.kind for h in result.patch.hooks] == [HookKind.TRANSFORM]
    (transform,) = (t for t in result.patch.transforms if t.symbol is not None)
    assert transform.handed == ((0, -1, 0, 0, 1, 8, 8),)
    assert {type(s).__name__ for s in transform.transformation.steps} == {"Initial", "Dropped", "Copy"} or {
        type(s).__name__ for s in transform.transformation.steps
    } == {"Initial", "Dropped", "Integer"}


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ("int port; int n; int more;", "`more` of s_1 was not in s"),
        ("int port;", "`n` of s is not in s_1"),
        ("short port; int n;", "`port` is 2 bytes at 0 in s_1, was 4 at 0"),
        ("int n; int port;", "`port` is 4 bytes at 4 in s_1, was 4 at 0"),
        ("unsigned port; int n;", "`port` is unsigned int in s_1, was int"),
        ("float port; int n;", "`port` is float in s_1, was int"),
    ],
)
def test_other_type_than_the_deployed_one_is_refused(plain: Project, declared: str, told: str) -> None:
    """A bug: the function reads objects by a layout that they do not have."""
    result = made(plain, "int port; int n;", declared, "int number; int n;")
    (reason,) = (r for r in result.patch.reasons if r.code == "hook-unusable")
    assert (reason.severity, reason.subject) == ("refused", "renew")
    assert told in reason.text


def test_of_several_releases_the_deployed_one_counts(plain: Project) -> None:
    """A bug: the first or the last is taken."""
    other = "struct s_0 { char port; };\n"
    other += "static int older(const struct s_0 *a, struct s *b) { b->number = a->port; return 0; }\n"
    other += "KATANA_TRANSFORM(struct s_0, struct s, older);\n"
    for more in (other + MAKER, MAKER + other):
        result = made(plain, "int port; int n;", "int port; int n;", "int number; int n;", more)
        assert result.refusals == []
        assert [h.name for h in result.patch.hooks] == ["renew"]


def test_type_that_did_not_change_needs_no_function(plain: Project) -> None:
    """It was left in the source.  A bug: it is carried, or refused."""
    result = made(plain, "int port, number;", "int port; int number;", "int port, number;")
    assert result.refusals == []
    assert result.patch.hooks == ()
    assert result.about("hook-left-out") == ["renew"]


def test_parts_in_arrays_are_found(plain: Project) -> None:
    """Arrays in structs in arrays.  A bug: a part is passed over, or another place taken for one."""
    kept = "struct h {{ char c; struct s in[3]; }};\nstruct h v[2][4];\n"
    before = "struct s { int port; int n; };\n" + kept.format() + USE.replace("v.%s", "v[1][1].in[1].port")
    after = "#include <katana.h>\nstruct s { long n; int number; };\nstruct s_1 { int port; int n; };\n" + kept.format()
    after += MAKER + USE.replace("v.%s", "v[1][1].in[1].number")
    result = plain.change({"a.c": before}, {"a.c": after}, compile_flags=[INCLUDE])
    assert result.refusals == []
    (transform,) = (t for t in result.patch.transforms if t.symbol is not None)
    found = {(h.old + i * h.old_stride, h.new + i * h.new_stride) for h in transform.handed for i in range(h.number)}
    assert found == {(28 * o + 4 + 8 * i, 56 * o + 8 + 16 * i) for o in range(8) for i in range(3)}


TAKES = "static int renew(const struct s_1 *a, struct s *b) { b->number = a->port; return 0; }\n"
TAKES += "KATANA_TRANSFORM(struct s_1, struct s, renew);\n"


@pytest.mark.parametrize(
    ("new", "needs"),
    [("long number; struct s *next;", []), ("long number; struct s *following;", ["struct s"])],
    ids=["known", "renamed"],
)
def test_pointer_that_only_the_function_takes_over(plain: Project, new: str, needs: list[str]) -> None:
    """Objects that it leads to would not be found.  A bug: they keep the old layout, and are misread."""
    use = "__attribute__((noinline)) long f(void) { return head->%s + v.%s; }\nint main(void) { return f(); }\n"
    before = "struct s { int port; struct s *next; };\nstruct s *head, v;\n" + use % ("port", "port")
    after = f"#include <katana.h>\nstruct s {{ {new} }};\nstruct s_1 {{ int port; struct s_1 *next; }};\n"
    after += "struct s *head, v;\n" + TAKES + use % ("number", "number")
    result = plain.change({"a.c": before}, {"a.c": after}, compile_flags=[INCLUDE])
    assert result.refusals == []
    assert result.about("type-changed-elsewhere") == needs
    handed = [t for t in result.patch.transforms if t.is_type and t.handed]
    assert len(handed) == (0 if needs else 1)


def test_open_array_is_refused(plain: Project) -> None:
    """How long an object is, only the program knows.  A bug: its end is taken for more objects, or lost."""
    use = "__attribute__((noinline)) long f(void) { return head->%s; }\nint main(void) { return f(); }\n"
    before = "struct s { int port; char text[]; };\nstruct s *head;\n" + use % "port"
    after = "#include <katana.h>\nstruct s { long number; char text[]; };\nstruct s_1 { int port; char text[]; };\n"
    after += "struct s *head;\n" + TAKES + use % "number"
    result = plain.change({"a.c": before}, {"a.c": after}, compile_flags=[INCLUDE])
    assert ("type-changed", "s") in result.refusals


def test_another_type_of_that_name_is_not_handed_over(plain: Project) -> None:
    """Two files have a `struct s` each.  A bug: the function of the one gets objects of the other."""
    first = "struct s { int port; int n; };\nstruct s v;\n" + USE % "port"
    other = "struct s { %s };\nstatic struct s w;\n__attribute__((noinline)) int g(int x) { w.a += x; return w.a; }\n"
    after = "#include <katana.h>\nstruct s { int number; int n; };\nstruct s_1 { int port; int n; };\nstruct s v;\n"
    after += MAKER + USE % "number"
    result = plain.change(
        {"a.c": first, "b.c": other % "int a;"},
        {"a.c": after, "b.c": other % "long a; long b;"},
        compile_flags=[INCLUDE],
    )
    handed = {t.transformation.name: len(t.handed) for t in result.patch.transforms if t.symbol is not None}
    assert handed == {"v": 1, "w": 0}
