"""A project for the diff's tests: sources in, two builds out, recorded by the real ingester and compared by the diff.

The compiler and the linker are called directly, not through the wrappers, and `link.json` is written here as
docs/staging.md specifies it: a second producer of that format, and several times faster than a build.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from katana_cc.diff.engine import Changes
from katana_cc.patch import codec
from katana_cc.patch.model import PatchObject
from katana_cc.recorder.ingest import StagedLink, ingest
from katana_cc.recorder.linkmap import parse
from katana_cc.release.emit import make_patch
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.store import Store

COMPILE = ("-g", "-ffunction-sections", "-fdata-sections", "-w")
MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pie": (("-fPIE",), ("-pie",)),
    "nopie": (("-fno-pie",), ("-no-pie",)),
    "shared": (("-fPIC",), ("-shared",)),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to build: compiler, optimisation, kind of output, linker, and further flags."""

    compiler: str = "gcc"
    optimise: str = "-O2"
    mode: str = "pie"
    linker: str = "bfd"
    compile_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.compiler}{self.optimise}-{self.mode}-{self.linker}"

    def available(self) -> bool:
        """Whether the tools are installed."""
        return bool(shutil.which(self.compiler) and shutil.which(f"ld.{self.linker}"))


@dataclass(frozen=True, slots=True)
class Build:
    """One recorded build; `path` is a copy of its output that later builds do not overwrite."""

    snapshot: Snapshot
    path: Path


@dataclass(slots=True)
class Result:
    """What the diff of two builds came to."""

    changes: Changes
    patch: PatchObject
    data: bytes = field(repr=False, default=b"")

    @property
    def refusals(self) -> list[tuple[str, str]]:
        """(code, subject) of every refusal."""
        return [(r.code, r.subject) for r in self.patch.reasons if r.severity == "refused"]

    @property
    def needs(self) -> list[tuple[str, str]]:
        """(code, subject) of everything that somebody has to decide."""
        return [(r.code, r.subject) for r in self.patch.reasons if r.severity == "needs"]

    def codes(self, severity: str | None = None) -> set[str]:
        """The codes of all reasons."""
        return {r.code for r in self.patch.reasons if severity in (None, r.severity)}

    def about(self, code: str) -> list[str]:
        """The subjects of the reasons with a code, sorted."""
        return sorted(r.subject for r in self.patch.reasons if r.code == code)

    @property
    def replaced(self) -> list[str]:
        """Names of the replaced functions."""
        return sorted(r.name for r in self.patch.replacements)

    @property
    def edited(self) -> list[str]:
        """Names of the data rewritten in place."""
        return sorted(e.name for e in self.patch.data_edits if not e.is_initialiser)

    @property
    def carried(self) -> list[str]:
        """Names of functions and objects the patch object defines."""
        return sorted({y.name for y in self.patch.symbols if y.section is not None and y.name})

    @property
    def nothing(self) -> bool:
        """Whether nothing has to be done."""
        return self.changes.empty


