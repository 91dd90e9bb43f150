"""Patch object → file.  The way in is `katana_cc.patch.codec.encode`."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from urllib.parse import quote

from katana_cc.elf import constants as c
from katana_cc.elf.writer import NewRelocation, NewSection, NewSymbol, StringTable, symbol_numbers, write_relocatable
from katana_cc.errors import FormatError, InvalidPatchError
from katana_cc.patch import addresses, transforms
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
    MACHINES,
    NEW_AT,
    NOTE_HEAD,
    NOTE_MARK,
    NOTE_SECTION,
    NT_VERSION,
    PART,
    PREFIX,
    RELIANCE,
    REPLACEMENT_AT,
    UNQUOTED,
    digest_of,
    validate,
)
from katana_cc.patch.model import FORMAT_VERSION, PatchObject, PatchSection, Reason


def encode(po: PatchObject) -> bytes:
    """The file that holds `po`; the same value always gives the same bytes.

    SHF_GROUP and SHF_LINK_ORDER of the sections are dropped (see `katana_cc.elf.writer`).

    Raises:
        InvalidPatchError: `po` breaks a rule of the model or does not fit the format.
    """
    validate(po)
    strings = StringTable()
    try:
        symbols, section_symbols = _symbols_of(po)
        order = struct.pack(f"<{len(po.symbols)}I", *symbol_numbers(symbols)[: len(po.symbols)])
        sections = [
            NewSection(NOTE_SECTION, c.SHT_NOTE, 0, 4, _note(po)),
            *(_carried(s) for s in po.sections),
            _functions(po, strings),
            _parts(po),
            _edits(po, strings, section_symbols),
            _reliances(po, strings),
            *transforms.written(po, lambda text: _name(strings, text)),
            _handed(po),
            _hooks(po, strings),
            _brought(po, strings),
            _layouts(po, strings),
            _blanks(po),
            _table("addresses", addresses.encode(po.addresses), 0, 1),
            _table("symbols", order, 4, 4),
            # From here on no name is added.
            _table("strings", bytes(strings.data), 0, 1),
            _table("reasons", _reasons_json(po.reasons), 0, 1),
        ]
        data = bytearray(write_relocatable(po.identity.machine, sections, symbols))
    except (struct.error, UnicodeEncodeError, FormatError) as error:
        raise InvalidPatchError(f"cannot be encoded: {error}") from error
    data[DIGEST_AT : DIGEST_AT + DIGEST_SIZE] = digest_of(data)
    return bytes(data)


def _table(
    name: str, data: bytes, entry_size: int, alignment: int = 8, relocations: tuple[NewRelocation, ...] = ()
) -> NewSection:
    return NewSection(PREFIX + name, c.SHT_PROGBITS, 0, alignment, data, 0, entry_size, relocations)


def _functions(po: PatchObject, strings: StringTable) -> NewSection:
    kind = ABSOLUTE_64[po.identity.machine]
    entries, relocations = bytearray(), []
    for r in po.replacements:
        relocations.append(NewRelocation(len(entries) + NEW_AT, kind, r.symbol, 0))
        entries += FUNCTION.pack(r.address, r.size, 0, _name(strings, r.name), 0, r.digest)
    return _table("functions", bytes(entries), FUNCTION.size, relocations=tuple(relocations))


def _parts(po: PatchObject) -> NewSection:
    entries = b"".join(
        PART.pack(address, size, number, 0, digest)
        for number, r in enumerate(po.replacements)
        for address, size, digest in r.parts
    )
    return _table("parts", entries, PART.size)


def _edits(po: PatchObject, strings: StringTable, section_symbols: dict[int, int]) -> NewSection:
    kind = ABSOLUTE_64[po.identity.machine]
    entries, relocations = bytearray(), []
    for e in po.data_edits:
        for at, section in ((EXPECTED_AT, e.expected), (REPLACEMENT_AT, e.replacement)):
            relocations.append(NewRelocation(len(entries) + at, kind, section_symbols[section], 0))
        entries += EDIT.pack(e.address, 0, 0, _name(strings, e.name), e.is_initialiser | e.is_taken << 1)
    return _table("edits", bytes(entries), EDIT.size, relocations=tuple(relocations))


def _reliances(po: PatchObject, strings: StringTable) -> NewSection:
    entries = b"".join(RELIANCE.pack(r.caller, r.callee, r.basis, _name(strings, r.through)) for r in po.reliances)
    return _table("reliances", entries, RELIANCE.size, 4)


def _handed(po: PatchObject) -> NewSection:
    entries = b"".join(
        HANDED.pack(number, h.hook, h.back, 0, *h[2:]) for number, d in enumerate(po.transforms) for h in d.handed
    )
    return _table("handed", entries, HANDED.size)


def _hooks(po: PatchObject, strings: StringTable) -> NewSection:
    kind = ABSOLUTE_64[po.identity.machine]
    entries, relocations = bytearray(), []
    for h in po.hooks:
        relocations.append(NewRelocation(len(entries), kind, h.symbol, 0))
        entries += HOOK.pack(0, h.kind, _name(strings, h.name), 0, 0)
    return _table("hooks", bytes(entries), HOOK.size, relocations=tuple(relocations))


def _brought(po: PatchObject, strings: StringTable) -> NewSection:
    entries = b"".join(BROUGHT.pack(b.section, b.kind, _name(strings, b.name), 0, b.digest) for b in po.brought)
    return _table("brought", entries, BROUGHT.size, 4)


def _layouts(po: PatchObject, strings: StringTable) -> NewSection:
    entries = b"".join(LAYOUT.pack(_name(strings, x.name), 0, x.digest) for x in po.layouts)
    return _table("layouts", entries, LAYOUT.size, 4)


def _blanks(po: PatchObject) -> NewSection:
    entries = b"".join(
        BLANK.pack(number, which, at, size)
        for number, r in enumerate(po.replacements)
        for which, blanks in enumerate(r.blanks)
        for at, size in blanks
    )
    return _table("blanks", entries, BLANK.size)


def _note(po: PatchObject) -> bytes:
    i = po.identity
    fields = (po.verdict, MACHINES[i.machine], i.from_build_id, i.to_build_id, i.output, i.from_release, i.to_release)
    head = NOTE_MARK + b"%d %s " % (FORMAT_VERSION, b"0" * DIGEST_SIZE)
    name = head + " ".join(quote(_utf8(f), safe=UNQUOTED) for f in fields).encode("ascii") + b"\0"
    return NOTE_HEAD.pack(len(name), 0, NT_VERSION) + name + bytes(-len(name) % 4)


def _name(strings: StringTable, text: str) -> int:
    _utf8(text)  # refuses what a NUL-terminated string cannot hold
    return strings.offset(text)


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
