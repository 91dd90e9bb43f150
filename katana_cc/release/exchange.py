"""Snapshots from one store to another, by way of files: CI builds and pushes, a laptop pulls and examines.

    BASE/store/files/<d>/<sha256>        the file of a blob as some store keeps it, by the SHA-256 of the file itself
    BASE/store/snapshots/<sha256>.json   a snapshot: its row, and all blobs it needs, each after what it is based on
    BASE/store/names/<NAME>.json         a release, or one build by its build-id: which snapshots it holds

Theory of operation.  Two stores may keep the same blob in different forms, based on different others, and a place that
mixed them could have two that are based on each other.  So a file there is named by its own bytes, and a snapshot lists
files of one store, which belong together.  Nothing but a name is ever written anew, so

- what is there need not be sent again, by whomever it was sent: a push that broke off goes on where it was;
- any number may push at once: they write the same bytes, or other files;
- files are written first, then the list, then the name: whoever reads a name finds all of it;
- whoever pulls checks each file by its name, and what it holds by the blob's; wrong bytes are refused, by name.

A blob that the pulling store has stays as it is there.  Blobs become the store's one by one, the rows that name them at
the end, all under the store's lock: a pull that breaks off goes on where it was, too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from katana_cc.errors import InvalidPatchError, StoreError, UsageError
from katana_cc.release.naming import is_name, write_deployed
from katana_cc.release.places import Place
from katana_cc.snapshot.rows import Release, SnapshotRow
from katana_cc.snapshot.store import Store

FORMAT: Final = 1
_NAMES: Final = "store/names"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_BUILD_ID: Final = re.compile(r"[0-9a-f]{2,128}")


_T = TypeVar("_T")


class _File(NamedTuple):
    """The file of a blob: the blob, the file's own SHA-256, its size in bytes."""

    blob: str
    sha256: str
    size: int


class _Listed(NamedTuple):
    """What a name says of a snapshot: enough to tell whether two names mean the same."""

    output: str
    build_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """What came of one name: how many snapshots it holds, files and bytes that were moved, files that were there."""

    name: str
    snapshots: int
    files: int
    size: int
    present: int


def push(store: Store, place: Place, releases: Iterable[Release], builds: Iterable[SnapshotRow]) -> Iterator[Transfer]:
    """Send releases, and single builds, to a place; yields what came of each.

    Raises:
        StoreError: the store is damaged, the place cannot be written, or a name there holds other builds.
        TargetError: the place cannot be reached.
    """
    rows = {row.id: row for row in store.snapshot_rows()}
    wanted = [(r.name, r.deployed, r.time, [rows[i] for i in r.snapshots], True) for r in releases]
    wanted += [(row.build_id, False, row.time, [row], False) for row in builds]
    with store.hold():
        sender = _Sender(store, place)
        for name, deployed, when, members, is_release in wanted:
            yield sender.send(name, deployed, when, members, is_release)


