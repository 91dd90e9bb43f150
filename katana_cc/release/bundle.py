"""Releases: naming what was built, and packing what a fleet needs."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError, KatanaError, StoreError, UsageError
from katana_cc.recorder.ingest import ingest, staged_links
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.store import SnapshotRow, Store

MANIFEST_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*\Z")


@dataclass(frozen=True, slots=True)
class Ingested:
    """What `ingest_staged` did: the outputs recorded, and those that could not be, with the reason."""

    recorded: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def ingest_staged(store: Store) -> Ingested:
    """Record every staged link whose output still exists."""
    recorded, failed = [], []
    for staged in staged_links(store.folder):
        try:
            recorded.append(ingest(store, staged).output)
        except KatanaError as error:
            failed.append((staged.output, error.what))
    return Ingested(tuple(recorded), tuple(failed))


def current_snapshots(store: Store) -> list[Snapshot]:
    """The newest snapshot of every output, as far as it is what the output's file holds now (see `unrecorded`)."""
    missing = unrecorded(store)
    return [store.snapshot(row.id) for output, row in _newest(store).items() if output not in missing]


def unrecorded(store: Store) -> dict[str, str]:
    """Outputs whose newest snapshot is not what is there now, and why: the newest link is a gap, the file is gone, or
    it was linked without being recorded (a read-only store, KATANA_DISABLE)."""
    gaps = {g.output: g for g in reversed(store.gaps())}
    found: dict[str, str] = {}
    for output, row in _newest(store).items():
        gap = gaps.get(output)
        if gap is not None and gap.time > row.time:
            found[output] = gap.reason
        elif not Path(row.path).exists():
            found[output] = f"{row.path} is gone"
        elif _build_id_on_disk(Path(row.path)) != row.build_id:
            found[output] = f"{row.path} is another build than the newest one recorded; link it again"
    return found


def _newest(store: Store) -> dict[str, SnapshotRow]:
    newest: dict[str, SnapshotRow] = {}
    for row in store.snapshot_rows():
        newest.setdefault(row.output, row)
    return dict(sorted(newest.items()))


def _build_id_on_disk(path: Path) -> str | None:
    try:
        return ElfFile(path.read_bytes(), str(path)).build_id
    except (OSError, FormatError):
        return None


def name_release(store: Store, name: str, *, deployed: bool) -> list[Snapshot]:
    """Name the current snapshots; with `deployed`, every later link of them emits a patch object.

    Raises:
        UsageError: a name that could not be a file name.
        StoreError: nothing is recorded, or the name is taken by other builds.
    """
    if not _NAME.match(name):
        raise UsageError(f"{name!r} cannot be a release name", remedy="Use letters, digits and . _ + ~ - like v1.2.")
    snapshots = current_snapshots(store)
    if not snapshots:
        raise StoreError(
            "no build is recorded", where=str(store.folder), remedy="Build with `CC=katana-cc make` first."
        )
    store.add_release(name, deployed, [s.id for s in snapshots])
    write_deployed(store)
    return snapshots


def write_deployed(store: Store) -> None:
    """Write `deployed`, which tells `stage.py` whose links to ingest at once."""
    members = {i for r in store.releases() if r.deployed for i in r.snapshots}
    outputs = sorted({row.output for row in store.snapshot_rows() if row.id in members})
    handle, temporary = tempfile.mkstemp(dir=store.folder, prefix=".deployed-")
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("".join(f"{o}\n" for o in outputs))
    Path(temporary).replace(store.folder / "deployed")


def write_bundle(store: Store, since: str, folder: Path) -> dict[str, Any]:
    """Write a folder with every patch from release `since`, and from each later one, to the current snapshots.

    The folder appears whole or not at all.  Returns the manifest, which is also in `manifest.json`:
    {"format": 1, "since": …, "patches": [{"output", "from", "to", "from_build_id", "to_build_id", "verdict", "file",
    "size", "sha256", "id"}], "unchanged": [{"output", "release"}], "missing": [{"output", "release", "reason"}]}.
    What is missing was released, and no patch leads from it to the present build, since that is not recorded.

    Raises:
        StoreError: no such release, or nothing is recorded.
        UsageError: the folder exists and is not empty.
    """
    # Imported late: naming a release compares nothing, and the diff costs half of the command's start.
    from katana_cc.release.emit import emit

    releases = store.releases()
    names = [r.name for r in releases]
    if since not in names:
        near = difflib.get_close_matches(since, names, 3)
        known = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names[-10:]) or 'none'}."
        raise StoreError(f"there is no release {since}", where=str(store.folder), remedy=known)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", remedy="Name a new folder with -o DIR.")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", remedy="Name a new folder with -o DIR.")
    current = {s.output: s for s in current_snapshots(store)}
    patches: list[dict[str, Any]] = []
    unchanged: list[dict[str, str]] = []
    missing: list[dict[str, str]] = []
    reasons = unrecorded(store)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        seen: set[tuple[str, str]] = set()
        for release in releases[names.index(since) :]:
            for identifier in release.snapshots:
                old = store.snapshot(identifier)
                new = current.get(old.output)
                if (old.output, old.build_id) in seen:
                    continue
                seen.add((old.output, old.build_id))
                if new is None:
                    missing.append({"output": old.output, "release": release.name, "reason": reasons[old.output]})
                    continue
                made = None if new.build_id == old.build_id else emit(store, old, new, release.name)[0]
                if made is None:
                    unchanged.append({"output": old.output, "release": release.name})
                    continue
                data = made.path.read_bytes()
                name = f"{made.path.parent.name}-{made.path.name}"
                (work / name).write_bytes(data)
                patches.append(
                    {
                        "output": new.output,
                        "from": made.row.from_name,
                        "to": made.row.to_name,
                        "from_build_id": old.build_id,
                        "to_build_id": new.build_id,
                        "verdict": made.row.verdict,
                        "file": name,
                        "size": len(data),
                        "sha256": hashlib.sha256(data).hexdigest(),
                        "id": made.row.id,
                    }
                )
        patches.sort(key=lambda p: (p["output"], p["from"]))
        manifest = {
            "format": MANIFEST_FORMAT,
            "since": since,
            "patches": patches,
            "unchanged": unchanged,
            "missing": missing,
        }
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        work.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise StoreError(
            f"the bundle cannot be written: {error.strerror}", where=str(folder), remedy="Free space, or use -o DIR."
        ) from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return manifest
