"""Packing what a fleet needs: every patch from a release to the present build, a manifest, and what people read.

    manifest.json       what is in it (`docs/manifest.schema.json`)      RELEASE-NOTES.md    for people
    *.kpo               the patches                                      index.html          for a change-approval board
    SHA256SUMS          of all of them, for `sha256sum --check`          *.sig               signatures, if asked for

The same store gives the same bytes, with the same history of its sources: nothing in it tells when, where or by whom it
was made.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from katana_cc.errors import StoreError, UsageError
from katana_cc.patch.model import PatchObject
from katana_cc.release.emit import emit, file_name
from katana_cc.release.naming import current_snapshots, unrecorded
from katana_cc.release.notes import notes, overall
from katana_cc.release.provenance import provenance
from katana_cc.report.html import bundle_page
from katana_cc.report.patch_json import to_json
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.rows import Release
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.words import plain
from katana_cc.telling import Tell, silent
from katana_cc.trust.policy import SUFFIX

MANIFEST_FORMAT: Final = 2
SUMS: Final = "SHA256SUMS"
_LONGEST_NAME: Final = 255  # bytes, of a file
# Of each patch, beside what tells which it is: the same names as in `katana show PO --json`.
_TOLD: Final = (
    "summary", "changed_functions", "new_functions", "new_data", "carried_over", "types_carried_over",
    "new_initial_values", "rewritten_data", "hooks", "needs", "reasons",
)  # fmt: skip
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Packed:
    """One patch of a bundle: its fields in the manifest, its contents as a value, its file."""

    fields: dict[str, Any]
    patch: PatchObject
    data: bytes


@dataclass(frozen=True, slots=True)
class Bundle:
    """All patches from a release to the present build, sorted by output and release, and the manifest."""

    manifest: dict[str, Any]
    patches: tuple[Packed, ...]


def make_bundle(store: Store, since: str, to: str | None = None, tell: Tell = silent) -> Bundle:
    """Every patch from release `since`, and from each later one, to the current snapshots, or to those of release `to`.

    `tell` is told of each as it begins, as by `ingest_staged`.

    The manifest is {"format": 2, "since": …, "patches": [{"output", "from", "to", "from_build_id", "to_build_id",
    "verdict", "file", "size", "sha256", "id", "summary", "changed_functions", …}], "unchanged": [{"output",
    "release"}], "missing": [{"output", "release", "reason"}]}.  What is missing was released, and no patch leads from
    it to the present build, since that is not recorded.

    Raises:
        StoreError: no such release, or nothing is recorded.
    """
    with store.hold():  # what is read must not be collected meanwhile
        return _make_bundle(store, since, to, tell)


def _make_bundle(store: Store, since: str, to: str | None, tell: Tell) -> Bundle:
    releases = _releases_between(store, since, to)
    if to is None:
        reasons = unrecorded(store)
        current = {s.output: s for s in current_snapshots(store, reasons)}
    else:
        current = {s.output: s for s in map(store.snapshot, releases[-1].snapshots)}
        outputs = {row.output for row in store.snapshot_rows()}
        reasons = dict.fromkeys(outputs - current.keys(), f"release {to} does not hold it")
    packed: list[Packed] = []
    unchanged: list[dict[str, str]] = []
    missing: list[dict[str, str]] = []
    compilers: dict[str, list[dict[str, Any]]] = {}
    builds = list(_builds_of(store, releases))
    for number, (release, old) in enumerate(builds):
        tell(number, len(builds), f"{old.output} {release.name}")
        new = current.get(old.output)
        if new is None:
            missing.append({"output": old.output, "release": release.name, "reason": reasons[old.output]})
            continue
        made = _packed(store, old, new, release)
        if made is None:
            unchanged.append({"output": old.output, "release": release.name})
        else:
            made.fields["provenance"] = provenance(store, old, new, compilers)
            packed.append(made)
    packed.sort(key=lambda p: (p.fields["output"], p.fields["from"]))
    _name_files(packed)
    manifest = {
        "format": MANIFEST_FORMAT,
        "since": since,
        "patches": [p.fields for p in packed],
        "unchanged": unchanged,
        "missing": missing,
    }
    return Bundle(manifest, tuple(packed))


def _releases_between(store: Store, since: str, to: str | None) -> list[Release]:
    releases = store.releases()
    names = [r.name for r in releases]
    for name in (since, to):
        if name is not None and name not in names:
            near = difflib.get_close_matches(name, names, 3)
            known = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names[-10:]) or 'none'}."
            raise StoreError(f"there is no release {name}", where=str(store.folder), remedy=known)
    first, last = names.index(since), len(names) - 1 if to is None else names.index(to)
    if last < first:
        raise UsageError(f"release {to} was named before {since}", remedy="Name the earlier one with --since.")
    return releases[first : last + 1]


def _builds_of(store: Store, releases: Sequence[Release]) -> Iterator[tuple[Release, Snapshot]]:
    seen: set[tuple[str, str]] = set()
    for release in releases:
        for identifier in release.snapshots:
            old = store.snapshot(identifier)
            if (old.output, old.build_id) not in seen:
                seen.add((old.output, old.build_id))
                yield release, old


def _packed(store: Store, old: Snapshot, new: Snapshot, release: Release) -> Packed | None:
    made = None if new.build_id == old.build_id else emit(store, old, new, release.name)[0]
    if made is None:
        return None
    data = made.path.read_bytes()
    told = to_json(made.patch, data)
    fields = {
        "output": new.output,
        "from": made.row.from_name,
        "to": made.row.to_name,
        "from_build_id": old.build_id,
        "to_build_id": new.build_id,
        "verdict": made.row.verdict,
        "file": "",  # when all are known: `_name_files`
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "id": made.row.id,
        **{name: told[name] for name in _TOLD},
    }
    return Packed(fields, made.patch, data)


def _name_files(packed: Sequence[Packed]) -> None:
    """Call each file by the releases that it leads from and to.

    What is not the only one of that name (of outputs `a/b` and `a_b`), or too long for a file, is called by the
    build-id instead, or by its own identity.
    """
    left: Sequence[Packed] = packed
    for key, digits in (("to", None), ("to_build_id", 12), ("id", 12)):
        for p in left:
            p.fields["file"] = file_name(f"{p.fields['output']}-{p.fields['from']}..{p.fields[key][:digits]}")
        uses = Counter(p.fields["file"] for p in packed)
        left = [
            p for p in left
            if uses[p.fields["file"]] > 1 or len(os.fsencode(p.fields["file"] + SUFFIX)) > _LONGEST_NAME
        ]  # fmt: skip


def write_bundle(bundle: Bundle, folder: Path, sign: Sign | None = None) -> None:
    """Write a bundle as a folder, which appears whole or not at all; `sign` makes the signature of each file.

    Raises:
        StoreError: it cannot be written.
        UsageError: the folder exists and is not empty.
    """
    _refuse_unless_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        for name, data in _files(bundle, sign):
            (work / name).write_bytes(data)
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


def _files(bundle: Bundle, sign: Sign | None) -> Iterator[tuple[str, bytes]]:
    manifest = bundle.manifest
    verdict, conclusion = overall(manifest)
    title = f"Patches since {manifest['since']}"
    page = bundle_page(title, verdict, conclusion, manifest, [(p.patch, p.data) for p in bundle.patches])
    files: list[tuple[str, bytes]] = [
        ("manifest.json", (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()),
        ("RELEASE-NOTES.md", notes(title, manifest).encode()),
        ("index.html", page.encode()),
        *((p.fields["file"], p.data) for p in bundle.patches),
    ]
    files.append((SUMS, _sums(files)))
    for name, data in files:
        yield name, data
        if sign is not None:
            yield name + SUFFIX, sign(data)


def _sums(files: Sequence[tuple[str, bytes]]) -> bytes:
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files)).encode()


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
