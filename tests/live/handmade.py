"""Patch objects made by hand: two C files compiled, the wanted functions of the new one carried.

No diff is involved, so that a failure of the live tests is one of the apply side.  What the carried code refers to is
looked up in the linked old program's symbol table, else carried too, else left as an import.
"""

from __future__ import annotations

import hashlib
import struct
import subprocess
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

from katana_cc.dwarf.frames import Cie, Fde, records
from katana_cc.dwarf.types import layouts
from katana_cc.dwarf.variables import variables
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile, Section
from katana_cc.patch.model import (
    DataEdit,
    DataTransform,
    Identity,
    PatchObject,
    PatchRelocation,
    PatchSection,
    PatchSymbol,
    Replacement,
    Verdict,
)
from katana_cc.transform.between import between_variables
from katana_cc.transform.model import Transformation
from tests.support.dwarf import read

CFLAGS = ("-g", "-ffunction-sections", "-fdata-sections")


@dataclass(frozen=True, slots=True)
class Built:
    """A linked output and the object of its changed file."""

    output: Path
    object: Path


def run(*words: str | Path) -> None:
    """Run a tool; its messages are in the exception when it fails."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"


def build(
    folder: Path,
    name: str,
    source: str,
    *,
    flags: tuple[str, ...] = ("-O2",),
    link: tuple[str, ...] = (),
    more: tuple[Path, ...] = (),
) -> Built:
    """Compile `source` and link it to folder/name, with a build-id of its own: `--all` finds the processes of this one
    build, and not those of a test that runs beside."""
    folder.mkdir(parents=True, exist_ok=True)
    file, obj, out = folder / f"{name}.c", folder / f"{name}.o", folder / name
    file.write_text(source)
    run("gcc", *CFLAGS, *flags, "-c", file, "-o", obj)
    run("gcc", f"-Wl,--build-id=0x{uuid.uuid4().hex}", *link, obj, *more, "-o", out, "-pthread")
    return Built(out, obj)


def patch_from(
    old: Built, new: Built, functions: tuple[str, ...], *, releases: tuple[str, str] = ("v1", "v2"),
    edits: tuple[str, ...] = (), carry: tuple[str, ...] = (),
    moved: tuple[str, ...] = (), staying: tuple[str, ...] = (),
) -> PatchObject:  # fmt: skip
    """A patch that replaces `functions` of `old` by those of `new`, edits the constants `edits` in place, and carries
    the functions `carry` though the old program has them.  The variables `moved` get a new layout at a new place;
    pointers in those that are `staying` follow."""
    exe, new_object = (ElfFile(path.read_bytes()) for path in (old.output, new.object))
    maker = _Maker(exe, new_object, {*functions, *carry, *moved})
    po = maker.make(old, new, functions, releases, edits)
    transforms = [maker.moved(old, new, name) for name in moved] + [maker.staying(old, name) for name in staying]
    return replace(
        po, sections=tuple(maker.sections), symbols=tuple(maker.symbols), transforms=tuple(transforms)
    )  # what moves is carried, too


def _between(old: Path, new: Path, name: str) -> Transformation:
    """What becomes of a variable, by the debug information of two objects."""
    sides = []
    for path in (old, new):
        info = read(path)
        sides.append((next(x for x in variables(info) if x.name == name), layouts(info)))
    made = between_variables(*sides[0], *sides[1])
    assert isinstance(made, Transformation), made
    return made


def patch_id_of(po: PatchObject) -> str:
    """Some identity: what the codec derives from the file's bytes."""
    return hashlib.sha256(repr(po).encode()).hexdigest()[:32]


