"""Ingestion: from a staged link (`docs/staging.md`) to a snapshot in the store.

Run by `stage.py` right after the link of an output that a deployed release knows, and by `katana-release` for all that
is staged.  Whatever goes wrong leaves a gap with its reason: the build is never harmed, and no patch is made from a
link that was not recorded whole.
"""

import gc
import json
import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence, Set
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from katana_cc.cpu.choice import SUPPORTED, unsupported
from katana_cc.cpu.extent import LONG
from katana_cc.elf import constants as c
from katana_cc.elf.reader import RELA_SIZE, SYMBOL_SIZE, ElfFile
from katana_cc.errors import FormatError, KatanaError, StoreError
from katana_cc.recorder import linkmap
from katana_cc.recorder.inputs import Inputs
from katana_cc.recorder.linkmap import Contribution, Input
from katana_cc.recorder.record import ObjectRecord, from_bytes
from katana_cc.recorder.sources import ask
from katana_cc.recorder.staging.folder import place
from katana_cc.snapshot import images
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.rows import SnapshotRow
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.words import plain

_HEAD: Final = 1 << 16
_NAMED: Final = 5  # objects in a note


class StagedLink(NamedTuple):
    """One staged link: its folder and its `link.json`."""

    folder: Path
    info: dict[str, Any]

    @property
    def output(self) -> str:
        """The output's name through time."""
        return str(self.info.get("output_key") or self.info.get("output", self.folder.name))


def staged_links(store_folder: Path) -> list[StagedLink]:
    """All staged links whose output still exists, oldest first; `output` says where it is now."""
    found = []
    for folder in sorted((store_folder / "staged" / "links").glob("*/")):
        try:
            info = json.loads((folder / "link.json").read_bytes())
        except (OSError, ValueError):
            continue  # another link is just being staged there, or was cut off: not a link yet
        if not isinstance(info, dict) or not isinstance(info.get("output"), str):
            continue
        if info.get("format") != 1:
            raise StoreError(f"staged link of format {info.get('format')}", where=str(folder), remedy="Link it again.")
        if Path(info["output"]).exists():
            found.append(StagedLink(folder, info))
        elif renamed := place(os.fsencode(folder)):
            found.append(StagedLink(folder, {**info, "output": os.fsdecode(renamed)}))
    return sorted(found, key=lambda s: (s.info.get("time", 0), s.info["output"]))


def read_staged(store_folder: Path, key: str) -> StagedLink:
    """The staged link `key`.

    Raises:
        StoreError: it is not there.
    """
    folder = store_folder / "staged" / "links" / key
    try:
        info = json.loads((folder / "link.json").read_bytes())
        if not isinstance(info, dict):
            raise ValueError("it holds no object")
        return StagedLink(folder, info)
    except (OSError, ValueError) as error:
        why = plain(error) if isinstance(error, OSError) else "its link.json is damaged"
        raise StoreError(
            f"staged link {key} cannot be read: {why}", where=str(folder), remedy="Link it again."
        ) from error


