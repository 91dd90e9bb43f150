"""A linked output, read back: what lies at an address, and what each relocated field of it leads to.

Theory of operation.  The relocation entry says how a field was made, and the linked bytes say what came of it: of
`S + A - P` all is known but S, so S is where the field leads *in this output*.  It is compared with the address of the
symbol that the entry names; where the two agree, the symbol is what is meant.  Where they do not, the linker has put
something between: a stub of the procedure linkage table or a slot of the global offset table, which are followed to
the name they are bound to; another definition, which is looked up by its address; or it has rewritten the instruction
(psABI B.2), which is read accordingly.

So tables made by the linker (.plt, .got, .dynsym and the like) need no comparison of their own: what they mean is part
of the meaning of each field that leads through them.

Literals are merged by linkers and have no address of their own: their contents are taken from the object.  Fields whose
value says nothing of a single place (general-dynamic thread-locals, GOT offsets) are taken as their entry
says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

from katana_cc.cpu.field import read
from katana_cc.diff.program import Definition, Place, Program
from katana_cc.diff.view import UNNAMED_SECTIONS, Kind, ObjectView
from katana_cc.elf import constants as c
from katana_cc.elf.reader import Relocation
from katana_cc.elf.versions import split
from katana_cc.errors import FormatError
from katana_cc.proof.model import Absolute, Content, Field, Named, Target
from katana_cc.recorder.record import literal_at


class _Meaning(NamedTuple):
    """What a symbol of an object means: the thing, the offset in it, the address of that, and whether the symbol is a
    section's."""

    target: Target
    base: int
    address: int | None
    by_section: bool


