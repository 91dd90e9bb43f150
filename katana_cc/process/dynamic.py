"""The dynamic section of a loaded module, read from target memory: symbol look-up, and what its GOT slots hold.

A look-up goes through the module's own hash table, so that only the few entries a name leads to are read; that keeps
the preparation short in processes with a hundred libraries.  Values come back relocated (load bias added).

Sources: gABI chapter 5 "Dynamic Section", "Hash Table"; DT_GNU_HASH as ld and glibc's dl-lookup.c define it; symbol
versioning, LSB core "Symbol Versioning" (bit 15 of a version index: hidden, not the default version).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from katana_cc.cpu.native import relocations
from katana_cc.elf import constants as c
from katana_cc.elf import versions
from katana_cc.process.memory import Reader
from katana_cc.process.modules import Module

_DYN = struct.Struct("<qQ")
_SYM = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")


class DynamicSymbol(NamedTuple):
    """A symbol of .dynsym; `value` is the address in the target (STT_TLS: offset; undefined: 0)."""

    name: str
    binding: int
    type: int
    section: int
    value: int
    size: int


class DynamicRelocation(NamedTuple):
    """A dynamic relocation: `slot` is the address in the target it applies to."""

    slot: int
    type: int
    symbol: int
    addend: int


class DynamicModule:
    """Reads what the dynamic linker reads.  A module without PT_DYNAMIC (static, non-PIE) has no symbols."""

    def __init__(self, memory: Reader, module: Module) -> None:
        self.memory = memory
        self.module = module

    @cached_property
    def tags(self) -> dict[int, int]:
        """Tag → value; the first entry of a tag wins."""
        segment = self.module.segment(c.PT_DYNAMIC)
        if segment is None:
            return {}
        result: dict[int, int] = {}
        data = self.memory.read(self.module.bias + segment.vaddr, segment.memory_size & -16)
        for tag, value in _DYN.iter_unpack(data):
            if tag == c.DT_NULL:
                break
            result.setdefault(tag, value)
        return result

    @property
    def dynamic_address(self) -> int:
        """Address of the dynamic section (link_map.l_ld), or 0."""
        segment = self.module.segment(c.PT_DYNAMIC)
        return self.module.bias + segment.vaddr if segment else 0

    def address(self, tag: int) -> int:
        """A d_ptr value; 0 where there is no such tag.  glibc relocates these in place; musl, static programs and the
        vDSO leave link-time values."""
        value = self.tags.get(tag, 0)
        if not value:
            return 0
        return value if self.module.start <= value < self.module.end else value + self.module.bias

    def symbol(self, index: int) -> DynamicSymbol:
        """Entry `index` of .dynsym."""
        name, info, _, section, value, size = _SYM.unpack(
            self.memory.read(self.address(c.DT_SYMTAB) + index * _SYM.size, _SYM.size)
        )
        kind = info & 15
        if section not in (c.SHN_UNDEF, c.SHN_ABS) and kind != c.STT_TLS:
            value += self.module.bias
        elif section == c.SHN_UNDEF:
            value = 0
        return DynamicSymbol(self._string(name), info >> 4, kind, section, value, size)

    def lookup(self, name: str, version: str = "") -> DynamicSymbol | None:
        """The defined symbol of that name, in that version, else in its default one; None when the module does not
        define it.  A module without versions defines all of them."""
        fallback = None
        for index in self._candidates(name):
            symbol = self.symbol(index)
            if symbol.name != name or symbol.section == c.SHN_UNDEF or symbol.binding == c.STB_LOCAL:
                continue
            found = self._version_index(index)
            if version:
                if found is None or self._versions.get(found & ~versions.HIDDEN) == version:
                    return symbol
                continue
            if found is None or not found & versions.HIDDEN:
                return symbol
            fallback = fallback or symbol
        return fallback

    def canonical_value(self, name: str, version: str = "") -> int | None:
        """The address of the PLT entry that stands for a library's function in a program linked for fixed addresses:
        every module takes it for the function's address.  None when this module has no such entry.

        Its symbol is undefined and has a value all the same (psABI 5.2, "Function Addresses").
        """
        for index in self._candidates(name):
            found, info, _, section, value, _ = _SYM.unpack(
                self.memory.read(self.address(c.DT_SYMTAB) + index * _SYM.size, _SYM.size)
            )
            if section == c.SHN_UNDEF and value and info & 15 == c.STT_FUNC and self._string(found) == name:
                known = self._version_index(index)
                if not version or known is None or self._versions.get(known & ~versions.HIDDEN) == version:
                    return int(value) + self.module.bias
        return None

    def _candidates(self, name: str) -> Iterator[int]:
        return self._gnu_candidates(name) if c.DT_GNU_HASH in self.tags else self._sysv_candidates(name)

    def _version_index(self, index: int) -> int | None:
        table = self.address(versions.DT_VERSYM)
        return _u16(self.memory.read(table + 2 * index, 2)) if table else None

    @cached_property
    def _versions(self) -> dict[int, str]:
        needed, defined = self.address(versions.DT_VERNEED), self.address(versions.DT_VERDEF)
        return versions.version_names(self.memory.read, self._string, needed, defined)

    def _gnu_candidates(self, name: str) -> Iterator[int]:
        table = self.address(c.DT_GNU_HASH)
        buckets, first, bloom_words, shift = struct.unpack("<IIII", self.memory.read(table, 16))
        if not buckets or not bloom_words:
            return
        wanted = gnu_hash(name)
        word = struct.unpack("<Q", self.memory.read(table + 16 + 8 * ((wanted // 64) % bloom_words), 8))[0]
        if not (word >> (wanted % 64)) & (word >> ((wanted >> shift) % 64)) & 1:
            return
        bucket_at = table + 16 + 8 * bloom_words
        index = _u32(self.memory.read(bucket_at + 4 * (wanted % buckets), 4))
        chain_at = bucket_at + 4 * buckets
        while index >= first:
            value = _u32(self.memory.read(chain_at + 4 * (index - first), 4))
            if value | 1 == wanted | 1:
                yield index
            if value & 1:
                return
            index += 1

    def _sysv_candidates(self, name: str) -> Iterator[int]:
        table = self.address(c.DT_HASH)
        if not table:
            return
        buckets, count = struct.unpack("<II", self.memory.read(table, 8))
        index = _u32(self.memory.read(table + 8 + 4 * (sysv_hash(name) % buckets), 4)) if buckets else 0
        for _ in range(count):  # a damaged chain must end too
            if not index:
                return
            yield index
            index = _u32(self.memory.read(table + 8 + 4 * buckets + 4 * index, 4))

    @cached_property
    def relocations(self) -> tuple[DynamicRelocation, ...]:
        """DT_RELA and DT_JMPREL, without the RELATIVE ones, which name nothing."""
        return (*self._table(c.DT_RELA, c.DT_RELASZ), *self.lazy_relocations)

    @cached_property
    def lazy_relocations(self) -> tuple[DynamicRelocation, ...]:
        """Those of DT_JMPREL, whose slots may not be bound yet."""
        return self._table(c.DT_JMPREL, c.DT_PLTRELSZ)

    def _table(self, start: int, size: int) -> tuple[DynamicRelocation, ...]:
        at, length, bias = self.address(start), self.tags.get(size, 0), self.module.bias
        if not at or not length:
            return ()
        return tuple(
            DynamicRelocation(bias + offset, info & 0xFFFFFFFF, info >> 32, addend)
            for offset, info, addend in _RELA.iter_unpack(self.memory.read(at, length))
            if info & 0xFFFFFFFF != relocations.LOADED
        )

    @cached_property
    def named_relocations(self) -> dict[str, tuple[DynamicRelocation, ...]]:
        """Symbol name → the dynamic relocations against it."""
        names: dict[int, str] = {}
        result: dict[str, tuple[DynamicRelocation, ...]] = {}
        for r in self.relocations:
            if r.symbol:
                name = names.get(r.symbol)
                if name is None:
                    name = names[r.symbol] = self.symbol(r.symbol).name
                result[name] = (*result.get(name, ()), r)
        return result

    def bound_value(self, name: str, version: str = "") -> int | None:
        """What an already bound slot of this module says the symbol's address is, in that version if one is asked for.

        GLOB_DAT and whole addresses are bound at load; a JUMP_SLOT may still point back into the module's own PLT.
        """
        for r in self.named_relocations.get(name, ()):
            if version:
                found = self._version_index(r.symbol)
                if found is not None and self._versions.get(found & ~versions.HIDDEN) != version:
                    continue
            if r.type == relocations.COPY:
                return r.slot
            if r.type in (relocations.GLOB_DAT, relocations.JUMP_SLOT) or (
                r.type == relocations.ABSOLUTE[8] and not r.addend
            ):
                value = self.word(r.slot)
                if value and not (r.type == relocations.JUMP_SLOT and self.module.holds(value)):
                    return value
        return None

    def word(self, address: int) -> int:
        """The 64-bit word at an address."""
        return int.from_bytes(self.memory.read(address, 8), "little")

    def _string(self, offset: int) -> str:
        return read_string(self.memory, self.address(c.DT_STRTAB) + offset)


def read_string(memory: Reader, address: int, limit: int = 4096) -> str:
    """The NUL-terminated string at an address, never reading past the page that ends it."""
    data = b""
    while len(data) < limit:
        chunk = memory.read(address + len(data), 4096 - (address + len(data)) % 4096 if len(data) else _first(address))
        end = chunk.find(b"\0")
        if end >= 0:
            return (data + chunk[:end]).decode("utf-8", "surrogateescape")
        data += chunk
    return data.decode("utf-8", "surrogateescape")


def _first(address: int) -> int:
    return min(64, 4096 - address % 4096)


def gnu_hash(name: str) -> int:
    """The hash of DT_GNU_HASH (djb2, 32 bits)."""
    value = 5381
    for byte in name.encode("utf-8", "surrogateescape"):
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value


def sysv_hash(name: str) -> int:
    """The hash of DT_HASH (gABI figure 5-13)."""
    value = 0
    for byte in name.encode("utf-8", "surrogateescape"):
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high & 0xFFFFFFFF
    return value


def _u16(data: bytes) -> int:
    return int.from_bytes(data, "little")


_u32 = _u16
