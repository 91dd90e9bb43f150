"""A mirror: patches by the build-id that they start from, as static files, so that anything that serves files will do.

    BASE/buildid/<build-id>/katana/index.json       what there is for that build, newest first; and index.json.sig
    BASE/buildid/<build-id>/katana/<PO-ID>.kpo      the patches; and <PO-ID>.kpo.sig

The folder `buildid/<build-id>` is debuginfod's, whose files have other names.  A file of a patch never changes: its
name says what it holds.  So patches are written first, all of them, and an index last: whoever reads one finds
everything it names, and a publication that breaks off is not seen.  `docs/release.md` has the index's fields.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from katana_cc.errors import InvalidPatchError, StoreError
from katana_cc.release.places import Place
from katana_cc.trust.policy import SUFFIX, Policy

if TYPE_CHECKING:
    from katana_cc.release.bundle import Bundle

INDEX_FORMAT: Final = 1
_ID: Final = re.compile(r"[0-9a-f]{32}")
_BUILD_ID: Final = re.compile(r"[0-9a-f]{2,128}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One patch in an index.  `file` lies beside it; `sha256` and `size` (bytes) are the file's."""

    id: str
    output: str
    from_release: str
    to_release: str
    to_build_id: str
    verdict: str
    file: str
    size: int
    sha256: str


def folder_of(build_id: str) -> str:
    """Where the patches from a build lie, below the base."""
    return f"buildid/{build_id}/katana"


def publish(
    place: Place, patches: Mapping[str, Sequence[tuple[Entry, bytes]]], sign: Callable[[bytes], bytes] | None
) -> list[str]:
    """Add patches, by the build-id that they start from, each newest first; the paths written, in their order.

    Raises:
        KatanaError: the place cannot be written, or holds an index that is none.
    """
    written = []

    def write(path: str, data: bytes) -> None:
        if sign is not None:
            place.write(path + SUFFIX, sign(data))
            written.append(path + SUFFIX)
        place.write(path, data)
        written.append(path)

    for build_id, added in patches.items():
        for entry, data in added:
            write(f"{folder_of(build_id)}/{entry.file}", data)
    for build_id, added in patches.items():
        new = [entry for entry, _ in added]
        ids = {entry.id for entry in new}
        before = _read_index(place, build_id, None)
        write(f"{folder_of(build_id)}/index.json", _encode(build_id, [*new, *(e for e in before if e.id not in ids)]))
    return written


def published(bundle: Bundle) -> dict[str, list[tuple[Entry, bytes]]]:
    """The patches of a bundle as `publish` takes them.

    One that is refused is published too: whoever runs that build has to learn of it.
    """
    result: dict[str, list[tuple[Entry, bytes]]] = {}
    for packed in bundle.patches:
        f = packed.fields
        entry = Entry(
            f["id"], f["output"], f["from"], f["to"], f["to_build_id"], f["verdict"], f"{f['id']}.kpo", f["size"],
            f["sha256"],
        )  # fmt: skip
        result.setdefault(f["from_build_id"], []).append((entry, packed.data))
    return result


def index(place: Place, build_id: str, trust: Policy) -> tuple[Entry, ...]:
    """What a mirror has for a build, newest first; nothing for one that it does not know.

    Raises:
        TargetError: it cannot be reached.
        InvalidPatchError, RefusedError: the index is damaged, or not signed as this host wants it.
    """
    return _read_index(place, build_id, trust)


def fetch(place: Place, build_id: str, entry: Entry, trust: Policy) -> bytes:
    """The file of a patch.

    Raises:
        TargetError: it cannot be reached.
        InvalidPatchError, RefusedError: it is not there whole, holds something else, or is not signed as it must be.
    """
    path = f"{folder_of(build_id)}/{entry.file}"
    data, where = place.read(path), f"{place.url}/{path}"
    if data is None:
        raise InvalidPatchError(
            "the index names it, and it is not there", where=where, remedy="the mirror is half copied; publish again"
        )
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InvalidPatchError(
            f"it is not what the index says: {len(data)} bytes, not {entry.size} of SHA-256 {entry.sha256[:16]}…",
            where=where,
            remedy="the mirror is half copied, or was altered; publish again",
        )
    trust.check(data, place.read(path + SUFFIX), where)
    return data


def _encode(build_id: str, entries: Iterable[Entry]) -> bytes:
    value = {"format": INDEX_FORMAT, "build_id": build_id, "patches": [asdict(e) for e in entries]}
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _read_index(place: Place, build_id: str, trust: Policy | None) -> tuple[Entry, ...]:
    if not _BUILD_ID.fullmatch(build_id):
        return ()
    path = f"{folder_of(build_id)}/index.json"
    where = f"{place.url}/{path}"
    data = place.read(path)
    if data is None:
        return ()
    if trust is not None:
        try:
            trust.check(data, place.read(path + SUFFIX), where)
        except InvalidPatchError:
            # Somebody may be publishing: the signature is written just before what it signs.
            again = place.read(path)
            if again is None or again == data:
                raise
            data = again
            trust.check(data, place.read(path + SUFFIX), where)
    try:
        value = json.loads(data)
        number = value["format"]
        entries = tuple(_entry(fields) for fields in value["patches"]) if number == INDEX_FORMAT else ()
        is_right = value["build_id"] == build_id
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidPatchError(
            "the index is damaged, or none of a mirror of patches", where=where, remedy="publish again"
        ) from error
    if number != INDEX_FORMAT:
        raise StoreError(f"the index has format {number}; this katana reads {INDEX_FORMAT}", where=where)
    if not is_right:
        raise InvalidPatchError("the index is that of another build", where=where, remedy="publish again")
    return entries


def _entry(fields: dict[str, Any]) -> Entry:
    """Raises ValueError, KeyError or TypeError: it is none; what it holds becomes part of paths."""
    entry = Entry(**fields)
    texts = asdict(entry)
    size = texts.pop("size")
    if not (
        all(type(text) is str for text in texts.values())
        and type(size) is int
        and _ID.fullmatch(entry.id)
        and entry.file == f"{entry.id}.kpo"
        and _DIGEST.fullmatch(entry.sha256)
        and _BUILD_ID.fullmatch(entry.to_build_id)
    ):
        raise ValueError("no patch")
    return entry
