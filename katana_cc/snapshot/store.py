"""The store: blobs plus one SQLite index, in `.katana/`.

The index says which snapshots, releases, patch objects and gaps there are; all bulk data are blobs.  Blobs are written
first and the index row last, in one transaction: a crash or a full disk in between leaves blobs that nothing names
(`katana gc` drops them) and never a row that names nothing.  WAL mode and a busy timeout make it safe for several
links at once.
"""

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from katana_cc.errors import StoreError, UsageError
from katana_cc.snapshot import images, model
from katana_cc.snapshot.blobs import BlobStore, compress_row, digest_of, expand_row
from katana_cc.snapshot.index import SCHEMA_VERSION, connect, create_tables, insert, next_id, problems, seal
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.words import plain, remedy_for

_OLDER: Final = (
    "Use the Katana that wrote it; or move the folder away, build again from clean sources with this one, and name what"
    " runs with `katana-release NAME`."
)


class Release(NamedTuple):
    """A named set of snapshots."""

    name: str
    deployed: bool
    time: float
    snapshots: tuple[int, ...]


class PatchRow(NamedTuple):
    """One patch object that was made."""

    id: str
    output: str
    from_snapshot: int
    to_snapshot: int
    from_name: str
    to_name: str
    verdict: str
    path: str
    size: int
    time: float


class SnapshotRow(NamedTuple):
    """What the index knows of a snapshot without reading its manifest."""

    id: int
    output: str
    path: str
    build_id: str
    manifest: str
    image: str
    time: float


class Gap(NamedTuple):
    """A link that could not be recorded, and why; open until a later one of the output is recorded."""

    output: str
    path: str
    reason: str
    time: float
    is_open: bool


def find_store(start: Path | None = None) -> Path:
    """The store a command means: what its command line says, the nearest `.katana` from `start` upwards, `KATANA_DIR`.

    Raises:
        StoreError: there is none.
        UsageError: KATANA_DIR is no absolute path.  A link refuses it too, whatever stores there are.
    """
    named = os.environ.get("KATANA_DIR")
    if named and not Path(named).is_absolute():
        raise UsageError(
            "KATANA_DIR must be an absolute path, since links are made in many folders",
            where=f"KATANA_DIR={named}",
            remedy=f"Say KATANA_DIR={Path.cwd() / named}, or unset it.",
        )
    if named and "dir" in os.environ.get("KATANA_COMMAND_LINE", "").split():
        return Path(named)
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents):
        with suppress(PermissionError):  # a folder that may not be searched has none for us
            if (folder / ".katana").is_dir():
                return folder / ".katana"
    if named:
        return Path(named)
    raise StoreError(
        "no .katana store here or above",
        where=str(here),
        remedy="Build with `CC=katana-cc make` first, change into the project, or set KATANA_DIR.",
    )


def _nothing_recorded(folder: Path) -> StoreError:
    return StoreError(
        "nothing is recorded here yet",
        where=str(folder),
        remedy="Build with `CC=katana-cc make`, then name what runs with `katana-release NAME`.",
    )


