"""Outputs that were built in a project and not recorded, and why.

A build escapes the wrapper in ways that no wrapper can see: C objects linked by a `c++` that is not wrapped, a CMake
tree that was configured with another compiler and keeps it whatever CC says, a makefile with a compiler of its own.  So
`katana-release` looks at what lies there: an ELF executable or shared library in the project whose build-id no record
has was built here if its debug information names the project's folder, and then the reason is looked for:

- a CMakeCache.txt above it names a compiler that is not katana-cc, with no launcher of ours before it;
- its objects were compiled with our flags (gcc tells all flags in DW_AT_producer), so only the link escaped: the usual
  case is C++ without CXX=katana-c++, or a file that was moved to another folder;
- else neither was wrapped.

An old file that somebody stripped, or copied from elsewhere, holds no such name and is passed over: so this finds what
a person should know of, and is no proof that there is nothing else.  The walk ends after a number of files, since a
release is named while somebody waits.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Final, NamedTuple

from katana_cc.recorder.ingest import build_id_on_disk

_MOST_FILES: Final = 50_000
_SKIPPED: Final = frozenset({".katana", ".git", ".hg", ".svn", "_darcs", "node_modules", ".venv", "CMakeFiles"})
_NOT_LINKED: Final = (".o", ".lo", ".a", ".la", ".c", ".h", ".cc", ".cpp", ".py", ".txt", ".d", ".po", ".gch", ".debug")
_PROBES: Final = ("conftest", "cmTC_")
_CACHED: Final = re.compile(rb"^CMAKE_(C|CXX)_COMPILER(_LAUNCHER)?:[A-Z]+=(.*)$", re.MULTILINE)


class Escaped(NamedTuple):
    """An output that was built in the project and not recorded."""

    path: str
    reason: str


def escaped(root: Path, known: Set[str]) -> list[Escaped]:
    """What was built below `root`, and has none of the build-ids `known`; sorted by path."""
    found = []
    named = os.fsencode(root)
    for path in _linked(str(root)):
        identity = build_id_on_disk(path)
        if identity in known or not (held := _holds(path, named)):
            continue
        found.append(Escaped(str(path), _reason(path, root, our_flags=held == "our flags")))
    return sorted(found)


def _linked(folder: str) -> Iterator[Path]:
    """ELF executables and shared libraries, as their first bytes tell."""
    left = _MOST_FILES
    folders = [folder]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            left -= 1
            if left < 0:
                return
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in _SKIPPED:
                        folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False) and _may_be_linked(entry.name) and _is_linked(entry.path):
                    yield Path(entry.path)
            except OSError:
                continue


def _may_be_linked(name: str) -> bool:
    return not name.endswith(_NOT_LINKED) and not name.startswith(_PROBES)


def _is_linked(path: str) -> bool:
    with Path(path).open("rb") as file:
        head = file.read(18)
    return len(head) == 18 and head[:4] == b"\x7fELF" and head[16] in (2, 3) and not head[17]


def _holds(path: Path, root: bytes) -> str:
    """ "our flags" or "the folder" when its debug information names those, else ""."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(root + b"/") < 0 and data.find(root + b"\0") < 0:
                return ""
            return "our flags" if data.find(b"-ffunction-sections -fdata-sections") >= 0 else "the folder"
    except (OSError, ValueError):
        return ""


def _reason(path: Path, root: Path, *, our_flags: bool) -> str:
    cache = next((p / "CMakeCache.txt" for p in _upwards(path.parent, root) if (p / "CMakeCache.txt").exists()), None)
    if cache is not None and (compiler := _foreign_compiler(cache)):
        return (
            f"{cache} was configured with {compiler}, and CMake keeps a compiler whatever CC says later: configure in "
            "a new folder, or with `cmake --fresh`"
        )
    if our_flags:
        return (
            "its objects were compiled by katana-cc, and linked by a compiler that is not wrapped (for C++ say "
            "CXX=katana-c++), or moved here from the folder it was linked in"
        )
    return (
        "it was built by a compiler that is not wrapped (say CC=katana-cc, and CXX=katana-c++ for C++), or moved here "
        "from the folder it was linked in"
    )


def _upwards(folder: Path, root: Path) -> Iterator[Path]:
    while folder.is_relative_to(root):
        yield folder
        folder = folder.parent


def _foreign_compiler(cache: Path) -> str:
    """The compiler of a CMake tree that nothing of ours stands before; "" if there is none."""
    try:
        text = cache.read_bytes()
    except OSError:
        return ""
    values = {(language, bool(launcher)): value for language, launcher, value in _CACHED.findall(text)}
    for language in (b"C", b"CXX"):
        compiler = values.get((language, False), b"")
        launcher = values.get((language, True), b"")
        if compiler and b"katana-c" not in compiler + launcher:
            return os.fsdecode(compiler)
    return ""