class _Sender:
    def __init__(self, store: Store, place: Place) -> None:
        self._store = store
        self._place = place
        self._there: dict[str, dict[str, int]] = {}
        self._listed: dict[int, _Listed] = {}
        self._files: dict[str, _File] = {}  # of this store, each read once

    def send(self, name: str, deployed: bool, when: float, rows: Sequence[SnapshotRow], is_release: bool) -> Transfer:
        before = self._known(name, rows)
        moved = size = present = 0
        for row in rows:
            for sent in self._snapshot(row):
                moved, size, present = moved + bool(sent), size + sent, present + (not sent)
        listed = [self._listed[row.id] for row in rows]
        value = {"name": name, "is_release": is_release, "deployed": deployed, "time": when,
                 "snapshots": [list(one) for one in listed]}  # fmt: skip
        if before is None or before["deployed"] != deployed:
            self._place.write(f"{_NAMES}/{name}.json", _sealed(value))
            self._known(name, rows)  # another may have written it meanwhile, with other builds
        return Transfer(name, len(rows), moved, size, present)

    def _known(self, name: str, rows: Sequence[SnapshotRow]) -> dict[str, Any] | None:
        """What the place has by that name.

        Raises:
            StoreError: it holds other builds.
        """
        value = _read_name(self._place, name)
        if value is not None and {(s.output, s.build_id) for s in value["snapshots"]} != {
            (row.output, row.build_id) for row in rows
        }:
            raise StoreError(
                f"{name} is there already and holds other builds",
                where=self._place.url,
                remedy="Choose another name; a release never changes once it is named.",
            )
        return value

    def _snapshot(self, row: SnapshotRow) -> Iterator[int]:
        """Send one; yields the bytes of each of its files, 0 of one that is there."""
        blobs = _with_bases(self._store, row)
        files = [self._file(blob) for blob in blobs]
        kept = {"output": row.output, "path": self._store.kept_path(row.path), "build_id": row.build_id,
                "manifest": row.manifest, "image": row.image, "time": row.time}  # fmt: skip
        text = _sealed({"snapshot": kept, "files": [list(file) for file in files]})
        digest = hashlib.sha256(text).hexdigest()
        self._listed[row.id] = _Listed(row.output, row.build_id, digest)
        if self._size("store/snapshots", f"{digest}.json") == len(text):
            yield from [0] * len(files)  # it was written after them
            return
        for file in files:
            folder = f"store/files/{file.sha256[0]}"
            if self._size(folder, file.sha256) == file.size:
                yield 0
                continue
            self._place.write(f"{folder}/{file.sha256}", self._store.blobs.read_file(file.blob))
            self._there[folder][file.sha256] = file.size
            yield file.size
        self._place.write(f"store/snapshots/{digest}.json", text)

    def _size(self, folder: str, name: str) -> int | None:
        if folder not in self._there:
            self._there[folder] = dict(self._place.sizes(folder) or {})
        return self._there[folder].get(name)

    def _file(self, blob: str) -> _File:
        if blob not in self._files:
            data = self._store.blobs.read_file(blob)
            self._files[blob] = _File(blob, hashlib.sha256(data).hexdigest(), len(data))
        return self._files[blob]


def _with_bases(store: Store, row: SnapshotRow) -> list[str]:
    """All blobs that a snapshot needs, each after what it is based on."""
    found: dict[str, None] = {}
    for blob in store.blobs_of(row):
        way = []
        while blob and blob not in found:
            way.append(blob)
            header = store.blobs.header(blob)
            blob = header.digest if header else ""
        found |= dict.fromkeys(reversed(way))
    return list(found)


def names(place: Place) -> list[str]:
    """All names that a place has.

    Raises:
        UsageError: it cannot be listed, as a web server.
        TargetError: it cannot be reached.
    """
    found = place.sizes(_NAMES)
    if found is None:
        raise UsageError(
            "a web server does not tell what it has", where=place.url, remedy="Name the releases: katana pull URL NAME…"
        )
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))


def pull(store: Store, place: Place, wanted: Iterable[str]) -> Iterator[Transfer]:
    """Take what names hold into a store; yields what came of each.

    Raises:
        StoreError: there is no such name, it holds other builds than the release of that name here, or the store
            cannot be written.
        InvalidPatchError: a file is not what its name says.
        TargetError: the place cannot be reached.
    """
    with store.hold():
        for name in wanted:
            value = _read_name(place, name)
            if value is None:
                raise StoreError(f"there is no {name}", where=place.url, remedy="Push it, or see what was pushed.")
            yield _take(store, place, name, value)


def _take(store: Store, place: Place, name: str, value: dict[str, Any]) -> Transfer:
    files = size = present = 0
    rows = []
    for listed in value["snapshots"]:
        row, needed = _read_snapshot(place, listed)
        for file in needed:
            if file.blob in store.blobs:
                present += 1
                continue
            _fetch(store, place, file, f"{name}: {listed.output}")
            files, size = files + 1, size + file.size
        rows.append(row)
    # From here on all blobs are there; what they say of one another is checked before a row names them.
    adopted = [store.adopt(row) for row in rows]
    if value["is_release"]:
        store.add_release(name, value["deployed"], adopted, value["time"])
        write_deployed(store)
    return Transfer(name, len(rows), files, size, present)


