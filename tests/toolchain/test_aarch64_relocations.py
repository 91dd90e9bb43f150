"""AArch64 relocations: the bytes we write are those of GNU ld and lld, to the edges of what a field can hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from katana_cc.cpu.aarch64 import relocations as known
from katana_cc.cpu.field import fits, from_place, read, write
from katana_cc.elf import constants as c
from katana_cc.elf.dynamic import DynamicTables
from katana_cc.elf.reader import ElfFile
from katana_cc.elf.writer import NewRelocation, NewSection, NewSymbol, write_relocatable
from tests.support.aarch64 import LINKERS, PREFIX, Output, assembled, compiled, linked, tool

PLACE = 0x4_0000_0000


class Field(NamedTuple):
    """What is assembled at PLACE, its relocation, and targets: those that fit, and those that do not.  `negative` fits
    too, but GNU ld takes the data for unsigned, against AAELF64."""

    text: str
    type: int
    good: tuple[int, ...]
    bad: tuple[int, ...] = ()
    negative: tuple[int, ...] = ()


def near(bits: int, step: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Targets at the edges of a signed distance from PLACE, and just beyond."""
    low, high = PLACE - (1 << bits - 1), PLACE + (1 << bits - 1)
    return (low, PLACE, PLACE + step, PLACE - step, high - step), (low - step, high)


PAGE = PLACE & -4096
LOW = (0x10_0000, 0x10_0FF0, 0x7FFF_FFFF_F7F0)
FIELDS = (
    Field(".quad target", c.R_AARCH64_ABS64, (0, 1, (1 << 64) - 1)),
    Field(".word target", c.R_AARCH64_ABS32, (0, 0xFFFF_FFFF), (1 << 32, -(1 << 31) - 1), (-(1 << 31),)),
    Field(".hword target", c.R_AARCH64_ABS16, (0, 0xFFFF), (1 << 16, -(1 << 15) - 1), (-(1 << 15),)),
    Field(".quad target - .", c.R_AARCH64_PREL64, (0, PLACE, 1 << 63)),
    Field(".word target - .", c.R_AARCH64_PREL32, near(32, 1)[0], (PLACE - (1 << 31) - 1,)),
    Field(".hword target - .", c.R_AARCH64_PREL16, near(16, 1)[0], (PLACE - (1 << 15) - 1,)),
    Field("movz x3, #:abs_g0:target", c.R_AARCH64_MOVW_UABS_G0, (0, 0xFFFF), (1 << 16,)),
    Field("movk x3, #:abs_g0_nc:target", c.R_AARCH64_MOVW_UABS_G0_NC, (0x1234_5678_9ABC_DEF0,)),
    Field("movz x3, #:abs_g1:target", c.R_AARCH64_MOVW_UABS_G1, (0x10000, 0xFFFF_FFFF), (1 << 32,)),
    Field("movk x3, #:abs_g1_nc:target", c.R_AARCH64_MOVW_UABS_G1_NC, (0x1234_5678_9ABC_DEF0,)),
    Field("movz x3, #:abs_g2:target", c.R_AARCH64_MOVW_UABS_G2, (1 << 32, (1 << 48) - 1), (1 << 48,)),
    Field("movk x3, #:abs_g2_nc:target", c.R_AARCH64_MOVW_UABS_G2_NC, (0x1234_5678_9ABC_DEF0,)),
    Field("movz x3, #:abs_g3:target", c.R_AARCH64_MOVW_UABS_G3, (0x1234_5678_9ABC_DEF0, (1 << 64) - 1)),
    Field("ldr x5, target", c.R_AARCH64_LD_PREL_LO19, *near(21, 4)),
    Field("adr x29, target", c.R_AARCH64_ADR_PREL_LO21, *near(21, 1)),
    Field(
        "adrp x7, target",
        c.R_AARCH64_ADR_PREL_PG_HI21,
        (PAGE - (1 << 32), PLACE + 1, PAGE + (1 << 32) - 1, PAGE - 1, PAGE + 4096),
        (PAGE + (1 << 32), PAGE - (1 << 32) - 1),
    ),
    Field("adrp x7, :pg_hi21_nc:target", c.R_AARCH64_ADR_PREL_PG_HI21_NC, (PLACE, PAGE - 1, 0x7F00_1234_5000)),
    Field("add x1, x2, :lo12:target", c.R_AARCH64_ADD_ABS_LO12_NC, (*LOW, 0xFFF, 0x1001)),
    Field("ldrb w1, [x2, :lo12:target]", c.R_AARCH64_LDST8_ABS_LO12_NC, (*LOW, 0xFFF, 0x1001)),
    Field("strh w1, [x2, :lo12:target]", c.R_AARCH64_LDST16_ABS_LO12_NC, (*LOW, 0xFFE, 0x1002), (0x1001,)),
    Field("ldr w1, [x2, :lo12:target]", c.R_AARCH64_LDST32_ABS_LO12_NC, (*LOW, 0xFFC, 0x1004), (0x1002,)),
    Field("str x1, [x2, :lo12:target]", c.R_AARCH64_LDST64_ABS_LO12_NC, (*LOW, 0xFF8, 0x1008), (0x1004,)),
    Field("ldr q1, [x2, :lo12:target]", c.R_AARCH64_LDST128_ABS_LO12_NC, (*LOW, 0xFF0, 0x1010), (0x1008,)),
    Field("tbnz x9, #33, target", c.R_AARCH64_TSTBR14, *near(16, 4)),
    Field("b.ne target", c.R_AARCH64_CONDBR19, *near(21, 4)),
    Field("cbz w9, target", c.R_AARCH64_CONDBR19, *near(21, 4)),
    Field("b target", c.R_AARCH64_JUMP26, near(28, 4)[0]),
    Field("bl target", c.R_AARCH64_CALL26, near(28, 4)[0]),
)
IDS = [f.text for f in FIELDS]


