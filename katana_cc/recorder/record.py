"""The record of one object file: its allocated sections with canonical keys and witnesses, and its symbols.

Theory of operation.  Two builds of one function seldom have the same bytes: static locals are renumbered, strings move
within `.rodata.str1.1`, calls to static functions are relative to a section symbol.  The *canonical key* of a section
is a hash of its bytes with all relocated fields zeroed, and of what each relocation means: a symbol by name without
the compiler's `.NNN`, a literal by its contents, a place in another section by that section's symbol and the distance.
Equal keys mean "the same up to which of several same-named locals is meant"; `diff.compare` decides the rest.

The *witness* is the longest run (at most 16 bytes) that no relocation touches: the recorder checks it in the final
file, to know that the placement the link map promised is true, without parsing unchanged objects again.

A record depends on the object's bytes only and is kept in the store by the object's hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from katana_cc.elf import constants as c
from katana_cc.elf.fields import EXTENTS, PC_RELATIVE, masked
from katana_cc.elf.reader import ElfFile, Relocation, Section, Symbol
from katana_cc.errors import FormatError

WITNESS_SIZE: Final = 16

_NUMBERED = re.compile(r"\.\d+(?=$|\.)")


class SectionRecord(NamedTuple):
    """One allocated section."""

    number: int
    name: str
    type: int
    flags: int
    size: int
    alignment: int
    key: str
    witness_offset: int
    witness: bytes


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """What is kept of an object: `file` is its STT_FILE symbol, `problem` why its keys are missing, if so."""

    file: str
    sections: tuple[SectionRecord, ...]
    symbols: tuple[Symbol, ...]
    problem: str = ""


def stem(name: str) -> str:
    """A symbol's name without the numbers compilers add to tell locals apart.

    `counter.0` → `counter`; `parse.constprop.0` → `parse.constprop`; `parse.isra.0.cold` → `parse.isra.cold`.
    """
    return _NUMBERED.sub("", name)


def make_record(elf: ElfFile) -> ObjectRecord:
    """Read one relocatable object.

    Raises:
        FormatError: it is not ET_REL for x86-64, or damaged.
    """
    if elf.type != c.ET_REL:
        raise FormatError("not a relocatable object", where=elf.where)
    if elf.machine != c.EM_X86_64:
        raise FormatError(f"machine {elf.machine} is not supported (x86-64 only)", where=elf.where)
    symbols = elf.symbols
    file = next((s.name for s in symbols if s.type == c.STT_FILE), "")
    problem = ""
    sections = []
    for section in elf.sections:
        if not section.flags & c.SHF_ALLOC or not section.size:
            continue
        relocations = elf.relocations(section.number)
        unknown = {r.type for r in relocations} - EXTENTS.keys()
        if unknown:
            problem = f"relocation type {min(unknown)} in {section.name} is not known"
            continue
        data = elf.contents(section)
        offset, witness = _witness(data, relocations)
        key = "" if section.name == ".eh_frame" else _key(elf, section, data, relocations)
        sections.append(
            SectionRecord(section.number, section.name, section.type, section.flags, section.size,
                          section.alignment, key, offset, witness)
        )  # fmt: skip
    kept = {s.number for s in sections} | {c.SHN_COMMON}
    defined = tuple(s for s in symbols if s.section in kept and s.type != c.STT_SECTION and s.name)
    if any(s.name.startswith((".gnu.lto_", ".gnu.debuglto_")) for s in elf.sections) and not any(
        s.flags & c.SHF_EXECINSTR for s in sections
    ):
        problem = "it holds link-time-optimisation bytecode and no machine code; build without -flto"
    return ObjectRecord(file, tuple(sections), defined, problem)


def _witness(data: bytes, relocations: Sequence[Relocation]) -> tuple[int, bytes]:
    best_at, best = 0, 0
    position = 0
    for r in sorted(relocations):
        before, after = EXTENTS[r.type]
        run = r.offset - before - position
        if run > best:
            best_at, best = position, run
            if best >= WITNESS_SIZE:
                return best_at, data[best_at : best_at + WITNESS_SIZE]
        position = max(position, r.offset + after)
    if len(data) - position > best:
        best_at, best = position, len(data) - position
    return best_at, data[best_at : best_at + min(best, WITNESS_SIZE)]


def _key(elf: ElfFile, section: Section, data: bytes, relocations: Sequence[Relocation]) -> str:
    parts = [masked(data, relocations, relaxed=False), b"%d %d %d" % (section.type, section.flags, section.size)]
    symbols, sections = elf.symbols, elf.sections
    for r in relocations:
        symbol = symbols[r.symbol]
        target = symbol.section
        if target == c.SHN_UNDEF or target >= c.SHN_LORESERVE:
            meaning = symbol.name
            addend = r.addend
        elif sections[target].flags & c.SHF_MERGE:
            at = symbol.value + (r.addend + (4 if r.type in PC_RELATIVE else 0) if symbol.type == c.STT_SECTION else 0)
            meaning = literal_at(elf, sections[target], at).hex()
            addend = 0 if symbol.type == c.STT_SECTION else r.addend
        else:
            meaning = stem(sections[target].name if symbol.type == c.STT_SECTION else symbol.name)
            addend = r.addend
        parts.append(f"{r.offset} {r.type} {meaning} {addend}".encode("utf-8", "surrogateescape"))
    return hashlib.blake2b(b"\n".join(parts), digest_size=16).hexdigest()


def literal_at(elf: ElfFile, section: Section, offset: int) -> bytes:
    """The literal at `offset` of an SHF_MERGE section: up to its terminator for strings, else one entry."""
    data = elf.contents(section)
    width = max(section.entry_size, 1)
    if not section.flags & c.SHF_STRINGS:
        return data[offset : offset + width]
    if width == 1:
        end = data.find(b"\0", offset)
        return data[offset : end + 1 if end >= 0 else len(data)]
    end = offset
    while end < len(data) and data[end : end + width] != bytes(width):
        end += width
    return data[offset : end + width]


def to_bytes(record: ObjectRecord) -> bytes:
    """A record as a blob's contents (JSON)."""
    return json.dumps(
        {
            "file": record.file,
            "problem": record.problem,
            "sections": [[*s[:-1], s.witness.hex()] for s in record.sections],
            "symbols": record.symbols,
        },
        separators=(",", ":"),
    ).encode()


def from_bytes(data: bytes) -> ObjectRecord:
    """The inverse of `to_bytes`."""
    raw = json.loads(data)
    return ObjectRecord(
        raw["file"],
        tuple(SectionRecord._make((*s[:-1], bytes.fromhex(s[-1]))) for s in raw["sections"]),
        tuple(Symbol(*s) for s in raw["symbols"]),
        raw["problem"],
    )
