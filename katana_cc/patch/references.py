"""What each relocation of carried code has to say in a patch object.

A reference of carried code ends in one of four ways:

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

from typing import Final

from katana_cc.diff.program import Place
from katana_cc.diff.reasons import INFO, Code
from katana_cc.diff.view import Kind, Reference
from katana_cc.elf import constants as c
from katana_cc.elf.versions import split
from katana_cc.patch.carrying import Carrier
from katana_cc.patch.model import PatchRelocation, PatchSection, PatchSymbol, Reason
from katana_cc.patch.pool import LiteralPool

_ALWAYS_LOADED: Final = ("libc.so.6", "linux-vdso.so.1")  # by any dynamic program


class References:
    """Translates the references of the new program's sections for `carrier`, which carries what they need."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.diff = carrier.diff
        self.old, self.new = self.diff.old, self.diff.new
        self.old_tables = self.old.tables
        self.known = known = self.new.cpu.relocations
        absolute = {known.ABSOLUTE[8]}
        self._indirect = known.CALLS | known.GOT_RELATIVE | absolute
        self._carried = self._indirect | known.DIRECT | known.THREAD | {known.RELATIVE[8]}

    def translated(self, place: Place, section: PatchSection | None) -> PatchSection:
        assert section is not None
        relocations = []
        for reference in self.carrier.view(place).references(place.section):
            relocation = self.translate(place, reference)
            if relocation is not None:
                relocations.append(relocation)
        return PatchSection(
            section.name, section.type, section.flags, section.alignment, section.data, section.size,
            section.entry_size, tuple(relocations),
        )  # fmt: skip

    def translate(self, place: Place, reference: Reference) -> PatchRelocation | None:
        r = reference.relocation
        if r.type == self.known.NONE:
            return None
        if r.type not in self._carried:
            text = f"it uses relocation type {r.type} for {reference.name}, which cannot be carried"
            self.carrier.refuse(Code.RELOCATION, place, text)
            return None
        if reference.literal is not None:
            return self._literal(place, reference)
        if reference.section == -1:
            self.carrier.refuse(Code.RELOCATION, place, f"it refers to the absolute symbol {reference.name}")
            return None
        resolved = self.diff.comparison.resolve(self.new, place, reference)
        if resolved is None:
            return self._elsewhere(place, reference)
        target, base = resolved
        if (name := self._interposable(place, reference)) is not None:
            again = PatchSymbol(name, c.STB_GLOBAL, c.STT_NOTYPE, None, 0, 0)
            return PatchRelocation(r.offset, r.type, self.carrier.symbol(again), r.addend)
        symbol, addend = self._target(place, reference, target, base + reference.addend)
        return None if symbol is None else PatchRelocation(r.offset, r.type, symbol, addend)

    def _interposable(self, place: Place, reference: Reference) -> str | None:
        """The name of what another module may define in this library's stead: looked up again, as the old code did."""
        r = reference.relocation
        if reference.by_section or r.type not in self._indirect:
            return None
        symbol = self.carrier.view(place).elf.symbols[r.symbol]
        name = self.new.meant(symbol.name) if symbol.section == c.SHN_UNDEF else symbol.name
        return name if symbol.binding != c.STB_LOCAL and self.old.interposable(name) else None

    def _literal(self, place: Place, reference: Reference) -> PatchRelocation:
        r = reference.relocation
        if reference.bias < 0:
            number = self.carrier.carry(Place(place.unit, reference.section))
            return PatchRelocation(r.offset, r.type, self.carrier.section_symbol(number), r.addend)
        source = self.carrier.view(place).elf.sections[reference.section]
        flags = source.flags & (c.SHF_ALLOC | c.SHF_MERGE | c.SHF_STRINGS)
        if not flags & c.SHF_MERGE:
            flags |= c.SHF_MERGE | c.SHF_STRINGS
        key = (flags, max(source.entry_size, 1))
        pool = self.carrier.pools.get(key)
        if pool is None:
            pool = self.carrier.pools[key] = LiteralPool(len(self.carrier.sections), *key)
            self.carrier.sections.append(None)
        assert reference.literal is not None
        at = pool.add(reference.literal, max(source.alignment, 1))
        addend = at - reference.bias if reference.by_section else at + r.addend
        return PatchRelocation(r.offset, r.type, self.carrier.section_symbol(pool.section), addend)

    def _target(self, place: Place, reference: Reference, target: Place, offset: int) -> tuple[int | None, int]:
        """Symbol and addend for `offset` (addend included) in the new program's section `target`."""
        view = self.carrier.view(target)
        kind = view.kinds.get(target.section)
        label = view.label(target.section)
        old_target = self.diff.correlation.old_place(target)
        old_address = None if old_target is None else self.old.address(old_target)
        if old_target is None and (common := self._old_common(target)) is not None:
            return common, offset
        if kind in (Kind.FUNCTION, Kind.CODE):
            if self._means_carried_code(place, reference, target, offset, old_address is not None):
                return self.carrier.section_symbol(self.carrier.carry(self._whole(target))), offset
            if self._carried_part(target):
                return self.carrier.section_symbol(self.carrier.carry(target)), offset
        elif kind is Kind.THREAD:
            return self._thread_local(place, reference, target, old_address, offset)
        elif target in self.diff.correlation.ambiguous and target not in self.carrier.changes.recreated:
            text = f"{label}: several variables of that name cannot be told apart between the two builds"
            self.carrier.refuse(Code.DATA_AMBIGUOUS, place, text)
            return None, 0
        elif kind is Kind.ANONYMOUS or target in self.carrier.changes.recreated or old_address is None:
            if kind not in (Kind.ANONYMOUS, Kind.DATA, Kind.CONST):
                self.carrier.refuse(Code.SECTION_CHANGED, place, f"it refers to section {label}, which is new")
                return None, 0
            return self.carrier.section_symbol(self.carrier.carry(target)), offset
        if old_target is None or old_address is None:
            return self.carrier.section_symbol(self.carrier.carry(target)), offset
        ifunc = self._ifunc(place, reference, old_address)
        if ifunc is not None:
            return ifunc, offset
        if why := self.old.unplaced.get(old_target):
            self.carrier.refuse(Code.NOT_PLACED, place, f"it refers to {label}, whose place is not known: {why}")
            return None, 0
        return self.existing(old_target), offset

    def _old_common(self, target: Place) -> int | None:
        """The symbol for a variable that was SHN_COMMON in the old objects and has a section now."""
        for s in self.carrier.view(target).symbols_in.get(target.section, ()):
            before = self.old.globals.get(s.name) if s.binding != c.STB_LOCAL else None
            if before is not None and before.place is None and s.value == 0:
                if before.address is not None:
                    return self.carrier.symbol(
                        PatchSymbol(s.name, c.STB_GLOBAL, c.STT_OBJECT, None, before.address, before.size)
                    )
                if not self.old.snapshot.linker_symbols:
                    text = f"{s.name} was a common symbol, and the old output was stripped at the link"
                    self.carrier.refuse(Code.NOT_PLACED, target, text)
        return None

    def _whole(self, target: Place) -> Place:
        view = self.carrier.view(target)
        parent = view.parent.get(target.section)
        if parent is not None:
            self.carrier.carry(Place(target.unit, parent))
        return target

    def _carried_part(self, target: Place) -> bool:
        """Whether this is the .cold half of a function that is carried: then the new half is meant."""
        parent = self.carrier.view(target).parent.get(target.section)
        return parent is not None and Place(target.unit, parent) in self.carrier.carried

    def _means_carried_code(self, place: Place, reference: Reference, target: Place, offset: int, exists: bool) -> bool:
        view = self.carrier.view(target)
        root = Place(target.unit, view.parent.get(target.section, target.section))
        if not exists and root == target:
            return True
        carried = root in self.carrier.changes.replaced or root in self.carrier.carried
        if not carried:
            return False
        if root != target or reference.branch:
            return True
        here = self.carrier.view(place)
        if here.kinds.get(place.section) is Kind.ANONYMOUS and reference.relocation.type in self.known.PC_RELATIVE:
            return True  # a jump table's entries are labels, relative to the table
        from_code = here.kinds.get(place.section) in (Kind.FUNCTION, Kind.CODE)
        entry = offset + (here.pc_bias(reference.relocation.type) if from_code else 0)
        return entry != 0

    def _ifunc(self, place: Place, reference: Reference, address: int) -> int | None:
        """The symbol for an IFUNC of the program that is meant by its own name, not as the resolver."""
        if reference.by_section:
            return None
        symbol = self.carrier.view(place).elf.symbols[reference.relocation.symbol]
        definition = self.new.globals.get(symbol.name)
        kind = definition.type if definition and symbol.section == c.SHN_UNDEF else symbol.type
        if kind != c.STT_GNU_IFUNC:
            return None
        return self.carrier.symbol(PatchSymbol(symbol.name, c.STB_GLOBAL, c.STT_GNU_IFUNC, None, address, 0))

    def existing(self, old_target: Place) -> int:
        """The undefined symbol for what exists in the target, at its link-time address."""
        old_address = self.old.address(old_target)
        assert old_address is not None
        view = self.diff.view(self.old, old_target.unit)
        symbols = view.symbols_in.get(old_target.section, [])
        first = next((s for s in symbols if s.value == 0), None)
        name = first.name if first else view.elf.sections[old_target.section].name
        if first is None or first.binding == c.STB_LOCAL:
            name = f"{view.file or self.old.unit_name(old_target.unit)}:{name}"
        kind = first.type if first and first.type in (c.STT_FUNC, c.STT_OBJECT) else c.STT_NOTYPE
        return self.carrier.symbol(PatchSymbol(name, c.STB_GLOBAL, kind, None, old_address, first.size if first else 0))

    def _thread_local(
        self, place: Place, reference: Reference, target: Place, old_address: int | None, offset: int
    ) -> tuple[int | None, int]:
        label = self.carrier.view(target).label(target.section)
        segment = next((s for s in self.old.image.segments if s.type == c.PT_TLS), None)
        if old_address is None or segment is None or target in self.diff.correlation.ambiguous:
            self.carrier.refuse(Code.THREAD_LOCAL, place, f"it uses the thread-local {label}, which is new")
            return None, 0
        if reference.relocation.type not in self.known.THREAD:
            self.carrier.refuse(Code.THREAD_LOCAL, place, f"it uses {label} through the dynamic thread-local model")
            return None, 0
        value = old_address - segment.vaddr
        return self.carrier.symbol(PatchSymbol(label, c.STB_GLOBAL, c.STT_TLS, None, value, 0)), offset

    def _elsewhere(self, place: Place, reference: Reference) -> PatchRelocation | None:
        """A symbol no section of the new program defines: COMMON, linker-made, or imported."""
        r, name = reference.relocation, self.new.meant(reference.name)
        definition = self.new.globals.get(name)
        if definition is not None:
            before = self.old.globals.get(name)
            if before is not None and before.address is None and not self.old.snapshot.linker_symbols:
                text = f"{name} is a common symbol, and the old output was stripped at the link: its place is not known"
                self.carrier.refuse(Code.NOT_PLACED, place, text)
            if before is not None and before.address is not None:
                if before.size != definition.size:
                    text = f"{name} changed its size from {before.size} to {definition.size} bytes"
                    self.carrier.refuse(Code.DATA_RESIZED, place, text)
                symbol = PatchSymbol(name, c.STB_GLOBAL, c.STT_OBJECT, None, before.address, before.size)
                return PatchRelocation(r.offset, r.type, self.carrier.symbol(symbol), r.addend)
            return PatchRelocation(
                r.offset, r.type, self.carrier.section_symbol(self.carrier.common(name, definition.size)), r.addend
            )
        if name in self.new.snapshot.linker_symbols and name not in self.new.imports:
            value = self.old.snapshot.linker_symbols.get(name)
            if not value:
                self.carrier.refuse(Code.IMPORT_DIRECT, place, f"it refers to {name}, which the old link did not make")
                return None
            symbol = PatchSymbol(name, c.STB_GLOBAL, c.STT_NOTYPE, None, value, 0)
            return PatchRelocation(r.offset, r.type, self.carrier.symbol(symbol), r.addend)
        return self._import(place, reference)

    def _versioned(self, place: Place, name: str) -> str | None:
        """An import's name, with its version where the name alone would not say which; None after a refusal.

        The name alone means what the old program's own slot for it is bound to, else the default version.
        """
        if split(name)[1]:
            return name
        before, after = self.old_tables.versions(name), self.new.tables.versions(name)
        if not before or not after or len(before | after) == 1:
            return name
        units = range(len(self.new.snapshot.units))
        asked = {v for unit in units for n, v in map(split, self.diff.view(self.new, unit).undefined) if n == name}
        left = after - asked
        if len(left) != 1:
            self.carrier.refuse(
                Code.NAME_REBOUND, place, f"it uses {name}, of which the new build has several versions"
            )
            return None
        return "@".join(filter(None, (name, *left)))

    def _possible_from_afar(self, place: Place, reference: Reference) -> bool:
        """Whether a symbol that may be out of reach can be used all the same: absent and weak, or through a veneer."""
        if reference.weak:
            return True
        view, r = self.carrier.view(place), reference.relocation
        if r.type not in self.known.DIRECT or not view.elf.sections[place.section].flags & c.SHF_EXECINSTR:
            return False
        fields = (x.offset for x in view.elf.relocations(place.section))
        return view.code.far_use(view.data(place.section), r.offset, fields) is not None

    def _import(self, place: Place, reference: Reference) -> PatchRelocation | None:
        r = reference.relocation
        name = self._versioned(place, self.new.meant(reference.name))
        if name is None:
            return None
        known = self.old_tables.by_name.get(split(name)[0])
        if known is None and not self.old.image.dynamic:
            self.carrier.refuse(
                Code.IMPORT_DIRECT, place, f"it calls {name}, which the old static program does not hold"
            )
            return None
        direct = not reference.branch and r.type not in self.known.GOT_RELATIVE | self.known.THREAD | {
            self.known.ABSOLUTE[8]
        }
        if direct and (known is None or not known.value) and not self._possible_from_afar(place, reference):
            text = (
                f"it reaches {name} of a library directly, which only the link of the old program could have prepared "
                "(compile with -fPIC, or use it through a pointer)"
            )
            self.carrier.refuse(Code.IMPORT_DIRECT, place, text)
            return None
        if r.type in self.known.THREAD:
            self.carrier.refuse(Code.THREAD_LOCAL, place, f"it uses the thread-local {name} of a library")
            return None
        if known is None:
            self._note_new_import(place, name)
            added = sorted({*self.new.tables.needed} - {*self.old_tables.needed, *_ALWAYS_LOADED, self.known.LOADER})
            if added and not reference.weak:
                text = f"it needs {name}, and the new build links {', '.join(added)}, which the process did not load"
                self.carrier.refuse(Code.LIBRARY_NEW, place, text)
        binding = c.STB_WEAK if reference.weak else c.STB_GLOBAL
        symbol = PatchSymbol(name, binding, c.STT_NOTYPE, None, 0, 0)
        return PatchRelocation(r.offset, r.type, self.carrier.symbol(symbol), r.addend)

    def _note_new_import(self, place: Place, name: str) -> None:
        view = self.carrier.view(place)
        file, line = self.diff.debug.declared(self.new, place)
        text = f"{view.label(place.section)} uses it of a library; the old program did not import it"
        self.carrier.changes.reasons.append(Reason(Code.IMPORT_NEW.value, INFO, name, file or view.file, line, text))