def field_in(elf: ElfFile) -> tuple[bytes, int, int]:
    """The section, its relocation's offset, and its type."""
    text = elf.section(".text")
    assert text is not None
    (relocation,) = elf.relocations(text.number)
    assert relocation.addend == 0
    return elf.contents(text), relocation.offset, relocation.type


def link_to(folder: Path, linker: str, target: int) -> list[str | Path]:
    """The words of a link that puts the object at PLACE, and `target` there."""
    words = ["-Ttext", f"{PLACE:#x}", f"--defsym=target={target % (1 << 64):#x}", "-e", "0", "--no-relax"]
    return [
        linker,
        *(w for w in words if linker != "ld.lld" or w != "--no-relax"),
        folder / "a.o",
        "-o",
        folder / "out",
    ]


@pytest.mark.parametrize("linker", LINKERS)
@pytest.mark.parametrize("field", FIELDS, ids=IDS)
def test_field_is_that_of_the_linker(tmp_path: Path, field: Field, linker: str) -> None:
    """A bug: bits in the wrong place, a wrong page, or a sign."""
    data, at, number = field_in(assembled(tmp_path, f".text\n{field.text}\n"))
    assert number == field.type
    kind = known.relocation_kind(number, "here")
    for target in field.good + (field.negative if linker == "ld.lld" else ()):
        value = from_place(kind, target, PLACE + at)
        assert fits(kind, value), hex(target)
        mine = bytearray(data)
        write(kind, mine, at, value)
        tool(*link_to(tmp_path, linker, target))
        theirs = ElfFile((tmp_path / "out").read_bytes()).read(PLACE, len(data))
        assert mine == theirs, hex(target)


# Alignment is checked by lld, and not by all versions of GNU ld.
@pytest.mark.parametrize("field", [f for f in FIELDS if f.bad], ids=[f.text for f in FIELDS if f.bad])
def test_what_the_linker_refuses_does_not_fit(tmp_path: Path, field: Field) -> None:
    """A bug: a value is cut off, and the program goes somewhere else."""
    _, at, number = field_in(assembled(tmp_path, f".text\n{field.text}\n"))
    kind = known.relocation_kind(number, "here")
    for target in field.bad:
        assert not fits(kind, from_place(kind, target, PLACE + at)), hex(target)
        tool(*link_to(tmp_path, "ld.lld", target), fails=True)


@pytest.mark.parametrize("distance", [1 << 27, -(1 << 27) - 4, 2, 1 << 40])
@pytest.mark.parametrize("number", [c.R_AARCH64_CALL26, c.R_AARCH64_JUMP26])
def test_branch_out_of_reach_does_not_fit(number: int, distance: int) -> None:
    """Linkers put a veneer between, and so does a patch: the field must say that it cannot hold the distance."""
    assert not fits(known.relocation_kind(number, "here"), distance)