class Store:
    """An open store.

    Args:
        folder: the `.katana` folder.
        create: make the index when it is missing.

    Raises:
        StoreError: not there, not readable, or written by a later version of Katana.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder = folder
        self.blobs = BlobStore(folder / "blobs")
        index = folder / "index.db"
        try:
            if not create and not index.exists():
                raise _nothing_recorded(folder)
            if create:
                folder.mkdir(parents=True, exist_ok=True)
            self._db, version = connect(index, create)
            if version == 0 and create:
                create_tables(self._db)
                version = SCHEMA_VERSION
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            raise StoreError(
                f"the index cannot be opened: {plain(error)}", where=str(index), remedy=remedy_for(error)
            ) from error
        if version == 0:
            raise _nothing_recorded(folder)
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"the store has version {version}, this Katana reads version {SCHEMA_VERSION}",
                where=str(folder),
                remedy=_OLDER if version < SCHEMA_VERSION else "Use the Katana that wrote it, or a later one.",
            )

    def close(self) -> None:
        """Close the index.  Whoever is the last to do so empties SQLite's log into it, which else stays beside it."""
        self._db.close()

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

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction; rolled back when the body raises.

        Raises:
            StoreError: the index cannot be written.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends it by itself when the disk is full
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(
                f"the index cannot be written: {plain(error)}", where=str(self.folder), remedy=remedy_for(error)
            ) from error

    def shrink(self, part: int) -> None:
        """Give back what is free in the index, if that is one part in `part` of it.

        Raises:
            sqlite3.Error: it could not be done; the index is as it was.
        """
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        if self._db.execute("PRAGMA freelist_count").fetchone()[0] * part > pages:
            self._db.execute("VACUUM")

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise StoreError(
                f"the index cannot be read: {plain(error)}", where=str(self.folder), remedy=remedy_for(error)
            ) from error

    def index_problems(self) -> list[str]:
        """What SQLite finds wrong with the index; empty when it is whole."""
        found: list[str] = []
        try:
            found.extend(problems(self._db))
        except (sqlite3.Error, UnicodeDecodeError) as error:
            found.append(plain(error))
        return found

    # Snapshots

    def add_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Keep a snapshot; returns it with its row number."""
        text = json.dumps(model.to_json(snapshot), separators=(",", ":")).encode()
        before = self.latest(snapshot.output)
        manifest = self.blobs.put(text, before.manifest if before else "")
        with self.transaction() as db:
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
        with self.transaction() as db:
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
        rows = self._rows(f"SELECT {columns} FROM snapshots {where} ORDER BY time DESC, id DESC", *values)
        return [SnapshotRow(*r)._replace(path=self._found_path(r[2])) for r in rows]

    def snapshot(self, identifier: int) -> Snapshot:
        """One snapshot, whole."""
        rows = self._rows("SELECT manifest FROM snapshots WHERE id = ?", identifier)
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
        return [i for (i,) in self._rows("SELECT id FROM snapshots WHERE image = ? ORDER BY id DESC LIMIT 1", blob)]

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
        with self.transaction() as db:
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
        with self.transaction() as db:
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
        for release, snapshot in self._rows("SELECT release, snapshot FROM release_snapshots ORDER BY snapshot"):
            members.setdefault(release, []).append(snapshot)
        rows = self._rows("SELECT id, name, deployed, time FROM releases ORDER BY id")
        return [Release(name, bool(deployed), when, tuple(members.get(i, ()))) for i, name, deployed, when in rows]

    # Gaps

    def add_gap(self, output: str, path: str, reason: str) -> None:
        """Remember that a link of `output` was not recorded."""
        with self.transaction() as db:
            insert(db, "gaps", [(next_id(db, "gaps"), output, path, reason, time.time(), 1)])

    def close_gaps(self, output: str) -> None:
        """Say that the newest link of an output is recorded."""
        if any(gap.is_open for gap in self.gaps(output)):
            with self.transaction() as db:
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
            for output, path, reason, when, is_open in self._rows(
                f"SELECT output, path, reason, time, open FROM gaps {where} ORDER BY id DESC", *values
            )
        ]

    # Patch objects

    def add_patch(self, row: PatchRow) -> None:
        """Remember a patch object; one of the same identity is replaced."""
        with self.transaction() as db:
            insert(db, "patches", [row._replace(path=self.kept_path(row.path))], "REPLACE")

    def patches(self) -> list[PatchRow]:
        """All patch objects, newest first."""
        rows = self._rows(f"SELECT {', '.join(PatchRow._fields)} FROM patches ORDER BY time DESC, id")
        return [PatchRow(*r)._replace(path=self._found_path(r[7])) for r in rows]

    def kept_path(self, path: str) -> str:
        """A path as the index keeps it: relative to the project, which may be moved or copied with its store."""
        root = self.folder.absolute().parent
        return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path

    def _found_path(self, kept: str) -> str:
        return str(self.folder.absolute().parent / kept)

    # Objects already read

    def known_objects(self, idents: list[str]) -> dict[str, list[tuple[str, str]]]:
        """Staged file → its (member, blob) pairs in archive order, for those ingested before."""
        result: dict[str, list[tuple[str, str]]] = {}
        for at in range(0, len(idents), 500):
            part = idents[at : at + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT ident, member, blob FROM objects WHERE ident IN ({marks}) ORDER BY ident, ordinal"
            for ident, member, blob in self._rows(query, *part):
                result.setdefault(ident, []).append((member, blob))
        return result

    def known_records(self, blobs: list[str]) -> dict[str, bytes]:
        """Object blob → its record, for those read before; one that is damaged is as good as none, and made again."""
        return {blob: data for blob, row in self._record_rows(blobs) if (data := expand_row(row)) is not None}

    def damaged_records(self, blobs: list[str]) -> list[str]:
        """Object blobs whose record is damaged."""
        return [blob for blob, row in self._record_rows(blobs) if expand_row(row) is None]

    def _record_rows(self, blobs: list[str]) -> Iterator[tuple[Any, ...]]:
        for at in range(0, len(blobs), 500):
            part = blobs[at : at + 500]
            marks = ",".join("?" * len(part))
            yield from self._rows(f"SELECT blob, record FROM records WHERE blob IN ({marks})", *part)

    def remember_objects(self, objects: dict[str, list[tuple[str, str]]], records: dict[str, bytes]) -> None:
        """Keep what `known_objects` and `known_records` will answer."""
        rows = [(blob, compress_row(record)) for blob, record in records.items()]
        with self.transaction() as db:
            members = [(ident, m, i, b) for ident, members in objects.items() for i, (m, b) in enumerate(members)]
            insert(db, "objects", members, "IGNORE")
            insert(db, "records", rows, "REPLACE")
