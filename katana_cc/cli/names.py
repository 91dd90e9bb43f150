"""What a word on the command line may name in the store: a release, a snapshot's number, a build-id."""

from __future__ import annotations

import difflib

from katana_cc.errors import StoreError
from katana_cc.snapshot.rows import Release, SnapshotRow
from katana_cc.snapshot.store import Store


def find_snapshots(store: Store, word: str) -> tuple[Release | None, list[SnapshotRow]]:
    """The release of that name with its snapshots, else the one snapshot of that number or build-id prefix.

    Raises:
        StoreError: nothing or several match.
    """
    rows = store.snapshot_rows()
    for release in store.releases():
        if release.name == word:
            return release, [r for r in rows if r.id in release.snapshots]
    if found := [r for r in rows if str(r.id) == word]:
        return None, found
    found = [r for r in rows if len(word) >= 4 and r.build_id.startswith(word.lower())]
    if len({r.build_id for r in found}) == 1:
        return None, found[:1]
    if found:
        raise StoreError(f"{word} is the beginning of several build-ids", remedy="Give more digits.")
    near = difflib.get_close_matches(word, [r.name for r in store.releases()], 3)
    hint = f"Did you mean {', '.join(near)}?" if near else "See `katana log`."
    raise StoreError(f"no release, snapshot or build-id is called {word}", where=str(store.folder), remedy=hint)
