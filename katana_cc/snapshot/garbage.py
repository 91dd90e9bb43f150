"""Dropping what nothing needs: snapshots that are in no release, no patch and not the newest; then unnamed blobs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from katana_cc.snapshot.blobs import Base
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.verify import needed_blobs

_UNREADABLE: Final = Base("", 1 << 32, 0)  # goes first


@dataclass(frozen=True, slots=True)
class Collected:
    """How much was dropped; `size` in bytes on disk."""

    snapshots: int
    blobs: int
    size: int


def collect(store: Store) -> Collected:
    """Drop what no release, no patch object and no newest snapshot needs.

    Raises:
        StoreError: the store cannot be written, or is damaged: then nothing is dropped.
    """
    with store.hold(exclusive=True):
        return _collect(store)


def _collect(store: Store) -> Collected:
    kept = {s for r in store.releases() for s in r.snapshots}
    kept |= {s for p in store.patches() for s in (p.from_snapshot, p.to_snapshot)}
    newest: set[str] = set()
    dropped = []
    for row in store.snapshot_rows():
        if row.output not in newest:
            newest.add(row.output)
        elif row.id not in kept:
            dropped.append(row.id)
    with store.transaction() as db:
        db.executemany("DELETE FROM snapshots WHERE id = ?", [(i,) for i in dropped])
        # What was read of files that no snapshot holds any more will be read again.
        needed = needed_blobs(store)
        rows = db.execute("SELECT DISTINCT blob FROM objects").fetchall()
        gone = [(blob,) for (blob,) in rows if blob not in needed]
        db.executemany("DELETE FROM objects WHERE ident IN (SELECT ident FROM objects WHERE blob = ?)", gone)
        db.executemany("DELETE FROM records WHERE blob = ?", gone)
    blobs = size = 0
    # What is based on a blob goes before it: whoever is killed here leaves none that cannot be read.
    for digest in sorted(store.blobs, key=lambda blob: (store.blobs.header(blob) or _UNREADABLE).number, reverse=True):
        if digest not in needed:
            path = store.blobs.path(digest)
            with contextlib.suppress(OSError):
                bytes_held = path.stat().st_size
                path.unlink()
                blobs += 1
                size += bytes_held
    for unfinished in store.blobs.unfinished():
        with contextlib.suppress(OSError):
            size += unfinished.stat().st_size
            unfinished.unlink()
    return Collected(len(dropped), blobs, size)
