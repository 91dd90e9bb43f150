"""Releases: recording what is staged, and naming what was built.

Apart from bundling, since a release is named while somebody waits, and needs neither the diff nor what reads it.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from katana_cc.errors import KatanaError, StoreError, UsageError
from katana_cc.recorder.ingest import build_id_on_disk, ingest, staged_links
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.rows import SnapshotRow
from katana_cc.snapshot.store import Store
from katana_cc.telling import Tell, silent

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,99}\Z")  # part of file names, which may have 255 bytes


class Ingested(NamedTuple):
    """What `ingest_staged` did: what was recorded, and the outputs that could not be, with the reason."""

    recorded: tuple[Snapshot, ...]
    failed: tuple[tuple[str, str], ...]


def ingest_staged(store: Store, tell: Tell = silent) -> Ingested:
    """Record every staged link whose output still exists; `tell` hears how many are done, of how many, and the next."""
    recorded, failed = [], []
    links = staged_links(store.folder)
    for number, staged in enumerate(links):
        tell(number, len(links), staged.output)
        try:
            recorded.append(ingest(store, staged))
        except KatanaError as error:
            failed.append((staged.output, error.what))
    return Ingested(tuple(recorded), tuple(failed))


def current_snapshots(
    store: Store, missing: Mapping[str, str] | None = None, read: Iterable[Snapshot] = ()
) -> list[Snapshot]:
    """The newest snapshot of every output, as far as it is what the output's file holds now.

    Args:
        store: where.
        missing: what `unrecorded` said, when that is known already (it reads every output).
        read: snapshots that need not be read again.
    """
    if missing is None:
        missing = unrecorded(store)
    known = {s.id: s for s in read}
    rows = [row for output, row in _newest(store).items() if output not in missing]
    return [known[row.id] if row.id in known else store.snapshot(row.id) for row in rows]


def unrecorded(store: Store) -> dict[str, str]:
    """Outputs whose newest snapshot is not what is there now, and why: the newest link is a gap, the file is gone, or
    it was linked without being recorded (a read-only store, KATANA_DISABLE)."""
    gaps = {g.output: g for g in reversed(store.gaps()) if g.is_open}
    found: dict[str, str] = {}
    for output, row in _newest(store).items():
        gap = gaps.get(output)
        if gap is not None:
            found[output] = gap.reason
        elif not Path(row.path).exists():
            if not _renamed(row):
                found[output] = f"{row.path} is gone"
        elif build_id_on_disk(Path(row.path)) != row.build_id:
            found[output] = f"{row.path} is another build than the newest one recorded; link it again"
    return found


def _renamed(row: SnapshotRow) -> bool:
    """Whether the output is beside where it was linked, under another name: `mv prog.tmp prog` in a makefile."""
    try:
        files = [p for p in Path(row.path).parent.iterdir() if p.is_file()]
    except OSError:
        return False
    return any(build_id_on_disk(path) == row.build_id for path in files)


def _newest(store: Store) -> dict[str, SnapshotRow]:
    newest: dict[str, SnapshotRow] = {}
    for row in store.snapshot_rows():
        newest.setdefault(row.output, row)
    return dict(sorted(newest.items()))


def is_name(text: str) -> bool:
    """Whether a release may be called that; so may nothing else whose name becomes part of a path."""
    return bool(_NAME.match(text))


def name_release(
    store: Store,
    name: str,
    *,
    deployed: bool,
    missing: Mapping[str, str] | None = None,
    read: Iterable[Snapshot] = (),
) -> list[Snapshot]:
    """Name the current snapshots; with `deployed`, every later link of them emits a patch object; `missing` and `read`
    as for `current_snapshots`.

    Raises:
        UsageError: a name that could not be a file name.
        StoreError: nothing is recorded, or the name is taken by other builds.
    """
    if not is_name(name):
        raise UsageError(
            f"{name[:120]!r} cannot be a release name", remedy="Use up to 100 letters, digits and . _ + ~ - like v1.2."
        )
    snapshots = current_snapshots(store, missing, read)
    if not snapshots:
        raise StoreError(
            "no build is recorded", where=str(store.folder), remedy="Build with `CC=katana-cc make` first."
        )
    store.add_release(name, deployed, [s.id for s in snapshots])
    write_deployed(store)
    return snapshots


def retire_release(store: Store, name: str) -> bool:
    """Make no more patches from a release; whether there is one of that name.  It stays, with all that it holds."""
    known = store.retire_release(name)
    if known:
        write_deployed(store)
    return known


def write_deployed(store: Store) -> None:
    """Write `deployed`, which tells `stage.py` whose links to ingest at once."""
    members = {i for r in store.releases() if r.deployed for i in r.snapshots}
    outputs = sorted({row.output for row in store.snapshot_rows() if row.id in members})
    temporary = store.folder / f".deployed-{os.urandom(8).hex()}"
    with temporary.open("x", encoding="utf-8", errors="surrogateescape") as file:
        file.write("".join(f"{o}\n" for o in outputs))
    temporary.replace(store.folder / "deployed")