class Project:
    """A folder with sources, objects and a store.

    Args:
        folder: an empty folder.
        variant: how to build.
    """

    def __init__(self, folder: Path, variant: Variant | None = None) -> None:
        self.folder = folder
        self.variant = variant or Variant()
        self.store = Store(folder / ".katana", create=True)
        self.count = 0

    def build(
        self,
        files: Mapping[str, str],
        *,
        compile_flags: Sequence[str] = (),
        link_flags: Sequence[str] = (),
        order: Sequence[str] | None = None,
        archive: Iterable[str] = (),
        output: str = "prog",
        keep: Iterable[str] = (),
        file_flags: Mapping[str, Sequence[str]] | None = None,
    ) -> Build:
        """Compile `files` (name → source), link them in `order`, record the link.

        `archive` names files whose objects go into a static archive instead; objects of `keep` are not made anew.
        """
        objects = self.compile(files, compile_flags=compile_flags, keep=keep, file_flags=file_flags)
        archived = list(archive)
        inputs = [objects[n] for n in (order or objects) if n not in archived]
        if archived:
            (self.folder / "libpart.a").unlink(missing_ok=True)
            subprocess.run(["ar", "rc", "libpart.a", *(objects[n] for n in archived)], cwd=self.folder, check=True)
            inputs.append("libpart.a")
        return self.link(inputs, link_flags=link_flags, output=output)

    def compile(
        self,
        files: Mapping[str, str],
        *,
        compile_flags: Sequence[str] = (),
        keep: Iterable[str] = (),
        file_flags: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, str]:
        """Write and compile `files`; file name → name of the object.  Those of `keep` are left as they are."""
        v, kept = self.variant, set(keep)
        objects: dict[str, str] = {}
        commands: list[list[str]] = []
        for name, source in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            target = str(Path(name).with_suffix(".o"))
            objects[name] = target
            if name in kept:
                continue
            path.write_text(source)
            command = [v.compiler, *COMPILE, v.optimise, *MODES[v.mode][0], *v.compile_flags, *compile_flags]
            command += [*(file_flags or {}).get(name, ()), "-c", name, "-o", target]
            if name.endswith(".h"):
                del objects[name]
                continue
            commands.append(command)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = list(pool.map(lambda command: subprocess.run(command, cwd=self.folder, check=False), commands))
        failed = [job.args for job in done if job.returncode]
        assert not failed
        return objects

    def link(self, inputs: Sequence[str], *, link_flags: Sequence[str] = (), output: str = "prog") -> Build:
        """Link objects and archives in this order, and record the link."""
        v = self.variant
        words = [v.compiler, f"-fuse-ld={v.linker}", *MODES[v.mode][1], *v.link_flags, *link_flags, *inputs]
        command = [*words, "-Wl,--build-id=sha1", "-Wl,-Map=.map", "-o", output]
        subprocess.run(command, cwd=self.folder, check=True)
        return self.record(output, words)

    def record(self, output: str, words: Sequence[str]) -> Build:
        """Stage by hand and ingest what the last link made."""
        staged = self.stage(output, words)
        snapshot = ingest(self.store, staged)
        return Build(snapshot, staged.folder / "output")

    def stage(self, output: str, words: Sequence[str]) -> StagedLink:
        """Stage the last link: objects, map and output, and their `link.json`."""
        self.count += 1
        place = self.folder / ".katana" / "staged" / "links" / f"{self.count:016x}"
        objects = self.folder / ".katana" / "staged" / "objects"
        place.mkdir(parents=True)
        objects.mkdir(parents=True, exist_ok=True)
        text = (self.folder / ".map").read_bytes()
        shutil.copy(self.folder / ".map", place / "map")
        shutil.copy(self.folder / output, place / "output")
        inputs: list[dict[str, Any]] = []
        for name in dict.fromkeys(file for file, _ in parse(text)):
            source = self.folder / name
            if not source.is_file():
                continue  # `<internal>` of lld and mold
            data = source.read_bytes()
            ident = sha256(bytes(source) + b"\0" + data).hexdigest()[:24]
            (objects / ident).write_bytes(data)
            archive = data.startswith(b"!<arch>")
            inputs.append({"path": name, "absolute": os.path.normpath(source), "file": ident, "archive": archive})
        argv = [part for word in words for part in word.removeprefix("-Wl,").split(",")]
        info = {
            "format": 1, "output": str(self.folder / output), "output_key": output, "map": "map", "image": "output",
            "inputs": inputs, "argv": argv, "linker": f"ld.{self.variant.linker}", "notes": [], "lto": False,
            "time": time.time(),
        }  # fmt: skip
        (place / "link.json").write_text(json.dumps(info))
        return StagedLink(place, info)

    def diff(self, old: Build, new: Build) -> Result:
        """The diff of two builds, and the patch object, written and read once."""
        patch, changes = make_patch(self.store, old.snapshot, new.snapshot, "old", "new")
        data = codec.encode(patch)
        return Result(changes, codec.decode(data, "patch"), data)

    def change(self, before: Mapping[str, str], after: Mapping[str, str], **options: Any) -> Result:
        """Build both and compare; a file that `after` leaves out is as before."""
        old = self.build(before, **options)
        new = self.build({**before, **after}, **options)
        return self.checked(old, new)

    def checked(self, old: Build, new: Build) -> Result:
        """The diff, with what must hold of any patch object: it is well-formed and means what the new build means."""
        from katana_cc.patch.checks import problems
        from tests.support.equivalence import inequivalences

        result = self.diff(old, new)
        if not result.nothing:
            found = problems(result.patch)
            assert found == []
            assert inequivalences(result.patch, old.path, new.path) == []
        return result


def project_of(folder: Path, variant: Variant) -> Project:
    """An empty project in a variant; skips the test, by name, where that needs a tool that is not installed."""
    if not variant.available():
        pytest.skip(f"{variant} needs a tool that is not installed")
    return Project(folder, variant)


def project_in(variants: Sequence[Variant], ids: Callable[[Variant], str] = str) -> Callable[..., Project]:
    """A fixture: an empty project in each variant; skipped, by name, where one needs a tool that is not installed."""

    @pytest.fixture(params=variants, ids=ids)
    def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
        return project_of(tmp_path, request.param)

    return project
