"""Dropping what nothing needs: snapshots, by a rule, their patch objects, and then what no snapshot names any more.

What a release holds always stays, deployed or not, and so does the newest snapshot of each output.  Of the others, a
patch object keeps the two that it was made from; a `Rule` drops those as well, with the patch object.

Theory of operation.  It is done under the store's lock, which whoever stores or makes patches holds shared.  Rows go
first, in one transaction; from then on all that is left is garbage.  Then files go, a blob after all that is based on
it.  So wherever it is killed, what the index names is there, and each blob that is there can be read; the next run
drops the rest.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from katana_cc.snapshot.blobs import Base
from katana_cc.snapshot.rows import PatchRow, SnapshotRow
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.verify import needed_blobs
from katana_cc.telling import Tell, silent

_UNREADABLE: Final = Base("", 1 << 32, 0)  # goes first
_LOOSE: Final = 4  # one part in so many of the index that is free is given back


@dataclass(frozen=True, slots=True)
class Rule:
    """Which snapshots stay that no release holds: the newest `keep_last` of each output, and all that are not older
    than `before` (seconds since 1970; None: they need not be old to go)."""

    keep_last: int = 1
    before: float | None = None


@dataclass(frozen=True, slots=True)
class Collected:
    """How much was dropped; `size` in bytes on disk."""

    snapshots: int
    patches: int
    blobs: int
    size: int


def collect(store: Store, rule: Rule | None = None, tell: Tell = silent) -> Collected:
    """Drop what no release, no patch object and no newest snapshot needs; by a rule, also what patch objects need.

    `tell` hears of each snapshot as what it needs is found, then of each blob: how many are done, of how many, and the
    next.

    Raises:
        StoreError: the store cannot be written, or is damaged: then nothing is dropped.
    """
    with store.hold(exclusive=True):
        return _collect(store, rule, tell)


def dropped(
    rows: Iterable[SnapshotRow], released: frozenset[int], patches: Iterable[PatchRow], rule: Rule | None
) -> frozenset[int]:
    """The snapshots that go, of rows in order from the newest on; `released` are those of releases."""
    patched = frozenset() if rule else frozenset(s for p in patches for s in (p.from_snapshot, p.to_snapshot))
    last, before = (max(rule.keep_last, 1), rule.before) if rule else (1, None)
    seen: dict[str, int] = {}
    gone = set()
    for row in rows:
        seen[row.output] = seen.get(row.output, 0) + 1
        is_kept = row.id in released or row.id in patched or seen[row.output] <= last
        if not is_kept and (before is None or row.time < before):
            gone.add(row.id)
    return frozenset(gone)


def _collect(store: Store, rule: Rule | None, tell: Tell) -> Collected:
    released = frozenset(s for r in store.releases() for s in r.snapshots)
    gone = dropped(store.snapshot_rows(), released, store.patches(), rule)
    patches = [p for p in store.patches() if p.from_snapshot in gone or p.to_snapshot in gone]
    with store.index.transaction() as db:
        db.executemany("DELETE FROM patches WHERE id = ?", [(p.id,) for p in patches])
        db.executemany("DELETE FROM snapshots WHERE id = ?", [(i,) for i in gone])
        needed = needed_blobs(store, tell)
        # What was read of files that no snapshot holds any more will be read again.
        named = [blob for (blob,) in db.execute("SELECT DISTINCT blob FROM objects")]
        named += [blob for (blob,) in db.execute("SELECT blob FROM records")]
        lost = [(blob,) for blob in set(named) if blob not in needed]
        db.execute("CREATE TEMP TABLE lost (blob TEXT PRIMARY KEY)")
        db.executemany("INSERT INTO lost VALUES (?)", lost)
        db.execute("DELETE FROM objects WHERE ident IN (SELECT ident FROM objects JOIN lost USING (blob))")
        db.execute("DELETE FROM records WHERE blob IN (SELECT blob FROM lost)")
        db.execute("DROP TABLE lost")
    # From here on nothing that the index names is touched.
    size = _remove_patches(store)
    blobs = 0
    # What is based on a blob goes before it: whoever is killed here leaves none that cannot be read.
    digests = sorted(store.blobs, key=lambda blob: (store.blobs.header(blob) or _UNREADABLE).number, reverse=True)
    for number, digest in enumerate(digests):
        tell(number, len(digests), f"blob {digest[:12]}")
        if digest not in needed and (held := _remove(store.blobs.path(digest))):
            blobs += 1
            size += held
    size += sum(_remove(path) for path in store.blobs.unfinished())
    _give_back(store)
    return Collected(len(gone), len(patches), blobs, size)


def _remove_patches(store: Store) -> int:
    """Remove the files of patch objects that no row names, of a run that was killed too; their bytes."""
    kept = {patch.path for patch in store.patches()}
    folder = store.folder.absolute() / "patches"
    return sum(_remove(path) for path in folder.glob("*/*.kpo") if str(path) not in kept)


def _remove(path: Path) -> int:
    """Remove a file; how many bytes it held, 0 if it could not be."""
    try:
        held = path.stat().st_size
        path.unlink()
    except OSError:
        return 0
    return held


def _give_back(store: Store) -> None:
    with contextlib.suppress(sqlite3.Error):  # it may wait
        store.index.shrink(_LOOSE)