class Image:
    """One output and its objects.

    Args:
        program: the snapshot, with its objects and their places.
        view: gives the view of a unit's object.
    """

    def __init__(self, program: Program, view: Callable[[Program, int], ObjectView]) -> None:
        self.program = program
        self.known = program.cpu.relocations
        self.code = program.cpu.code
        self._view = view
        self._fields: dict[Place, tuple[Field, ...]] = {}
        self._contents: dict[int, frozenset[int]] = {}
        self._meanings: dict[tuple[int, int], _Meaning] = {}
        self._ends: dict[Place, Mapping[int, int]] = {}
        self._stubs: dict[int, str] = {}

    def view(self, place: Place) -> ObjectView:
        """The object that holds a place."""
        return self._view(self.program, place.unit)

    def kind(self, place: Place) -> Kind | None:
        """What a place holds."""
        return self.view(place).kinds.get(place.section)

    def is_literal(self, place: Place) -> bool:
        """Whether a place holds literals."""
        return self._may_be_content(place) and self.kind(place) is Kind.LITERAL

    def is_unnamed(self, place: Place) -> bool:
        """Whether a place holds read-only data without a name."""
        return self._may_be_content(place) and self.kind(place) is Kind.ANONYMOUS

    def _may_be_content(self, place: Place) -> bool:
        """Whether a place may hold what has no identity, as its object's record tells: most objects are not opened for
        what others refer to in them."""
        found = self._contents.get(place.unit)
        if found is None:
            sections = self.program.record(place.unit).sections
            found = self._contents[place.unit] = frozenset(
                s.number for s in sections if s.flags & c.SHF_MERGE or s.name.startswith(UNNAMED_SECTIONS)
            )
        return place.section in found or bool(self.program.record(place.unit).problem)

    def label(self, place: Place) -> str:
        """The name of what a place holds."""
        return self.view(place).label(place.section)

    def names(self, place: Place) -> list[str]:
        """The names of all symbols in a place."""
        return [s.name for s in self.view(place).symbols_in.get(place.section, ())]

    def size(self, place: Place) -> int:
        """Bytes of a place."""
        return self.view(place).elf.sections[place.section].size

    def data(self, place: Place) -> bytes:
        """The object's bytes of a place; zeros for .bss."""
        section = self.view(place).elf.sections[place.section]
        return bytes(section.size) if section.type == c.SHT_NOBITS else self.view(place).data(place.section)

    def linked(self, place: Place) -> bytes | None:
        """The output's bytes of a place; None when it is not in the output, or takes no room in it (.bss, .tbss)."""
        address = self.program.address(place)
        if address is None or self.view(place).elf.sections[place.section].type == c.SHT_NOBITS:
            return None
        return self.program.image.read(address, self.size(place))

    def is_there(self, place: Place) -> bool:
        """Whether a place is in the output, or may be: folded with another, or not confirmed."""
        program = self.program
        if program.address(place) is not None or place in program.unplaced or program.options.icf:
            return True
        return not self._folded.keys().isdisjoint(self.names(place))

    def survivor(self, target: Target) -> Target:
        """What is in the output instead of something that was folded with another."""
        if isinstance(target, Place) and self.program.address(target) is None:
            address = next((self._folded[n] for n in self.names(target) if n in self._folded), None)
            found = None if address is None else self.at(address)
            return target if found is None else found[0]
        return target

    @cached_property
    def _folded(self) -> dict[str, int]:
        return {name: a for a, names in self.program.snapshot.folded.items() for name in names}

    # What lies at an address

    @cached_property
    def _placed(self) -> tuple[list[int], list[tuple[int, Place]]]:
        return self._ranges(threads=False)

    @cached_property
    def _placed_threads(self) -> tuple[list[int], list[tuple[int, Place]]]:
        return self._ranges(threads=True)

    def _ranges(self, *, threads: bool) -> tuple[list[int], list[tuple[int, Place]]]:
        """Starts, and ends with places; .tbss takes no room, so thread-locals are kept apart."""
        places = self.program.snapshot.placements
        found = []
        for unit in range(len(self.program.snapshot.units)):
            for s in self.program.record(unit).sections:
                start = places.get((unit, s.number))
                if start is not None and bool(s.flags & c.SHF_TLS) is threads:
                    found.append((start, start + s.size, Place(unit, s.number)))
        found.sort()
        return [start for start, _, _ in found], [(end, place) for _, end, place in found]

    @cached_property
    def _named(self) -> dict[int, str]:
        made = {a: n for n, a in self.program.snapshot.linker_symbols.items()}
        return made | {a: n for n, (a, _) in self.program.snapshot.commons.items()}

    @cached_property
    def thread_segment(self) -> tuple[int, int]:
        """Address of the thread-local template, and its offset from the thread pointer."""
        found = next((s for s in self.program.image.segments if s.type == c.PT_TLS), None)
        if found is None:
            return 0, 0
        return found.vaddr, self.known.thread_offset(found.vaddr, found.memory_size, found.alignment)

    def at(self, address: int) -> tuple[Target, int] | None:
        """What lies at an address, and how far before it that starts."""
        if (found := _within(self._placed, address)) is not None:
            return found
        if address in self._named:
            return Named(self._named[address]), 0
        for name, (start, size) in self.program.snapshot.commons.items():
            if start <= address < start + size:
                return Named(name), address - start
        return None

    def thread_at(self, address: int) -> tuple[Target, int] | None:
        """Which thread-local's initial value lies at an address."""
        return _within(self._placed_threads, address)

    def defined(self, name: str) -> tuple[Target, int, int | None]:
        """What a global name means: the thing, the offset in it, and the address of that (None when not known)."""
        found: Definition | None = self.program.globals.get(name)
        if found is None:
            return Named(name), 0, self.program.snapshot.linker_symbols.get(name)
        if found.place is None:
            return Named(name), 0, found.address
        return found.place, found.value, found.address

    def _stub(self, address: int) -> str:
        """The import that a stub of the procedure linkage table jumps to; "" when there is no stub."""
        if address not in self._stubs:
            self._stubs[address] = self._read_stub(address)
        return self._stubs[address]

    def _read_stub(self, address: int) -> str:
        try:
            code = self.program.image.read(address, 16)
        except FormatError:
            return ""
        slot = self.code.stub_slot(address, code)
        bound = None if slot is None else self.program.tables.relocations.get(slot)
        return "" if bound is None else bound.symbol

    # What a field leads to

    def fields(self, place: Place) -> tuple[Field, ...]:
        """The relocated fields of a place, by offset."""
        found = self._fields.get(place)
        if found is None:
            elf = self.view(place).elf
            linked = self.linked(place)
            rows = sorted(elf.relocations(place.section))
            found = tuple([self._field(place, r, linked) for r in rows if r.type != self.known.NONE])
            self._fields[place] = found
        return found

    def _field(self, place: Place, r: Relocation, linked: bytes | None) -> Field:
        key = place.unit, r.symbol
        meaning = self._meanings.get(key)
        if meaning is None:
            meaning = self._meanings[key] = self._meaning(*key)
        target, base, address, by_section = meaning
        if isinstance(target, Absolute):
            return Field(r.offset, r.type, target, r.addend, 0)
        if isinstance(target, Place) and self.is_literal(target):
            start = self.start(place, r, by_section)
            where = base + r.addend + start if by_section else base
            return Field(r.offset, r.type, self.literal(target, where), -start, start)
        # What was folded with another that is equal has no address of its own: its name still tells what is meant.
        if linked is not None and not (isinstance(target, Place) and address is None):
            where_linked = self._led_to(place, r, linked)
            if where_linked is not None and where_linked != address:
                threads = r.type in self.known.THREAD_OFFSET
                other = self.thread_at(where_linked) if threads else self._instead(where_linked, target)
                if other is not None:
                    target, base = other
        start = self.start(place, r, by_section) if isinstance(target, Place) and self.is_unnamed(target) else 0
        return Field(r.offset, r.type, target, base + r.addend, start)

    def _meaning(self, unit: int, number: int) -> _Meaning:
        symbol = self.view(Place(unit, 0)).elf.symbols[number]
        target: Target
        if symbol.section == c.SHN_ABS:
            target, base, address = Absolute(symbol.value), 0, None
        elif 0 < symbol.section < c.SHN_LORESERVE:
            target, base = Place(unit, symbol.section), symbol.value
            start = self.program.address(target)
            address = None if start is None else start + base
            if symbol.binding != c.STB_LOCAL and (kept := self.program.globals.get(symbol.name)) and kept.place:
                target, base, address = kept.place, kept.value, kept.address
        else:
            name = symbol.name if symbol.section == c.SHN_COMMON else self.program.meant(symbol.name)
            target, base, address = self.defined(name)
        return _Meaning(target, base, address, symbol.type == c.STT_SECTION)

    def literal(self, place: Place, offset: int) -> Content:
        """The literal at an offset of a mergeable section."""
        section = self.view(place).elf.sections[place.section]
        return Content(literal_at(self.data(place), section, offset) if 0 <= offset < section.size else b"")

    def start(self, place: Place, r: Relocation, by_section: bool) -> int:
        """What to add to S + A to get where the thing meant begins (see `Field`)."""
        if not by_section:
            return -r.addend
        if r.type not in self.known.PC_RELATIVE:
            return 0
        if not self.view(place).elf.sections[place.section].flags & c.SHF_EXECINSTR:
            return -r.offset  # a table of distances counts from its start
        if place not in self._ends:
            self._ends[place] = self.code.field_ends(self.data(place))
        return self._ends[place].get(r.offset, r.offset + self.known.BIAS) - r.offset

    def _led_to(self, place: Place, r: Relocation, linked: bytes) -> int | None:
        """S as the linked bytes have it; None when they do not tell."""
        base = self.program.address(place)
        assert base is not None
        at = base + r.offset
        if r.type in self.known.PLAIN:
            value = self._read(r, linked) - r.addend
            return value + at if r.type in self.known.PC_RELATIVE else value
        if r.type == self.known.ABSOLUTE[8]:
            return self._slot(at, r.addend)
        if r.type in self.known.GOT_RELATIVE:
            return self._through_slot(place, r, linked, at)
        if r.type in self.known.THREAD_OFFSET:
            vaddr, offset = self.thread_segment
            return vaddr - offset + self._read(r, linked) - r.addend
        return None

    def _slot(self, address: int, addend: int) -> int | None:
        """S of a pointer that the linker or the dynamic linker writes at `address`; None when bound by name."""
        dynamic = self.program.tables.relocations.get(address)
        if dynamic is None:
            return int.from_bytes(self.program.image.read(address, 8), "little") - addend
        return dynamic.addend - addend if dynamic.type == self.known.LOADED else None

    def _through_slot(self, place: Place, r: Relocation, linked: bytes, at: int) -> int | None:
        slot = self.code.slot_of(self.data(place), linked, r, at)
        if slot is None:
            return self.code.relaxed_target(linked, r, at)
        try:
            return self._slot(slot, 0)
        except FormatError:
            return None

    def _read(self, r: Relocation, linked: bytes) -> int:
        return read(self.known.relocation_kind(r.type, ""), linked, r.offset)

    def _instead(self, address: int, expected: Target) -> tuple[Target, int] | None:
        """What is meant by an address that is not the named symbol's; None: that the symbol is."""
        if name := self._stub(address):
            if isinstance(expected, Named) and split(expected.name)[0] == name:
                return None
            target, base, _ = self.defined(name)
            return target, base
        found = self.at(address)
        if found is None or (isinstance(expected, Named) and isinstance(found[0], Named)):
            return None
        return found


def _within(ranges: tuple[list[int], list[tuple[int, Place]]], address: int) -> tuple[Place, int] | None:
    starts, places = ranges
    index = bisect_right(starts, address) - 1
    if index < 0 or address >= places[index][0]:
        return None
    return places[index][1], address - starts[index]
