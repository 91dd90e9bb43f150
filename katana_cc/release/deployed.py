"""Which builds processes may run: those of deployed releases.

Apart from emission, since most links are asked this and do not differ: they must not pay for the diff.
"""

from __future__ import annotations

from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.rows import Release
from katana_cc.snapshot.store import Store


def differing_builds(store: Store, snapshot: Snapshot) -> list[tuple[Release, int]]:
    """Snapshots of the deployed builds of an output other than this one: each build once, under its newest release."""
    rows = {r.id: r for r in store.snapshot_rows(snapshot.output)}
    found: dict[str, tuple[Release, int]] = {}
    for release in store.releases():
        if release.deployed:
            for identifier in release.snapshots:
                if identifier in rows:
                    found[rows[identifier].build_id] = release, identifier
    return [build for build_id, build in found.items() if build_id != snapshot.build_id]
