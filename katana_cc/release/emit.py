"""Making patch objects: for a snapshot, one from every deployed release whose build differs."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from katana_cc.diff.engine import Changes, Diff
from katana_cc.diff.reasons import Code
from katana_cc.errors import StoreError
from katana_cc.patch import codec
from katana_cc.patch.build import build_patch
from katana_cc.patch.model import Identity, PatchObject
from katana_cc.release.deployed import differing_builds
from katana_cc.release.proving import prove
from katana_cc.report.summary import one_line
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.rows import PatchRow
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.words import plain, remedy_for


@dataclass(frozen=True, slots=True)
class Emitted:
    """A patch object that was made: its row, its contents as a value, and where it lies."""

    row: PatchRow
    patch: PatchObject
    path: Path


def release_label(store: Store, snapshot: Snapshot) -> str:
    """The newest release that holds a snapshot's build, else the first 12 digits of its build-id."""
    same = {r.id for r in store.snapshot_rows(snapshot.output) if r.build_id == snapshot.build_id}
    for release in reversed(store.releases()):
        if same & set(release.snapshots):
            return release.name
    return snapshot.build_id[:12]


def safe(text: str) -> str:
    """A name of an output or a release as part of a path; of releases no two become the same."""
    return re.sub(r"[^\w.+~-]+", "_", text)


def file_name(text: str) -> str:
    """What a patch object's file is called."""
    return f"{safe(text)}.kpo"


def _folder(store: Store, output: str) -> str:
    """What the folder of an output's patches is called: as the output, where no other would be called so."""
    name = safe(output)
    if name == output or not any(safe(o) == name for o in store.outputs() if o != output):
        return name
    return f"{name}-{hashlib.sha256(os.fsencode(output)).hexdigest()[:8]}"


def make_patch(
    store: Store, old: Snapshot, new: Snapshot, from_label: str, to_label: str
) -> tuple[PatchObject, Changes]:
    """The patch object from one snapshot to another of the same output, and the diff it came from."""
    diff = Diff(store, old, new)
    changes = diff.run()
    identity = Identity(new.output, diff.new.image.machine, old.build_id, new.build_id, from_label, to_label)
    patch = build_patch(diff, changes, identity)
    # From here on nothing is added to the patch object: what it lacks is a reason to refuse it.
    return prove(diff, changes, patch), changes


def emit(store: Store, old: Snapshot, new: Snapshot, from_label: str) -> tuple[Emitted | None, Changes]:
    """Make the patch object, write it into the store's `patches/`, and remember it; None when nothing is to be done.

    Raises:
        StoreError: it cannot be written.
    """
    to_label = release_label(store, new)
    patch, changes = make_patch(store, old, new, from_label, to_label)
    if changes.empty:
        return None, changes
    data = codec.encode(patch)
    # By the build-id, not by a release: what is made at a link is there before its build has a name.
    name = file_name(f"{from_label}..{new.build_id[:12]}")
    path = store.folder / "patches" / _folder(store, new.output) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{new.id}.new")
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"the patch object cannot be written: {plain(error)}", where=str(path), remedy=remedy_for(error)
        ) from error
    row = PatchRow(
        codec.patch_id(data), new.output, old.id, new.id, from_label, to_label,
        patch.verdict.value, str(path), len(data), time.time(),
    )  # fmt: skip
    store.add_patch(row)
    return Emitted(row, patch, path), changes


def emit_patches(store: Store, snapshot: Snapshot) -> Iterator[str]:
    """Make what a new snapshot calls for; yields a line for each patch object, and for values not carried."""
    for release, identifier in differing_builds(store, snapshot):
        emitted, changes = emit(store, store.snapshot(identifier), snapshot, release.name)
        if emitted is not None:
            otherwise = [r.text for r in changes.reasons if r.code == Code.COMPILED_OTHERWISE.value]
            yield one_line(emitted.patch, _shown(emitted.path), otherwise[0].partition(";")[0] if otherwise else "")
            continue
        kept = [r.subject for r in changes.reasons if r.code == Code.INITIALISER_KEPT.value]
        if kept:
            names = ", ".join(sorted(kept))
            yield f"katana: {snapshot.output}: nothing to patch; initial values changed, live ones are kept: {names}"


def _shown(path: Path) -> str:
    """A path as a person at the build would type it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
