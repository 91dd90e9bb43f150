"""The mapping of a patch as an ELF file, for debuggers and profilers.

Theory of operation.  Tools find out what code is at an address in few ways: the dynamic linker's list of libraries, a
file that a mapping is of, the ELF header at the start of a mapping, or a registration of the program's own (gdb's JIT
interface).  A patch is in no list.  Entering one would make `dl_iterate_phdr` and `dlclose` see it, under the feet of
the program.  The JIT interface needs two symbols that the program was linked with and not stripped of: programs that
were never built for it, which is what is patched, have none.  So the mapping itself is made a shared object, in memory
and in its memfd: a head of its own pages (`elf/image.py`) stands before the ledger.

    start  ELF head: symbols, line numbers and types of the new code, section headers    r--
    base   ledger, constants, .eh_frame                                                  r--
           code                                                                          r-x
           variables                                                                     rw-

What comes of it, without a file, a store or a patch object at hand:

- elfutils (`eu-stack`) reads the image from memory by itself: names, and frames through new code.
- gdb takes it with `add-symbol-file-from-memory START`: names, lines, arguments, locals, frames.
- a copy of the mapping's bytes is a file that perf and objdump take.

Everything in the head is relative to its start, as in any shared object.  Variables of the old program are as far from
it as they happen to be: the head is written anew when the place of the mapping is known.

A vendor's program header (`PT_KATANA`) says where the ledger is.  A mapping of an earlier katana has no head: it begins
with the ledger.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from katana_cc.cpu.native import code as cpu
from katana_cc.cpu.native import relocations
from katana_cc.dwarf.frames import Fde, records
from katana_cc.elf import constants as c
from katana_cc.elf.image import FRAME_TABLE_AT, FrameIndex, ImageSection, ImageSegment, ImageSymbol, write_head
from katana_cc.patch.model import PatchObject, PatchSection
from katana_cc.process.link import CODE, DATA, READ_ONLY, RECORD_SIZE, Layout, group_of, is_import
from katana_cc.process.memory import Reader

PT_KATANA: Final = 0x6B61746E  # "katn", among those that the gABI leaves to operating systems
_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_PAGE: Final = 4096
_WIDTHS: Final = {number: width for width, number in relocations.ABSOLUTE.items()}


def with_head(po: PatchObject, layout: Layout, base: int = 0, bias: int = 0) -> Layout:
    """The layout with the head that the mapping begins with.

    Args:
        base: where the mapping will be; the head's size does not depend on it.
        bias: load bias of the patched module.
    """
    kinds = _sections(po, layout)
    numbers = {name: n for n, (name, *_) in enumerate(kinds)}
    flags = {"r": c.PF_R, "x": c.PF_R | c.PF_X, "w": c.PF_R | c.PF_W}
    segments = [
        ImageSegment(c.PT_LOAD, flags[kind], part.offset, part.size)
        for kind, part in zip("rxw", layout.parts, strict=True)
        if part.size
    ]
    segments.append(ImageSegment(PT_KATANA, c.PF_R, 0, layout.sections_start, 8))
    sections = [ImageSection(name, c.SHT_PROGBITS, f, start, end - start) for name, f, start, end in kinds]
    symbols = list(_symbols(po, layout, numbers))
    machine = po.identity.machine
    head = write_head(
        machine, segments, sections, symbols, lambda size: _debug(po, layout, size, bias, base - size),
        _frames(po, layout),
    )  # fmt: skip
    return replace(layout, head=head)


def ledger_address(memory: Reader, start: int) -> int:
    """Where the ledger is of a mapping of ours that begins at `start`.

    Raises:
        TargetError: the process is gone.
    """
    head = memory.read(start, _EHDR.size)
    if head[:4] != b"\x7fELF":
        return start
    _, _, _, _, _, at, _, _, _, entry, count, _, _, _ = _EHDR.unpack(head)
    if entry != _PHDR.size or at + count * entry > _PAGE:
        return start
    programs = _PHDR.iter_unpack(memory.read(start + at, count * entry))
    return start + next((p[3] for p in programs if p[0] == PT_KATANA), 0)


def frame_table(memory: Reader, start: int) -> tuple[int, int]:
    """Of a mapping that begins with a head at `start`: the address of its .eh_frame_hdr, and how many FDEs that lists;
    (0, 0) when there is none.

    Raises:
        TargetError: the process is gone.
    """
    _, _, _, _, _, at, _, _, _, _, count, _, _, _ = _EHDR.unpack(memory.read(start, _EHDR.size))
    programs = _PHDR.iter_unpack(memory.read(start + at, count * _PHDR.size))
    found = next((p for p in programs if p[0] == c.PT_GNU_EH_FRAME), None)
    return (0, 0) if found is None else (start + found[3], (found[5] - FRAME_TABLE_AT) // 8)


def image_file(memory: Reader, start: int, end: int) -> bytes:
    """The mapping [start, end), which has a head, as the bytes of an ELF file.  Variables are zeros: they are the
    program's, and no debugger takes them from the file of a process that runs.

    Raises:
        TargetError: the process is gone.
    """
    _, _, _, _, _, at, _, _, _, _, count, _, _, _ = _EHDR.unpack(memory.read(start, _EHDR.size))
    programs = _PHDR.iter_unpack(memory.read(start + at, count * _PHDR.size))
    result = bytearray(end - start)
    for kind, flags, offset, _, _, size, _, _ in programs:
        if kind == c.PT_LOAD and not flags & c.PF_W and offset + size <= len(result):
            result[offset : offset + size] = memory.read(start + offset, size)
    return bytes(result)


def _sections(po: PatchObject, layout: Layout) -> list[tuple[str, int, int, int]]:
    """(name, SHF_*, start, end) of what lies behind the head; few, whatever the patch carries."""
    spans: dict[int, list[tuple[int, int]]] = {READ_ONLY: [], CODE: [], DATA: []}
    for n, at in layout.sections.items():
        section = po.sections[n]
        if section.name != ".eh_frame":
            spans[group_of(section)].append((at, at + section.size))
    spans[DATA] += [(at, at + RECORD_SIZE) for at in layout.records]
    frames = layout.eh_frame[0], sum(layout.eh_frame)
    stubs = [(at, at + cpu.STUB_SIZE) for at in layout.stubs.values()]
    stubs += [(at, at + cpu.VENEER_SIZE) for at in layout.veneers.values()]
    made = [
        (".rodata", c.SHF_ALLOC, spans[READ_ONLY]),
        (".eh_frame", c.SHF_ALLOC, [frames]),
        (".text", c.SHF_ALLOC | c.SHF_EXECINSTR, spans[CODE]),
        (".plt", c.SHF_ALLOC | c.SHF_EXECINSTR, stubs),  # as debuggers call it: they step through
        (".data", c.SHF_ALLOC | c.SHF_WRITE, spans[DATA]),
    ]
    joined = [(name, f, min(s for s, _ in x), max(e for _, e in x)) for name, f, x in made if x]
    return [x for x in joined if x[3] > x[2]]


_OF_GROUP: Final = {READ_ONLY: ".rodata", CODE: ".text", DATA: ".data"}


def _symbols(po: PatchObject, layout: Layout, numbers: dict[str, int]) -> Iterator[ImageSymbol]:
    seen = set()
    for y in po.symbols:
        if y.section is None or y.section not in layout.sections or not y.name:
            continue
        if y.section in layout.heritage.places:
            continue  # it lives with an earlier patch, whose image has it
        where = numbers.get(_OF_GROUP[group_of(po.sections[y.section])])
        if y.type in (c.STT_FUNC, c.STT_OBJECT) and where is not None:
            at = layout.sections[y.section] + y.value
            if (y.name, at) not in seen:
                seen.add((y.name, at))
                yield ImageSymbol(y.name, y.type, where, at, y.size)
    for number, at in layout.stubs.items():
        yield ImageSymbol(f"{po.symbols[number].name}@plt", c.STT_FUNC, numbers[".plt"], at, cpu.STUB_SIZE)


def _frames(po: PatchObject, layout: Layout) -> FrameIndex | None:
    """Which FDE is of which code: as relocations say, since nothing is relocated yet."""
    entries = []
    for number, at in layout.sections.items():
        section = po.sections[number]
        if section.name != ".eh_frame":
            continue
        fields = {r.offset: r for r in section.relocations}
        for record in records(section.data):
            relocation = fields.get(record.pc_offset) if isinstance(record, Fde) else None
            target = po.symbols[relocation.symbol] if relocation is not None else None
            place = layout.sections.get(target.section) if target is not None and target.section is not None else None
            if relocation is not None and target is not None and place is not None:
                entries.append((place + target.value + relocation.addend, at + record.offset))
    return FrameIndex(layout.eh_frame[0], tuple(entries)) if entries else None


def _debug(po: PatchObject, layout: Layout, head: int, bias: int, start: int) -> Sequence[tuple[str, bytes]]:
    """Debug sections with their addresses, counted from the `start` of the mapping."""
    return [
        (s.name, _relocated(po, layout, s, head, bias, start))
        for s in po.sections
        if s.name.startswith(".debug_") and not s.flags & c.SHF_ALLOC
    ]


def _relocated(po: PatchObject, layout: Layout, section: PatchSection, head: int, bias: int, start: int) -> bytes:
    result = bytearray(section.data)
    for r in section.relocations:
        width = _WIDTHS.get(r.type)
        symbol = po.symbols[r.symbol]
        if width is None or r.offset + width > len(result) or is_import(symbol):
            continue  # not what debug information of ours holds
        place = None if symbol.section is None else layout.sections.get(symbol.section)
        if symbol.section is None:
            origin = bias - start
        elif symbol.section in layout.heritage.places:
            origin = layout.heritage.places[symbol.section] - start
        else:
            origin = 0 if place is None else head + place
        value = symbol.value + r.addend + origin
        result[r.offset : r.offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    return bytes(result)
