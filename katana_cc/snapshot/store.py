"""The store: blobs plus one SQLite index, in `.katana/`.

The index says which snapshots, releases, patch objects and gaps there are; all bulk data are blobs.  Blobs are written
first and the index row last, in one transaction: a crash or a full disk in between leaves blobs that nothing names
(`katana gc` drops them) and never a row that names nothing.
"""

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from katana_cc.errors import StoreError
from katana_cc.snapshot import images, model
from katana_cc.snapshot.blobs import BlobStore, digest_of
from katana_cc.snapshot.database import Database
from katana_cc.snapshot.index import insert, next_id, seal
from katana_cc.snapshot.known import KnownObjects
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.rows import Gap, PatchRow, Release, SnapshotRow
from katana_cc.snapshot.words import plain, remedy_for


class Store:
    """An open store.

    Attributes:
        folder: the `.katana` folder.
        blobs, index: what it consists of.
        objects: what is known of objects that were read before.

    Args:
        folder: the `.katana` folder.
        create: make the index when it is missing.

    Raises:
        StoreError: not there, not readable, or written by a later version of Katana.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder = folder
        self.blobs = BlobStore(folder / "blobs")
        self.index = Database(folder, create=create)
        self.objects = KnownObjects(self.index)

    def close(self) -> None:
        """Close the index."""
        self.index.close()

    @contextmanager
    def hold(self, *, exclusive: bool = False) -> Iterator[None]:
        """Keep blobs from being collected while they are put and not yet named; `exclusive` is the collector's side.

        Raises:
            StoreError: the store cannot be written.
        """
        try:
            handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreError(
                f"the store cannot be written: {plain(error)}", where=str(self.folder), remedy=remedy_for(error)
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(handle)

    # Snapshots

    def add_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Keep a snapshot; returns it with its row number."""
        text = json.dumps(model.to_json(snapshot), separators=(",", ":")).encode()
        before = self.latest(snapshot.output)
        manifest = self.blobs.put(text, before.manifest if before else "")
        with self.index.transaction() as db:
            identifier = next_id(db, "snapshots")
            # A clock that was set back must not make it older than what was there before it.
            when = max(float(snapshot.time), before.time if before else 0.0)
            row = (identifier, snapshot.output, self.kept_path(snapshot.path), snapshot.build_id, manifest,
                   snapshot.image, when)  # fmt: skip
            insert(db, "snapshots", [row])
            self._close_gaps(db, snapshot.output)
        return snapshot._replace(id=identifier)

    def adopt(self, row: SnapshotRow) -> int:
        """Name a snapshot of another store, whose blobs are here; its number, also of one that is named already.

        Args:
            row: as that store had it; its path as `kept_path` made it there.

        Raises:
            StoreError: a blob is missing, or the row is not of its manifest.
        """
        with self._reading(f"the manifest of {row.output}"):
            found = model.from_json(json.loads(self.blobs.get(row.manifest)))
        lacking = [blob for blob in (found.image, *[unit.blob for unit in found.units]) if blob not in self.blobs]
        if lacking or (found.output, found.build_id, found.image) != (row.output, row.build_id, row.image):
            what = f"it lacks blob {lacking[0][:12]}" if lacking else "the manifest is that of another"
            raise StoreError(f"the snapshot of {row.output} is not whole: {what}", where=str(self.folder),
                             remedy="Push it again from the store that has it.")  # fmt: skip
        with self.index.transaction() as db:
            known = db.execute("SELECT id FROM snapshots WHERE manifest = ?", (row.manifest,)).fetchone()
            if known is not None:
                return int(known[0])
            identifier = next_id(db, "snapshots")
            insert(db, "snapshots", [row._replace(id=identifier)])
        return identifier

    def snapshot_rows(self, output: str | None = None) -> list[SnapshotRow]:
        """All snapshots (of one output), newest first."""
        where, values = ("WHERE output = ?", (output,)) if output else ("", ())
        columns = "id, output, path, build_id, manifest, image, time"
        rows = self.index.rows(f"SELECT {columns} FROM snapshots {where} ORDER BY time DESC, id DESC", *values)
        return [SnapshotRow(*r)._replace(path=self._found_path(r[2])) for r in rows]

    def outputs(self) -> list[str]:
        """The outputs of which there are snapshots."""
        return [output for (output,) in self.index.rows("SELECT DISTINCT output FROM snapshots")]

    def snapshot(self, identifier: int) -> Snapshot:
        """One snapshot, whole."""
        rows = self.index.rows("SELECT manifest FROM snapshots WHERE id = ?", identifier)
        if not rows:
            raise StoreError(f"there is no snapshot {identifier}", where=str(self.folder), remedy="See `katana log`.")
        with self._reading(f"the manifest of snapshot {identifier}"):
            return model.from_json(json.loads(self.blobs.get(rows[0][0])), identifier)

    def image(self, snapshot: Snapshot) -> bytes:
        """The image of a snapshot.

        Raises:
            StoreError: it is missing or damaged.
        """
        with self._reading(f"the image of snapshot {snapshot.id}"):
            return images.image_of(self.blobs.get(snapshot.image))

    def add_image(
        self, fields: Sequence[Iterable[int]], image: bytes, after: SnapshotRow | None,
        moved: Callable[[Snapshot, bytes], images.Moves | None],
    ) -> str:  # fmt: skip
        """Keep a linked image; returns its blob.

        Args:
            fields: the offsets of its fields, by their sort (`images`).
            image: its bytes.
            after: the snapshot before it, if there is one.
            moved: what moved between the image of some snapshot and this one.

        Raises:
            StoreError: it cannot be written.
        """
        packed = images.pack(fields, image)
        digest = digest_of(packed)
        if digest in self.blobs:
            return digest
        self.blobs.remember(digest, packed)  # a diff comes next
        base = self.blobs.base_for(after.image, lambda blob: bool(self._with_image(blob))) if after else None
        if base is not None:
            with suppress(StoreError, ValueError):  # of the base, which whoever needs it will tell of
                old = self.snapshot(self._with_image(base.digest)[0])
                found = moved(old, images.image_of(self.blobs.read_base(base.digest)))
                if found is not None and self.blobs.write_based(digest, packed, base, images.moves_to_bytes(found)):
                    return digest
        self.blobs.write(digest, packed)
        return digest

    def _with_image(self, blob: str) -> list[int]:
        rows = self.index.rows("SELECT id FROM snapshots WHERE image = ? ORDER BY id DESC LIMIT 1", blob)
        return [i for (i,) in rows]

    def blobs_of(self, row: SnapshotRow) -> tuple[str, ...]:
        """All blobs that a snapshot names, its manifest first; without the rest of the manifest, most of the work.

        Raises:
            StoreError: the manifest is missing or damaged.
        """
        with self._reading(f"the manifest of snapshot {row.id}"):
            raw = json.loads(self.blobs.get(row.manifest))
            return row.manifest, raw["image"], *[blob for _, blob in raw["units"]]

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Foreign bytes: whatever they make fail is an error that says so."""
        try:
            yield
        except (ValueError, KeyError, TypeError, IndexError) as error:
            remedy = "Use the Katana that wrote it, or a later one."
            raise StoreError(f"{what} cannot be read ({error})", where=str(self.folder), remedy=remedy) from error

    def latest(self, output: str) -> SnapshotRow | None:
        """The newest snapshot of an output."""
        rows = self.snapshot_rows(output)
        return rows[0] if rows else None

    # Releases

    def add_release(self, name: str, deployed: bool, snapshots: list[int], when: float | None = None) -> None:
        """Name a set of snapshots, now or at another time (seconds since 1970).

        Raises:
            StoreError: a release of that name exists and holds other snapshots.
        """
        with self.index.transaction() as db:
            existing = next((r for r in self.releases() if r.name == name), None)
            if existing is not None:
                if self._builds(existing.snapshots) != self._builds(snapshots):
                    raise StoreError(
                        f"release {name} exists already and holds other builds",
                        where=str(self.folder),
                        remedy="Choose another name; a release never changes once it is named.",
                    )
                self._set_deployed(db, name, deployed)
                return
            identifier = next_id(db, "releases")
            insert(db, "releases", [(identifier, name, int(deployed), time.time() if when is None else when)])
            insert(db, "release_snapshots", [(identifier, s) for s in snapshots])

    def retire_release(self, name: str) -> bool:
        """Take the mark of a deployed release off; whether there is a release of that name."""
        with self.index.transaction() as db:
            return self._set_deployed(db, name, False)

    @staticmethod
    def _set_deployed(db: sqlite3.Connection, name: str, deployed: bool) -> bool:
        rows = db.execute("SELECT id, name, time FROM releases WHERE name = ?", (name,)).fetchall()
        for identifier, _, when in rows:
            values = (identifier, name, int(deployed), when)
            db.execute("UPDATE releases SET deployed = ?, seal = ? WHERE id = ?",
                       (int(deployed), seal("releases", values), identifier))  # fmt: skip
        return bool(rows)

    def _builds(self, snapshots: Iterable[int]) -> set[tuple[str, str]]:
        wanted = set(snapshots)
        return {(r.output, r.build_id) for r in self.snapshot_rows() if r.id in wanted}

    def releases(self) -> list[Release]:
        """All releases, oldest first."""
        members: dict[int, list[int]] = {}
        for release, snapshot in self.index.rows("SELECT release, snapshot FROM release_snapshots ORDER BY snapshot"):
            members.setdefault(release, []).append(snapshot)
        rows = self.index.rows("SELECT id, name, deployed, time FROM releases ORDER BY id")
        return [Release(name, bool(deployed), when, tuple(members.get(i, ()))) for i, name, deployed, when in rows]

    # Gaps

    def add_gap(self, output: str, path: str, reason: str) -> None:
        """Remember that a link of `output` was not recorded."""
        with self.index.transaction() as db:
            insert(db, "gaps", [(next_id(db, "gaps"), output, path, reason, time.time(), 1)])

    def close_gaps(self, output: str) -> None:
        """Say that the newest link of an output is recorded."""
        if any(gap.is_open for gap in self.gaps(output)):
            with self.index.transaction() as db:
                self._close_gaps(db, output)

    @staticmethod
    def _close_gaps(db: sqlite3.Connection, output: str) -> None:
        columns = "id, output, path, reason, time, open"
        for row in db.execute(f"SELECT {columns} FROM gaps WHERE output = ? AND open", (output,)).fetchall():
            insert(db, "gaps", [(*row[:-1], 0)], "REPLACE")

    def gaps(self, output: str | None = None) -> list[Gap]:
        """All gaps (of one output), newest first."""
        where, values = ("WHERE output = ?", (output,)) if output else ("", ())
        return [
            Gap(output, path, reason, when, bool(is_open))
            for output, path, reason, when, is_open in self.index.rows(
                f"SELECT output, path, reason, time, open FROM gaps {where} ORDER BY id DESC", *values
            )
        ]

    # Patch objects

    def add_patch(self, row: PatchRow) -> None:
        """Remember a patch object; one of the same identity is replaced."""
        with self.index.transaction() as db:
            insert(db, "patches", [row._replace(path=self.kept_path(row.path))], "REPLACE")

    def patches(self) -> list[PatchRow]:
        """All patch objects, newest first."""
        rows = self.index.rows(f"SELECT {', '.join(PatchRow._fields)} FROM patches ORDER BY time DESC, id")
        return [PatchRow(*r)._replace(path=self._found_path(r[7])) for r in rows]

    def kept_path(self, path: str) -> str:
        """A path as the index keeps it: relative to the project, which may be moved or copied with its store."""
        root = self.folder.absolute().parent
        return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path

    def _found_path(self, kept: str) -> str:
        return str(self.folder.absolute().parent / kept)
