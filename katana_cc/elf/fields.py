"""Which bytes of a section a linker may write: the field of each relocation, and the instructions it may relax.

Source: System V ABI, AMD64 supplement, 4.4 "Relocation" (field sizes) and B.2 "Optimize GOTPCRELX Relocations";
ELF Handling For Thread-Local Storage, 4.4 (sequences that are rewritten).  Numbers are relative to r_offset.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from katana_cc.elf import constants as c
from katana_cc.elf.reader import Relocation, Row


class Extent(NamedTuple):
    """Bytes [r_offset - before, r_offset + after) may differ from the object's."""

    before: int
    after: int


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

PC_RELATIVE: Final = frozenset(
    {c.R_X86_64_PC32, c.R_X86_64_PLT32, c.R_X86_64_PC64, c.R_X86_64_GOTPCREL, c.R_X86_64_GOTPCRELX,
     c.R_X86_64_REX_GOTPCRELX, c.R_X86_64_GOTTPOFF, c.R_X86_64_TLSGD, c.R_X86_64_TLSLD, c.R_X86_64_PC16,
     c.R_X86_64_PC8, c.R_X86_64_GOTPC32}
)  # fmt: skip

GOT_RELATIVE: Final = frozenset({c.R_X86_64_GOTPCREL, c.R_X86_64_GOTPCRELX, c.R_X86_64_REX_GOTPCRELX})


def masked(data: bytes, relocations: Iterable[Relocation], *, relaxed: bool) -> bytes:
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


def is_branch(code: bytes, offset: int) -> bool:
    """Whether the 32-bit field at `offset` is the target of a direct call, jmp or jcc.

    The byte before tells: call is e8, jmp e9, jcc 0f 80..8f.  A rip-relative memory operand has a ModRM byte of
    mod 00, rm 101 there (05, 0d, … 3d), which is none of those (Intel SDM vol. 2, tables 2-2 and A-2).
    """
    if offset < 1:
        return False
    last = code[offset - 1]
    if last in (0xE8, 0xE9):
        return True
    return offset >= 2 and code[offset - 2] == 0x0F and 0x80 <= last <= 0x8F
