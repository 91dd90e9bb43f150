"""From a diff to a patch object: what has to come along, and what each relocation has to say in it.

Theory of operation.  The changed functions are carried, and whatever new they refer to, transitively.  A reference of
carried code ends in one of four ways:

- at something carried: a symbol of the patch object;
- at something that exists in the target: an undefined symbol whose value is its link-time address there;
- at a literal: literals are pooled and always carried, they have no identity;
- at an import: an undefined symbol without a value, looked up among the target's modules when it is applied.

Functions have two faces.  A direct call goes to the new function when there is one.  Its *address* stays that of the
old entry as long as there is an old one, so that pointers taken before and after compare equal; the jump at the old
entry does the rest.  A reference into the middle of a function is a label (a jump table, a computed goto) and always
means the carried code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from typing import Final

from katana_cc.diff.engine import Changes, Diff
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import INFO, REFUSED, Code, verdict_of
from katana_cc.diff.view import Kind, ObjectView, Reference
from katana_cc.elf import constants as c
from katana_cc.elf.dynamic import DynamicTables
from katana_cc.elf.fields import GOT_RELATIVE, PC_RELATIVE
from katana_cc.errors import FormatError
from katana_cc.patch.frames import FrameBuilder, frame_entries
from katana_cc.patch.model import (
    DataEdit,
    Identity,
    PatchObject,
    PatchRelocation,
    PatchSection,
    PatchSymbol,
    Replacement,
    Verdict,
)
from katana_cc.patch.pool import LiteralPool
from katana_cc.patch.sources import with_sources

CARRIED_TYPES: Final = frozenset(
    {c.R_X86_64_64, c.R_X86_64_PC32, c.R_X86_64_PLT32, c.R_X86_64_32, c.R_X86_64_32S, c.R_X86_64_PC64,
     c.R_X86_64_TPOFF32, c.R_X86_64_GOTTPOFF} | GOT_RELATIVE
)  # fmt: skip
_THREAD_TYPES: Final = frozenset({c.R_X86_64_TPOFF32, c.R_X86_64_GOTTPOFF})


def build_patch(diff: Diff, changes: Changes, identity: Identity) -> PatchObject:
    """The patch object for a diff; with a refused verdict it carries the reasons only."""
    builder = _Builder(diff, changes)
    patch = builder.build(identity)
    reasons = tuple(dict.fromkeys(changes.reasons))
    verdict = verdict_of(reasons)
    if verdict is Verdict.REFUSED:
        return PatchObject(identity, verdict, reasons)
    return PatchObject(identity, verdict, reasons, patch.sections, patch.symbols, patch.replacements, patch.data_edits)


class _Builder:
    def __init__(self, diff: Diff, changes: Changes) -> None:
        self.diff = diff
        self.changes = changes
        self.old, self.new = diff.old, diff.new
        self.old_tables = DynamicTables(diff.old.image)
        self.sections: list[PatchSection | None] = []
        self.symbols: list[PatchSymbol] = []
        self._symbol_numbers: dict[PatchSymbol, int] = {}
        self._carried: dict[Place, int] = {}
        self._commons: dict[str, int] = {}
        self._queue: list[Place] = []
        self.pools: dict[tuple[int, int], LiteralPool] = {}

    # The whole

    def build(self, identity: Identity) -> PatchObject:
        """Carry everything; reasons found on the way are added to the changes."""
        roots = sorted(self.changes.replaced)
        for place in roots:
            self._carry(place)
        self._drain()
        edits = tuple(self._edit(new, old) for new, old in sorted(self.changes.edits.items()))
        self._drain()
        self._add_frames()
        replacements = tuple(self._replacement(place, self.changes.replaced[place]) for place in roots)
        for pool in self.pools.values():
            self.sections[pool.section] = pool.finish()
        sections = tuple(s for s in self.sections if s is not None)
        assert len(sections) == len(self.sections)
        patch = PatchObject(identity, Verdict.SAFE, (), sections, tuple(self.symbols), replacements, edits)
        code = [(n, place) for place, n in self._carried.items() if sections[n].flags & c.SHF_EXECINSTR]
        return with_sources(patch, [(n, self.diff.debug.info(self.new, p.unit), p.section) for n, p in code])

    def _drain(self) -> None:
        while self._queue:
            place = self._queue.pop()
            number = self._carried[place]
            section = self._translated(place, self.sections[number])
            self.sections[number] = section

    def _view(self, place: Place) -> ObjectView:
        return self.diff.view(self.new, place.unit)

    # Carrying

    def _carry(self, place: Place) -> int:
        """The patch section that carries a section of the new program."""
        number = self._carried.get(place)
        if number is not None:
            return number
        view = self._view(place)
        source = view.elf.sections[place.section]
        kind = view.kinds[place.section]
        number = self._carried[place] = len(self.sections)
        flags = source.flags & (c.SHF_ALLOC | c.SHF_WRITE | c.SHF_EXECINSTR)
        if source.name.startswith(".data.rel.ro"):
            flags &= ~c.SHF_WRITE  # relocated before it is mapped
        kind_of_section = c.SHT_NOBITS if source.type == c.SHT_NOBITS else c.SHT_PROGBITS
        data = b"" if kind_of_section == c.SHT_NOBITS else view.elf.contents(source)
        alignment = max(source.alignment, 1)
        self.sections.append(PatchSection(source.name, kind_of_section, flags, alignment, data, source.size))
        for s in view.symbols_in.get(place.section, ()):
            if s.type in (c.STT_FUNC, c.STT_OBJECT):
                self._symbol(PatchSymbol(s.name, c.STB_LOCAL, s.type, number, s.value, s.size))
        if (
            kind in (Kind.FUNCTION, Kind.CODE)
            and place not in self.changes.replaced
            and not view.is_part(place.section)
        ):
            self.diff.reason(Code.FUNCTION_NEW, INFO, place, "new function")
        elif kind in (Kind.DATA, Kind.CONST) and place not in self.changes.recreated:
            self.diff.reason(Code.DATA_NEW, INFO, place, f"new {'variable' if kind is Kind.DATA else 'constant'}")
        self._queue.append(place)
        for part in view.parts.get(place.section, ()):
            self._carry(Place(place.unit, part))
        return number

    def _translated(self, place: Place, section: PatchSection | None) -> PatchSection:
        assert section is not None
        relocations = []
        for reference in self._view(place).references(place.section):
            relocation = self._translate(place, reference)
            if relocation is not None:
                relocations.append(relocation)
        return PatchSection(
            section.name, section.type, section.flags, section.alignment, section.data, section.size,
            section.entry_size, tuple(relocations),
        )  # fmt: skip

    def _symbol(self, symbol: PatchSymbol) -> int:
        number = self._symbol_numbers.get(symbol)
        if number is None:
            number = self._symbol_numbers[symbol] = len(self.symbols)
            self.symbols.append(symbol)
        return number

    def _section_symbol(self, section: int) -> int:
        return self._symbol(PatchSymbol("", c.STB_LOCAL, c.STT_SECTION, section, 0, 0))

    # References

    def _translate(self, place: Place, reference: Reference) -> PatchRelocation | None:
        r = reference.relocation
        if r.type == c.R_X86_64_NONE:
            return None
        if r.type not in CARRIED_TYPES:
            text = f"it uses relocation type {r.type} for {reference.name}, which cannot be carried"
            self._refuse(Code.RELOCATION, place, text)
            return None
        if reference.literal is not None:
            return self._literal(place, reference)
        if reference.section == -1:
            self._refuse(Code.RELOCATION, place, f"it refers to the absolute symbol {reference.name}")
            return None
        resolved = self.diff.comparison.resolve(self.new, place, reference)
        if resolved is None:
            return self._elsewhere(place, reference)
        target, base = resolved
        symbol, addend = self._target(place, reference, target, base + reference.addend)
        return None if symbol is None else PatchRelocation(r.offset, r.type, symbol, addend)

    def _literal(self, place: Place, reference: Reference) -> PatchRelocation:
        r = reference.relocation
        if reference.by_section and r.type in PC_RELATIVE:
            number = self._carry(Place(place.unit, reference.section))
            return PatchRelocation(r.offset, r.type, self._section_symbol(number), r.addend)
        source = self._view(place).elf.sections[reference.section]
        key = (source.flags & (c.SHF_ALLOC | c.SHF_MERGE | c.SHF_STRINGS), max(source.entry_size, 1))
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = LiteralPool(len(self.sections), *key)
            self.sections.append(None)
        assert reference.literal is not None
        at = pool.add(reference.literal, max(source.alignment, 1))
        addend = at + (0 if reference.by_section else r.addend)
        return PatchRelocation(r.offset, r.type, self._section_symbol(pool.section), addend)

    def _target(self, place: Place, reference: Reference, target: Place, offset: int) -> tuple[int | None, int]:
        """Symbol and addend for `offset` (addend included) in the new program's section `target`."""
        view = self._view(target)
        kind = view.kinds.get(target.section)
        label = view.label(target.section)
        old_target = self.diff.correlation.old_place(target)
        old_address = None if old_target is None else self.old.address(old_target)
        if kind in (Kind.FUNCTION, Kind.CODE):
            if self._means_carried_code(place, reference, target, offset, old_address is not None):
                return self._section_symbol(self._carry(self._whole(target))), offset
            if self._carried_part(target):
                return self._section_symbol(self._carry(target)), offset
        elif kind is Kind.THREAD:
            return self._thread_local(place, reference, target, old_address, offset)
        elif target in self.diff.correlation.ambiguous:
            text = f"{label}: several variables of that name cannot be told apart between the two builds"
            self._refuse(Code.DATA_AMBIGUOUS, place, text)
            return None, 0
        elif kind is Kind.ANONYMOUS or target in self.changes.recreated or old_address is None:
            if kind not in (Kind.ANONYMOUS, Kind.DATA, Kind.CONST):
                self._refuse(Code.SECTION_CHANGED, place, f"it refers to section {label}, which is new")
                return None, 0
            return self._section_symbol(self._carry(target)), offset
        if old_target is None or old_address is None:
            return self._section_symbol(self._carry(target)), offset
        if why := self.old.unplaced.get(old_target):
            self._refuse(Code.NOT_PLACED, place, f"it refers to {label}, whose place is not known: {why}")
            return None, 0
        return self._existing(old_target, old_address), offset

    def _whole(self, target: Place) -> Place:
        view = self._view(target)
        parent = view.parent.get(target.section)
        if parent is not None:
            self._carry(Place(target.unit, parent))
        return target

    def _carried_part(self, target: Place) -> bool:
        """Whether this is the .cold half of a function that is carried: then the new half is meant."""
        parent = self._view(target).parent.get(target.section)
        return parent is not None and Place(target.unit, parent) in self._carried

    def _means_carried_code(self, place: Place, reference: Reference, target: Place, offset: int, exists: bool) -> bool:
        view = self._view(target)
        root = Place(target.unit, view.parent.get(target.section, target.section))
        if not exists and root == target:
            return True
        carried = root in self.changes.replaced or root in self._carried
        if not carried:
            return False
        if root != target or reference.branch:
            return True
        here = self._view(place)
        if here.kinds.get(place.section) is Kind.ANONYMOUS and reference.relocation.type in PC_RELATIVE:
            return True  # a jump table's entries are labels, relative to the table
        from_code = here.kinds.get(place.section) in (Kind.FUNCTION, Kind.CODE)
        entry = offset + (4 if from_code and reference.relocation.type in PC_RELATIVE else 0)
        return entry != 0

    def _existing(self, old_target: Place, old_address: int) -> int:
        """The undefined symbol for what exists in the target at a link-time address."""
        view = self.diff.view(self.old, old_target.unit)
        symbols = view.symbols_in.get(old_target.section, [])
        first = next((s for s in symbols if s.value == 0), None)
        name = first.name if first else view.elf.sections[old_target.section].name
        if first is None or first.binding == c.STB_LOCAL:
            name = f"{view.file or self.old.unit_name(old_target.unit)}:{name}"
        kind = first.type if first and first.type in (c.STT_FUNC, c.STT_OBJECT) else c.STT_NOTYPE
        return self._symbol(PatchSymbol(name, c.STB_GLOBAL, kind, None, old_address, first.size if first else 0))

    def _thread_local(
        self, place: Place, reference: Reference, target: Place, old_address: int | None, offset: int
    ) -> tuple[int | None, int]:
        label = self._view(target).label(target.section)
        segment = next((s for s in self.old.image.segments if s.type == c.PT_TLS), None)
        if old_address is None or segment is None or target in self.diff.correlation.ambiguous:
            self._refuse(Code.THREAD_LOCAL, place, f"it uses the thread-local {label}, which is new")
            return None, 0
        if reference.relocation.type not in _THREAD_TYPES:
            self._refuse(Code.THREAD_LOCAL, place, f"it uses {label} through the dynamic thread-local model")
            return None, 0
        value = old_address - segment.vaddr
        return self._symbol(PatchSymbol(label, c.STB_GLOBAL, c.STT_TLS, None, value, 0)), offset

    def _elsewhere(self, place: Place, reference: Reference) -> PatchRelocation | None:
        """A symbol no section of the new program defines: COMMON, linker-made, or imported."""
        r, name = reference.relocation, reference.name
        definition = self.new.globals.get(name)
        if definition is not None:
            before = self.old.globals.get(name)
            if before is not None and before.address is not None:
                if before.size != definition.size:
                    text = f"{name} changed its size from {before.size} to {definition.size} bytes"
                    self._refuse(Code.DATA_RESIZED, place, text)
                symbol = PatchSymbol(name, c.STB_GLOBAL, c.STT_OBJECT, None, before.address, before.size)
                return PatchRelocation(r.offset, r.type, self._symbol(symbol), r.addend)
            return PatchRelocation(
                r.offset, r.type, self._section_symbol(self._common(name, definition.size)), r.addend
            )
        if name in self.new.snapshot.linker_symbols and name not in self._imports_of_new:
            value = self.old.snapshot.linker_symbols.get(name)
            if not value:
                self._refuse(Code.IMPORT_DIRECT, place, f"it refers to {name}, which the old link did not make")
                return None
            symbol = PatchSymbol(name, c.STB_GLOBAL, c.STT_NOTYPE, None, value, 0)
            return PatchRelocation(r.offset, r.type, self._symbol(symbol), r.addend)
        return self._import(place, reference)

    @cached_property
    def new_tables(self) -> DynamicTables:
        """What the dynamic linker would read of the new output."""
        return DynamicTables(self.new.image)

    @cached_property
    def _imports_of_new(self) -> frozenset[str]:
        copied = {x.symbol for x in self.new_tables.relocations.values() if x.type == c.R_X86_64_COPY}
        return frozenset(s.name for s in self.new_tables.symbols if s.name and not s.defined) | copied

    def _import(self, place: Place, reference: Reference) -> PatchRelocation | None:
        r, name = reference.relocation, reference.name
        known = self.old_tables.by_name.get(name)
        if known is None and not self.old.image.dynamic:
            self._refuse(Code.IMPORT_DIRECT, place, f"it calls {name}, which the old static program does not hold")
            return None
        direct = not reference.branch and r.type not in GOT_RELATIVE and r.type != c.R_X86_64_64
        if direct and (known is None or not known.value) and not reference.weak:
            text = (
                f"it reaches {name} of a library directly, which only the link of the old program could have prepared"
            )
            self._refuse(Code.IMPORT_DIRECT, place, text)
            return None
        if r.type in _THREAD_TYPES:
            self._refuse(Code.THREAD_LOCAL, place, f"it uses the thread-local {name} of a library")
            return None
        if known is None and not reference.weak:
            self.diff.reason(Code.IMPORT_NEW, INFO, place, f"calls {name} of a library, never imported before")
            if added := sorted(set(self.new_tables.needed) - set(self.old_tables.needed)):
                text = f"it needs {name}, and the new build links {', '.join(added)}, which the process did not load"
                self._refuse(Code.LIBRARY_NEW, place, text)
        binding = c.STB_WEAK if reference.weak else c.STB_GLOBAL
        symbol = PatchSymbol(name, binding, c.STT_NOTYPE, None, 0, 0)
        return PatchRelocation(r.offset, r.type, self._symbol(symbol), r.addend)

    def _common(self, name: str, size: int) -> int:
        if name not in self._commons:
            self._commons[name] = len(self.sections)
            flags = c.SHF_ALLOC | c.SHF_WRITE
            self.sections.append(PatchSection(f".bss.{name}", c.SHT_NOBITS, flags, 32, b"", size))
            self._symbol(PatchSymbol(name, c.STB_LOCAL, c.STT_OBJECT, self._commons[name], 0, size))
        return self._commons[name]

    def _refuse(self, code: Code, place: Place, text: str) -> None:
        self.diff.reason(code, REFUSED, place, text)

    # Frames, replacements, edits

    def _add_frames(self) -> None:
        builder = FrameBuilder()
        relocations = []
        by_unit: dict[int, set[int]] = {}
        for place in self._carried:
            if self._view(place).elf.sections[place.section].flags & c.SHF_EXECINSTR:
                by_unit.setdefault(place.unit, set()).add(place.section)
        for unit, wanted in sorted(by_unit.items()):
            elf = self.new.object(unit)
            try:
                entries = [e for e in frame_entries(elf) if e.section in wanted]
            except (FormatError, KeyError):
                entries = []
            for missing in sorted(wanted - {e.section for e in entries}):
                text = "it has no call frame information (.eh_frame): stacks could not be read while it runs"
                self._refuse(Code.EXCEPTIONS, Place(unit, missing), text)
            for entry in entries:
                place = Place(unit, entry.section)
                if entry.others:
                    text = (
                        "it takes part in C++ exceptions (it has a personality routine or an LSDA): not supported yet"
                    )
                    self._refuse(Code.EXCEPTIONS, place, text)
                    continue
                at = builder.add(entry)
                kind = entry.initial_location.type
                symbol = self._section_symbol(self._carried[place])
                relocations.append(PatchRelocation(at, kind, symbol, entry.offset))
        if relocations:
            data = builder.finish()
            self.sections.append(
                PatchSection(
                    ".eh_frame", c.SHT_PROGBITS, c.SHF_ALLOC, 8, data, len(data), relocations=tuple(relocations)
                )
            )

    def _replacement(self, place: Place, old_place: Place) -> Replacement:
        view, old_view = self._view(place), self.diff.view(self.old, old_place.unit)
        name = view.label(place.section)
        address, size, digest = self._old_range(old_place)
        parts = tuple(
            self._old_range(Place(old_place.unit, n))
            for n in old_view.parts.get(old_place.section, ())
            if self.old.address(Place(old_place.unit, n)) is not None
        )
        first = view.symbols_in[place.section][0]
        number = self._carried[place]
        symbol = self._symbol(PatchSymbol(first.name, c.STB_LOCAL, first.type, number, first.value, first.size))
        return Replacement(name, address, size, digest, symbol, parts)

    def _old_range(self, place: Place) -> tuple[int, int, bytes]:
        address = self.old.address(place)
        assert address is not None
        size = self.diff.view(self.old, place.unit).elf.sections[place.section].size
        return address, size, hashlib.sha256(self.old.image.read(address, size)).digest()

    def _edit(self, place: Place, old_place: Place) -> DataEdit:
        view = self._view(place)
        source = view.elf.sections[place.section]
        name = view.label(place.section)
        address = self.old.address(old_place)
        assert address is not None
        expected = len(self.sections)
        data, relocations = self._old_contents(old_place, address, source.size)
        kind = c.SHT_PROGBITS
        self.sections.append(
            PatchSection(f".katold.{name}", kind, 0, 8, data, len(data), relocations=tuple(relocations))
        )
        replacement = len(self.sections)
        self.sections.append(None)
        blank = PatchSection(f".katnew.{name}", kind, 0, 8, view.elf.contents(source), source.size)
        self.sections[replacement] = self._translated(place, blank)
        return DataEdit(name, address, expected, replacement)

    def _old_contents(self, place: Place, address: int, size: int) -> tuple[bytes, Iterable[PatchRelocation]]:
        """What must be in the target at `address`: the final bytes, with what the dynamic linker added."""
        data = bytearray(self.old.image.read(address, size))
        relocations = []
        moved = self.old.image.type == c.ET_DYN
        for r in self.old.object(place.unit).relocations(place.section):
            if r.type != c.R_X86_64_64:
                continue
            dynamic = self.old_tables.relocations.get(address + r.offset)
            if dynamic is not None and dynamic.symbol:
                symbol = PatchSymbol(dynamic.symbol, c.STB_GLOBAL, c.STT_NOTYPE, None, 0, 0)
                known = self.old_tables.by_name.get(dynamic.symbol)
                if known is not None and known.value:
                    symbol = PatchSymbol(dynamic.symbol, c.STB_GLOBAL, c.STT_NOTYPE, None, known.value, 0)
                addend = dynamic.addend
            elif moved:
                held = int.from_bytes(data[r.offset : r.offset + 8], "little")
                value = dynamic.addend if dynamic is not None else held
                if not value:
                    continue  # an absent weak symbol
                symbol = PatchSymbol(f"old.{value:x}", c.STB_GLOBAL, c.STT_NOTYPE, None, value, 0)
                addend = 0
            else:
                continue
            data[r.offset : r.offset + 8] = bytes(8)
            relocations.append(PatchRelocation(r.offset, r.type, self._symbol(symbol), addend))
        return bytes(data), relocations