PAIRS = """
adrp x0, :got:target
ldr x0, [x0, :got_lo12:target]
adrp x1, :gottprel:local
ldr x1, [x1, :gottprel_lo12:local]
"""
TINY = "ldr x0, :got:target\nldr x1, :gottprel:local\n"  # of the tiny code model; lld does not know all of these
GOT = """
.section .tbss,"awT",@nobits
.globl local
.type local, %object
.skip 24
local: .skip 8
.size local, 8
"""


@pytest.mark.parametrize(("linker", "code"), [(LINKERS[0], PAIRS), (LINKERS[1], PAIRS), (LINKERS[0], TINY)])
def test_fields_through_the_got_lead_to_its_slots(tmp_path: Path, linker: str, code: str) -> None:
    """A bug: page and rest of a slot are taken from different addresses."""
    elf = assembled(tmp_path, code + GOT)
    output = linked(tmp_path, linker, "-shared", "-Ttext", "0x20000", "-z", "max-page-size=4096")
    text = elf.section(".text")
    assert text is not None
    slots = {r.type: address for address, r in DynamicTables(output.elf).relocations.items()}
    assert {c.R_AARCH64_GLOB_DAT, c.R_AARCH64_TLS_TPREL64} == set(slots)
    mine = bytearray(elf.contents(text))
    place = next(s for s in output.elf.sections if s.name == ".text").address
    for r in elf.relocations(text.number):
        kind = known.relocation_kind(r.type, "here")
        slot = slots[c.R_AARCH64_TLS_TPREL64 if r.type in known.THREAD else c.R_AARCH64_GLOB_DAT]
        write(kind, mine, r.offset, from_place(kind, slot, place + r.offset))
    assert mine == output.elf.read(place, len(mine))


WIDE = "ldr q1, [x0, :tprel_lo12_nc:v]"  # which GNU as does not know, as lld does not know those that are checked
CHECKED = """
add x0, x0, :tprel_lo12:v
ldrb w1, [x0, :tprel_lo12:v]
ldrh w1, [x0, :tprel_lo12:v]
ldr w1, [x0, :tprel_lo12:v]
ldr x1, [x0, :tprel_lo12:v]
movz x2, #:tprel_g1:v
movk x2, #:tprel_g0_nc:v
"""
LOCAL_EXEC = """
.globl _start
_start:
add x0, x0, :tprel_hi12:v
add x0, x0, :tprel_lo12_nc:v
ldrb w1, [x0, :tprel_lo12_nc:v]
ldrh w1, [x0, :tprel_lo12_nc:v]
ldr w1, [x0, :tprel_lo12_nc:v]
ldr x1, [x0, :tprel_lo12_nc:v]
{more}
.section .tdata,"awT",@progbits
.p2align {alignment}
.skip 48
v: .skip 64
"""


@pytest.mark.parametrize("linker", LINKERS)
@pytest.mark.parametrize("alignment", [3, 4, 6])
def test_offsets_from_the_thread_pointer(tmp_path: Path, linker: str, alignment: int) -> None:
    """A bug: the two words that the thread pointer points to, or what aligns the segment, are left out."""
    is_clang = linker == "ld.lld"
    elf = assembled(
        tmp_path, LOCAL_EXEC.format(alignment=alignment, more=WIDE if is_clang else CHECKED), with_clang=is_clang
    )
    output = linked(tmp_path, linker, "-Ttext", "0x20000", "-Tdata", "0x30010")
    segment = next(s for s in output.elf.segments if s.type == c.PT_TLS)
    text, symbol = elf.section(".text"), next(s for s in output.elf.symbols if s.name == "v")
    assert text is not None
    start = known.thread_offset(segment.vaddr, segment.memory_size, segment.alignment)
    mine = bytearray(elf.contents(text))
    left: list[int] = []
    for r in elf.relocations(text.number):
        if known.KINDS[r.type].name == "R_AARCH64_TLSLE_MOVW_TPREL_G1":  # refused: it may change the instruction
            left.append(r.offset)
            continue
        kind = known.relocation_kind(r.type, "here")
        value = start + symbol.value  # of a thread-local the offset in its segment
        assert fits(kind, value)
        write(kind, mine, r.offset, value)
    theirs = bytearray(output.elf.read(output.address("_start"), len(mine)))
    for at in left:
        mine[at : at + 4] = theirs[at : at + 4]
    assert mine == theirs