@dataclass
class _Maker:
    exe: ElfFile
    new: ElfFile
    replaced: set[str]
    sections: list[PatchSection] = field(default_factory=list)
    symbols: list[PatchSymbol] = field(default_factory=list)
    section_index: dict[int, int] = field(default_factory=dict)
    symbol_index: dict[object, int] = field(default_factory=dict)

    def make(
        self, old: Built, new: Built, functions: tuple[str, ...], releases: tuple[str, str], edits: tuple[str, ...]
    ) -> PatchObject:
        replacements = []
        new_exe = ElfFile(new.output.read_bytes())
        for name in functions:
            was = self.existing(name)
            assert was is not None, name
            code = self.exe.read(was[0], was[1])
            symbol = self.defined(self.section_of(name), name, c.STT_FUNC)
            parts = []
            cold = self.existing(f"{name}.cold")
            if cold:
                parts.append((cold[0], cold[1], hashlib.sha256(self.exe.read(*cold)).digest()))
            replacements.append(Replacement(name, was[0], was[1], hashlib.sha256(code).digest(), symbol, tuple(parts)))
        data_edits = [self.edit(name) for name in edits]
        self.frames()
        identity = Identity(
            old.output.name, self.exe.machine, self.exe.build_id or "", new_exe.build_id or "", *releases
        )
        return PatchObject(
            identity,
            Verdict.SAFE,
            (),
            tuple(self.sections),
            tuple(self.symbols),
            tuple(replacements),
            tuple(data_edits),
        )

    def moved(self, old: Built, new: Built, name: str) -> DataTransform:
        """The variable as it is carried, and what its layout becomes."""
        was = self.existing(name)
        assert was is not None
        made = _between(old.object, new.object, name)
        kept = next(s for s in self.new.symbols if s.name == name)
        return DataTransform(made, was[0], self.defined(self.section_of(name), name, c.STT_OBJECT, 0, kept.size))

    def staying(self, old: Built, name: str) -> DataTransform:
        """The variable as it is, pointer by pointer."""
        was = self.existing(name)
        assert was is not None
        return DataTransform(_between(old.object, old.object, name), was[0])

    def existing(self, name: str) -> tuple[int, int] | None:
        for s in self.exe.symbols:
            if s.name == name and s.section != c.SHN_UNDEF and s.type in (c.STT_FUNC, c.STT_OBJECT, c.STT_GNU_IFUNC):
                return s.value, s.size
        return None

    def section_of(self, name: str) -> Section:
        symbol = next(s for s in self.new.symbols if s.name == name and s.section not in (0, c.SHN_ABS))
        return self.new.sections[symbol.section]

    def carried(self, section: Section) -> int:
        if section.number in self.section_index:
            return self.section_index[section.number]
        index = len(self.sections)
        self.section_index[section.number] = index
        self.sections.append(self.converted(section, ()))
        relocations = tuple(
            PatchRelocation(r.offset, r.type, self.reference(r.symbol), r.addend)
            for r in self.new.relocations(section.number)
        )
        self.sections[index] = self.converted(section, relocations)
        return index

    def converted(self, section: Section, relocations: tuple[PatchRelocation, ...]) -> PatchSection:
        keep = c.SHF_ALLOC | c.SHF_WRITE | c.SHF_EXECINSTR | c.SHF_TLS
        data = self.new.contents(section)
        return PatchSection(
            section.name, section.type, section.flags & keep, section.alignment, data, section.size, 0, relocations
        )

    def reference(self, index: int) -> int:
        symbol = self.new.symbols[index]
        if symbol.section == c.SHN_UNDEF:
            return self.undefined(symbol.name, symbol.binding, symbol.type)
        section = self.new.sections[symbol.section]
        name = symbol.name
        if symbol.type == c.STT_SECTION and section.name.startswith((".text.", ".data.", ".bss.", ".tdata.", ".tbss.")):
            name = section.name.split(".", 2)[2]
        tls = next((s for s in self.exe.symbols if s.name == name and s.type == c.STT_TLS), None)
        if tls is not None:
            return self.add(("tls", name), PatchSymbol(name, c.STB_GLOBAL, c.STT_TLS, None, tls.value, tls.size))
        was = self.existing(name)
        if was is not None and name not in self.replaced:
            kind = c.STT_FUNC if section.flags & c.SHF_EXECINSTR else c.STT_OBJECT
            return self.add(("old", name), PatchSymbol(name, c.STB_GLOBAL, kind, None, was[0], was[1]))
        return self.defined(section, symbol.name, symbol.type, symbol.value, symbol.size)

    def defined(self, section: Section, name: str, kind: int, value: int = 0, size: int = 0) -> int:
        index = self.carried(section)
        if kind == c.STT_FUNC and not size:
            size = section.size
        return self.add(("new", section.number, value, name), PatchSymbol(name, c.STB_LOCAL, kind, index, value, size))

    def undefined(self, name: str, binding: int, kind: int) -> int:
        found = next((s for s in self.exe.symbols if s.name == name and s.section != 0), None)
        if found is not None and found.type == c.STT_TLS:
            return self.add(("tls", name), PatchSymbol(name, c.STB_GLOBAL, c.STT_TLS, None, found.value, found.size))
        if found is not None:
            return self.add(("old", name), PatchSymbol(name, c.STB_GLOBAL, found.type, None, found.value, found.size))
        return self.add(("import", name), PatchSymbol(name, binding, kind, None, 0, 0))

    def add(self, key: object, symbol: PatchSymbol) -> int:
        if key not in self.symbol_index:
            self.symbol_index[key] = len(self.symbols)
            self.symbols.append(symbol)
        return self.symbol_index[key]

    def edit(self, name: str) -> DataEdit:
        was = self.existing(name)
        assert was is not None
        # The old contents as linked: what the dynamic linker will have filled in stands in .rela.dyn.
        old: list[PatchRelocation] = []
        for table in (x for x in self.exe.sections if x.name == ".rela.dyn"):
            for offset, info, addend in struct.iter_unpack("<QQq", self.exe.contents(table)):
                if was[0] <= offset < was[0] + was[1] and info & 0xFFFFFFFF == c.R_X86_64_RELATIVE:
                    entry = PatchSymbol(f"old.{addend:x}", c.STB_GLOBAL, c.STT_NOTYPE, None, addend, 0)
                    old.append(PatchRelocation(offset - was[0], c.R_X86_64_64, self.add(entry.name, entry), 0))
        symbol = next(s for s in self.new.symbols if s.name == name)
        section = self.new.sections[symbol.section]
        data = self.new.contents(section)[symbol.value : symbol.value + symbol.size]
        new = [
            PatchRelocation(r.offset - symbol.value, r.type, self.reference(r.symbol), r.addend)
            for r in self.new.relocations(section.number)
        ]
        indices = []
        for contents, relocations in ((self.exe.read(*was), old), (data, new)):
            indices.append(len(self.sections))
            label = f".edit.{name}.{len(indices)}"
            self.sections.append(
                PatchSection(label, c.SHT_PROGBITS, 0, 8, contents, len(contents), 0, tuple(relocations))
            )
        return DataEdit(name, was[0], indices[0], indices[1])

    def frames(self) -> None:
        """.eh_frame of the carried functions: their FDEs, and the CIEs these need."""
        section = self.new.section(".eh_frame")
        if section is None:
            return
        data = self.new.contents(section)
        fields = {r.offset: r for r in self.new.relocations(section.number)}
        out = bytearray()
        cies: dict[int, int] = {}
        relocations = []

        def copy(record: Cie | Fde) -> int:
            at = len(out)
            out.extend(data[record.offset : record.offset + record.size])
            return at

        for record in records(data):
            if isinstance(record, Cie):
                continue
            symbol = self.new.symbols[fields[record.pc_offset].symbol]
            if symbol.section not in self.section_index:
                continue
            if record.cie.offset not in cies:
                cies[record.cie.offset] = copy(record.cie)
            at = copy(record)
            out[at + 4 : at + 8] = (at + 4 - cies[record.cie.offset]).to_bytes(4, "little")
            relocation = fields[record.pc_offset]
            target = self.defined(self.new.sections[symbol.section], symbol.name, symbol.type, symbol.value)
            relocations.append(
                PatchRelocation(at + record.pc_offset - record.offset, relocation.type, target, relocation.addend)
            )
        if out:
            out.extend(bytes(4))
            self.sections.append(
                PatchSection(".eh_frame", c.SHT_PROGBITS, c.SHF_ALLOC, 8, bytes(out), len(out), 0, tuple(relocations))
            )
