"""The same through the wrappers: a build by `katana-cc`, a release, another build, and the line it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.cli.release import release
from katana_cc.patch import codec
from katana_cc.release.naming import current_snapshots
from katana_cc.snapshot.store import Store
from tests.support.equivalence import inequivalences
from tests.support.installation import Installation

MAIN = "int serve(int); int main(int c, char **v) { return serve(c); }"
SOURCE = "static int n; int serve(int x) {{ return n += x * {}; }}"


def build(katana: Installation, project: Path, compiler: str, linker: str, factor: int) -> str:
    """Compile and link; what the wrappers printed."""
    (project / "main.c").write_text(MAIN)
    (project / "a.c").write_text(SOURCE.format(factor))
    done = katana.run(katana.cc, compiler, "-O2", f"-fuse-ld={linker}", "main.c", "a.c", "-o", "prog", cwd=project)
    assert done.returncode == 0, done.stderr
    return done.stderr.decode()


def test_link_after_a_release_emits_the_patch(
    katana: Installation, project: Path, compiler: str, linker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sources on one command line: the objects are temporary, and their names differ at every link."""
    assert build(katana, project, compiler, linker, 3) == ""
    old = (project / "prog").read_bytes()
    monkeypatch.chdir(project)
    assert release(["v1"]) == 0
    assert build(katana, project, compiler, linker, 3) == ""
    names = {u.name for s in current_snapshots(Store(project / ".katana")) for u in s.units}
    assert {"main.c", "a.c"} <= names
    line = build(katana, project, compiler, linker, 5)
    assert line.count("\n") == 1
    (row,) = Store(project / ".katana").patches()
    patch = codec.decode(Path(row.path).read_bytes(), row.path)
    assert [r.name for r in patch.replacements] == ["serve"]
    (project / "old").write_bytes(old)
    assert inequivalences(patch, project / "old", project / "prog") == []
