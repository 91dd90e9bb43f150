"""Patch objects for tests: a small one with one of everything, and one made from a compiled object."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from katana_cc.dwarf.forms import Encoding
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile, Section
from katana_cc.patch.addresses import NO_ADDRESSES, AddressMap, Altered, Lying, Named, Shape, Stretch
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
from katana_cc.transform.model import Copy, Dropped, Float, Initial, Integer, Pointer, Repeat, Transformation

AX = c.SHF_ALLOC | c.SHF_EXECINSTR
WA = c.SHF_ALLOC | c.SHF_WRITE
IDENTITY = Identity("src/server", c.EM_X86_64, "ab" * 20, "cd" * 20, "v1.2", "3f9c21ab")

# endbr64; call log; mov fresh(%rip),%eax; call puts; ret
_PARSE = bytes.fromhex("f30f1efa e800000000 8b0500000000 e800000000 c3")
_FRAME = bytes.fromhex(
    "14000000 00000000 017a5200 01781001 1b0c0708 90010000"  # CIE
    "14000000 1c000000 00000000 15000000 00000000 00000000"  # FDE
)


def sample() -> PatchObject:
    """One of everything the format knows."""
    r, s, y = PatchRelocation, PatchSection, PatchSymbol
    calls = (r(5, 4, 4, -4), r(11, 2, 1, -4), r(16, 4, 0, -4))
    sections = (
        s(".text.parse", c.SHT_PROGBITS, AX, 16, _PARSE, len(_PARSE), 0, calls),
        s(".text.helper", c.SHT_PROGBITS, AX, 16, b"\xc3", 1),
        s(".data.fresh", c.SHT_PROGBITS, WA, 8, bytes(8), 8, 0, (r(0, 1, 3, 0),)),
        s(".bss.zeroes", c.SHT_NOBITS, WA, 32, b"", 4096),
        s(".eh_frame", c.SHT_PROGBITS, c.SHF_ALLOC, 8, _FRAME, len(_FRAME), 0, (r(0x20, 2, 10, 0),)),
        s(".katold.banner", c.SHT_PROGBITS, 0, 1, b"one\0", 4),
        s(".katnew.banner", c.SHT_PROGBITS, 0, 1, b"two\0", 4),
    )  # fmt: skip
    symbols = (
        y("puts", c.STB_GLOBAL, c.STT_NOTYPE, None, 0, 0),
        y("fresh", c.STB_LOCAL, c.STT_OBJECT, 2, 0, 8),
        y("parse", c.STB_LOCAL, c.STT_FUNC, 0, 0, len(_PARSE)),
        y("helper", c.STB_LOCAL, c.STT_FUNC, 1, 0, 1),
        y("server.c:log", c.STB_GLOBAL, c.STT_FUNC, None, 0x401234, 20),
        y("server.c:log", c.STB_GLOBAL, c.STT_FUNC, None, 0x401299, 20),
        y("zeroes", c.STB_LOCAL, c.STT_OBJECT, 3, 0, 4096),
        y("maybe", c.STB_WEAK, c.STT_NOTYPE, None, 0, 0),
        y("depth", c.STB_GLOBAL, c.STT_TLS, None, 8, 4),
        y("errors", c.STB_GLOBAL, c.STT_OBJECT, None, 0x404060, 4),
        y("", c.STB_LOCAL, c.STT_SECTION, 0, 0, 0),
        y("katana_before_hook_fill", c.STB_LOCAL, c.STT_FUNC, 1, 0, 1),
    )
    reasons = (
        Reason("function-changed", "info", "parse", "src/parse.c", 12, "its body changed"),
        Reason("function-new", "info", "helper", "src/parse.c", 3, "only the new build has it"),
        Reason("function-always-active", "needs", "parse", "src/parse.c", 12, "it is on the stack all the time"),
    )
    fresh = Transformation("fresh", 4, 8, (Integer(0, 64, Encoding.SIGNED, 0, 32, Encoding.SIGNED),))
    conn = Transformation(
        "struct conn",
        40,
        72,
        (
            Integer(0, 5, Encoding.UNSIGNED, 3, 5, Encoding.UNSIGNED, "flags", "flags"),
            Initial(64, 64, "deadline"),
            Pointer(16, 8, "struct conn", "next", "next"),
            Repeat(3, 24, 16, 16, 8, (Copy(0, 0, 4, "x", "x"), Float(8, 8, 4, 4, "y", "y")), "at[]", "at[]"),
            Dropped(32, 16, "port"),
        ),
    )
    part = (0x401300, 8, hashlib.sha256(b"cold").digest())
    return PatchObject(
        IDENTITY,
        Verdict.NEEDS,
        reasons,
        sections,
        symbols,
        (Replacement("parse", 0x401200, 48, hashlib.sha256(b"parse").digest(), 2, (part,), (((1, 4), (12, 4)), ())),),
        (
            DataEdit("banner", 0x402000, 5, 6),
            DataEdit("limit", 0x404010, 5, 6, True),
            DataEdit("depth", 0x404020, 5, 6, True, True),
        ),
        (Reliance(0, 0, Basis.BODY_SEEN, "walk"),),
        (DataTransform(fresh, 0x404080, 1, handed=(Handed(2, 3, 0, 0, 1, 4, 8),)), DataTransform(conn)),
        (
            Hook(HookKind.BEFORE, "fill", 11),
            Hook(HookKind.AFTER_REVERT, "drain", 11),
            Hook(HookKind.TRANSFORM, "renew", 11),
            Hook(HookKind.TRANSFORM_BACK, "recall", 11),
        ),
        (
            Brought(1, BroughtKind.FUNCTION, "parse.o: helper", hashlib.sha256(b"helper").digest()),
            Brought(2, BroughtKind.VARIABLE, "fresh", hashlib.sha256(b"fresh").digest()),
            Brought(3, BroughtKind.VARIABLE, "zeroes", bytes(32)),
        ),
        (NewLayout("struct conn", hashlib.sha256(b"conn").digest()),),
        AddressMap(
            (Stretch(0x401000, 0x200, 0x401000), Stretch(0x401240, 0x100, 0x401230)),
            (Stretch(0, 16, 8),),
            (Lying(0, 0x401200, 0x401200), Lying(2, 0x404080, 0)),
            (Named("_end", 0x405000, 0x404FF0), Named("__stop_table", 0x404100, 0)),
            (Altered(0x401260, Shape(((4, 4),), hashlib.sha256(b"altered").digest())),),
            ((Shape(((1, 4), (12, 4)), hashlib.sha256(b"shape").digest()), Shape((), hashlib.sha256(b"").digest())),),
            (0,),
        ),
    )


def refused() -> PatchObject:
    """A refused change: reasons only."""
    reason = Reason("type-changed", "refused", "struct conn", "src/conn.h", 40, "it grew by 8 bytes <b>&co</b>")
    return PatchObject(IDENTITY, Verdict.REFUSED, (reason,))


def carried_sections(elf: ElfFile) -> list[Section]:
    """The sections of a compiled object that `from_object` carries, in order."""
    return [s for s in elf.sections if s.flags & c.SHF_ALLOC and s.type != c.SHT_NOTE and s.size]


def from_object(elf: ElfFile) -> PatchObject:
    """A patch object that carries every allocated section of a compiled object, as the diff would hand them over.

    Undefined symbols whose name ends in `_old` get an address; every function replaces one at an invented address.
    """
    carried = carried_sections(elf)
    index = {s.number: i for i, s in enumerate(carried)}
    used = sorted(
        {r.symbol for s in carried for r in elf.relocations(s.number)}
        | {n for n, y in enumerate(elf.symbols) if y.section in index and y.type != c.STT_NOTYPE}
    )
    number = {n: i for i, n in enumerate(used)}
    symbols = []
    for n in used:
        y = elf.symbols[n]
        if y.section in index:
            symbols.append(PatchSymbol(y.name, c.STB_LOCAL, y.type, index[y.section], y.value, y.size))
        else:
            address = 0x401000 + 64 * n if y.name.endswith("_old") else 0
            symbols.append(PatchSymbol(y.name, max(y.binding, 1), y.type, None, address, 0))
    sections = tuple(
        PatchSection(
            s.name,
            s.type,
            s.flags & ~c.SHF_GROUP,
            s.alignment,
            elf.contents(s),
            s.size,
            s.entry_size,
            tuple(PatchRelocation(r.offset, r.type, number[r.symbol], r.addend) for r in elf.relocations(s.number)),
        )
        for s in carried
    )
    replacements = tuple(
        Replacement(y.name, 0x500000 + 4096 * i, 64, hashlib.sha256(y.name.encode()).digest(), i)
        for i, y in enumerate(symbols)
        if y.section is not None and y.type == c.STT_FUNC
    )
    base = replace(
        sample(),
        sections=sections,
        symbols=tuple(symbols),
        replacements=replacements,
        data_edits=(),
        reliances=(),
        transforms=(),
        hooks=(),
        brought=(),
        layouts=(),
        addresses=NO_ADDRESSES,
    )
    return replace(base, verdict=Verdict.SAFE, reasons=base.reasons[:2])
