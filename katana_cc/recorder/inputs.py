"""The inputs of one link: read where they were not seen before, and placed in the output.

Theory of operation.  An object that the store has a record of is not looked at again: a witness of each section tells
whether it is where the map says.  Any other is read whole, kept as a blob, and placed by all its bytes.  That depends
on nothing but the object, what the map says of it and the output; so where many are new, a first link, processes share
them (`workers.py`), and send back what is kept of each, packed.  What comes of it is put together here in the map's
order, by one process, which alone knows the index.

Which of the two is done is decided by the index as it was before the link, so that it is the same for one process and
for many.  Only to save work does a reader stop where it finds the blob there already: then the index knows the object
as well, but after a failure, and then it is asked a second time.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError, StoreError
from katana_cc.recorder import archive, record
from katana_cc.recorder.linkmap import Contribution, Input
from katana_cc.recorder.placement import Candidate, Placed, place
from katana_cc.recorder.record import ObjectRecord
from katana_cc.recorder.workers import Workers, helpers_for
from katana_cc.snapshot.blobs import digest_of
from katana_cc.snapshot.model import Unit
from katana_cc.snapshot.rows import SnapshotRow
from katana_cc.snapshot.store import Store

_GCC_MADE: Final = r"cc[A-Za-z0-9]{6}(\.ltrans\d+\.ltrans)?\.o\Z"
_CLANG_MADE: Final = r".+-[0-9a-f]{6}\.o\Z"

_T = TypeVar("_T")

# What is told of one input, in types that `marshal` knows.
_Object = tuple[int, str, bytes]  # its number in the file, its blob, its record as `to_bytes` makes it (b"": not read)
_Read = tuple[
    list[_Object],
    bool,  # whether the file is an archive
    dict[tuple[int, int], int],  # as in `Placed`, for units counted from the first of these objects
    list[tuple[int, int, str]],
]


class Inputs:
    """The inputs of one link, of which `place` makes units.  Workers read what is new from the start until the end of
    the `with` block.

    Args:
        store: where objects are kept; held by the caller until what is read is named.
        info: the `link.json` of the staged link.
        contributions: what its map says.
        output: what was linked.
        before: the snapshot before; a new object is kept as what differs from the one of its name there.

    Raises:
        FormatError: the map names an input that was not staged.
    """

    def __init__(
        self,
        store: Store,
        info: Mapping[str, Any],
        contributions: Mapping[Input, list[Contribution]],
        output: ElfFile,
        before: SnapshotRow | None = None,
    ) -> None:
        self.units: list[Unit] = []
        self.keys: list[Input] = []  # what the map calls each unit
        self.records: list[ObjectRecord] = []  # of each unit
        self._store = store
        self._staged = f"{store.folder}/staged/objects"
        self._root = f"{store.folder.parent}/".replace("//", "/") if store.folder.name == ".katana" else ""
        self._entries = {i["path"]: i for i in info["inputs"]}
        self._contributions = contributions
        self._output = output
        files = [i["file"] for i in info["inputs"] if not i.get("thin_members")]
        files += [t for i in info["inputs"] for t in i.get("thin_members", {}).values()]
        self._known = store.objects.members(files)
        self._stored = store.objects.records([blob for pairs in self._known.values() for _, blob in pairs])
        self._new = [key for key in contributions if self._ident(key) not in self._known]
        self._new_objects: dict[str, list[tuple[str, str]]] = {}
        self._new_records: dict[str, bytes] = {}
        self._archives: dict[str, list[tuple[str, bytes]]] = {}
        self._parsed: dict[str, ObjectRecord] = {}
        self._taken: dict[str, int] = {}
        self._earlier: dict[str, str] = {}
        if self._new and before is not None:
            with suppress(StoreError):  # one that is damaged is of no use here, and told of by whoever needs it
                self._earlier = dict(store.snapshot(before.id).units)
        self._workers = self._readers(self._new, whole=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.end()

    def place(self) -> Placed:
        """Place the sections of all inputs; `units` and `records` are complete then.

        Raises:
            FormatError: an object, or an archive, cannot be read.
            StoreError: an object cannot be kept.
        """
        read = self._answers(self._workers, self._new, whole=False)
        self._stored |= self._store.objects.records([blob for objects, *_ in read.values() for _, blob, _ in objects])
        left = [key for key, (objects, *_) in read.items() if not objects[0][2] and not self._is_stored(objects)]
        with self._readers(left, whole=True) as workers:
            read |= self._answers(workers, left, whole=True)
        placed = Placed()
        for key in self._contributions:
            if key not in read:
                self._place_stored(key, [b for _, b in self._chosen(key, self._known[self._ident(key)])], placed)
            elif self._is_stored(read[key][0]):
                self._place_stored(key, [blob for _, blob, _ in read[key][0]], placed)
            else:
                self._take(key, read[key], placed)
        self._list_members(read)
        return placed

    def remember(self) -> None:
        """Keep what was read, so that the next link of the same files reads nothing again."""
        self._store.objects.remember(self._new_objects, self._new_records)

    # What any process may do: it asks the index nothing.

    def _readers(self, keys: Sequence[Input], whole: bool) -> Workers:
        return Workers(lambda number: self._read(keys[number], whole), len(keys), helpers_for(len(keys)))

    def _answers(self, workers: Workers, keys: Sequence[Input], whole: bool) -> dict[Input, _Read]:
        done = workers.results()
        return {key: done[n] if n in done else self._read(key, whole) for n, key in enumerate(keys)}

    def _read(self, key: Input, whole: bool) -> _Read:
        """Keep the objects of one input as blobs, and read and place them, unless all are there and not `whole`."""
        members, is_archive = self._members(self._ident(key), key)
        objects = self._chosen(key, [(name, (number, data)) for number, (name, data) in enumerate(members)])
        blobs = self._store.blobs
        kept = [(number, digest_of(data)) for _, (number, data) in objects]
        if not whole and all(blob in blobs for _, blob in kept):
            return [(number, blob, b"") for number, blob in kept], is_archive, {}, []
        candidates = []
        for unit, ((_, blob), (_, (_, data))) in enumerate(zip(kept, objects, strict=True)):
            if blob not in blobs:
                blobs.write(blob, data, self._earlier.get(self._path_name(key), ""))
            elf = ElfFile(data, key[0])
            candidates.append(Candidate(unit, record.make_record(elf), elf))
        placed = Placed()
        place(self._contributions[key], candidates, self._output, placed)
        packed = [record.to_bytes(candidate.record) for candidate in candidates]
        found = [(number, blob, row) for (number, blob), row in zip(kept, packed, strict=True)]
        return found, is_archive, placed.addresses, placed.unplaced

    def _ident(self, key: Input) -> str:
        """The staged file that a (file, member) of the map lies in."""
        file, member = key
        entry = self._entries.get(file)
        if entry is None:
            raise FormatError(
                "the link map names an input that could not be kept",
                where=file,
                remedy="Is it removed while the link runs (link-time optimisation)? Build without -flto.",
            )
        return str((entry.get("thin_members") or {}).get(member) or entry["file"])

    def _members(self, ident: str, key: Input) -> tuple[list[tuple[str, bytes]], bool]:
        """The objects in a staged file by name, and whether it is an archive."""
        found = self._archives.get(ident)
        if found is None:
            with open(f"{self._staged}/{ident}", "rb") as file:
                data = file.read()
            if not archive.is_archive(data):
                return [("", data)], False
            where = self._entries[key[0]]["absolute"]
            found = self._archives[ident] = [(n, d) for n, d in archive.members(data, where) if d is not None]
        return found, True

    def _chosen(self, key: Input, members: Sequence[tuple[str, _T]]) -> Sequence[tuple[str, _T]]:
        """Those objects of a staged file that a (file, member) of the map may mean."""
        file, member = key
        entry = self._entries[file]
        if member in (entry.get("thin_members") or {}):
            return members
        found = [pair for pair in members if pair[0] == member] if member else members[:1]
        if not found:
            what = f"it holds no member {member}, which the link map names" if member else "it is empty"
            raise FormatError(what, where=entry["absolute"], remedy="Link again.")
        return found

    # What one process does, in the map's order.

    def _is_stored(self, objects: Sequence[_Object]) -> bool:
        return all(blob in self._stored for _, blob, _ in objects)

    def _place_stored(self, key: Input, blobs: Sequence[str], placed: Placed) -> None:
        """Place objects by their records; one whose record is damaged is read again."""
        group = []
        for blob in blobs:
            elf, packed = None, self._stored.get(blob)
            if packed is None:
                elf = ElfFile(self._store.blobs.get(blob), key[0])
                packed = self._new_records[blob] = record.to_bytes(record.make_record(elf))
            group.append(Candidate(*self._add_unit(key, blob, packed), elf))
        place(self._contributions[key], group, self._output, placed)

    def _take(self, key: Input, read: _Read, placed: Placed) -> None:
        """Take over what `_read` found of objects that no record was kept of."""
        objects, _, addresses, unplaced = read
        first = len(self.units)
        for _, blob, packed in objects:
            self._new_records[blob] = packed
            self._add_unit(key, blob, packed)
        for (unit, section), address in addresses.items():
            placed.addresses[first + unit, section] = address
        placed.unplaced += [(first + unit, section, why) for unit, section, why in unplaced]

    def _add_unit(self, key: Input, blob: str, packed: bytes) -> tuple[int, ObjectRecord]:
        made = self._parsed.get(blob)
        if made is None:
            made = self._parsed[blob] = record.from_bytes(packed)
        name = self._unit_name(key, made)
        self._taken[name] = self._taken.get(name, 0) + 1
        if self._taken[name] > 1:
            name += f"#{self._taken[name]}"
        self.units.append(Unit(name, blob))
        self.keys.append(key)
        self.records.append(made)
        return len(self.units) - 1, made

    def _unit_name(self, key: Input, made: ObjectRecord) -> str:
        file, member = key
        if _is_temporary(self._entries[file]["absolute"].rpartition("/")[2], made.file):
            path = self._path_name((file, ""))
            if path.startswith("/"):  # none of the project's
                return f"{made.file}({member})" if member else made.file
        return self._path_name(key)

    def _path_name(self, key: Input) -> str:
        """What a unit is called if its file is none that a compiler made for a moment."""
        file, member = key
        name: str = self._entries[file]["absolute"]
        plain_path = "/" + "/".join([part for part in name.split("/") if part not in ("", ".")])
        if self._root and plain_path.startswith(self._root):
            name = plain_path[len(self._root) :]
        return f"{name}({member})" if member else name

    def _list_members(self, read: Mapping[Input, _Read]) -> None:
        """Note what the new files hold; members that the link did not take are kept too, for the next that does."""
        blobs: dict[str, dict[int, str]] = {}
        for key, (objects, *_) in read.items():
            blobs.setdefault(self._ident(key), {}).update({number: blob for number, blob, _ in objects})
        for key, (_, is_archive, *_) in read.items():
            ident = self._ident(key)
            if ident not in self._new_objects:
                members = self._members(ident, key)[0] if is_archive else [("", b"")]
                its, put = blobs[ident], self._store.blobs.put
                self._new_objects[ident] = [
                    (name, its[number] if number in its else put(data)) for number, (name, data) in enumerate(members)
                ]


def _is_temporary(name: str, source: str) -> bool:
    """Whether an object of `cc a.c b.c -o prog` has the name its compiler made up: `ccJx0aQ2.o` of gcc, `a-3f9c21.o`
    of clang, which are new each time."""
    if not source:
        return False
    return bool(re.match(_GCC_MADE, name)) or bool(re.match(_CLANG_MADE, name) and name[:-9] == Path(source).stem)
