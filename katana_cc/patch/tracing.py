"""The map of addresses of a patch in the making (`addresses.py`): what of the new output is what of the old one.

Theory of operation.  Every section that the new link placed is one of these:

    carried        the patch brings it; the map says which of its sections that is
    the same thing as one of the old build that stays there: a stretch, if both have one size
    anything else  not known; a border that no stretch goes across

Which is the same thing was decided by the correlation, and is not asked anew.  What differs and is left as it is, for
the reason that the diff gives, is noted: who wants to replace it later has to know its old bytes.  Literals and jump
tables have no identity; a patch never refers to an old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from katana_cc.diff.engine import Changes, Diff
from katana_cc.diff.program import Place, Program
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.elf import constants as c
from katana_cc.patch.addresses import AddressMap, Altered, Lying, Named, Shape, Stretch, gathered, shape_of
from katana_cc.patch.carrying import Carrier
from katana_cc.patch.model import PatchObject
from katana_cc.recorder.record import SectionRecord

_KINDS: Final = (Kind.FUNCTION, Kind.CODE, Kind.CONST, Kind.DATA, Kind.THREAD)
_PADDING: Final = 64  # bytes between neighbours; what lies further apart is not laid out by alignment


def address_map(carrier: Carrier, po: PatchObject, fixed: Iterable[int]) -> AddressMap:
    """The map for a patch object whose sections, replacements and edits are complete.

    Args:
        fixed: indices of the data edits that hold old addresses without a relocation.
    """
    return _Tracer(carrier).traced(po, tuple(sorted(fixed)))


class _Tracer:
    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.diff: Diff = carrier.diff
        self.changes: Changes = carrier.changes
        self.old, self.new = self.diff.old, self.diff.new
        self._sections: dict[str, dict[int, SectionRecord]] = {}
        self._changed = {new for _, new in self.diff.correlation.changed_units}
        self._changed.update(self.diff.correlation.new_units)
        changes = self.changes
        self._rewritten = {*changes.edits, *changes.pointers, *changes.initialisers, *changes.retargeted}
        self._stays_not = {*changes.moved, *changes.recreated, *changes.replaced, *changes.renewed}
        self._stays_not |= self.diff.correlation.ambiguous

    def traced(self, po: PatchObject, fixed: tuple[int, ...]) -> AddressMap:
        stretches: list[Stretch] = []
        thread: list[Stretch] = []
        barriers: list[int] = []
        carried: list[Lying] = []
        altered: list[Altered] = []
        empty: list[int] = []
        bases = self._thread_base(self.new), self._thread_base(self.old)
        for (unit, number), address in self.new.snapshot.placements.items():
            place = Place(unit, number)
            section = self._section(self.new, place)
            if section is None or not section.flags & c.SHF_ALLOC:
                continue
            if place in self.carrier.carried:
                if self._kind(place) in _KINDS:
                    carried.append(Lying(self.carrier.carried[place], address, self._before(place)))
                barriers.append(address)
                continue
            old = self._stays(place, section)
            if section.flags & c.SHF_TLS:
                if old is not None and None not in bases:
                    thread.append(Stretch(address - (bases[0] or 0), section.size, old - (bases[1] or 0)))
            elif old is not None and section.size:
                stretches.append(Stretch(address, section.size, old))
                altered += self._altered(place, address)
            elif section.size:
                barriers.append(address)
            elif self._is_named(place):
                empty.append(address)
        for name, (address, size) in self.new.snapshot.commons.items():
            before = self.old.snapshot.commons.get(name)
            if name in self.carrier.commons:
                carried.append(Lying(self.carrier.commons[name], address, 0))
            elif before is not None and before[1] == size:
                stretches.append(Stretch(address, size, before[0]))
        named = [Named(n, at, self.old.snapshot.linker_symbols.get(n, 0)) for n, at in self._linker_symbols()]
        named += [Named("", at, 0) for at in dict.fromkeys(empty)]
        return AddressMap(
            gathered(stretches, [*barriers, *empty], _PADDING),
            gathered(thread, (), _PADDING),
            tuple(sorted(carried)),
            tuple(sorted(named)),
            tuple(sorted(altered)),
            tuple(self._shapes(po)),
            fixed,
        )

    def _linker_symbols(self) -> list[tuple[str, int]]:
        return [(n, at) for n, at in self.new.snapshot.linker_symbols.items() if at > 0]

    @staticmethod
    def _thread_base(program: Program) -> int | None:
        return next((s.vaddr for s in program.image.segments if s.type == c.PT_TLS), None)

    def _section(self, program: Program, place: Place) -> SectionRecord | None:
        blob = program.snapshot.units[place.unit].blob
        if blob not in self._sections:
            self._sections[blob] = {s.number: s for s in program.record(place.unit).sections}
        return self._sections[blob].get(place.section)

    def _is_named(self, place: Place) -> bool:
        """Whether an empty section is called something, so that it may be meant by its address."""
        return any(s.section == place.section and s.name for s in self.new.record(place.unit).symbols)

    def _kind(self, place: Place) -> Kind | None:
        return self.carrier.view(place).kinds.get(place.section)

    def _before(self, place: Place) -> int:
        """Where the old build has a thing of the name of what is carried; 0: nowhere."""
        move = self.changes.moved.get(place)
        old = self.changes.replaced.get(place) or (move.old if move else self.diff.correlation.old_place(place))
        if place in self.changes.renewed or old is None:
            return 0
        return self.old.address(old) or 0

    def _stays(self, place: Place, section: SectionRecord) -> int | None:
        """The old address of what the patch leaves where it is; None when it does not, or when it is not told."""
        if section.flags & c.SHF_MERGE or place in self._stays_not:
            return None
        if place.unit in self._changed and self._kind(place) not in _KINDS:
            return None
        old = self.diff.correlation.old_place(place)
        if old is None:
            return self._was_common(place)
        before = self._section(self.old, old)
        if before is None or before.size != section.size or old in self.old.unplaced:
            return None
        return self.old.address(old)

    def _was_common(self, place: Place) -> int | None:
        """The old address of a variable that was SHN_COMMON and has a section now (`references.py`)."""
        if place.unit not in self._changed or self._kind(place) is not Kind.DATA:
            return None
        for s in self.carrier.view(place).symbols_in.get(place.section, ()):
            before = self.old.globals.get(s.name) if s.binding != c.STB_LOCAL else None
            if before is not None and before.place is None and s.value == 0 and before.size == s.size:
                return before.address
        return None

    def _altered(self, place: Place, address: int) -> Iterator[Altered]:
        """What has other bytes than before and is left as it is."""
        old = self.diff.correlation.old_place(place)
        if place.unit not in self._changed or place in self._rewritten or old is None:
            return
        before, after = self.diff.view(self.old, old.unit), self.carrier.view(place)
        try:
            same = _blank(before, old.section) == _blank(after, place.section)
        except KeyError:  # a relocation of an unknown type
            same = False
        if not same:
            yield Altered(address, self._shape(old, self._section(self.old, old)))

    def _shape(self, old: Place, section: SectionRecord | None, size: int = 0) -> Shape:
        """The shape of `size` bytes of the old output from the beginning of an old section on; 0: of all of it."""
        address = self.old.address(old)
        assert address is not None
        size = size or (section.size if section is not None else 0)
        if section is None or section.type == c.SHT_NOBITS:
            return shape_of(bytes(size), ())
        view, extents = self.diff.view(self.old, old.unit), self.old.cpu.relocations.EXTENTS
        blanks = []
        for r in view.elf.relocations(old.section):
            extent = extents.get(r.type)
            if extent is not None:
                blanks.append((r.offset - extent.before, extent.before + extent.after))
        return shape_of(self.old.image.read(address, size), blanks)

    def _shapes(self, po: PatchObject) -> Iterator[tuple[Shape, ...]]:
        for place, r in zip(sorted(self.changes.replaced), po.replacements, strict=True):
            old = self.changes.replaced[place]
            parts = [Place(old.unit, n) for n in self.diff.view(self.old, old.unit).parts.get(old.section, ())]
            placed = [old, *(p for p in parts if self.old.address(p) is not None)]
            sizes = [size for _, size, _, _ in r.ranges]
            yield tuple(self._shape(p, self._section(self.old, p), size) for p, size in zip(placed, sizes, strict=True))


def _blank(view: ObjectView, number: int) -> bytes:
    if view.elf.sections[number].type == c.SHT_NOBITS:
        return bytes(view.elf.sections[number].size)
    return view.relocations.masked(view.data(number), view.elf.relocations(number), relaxed=True)
