"""Checking a store: every blob holds what its name says, and nothing that the index names is missing."""

from __future__ import annotations

from pathlib import Path

from katana_cc.errors import KatanaError, StoreError
from katana_cc.patch import codec
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.words import plain


def needed_blobs(store: Store) -> dict[str, str]:
    """Blob → what needs it: manifests, images and objects of every snapshot, and what these are based on."""
    needed: dict[str, str] = {}
    for row in reversed(store.snapshot_rows()):
        label = f"snapshot {row.id} of {row.output}"
        snapshot = store.snapshot(row.id)
        for blob in (row.manifest, snapshot.image, *[unit.blob for unit in snapshot.units]):
            while blob and blob not in needed:
                needed[blob] = label
                header = store.blobs.header(blob)
                blob = header.digest if header else ""
    return needed


def verify_store(folder: Path) -> list[str]:
    """All problems of a store, a sentence each; empty when it is whole.

    Raises:
        StoreError: it cannot be opened at all.
    """
    store = Store(folder)
    problems = []
    try:
        problems += [f"index: {text}" for text in store.index_problems()]
    except StoreError as error:
        problems.append(error.what)
    try:
        needed = needed_blobs(store)
    except KatanaError as error:
        return [*problems, str(error)]
    for digest, user in needed.items():
        if digest not in store.blobs:
            problems.append(f"blob {digest[:12]} is missing, needed by {user}")
    for digest in store.damaged_records(list(needed)):
        problems.append(f"record of blob {digest[:12]} is damaged; the next link that holds the object makes it anew")
    for digest, text in store.blobs.verify():
        user = needed.get(digest, "")
        problems.append(f"{text}{f', needed by {user}' if user else ''}")
    for patch in store.patches():
        path = Path(patch.path)
        try:
            codec.decode(path.read_bytes(), str(path))
        except FileNotFoundError:
            problems.append(f"patch object {path} is gone")
        except OSError as error:
            problems.append(f"patch object {path}: {plain(error)}")
        except KatanaError as error:
            problems.append(f"patch object {path}: {error.what}")
    return problems
