"""Relocations of x86-64: what each writes, and which bytes of a section a linker may write, the instructions that
it may relax included.

Source: System V ABI, AMD64 supplement, 4.4 "Relocation" (table 4.9: values and field sizes) and B.2 "Optimize
GOTPCRELX Relocations"; ELF Handling For Thread-Local Storage, 4.4 (sequences that are rewritten).  A 32-bit field that
does not hold its value is refused: truncated, it would send the target somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from katana_cc.cpu.extent import FROM_END, LONG, SHORT, Extent
from katana_cc.elf import constants as c
from katana_cc.elf.reader import Row

if TYPE_CHECKING:
    from katana_cc.cpu.field import RelocationKind
    from katana_cc.cpu.interface import Located

NAMES: Final = {value: name for name, value in vars(c).items() if name.startswith("R_X86_64_")}

EXTENTS: Final[dict[int, Extent]] = {
    c.R_X86_64_NONE: Extent(0, 0),
    c.R_X86_64_64: Extent(0, 8),
    c.R_X86_64_PC32: Extent(0, 4),
    c.R_X86_64_GOT32: Extent(0, 4),
    c.R_X86_64_PLT32: Extent(0, 4),
    c.R_X86_64_GOTPCREL: Extent(3, 4),  # lld relaxes the old form too
    c.R_X86_64_32: Extent(0, 4),
    c.R_X86_64_32S: Extent(0, 4),
    c.R_X86_64_16: Extent(0, 2),
    c.R_X86_64_PC16: Extent(0, 2),
    c.R_X86_64_8: Extent(0, 1),
    c.R_X86_64_PC8: Extent(0, 1),
    c.R_X86_64_DTPMOD64: Extent(0, 8),
    c.R_X86_64_DTPOFF64: Extent(0, 8),
    c.R_X86_64_TPOFF64: Extent(0, 8),
    c.R_X86_64_TLSGD: Extent(4, 12),
    c.R_X86_64_TLSLD: Extent(3, 10),
    c.R_X86_64_DTPOFF32: Extent(0, 4),
    c.R_X86_64_GOTTPOFF: Extent(3, 4),
    c.R_X86_64_TPOFF32: Extent(0, 4),
    c.R_X86_64_PC64: Extent(0, 8),
    c.R_X86_64_GOTOFF64: Extent(0, 8),
    c.R_X86_64_GOTPC32: Extent(0, 4),
    c.R_X86_64_SIZE32: Extent(0, 4),
    c.R_X86_64_SIZE64: Extent(0, 8),
    c.R_X86_64_GOTPC32_TLSDESC: Extent(3, 4),
    c.R_X86_64_TLSDESC_CALL: Extent(0, 2),
    c.R_X86_64_GOTPCRELX: Extent(2, 4),
    c.R_X86_64_REX_GOTPCRELX: Extent(3, 4),
}

FIELD_SIZES: Final[dict[int, int]] = {
    **{kind: extent.after for kind, extent in EXTENTS.items()},
    c.R_X86_64_TLSGD: 4,
    c.R_X86_64_TLSLD: 4,
    c.R_X86_64_TLSDESC_CALL: 0,
}

ADDRESSES: Final[dict[int, int]] = {
    c.R_X86_64_PC32: FROM_END,
    c.R_X86_64_PLT32: FROM_END,
    c.R_X86_64_GOTPCREL: FROM_END,
    c.R_X86_64_GOTPCRELX: FROM_END,
    c.R_X86_64_REX_GOTPCRELX: FROM_END,
    c.R_X86_64_GOTTPOFF: FROM_END,
    c.R_X86_64_32: SHORT,
    c.R_X86_64_32S: SHORT,
    c.R_X86_64_64: LONG,
}

PC_RELATIVE: Final = frozenset(
    {c.R_X86_64_PC32, c.R_X86_64_PLT32, c.R_X86_64_PC64, c.R_X86_64_GOTPCREL, c.R_X86_64_GOTPCRELX,
     c.R_X86_64_REX_GOTPCRELX, c.R_X86_64_GOTTPOFF, c.R_X86_64_TLSGD, c.R_X86_64_TLSLD, c.R_X86_64_PC16,
     c.R_X86_64_PC8, c.R_X86_64_GOTPC32}
)  # fmt: skip

GOT_RELATIVE: Final = frozenset({c.R_X86_64_GOTPCREL, c.R_X86_64_GOTPCRELX, c.R_X86_64_REX_GOTPCRELX})

BIAS: Final = 4  # the distance counts from the end of the field

ABSOLUTE: Final = {4: c.R_X86_64_32, 8: c.R_X86_64_64}
RELATIVE: Final = {4: c.R_X86_64_PC32, 8: c.R_X86_64_PC64}
TABLE_WIDTHS: Final = {
    c.R_X86_64_64: 8,
    c.R_X86_64_32: 4,
    c.R_X86_64_32S: 4,
    c.R_X86_64_DTPOFF64: 8,
    c.R_X86_64_DTPOFF32: 4,
}
CALLS: Final = frozenset({c.R_X86_64_PLT32})
DIRECT: Final = frozenset({c.R_X86_64_PC32, c.R_X86_64_32, c.R_X86_64_32S})
PLAIN: Final = CALLS | DIRECT
RELAXED_LOADS: Final = frozenset({c.R_X86_64_GOTPCRELX, c.R_X86_64_REX_GOTPCRELX})
LOADER: Final = "ld-linux-x86-64.so.2"
AS_RELAXED: Final = c.R_X86_64_PC32
THREAD_OFFSET: Final = frozenset({c.R_X86_64_TPOFF32})
THREAD: Final = frozenset({c.R_X86_64_TPOFF32, c.R_X86_64_GOTTPOFF})
NONE: Final = c.R_X86_64_NONE
COPY: Final = c.R_X86_64_COPY
GLOB_DAT: Final = c.R_X86_64_GLOB_DAT
JUMP_SLOT: Final = c.R_X86_64_JUMP_SLOT
LOADED: Final = c.R_X86_64_RELATIVE
IRELATIVE: Final = c.R_X86_64_IRELATIVE
DYNAMIC_THREAD_OFFSET: Final = c.R_X86_64_TPOFF64


def thread_offset(vaddr: int, memory_size: int, alignment: int) -> int:
    """Where the program's thread-locals begin, from the thread pointer: they end there."""
    alignment = max(alignment, 1)
    return vaddr - (vaddr + memory_size + alignment - 1 & -alignment)


