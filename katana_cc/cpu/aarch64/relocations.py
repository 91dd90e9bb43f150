"""Relocations of AArch64: what each writes, and which bytes of a section a linker may write.

Theory of operation.  An address is put together by two instructions: ADRP gives the page of 4 KiB, relative to the page
of the instruction itself, and ADD, LDR or STR the rest.  So one symbol needs two relocations, and the second says
nothing of where it is used:

    adrp x0, v              R_AARCH64_ADR_PREL_PG_HI21       Page(S+A) - Page(P)
    ldr  w1, [x0, :lo12:v]  R_AARCH64_LDST32_ABS_LO12_NC     bits 2..11 of S+A

Addends stand in the relocation entry (RELA), and nothing is added to them: a distance counts from its own instruction.
Relocations that would change the operation as well (MOVZ to MOVN) and those of general-dynamic thread-locals are known,
so that a section with them is compared, and refused when it would have to be applied.

Out of scope: big-endian data, ILP32, and what linkers do against errata of certain cores: of Cortex-A53's 835769 they
replace an instruction that has no relocation, so that its section differs from the object's and is refused.

Source: ELF for the Arm 64-bit Architecture (AAELF64), "Relocation": "Data relocations", "Group relocations to create a
16-, 32-, 48-, or 64-bit unsigned data value or address inline", "Relocations to generate 19, 21 and 33 bit PC-relative
addresses", "Relocations for control-flow instructions", "GOT-relative instruction relocations", "Relocations for
thread-local storage", "Dynamic relocations".  Fields: Arm ARM (DDI 0487) C4.1, "A64 instruction set encoding".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from katana_cc.cpu.extent import LONG, Extent
from katana_cc.cpu.field import Form, Part, RelocationKind, kind_of, signed_bounds, whole
from katana_cc.elf import constants as c
from katana_cc.elf.reader import Row

if TYPE_CHECKING:
    from katana_cc.cpu.interface import Located

INSTRUCTION_SIZE: Final = 4
NAMES: Final = {value: name for name, value in vars(c).items() if name.startswith("R_AARCH64_")}

_ADR: Final = (Part(29, 0, 2), Part(5, 2, 19))  # immlo, immhi
_ADRP: Final = (Part(29, 12, 2), Part(5, 14, 19))
_IMM26: Final = (Part(0, 2, 26),)
_IMM19: Final = (Part(5, 2, 19),)
_IMM14: Final = (Part(5, 2, 14),)
_IMM16: Final = tuple((Part(5, 16 * group, 16),) for group in range(4))  # MOVZ, MOVK: by the group of bits
_MOVE: Final = (*_IMM16[0], Part(30, 0, 1))  # and what makes MOVN a MOVZ
_IMM12: Final = (Part(10, 0, 12),)
_HIGH12: Final = (Part(10, 12, 12),)
_UNSIGNED12: Final = (0, 1 << 12)


def _scaled(size: int) -> tuple[Part, ...]:
    """The immediate of a load or store of `size` bytes, which counts in them: bits of the low 12 of an address."""
    shift = size.bit_length() - 1
    return (Part(10, shift, 12 - shift),)


def _either(bits: int) -> tuple[int, int]:
    """Bounds of data that may be meant as signed or unsigned."""
    return -(1 << bits - 1), 1 << bits


def _kind(
    number: int,
    form: Form,
    parts: tuple[Part, ...],
    bounds: tuple[int, int] | None = None,
    alignment: int = 1,
    width: int = INSTRUCTION_SIZE,
) -> RelocationKind:
    return RelocationKind(NAMES[number], form, width, bounds, parts, alignment)


def _accesses(form: Form, rows: Iterable[tuple[int, int, tuple[int, int] | None]]) -> dict[int, RelocationKind]:
    """Loads and stores: (type, bytes, bounds)."""
    return {number: _kind(number, form, _scaled(size), bounds, size) for number, size, bounds in rows}


KINDS: Final[dict[int, RelocationKind]] = {
    c.R_AARCH64_NONE: whole("R_AARCH64_NONE", Form.NOTHING, 0, None),
    # Data.  Those relative to their place are read as signed numbers (.eh_frame, tables of distances).
    c.R_AARCH64_ABS64: whole("R_AARCH64_ABS64", Form.ABSOLUTE, 8, None),
    c.R_AARCH64_ABS32: whole("R_AARCH64_ABS32", Form.ABSOLUTE, 4, None)._replace(bounds=_either(32)),
    c.R_AARCH64_ABS16: whole("R_AARCH64_ABS16", Form.ABSOLUTE, 2, None)._replace(bounds=_either(16)),
    c.R_AARCH64_PREL64: whole("R_AARCH64_PREL64", Form.RELATIVE, 8, None),
    c.R_AARCH64_PREL32: whole("R_AARCH64_PREL32", Form.RELATIVE, 4, True),
    c.R_AARCH64_PREL16: whole("R_AARCH64_PREL16", Form.RELATIVE, 2, True),
    c.R_AARCH64_PLT32: whole("R_AARCH64_PLT32", Form.RELATIVE, 4, True),
    # An address in pieces of 16 bits.
    c.R_AARCH64_MOVW_UABS_G0: _kind(c.R_AARCH64_MOVW_UABS_G0, Form.ABSOLUTE, _IMM16[0], (0, 1 << 16)),
    c.R_AARCH64_MOVW_UABS_G0_NC: _kind(c.R_AARCH64_MOVW_UABS_G0_NC, Form.ABSOLUTE, _IMM16[0]),
    c.R_AARCH64_MOVW_UABS_G1: _kind(c.R_AARCH64_MOVW_UABS_G1, Form.ABSOLUTE, _IMM16[1], (0, 1 << 32)),
    c.R_AARCH64_MOVW_UABS_G1_NC: _kind(c.R_AARCH64_MOVW_UABS_G1_NC, Form.ABSOLUTE, _IMM16[1]),
    c.R_AARCH64_MOVW_UABS_G2: _kind(c.R_AARCH64_MOVW_UABS_G2, Form.ABSOLUTE, _IMM16[2], (0, 1 << 48)),
    c.R_AARCH64_MOVW_UABS_G2_NC: _kind(c.R_AARCH64_MOVW_UABS_G2_NC, Form.ABSOLUTE, _IMM16[2]),
    c.R_AARCH64_MOVW_UABS_G3: _kind(c.R_AARCH64_MOVW_UABS_G3, Form.ABSOLUTE, _IMM16[3]),
    **{
        number: _kind(number, Form.OTHER, _MOVE)
        for number in (c.R_AARCH64_MOVW_SABS_G0, c.R_AARCH64_MOVW_SABS_G1, c.R_AARCH64_MOVW_SABS_G2)
    },
    # An address from where the instruction is.
    c.R_AARCH64_LD_PREL_LO19: _kind(c.R_AARCH64_LD_PREL_LO19, Form.RELATIVE, _IMM19, signed_bounds(21), 4),
    c.R_AARCH64_ADR_PREL_LO21: _kind(c.R_AARCH64_ADR_PREL_LO21, Form.RELATIVE, _ADR, signed_bounds(21)),
    c.R_AARCH64_ADR_PREL_PG_HI21: _kind(c.R_AARCH64_ADR_PREL_PG_HI21, Form.PAGE_RELATIVE, _ADRP, signed_bounds(33)),
    c.R_AARCH64_ADR_PREL_PG_HI21_NC: _kind(c.R_AARCH64_ADR_PREL_PG_HI21_NC, Form.PAGE_RELATIVE, _ADRP),
    c.R_AARCH64_ADD_ABS_LO12_NC: _kind(c.R_AARCH64_ADD_ABS_LO12_NC, Form.ABSOLUTE, _IMM12),
    **_accesses(
        Form.ABSOLUTE,
        (
            (c.R_AARCH64_LDST8_ABS_LO12_NC, 1, None),
            (c.R_AARCH64_LDST16_ABS_LO12_NC, 2, None),
            (c.R_AARCH64_LDST32_ABS_LO12_NC, 4, None),
            (c.R_AARCH64_LDST64_ABS_LO12_NC, 8, None),
            (c.R_AARCH64_LDST128_ABS_LO12_NC, 16, None),
        ),
    ),
    # Branches.
    c.R_AARCH64_TSTBR14: _kind(c.R_AARCH64_TSTBR14, Form.RELATIVE, _IMM14, signed_bounds(16), 4),
    c.R_AARCH64_CONDBR19: _kind(c.R_AARCH64_CONDBR19, Form.RELATIVE, _IMM19, signed_bounds(21), 4),
    c.R_AARCH64_JUMP26: _kind(c.R_AARCH64_JUMP26, Form.RELATIVE, _IMM26, signed_bounds(28), 4),
    c.R_AARCH64_CALL26: _kind(c.R_AARCH64_CALL26, Form.RELATIVE, _IMM26, signed_bounds(28), 4),
    # Through the GOT.  What counts from the GOT's own page needs one that is the program's.
    c.R_AARCH64_GOT_LD_PREL19: _kind(c.R_AARCH64_GOT_LD_PREL19, Form.GOT_RELATIVE, _IMM19, signed_bounds(21), 4),
    c.R_AARCH64_ADR_GOT_PAGE: _kind(c.R_AARCH64_ADR_GOT_PAGE, Form.GOT_PAGE_RELATIVE, _ADRP, signed_bounds(33)),
    c.R_AARCH64_LD64_GOT_LO12_NC: _kind(c.R_AARCH64_LD64_GOT_LO12_NC, Form.GOT_ABSOLUTE, _scaled(8), None, 8),
    c.R_AARCH64_LD64_GOTPAGE_LO15: _kind(c.R_AARCH64_LD64_GOTPAGE_LO15, Form.OTHER, (Part(10, 3, 12),)),
    # Thread-locals: initial-exec, local-exec.
    c.R_AARCH64_TLSIE_ADR_GOTTPREL_PAGE21: _kind(
        c.R_AARCH64_TLSIE_ADR_GOTTPREL_PAGE21, Form.TLS_GOT_PAGE_RELATIVE, _ADRP, signed_bounds(33)
    ),
    c.R_AARCH64_TLSIE_LD64_GOTTPREL_LO12_NC: _kind(
        c.R_AARCH64_TLSIE_LD64_GOTTPREL_LO12_NC, Form.TLS_GOT_ABSOLUTE, _scaled(8), None, 8
    ),
    c.R_AARCH64_TLSIE_LD_GOTTPREL_PREL19: _kind(
        c.R_AARCH64_TLSIE_LD_GOTTPREL_PREL19, Form.TLS_GOT_RELATIVE, _IMM19, signed_bounds(21), 4
    ),
    c.R_AARCH64_TLSLE_ADD_TPREL_HI12: _kind(c.R_AARCH64_TLSLE_ADD_TPREL_HI12, Form.TLS_OFFSET, _HIGH12, (0, 1 << 24)),
    c.R_AARCH64_TLSLE_ADD_TPREL_LO12: _kind(c.R_AARCH64_TLSLE_ADD_TPREL_LO12, Form.TLS_OFFSET, _IMM12, _UNSIGNED12),
    c.R_AARCH64_TLSLE_ADD_TPREL_LO12_NC: _kind(c.R_AARCH64_TLSLE_ADD_TPREL_LO12_NC, Form.TLS_OFFSET, _IMM12),
    c.R_AARCH64_TLSLE_MOVW_TPREL_G1_NC: _kind(c.R_AARCH64_TLSLE_MOVW_TPREL_G1_NC, Form.TLS_OFFSET, _IMM16[1]),
    c.R_AARCH64_TLSLE_MOVW_TPREL_G0_NC: _kind(c.R_AARCH64_TLSLE_MOVW_TPREL_G0_NC, Form.TLS_OFFSET, _IMM16[0]),
    **{
        number: _kind(number, Form.OTHER, _MOVE)
        for number in (
            c.R_AARCH64_TLSLE_MOVW_TPREL_G2,
            c.R_AARCH64_TLSLE_MOVW_TPREL_G1,
            c.R_AARCH64_TLSLE_MOVW_TPREL_G0,
        )
    },
    **_accesses(
        Form.TLS_OFFSET,
        (
            (c.R_AARCH64_TLSLE_LDST8_TPREL_LO12, 1, _UNSIGNED12),
            (c.R_AARCH64_TLSLE_LDST8_TPREL_LO12_NC, 1, None),
            (c.R_AARCH64_TLSLE_LDST16_TPREL_LO12, 2, _UNSIGNED12),
            (c.R_AARCH64_TLSLE_LDST16_TPREL_LO12_NC, 2, None),
            (c.R_AARCH64_TLSLE_LDST32_TPREL_LO12, 4, _UNSIGNED12),
            (c.R_AARCH64_TLSLE_LDST32_TPREL_LO12_NC, 4, None),
            (c.R_AARCH64_TLSLE_LDST64_TPREL_LO12, 8, _UNSIGNED12),
            (c.R_AARCH64_TLSLE_LDST64_TPREL_LO12_NC, 8, None),
            (c.R_AARCH64_TLSLE_LDST128_TPREL_LO12, 16, _UNSIGNED12),
            (c.R_AARCH64_TLSLE_LDST128_TPREL_LO12_NC, 16, None),
        ),
    ),
    # Thread-locals: general-dynamic and descriptors, whose sequences a linker rewrites as a whole.
    **{
        number: _kind(number, Form.OTHER, (Part(0, 0, 32),))
        for number, name in NAMES.items()
        if name.startswith(("R_AARCH64_TLSGD_", "R_AARCH64_TLSLD_", "R_AARCH64_TLSDESC_"))
    },
    c.R_AARCH64_TLS_DTPREL64: whole("R_AARCH64_TLS_DTPREL64", Form.OTHER, 8, None),  # in debug information
}

# An instruction may be relaxed as a whole (ADRP and LDR to NOP and ADR, TLS models), never beyond its own bytes: but
# for `add; bl __tls_get_addr; nop`, where only the first two have relocations.
EXTENTS: Final = {
    number: Extent(0, 12 if number == c.R_AARCH64_TLSGD_ADD_LO12_NC else kind.width) for number, kind in KINDS.items()
}
FIELD_SIZES: Final = {number: kind.width for number, kind in KINDS.items()}
_APPLIED: Final = {number: kind for number, kind in KINDS.items() if kind.form is not Form.OTHER}
_MASKS: Final = {number: kind.mask for number, kind in KINDS.items()}

ADDRESSES: Final = {c.R_AARCH64_ABS64: LONG}

PC_RELATIVE: Final = frozenset(number for number, kind in KINDS.items() if kind.form is Form.RELATIVE)
GOT_RELATIVE: Final = frozenset(
    {
        c.R_AARCH64_GOT_LD_PREL19,
        c.R_AARCH64_ADR_GOT_PAGE,
        c.R_AARCH64_LD64_GOT_LO12_NC,
        c.R_AARCH64_LD64_GOTPAGE_LO15,
    }
)
BIAS: Final = 0
ABSOLUTE: Final = {2: c.R_AARCH64_ABS16, 4: c.R_AARCH64_ABS32, 8: c.R_AARCH64_ABS64}
RELATIVE: Final = {2: c.R_AARCH64_PREL16, 4: c.R_AARCH64_PREL32, 8: c.R_AARCH64_PREL64}
TABLE_WIDTHS: Final = {c.R_AARCH64_ABS64: 8, c.R_AARCH64_ABS32: 4, c.R_AARCH64_TLS_DTPREL64: 8}
CALLS: Final = frozenset({c.R_AARCH64_CALL26, c.R_AARCH64_JUMP26, c.R_AARCH64_PLT32})
BRANCHES: Final = CALLS - {c.R_AARCH64_PLT32} | {c.R_AARCH64_CONDBR19, c.R_AARCH64_TSTBR14}
DIRECT: Final = frozenset(
    {
        c.R_AARCH64_ADR_PREL_LO21,
        c.R_AARCH64_ADR_PREL_PG_HI21,
        c.R_AARCH64_ADR_PREL_PG_HI21_NC,
        c.R_AARCH64_LD_PREL_LO19,
        c.R_AARCH64_PREL32,
        c.R_AARCH64_ABS32,
    }
)
PLAIN: Final = BRANCHES | {
    c.R_AARCH64_PREL32,
    c.R_AARCH64_PLT32,
    c.R_AARCH64_ABS32,
    c.R_AARCH64_ADR_PREL_LO21,
    c.R_AARCH64_LD_PREL_LO19,
}
# That a load through the GOT was relaxed shows in two instructions together, and an offset of a thread-local stands in
# two: one field tells neither.
RELAXED_LOADS: Final[frozenset[int]] = frozenset()
LOADER: Final = "ld-linux-aarch64.so.1"
AS_RELAXED: Final = c.R_AARCH64_ADR_PREL_PG_HI21
THREAD_OFFSET: Final[frozenset[int]] = frozenset()
THREAD: Final = frozenset(number for number, kind in KINDS.items() if kind.form is Form.TLS_OFFSET) | {
    c.R_AARCH64_TLSIE_ADR_GOTTPREL_PAGE21,
    c.R_AARCH64_TLSIE_LD64_GOTTPREL_LO12_NC,
    c.R_AARCH64_TLSIE_LD_GOTTPREL_PREL19,
}
NONE: Final = c.R_AARCH64_NONE
COPY: Final = c.R_AARCH64_COPY
GLOB_DAT: Final = c.R_AARCH64_GLOB_DAT
JUMP_SLOT: Final = c.R_AARCH64_JUMP_SLOT
LOADED: Final = c.R_AARCH64_RELATIVE
IRELATIVE: Final = c.R_AARCH64_IRELATIVE
DYNAMIC_THREAD_OFFSET: Final = c.R_AARCH64_TLS_TPREL64

_CONTROL_BLOCK: Final = 16  # what the thread pointer points to; thread-locals follow (AAELF64, "TLS": variant 1)


def thread_offset(vaddr: int, memory_size: int, alignment: int) -> int:  # noqa: ARG001  (the end matters elsewhere)
    """Where the program's thread-locals begin, from the thread pointer, so that they are aligned as in the file."""
    alignment = max(alignment, 1)
    return _CONTROL_BLOCK + (vaddr - _CONTROL_BLOCK) % alignment


