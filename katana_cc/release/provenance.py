"""Where two builds come from: the commits of their sources, and what compiled them.

The commit of a build was recorded with it.  The commits between two builds are asked of git when a bundle is made: they
follow from both ends, so the same store and the same history give the same bytes; where the repository is not at hand,
the ends alone are told.  A rebase leaves commits of the old build that the new one has not; these are counted, since
the new build may then lack what the old one had.

Compilers and their options are read from debug information (DW_AT_producer, DWARF 5 section 3.1.1) of the objects in
the new build: gcc tells its version and what options change code, clang its version alone.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, Final

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo, open_debug_info
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError
from katana_cc.snapshot.blobs import expand_zstd
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.store import Store

_DESCRIBED: Final = re.compile(
    r"(?:(?P<tag>.+)-(?P<after>\d+)-g)?(?P<commit>[0-9a-f]{40}|[0-9a-f]{64})(?P<dirty>-dirty)?"
)
_MOST: Final = 200  # commits in a list
_PATIENCE: Final = 10  # seconds


def provenance(store: Store, old: Snapshot, new: Snapshot, known: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """{"from": …, "to": …, "commits": [{"commit", "subject"}], "commits_total": n, "commits_left_behind": n,
    "compilers": [{"compiler", "objects"}]}; what is not known is left out.

    "from" and "to" are {"commit", "describe", "uncommitted"}: the latter says that files differed from the commit.
    `known` keeps the compilers of builds for the next call.
    """
    ends = [described(old.sources), described(new.sources)]
    found: dict[str, Any] = {name: end for name, end in zip(("from", "to"), ends, strict=True) if end}
    if all(ends) and (between := _between(_folder(store, new), ends[0]["commit"], ends[1]["commit"])):
        found |= between
    if new.build_id not in known:
        known[new.build_id] = compilers(store, new)
    if known[new.build_id]:
        found["compilers"] = known[new.build_id]
    return found


def described(text: str) -> dict[str, Any]:
    """What `git describe --long --abbrev=64 --dirty` said, as in its short form."""
    match = _DESCRIBED.fullmatch(text)
    if match is None:
        return {}
    commit, tag = match["commit"], match["tag"]
    short = commit[:12] if not tag else tag if match["after"] == "0" else f"{tag}-{match['after']}-g{commit[:12]}"
    dirty = bool(match["dirty"])
    return {"commit": commit, "describe": short + ("-dirty" if dirty else ""), "uncommitted": dirty}


def _folder(store: Store, snapshot: Snapshot) -> Path:
    """A folder in the repository."""
    beside = Path(snapshot.path).parent
    return beside if beside.is_dir() else store.folder.absolute().parent


def _between(folder: Path, old: str, new: str) -> dict[str, Any]:
    """The commits of `new` that `old` has not, newest first, and how many `old` has that `new` has not."""
    listed = _git(folder, "log", "--format=%H %s", f"--max-count={_MOST}", f"{old}..{new}", "--")
    counted = _git(folder, "rev-list", "--left-right", "--count", f"{old}...{new}", "--")
    if listed is None or counted is None:
        return {}
    commits = [line.partition(" ") for line in listed.splitlines()]
    left, right = map(int, counted.split())
    return {
        "commits": [{"commit": commit, "subject": subject} for commit, _, subject in commits],
        "commits_total": right,
        "commits_left_behind": left,
    }


def _git(folder: Path, *words: str) -> str | None:
    """What a question to git prints; None if it fails, or there is no git, or it takes long."""
    command = ["git", "-C", str(folder), "-c", "log.showSignature=false", "--no-pager", *words]
    settings = {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command, env=kept | settings, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def compilers(store: Store, snapshot: Snapshot) -> list[dict[str, Any]]:
    """What compiled the project's own objects, with options where it tells them, and how many; most objects first."""
    counts: Counter[str] = Counter()
    for unit in snapshot.units:
        if unit.name.startswith("/"):
            continue  # the C runtime's, or a library's
        counts.update(_producers(store, unit.blob, unit.name))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"compiler": producer, "objects": number} for producer, number in ordered]


def _producers(store: Store, blob: str, name: str) -> set[str]:
    try:
        info = open_debug_info(ElfFile(store.blobs.get(blob), name), expand_zstd)
    except FormatError:
        return set()
    if not isinstance(info, DebugInfo):
        return set()
    roots = [unit.root for unit in info.units if unit.root.tag == d.DW_TAG_compile_unit]
    return {" ".join(text.split()) for root in roots if (text := root.text(d.DW_AT_producer))}
