"""Patch objects as files: `encode` writes one, `decode` reads one.  The format is specified in docs/patch-object.md.

A patch object is a valid relocatable ELF file, so that every ELF tool reads it; what ELF has no words for stands in
sections of our own, none of which is SHF_ALLOC:

    .note.katana        first in the file: format version, digest, verdict, machine, identity
    (carried sections)  as the compiler named them, each with its relocations
    .katana.functions   the replacement table; the new function through a relocation
    .katana.parts       further ranges of the replaced functions (.cold)
    .katana.edits       data edits; old and new contents through relocations against section symbols
    .katana.symbols     the order of the symbols before ELF wanted the local ones first
    .katana.strings     names that the tables use
    .katana.reasons     the reasons, as JSON

The digest covers the whole file, and the note has a fixed place, so a damaged file is recognised before any of it is
parsed.  The digest is no signature: whatever is parsed is checked again, and a forged file gives the same error.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile, Section
from katana_cc.elf.writer import NewRelocation, NewSection, NewSymbol, symbol_numbers, write_relocatable
from katana_cc.errors import FormatError, InvalidPatchError
from katana_cc.patch.model import (
    FORMAT_VERSION,
    DataEdit,
    Identity,
    PatchObject,
    PatchRelocation,
    PatchSection,
    PatchSymbol,
    Reason,
    Replacement,
    Verdict,
)

NOTE_SECTION: Final = ".note.katana"
NT_VERSION: Final = 1  # all is in the name, the descriptor is empty: the only foreign note that eu-elflint lets pass
PREFIX: Final = ".katana."
TABLES: Final = tuple(PREFIX + n for n in ("functions", "parts", "edits", "symbols", "strings", "reasons"))

_NOTE_HEAD: Final = struct.Struct("<III")  # n_namesz, n_descsz, n_type
_NOTE_AT: Final = 64  # straight after the ELF header
_NOTE_MARK: Final = b"Katana patch "
_MARK_AT: Final = _NOTE_AT + _NOTE_HEAD.size
_DIGEST_AT: Final = _MARK_AT + len(b"Katana patch 1 ")
_DIGEST_SIZE: Final = 32  # hex digits
_UNQUOTED: Final = "/:@+,=~"  # beside letters, digits, "_.-"
_FUNCTION: Final = struct.Struct("<QQQII32s")  # address, size, new (relocated), name, 0, SHA-256
_PART: Final = struct.Struct("<QQII32s")  # address, size, function, 0, SHA-256
_EDIT: Final = struct.Struct("<QQQII")  # address, expected, replacement (both relocated), name, 0
_NEW_AT, _EXPECTED_AT, _REPLACEMENT_AT = 16, 8, 16
MACHINES: Final = {c.EM_X86_64: "x86-64"}
ABSOLUTE_64: Final = {c.EM_X86_64: c.R_X86_64_64}  # machine → "the 64-bit address S + A"
_OWN_TYPES: Final = (c.SHT_NULL, c.SHT_SYMTAB, c.SHT_STRTAB, c.SHT_RELA, c.SHT_REL, c.SHT_GROUP, c.SHT_SYMTAB_SHNDX)
_REMADE: Final = "make the patch again (`make`, or `katana-release --since`), or copy it again if it was copied"


def patch_id(data: bytes) -> str:
    """The identity of an encoded patch object: 32 hex digits, a truncated SHA-256 over all of it.

    Raises:
        InvalidPatchError: not a patch object, of a later format version, or damaged.
    """
    return _verified_digest(data, "patch object").decode("ascii")


def encode(po: PatchObject) -> bytes:
    """The file that holds `po`; the same value always gives the same bytes.

    SHF_GROUP and SHF_LINK_ORDER of the sections are dropped (see `katana_cc.elf.writer`).

    Raises:
        InvalidPatchError: `po` breaks a rule of the model or does not fit the format.
    """
    _validate(po)
    symbols, section_symbols = _symbols_of(po)
    strings = _Names()
    kind = ABSOLUTE_64[po.identity.machine]

    def table(name: str, data: bytes, relocations: list[NewRelocation], entry: int, alignment: int = 8) -> NewSection:
        return NewSection(PREFIX + name, c.SHT_PROGBITS, 0, alignment, data, 0, entry, tuple(relocations))

    functions, parts, edits = bytearray(), bytearray(), bytearray()
    news: list[NewRelocation] = []
    contents: list[NewRelocation] = []
    try:
        for number, r in enumerate(po.replacements):
            news.append(NewRelocation(len(functions) + _NEW_AT, kind, r.symbol, 0))
            functions += _FUNCTION.pack(r.address, r.size, 0, strings.offset(r.name), 0, r.digest)
            for address, size, digest in r.parts:
                parts += _PART.pack(address, size, number, 0, digest)
        for e in po.data_edits:
            for at, section in ((_EXPECTED_AT, e.expected), (_REPLACEMENT_AT, e.replacement)):
                contents.append(NewRelocation(len(edits) + at, kind, section_symbols[section], 0))
            edits += _EDIT.pack(e.address, 0, 0, strings.offset(e.name), 0)
        order = struct.pack(f"<{len(po.symbols)}I", *symbol_numbers(symbols)[: len(po.symbols)])
        sections = [
            NewSection(NOTE_SECTION, c.SHT_NOTE, 0, 4, _note(po)),
            *(_carried(s) for s in po.sections),
            table("functions", bytes(functions), news, _FUNCTION.size),
            table("parts", bytes(parts), [], _PART.size),
            table("edits", bytes(edits), contents, _EDIT.size),
            table("symbols", order, [], 4, 4),
            table("strings", bytes(strings.data), [], 0, 1),
            table("reasons", _reasons_json(po.reasons), [], 0, 1),
        ]
        data = bytearray(write_relocatable(po.identity.machine, sections, symbols))
    except (struct.error, UnicodeEncodeError, FormatError) as error:
        raise InvalidPatchError(f"cannot be encoded: {error}") from error
    data[_DIGEST_AT : _DIGEST_AT + _DIGEST_SIZE] = _digest(data)
    return bytes(data)


def decode(data: bytes, where: str) -> PatchObject:
    """The patch object in `data`; `where` names it in errors.

    Raises:
        InvalidPatchError: not a patch object, of a later format version, damaged, or against the rules of the format.
    """
    _verified_digest(data, where)
    try:
        return _Reader(ElfFile(data, where)).patch_object()
    except (FormatError, struct.error, ValueError) as error:
        what = error.what if isinstance(error, FormatError) else str(error)
        raise InvalidPatchError(f"patch object against the format: {what}", where=where, remedy=_REMADE) from error


def seal(data: bytes) -> bytes:
    """`data`, a patch object, with its digest computed anew (for tools and tests that alter one on purpose)."""
    return data[:_DIGEST_AT] + _digest(data) + data[_DIGEST_AT + _DIGEST_SIZE :]


# ---- the note ------------------------------------------------------------------------------------------------------


def _note(po: PatchObject) -> bytes:
    i = po.identity
    fields = (po.verdict, MACHINES[i.machine], i.from_build_id, i.to_build_id, i.output, i.from_release, i.to_release)
    head = _NOTE_MARK + b"%d %s " % (FORMAT_VERSION, b"0" * _DIGEST_SIZE)
    name = head + " ".join(quote(_utf8(f), safe=_UNQUOTED) for f in fields).encode("ascii") + b"\0"
    return _NOTE_HEAD.pack(len(name), 0, NT_VERSION) + name + bytes(-len(name) % 4)


def _digest(data: bytes | bytearray) -> bytes:
    """The digest of a file in hex, computed as if its own digits were zeros."""
    sha = hashlib.sha256(data[:_DIGEST_AT])
    sha.update(b"0" * _DIGEST_SIZE)
    sha.update(data[_DIGEST_AT + _DIGEST_SIZE :])
    return sha.hexdigest()[:_DIGEST_SIZE].encode("ascii")


def _verified_digest(data: bytes, where: str) -> bytes:
    """The digest of the file, which it must also state."""
    if data[:4] != b"\x7fELF" or not data.startswith(_NOTE_MARK, _MARK_AT):
        raise InvalidPatchError("not a patch object (or cut off)", where=where, remedy=_REMADE)
    version = data[_MARK_AT + len(_NOTE_MARK) : _DIGEST_AT + 16].split(b" ")[0]
    if version.isdigit() and int(version) != FORMAT_VERSION:
        what = f"patch object of format version {int(version)}; this katana reads version {FORMAT_VERSION}"
        remedy = f"use a katana that reads version {int(version)}, or make the patch again with this one"
        raise InvalidPatchError(what, where=where, remedy=remedy)
    digest = data[_DIGEST_AT : _DIGEST_AT + _DIGEST_SIZE]
    if _digest(data) != digest:
        raise InvalidPatchError("patch object is damaged: its digest does not match", where=where, remedy=_REMADE)
    return bytes(digest)


# ---- encoding ------------------------------------------------------------------------------------------------------


class _Names:
    """.katana.strings in the making: NUL-terminated UTF-8, each once; offset 0 is the empty string."""

    def __init__(self) -> None:
        self.data = bytearray(1)
        self._offsets = {b"": 0}

    def offset(self, text: str) -> int:
        raw = _utf8(text)
        if raw not in self._offsets:
            self._offsets[raw] = len(self.data)
            self.data += raw + b"\0"
        return self._offsets[raw]


def _utf8(text: str) -> bytes:
    if "\0" in text:
        raise InvalidPatchError(f"cannot be encoded: {text!r} holds a NUL")
    return text.encode("utf-8", "surrogateescape")


def _carried(s: PatchSection) -> NewSection:
    relocations = tuple(NewRelocation(r.offset, r.type, r.symbol, r.addend) for r in s.relocations)
    return NewSection(s.name, s.type, s.flags, s.alignment, s.data, s.size, s.entry_size, relocations)


def _symbols_of(po: PatchObject) -> tuple[list[NewSymbol], dict[int, int]]:
    """The file's symbols, those of `po` first, and section → index of its STT_SECTION symbol where edits need one."""
    symbols = [
        NewSymbol(s.name, s.binding, s.type, 0 if s.section is None else s.section + 2, s.value, s.size)
        for s in po.symbols
    ]
    wanted = sorted({n for e in po.data_edits for n in (e.expected, e.replacement)})
    by_section = {
        s.section: i
        for i, s in reversed(list(enumerate(po.symbols)))
        if s.section is not None and s.type == c.STT_SECTION and s.value == 0
    }
    for n in wanted:
        if n not in by_section:
            by_section[n] = len(symbols)
            symbols.append(NewSymbol("", c.STB_LOCAL, c.STT_SECTION, n + 2, 0, 0))
    return symbols, by_section