def relocation_kind(number: int, where: str) -> RelocationKind:
    """The table's row for a relocation type.

    Raises:
        RefusedError: the type is not supported, and named.
    """
    name = NAMES.get(number, "")
    remedy = "restart the process with the new build instead"
    if "TLS" in name:
        remedy = "compile with -ftls-model=initial-exec; else restart with the new build"
    elif number == c.R_AARCH64_LD64_GOTPAGE_LO15:
        remedy = "compile with -fPIC instead of -fpic; else restart with the new build"
    return kind_of(_APPLIED, NAMES, number, where, remedy)


def masked(data: bytes, relocations: Iterable[Located], *, relaxed: bool) -> bytes:
    """`data` with every relocated field zeroed, bit by bit; with `relaxed`, whole instructions.

    Raises:
        KeyError: a relocation type that is not in the table.
    """
    result = bytearray(data)
    for r in relocations:
        end = r.offset + (EXTENTS[r.type].after if relaxed else FIELD_SIZES[r.type])
        end = min(end, len(result))
        keep = 0 if relaxed else ~_MASKS[r.type]
        word = int.from_bytes(result[r.offset : end], "little") & keep & (1 << 8 * (end - r.offset)) - 1
        result[r.offset : end] = word.to_bytes(end - r.offset, "little")
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
        end = offset + EXTENTS[info & 0xFFFFFFFF].after
        expected[offset:end] = final[offset:end]
    return expected == final
