"""Checking a store: every blob holds what its name says, every row what was written, and nothing that is named lacks.

What people write by hand (`answers`) and what the next link writes anew (`staged`) are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from katana_cc.errors import KatanaError, StoreError
from katana_cc.patch import codec
from katana_cc.snapshot.index import log_problems
from katana_cc.snapshot.rows import SnapshotRow
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.words import plain
from katana_cc.telling import Tell, silent


def needed_blobs(store: Store, tell: Tell = silent) -> dict[str, str]:
    """Blob → what needs it: manifests, images and objects of every snapshot, and what these are based on.

    Raises:
        StoreError: a manifest is damaged.
    """
    needed: dict[str, str] = {}
    for row in _told(store, tell):
        _add_needed(store, row, needed)
    return needed


def _told(store: Store, tell: Tell) -> Iterator[SnapshotRow]:
    """All snapshots, the oldest first; `tell` hears of each."""
    rows = store.snapshot_rows()
    for number, row in enumerate(reversed(rows)):
        tell(number, len(rows), _label(row))
        yield row


def _label(row: SnapshotRow) -> str:
    return f"snapshot {row.id} of {row.output}"


def _add_needed(store: Store, row: SnapshotRow, needed: dict[str, str]) -> None:
    label = _label(row)
    _add_with_bases(store, (row.manifest, row.image), label, needed)
    _add_with_bases(store, store.blobs_of(row), label, needed)


def _add_with_bases(store: Store, blobs: tuple[str, ...], label: str, needed: dict[str, str]) -> None:
    for blob in blobs:
        while blob and blob not in needed:
            needed[blob] = label
            header = store.blobs.header(blob)
            blob = header.digest if header else ""


def verify_store(folder: Path, tell: Tell = silent) -> list[str]:
    """All problems of a store, a sentence each; empty when it is whole.

    `tell` hears of each part as it is looked at: of snapshots, blobs and patch objects, how many are done, of how many,
    and the next.

    Raises:
        StoreError: it cannot be opened at all.
    """
    problems = [f"index: {text}" for text in log_problems(folder / "index.db-wal")]
    store = Store(folder)
    with closing(store):
        problems += [f"index: {text}" for text in store.index.problems()]
        for look in (_blobs, _deployed, _patches):
            try:
                problems += look(store, tell)
            except StoreError as error:
                problems.append(f"index: {error.what}")
            except (ValueError, TypeError, AttributeError) as error:
                # Of a value that a damaged index gave: no digest, no path, no text.
                problems.append(f"index: it holds what cannot be ({error})")
    return problems


def _blobs(store: Store, tell: Tell) -> list[str]:
    problems = []
    needed: dict[str, str] = {}
    for row in _told(store, tell):
        try:
            _add_needed(store, row, needed)
        except StoreError as error:
            problems.append(f"{_label(row)}: {error.what}")
    for digest, user in needed.items():
        if digest not in store.blobs:
            problems.append(f"blob {digest[:12]} is missing, needed by {user}")
    problems += [
        f"record of blob {digest[:12]} is damaged; the next link that holds the object makes it anew"
        for digest in store.objects.damaged(list(needed))
    ]
    for digest, text in store.blobs.verify(tell):
        user = needed.get(digest, "")
        problems.append(f"{text}{f', needed by {user}' if user else ''}")
    return problems


def _deployed(store: Store, _: Tell) -> list[str]:
    """Whether `deployed` has each line that it should: a link of an output that it lacks makes no patch."""
    members = {i for release in store.releases() if release.deployed for i in release.snapshots}
    expected = {row.output for row in store.snapshot_rows() if row.id in members}
    path = store.folder / "deployed"
    try:
        found = set(path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")) - {""}
    except FileNotFoundError:
        found = set()
    except OSError as error:
        return [f"{path} cannot be read: {plain(error)}"]
    if found == expected:
        return []
    return [f"{path} names other outputs than the deployed releases hold; `katana-release NAME` of one writes it anew"]


def _patches(store: Store, tell: Tell) -> list[str]:
    problems = []
    patches = store.patches()
    for number, patch in enumerate(patches):
        path = Path(patch.path)
        tell(number, len(patches), f"patch object {path.name}")
        try:
            identity = codec.patch_id(data := path.read_bytes())
            codec.decode(data, str(path))
            if identity != patch.id:
                problems.append(f"patch object {path} is another than the index says: {identity}, not {patch.id}")
        except FileNotFoundError:
            problems.append(f"patch object {path} is gone")
        except OSError as error:
            problems.append(f"patch object {path}: {plain(error)}")
        except KatanaError as error:
            problems.append(f"patch object {path}: {error.what}")
    return problems
