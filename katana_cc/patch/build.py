"""From a diff to a patch object: what has to come along, and what each relocation has to say in it.

Theory of operation.  The changed functions are carried, and whatever new they refer to, transitively (`carrying.py`);
`references.py` says what each of their relocations means in the target, `edits.py` rewrites data where it is,
`unwinding.py` brings along frames and handlers.  Replacement records come last, when it is fixed what is carried.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from katana_cc.diff.engine import Changes, Diff
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import by_weight, verdict_of
from katana_cc.diff.view import Kind
from katana_cc.dwarf import sections as dwarf
from katana_cc.elf import constants as c
from katana_cc.patch.brought import layouts, things
from katana_cc.patch.carrying import Carrier
from katana_cc.patch.edits import Edits
from katana_cc.patch.model import (
    Hook,
    Identity,
    PatchObject,
    PatchSymbol,
    Reliance,
    Replacement,
    Verdict,
)
from katana_cc.patch.moves import moved, staying, types
from katana_cc.patch.references import References
from katana_cc.patch.sources import Origin, with_sources
from katana_cc.patch.tracing import address_map
from katana_cc.patch.unwinding import Unwinding


def build_patch(diff: Diff, changes: Changes, identity: Identity) -> PatchObject:
    """The patch object for a diff; with a refused verdict it carries the reasons only."""
    builder = _Builder(diff, changes)
    patch = builder.build(identity)
    reasons = by_weight(dict.fromkeys(changes.reasons))
    verdict = verdict_of(reasons)
    if verdict is Verdict.REFUSED:
        return PatchObject(identity, verdict, reasons)
    return replace(patch, verdict=verdict, reasons=reasons)


class _Builder:
    def __init__(self, diff: Diff, changes: Changes) -> None:
        self.diff = diff
        self.changes = changes
        self.old, self.new = diff.old, diff.new
        self.carrier = Carrier(diff, changes)
        self.references = References(self.carrier)
        self.unwinding = Unwinding(self.carrier, self.references)
        self.edits = Edits(self.carrier, self.references)

    # The whole

    def build(self, identity: Identity) -> PatchObject:
        """Carry everything; reasons found on the way are added to the changes."""
        roots = sorted(self.changes.replaced)
        for place in roots:
            self.carrier.carry(place)
        for place in self.changes.hooks:
            self.carrier.carry(place)
        transforms = [*moved(self.carrier)]
        self._drain()
        edits = [self.edits.whole(new, old) for new, old in sorted(self.changes.edits.items())]
        for new, (old, offsets) in sorted(self.changes.pointers.items()):
            edits += [self.edits.pointer(new, old, at) for at in offsets]
        edits += [self.edits.untouched(m.old) for _, m in sorted(self.changes.moved.items()) if m.takes_nothing]
        edits += self.edits.initialisers(self.changes.initialisers, self.changes.taken)
        for new, old in sorted(self.changes.retargeted.items()):
            edits += self.edits.retargeted(new, old)
        fixed = [n for n, e in enumerate(edits) if e.expected in self.edits.fixed]
        self._drain()
        self.unwinding.finish()
        replacements = tuple(self._replacement(place, self.changes.replaced[place]) for place in roots)
        for pool in self.carrier.pools.values():
            self.carrier.sections[pool.section] = pool.finish()
        sections = tuple(s for s in self.carrier.sections if s is not None)
        assert len(sections) == len(self.carrier.sections)
        number = {place: n for n, place in enumerate(roots)}
        reliances = tuple(
            Reliance(number[r.caller], number[r.callee], r.basis, r.through) for r in self.changes.reliances
        )
        patch = PatchObject(
            identity, Verdict.SAFE, (), sections, tuple(self.carrier.symbols), replacements, tuple(edits), reliances,
            (*transforms, *staying(self.diff), *types(self.diff)),
            tuple(Hook(h.kind, h.name, self._function(place)) for place, h in self.changes.hooks.items()),
            things(self.carrier), layouts(self.carrier),
        )  # fmt: skip
        patch = replace(patch, addresses=address_map(self.carrier, patch, fixed))
        return with_sources(patch, self._origins())

    def _origins(self) -> Iterator[Origin]:
        """Where each carried section comes from, with debug information of the objects that have code among them."""
        numbers = self.carrier.carried
        units = {p.unit: partial(self._existing, p.unit) for p, n in numbers.items() if self._is_code(n)}
        for place, n in numbers.items():
            if place.unit in units:
                info = self.diff.debug.info(self.new, place.unit)
                yield Origin(n, info, place.section, units[place.unit])

    def _is_code(self, number: int) -> bool:
        section = self.carrier.sections[number]
        return section is not None and bool(section.flags & c.SHF_EXECINSTR)

    def _existing(self, unit: int, place: dwarf.Place) -> tuple[PatchSymbol, int] | None:
        """What lies in the target where a variable of an object lies: the old program's, if it stays as it is."""
        new = Place(unit, place.section)
        view = self.diff.view(self.new, unit)
        if not 0 < place.section < c.SHN_LORESERVE or view.kinds.get(place.section) not in (Kind.DATA, Kind.CONST):
            return None
        old = self.diff.correlation.old_place(new)
        if old is None or new in self.changes.moved or new in self.changes.recreated or old in self.old.unplaced:
            return None
        if new in self.diff.correlation.ambiguous or not self.old.address(old):
            return None
        return self.carrier.symbols[self.references.existing(old)], place.offset

    def _drain(self) -> None:
        while self.carrier.queue:
            place = self.carrier.queue.pop()
            number = self.carrier.carried[place]
            section = self.references.translated(place, self.carrier.sections[number])
            self.carrier.sections[number] = section
            if section.flags & c.SHF_EXECINSTR:
                self.unwinding.add(place)

    # Replacements

    def _replacement(self, place: Place, old_place: Place) -> Replacement:
        view, old_view = self.carrier.view(place), self.diff.view(self.old, old_place.unit)
        name = view.label(place.section)
        jump = self.old.cpu.code.JUMP_SIZE
        address, size, digest = self._old_range(old_place, jump if place in self.changes.padded else 0)
        parts = tuple(
            self._old_range(Place(old_place.unit, n))
            for n in old_view.parts.get(old_place.section, ())
            if self.old.address(Place(old_place.unit, n)) is not None
        )
        return Replacement(name, address, size, digest, self._function(place), parts)

    def _function(self, place: Place) -> int:
        """The symbol of a carried function."""
        first = self.carrier.view(place).symbols_in[place.section][0]
        number = self.carrier.carried[place]
        return self.carrier.symbol(PatchSymbol(first.name, c.STB_LOCAL, first.type, number, first.value, first.size))

    def _old_range(self, place: Place, least: int = 0) -> tuple[int, int, bytes]:
        """Address, size and digest of old code, with the padding behind it up to `least` bytes."""
        address = self.old.address(place)
        assert address is not None
        size = self.diff.view(self.old, place.unit).elf.sections[place.section].size
        size = max(size, least)
        return address, size, hashlib.sha256(self.old.image.read(address, size)).digest()
