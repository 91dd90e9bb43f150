"""Machine code and relocation fields against the assembler, the linker and the disassembler."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from katana_cc.cpu.field import Form
from katana_cc.cpu.x86_64 import code as cpu
from katana_cc.cpu.x86_64 import contexts, relocations, system
from katana_cc.cpu.x86_64.kinds import KINDS
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import RefusedError
from katana_cc.patch.model import PatchRelocation
from katana_cc.process.link import Heritage, lay_out, link
from tests.support.objects import as_patch


def tool(*words: str | Path) -> str:
    """Run a tool, give its output."""
    return subprocess.run([str(w) for w in words], check=True, capture_output=True, text=True).stdout


def disassemble(folder: Path, code: bytes, address: int) -> str:
    """objdump's reading of raw code."""
    raw = folder / "code.bin"
    raw.write_bytes(code)
    return tool("objdump", "-D", "-b", "binary", "-mi386:x86-64", f"--adjust-vma={address:#x}", raw)


FIELDS = """
.section .text.f,"ax",@progbits
.globl f
f:
 call near_function
 lea near_data+8(%rip), %rax
 mov near_data@GOTPCREL(%rip), %rbx
 jmp *near_function@GOTPCREL(%rip)
 .quad near_data+16
 .quad near_data - .
 .long near_data
 mov $near_data, %edi
 mov near_data(,%rax,8), %rcx
 .long near_data@SIZE
"""


def test_fields_are_those_of_the_linker(tmp_path: Path) -> None:
    """A bug: a wrong addend, sign or place; the GOT fields are compared by what the slot they lead to holds."""
    (tmp_path / "a.s").write_text(FIELDS)
    near = "near_function = 0x10500\n.data\n.size near_data, 24\nnear_data: .skip 24\n"
    (tmp_path / "b.s").write_text(".globl near_function, near_data\n" + near)
    for name in "ab":
        tool("as", tmp_path / f"{name}.s", "-o", tmp_path / f"{name}.o")
    tool(
        "ld",
        "--no-relax",
        "-Ttext=0x20000",
        "-Tdata=0x30000",
        "-ef",
        tmp_path / "a.o",
        tmp_path / "b.o",
        "-o",
        tmp_path / "x",
    )
    oracle = ElfFile((tmp_path / "x").read_bytes())
    where = {s.name: (s.value, s.size) for s in oracle.symbols}
    po = as_patch(tmp_path / "a.o", {n: where[n] for n in ("near_function", "near_data")})
    layout = lay_out(po, 64)
    section = next(i for i, s in enumerate(po.sections) if s.name == ".text.f")
    base = where["f"][0] - layout.sections[section]
    linked = link(po, layout, base, 0, {}, None).image
    size = po.sections[section].size
    at = layout.sections[section]
    ours, theirs = linked[at : at + size], oracle.read(where["f"][0], size)
    got = {r.offset: r for r in po.sections[section].relocations if KINDS[r.type].form is Form.GOT_RELATIVE}
    assert len(got) == 2
    for offset, relocation in got.items():
        place = where["f"][0] + offset
        slots = [place + 4 + int.from_bytes(x[offset : offset + 4], "little", signed=True) for x in (ours, theirs)]
        assert linked[slots[0] - base : slots[0] - base + 8] == oracle.read(slots[1], 8), relocation
    assert blank(ours, got) == blank(theirs, got)


def blank(code: bytes, fields: dict[int, PatchRelocation]) -> bytes:
    """The code with some 4-byte fields zero."""
    result = bytearray(code)
    for offset in fields:
        result[offset : offset + 4] = bytes(4)
    return bytes(result)


ENTRIES = """
.section .text.f,"ax",@progbits
 call g
 lea g(%rip), %rax
 cmpl $7, h(%rip)
 lea g+3(%rip), %rax
 jmp g
.section .rodata.t,"a",@progbits
 .quad g
 .quad g+3
 .long g+3-.rodata.t
 .section .text.g,"ax",@progbits
g: .skip 16, 0x90
.section .data.h,"aw",@progbits
h: .long 1
"""


def test_address_of_an_inherited_function_is_its_entry_and_calls_go_to_its_code(tmp_path: Path) -> None:
    """A bug: a label in it, or a call, leads to the earlier patch's code; or its address is another one than before."""
    (tmp_path / "a.s").write_text(ENTRIES)
    tool("as", tmp_path / "a.s", "-o", tmp_path / "a.o")
    po = as_patch(tmp_path / "a.o", {})
    numbers = {s.name: i for i, s in enumerate(po.sections)}
    entry, place, base = 0x7000_0000, 0x7100_0000, 0x7200_0000
    heritage = Heritage({numbers[".data.h"]: place}, {numbers[".text.g"]: entry})
    layout = replace(lay_out(po, 64), heritage=heritage)
    linked = link(po, layout, base, 0, {}, None).image
    at = {name: layout.sections[n] for name, n in numbers.items()}
    text = disassemble(tmp_path, linked[at[".text.f"] :][:32], base + at[".text.f"])
    own = base + at[".text.g"]
    assert f"call   {own:#x}" in text
    assert f"# {entry:#x}" in text
    assert f"# {place:#x}" in text
    assert f"# {own + 3:#x}" in text
    assert f"jmp    {own:#x}" in text
    table = linked[at[".rodata.t"] :][:20]
    assert int.from_bytes(table[:8], "little") == entry
    assert int.from_bytes(table[8:16], "little") == own + 3
    assert int.from_bytes(table[16:], "little", signed=True) == own + 3 - (base + at[".rodata.t"])


