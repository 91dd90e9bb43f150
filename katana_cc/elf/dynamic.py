"""Dynamic symbols and relocations of an output, found through its program headers (a stored image has no sections).

Source: gABI chapter 5, "Dynamic Section"; the AMD64 psABI for R_X86_64_*.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from katana_cc.elf import constants as c
from katana_cc.elf import versions
from katana_cc.elf.reader import ElfFile

_SYM = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")


class DynamicRelocation(NamedTuple):
    """One entry of DT_RELA or DT_JMPREL: at `address`, R_* `type`, against `symbol` ("" for none), plus `addend`."""

    address: int
    type: int
    symbol: str
    addend: int


class DynamicSymbol(NamedTuple):
    """One entry of .dynsym; `value` is a link-time address, or 0 when undefined (non-zero: a canonical PLT entry);
    `version` is "" for none."""

    name: str
    binding: int
    type: int
    defined: bool
    value: int
    version: str = ""


class DynamicTables:
    """What the dynamic linker reads of an output."""

    def __init__(self, elf: ElfFile) -> None:
        tags = dict(reversed(elf.dynamic))
        self.needed = elf.dynamic_strings(c.DT_NEEDED)
        self.symbols = _symbols(elf, tags)
        relocations = []
        for start, size in ((c.DT_RELA, c.DT_RELASZ), (c.DT_JMPREL, c.DT_PLTRELSZ)):
            if tags.get(start) and tags.get(size):
                for address, info, addend in _RELA.iter_unpack(elf.read(tags[start], tags[size])):
                    name = self.symbols[info >> 32].name if 0 < info >> 32 < len(self.symbols) else ""
                    relocations.append(DynamicRelocation(address, info & 0xFFFFFFFF, name, addend))
        self.relocations = {r.address: r for r in relocations}
        self.by_name = {s.name: s for s in self.symbols if s.name}

    def versions(self, name: str) -> frozenset[str]:
        """The versions under which a name is in .dynsym; "" among them for none."""
        return frozenset(s.version for s in self.symbols if s.name == name)


def _symbols(elf: ElfFile, tags: dict[int, int]) -> tuple[DynamicSymbol, ...]:
    symtab, strtab, strsz = tags.get(c.DT_SYMTAB), tags.get(c.DT_STRTAB), tags.get(c.DT_STRSZ, 0)
    if symtab is None or strtab is None:
        return ()
    count = _count(elf, tags, symtab, strtab)
    names = elf.read(strtab, strsz)

    def text(at: int) -> str:
        return names[at : names.find(b"\0", at)].decode("utf-8", "surrogateescape")

    table = tags.get(versions.DT_VERSYM)
    indices = struct.unpack(f"<{count}H", elf.read(table, 2 * count)) if table else (0,) * count
    known = versions.version_names(elf.read, text, tags.get(versions.DT_VERNEED, 0), tags.get(versions.DT_VERDEF, 0))
    result = []
    entries = _SYM.iter_unpack(elf.read(symtab, count * _SYM.size))
    for (name, info, _other, section, value, _size), index in zip(entries, indices, strict=True):
        version = known.get(index & ~versions.HIDDEN, "")
        result.append(DynamicSymbol(text(name), info >> 4, info & 15, section != c.SHN_UNDEF, value, version))
    return tuple(result)


def _count(elf: ElfFile, tags: dict[int, int], symtab: int, strtab: int) -> int:
    """How many symbols there are: DT_HASH says it, DT_GNU_HASH by its longest chain, else .dynstr follows .dynsym."""
    if table := tags.get(c.DT_HASH):
        return int.from_bytes(elf.read(table + 4, 4), "little")
    if table := tags.get(c.DT_GNU_HASH):
        buckets, first, bloom, _ = struct.unpack("<IIII", elf.read(table, 16))
        at = table + 16 + 8 * bloom
        last = max((v for (v,) in struct.iter_unpack("<I", elf.read(at, 4 * buckets))), default=0)
        if last >= first and last:
            chain = at + 4 * buckets
            while not int.from_bytes(elf.read(chain + 4 * (last - first), 4), "little") & 1:
                last += 1
            return last + 1
    return (strtab - symtab) // _SYM.size if strtab > symtab else 0
