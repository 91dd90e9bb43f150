"""Where pointers into an object lead once it has moved, against what the compiler says of both versions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from katana_cc.transform.model import Transformation
from katana_cc.transform.places import moved_offset
from tests.toolchain.test_transform_compiled import of_variable

# (declarations of the old build, of the new one, what can be pointed to in the old one, what is gone in the new one)
CASES = {
    "a field at the front": (
        "struct s { int a; long b; char c[8]; void *d; } v;",
        "struct s { int z; int a; long b; char c[8]; void *d; } v;",
        "a b c c[0] c[5] d", "",
    ),
    "a nested struct that gains one at its front": (
        "struct s { long a; struct { int x; int y; } in; long b; } v;",
        "struct s { long a; struct { int n; int x; int y; } in; long b; } v;",
        "a in in.x in.y b", "",
    ),
    "a nested struct that loses its first field": (
        "struct s { long a; struct { int n; int x; } in; long b; } v;",
        "struct s { long a; struct { int x; } in; long b; } v;",
        "a in in.n in.x b", "in.n",
    ),
    "a nested struct that moves as it is": (
        "struct s { long a; struct { int x; int y; void *p; } in; } v;",
        "struct s { long a; long z; struct { int x; int y; void *p; } in; } v;",
        "a in in.x in.y in.p", "",
    ),
    "structs in structs": (
        "struct s { long a; struct { struct { int x; short y; } deep; int t; } in; } v;",
        "struct s { long a; struct { struct { long x; short y; } deep; int n, t; } in; } v;",
        "a in in.deep in.deep.x in.deep.y in.t", "",
    ),
    "an array that grows": ("int v[4];", "int v[40];", "[0] [1] [3]", ""),
    "an array that shrinks": ("int v[8];", "int v[3];", "[1] [2] [3] [7]", "[3] [7]"),
    "an array of wider numbers": ("int v[4];", "long v[4];", "[1] [2] [3]", ""),
    "an array of structs that grow at the end": (
        "struct r { int a; int b; }; struct r v[3];",
        "struct r { int a; int b; long c; }; struct r v[3];",
        "[1] [1].a [1].b [2] [2].a [2].b", "",
    ),
    "an array of structs that grow at the front": (
        "struct r { int a; int b; }; struct r v[3];",
        "struct r { long c; int a; int b; }; struct r v[3];",
        "[1] [1].a [1].b [2] [2].a [2].b", "",
    ),
    "an array in an array": (
        "struct r { char n; void *p[2]; }; struct { int z; struct r r[2]; } v;",
        "struct r { char n; void *p[3]; }; struct { int z; struct r r[4]; } v;",
        "z r r[0] r[1] r[1].n r[1].p r[1].p[0] r[1].p[1]", "",
    ),
    "a field that is gone": (
        "struct s { int a; int gone; int b; } v;", "struct s { int a; int b; } v;", "a gone b", "gone",
    ),
    "bit-fields": (
        "struct s { long a; struct { unsigned f : 3; unsigned g : 5; int n; } in; } v;",
        "struct s { long a, z; struct { unsigned f : 3; unsigned g : 6; int n; } in; } v;",
        "a in in.n", "",
    ),
}  # fmt: skip


def offsets(folder: Path, name: str, text: str, paths: list[str]) -> dict[str, int]:
    """Path → its offset in the variable, by the compiler."""
    places = "".join(
        f'  printf("%td\\n", (char *)&v{p if p.startswith("[") else "." + p} - (char *)&v);\n' for p in paths
    )
    source = folder / f"{name}.c"
    source.write_text(f"#include <stdio.h>\n{text}\nint main(void) {{\n{places}  return 0;\n}}\n")
    subprocess.run(["gcc", "-w", source, "-o", folder / name], check=True)
    printed = subprocess.run([folder / name], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(paths, map(int, printed), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_pointers_lead_where_the_same_thing_is_now(tmp_path: Path, case: str) -> None:
    old, new, pointed, gone = CASES[case]
    made = of_variable(tmp_path, old, new)
    assert isinstance(made, Transformation)
    missing = gone.split()
    before = offsets(tmp_path, "before", old, pointed.split())
    after = offsets(tmp_path, "after", new, [p for p in before if p not in missing])
    for path, offset in before.items():
        # All that begins there must be together still, or the pointer is not understood; the whole object goes first.
        meant = {after.get(p) for p, at in before.items() if at == offset}
        expected = 0 if offset == 0 else meant.pop() if len(meant) == 1 else None
        assert moved_offset(made, offset) == expected, path


def test_the_cases_hold_what_cannot_be_told(tmp_path: Path) -> None:
    """A struct and its first field part ways: without this the comparison above could compare nothing."""
    old, new, *_ = CASES["a nested struct that gains one at its front"]
    made = of_variable(tmp_path, old, new)
    assert isinstance(made, Transformation)
    assert [moved_offset(made, n) for n in (0, 8, 12, 16)] == [0, None, 16, 24]
