"""Which ELF files a process has mapped: their load bias, extent, segments and build-id, read from its memory.

Never by path: the file may be deleted, replaced by the next build, or lie in another mount namespace, and a stripped
file has no section headers.  An ELF header and its program headers are always inside the first loaded segment.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from katana_cc.elf import constants as c
from katana_cc.elf.reader import Segment, build_id_of, notes_of
from katana_cc.errors import RefusedError, TargetError
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import Reader

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Module:
    """One mapped ELF file.  `bias` is added to link-time addresses; [start, end) covers its loaded segments."""

    path: str
    type: int
    machine: int
    bias: int
    start: int
    end: int
    segments: tuple[Segment, ...]
    build_id: str | None

    @property
    def is_fixed(self) -> bool:
        """Linked for fixed addresses (ET_EXEC): its code may hold 32-bit absolute addresses."""
        return self.type == c.ET_EXEC

    def segment(self, kind: int) -> Segment | None:
        """The first segment of a type."""
        return next((s for s in self.segments if s.type == kind), None)

    def holds(self, address: int) -> bool:
        """Whether the address lies in a loaded segment."""
        link = address - self.bias
        return any(s.type == c.PT_LOAD and s.vaddr <= link < s.vaddr + s.memory_size for s in self.segments)


def find_modules(memory: Reader, regions: MemoryMap) -> tuple[Module, ...]:
    """Every ELF file mapped from its beginning, the vDSO included, in address order.

    Raises:
        RefusedError: the process is not a 64-bit little-endian x86-64 one.
    """
    found: list[Module] = []
    for region in regions.regions:
        # Segments of a small file may share its first page, which is then mapped once for each.
        if found and found[-1].start < region.start < found[-1].end:
            continue
        if region.offset or "r" not in region.permissions or (not region.inode and region.path != "[vdso]"):
            continue
        if region.path.startswith(("/memfd:katana:", "/dev/", "/SYSV")):
            continue
        path = region.path.removesuffix(" (deleted)")
        if any(m.path == path and m.start < region.start < m.end for m in found):
            continue  # lld puts segments of a small program into one page of the file, which is mapped for each
        with contextlib.suppress(TargetError):
            module = _module_at(memory, region.start, path)
            if module is not None:
                found.append(module)
    return tuple(found)


def _module_at(memory: Reader, address: int, path: str) -> Module | None:
    header = memory.read(address, _EHDR.size)
    if header[:4] != b"\x7fELF":
        return None
    if header[4] != 2 or header[5] != 1:
        raise RefusedError(
            "32-bit programs are not supported", where=path, remedy="build and run the program for x86-64"
        )
    _, kind, machine, _, _, phoff, _, _, _, phentsize, phnum, _, _, _ = _EHDR.unpack(header)
    if kind not in (c.ET_EXEC, c.ET_DYN) or phentsize != _PHDR.size or phoff + phnum * _PHDR.size > _PAGE:
        return None
    segments = tuple(Segment(*p) for p in _PHDR.iter_unpack(memory.read(address + phoff, phnum * _PHDR.size)))
    loads = [s for s in segments if s.type == c.PT_LOAD]
    first = next((s for s in loads if s.offset < _PAGE), None)
    if first is None:
        return None
    bias = 0 if kind == c.ET_EXEC else address - (first.vaddr & -_PAGE)
    if kind == c.ET_EXEC and first.vaddr & -_PAGE != address:
        return None  # a data file that happens to be a program
    low = min(s.vaddr for s in loads) & -_PAGE
    high = max(s.vaddr + s.memory_size for s in loads)
    build_id = None
    for s in segments:
        if s.type == c.PT_NOTE and s.memory_size < 1 << 16:
            with contextlib.suppress(TargetError):
                notes = notes_of(memory.read(bias + s.vaddr, s.memory_size), s.alignment)
                build_id = build_id or build_id_of(notes)
    return Module(path, kind, machine, bias, bias + low, bias + high, segments, build_id)


def with_build_id(modules: tuple[Module, ...], build_id: str) -> Iterator[Module]:
    """The modules that are that build: none, one, or several (dlmopen)."""
    return (m for m in modules if m.build_id == build_id)
