"""File → patch object.  The way in is `katana_cc.patch.codec.decode`."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from urllib.parse import unquote_to_bytes

from katana_cc.cpu.choice import SUPPORTED, unsupported
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile, Section
from katana_cc.errors import FormatError, InvalidPatchError
from katana_cc.patch import addresses
from katana_cc.patch.layout import (
    ABSOLUTE_64,
    BLANK,
    BROUGHT,
    DIGEST_AT,
    DIGEST_SIZE,
    EDIT,
    EXPECTED_AT,
    FUNCTION,
    HANDED,
    HOOK,
    LAYOUT,
    LINKER_TYPES,
    MACHINES,
    MARK_AT,
    NEW_AT,
    NOTE_AT,
    NOTE_HEAD,
    NOTE_SECTION,
    NT_VERSION,
    PART,
    PREFIX,
    RELIANCE,
    REMEDY,
    REPLACEMENT_AT,
    TABLES,
    is_ours,
    validate,
    verified_digest,
)
from katana_cc.patch.model import (
    Basis,
    Brought,
    BroughtKind,
    DataEdit,
    DataTransform,
    Handed,
    Hook,
    HookKind,
    Identity,
    NewLayout,
    PatchObject,
    PatchRelocation,
    PatchSection,
    PatchSymbol,
    Reason,
    Reliance,
    Replacement,
    Verdict,
)
from katana_cc.patch.transforms import read
from katana_cc.transform.tables import SECTION as FRAMES


def decode(data: bytes, where: str) -> PatchObject:
    """The patch object in `data`; `where` names it in errors.

    Raises:
        InvalidPatchError: not a patch object, of a later format version, damaged, or against the rules of the format.
    """
    verified_digest(data, where)
    try:
        elf = ElfFile(data, where)
        if elf.machine not in SUPPORTED:
            raise InvalidPatchError(unsupported(elf.machine), where=where)
        return _Reader(elf).patch_object()
    except (FormatError, struct.error, ValueError) as error:
        what = error.what if isinstance(error, FormatError) else str(error)
        raise InvalidPatchError(f"patch object against the format: {what}", where=where, remedy=REMEDY) from error


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the parts of a patch object whose digest was verified."""

    elf: ElfFile

    def patch_object(self) -> PatchObject:
        if self.elf.type != c.ET_REL:
            raise FormatError("not a relocatable file")
        note = self._only(NOTE_SECTION)
        if note.offset != NOTE_AT or note.type != c.SHT_NOTE:
            raise FormatError(f"{NOTE_SECTION} is not where it belongs")
        carried = [s for s in self.elf.sections if s.type not in LINKER_TYPES and not is_ours(s.name)]
        if unknown := [s.name for s in self.elf.sections if s.name.startswith(PREFIX) and s.name not in TABLES]:
            raise FormatError(f"unknown section {unknown[0]}")
        index = {s.number: i for i, s in enumerate(carried)}
        numbers = self._numbers()
        po_symbol = {number: i for i, number in enumerate(numbers)}
        symbols = tuple(self._symbol(n, index) for n in numbers)
        identity, verdict = self._note_fields(note)
        po = PatchObject(
            identity,
            verdict,
            self._reasons(),
            tuple(self._section(s, po_symbol) for s in carried),
            symbols,
            self._replacements(po_symbol),
            self._edits(index),
            self._reliances(),
            self._transforms(po_symbol),
            self._hooks(po_symbol),
            self._brought(),
            self._layouts(),
            addresses.decode(self._table("addresses")[1]),
        )
        try:
            validate(po)
        except InvalidPatchError as error:
            raise FormatError(error.what) from error
        return po

    def _only(self, name: str) -> Section:
        found = [s for s in self.elf.sections if s.name == name]
        if len(found) != 1:
            raise FormatError(f"{len(found)} sections {name}, not one")
        return found[0]

    def _table(self, name: str) -> tuple[Section, bytes]:
        section = self._only(PREFIX + name)
        if section.type != c.SHT_PROGBITS:
            raise FormatError(f"{section.name} is of type {section.type}")
        return section, self.elf.contents(section)

    def _note_fields(self, note: Section) -> tuple[Identity, Verdict]:
        raw = self.elf.contents(note)
        (size, description, kind) = NOTE_HEAD.unpack_from(raw)
        if description or kind != NT_VERSION or not NOTE_HEAD.size + size <= len(raw) < NOTE_HEAD.size + size + 4:
            raise FormatError(f"{NOTE_SECTION} is not one note of type {NT_VERSION}")
        line = raw[NOTE_HEAD.size : NOTE_HEAD.size + size - 1]
        fields = line[DIGEST_AT + DIGEST_SIZE + 1 - MARK_AT :].decode("ascii").split(" ")
        if len(fields) != 7:
            raise FormatError(f"{NOTE_SECTION} has {len(fields)} fields")
        verdict, machine, *texts = (unquote_to_bytes(f).decode("utf-8", "surrogateescape") for f in fields)
        if MACHINES.get(self.elf.machine) != machine:
            raise FormatError(f"{NOTE_SECTION} says machine {machine}, the ELF header {self.elf.machine}")
        from_id, to_id, output, from_release, to_release = texts
        return Identity(output, self.elf.machine, from_id, to_id, from_release, to_release), Verdict(verdict)

    def _numbers(self) -> tuple[int, ...]:
        """.katana.symbols: the file's number of each symbol of the patch object."""
        _, raw = self._table("symbols")
        numbers = tuple(n for (n,) in struct.iter_unpack("<I", raw))
        if len(set(numbers)) != len(numbers) or any(not 0 < n < len(self.elf.symbols) for n in numbers):
            raise FormatError(f"{PREFIX}symbols names a symbol twice, or none")
        return numbers

    def _symbol(self, number: int, index: dict[int, int]) -> PatchSymbol:
        s = self.elf.symbols[number]
        section = None if s.section == c.SHN_UNDEF else index.get(s.section)
        if section is None and s.section != c.SHN_UNDEF:
            raise FormatError(f"symbol {s.name} in section {s.section}, which is not carried")
        return PatchSymbol(s.name, s.binding, s.type, section, s.value, s.size)

    def _section(self, s: Section, po_symbol: dict[int, int]) -> PatchSection:
        relocations = []
        for r in self.elf.relocations(s.number):
            if r.symbol not in po_symbol:
                raise FormatError(f"section {s.name}: relocation for symbol {r.symbol}, which is not carried")
            relocations.append(PatchRelocation(r.offset, r.type, po_symbol[r.symbol], r.addend))
        data = self.elf.contents(s)
        return PatchSection(s.name, s.type, s.flags, s.alignment, data, s.size, s.entry_size, tuple(relocations))

    @staticmethod
    def _name(raw: bytes, offset: int) -> str:
        end = raw.find(b"\0", offset)
        if end < 0:
            raise FormatError(f"{PREFIX}strings has no string at {offset}")
        return raw[offset:end].decode("utf-8", "surrogateescape")

    def _pointers(self, section: Section) -> dict[int, int]:
        """Offset in a table → the file's symbol that the relocation there names."""
        kind = ABSOLUTE_64.get(self.elf.machine)
        relocations = self.elf.relocations(section.number)
        if any(r.type != kind or r.addend for r in relocations):
            raise FormatError(f"{section.name}: relocation that is not a plain 64-bit address")
        return {r.offset: r.symbol for r in relocations}

    def _replacements(self, po_symbol: dict[int, int]) -> tuple[Replacement, ...]:
        parts: dict[int, list[tuple[int, int, bytes]]] = {}
        for address, size, function, zero, digest in PART.iter_unpack(self._table("parts")[1]):
            _zero(zero)
            parts.setdefault(function, []).append((address, size, digest))
        blanks = self._blanks()
        strings = self._table("strings")[1]
        section, raw = self._table("functions")
        pointers = self._pointers(section)
        result = []
        for i, (address, size, new, name, zero, digest) in enumerate(FUNCTION.iter_unpack(raw)):
            _zero(new | zero)
            symbol = po_symbol.get(pointers.pop(i * FUNCTION.size + NEW_AT, 0))
            if symbol is None:
                raise FormatError(f"{section.name}: entry {i} has no new function")
            own = tuple(parts.pop(i, ()))
            gaps = blanks.pop(i, {})
            left_out = tuple(tuple(gaps.pop(n, ())) for n in range(1 + len(own))) if gaps else ()
            if gaps:
                raise FormatError("blanks for a part that is not there")
            result.append(Replacement(self._name(strings, name), address, size, digest, symbol, own, left_out))
        if parts or pointers or blanks:
            raise FormatError("parts, blanks or relocations for a replaced function that is not there")
        return tuple(result)

    def _blanks(self) -> dict[int, dict[int, list[tuple[int, int]]]]:
        """Function → which range of it → what its digest leaves out."""
        found: dict[int, dict[int, list[tuple[int, int]]]] = {}
        for function, which, at, size in BLANK.iter_unpack(self._table("blanks")[1]):
            found.setdefault(function, {}).setdefault(which, []).append((at, size))
        return found

    def _edits(self, index: dict[int, int]) -> tuple[DataEdit, ...]:
        strings = self._table("strings")[1]
        section, raw = self._table("edits")
        pointers = self._pointers(section)
        result = []
        for i, (address, old, new, name, flags) in enumerate(EDIT.iter_unpack(raw)):
            _zero(old | new | flags & ~3 | (flags == 2))
            ends = []
            for at in (EXPECTED_AT, REPLACEMENT_AT):
                number = pointers.pop(i * EDIT.size + at, 0)
                symbol = self.elf.symbols[number] if number < len(self.elf.symbols) else None
                if symbol is None or symbol.type != c.STT_SECTION or symbol.value or symbol.section not in index:
                    raise FormatError(f"{section.name}: entry {i} names no carried section")
                ends.append(index[symbol.section])
            result.append(DataEdit(self._name(strings, name), address, ends[0], ends[1], bool(flags), flags == 3))
        if pointers:
            raise FormatError(f"{section.name}: relocations for an edit that is not there")
        return tuple(result)

    def _reliances(self) -> tuple[Reliance, ...]:
        strings = self._table("strings")[1]
        return tuple(
            Reliance(caller, callee, Basis(basis), self._name(strings, through))
            for caller, callee, basis, through in RELIANCE.iter_unpack(self._table("reliances")[1])
        )

    def _transforms(self, po_symbol: dict[int, int]) -> tuple[DataTransform, ...]:
        strings = self._table("strings")[1]
        section, raw = self._table("transforms")
        pointers = self._pointers(section)
        if unknown := pointers.values() - po_symbol.keys():
            raise FormatError(f"{section.name}: symbol {min(unknown)}, which is not carried")
        tables = [s for s in self.elf.sections if s.name == FRAMES]
        frames = self.elf.contents(self._only(FRAMES)) if tables else None
        found = read(
            raw,
            self._table("fields")[1],
            frames,
            lambda offset: self._name(strings, offset),
            {at: po_symbol[number] for at, number in pointers.items()},
        )
        handed: dict[int, list[Handed]] = {}
        for number, hook, back, zero, *rest in HANDED.iter_unpack(self._table("handed")[1]):
            _zero(zero)
            handed.setdefault(number, []).append(Handed(hook, back, *rest))
        if any(number >= len(found) for number in handed):
            raise FormatError(f"{PREFIX}handed speaks of a transformation that is not there")
        return tuple(replace(d, handed=tuple(handed.get(n, ()))) for n, d in enumerate(found))

    def _hooks(self, po_symbol: dict[int, int]) -> tuple[Hook, ...]:
        strings = self._table("strings")[1]
        section, raw = self._table("hooks")
        pointers = self._pointers(section)
        result = []
        for i, (function, kind, name, *zeros) in enumerate(HOOK.iter_unpack(raw)):
            _zero(function | zeros[0] | zeros[1])
            symbol = po_symbol.get(pointers.pop(i * HOOK.size, 0))
            if symbol is None:
                raise FormatError(f"{section.name}: entry {i} has no function")
            result.append(Hook(HookKind(kind), self._name(strings, name), symbol))
        if pointers:
            raise FormatError(f"{section.name}: relocations for a hook that is not there")
        return tuple(result)

    def _brought(self) -> tuple[Brought, ...]:
        strings = self._table("strings")[1]
        result = []
        for section, kind, name, zero, digest in BROUGHT.iter_unpack(self._table("brought")[1]):
            _zero(zero)
            result.append(Brought(section, BroughtKind(kind), self._name(strings, name), digest))
        return tuple(result)

    def _layouts(self) -> tuple[NewLayout, ...]:
        strings = self._table("strings")[1]
        result = []
        for name, zero, digest in LAYOUT.iter_unpack(self._table("layouts")[1]):
            _zero(zero)
            result.append(NewLayout(self._name(strings, name), digest))
        return tuple(result)

    def _reasons(self) -> tuple[Reason, ...]:
        _, raw = self._table("reasons")
        try:
            items = json.loads(raw)
            if not isinstance(items, list):
                raise FormatError(f"{PREFIX}reasons is not a list")
            reasons = tuple(Reason(**item) for item in items)
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"{PREFIX}reasons: {error}") from error
        for r in reasons:
            texts = (r.code, r.severity, r.subject, r.file, r.text)
            if type(r.line) is not int or any(type(t) is not str for t in texts):
                raise FormatError(f"{PREFIX}reasons: a field of the wrong type")
        return reasons


def _zero(value: int) -> None:
    if value:
        raise FormatError("a field that must be zero is not")
