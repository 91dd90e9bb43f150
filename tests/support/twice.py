"""The same command by the plain compiler and by katana-cc, in the same folder; what differs is a fault of ours."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.installation import Installation, clean_environment

FLAGS = ("-g", "-ffunction-sections", "-fdata-sections")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left: exit status, streams, and every file of the folder by its name."""

    status: int
    stdout: bytes
    stderr: bytes
    files: dict[str, bytes]

    @property
    def words(self) -> str:
        """For a failing test."""
        return f"{self.status} {self.stderr.decode(errors='replace')} {sorted(self.files)}"


def both(
    katana: Installation,
    folder: Path,
    compiler: str,
    arguments: Sequence[str | bytes],
    *,
    stdin: bytes | None = None,
    flags: Sequence[str] = FLAGS,
    **variables: str,
) -> Outcome:
    """Run `compiler` with `flags`, then katana-cc without; assert that nothing differs, and return what came of it.

    The store, `.katana`, is left where the second put it, and is no part of the outcome.
    """
    before = _files(folder)
    environment = clean_environment() | variables
    done = subprocess.run(
        [shutil.which(compiler) or compiler, *flags, *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        env=environment,
        check=False,
    )
    plain = Outcome(done.returncode, done.stdout, done.stderr, _files(folder))
    _restore(folder, before)
    done = katana.run(katana.cc, compiler, *arguments, cwd=folder, stdin=stdin, **variables)
    ours = Outcome(done.returncode, done.stdout, done.stderr, _files(folder))
    assert (ours.status, ours.stdout, ours.stderr) == (plain.status, plain.stdout, plain.stderr)
    assert sorted(ours.files) == sorted(plain.files)
    assert [name for name in ours.files if ours.files[name] != plain.files[name]] == []
    return ours


def _files(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in files}
    return {n: path.read_bytes() for n, path in names.items() if not n.startswith((".katana/", ".git/"))}


def _restore(folder: Path, files: dict[str, bytes]) -> None:
    for name in _files(folder):
        if name not in files:
            (folder / name).unlink()
    for name, content in files.items():
        if (folder / name).read_bytes() != content:
            (folder / name).write_bytes(content)
    shutil.rmtree(folder / ".katana", ignore_errors=True)