@pytest.mark.parametrize("distance", [0x100, -0x100, 0x7FFFFFFF, -0x80000000])
def test_jump_is_read_back_by_the_disassembler(tmp_path: Path, distance: int) -> None:
    """A bug: the distance is not from the end of the instruction."""
    place = 0x5_0000_0000
    text = disassemble(tmp_path, cpu.jump(place, place + 5 + distance), place)
    assert f"jmp    {place + 5 + distance:#x}" in text


def test_jump_out_of_reach_is_refused() -> None:
    """A bug: the distance wraps, and the jump goes the other way."""
    with pytest.raises(RefusedError):
        cpu.jump(0x1000, 0x1000 + 5 + 0x80000000)


def test_stub_jumps_through_its_slot(tmp_path: Path) -> None:
    """A bug: the stub's slot is off by the instruction's length."""
    text = disassemble(tmp_path, cpu.stub(0x40000, 0x51238), 0x40000)
    assert "jmp    *" in text
    assert "# 0x51238" in text


def test_value_that_does_not_fit_names_symbol_and_section(tmp_path: Path) -> None:
    """A bug: a field is cut off, or the refusal does not say where."""
    (tmp_path / "a.s").write_text('.section .text.f,"ax",@progbits\n lea far_data(%rip), %rax\n')
    tool("as", tmp_path / "a.s", "-o", tmp_path / "a.o")
    po = as_patch(tmp_path / "a.o", {"far_data": (0x7F00_0000_0000, 8)})
    with pytest.raises(RefusedError) as caught:
        link(po, lay_out(po, 64), 0x10000, 0, {}, None)
    assert "far_data" in str(caught.value)
    assert ".text.f+0x3" in str(caught.value)


@pytest.mark.parametrize("number", [c.R_X86_64_TLSGD, c.R_X86_64_GOTPC32_TLSDESC, c.R_X86_64_GOTOFF64, 200])
def test_unsupported_relocation_is_refused_by_name(number: int) -> None:
    """A bug: an unknown field is left as it is."""
    with pytest.raises(RefusedError, match=r"R_X86_64_|relocation type 200"):
        relocations.relocation_kind(number, "here")


@pytest.mark.parametrize(
    ("code", "is_in"),
    [
        ("f: nop\n1: dec %edi\n jnz 1b\n ret", True),
        ("f: nop; nop; nop; nop; nop\n1: dec %edi\n jnz 1b\n ret", False),
        ("f: nop\n1: .skip 200, 0x90\n jmp 1b", True),
        ("f: .skip 200, 0x90\n jmp f", False),
    ],
)
def test_branches_back_into_the_first_bytes_are_seen(tmp_path: Path, code: str, is_in: bool) -> None:
    """A bug: a loop whose head is under the jump is allowed to be active."""
    (tmp_path / "b.s").write_text(code + "\n")
    tool("as", tmp_path / "b.s", "-o", tmp_path / "b.o")
    elf = ElfFile((tmp_path / "b.o").read_bytes())
    text = elf.section(".text")
    assert text is not None
    assert cpu.branches_into(elf.contents(text), 1, cpu.JUMP_SIZE) is is_in


def waits_outside(words: list[int]) -> bool:
    """Asked without memory: the registers tell."""
    return system.waits_outside(words, lambda _address, _size: b"")


def _in_call(number: int, second: int = 0) -> list[int]:
    words = [0] * 27
    words[system.ORIG_RAX], words[system.RSI] = number & (1 << 64) - 1, second
    return words


def test_thread_that_waits_for_a_lock_does_not_wait_outside() -> None:
    """A bug: a function is called in a thread that holds what the function needs."""
    private, wait, wait_bitset = 0x80, 0, 9
    assert waits_outside(_in_call(7))  # poll
    assert waits_outside(_in_call(system.SYS_FUTEX, wait_bitset | private))
    assert not waits_outside(_in_call(system.SYS_FUTEX, wait | private))
    assert not waits_outside(_in_call(system.SYS_MMAP))
    assert not waits_outside(_in_call(system.SYS_MUNMAP))
    assert not waits_outside(_in_call(-1))  # in no system call