def _fetch(store: Store, place: Place, file: _File, user: str) -> None:
    """Take one file of a place as a blob of the store, if it is what its names say."""
    path = f"store/files/{file.sha256[0]}/{file.sha256}"
    data, where = place.read(path), f"{place.url}/{path}"
    if data is None:
        what = f"a file that {user} needs is not there"
        raise InvalidPatchError(what, where=where, remedy="the place is half copied; push again")
    if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
        what = f"a file that {user} needs holds other bytes than its name says"
        raise InvalidPatchError(what, where=where, remedy="remove it there, and push again")
    try:
        store.blobs.take(file.blob, data)
    except ValueError as error:
        what = f"a file that {user} needs is no blob {file.blob[:12]}: {error}"
        raise InvalidPatchError(what, where=where, remedy="remove it there, and push again") from error


def _read_name(place: Place, name: str) -> dict[str, Any] | None:
    if not is_name(name):
        raise UsageError(f"{name[:120]!r} is no name of a release or a build", remedy="See `katana log`.")
    path = f"{_NAMES}/{name}.json"
    data = place.read(path)
    if data is None:
        return None

    def read(value: dict[str, Any]) -> dict[str, Any]:
        if value["name"] != name:
            raise ValueError("it is that of another name")
        listed = [_Listed(*map(_text, one)) for one in value["snapshots"]]
        if not all(_DIGEST.fullmatch(one.sha256) and _BUILD_ID.fullmatch(one.build_id) for one in listed):
            raise ValueError("no snapshots")
        return {**value, "snapshots": listed, "deployed": bool(value["deployed"]), "time": float(value["time"]),
                "is_release": bool(value["is_release"])}  # fmt: skip

    return _opened(data, f"{place.url}/{path}", read)


def _read_snapshot(place: Place, listed: _Listed) -> tuple[SnapshotRow, list[_File]]:
    path = f"store/snapshots/{listed.sha256}.json"
    data, where = place.read(path), f"{place.url}/{path}"
    if data is None or hashlib.sha256(data).hexdigest() != listed.sha256:
        what = "it is not there" if data is None else "it holds other bytes than its name says"
        raise InvalidPatchError(f"snapshot of {listed.output}: {what}", where=where, remedy="push again")

    def read(value: dict[str, Any]) -> tuple[SnapshotRow, list[_File]]:
        kept = value["snapshot"]
        texts = {key: _text(kept[key]) for key in ("output", "path", "build_id", "manifest", "image")}
        row = SnapshotRow(id=0, time=float(kept["time"]), **texts)
        files = [_File(_text(blob), _text(sha256), int(size)) for blob, sha256, size in value["files"]]
        if not all(_DIGEST.fullmatch(x) for file in files for x in file[:2]) or row[1:4:2] != listed[:2]:
            raise ValueError("no snapshot of that build")
        return row, files

    return _opened(data, where, read)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("no text")
    return value


def _sealed(value: dict[str, Any]) -> bytes:
    """A value as a file that tells when a bit of it flipped."""
    body = json.dumps(value, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{{"format":{FORMAT},"sha256":"{digest}","value":{body}}}\n'.encode()


def _opened(data: bytes, where: str, read: Callable[[dict[str, Any]], _T]) -> _T:
    """Raises InvalidPatchError, StoreError: it is damaged, or of a later format."""
    try:
        whole = json.loads(data)
        if whole["format"] != FORMAT:
            remedy = "Use the Katana that wrote it, or a later one."
            raise StoreError(f"it has format {whole['format']}; this katana reads {FORMAT}", where=where, remedy=remedy)
        if _sealed(whole["value"]) != data:
            raise ValueError("wrong bytes")
        return read(whole["value"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidPatchError(
            "the file is damaged, or none of a store", where=where, remedy="remove it there, and push again"
        ) from error