def relocation_kind(number: int, where: str) -> RelocationKind:
    """The table's row for a relocation type.

    Raises:
        RefusedError: the type is not supported, and named.
    """
    from katana_cc.cpu.x86_64.kinds import relocation_kind as found  # a recorder applies none

    return found(number, where)


def masked(data: bytes, relocations: Iterable[Located], *, relaxed: bool) -> bytes:
    """`data` with every relocated field zeroed; with `relaxed`, all bytes a linker may rewrite around it too.

    Raises:
        KeyError: a relocation type that is not in the table.
    """
    result = bytearray(data)
    if relaxed:
        for r in relocations:
            before, after = EXTENTS[r.type]
            start = max(0, r.offset - before)
            end = min(len(result), r.offset + after)
            result[start:end] = bytes(end - start)
    else:
        for r in relocations:
            size = FIELD_SIZES[r.type]
            result[r.offset : r.offset + size] = bytes(size)
    return bytes(result)


def same_outside(data: bytes, final: bytes, rows: Iterable[Row]) -> bool:
    """Whether two pieces of equal length agree in every byte that a linker may not rewrite (`masked(relaxed=True)`).

    Raises:
        KeyError: a relocation type that is not in the table.
    """
    if len(data) != len(final):
        return False
    expected = bytearray(data)
    for offset, info, _ in rows:
        before, after = EXTENTS[info & 0xFFFFFFFF]
        start = offset - before if offset > before else 0
        expected[start : offset + after] = final[start : offset + after]
    return expected == final
