"""What lies above the seam, with AArch64 behind it: a patch is linked by the code that links those of x86-64, put into
a program, and run by an emulator; stacks are unwound."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from katana_cc.cpu.aarch64 import branches, system
from katana_cc.dwarf.frames import Fde, records, row_at
from katana_cc.dwarf.unwind import Unwinder
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError, RefusedError
from katana_cc.process.link import lay_out, link
from tests.support.aarch64 import PREFIX, assembled, compiled, linked, tool
from tests.support.objects import as_patch

OLD = """
.globl _start, work, value, room, far_function, far_value
_start: bl work
 mov x8, #93
 svc #0
work: bti c
 mov x0, #1
 ret
.data
value: .quad 20
.section .room,"awx"
.p2align 12
room: .skip 0x8000
.section .far,"awx"
far_function: bti c
 add x0, x0, #2
 ret
.p2align 3
far_value: .quad 10
"""
NEW = """
.section .text.work,"ax"
work: bti c
 stp x29, x30, [sp, #-16]!
 adrp x1, value                       // of the program
 ldr x0, [x1, :lo12:value]
 adrp x2, far_value                   // of a library, as if it were in reach
 ldr x3, [x2, :lo12:far_value]
 add x0, x0, x3
 bl far_function
 adrp x4, :got:far_value
 ldr x4, [x4, :got_lo12:far_value]
 ldr x4, [x4]
 add x0, x0, x4
 adrp x5, mine                        // of the patch
 add x5, x5, :lo12:mine
 ldr x6, [x5]
 ldr x6, [x6]
 sub x0, x0, x6
 ldp x29, x30, [sp], #16
 ret
.section .data.mine,"aw"
.p2align 3
 .quad 0
mine: .quad constant
.section .rodata.constant,"a"
.p2align 3
constant: .quad 1
"""


def test_patch_is_linked_into_a_program_and_runs(tmp_path: Path) -> None:
    """A bug: stubs, veneers, the GOT or the patch's own sections are reached elsewhere than where they are."""
    assembled(tmp_path, OLD, "old")
    assembled(tmp_path, NEW, "new")
    far = ("--section-start", ".far=0x212345670", "--section-start", ".room=0x800000")
    made = linked(tmp_path, f"{PREFIX}ld", "-z", "force-bti", *far, names=("old",))
    assert made.run() == 1
    po = as_patch(tmp_path / "new.o", {"value": (made.address("value"), 8)})
    layout, base = lay_out(po, 64), made.address("room")
    assert layout.size <= 0x8000
    addresses = {i: made.address(s.name) for i, s in enumerate(po.symbols) if s.name.startswith("far_")}
    image = link(po, layout, base, 0, addresses, None).image
    assert len(layout.stubs) == 1
    assert len(layout.veneers) == 1
    new = base + next(layout.sections[i] for i, s in enumerate(po.sections) if s.name == ".text.work")
    place = made.address("work")
    jump = branches.entry_jump(made.elf.read(place, 12), place, new)
    assert made.patched({base: image, place: jump}).run() == 20 + 10 + 2 + 10 - 1


def test_value_that_does_not_fit_names_symbol_and_section(tmp_path: Path) -> None:
    """A bug: a field is cut off, or the refusal does not say where."""
    assembled(tmp_path, '.section .text.f,"ax"\n nop\n tbz x0, #1, far\n')
    po = as_patch(tmp_path / "a.o", {"far": (0x900000, 0)})
    with pytest.raises(RefusedError, match=r"R_AARCH64_TSTBR14 against far") as caught:
        link(po, lay_out(po, 64), 0x10000, 0, {}, None)
    assert ".text.f+0x4" in str(caught.value)


def test_section_with_descriptors_of_thread_locals_is_refused(tmp_path: Path) -> None:
    assembled(tmp_path, '.section .text.f,"ax"\n adrp x0, :tlsdesc:v\n')
    po = as_patch(tmp_path / "a.o", {})
    with pytest.raises(RefusedError, match="TLSDESC") as caught:
        lay_out(po, 64)
    assert "-ftls-model=initial-exec" in caught.value.remedy


UNWOUND = """
int leaf(int); int keep[4];
__attribute__((noinline)) int middle(int n) {
  int a[40]; for (int i = 0; i < 40; i++) a[i] = leaf(n + i); return a[n % 40] + keep[n & 3]; }
int top(int n) { return middle(n) + 1; }
"""
AUTIASP = 0xD50323BF
NAMES = [*(f"x{n}" for n in range(31)), "sp"]


def frames_of(elf: ElfFile) -> list[Fde]:
    """The FDEs of a linked file."""
    section = elf.section(".eh_frame")
    assert section is not None
    return [r for r in records(elf.contents(section), section.address) if isinstance(r, Fde)]


@pytest.mark.parametrize("options", [["-O0"], ["-O2"], ["-O2", "-mbranch-protection=standard"]], ids=" ".join)
def test_rows_are_those_of_readelf(tmp_path: Path, options: list[str]) -> None:
    """A bug: the state of the signature is lost with the rest of a row, or an instruction is misread."""
    compiled(tmp_path, UNWOUND, "-fPIC", "-fasynchronous-unwind-tables", *options)
    made = linked(tmp_path, "ld.lld", "-shared")
    text = tool(f"{PREFIX}readelf", "-wF", made.path)
    fdes = {fde.pc: fde for fde in frames_of(made.elf)}
    compared, columns, fde = 0, list[str](), None
    for line in text.splitlines():
        if head := re.search(r"FDE cie=\S+ pc=([0-9a-f]+)\.\.", line):
            fde = fdes[int(head[1], 16)]
        elif "LOC" in line:
            columns = line.split()[2:]
        elif fde is not None and re.match(r"^[0-9a-f]{16} ", line):
            words = line.split()
            row = row_at(fde, int(words[0], 16))
            assert words[1] == f"{NAMES[row.cfa_register]}{row.cfa_offset:+}"
            for column, value in zip(columns, words[2:], strict=False):
                rule = row.rules.get(30 if column == "ra" else NAMES.index(column))
                assert value == ("u" if rule is None else f"c{rule.value:+}"), line
            compared += 1
    assert compared > 3


def test_signature_is_known_from_its_instruction_on(tmp_path: Path) -> None:
    """A bug: the state toggles once too often, or survives a restore."""
    compiled(tmp_path, UNWOUND, "-fPIC", "-O2", "-mbranch-protection=pac-ret", "-fasynchronous-unwind-tables")
    made = linked(tmp_path, "ld.lld", "-shared")
    signed = 0
    for fde in frames_of(made.elf):
        code = made.elf.read(fde.pc, fde.pc_size)
        is_signed = False
        for at in range(0, len(code), 4):
            assert row_at(fde, fde.pc + at).is_signed is is_signed, hex(fde.pc + at)
            word = branches.word_at(code, at)
            if word == branches.PACIASP:
                is_signed = True
                signed += 1
            elif word == AUTIASP:
                break  # clang tells of prologues only, up to version 15
    assert signed == 2


@pytest.mark.parametrize("signature", [0, 0x007F_0000_0000_0000])
def test_stack_is_unwound_through_registers_and_signatures(tmp_path: Path, signature: int) -> None:
    """A leaf leaves its return address in x30; `middle` has it on the stack, signed."""
    compiled(tmp_path, UNWOUND, "-fPIC", "-O2", "-mbranch-protection=pac-ret", "-fasynchronous-unwind-tables")
    (tmp_path / "b.s").write_text(
        ".globl leaf, start\n"
        "leaf: .cfi_startproc\n nop\n ret\n .cfi_endproc\n"
        "start: .cfi_startproc\n .cfi_undefined x30\n bl top\n nop\n .cfi_endproc\n"
    )
    tool(f"{PREFIX}as", tmp_path / "b.s", "-o", tmp_path / "b.o")
    made = linked(tmp_path, "ld.lld", "-e", "start", names=("a", "b"))
    fdes = frames_of(made.elf)
    leaf, middle, top = (made.address(n) for n in ("leaf", "middle", "top"))
    call = next(at for at in range(middle, middle + 400, 4) if called(made.elf, at) == leaf)
    row = row_at(next(f for f in fdes if f.pc == middle), call)
    rule = row.rules[30]
    assert row.is_signed
    stack = 0x7FFF_0000_0000
    return_to_top = next(at for at in range(top, top + 60, 4) if called(made.elf, at) == middle) + 4
    words = {stack + rule.value: return_to_top | signature}
    values = dict.fromkeys(range(31), 0) | {30: call + 4, 31: stack - 0x100, 32: leaf}
    values[row.cfa_register] = stack - row.cfa_offset

    def read(address: int, size: int) -> bytes:
        if address in words:
            return words[address].to_bytes(size, "little")
        raise FormatError(f"nothing at {address:#x}")

    def find(pc: int) -> Fde | None:
        return next((f for f in fdes if f.pc <= pc < f.pc + f.pc_size), None)

    for offset in {r.value for r in row.rules.values()} - {rule.value}:
        words[stack + offset] = 0
    trace = Unwinder(find, read, system.DWARF, signature=0x007F_0000_0000_0000).unwind(values)
    assert [f.pc for f in trace.frames][:3] == [leaf, call + 4, return_to_top]
    assert not trace.is_complete  # what called `top` is not in the memory given


def called(elf: ElfFile, address: int) -> int | None:
    """What the instruction at an address calls."""
    target = branches.branch_target(elf.read(address, 4), 0)
    return None if target is None else address + target
