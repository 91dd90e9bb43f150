"""From a diff to a patch object: what has to come along, and what each relocation has to say in it.

Theory of operation.  The changed functions are carried, and whatever new they refer to, transitively (`carrying.py`);
`references.py` says what each of their relocations means in the target, `edits.py` rewrites data where it is.  Frames
and replacement records come last, when it is fixed what is carried.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import Final

from katana_cc.diff.engine import Changes, Diff
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import Code, by_weight, verdict_of
from katana_cc.diff.small import JUMP_SIZE
from katana_cc.elf import constants as c
from katana_cc.elf.dynamic import DynamicTables
from katana_cc.errors import FormatError
from katana_cc.patch.carrying import Carrier
from katana_cc.patch.edits import Edits
from katana_cc.patch.frames import FrameBuilder, frame_entries
from katana_cc.patch.model import (
    Identity,
    PatchObject,
    PatchRelocation,
    PatchSection,
    PatchSymbol,
    Reliance,
    Replacement,
    Verdict,
)
from katana_cc.patch.references import References
from katana_cc.patch.sources import with_sources

_THROWERS: Final = frozenset({"__cxa_throw", "__cxa_rethrow", "__cxa_begin_catch", "__gxx_personality_v0"})


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
        self.edits = Edits(self.carrier, self.references)

    # The whole

    def build(self, identity: Identity) -> PatchObject:
        """Carry everything; reasons found on the way are added to the changes."""
        roots = sorted(self.changes.replaced)
        for place in roots:
            self.carrier.carry(place)
        self._drain()
        edits = [self.edits.whole(new, old) for new, old in sorted(self.changes.edits.items())]
        for new, (old, offsets) in sorted(self.changes.pointers.items()):
            edits += [self.edits.pointer(new, old, at) for at in offsets]
        self._drain()
        self._add_frames()
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
            identity, Verdict.SAFE, (), sections, tuple(self.carrier.symbols), replacements, tuple(edits), reliances
        )
        code = [(n, place) for place, n in self.carrier.carried.items() if sections[n].flags & c.SHF_EXECINSTR]
        return with_sources(patch, [(n, self.diff.debug.info(self.new, p.unit), p.section) for n, p in code])

    def _drain(self) -> None:
        while self.carrier.queue:
            place = self.carrier.queue.pop()
            number = self.carrier.carried[place]
            section = self.references.translated(place, self.carrier.sections[number])
            self.carrier.sections[number] = section

    # Frames and replacements

    @cached_property
    def _exceptions_pass(self) -> bool:
        """Whether the program has handlers or cleanups that an unwind must reach (C++, or C with -fexceptions).

        The unwinder of the target does not know the frames of new code, and would end the process there.  Handlers of
        a system library that is linked statically are its own affair, and do not count.
        """
        if any(name in program.globals for name in _THROWERS for program in (self.old, self.new)):
            return True
        if any(s.name in _THROWERS for program in (self.old, self.new) for s in DynamicTables(program.image).symbols):
            return True
        return any(
            section.name.startswith(".gcc_except_table")
            for program in (self.old, self.new)
            for number, unit in enumerate(program.snapshot.units)
            if not unit.name.startswith("/usr/")
            for section in program.record(number).sections
        )

    def _add_frames(self) -> None:
        builder = FrameBuilder()
        relocations = []
        by_unit: dict[int, set[int]] = {}
        for place in self.carrier.carried:
            if self.carrier.view(place).elf.sections[place.section].flags & c.SHF_EXECINSTR:
                by_unit.setdefault(place.unit, set()).add(place.section)
        for unit, wanted in sorted(by_unit.items()):
            elf = self.new.object(unit)
            try:
                entries = [e for e in frame_entries(elf) if e.section in wanted]
            except (FormatError, KeyError):
                entries = []
            for missing in sorted(wanted - {e.section for e in entries}):
                text = "it has no call frame information (.eh_frame): stacks could not be read while it runs"
                self.carrier.refuse(Code.EXCEPTIONS, Place(unit, missing), text)
            for entry in entries:
                place = Place(unit, entry.section)
                if self._exceptions_pass:
                    text = (
                        "exceptions or cleanups may have to pass through it on their way to a handler of this program, "
                        "and could not: not supported yet"
                    )
                    self.carrier.refuse(Code.EXCEPTIONS, place, text)
                    continue
                if entry.others:
                    text = (
                        "it takes part in C++ exceptions (it has a personality routine or an LSDA): not supported yet"
                    )
                    self.carrier.refuse(Code.EXCEPTIONS, place, text)
                    continue
                at = builder.add(entry)
                kind = entry.initial_location.type
                symbol = self.carrier.section_symbol(self.carrier.carried[place])
                relocations.append(PatchRelocation(at, kind, symbol, entry.offset))
        if relocations:
            data = builder.finish()
            self.carrier.sections.append(
                PatchSection(
                    ".eh_frame", c.SHT_PROGBITS, c.SHF_ALLOC, 8, data, len(data), relocations=tuple(relocations)
                )
            )

    def _replacement(self, place: Place, old_place: Place) -> Replacement:
        view, old_view = self.carrier.view(place), self.diff.view(self.old, old_place.unit)
        name = view.label(place.section)
        address, size, digest = self._old_range(old_place, JUMP_SIZE if place in self.changes.padded else 0)
        parts = tuple(
            self._old_range(Place(old_place.unit, n))
            for n in old_view.parts.get(old_place.section, ())
            if self.old.address(Place(old_place.unit, n)) is not None
        )
        first = view.symbols_in[place.section][0]
        number = self.carrier.carried[place]
        symbol = self.carrier.symbol(PatchSymbol(first.name, c.STB_LOCAL, first.type, number, first.value, first.size))
        return Replacement(name, address, size, digest, symbol, parts)

    def _old_range(self, place: Place, least: int = 0) -> tuple[int, int, bytes]:
        """Address, size and digest of old code, with the padding behind it up to `least` bytes."""
        address = self.old.address(place)
        assert address is not None
        size = self.diff.view(self.old, place.unit).elf.sections[place.section].size
        size = max(size, least)
        return address, size, hashlib.sha256(self.old.image.read(address, size)).digest()
