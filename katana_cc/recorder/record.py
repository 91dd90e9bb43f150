"""The record of one object file: its allocated sections with witnesses, and its symbols.

Theory of operation.  What every link of an object needs of it is found once: which sections it has, what it defines,
and how to recognise each section in an output.  The *witness* is the longest
run (at most 16 bytes) that no relocation touches: the recorder checks it in the final file, to know that the placement
the link map promised is true, without parsing unchanged objects again.

A record depends on the object's bytes only and is kept in the store by the object's hash.  What a diff alone asks for
(canonical keys, references, types) is read from the object when it is asked for.
"""

import json
import re
from collections.abc import Sequence
from itertools import accumulate, repeat
from typing import Final, NamedTuple

from katana_cc.elf import constants as c
from katana_cc.elf.fields import EXTENTS
from katana_cc.elf.reader import ElfFile, Row, Section, Symbol
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
    witness_offset: int
    witness: bytes


_SECTION_FIELDS: Final = len(SectionRecord._fields)


class ObjectRecord(NamedTuple):
    """What is kept of an object: `file` is its STT_FILE symbol, `problem` why it was not read whole, if so."""

    file: str
    sections: tuple[SectionRecord, ...]
    symbols: tuple[Symbol, ...]
    problem: str = ""


def stem(name: str) -> str:
    """A symbol's name without the numbers compilers add to tell locals apart.

    `counter.0` → `counter`; `parse.constprop.0` → `parse.constprop`; `parse.isra.0.cold` → `parse.isra.cold`.
    """
    return _NUMBERED.sub("", name) if "." in name else name


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
        rows = elf.relocation_rows(section.number)
        if unknown := {info & 0xFFFFFFFF for _, info, _ in rows} - EXTENTS.keys():
            problem = f"relocation type {min(unknown)} in {section.name} is not known"
            continue
        # .eh_frame and merged sections are edited by the linker: they have no place of their own to be confirmed.
        edited = section.name == ".eh_frame" or section.flags & c.SHF_MERGE
        offset, witness = (0, b"") if edited else _witness(elf.contents(section), rows)
        sections.append(
            SectionRecord(section.number, section.name, section.type, section.flags, section.size, offset, witness)
        )
    kept = {s.number for s in sections} | {c.SHN_COMMON}
    if any(s.name.startswith((".gnu.lto_", ".gnu.debuglto_")) for s in elf.sections) and not any(
        s.flags & c.SHF_EXECINSTR for s in sections
    ):
        problem = "it holds link-time-optimisation bytecode and no machine code; build without -flto"
    defined = tuple([s for s in symbols if s.section in kept and s.type != c.STT_SECTION and s.name])
    return ObjectRecord(file, tuple(sections), defined, problem)


def _witness(data: bytes, rows: Sequence[Row]) -> tuple[int, bytes]:
    best_at, best = 0, 0
    position = 0
    for offset, info, _ in sorted(rows):
        before, after = EXTENTS[info & 0xFFFFFFFF]
        run = offset - before - position
        if run > best:
            best_at, best = position, run
            if best >= WITNESS_SIZE:
                return best_at, data[best_at : best_at + WITNESS_SIZE]
        position = max(position, offset + after)
    if len(data) - position > best:
        best_at, best = position, len(data) - position
    return best_at, data[best_at : best_at + min(best, WITNESS_SIZE)]


def literal_at(data: bytes, section: Section, offset: int) -> bytes:
    """The literal at `offset` of an SHF_MERGE section that holds `data`: up to its terminator, or else one entry."""
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
    """A record as JSON, by columns: a list a field is written and read in half the time of a list a section."""
    *columns, witnesses = zip(*record.sections, strict=True) if record.sections else [()] * _SECTION_FIELDS
    return json.dumps(
        {
            "file": record.file,
            "problem": record.problem,
            "sections": columns,
            "witness_sizes": [len(w) for w in witnesses],
            "witnesses": b"".join(witnesses).hex(),
            "symbols": list(zip(*record.symbols, strict=True)),
        },
        separators=(",", ":"),
        check_circular=False,
    ).encode()


def from_bytes(data: bytes) -> ObjectRecord:
    """The inverse of `to_bytes`.

    Raises:
        ValueError, KeyError, TypeError: not written by `to_bytes`.
    """
    raw = json.loads(data)
    held = bytes.fromhex(raw["witnesses"])
    ends = list(accumulate(raw["witness_sizes"]))
    witnesses = [held[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    # A named tuple's own constructor takes twice as long.
    sections = map(tuple.__new__, repeat(SectionRecord), zip(*raw["sections"], witnesses, strict=True))
    symbols = map(tuple.__new__, repeat(Symbol), zip(*raw["symbols"], strict=True))
    return ObjectRecord(raw["file"], tuple(sections), tuple(symbols), raw["problem"])