def _reasons_json(reasons: tuple[Reason, ...]) -> bytes:
    # ASCII only: a file name that is not UTF-8 survives as an escape.
    return json.dumps([asdict(r) for r in reasons], sort_keys=True, separators=(",", ":")).encode("ascii")


def _validate(po: PatchObject) -> None:
    """The rules of the model that the format relies on; `decode` holds a file to the same ones."""

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise InvalidPatchError(f"against the rules of patch objects: {what}")

    need(po.identity.machine in ABSOLUTE_64, f"machine {po.identity.machine} is not supported")
    count, symbols = len(po.sections), len(po.symbols)
    if po.verdict is Verdict.REFUSED:
        need(not (count or symbols or po.replacements or po.data_edits), "a refused change that carries something")
    for s in po.sections:
        need(s.type not in _OWN_TYPES, f"carried section {s.name} of type {s.type}")
        need(s.name != NOTE_SECTION and not s.name.startswith(PREFIX), f"carried section named {s.name}")
        need(s.type == c.SHT_NOBITS or s.size == len(s.data), f"section {s.name}: size {s.size}, {len(s.data)} bytes")
        need(s.type != c.SHT_NOBITS or not (s.data or s.relocations), f"section {s.name}: SHT_NOBITS with contents")
        need(all(0 <= r.offset < s.size for r in s.relocations), f"section {s.name}: relocation outside of it")
        need(all(0 <= r.symbol < symbols for r in s.relocations), f"section {s.name}: relocation for no symbol")
    for y in po.symbols:
        if y.section is None:
            need(y.binding in (c.STB_GLOBAL, c.STB_WEAK), f"undefined symbol {y.name} is neither global nor weak")
            need(bool(y.name), f"undefined symbol without a name, value {y.value:#x}")
        else:
            need(0 <= y.section < count, f"symbol {y.name}: no section {y.section}")
            need(y.binding == c.STB_LOCAL, f"defined symbol {y.name} is not local")
    for r in po.replacements:
        need(0 <= r.symbol < symbols, f"function {r.name}: no symbol {r.symbol}")
        need(all(len(d) == 32 for d in (r.digest, *(p[2] for p in r.parts))), f"function {r.name}: no SHA-256")
    for e in po.data_edits:
        need(0 <= e.expected < count and 0 <= e.replacement < count, f"edit of {e.name}: no such section")