def build_id_on_disk(path: Path) -> str | None:
    """The build-id of an ELF file, mostly without reading the whole of it; None if it has none or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            # Without e_shoff it is looked for by segments, and found where linkers put it, at the start.
            with suppress(FormatError):
                if found := ElfFile(head[:40] + bytes(8) + head[48:], str(path)).build_id:
                    return found
            return ElfFile(head + file.read(), str(path)).build_id
    except (OSError, FormatError):
        return None


def ingest(store: Store, staged: StagedLink) -> Snapshot:
    """Record a staged link; when its build is the newest snapshot already, that one is returned.

    Raises:
        KatanaError: it cannot be recorded; a gap is left in the store.
    """
    try:
        with store.hold():
            return _ingest(store, staged)
    except KatanaError as error:
        _leave_gap(store, staged, error.what)
        raise
    except OSError as error:
        reason = f"{error.filename or 'a file'} cannot be read: {plain(error)}"
        _leave_gap(store, staged, reason)
        raise StoreError(reason, where=staged.output, remedy="Link it again.") from error
    except Exception as error:
        # Objects, maps and staged folders are foreign input: whatever they make fail is a gap, not a traceback.
        reason = f"its objects, link map or staged entry are damaged ({type(error).__name__}: {error})"
        _leave_gap(store, staged, reason)
        raise FormatError(reason, where=staged.output, remedy="Build it again from clean sources.") from error


def _leave_gap(store: Store, staged: StagedLink, reason: str) -> None:
    """Remember the gap; the same one again (each `katana-release` tries) is not another."""
    last = next(iter(store.gaps(staged.output)), None)
    if last is None or last.reason != reason or not last.is_open:
        store.add_gap(staged.output, str(staged.info.get("output", "")), reason)


def _ingest(store: Store, staged: StagedLink) -> Snapshot:
    info = staged.info
    if info.get("gap"):
        raise StoreError(str(info["gap"]), where=staged.output, remedy="Link it again.")
    if info.get("lto"):
        raise FormatError("built with -flto kept (KATANA_LTO=keep)", where=staged.output, remedy="Build without -flto.")
    newest = store.latest(staged.output)
    image = staged.folder / info["image"]
    if newest is not None and newest.build_id == build_id_on_disk(image):
        store.close_gaps(staged.output)
        return store.snapshot(newest.id)
    output = ElfFile(image.read_bytes(), info["output"])
    if output.machine not in SUPPORTED:
        remedy = "Build it for a machine that is, or without recording: KATANA_DISABLE=1."
        raise FormatError(unsupported(output.machine), where=info["output"], remedy=remedy)
    if not output.build_id:
        raise FormatError("it has no build-id", where=info["output"], remedy="Do not link with --build-id=none.")

    question = ask(Path(info.get("root") or Path(info["output"]).parent))
    map_text = (staged.folder / info["map"]).read_bytes()
    contributions = linkmap.parse(map_text, info["output"])
    with Inputs(store, info, contributions, output, newest) as inputs:
        # What is new is read meanwhile, where there are processors for it.
        _check_complete(output, [*chain.from_iterable(contributions.values())])
        placed = inputs.place()
    inputs.remember()
    units, records = inputs.units, inputs.records
    notes = [f"{units[i].name}: {r.problem}" for i, r in enumerate(records) if r.problem]
    notes += _undone(inputs, linkmap.with_debug_information(map_text))
    used = {unit for unit, _ in placed.addresses} | {unit for unit, _, _ in placed.unplaced}
    if not used:
        raise FormatError("the link map places no section of any object", where=info["output"])
    # From here on nothing is read from the build tree.
    kept = _add_image(store, output, inputs, placed.addresses, newest)
    soname = next(iter(output.dynamic_strings(c.DT_SONAME)), "")
    return store.add_snapshot(
        Snapshot(
            output=staged.output,
            path=info["output"],
            build_id=output.build_id,
            soname=soname,
            time=info["time"],
            linker=info["linker"],
            arguments=tuple(info["argv"]),
            units=tuple(units),
            placements=placed.addresses,
            commons=_commons(output, records),
            linker_symbols=_linker_symbols(output, records),
            folded=_folded(output, records, placed.addresses),
            image=kept,
            unplaced=tuple(placed.unplaced),
            notes=(*info.get("notes", ()), *notes),
            sources=question.answer(),
        )
    )


def _add_image(
    store: Store, output: ElfFile, inputs: Inputs, addresses: dict[tuple[int, int], int], newest: SnapshotRow | None
) -> str:
    """Keep the output's image, as what differs from an earlier one where that is less."""
    spans = _spans(output)
    fields: list[list[int]] = [[] for _ in images.FIELD_SORTS]
    for unit, made in enumerate(inputs.records):
        for section, sort, offsets in made.fields():
            address = addresses.get((unit, section))
            if address is not None:
                for start, offset, size in spans:
                    if start <= address < start + size:
                        base = address - start + offset
                        fields[sort] += [base + x for x in offsets]

    for s in output.sections:  # what the linker writes for the loader
        if s.flags & c.SHF_ALLOC and s.type == c.SHT_RELA:
            fields[LONG] += [s.offset + at for row in range(0, s.size, RELA_SIZE) for at in (row, row + 16)]
        elif s.type == c.SHT_DYNSYM:
            fields[LONG] += range(s.offset + 8, s.offset + s.size, SYMBOL_SIZE)

    def moved(old: Snapshot, image: bytes) -> images.Moves | None:
        pairs = _moved_sections(store, old, inputs, addresses)
        return images.moves(_spans(ElfFile(image, old.path)), spans, len(part), pairs)

    part = _loadable_part(output)
    return store.add_image(fields, part, newest, moved)


