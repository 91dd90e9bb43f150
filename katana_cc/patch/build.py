"""From a diff to a patch object: what has to come along, and what each relocation has to say in it.

Theory of operation.  The changed functions are carried, and whatever new they refer to, transitively (`carrying.py`);
`references.py` says what each of their relocations means in the target, `edits.py` rewrites data where it is,
`unwinding.py` brings along frames and handlers.  Replacement records come last, when it is fixed what is carried.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from katana_cc.diff.engine import Changes, Diff
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import by_weight, verdict_of
from katana_cc.elf import constants as c
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
from katana_cc.patch.sources import with_sources
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
        edits += self.edits.initialisers(self.changes.initialisers)
        for new, old in sorted(self.changes.retargeted.items()):
            edits += self.edits.retargeted(new, old)
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
        )  # fmt: skip
        code = [(n, place) for place, n in self.carrier.carried.items() if sections[n].flags & c.SHF_EXECINSTR]
        return with_sources(patch, [(n, self.diff.debug.info(self.new, p.unit), p.section) for n, p in code])

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
