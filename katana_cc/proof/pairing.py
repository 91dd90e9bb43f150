"""Which old place a place of the new output stands for, by names alone.

Theory of operation.  The diff decides what is which with everything it knows: debug information, users, canonical keys.
The proof must not repeat its mistakes, so it pairs by the little that cannot be mistaken:

1. A global or weak name means one thing in each output.
2. In two objects of one name, a function, constant or section that is the only one of its name (numbers that compilers
   add left out) on either side is itself; sections that hold several things, or none with a name, pair in order.
3. In objects with the same allocated contents, each section is itself.

Local variables are not paired here, nor are several functions of one name: what they stand for follows from their uses
(`judge.py`).  A pair made here may be wrong only in a way that makes the two differ, and then it is a finding, not
something missed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Final

from katana_cc.diff.program import Place
from katana_cc.diff.view import Kind
from katana_cc.elf import constants as c
from katana_cc.proof.image import Image
from katana_cc.recorder.record import stem

_ALIKE: Final = 0.5  # two objects of different names that share half of what they define are one, renamed
WHOLE: Final = (Kind.CODE, Kind.STARTUP, Kind.OTHER)
_BY_NAME: Final = (Kind.FUNCTION, Kind.CONST)


class Pairing:
    """New place → old place."""

    def __init__(self, old: Image, new: Image) -> None:
        self.old = old
        self.new = new
        self._known: dict[Place, Place | None] = {}
        self._tables: dict[int, dict[int, int]] = {}
        self._defined: dict[tuple[bool, int], frozenset[str]] = {}

    def old_of(self, place: Place) -> Place | None:
        """The old place that a new one stands for; None when names do not tell, or it was not in the old output."""
        if place not in self._known:
            self._known[place] = next((o for o in self._candidates(place) if self.old.is_there(o)), None)
        return self._known[place]

    def _candidates(self, place: Place) -> Iterable[Place]:
        for name, offset in self._global_names.get(place, ()):
            before = self.old.program.globals.get(name)
            if before and before.place and before.value == offset:
                yield before.place
        unit = self.units.get(place.unit)
        if unit is None:
            return
        if place.unit in self.same:
            yield Place(unit, place.section)
            return
        section = self._table(place.unit, unit).get(place.section)
        if section is not None:
            yield Place(unit, section)

    @cached_property
    def _global_names(self) -> dict[Place, list[tuple[str, int]]]:
        """New place → the global names that mean something in it, with the offset."""
        found: dict[Place, list[tuple[str, int]]] = {}
        for name, definition in self.new.program.globals.items():
            if definition.place is not None:
                found.setdefault(definition.place, []).append((name, definition.value))
        return found

    def _table(self, new_unit: int, old_unit: int) -> dict[int, int]:
        if new_unit not in self._tables:
            olds, news = self._identities(self.old, old_unit), self._identities(self.new, new_unit)
            self._tables[new_unit] = {
                n: o
                for identity, several in news.items()
                if len(several) == len(olds.get(identity, ())) and (len(several) == 1 or not identity[0])
                for n, o in zip(several, olds[identity], strict=True)
            }
        return self._tables[new_unit]

    @staticmethod
    def _identities(image: Image, unit: int) -> dict[tuple[bool, str, str], list[int]]:
        """(named?, kind, name) → sections."""
        found: dict[tuple[bool, str, str], list[int]] = {}
        view = image.view(Place(unit, 0))
        for number, kind in view.kinds.items():
            shared = kind in WHOLE or view.is_shared(number) or not view.symbols_in.get(number)
            if shared and kind is not Kind.ANONYMOUS:
                identity = (False, kind.name, view.elf.sections[number].name)
            elif kind in _BY_NAME:
                identity = (True, kind.name, stem(view.label(number)))
            else:
                continue
            found.setdefault(identity, []).append(number)
        return found

    # Objects

    @cached_property
    def units(self) -> dict[int, int]:
        """New unit → old unit."""
        olds, news = self.old.program.snapshot.units, self.new.program.snapshot.units
        exact = {(u.name, u.blob): i for i, u in enumerate(olds)}
        found = {i: exact.pop((u.name, u.blob)) for i, u in enumerate(news) if (u.name, u.blob) in exact}
        left = set(range(len(olds))) - set(found.values())
        for exactly in (True, False):
            scored = []
            alike = self._alike(left, exactly=exactly)
            for n in range(len(news)):
                if n not in found:
                    for o in {o for mark in self._marks(self.new, n, exactly=exactly) for o in alike.get(mark, ())}:
                        share = self._share(o, n)
                        if exactly or share >= _ALIKE:
                            scored.append((-share, n, o))
            for _, n, o in sorted(scored):
                if n not in found and o in left:
                    found[n] = o
                    left.remove(o)
        return found

    def _alike(self, olds: Iterable[int], *, exactly: bool) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for o in olds:
            for mark in self._marks(self.old, o, exactly=exactly):
                found.setdefault(mark, []).append(o)
        return found

    def _marks(self, image: Image, unit: int, *, exactly: bool) -> Iterable[str]:
        """What two objects must have one of in common to be compared at all."""
        known = image.program.snapshot.units[unit]
        return (known.name.partition("#")[0],) if exactly else (*self._stems(image, unit), f"\0{known.blob}")

    def _share(self, old: int, new: int) -> float:
        if self.old.program.snapshot.units[old].blob == self.new.program.snapshot.units[new].blob:
            return 2.0
        a, b = self._stems(self.old, old), self._stems(self.new, new)
        return len(a & b) / len(a | b) if a | b else 0.0

    def _stems(self, image: Image, unit: int) -> frozenset[str]:
        key = image is self.new, unit
        if key not in self._defined:
            self._defined[key] = frozenset(stem(s.name) for s in image.program.record(unit).symbols)
        return self._defined[key]

    @cached_property
    def same(self) -> frozenset[int]:
        """New units whose allocated sections, relocations and symbols are those of their old unit, byte for byte."""
        return frozenset(n for n, o in self.units.items() if self._is_same(o, n))

    def _is_same(self, old: int, new: int) -> bool:
        if self.old.program.snapshot.units[old].blob == self.new.program.snapshot.units[new].blob:
            return True
        a, b = self.old.program.object(old), self.new.program.object(new)
        sections = [
            [(s.number, s.name, s.type, s.flags, s.size, s.entry_size) for s in elf.sections if s.flags & c.SHF_ALLOC]
            for elf in (a, b)
        ]
        if sections[0] != sections[1] or a.symbols != b.symbols:
            return False
        return all(
            a.contents(a.sections[n]) == b.contents(b.sections[n]) and a.relocation_rows(n) == b.relocation_rows(n)
            for n, *_ in sections[0]
        )

    @cached_property
    def gone(self) -> list[int]:
        """Old units that no new one stands for."""
        return sorted(set(range(len(self.old.program.snapshot.units))) - set(self.units.values()))