def _moved_sections(
    store: Store, old: Snapshot, inputs: Inputs, addresses: dict[tuple[int, int], int]
) -> list[tuple[int, int]]:
    """Old and new address of each section that both builds have."""
    before = {unit.name: (number, unit.blob) for number, unit in enumerate(old.units)}
    earlier = [before.get(unit.name, (-1, "")) for unit in inputs.units]
    changed = {n: blob for n, (_, blob) in enumerate(earlier) if blob and blob != inputs.units[n].blob}
    records = store.objects.records(list(set(changed.values())))
    # The number that a section had in the object before, where that is another one: by its name.
    renumbered: dict[tuple[int, int], int] = {}
    for unit, blob in changed.items():
        if blob in records:
            numbers = {s.name: s.number for s in from_bytes(records[blob]).sections}
            for s in inputs.records[unit].sections:
                renumbered[unit, s.number] = numbers.get(s.name, -1)
    pairs = []
    for spot, address in addresses.items():
        unit, section = spot
        number = renumbered.get(spot, -1) if unit in changed else section
        was = old.placements.get((earlier[unit][0], number))
        if was is not None:
            pairs.append((was, address))
    return pairs


def _spans(output: ElfFile) -> list[images.Span]:
    return [(s.vaddr, s.offset, s.file_size) for s in output.segments if s.type == c.PT_LOAD]


def _check_complete(output: ElfFile, contributions: Sequence[Contribution]) -> None:
    """A map that was cut off (a full disk) would make functions look as if the link had left them out.

    Raises:
        FormatError: a function of the output's symbol table lies in no contribution.
    """
    begins = {x.address for x in contributions}  # where most functions do
    functions = {
        value: name
        for name, _, kind, _, section, value, size in output.symbols
        if kind == c.STT_FUNC and value not in begins and size and section != c.SHN_UNDEF
        and "$" not in name  # mold names its PLT entries `puts$plt`
    }  # fmt: skip
    if not functions:
        return
    left = sorted(functions)
    for _, address, size in contributions:
        first = bisect_left(left, address)
        if first < len(left) and left[first] < address + size:
            del left[first : bisect_left(left, address + size)]
    if left:
        what = f"the link map is incomplete: it does not say where {functions[left[0]]} comes from"
        raise FormatError(what, where=output.where, remedy="Link again; is the disk full?")


def _undone(inputs: Inputs, with_debug: Set[Input]) -> list[str]:
    """What objects of the project show of flags that undid ours, wherever those stood: in words."""
    shared, bare = [], []
    for unit, record, key in zip(inputs.units, inputs.records, inputs.keys, strict=True):
        if unit.name.startswith("/"):
            continue  # the C runtime's, or a library's
        if ".text" in record.section_names:
            shared.append(unit.name)
        if key not in with_debug and any(name.startswith(".text") for name in record.section_names):
            bare.append(unit.name)
    words = (
        (shared, "functions share a section (-fno-function-sections, or assembly)"),
        (bare, "there is no debug information (-g0, or assembly)"),
    )
    return [f"flags: in {_some(names)}, {what}" for names, what in words if names]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _commons(output: ElfFile, records: Iterable[ObjectRecord]) -> dict[str, tuple[int, int]]:
    names = set(chain.from_iterable([r.common_names for r in records]))
    if not names:
        return {}
    return {s.name: (s.value, s.size) for s in output.symbols if s.name in names and s.section != c.SHN_UNDEF}


