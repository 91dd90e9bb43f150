"""Builds real programs twice, with Katana and without, compares, tests, edits, and writes docs/builds.md.

    python3 -m tests.projects.builds [NAME...]      (make builds)

Each program is unpacked from Debian's sources and built twice in the same folder by the same commands: by a script of
one line that runs the compiler with `-g -ffunction-sections -fdata-sections`, and by katana-cc.  Then, of the second:

1. the loaded bytes of every output (`objcopy -O binary`, without the build-id) are those of the first;
2. every output is among the recorded links, by the build-id that readelf reads;
3. of Debian packages: the stripped files in the .deb have recorded build-ids, and -dbgsym packages carry them;
4. the program's own tests pass;
5. one edit is made, and the rebuild leaves patch objects, none refused.

With names only these are built; the page has the newest result of each that was ever built here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.projects.debian import fetch, need_packages
from tests.projects.programs import PROGRAMS, Program

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "builds.md"
_FLAGS: Final = "-g -ffunction-sections -fdata-sections"
# What configure runs compile to ask a question is no output of the program.
_PROBES: Final = re.compile(
    r"(^|/)(conftest|CMakeFiles/([0-9.]+|CMakeTmp|CMakeScratch|CheckTypeSize)/|meson-private|debian/)"
)


@dataclass(slots=True)
class Row:
    """What was seen of one program.  `outputs` were compared, of which `identical` have the same bytes, and so on."""

    program: Program
    version: str = ""
    outputs: int = 0
    links: int = 0
    different: list[str] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)
    packaged: str = ""
    tests: str = ""
    patches: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    failure: str = ""
    seconds: float = 0

    @property
    def good(self) -> bool:
        """Whether everything is as it should be."""
        wrong = self.different or self.unrecorded or self.refused or self.failure or not self.patches
        return bool(not wrong and self.outputs and self.tests == "passed")


class Failure(Exception):
    """A command of a build failed."""


def run(script: str, folder: Path, environment: dict[str, str], log: Path) -> str:
    """Run a script by `sh -e` and return what it printed.

    Raises:
        Failure: it failed.
    """
    done = subprocess.run(
        ["sh", "-ec", script], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    with log.open("a") as file:
        file.write(f"$ {script}\n{done.stdout}\n[{done.returncode}]\n")
    if done.returncode:
        raise Failure(f"`{script.splitlines()[-1]}` failed with {done.returncode}: see {log}")
    return done.stdout


def environment_of(compiler: str, compiler_cxx: str) -> dict[str, str]:
    """The same for both builds but for the compilers' names."""
    drop = ("KATANA_", "MAKE", "MFLAGS", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CCACHE", "DEB_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    # A build's clock must not be the difference between two builds.
    return kept | {"CC": compiler, "CXX": compiler_cxx, "SOURCE_DATE_EPOCH": "1700000000", "LC_ALL": "C.UTF-8"}


def plain_compilers(folder: Path) -> tuple[str, str]:
    """Scripts that run the plain compilers with the flags that katana-cc adds."""
    made = []
    for name, real in (("cc", "gcc"), ("c++", "g++")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec /usr/bin/{real} {_FLAGS} "$@"\n')
        script.chmod(0o755)
        made.append(str(script))
    return made[0], made[1]


def outputs_of(folder: Path) -> dict[str, str]:
    """Linked ELF files in a build tree, by their path there, with their build-ids."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not path.is_file() or _PROBES.search(name) or name.startswith(".katana/"):
            continue
        with path.open("rb") as file:
            head = file.read(18)
        if head[:4] == b"\x7fELF" and head[16] in (2, 3):
            found[name] = build_id(path)
    return found


def build_id(path: Path) -> str:
    """As readelf reads it; "" if there is none."""
    text = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=False).stdout
    match = re.search(r"Build ID: ([0-9a-f]+)", text)
    return match[1] if match else ""


def loaded_bytes(path: Path) -> bytes:
    """All that is loaded of an ELF file, without its build-id."""
    image = path.with_name(path.name + ".katana-image")
    subprocess.run(["objcopy", "-O", "binary", "-R", ".note.gnu.build-id", path, image], check=True)
    try:
        return image.read_bytes()
    finally:
        image.unlink()


def recorded(store: Path) -> set[str]:
    """Build-ids of all staged links' outputs."""
    return {build_id(image) for image in store.glob("staged/links/*/*/output")}


def look_at_packages(folder: Path, known: set[str], work: Path) -> str:
    """Whether the files in the .deb packages beside the source have recorded build-ids, and debug symbols by them."""
    files = debug = strange = 0
    for package in sorted(folder.parent.glob("*.deb")):
        place = work / "debs" / package.stem
        place.mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", package, place], check=True)
        for path in place.rglob("*"):
            if path.is_symlink() or not path.is_file() or path.open("rb").read(4) != b"\x7fELF":
                continue
            if "/.build-id/" in str(path):
                debug += 1
                strange += path.parent.name + path.stem not in known
            elif path.suffix != ".o":
                files += 1
                strange += build_id(path) not in known
    return f"{files} files and {debug} dbgsym files in packages" + (f", {strange} NOT RECOGNISED" if strange else "")


def build(program: Program, work: Path) -> Row:
    """Build, compare, test and edit one program in the empty folder `work`."""
    row = Row(program)
    began = time.monotonic()
    log = work / "log"
    source = work / "tree" / "source"
    try:
        if program.needs:
            need_packages(*program.needs)
        kept = work / "plain"
        unpack(program, source)
        row.version = version_of(source)
        run(program.build, source, environment_of(*plain_compilers(work)), log)
        plain = outputs_of(source)
        shutil.move(work / "tree", kept)
        unpack(program, source)
        binaries = Path(sys.prefix) / "bin"
        environment = environment_of(str(binaries / "katana-cc"), str(binaries / "katana-c++"))
        environment["PATH"] = f"{binaries}:{environment['PATH']}"
        run(program.build, source, environment, log)
        ours = outputs_of(source)
        known = recorded(source / ".katana")
        row.outputs, row.links = len(ours), len(known)
        row.different = sorted(plain.keys() ^ ours.keys())
        for name in sorted(plain.keys() & ours.keys()):
            if loaded_bytes(kept / "source" / name) != loaded_bytes(source / name):
                row.different.append(name)
        row.unrecorded = [name for name, identity in ours.items() if identity not in known]
        if program.system.startswith("dpkg"):
            row.packaged = look_at_packages(source, known, work)
            row.unrecorded += ["files of packages"] if "NOT" in row.packaged else []
        run(program.test, source, environment, log)
        row.tests = "passed"
        run("katana-release v1", source, environment, log)
        file = source / program.edit.file
        text = file.read_text(errors="surrogateescape")
        if program.edit.old not in text:
            raise Failure(f"{program.edit.file} does not hold {program.edit.old!r}")
        file.write_text(text.replace(program.edit.old, program.edit.new, 1), errors="surrogateescape")
        run(program.rebuild, source, environment, log)
        for patch in json.loads(run("katana patches --json", source, environment, log)):
            words = f"{patch['output']}: {patch['verdict']}, {patch['size']} bytes"
            (row.refused if patch["verdict"] == "refused" else row.patches).append(words)
    except Failure as error:
        row.failure = str(error)
    row.seconds = time.monotonic() - began
    return row


def unpack(program: Program, source: Path) -> None:
    """The source, with Debian's patches unless the build applies them, as the root of a project."""
    source.parent.mkdir(parents=True)
    tree = fetch(program.package, source)
    while program.patched and tree.applied < len(tree.series):
        tree.apply_next()
    (source / ".hg").mkdir()  # marks the project's root, as a checkout has it


def version_of(source: Path) -> str:
    """Debian's version of an unpacked source."""
    match = re.match(r"\S+ \(([^)]*)\)", (source / "debian/changelog").read_text())
    return match[1] if match else "?"


HEADER: Final = """# Builds of real programs

Written by `make builds` (`python3 -m tests.projects.builds`), which anyone with a Debian can run; its docstring says
what each column was checked with. Each program was unpacked from Debian's sources and built by the commands in
`tests/projects/programs.py`, with `CC` and `CXX` naming katana-cc and katana-c++ and no other change.

- *outputs*: linked files in the build tree, of which *same code* have the same loaded bytes as a build without
  Katana by the same flags, and *recorded* are among the recorded links.
- *tests*: the program's own test-suite, run on the build with Katana.
- *patches*: patch objects that the rebuild after one edit left, and the verdict of the first.

"""


def page(rows: list[Row], compiler: str) -> str:
    """The page."""
    lines = [HEADER + f"Compiler: {compiler}.\n"]
    lines.append("| Program | Build system | outputs | same code | recorded | tests | patches | s |")
    lines.append("|---|---|---:|---:|---:|---|---|---:|")
    for row in rows:
        same = row.outputs - len(row.different)
        patches = f"{len(row.patches)} ({row.patches[0]})" if row.patches else "none"
        if row.refused:
            patches += f"; {len(row.refused)} refused"
        lines.append(
            f"| {row.program.package} {row.version} | {row.program.system} | {row.outputs} | {same} | "
            f"{row.outputs - len(row.unrecorded)} | {row.tests or '-'} | {patches} | {row.seconds:.0f} |"
        )
    remarks = [f"- {row.program.package}: {row.packaged}." for row in rows if row.packaged]
    remarks += [f"- {row.program.package}: **{row.failure}**." for row in rows if row.failure]
    for row in rows:
        remarks += [f"- {row.program.package}: **different code**: {name}." for name in row.different]
        remarks += [f"- {row.program.package}: **not recorded**: {name}." for name in row.unrecorded]
        remarks += [f"- {row.program.package}: **refused**: {words}." for words in row.refused]
    good = sum(row.good for row in rows)
    lines += [
        "",
        f"{good} of {len(rows)} are wholly as they should be. `s` is seconds for both builds, tests and edit.",
        "",
    ]
    return "\n".join([*lines, *remarks]) + "\n"


def slug(program: Program) -> str:
    """A name for files: `libyaml-dpkg-buildpackage-libtool`."""
    return f"{program.package}-{re.sub(r'[^a-z]+', '-', program.system.lower()).strip('-')}"


def remember(results: Path, row: Row) -> list[Row]:
    """Keep a result beside those of earlier runs; all of them, in the order of the table."""
    known: dict[str, dict[str, Any]] = json.loads(results.read_text()) if results.exists() else {}
    values = asdict(row)
    del values["program"]
    known[slug(row.program)] = values
    results.write_text(json.dumps(known, indent=2))
    return [Row(p, **known[slug(p)]) for p in PROGRAMS if slug(p) in known]


def main() -> int:
    """Build all, or those that are named; 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description="Build real programs with and without Katana.")
    parser.add_argument("names", nargs="*", help="packages, or folders of --work (default: all)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "builds", help="where to build")
    arguments = parser.parse_args()
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    chosen = [p for p in PROGRAMS if not arguments.names or {p.package, slug(p)} & set(arguments.names)]
    good = True
    for program in chosen:
        work = arguments.work.absolute() / slug(program)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        row = build(program, work)
        # At once: a run takes half an hour, and may be ended before.
        PAGE.write_text(page(remember(arguments.work / "results.json", row), compiler))
        print(f"{program.package}, {program.system}: {'good' if row.good else row}", flush=True)
        good = good and row.good
        if row.good:
            shutil.rmtree(work)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