def test_wait_of_which_the_kernel_lost_how_to_go_on_is_entered_again() -> None:
    """A bug: restart_syscall goes on with another wait, or the program sees a system call that it did not make."""
    words = [0] * 27
    words[system.RIP], words[system.RAX], words[system.ORIG_RAX] = 0x1007, (1 << 64) - 516, 230
    again = {system.RIP: 0x1005, system.RAX: 230, system.ORIG_RAX: (1 << 64) - 1}
    assert system.entered_again(words, b"") == again
    words[system.ORIG_RAX] = 219
    assert system.entered_again(words, bytes.fromhex("b8e6000000 0f05")) == again
    assert system.entered_again(words, bytes.fromhex("4889c0 9090 0f05")) == {
        system.RAX: (1 << 64) - 4, system.ORIG_RAX: (1 << 64) - 1
    }  # fmt: skip
    words[system.RAX] = (1 << 64) - 4
    assert system.entered_again(words, b"") is None


def test_return_addresses_lie_behind_calls() -> None:
    """A bug: a coroutine is not seen, since it waits in a call of another form."""
    calls = (
        "e8 00000000", "67e8 00000000", "ffd0", "41ffd4", "ff10", "ff5008", "ff542408", "ff9000010000",
        "ff94c800010000", "ff1500000000", "ff14c500000000", "ff14c8", "ff142500000000", "64ff142528000000",
    )  # fmt: skip
    code = b"".join(bytes.fromhex(call) + b"\x90" * 8 for call in calls)
    ends = []
    at = 0
    for call in calls:
        ends.append(at + len(bytes.fromhex(call)))
        at = ends[-1] + 8
    assert cpu.behind_calls(code) == set(ends)
    assert cpu.behind_calls(bytes.fromhex("ff25 00000000 ffe0 e900000000 0f0b")) == frozenset(), "jumps are none"
    assert cpu.behind_calls(b"\xe8\0\0\0") == frozenset(), "it is cut off"
    assert cpu.behind_calls(b"\xe8\0\0\0\0") == {5}, "the last instruction, of a call that does not return"


def test_what_a_signal_interrupted_is_known_by_its_neighbours() -> None:
    """A bug: any word of a table counts."""
    assert system.was_interrupted(bytes.fromhex("4602000000000000 330000000000 2b00"))
    assert not system.was_interrupted(bytes(16))
    assert not system.was_interrupted(bytes.fromhex("4602000000000000 230000000000 2b00")), "32-bit code"


def test_code_of_swapcontext_is_known() -> None:
    """A bug: a static program that was stripped switches stacks unseen."""
    assert system.switches_stacks(bytes.fromhex("90 0faeb2c0010000 90".replace("b2", "92")))
    assert not system.switches_stacks(bytes.fromhex("90 0fae5424fc 90"))


def test_contexts_are_found_by_their_marks() -> None:
    """A bug: a coroutine is overlooked, and what leads to it taken for stale."""
    mark = bytes.fromhex("7f03ffff 0000ffff ffffffff")
    rounded = bytes.fromhex("7f0fffff 2041ffff ffffffff")  # another rounding, exceptions that have happened
    ones = b"\xff" * 64
    for before in (b"", bytes(8), ones, bytes(4) + ones[:4], bytes.fromhex("ffff0000ffffffff")):
        for after in (bytes(12), ones + bytes(4)):
            for each in (mark, rounded):
                data = before + each + after + each
                assert list(contexts.marks(data)) == [len(before), len(before) + len(each) + len(after)]
    assert list(contexts.marks(bytes(4) + mark)) == [], "no context begins there"
    assert list(contexts.marks(ones + bytes(8) + ones)) == []
    assert list(contexts.marks(mark[:-1])) == []
    assert contexts.are_cut(bytes(8) + mark[:8]) == (False, True)
    assert contexts.are_cut(mark[8:] + bytes(4)) == (True, False)
    assert contexts.are_cut(bytes(16)) == (False, False)


def test_context_is_one_only_where_it_says_so_itself() -> None:
    """A bug: what was copied, or is none, is unwound."""
    data = bytearray(contexts.SIZE)
    data[16:24], data[32:40] = (0x7000).to_bytes(8, "little"), (0x1000).to_bytes(8, "little")
    data[160:168], data[168:176] = (0x7F00).to_bytes(8, "little"), (0x401234).to_bytes(8, "little")
    data[120:128] = (0x7F80).to_bytes(8, "little")
    data[224:232] = (0x10000 + contexts.MARK_AT).to_bytes(8, "little")
    assert contexts.saved_context(bytes(data), 0x20000) is None
    saved = contexts.saved_context(bytes(data), 0x10000)
    assert saved is not None
    assert (saved.stack, saved.size) == (0x7000, 0x1000)
    assert (saved.registers[7], saved.registers[16], saved.registers[6]) == (0x7F00, 0x401234, 0x7F80)
