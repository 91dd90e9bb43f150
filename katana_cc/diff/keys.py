"""Canonical keys: what a section means, as a hash, so that equal meanings are found without comparing.

Theory of operation.  Two builds of one function seldom have the same bytes: static locals are renumbered, strings move
within `.rodata.str1.1`, calls to static functions are relative to a section symbol.  The *canonical key* of a section
is a hash of its bytes with all relocated fields zeroed, and of what each relocation means: a symbol by name without
the compiler's `.NNN`, a literal by its contents, a place in another section by that section's symbol and the distance.
Equal keys mean "the same up to which of several same-named locals is meant"; `diff.compare` decides the rest.

A key follows from the object's bytes, which the store holds, so it is made when a diff asks: correlation does so only
where several things of one name have to be told apart, and making them all would be a third of recording a link.
"""

from __future__ import annotations

import hashlib
from typing import Final

from katana_cc.cpu.choice import of
from katana_cc.elf import constants as c
from katana_cc.elf.reader import RELA_SIZE, ElfFile
from katana_cc.recorder.record import literal_at, stem

_ZEROS: Final = {size: bytes(size) for size in range(9)}


class CanonicalKeys:
    """Canonical keys of the sections of one object."""

    def __init__(self, elf: ElfFile) -> None:
        self.elf = elf
        self._known_types = of(elf.machine).relocations
        self._fields: dict[int, int] = {}  # r_info → size of the field
        self._meanings: dict[int, bytes | None] = {}  # r_info → what its symbol means; None: the addend decides
        self._known: dict[int, str] = {}

    def of(self, number: int) -> str:
        """The key of section `number`, in hex."""
        if number not in self._known:
            self._known[number] = self._key(number)
        return self._known[number]

    def _key(self, number: int) -> str:
        section, rows = self.elf.sections[number], self.elf.relocation_rows(number)
        data = self.elf.contents(section)
        parts = [b"%d %d %d" % (section.type, section.flags, section.size)]
        if rows:
            masked = bytearray(data)
            table = self.elf.relocation_sections[number]
            numbers = bytearray(self.elf.contents(table))
            blank = bytes(len(rows))
            for byte in range(12, 16):  # the symbol's half of r_info
                numbers[byte::RELA_SIZE] = blank
            for i, (offset, info, addend) in enumerate(rows):
                meaning = self._meanings.get(info, b"")
                if meaning == b"":
                    meaning = self._learn(info)
                if meaning is None:
                    meaning, by_section = self._literal(info, addend)
                    if by_section:
                        numbers[i * RELA_SIZE + 16 : i * RELA_SIZE + 24] = bytes(8)
                size = self._fields[info]
                masked[offset : offset + size] = _ZEROS[size]
                parts.append(meaning)
            parts.append(bytes(numbers))
            data = bytes(masked)
        parts.append(data)
        return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()

    def _learn(self, info: int) -> bytes | None:
        self._fields[info] = self._known_types.FIELD_SIZES.get(info & 0xFFFFFFFF, 0)
        symbol = self.elf.symbols[info >> 32]
        target = symbol.section
        meaning: bytes | None
        if target == c.SHN_UNDEF or target >= c.SHN_LORESERVE:
            meaning = _told_apart(symbol.name.encode("utf-8", "surrogateescape"))
        elif self.elf.sections[target].flags & c.SHF_MERGE:
            meaning = None
        else:
            name = self.elf.sections[target].name if symbol.type == c.STT_SECTION else symbol.name
            meaning = _told_apart(stem(name).encode("utf-8", "surrogateescape"))
        self._meanings[info] = meaning
        return meaning

    def _literal(self, info: int, addend: int) -> tuple[bytes, bool]:
        symbol = self.elf.symbols[info >> 32]
        by_section = symbol.type == c.STT_SECTION
        at = symbol.value
        if by_section:
            known = self._known_types
            at += addend + (known.BIAS if info & 0xFFFFFFFF in known.PC_RELATIVE else 0)
        section = self.elf.sections[symbol.section]
        return _told_apart(literal_at(self.elf.contents(section), section, at)), by_section


def _told_apart(text: bytes) -> bytes:
    """With its length before it, so that what is joined can only be read one way."""
    return b"%d:%s" % (len(text), text)
