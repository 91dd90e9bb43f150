"""Packing what a fleet needs: every patch from a release to the present build, and a manifest."""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from katana_cc.errors import StoreError, UsageError
from katana_cc.release.emit import emit
from katana_cc.release.naming import current_snapshots, unrecorded
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.words import plain

MANIFEST_FORMAT = 1


def _refuse_unless_free(folder: Path) -> None:
    remedy = "Name a new folder with -o DIR."
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is not a folder", remedy=remedy)
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty", remedy=remedy)
    except OSError as error:
        raise UsageError(
            f"the bundle cannot be written there: {plain(error)}", where=str(folder), remedy=remedy
        ) from error


def _unwritable(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"the bundle cannot be written: {plain(error)}", where=str(folder), remedy="Free space, or use -o DIR."
    )


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
    releases = store.releases()
    names = [r.name for r in releases]
    if since not in names:
        near = difflib.get_close_matches(since, names, 3)
        known = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names[-10:]) or 'none'}."
        raise StoreError(f"there is no release {since}", where=str(store.folder), remedy=known)
    _refuse_unless_free(folder)
    reasons = unrecorded(store)
    current = {s.output: s for s in current_snapshots(store, reasons)}
    patches: list[dict[str, Any]] = []
    unchanged: list[dict[str, str]] = []
    missing: list[dict[str, str]] = []
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from error
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
        raise _unwritable(folder, error) from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return manifest