PROGRAM = r"""
typedef unsigned long u64; typedef __attribute__((vector_size(16))) int v4;
static int table[64]; int common[16] __attribute__((aligned(16))); v4 quad; double d = 2.5; short h; char b;
static const char *const names[] = {"zero", "one", "two", "three"};
int (*hook)(int); extern int elsewhere(int); static int helper(int x) { return table[x & 63] + h; }
__attribute__((noinline)) int pick(int n) {
  switch (n) { case 0: return b; case 1: return (int)d; case 2: return h; case 3: return common[1]; case 4: return 77;
    case 5: return helper(n); case 6: return names[n & 3][1]; case 7: return quad[2]; default: return -1; } }
int run(int n) { hook = helper; common[n & 15] += pick(n); quad += (v4){1, 2, 3, n}; d *= 1.5; h++; b ^= 1;
  u64 *p = (u64 *)&table[2]; *p += (u64)names[n & 3]; return elsewhere(hook(n)) + pick(n + 1); }
void _start(void) { run(3); }
"""
ELSEWHERE = "int elsewhere(int n) { return n + 1; }\n"


@pytest.mark.parametrize("linker", LINKERS)
@pytest.mark.parametrize("options", [["-O0"], ["-O2"], ["-O2", "-mcmodel=large"], ["-Os", "-fPIE"]], ids=" ".join)
def test_every_field_of_a_program_is_that_of_the_linker(tmp_path: Path, linker: str, options: list[str]) -> None:
    """A bug: a relocation that compilers use is missing, or wrong in company."""
    elf = compiled(tmp_path, PROGRAM, "-fno-common", "-ffunction-sections", "-fdata-sections", *options)
    compiled(tmp_path, ELSEWHERE, *options, name="b")
    words = ("-Ttext", "0x8812340", "-Tdata", "0x9456780", "--no-relax")
    output = linked(tmp_path, linker, *words, names=("a", "b"))
    where = {s.name: s.value for s in output.elf.symbols if s.name and not s.name.startswith("$")}
    compared = 0
    for section in elf.sections:
        rows = elf.relocations(section.number) if section.flags & c.SHF_ALLOC else ()
        named = next((s for s in elf.symbols if s.section == section.number and s.name in where and not s.value), None)
        if not rows or named is None or section.name.startswith((".eh_frame", ".text._start")):
            continue
        start, mine = where[named.name], bytearray(elf.contents(section))
        theirs = output.elf.read(start, len(mine))
        for r in rows:
            kind = known.relocation_kind(r.type, section.name)
            target = address_of(elf, r.symbol, where)
            if target is None:  # sections of literals and tables without a symbol: found through the field itself
                mine[r.offset : r.offset + kind.width] = theirs[r.offset : r.offset + kind.width]
                continue
            value = from_place(kind, target + r.addend, start + r.offset)
            assert fits(kind, value)
            write(kind, mine, r.offset, value)
            compared += 1
        assert mine == theirs, section.name
        assert known.same_outside(elf.contents(section), theirs, elf.relocation_rows(section.number))
    assert compared > 25


def address_of(elf: ElfFile, number: int, where: dict[str, int]) -> int | None:
    """Where what a symbol of an object means lies in the output."""
    symbol = elf.symbols[number]
    if symbol.name in where:
        return where[symbol.name]
    known_there = (s for s in elf.symbols if s.section == symbol.section and s.section and s.name in where)
    found = next(known_there, None)
    return None if found is None else where[found.name] - found.value + symbol.value


def test_masks_leave_the_instruction(tmp_path: Path) -> None:
    """A bug: loads of two registers, or of two sizes, count as the same code."""
    texts = ("ldr w0, [x1, :lo12:v]", "ldr w2, [x1, :lo12:v]", "ldr w0, [x1, :lo12:u]", "bl v", "b v")
    sides = []
    for n, text in enumerate(texts):
        elf = assembled(tmp_path, f".text\n{text}\n", f"m{n}")
        section = elf.section(".text")
        assert section is not None
        sides.append(known.masked(elf.contents(section), elf.relocations(section.number), relaxed=False))
    assert sides[0] == sides[2]
    assert len(set(sides)) == 4