# ---- decoding ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the parts of a patch object whose digest was verified."""

    elf: ElfFile

    def patch_object(self) -> PatchObject:
        if self.elf.type != c.ET_REL:
            raise FormatError("not a relocatable file")
        note = self._only(NOTE_SECTION)
        if note.offset != _NOTE_AT or note.type != c.SHT_NOTE:
            raise FormatError(f"{NOTE_SECTION} is not where it belongs")
        carried = [s for s in self.elf.sections if s.type not in _OWN_TYPES and not _is_ours(s)]
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
        )
        try:
            _validate(po)
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
        (size, description, kind) = _NOTE_HEAD.unpack_from(raw)
        if description or kind != NT_VERSION or not _NOTE_HEAD.size + size <= len(raw) < _NOTE_HEAD.size + size + 4:
            raise FormatError(f"{NOTE_SECTION} is not one note of type {NT_VERSION}")
        line = raw[_NOTE_HEAD.size : _NOTE_HEAD.size + size - 1]
        fields = line[_DIGEST_AT + _DIGEST_SIZE + 1 - _MARK_AT :].decode("ascii").split(" ")
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
        for address, size, function, zero, digest in _PART.iter_unpack(self._table("parts")[1]):
            _zero(zero)
            parts.setdefault(function, []).append((address, size, digest))
        strings = self._table("strings")[1]
        section, raw = self._table("functions")
        pointers = self._pointers(section)
        result = []
        for i, (address, size, new, name, zero, digest) in enumerate(_FUNCTION.iter_unpack(raw)):
            _zero(new | zero)
            symbol = po_symbol.get(pointers.pop(i * _FUNCTION.size + _NEW_AT, 0))
            if symbol is None:
                raise FormatError(f"{section.name}: entry {i} has no new function")
            result.append(
                Replacement(self._name(strings, name), address, size, digest, symbol, tuple(parts.pop(i, ())))
            )
        if parts or pointers:
            raise FormatError("parts or relocations for a replaced function that is not there")
        return tuple(result)

    def _edits(self, index: dict[int, int]) -> tuple[DataEdit, ...]:
        strings = self._table("strings")[1]
        section, raw = self._table("edits")
        pointers = self._pointers(section)
        result = []
        for i, (address, old, new, name, zero) in enumerate(_EDIT.iter_unpack(raw)):
            _zero(old | new | zero)
            ends = []
            for at in (_EXPECTED_AT, _REPLACEMENT_AT):
                number = pointers.pop(i * _EDIT.size + at, 0)
                symbol = self.elf.symbols[number] if number < len(self.elf.symbols) else None
                if symbol is None or symbol.type != c.STT_SECTION or symbol.value or symbol.section not in index:
                    raise FormatError(f"{section.name}: entry {i} names no carried section")
                ends.append(index[symbol.section])
            result.append(DataEdit(self._name(strings, name), address, ends[0], ends[1]))
        if pointers:
            raise FormatError(f"{section.name}: relocations for an edit that is not there")
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


def _is_ours(s: Section) -> bool:
    return s.name == NOTE_SECTION or s.name.startswith(PREFIX)


def _zero(value: int) -> None:
    if value:
        raise FormatError("a field that must be zero is not")