def _linker_symbols(output: ElfFile, records: Iterable[ObjectRecord]) -> dict[str, int]:
    """Symbols that no object defines: `_end`, `__start_…`, `_GLOBAL_OFFSET_TABLE_`."""
    defined = set(chain.from_iterable([r.symbol_names for r in records]))
    kinds = (c.STT_NOTYPE, c.STT_OBJECT)
    return {
        name: value
        for name, _, kind, _, section, value, _ in output.symbols
        if kind in kinds and section != c.SHN_UNDEF and name and name not in defined and "@" not in name
    }


def _folded(
    output: ElfFile, records: Sequence[ObjectRecord], addresses: dict[tuple[int, int], int]
) -> dict[int, tuple[str, ...]]:
    """Addresses that several functions of different sections share (identical-code folding)."""
    first: dict[int, str] = {}
    crowded: dict[int, set[str]] = {}
    for name, _, kind, _, section, value, _ in output.symbols:
        if kind == c.STT_FUNC and section != c.SHN_UNDEF and first.setdefault(value, name) != name:
            crowded.setdefault(value, {first[value]}).add(name)
    if not crowded:
        return {}
    places = sorted((address, unit, section) for (unit, section), address in addresses.items())
    starts = [address for address, _, _ in places]
    folded = {}
    for address, names in crowded.items():
        index = bisect_right(starts, address) - 1
        aliases: set[str] = set()
        # Empty sections may lie at the same address as the one that holds the code.
        while index >= 0 and (starts[index] == address or not aliases):
            start, unit, section = places[index]
            aliases |= {s.name for s in records[unit].symbols if s.section == section and start + s.value == address}
            if starts[index] < address:
                break
            index -= 1
        if names - aliases:
            folded[address] = tuple(sorted(names))
    return folded


def _loadable_part(output: ElfFile) -> bytes:
    """The file up to the end of its last PT_LOAD, with the section header table unlinked."""
    end = max((s.offset + s.file_size for s in output.segments if s.type == c.PT_LOAD), default=64)
    data = bytearray(output.data[:end])
    data[40:48] = bytes(8)  # e_shoff
    data[60:64] = bytes(4)  # e_shnum, e_shstrndx
    return bytes(data)


def main(arguments: list[str]) -> int:
    """`python -m katana_cc.recorder.ingest STORE`: record the staged link whose key is the line on standard input, and
    make the patches it calls for; nothing, if there is no line.

    Started while the link goes on, so what takes long to load is loaded first.  Prints one line for each patch, one
    warning line on failure; exits with 1 then, which the linker wrapper ignores unless KATANA_STRICT=1.
    """
    (folder,) = arguments
    key = ""
    try:
        from katana_cc.release.deployed import differing_builds
        from katana_cc.release.emit import emit_patches

        key = sys.stdin.readline().strip()
        if not key:
            return os.EX_OK
        with closing(Store(Path(folder))) as store, store.hold():  # till the patches are named too
            snapshot = ingest(store, read_staged(Path(folder), key))
            if differing_builds(store, snapshot):
                for line in emit_patches(store, snapshot):
                    print(line, file=sys.stderr)
    except KatanaError as error:
        print(f"katana: not recorded: {error}".replace("\n ", ";"), file=sys.stderr)
        return 1
    except Exception as error:  # the boundary to somebody's build
        print(f"katana: {key}: a bug in Katana: {type(error).__name__}: {error}; please report it", file=sys.stderr)
        return 1
    return os.EX_OK


if __name__ == "__main__":
    # One short run over many small values: looking for cycles among them would take a tenth of it.
    gc.disable()
    status = main(sys.argv[1:])
    gc.freeze()  # or the interpreter would look for cycles at its end, disabled or not
    sys.exit(status)
