"""A snapshot as a program: its objects parsed on demand, who defines which symbol, and where everything lies."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from katana_cc.cpu.choice import Cpu, of
from katana_cc.diff.options import LinkOptions, link_options
from katana_cc.elf import constants as c
from katana_cc.elf.dynamic import DynamicTables
from katana_cc.elf.reader import ElfFile
from katana_cc.recorder import record as records
from katana_cc.recorder.record import ObjectRecord
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.store import Store


class Place(NamedTuple):
    """An input section of a program: unit index and section header index."""

    unit: int
    section: int


class Definition(NamedTuple):
    """Where a global symbol is defined; `place` is None for SHN_COMMON (then only `address` tells)."""

    name: str
    place: Place | None
    value: int
    size: int
    type: int
    binding: int
    address: int | None
    visibility: int = c.STV_DEFAULT


class ObjectCache:
    """Objects and records by blob, shared by the two programs of a diff: what both hold is read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._objects: dict[str, ElfFile] = {}
        self._records: dict[str, ObjectRecord] = {}

    def load_records(self, blobs: list[str]) -> None:
        """Read the records of many objects at once."""
        wanted = [b for b in blobs if b not in self._records]
        for blob, data in self.store.objects.records(wanted).items():
            self._records[blob] = records.from_bytes(data)

    def record(self, blob: str) -> ObjectRecord:
        """The record of an object."""
        if blob not in self._records:
            self._records[blob] = records.make_record(self.object(blob, blob[:12]))
        return self._records[blob]

    def object(self, blob: str, where: str) -> ElfFile:
        """An object, parsed."""
        if blob not in self._objects:
            self._objects[blob] = ElfFile(self.store.blobs.get(blob), where)
        return self._objects[blob]


class Program:
    """One snapshot.

    Args:
        cache: shared with the other program of the diff.
        snapshot: what was recorded.
    """

    def __init__(self, cache: ObjectCache, snapshot: Snapshot) -> None:
        self.cache = cache
        self.snapshot = snapshot
        self.unplaced = {Place(u, s): reason for u, s, reason in snapshot.unplaced}

    @cached_property
    def image(self) -> ElfFile:
        """The loadable part of the output."""
        return ElfFile(self.cache.store.image(self.snapshot), self.snapshot.path)

    def record(self, unit: int) -> ObjectRecord:
        """The record of a unit's object."""
        return self.cache.record(self.snapshot.units[unit].blob)

    def object(self, unit: int) -> ElfFile:
        """A unit's object."""
        return self.cache.object(self.snapshot.units[unit].blob, self.snapshot.units[unit].name)

    def unit_name(self, unit: int) -> str:
        """A unit's name through time."""
        return self.snapshot.units[unit].name

    def address(self, place: Place) -> int | None:
        """Link-time address of an input section; None when it is not in the output."""
        return self.snapshot.placements.get((place.unit, place.section))

    @property
    def cpu(self) -> Cpu:
        """What the output runs on."""
        return of(self.image.machine)

    @cached_property
    def tables(self) -> DynamicTables:
        """What the dynamic linker reads of the output."""
        return DynamicTables(self.image)

    @cached_property
    def imports(self) -> frozenset[str]:
        """Names that come from libraries; those the linker copied into the program (R_*_COPY) too."""
        copied = {x.symbol for x in self.tables.relocations.values() if x.type == self.cpu.relocations.COPY}
        return frozenset(s.name for s in self.tables.symbols if s.name and not s.defined) | copied

    @cached_property
    def is_library(self) -> bool:
        """Whether the output is a shared library: position-independent and without an interpreter of its own."""
        flags = dict(self.image.dynamic).get(c.DT_FLAGS_1, 0)
        dynamic = self.image.type == c.ET_DYN and not flags & c.DF_1_PIE
        return dynamic and not any(s.type == c.PT_INTERP for s in self.image.segments)

    @cached_property
    def binds_itself(self) -> bool:
        """Whether the names it defines always mean its own definitions (-Bsymbolic, executables)."""
        tags = dict(self.image.dynamic)
        symbolic = c.DT_SYMBOLIC in tags or bool(tags.get(c.DT_FLAGS, 0) & c.DF_SYMBOLIC)
        return not self.is_library or symbolic

    def interposable(self, name: str) -> bool:
        """Whether another module may define `name` in this library's stead."""
        known = self.tables.by_name.get(name)
        if self.binds_itself or known is None or not known.defined:
            return False
        definition = self.globals.get(name)
        function = definition is not None and definition.type == c.STT_FUNC
        if function and "-Bsymbolic-functions" in self.snapshot.arguments:
            return False
        return definition is None or definition.visibility == c.STV_DEFAULT

    @cached_property
    def options(self) -> LinkOptions:
        """What the link's options say of the meaning of names."""
        return link_options(self.snapshot.arguments)

    def meant(self, name: str) -> str:
        """The name that an undefined `name` of an object came to mean (`--wrap`, ld(1))."""
        wrapped = self.options.wrapped
        if name in wrapped:
            return f"__wrap_{name}"
        if name.startswith("__real_") and name.removeprefix("__real_") in wrapped:
            return name.removeprefix("__real_")
        return name

    @cached_property
    def globals(self) -> dict[str, Definition]:
        """Who defines each global or weak name: what is in the output before what is not, strong before weak."""
        self.cache.load_records([u.blob for u in self.snapshot.units])
        found: dict[str, tuple[tuple[int, int], Definition]] = {}
        for unit in range(len(self.snapshot.units)):
            for s in self.record(unit).symbols:
                if s.binding == c.STB_LOCAL:
                    continue
                place: Place | None = None
                if s.section == c.SHN_COMMON:
                    common = self.snapshot.commons.get(s.name)
                    address, value = (common[0] if common else None), 0
                else:
                    place = Place(unit, s.section)
                    base = self.address(place)
                    address, value = (None if base is None else base + s.value), s.value
                rank = (int(address is not None), {c.STB_WEAK: 0}.get(s.binding, 1))
                if s.name not in found or rank > found[s.name][0]:
                    definition = Definition(s.name, place, value, s.size, s.type, s.binding, address, s.visibility)
                    found[s.name] = rank, definition
        return {name: definition for name, (_, definition) in found.items()}