def test_masked_and_same_outside_agree(tmp_path: Path) -> None:
    """A bug: what a linker wrote counts as another's code, or other bytes are not compared."""
    elf = assembled(tmp_path, ".globl _start\n_start: adrp x0, _start\n add x0, x0, :lo12:_start\n mov x1, x2\n")
    output = linked(tmp_path, "ld.lld", "-Ttext", "0x345678")
    text = elf.section(".text")
    assert text is not None
    data, rows = elf.contents(text), elf.relocation_rows(text.number)
    final = output.elf.read(output.address("_start"), len(data))
    assert final != data
    assert known.same_outside(data, final, rows)
    assert not known.same_outside(data, final[:8] + b"\x1f\x20\x03\xd5", rows)
    masked = [known.masked(x, elf.relocations(text.number), relaxed=True) for x in (data, final)]
    assert masked[0] == masked[1]


def test_numbers_are_those_of_readelf(tmp_path: Path) -> None:
    """A bug: a wrong number: another relocation is applied."""
    numbers = sorted(known.NAMES)
    rows = tuple(NewRelocation(8 * i, number, 0, 0) for i, number in enumerate(numbers))
    size = 8 * len(numbers)
    text = NewSection(".text", c.SHT_PROGBITS, c.SHF_ALLOC | c.SHF_EXECINSTR, 8, bytes(size), size, relocations=rows)
    symbol = NewSymbol("v", c.STB_GLOBAL, c.STT_NOTYPE, c.SHN_UNDEF, 0, 0)
    (tmp_path / "all.o").write_bytes(write_relocatable(c.EM_AARCH64, (text,), (symbol,)))
    printed = tool(f"{PREFIX}readelf", "-rW", tmp_path / "all.o")
    names = dict(re.findall(r"^([0-9a-f]{16}) +[0-9a-f]{16} (R_\w+)", printed, re.MULTILINE))
    found = {number: names[at] for i, number in enumerate(numbers) if (at := f"{8 * i:016x}") in names}
    assert found == {number: known.NAMES[number] for number in found}
    assert known.NAMES.keys() - found.keys() <= {c.R_AARCH64_PLT32}  # younger than binutils 2.40


@pytest.mark.parametrize("distance", [0x1234, -(1 << 31), (1 << 31) - 0x1000])
def test_distance_of_a_function_from_data(tmp_path: Path, distance: int) -> None:
    """R_AARCH64_PLT32, as clang's relative tables of functions have it."""
    (tmp_path / "a.s").write_text(".text\n.word target@PLT - .\n")
    tool("clang", "--target=aarch64-linux-gnu", "-c", tmp_path / "a.s", "-o", tmp_path / "a.o")
    data, at, number = field_in(ElfFile((tmp_path / "a.o").read_bytes()))
    assert number == c.R_AARCH64_PLT32
    mine = bytearray(data)
    write(known.relocation_kind(number, "here"), mine, at, distance)
    tool(*link_to(tmp_path, "ld.lld", PLACE + distance))
    assert mine == ElfFile((tmp_path / "out").read_bytes()).read(PLACE, 4)


@pytest.mark.parametrize(
    "number",
    [
        c.R_AARCH64_TLSGD_ADR_PAGE21,
        c.R_AARCH64_TLSDESC_CALL,
        c.R_AARCH64_MOVW_SABS_G1,
        c.R_AARCH64_LD64_GOTPAGE_LO15,
        999,
    ],
)
def test_what_is_not_computed_is_refused_by_name(number: int) -> None:
    """A bug: a field is left as it is."""
    with pytest.raises(Exception, match=r"R_AARCH64_\w+ is not supported|relocation type 999"):
        known.relocation_kind(number, "here")


def test_reading_back_gives_the_place_of_a_symbol(tmp_path: Path) -> None:
    """A bug: the sign of a page, or the two lowest bits of ADR."""
    elf = assembled(tmp_path, ".globl _start\n_start: adr x0, v\n bl v\n tbz x0, #1, v\n.skip 0x1234\nv:\n")
    output: Output = linked(tmp_path, "ld.lld", "-Ttext", "0x345678")
    text = elf.section(".text")
    assert text is not None
    start = output.address("_start")
    for r in elf.relocations(text.number):
        assert read(known.KINDS[r.type], output.elf.read(start, 12), r.offset) + start + r.offset == output.address("v")
