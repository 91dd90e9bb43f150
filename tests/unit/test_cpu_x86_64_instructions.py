"""Instruction lengths, and uses of variables out of reach, against objdump and as."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from katana_cc.cpu.x86_64.instructions import Form, direct_use, instructions
from katana_cc.cpu.x86_64.veneers import veneer
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile

_LINE = re.compile(r"^\s+([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t?(.*)$", re.MULTILINE)
LIBRARIES = ("libm.so.6", "libc.so.6")  # vector code of every generation; everything else
ADDRESS, PLACE, HERE = 0x7F12_3456_7890, 0x90000, 0x80000


def _run(*words: str | Path) -> str:
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, check=True).stdout


def _library(name: str) -> Path:
    return Path(_run("gcc", f"-print-file-name={name}").strip()).resolve()


@pytest.mark.parametrize("name", LIBRARIES)
def test_lengths_are_those_of_objdump(name: str) -> None:
    """A bug: the reading loses step, and a field is looked for in the wrong instruction."""
    path = _library(name)
    start = ElfFile(path.read_bytes()).section(".text")
    assert start is not None
    end = start.address + min(start.size, 0x20000)
    text = _run("objdump", "-d", "-w", "--insn-width=16", "-j", ".text", f"--stop-address={end:#x}", path)
    wrong = []
    for _, data, words in _LINE.findall(text)[:-8]:  # the end may cut one
        code = bytes.fromhex(data)
        if "(bad)" in words or (code[0] == 0x9B and len(code) > 1):
            continue  # objdump takes FWAIT and the instruction after it for one
        found = next(instructions(code), None)
        if found is None or found.end != len(code):
            wrong.append((data, words))
    assert not wrong


def _assembled(tmp_path: Path, text: str) -> tuple[bytes, int]:
    """The bytes of one instruction that uses `variable`, and the offset of the field."""
    (tmp_path / "i.s").write_text(text + "\n")
    _run("as", tmp_path / "i.s", "-o", tmp_path / "i.o")
    elf = ElfFile((tmp_path / "i.o").read_bytes())
    section = elf.section(".text")
    assert section is not None
    (relocation,) = elf.relocations(section.number)
    assert relocation.type in (c.R_X86_64_PC32, c.R_X86_64_32, c.R_X86_64_32S)
    return elf.contents(section), relocation.offset


def _words(tmp_path: Path, code: bytes, address: int) -> list[str]:
    (tmp_path / "v").write_bytes(code.rstrip(b"\xcc"))
    said = _run(
        "objdump", "-D", "-w", "-b", "binary", "-m", "i386:x86-64", f"--adjust-vma={address:#x}", tmp_path / "v"
    )
    return [re.sub(r"\s+", " ", words).strip() for _, _, words in _LINE.findall(said)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mov variable(%rip),%rax", "mov (%rax),%rax"),
        ("mov variable(%rip),%edi", "mov (%rdi),%edi"),
        ("mov variable(%rip),%rbp", "mov 0x0(%rbp),%rbp"),
        ("mov variable(%rip),%r12", "mov (%r12),%r12"),
        ("mov variable(%rip),%r13d", "mov 0x0(%r13),%r13d"),
        ("mov variable,%rdi", "mov (%rdi),%rdi"),
        ("mov variable(%rip),%ax", "mov (%rdi),%ax"),
        ("mov %rdi,variable(%rip)", "mov %rdi,(%rsi)"),
        ("mov %bh,variable(%rip)", "mov %bh,(%rsi)"),
        ("cmp variable(%rip),%r15", "cmp (%rsi),%r15"),
        ("cmp %rbx,variable(%rip)", "cmp %rbx,(%rdi)"),
        ("addl $0x7,variable(%rip)", "addl $0x7,(%rdi)"),
        ("movq $0x12345,variable(%rip)", "movq $0x12345,(%rdi)"),
        ("cmpb $0x3,variable(%rip)", "cmpb $0x3,(%rsi)"),
        ("incl variable(%rip)", "incl (%rdi)"),
        ("mull variable(%rip)", "mull (%rdi)"),
        ("lock xadd %ecx,variable(%rip)", "lock xadd %ecx,(%rdi)"),
        ("movzbl variable(%rip),%r8d", "movzbl (%rdi),%r8d"),
        ("movsd variable(%rip),%xmm3", "movsd (%rdi),%xmm3"),
        ("cvtsi2sdq variable(%rip),%xmm11", "cvtsi2sdq (%rdi),%xmm11"),
        ("cmovne variable(%rip),%rdx", "cmovne (%rdi),%rdx"),
        ("lea variable(%rip),%r9", None),
        ("mov $variable,%edi", None),
        ("mov $variable,%r9", None),
    ],
)
def test_use_is_made_from_afar(tmp_path: Path, text: str, expected: str | None) -> None:
    """A bug: another register, another width, a register destroyed, or a jump back to the wrong place."""
    code, field = _assembled(tmp_path, text)
    use = direct_use(code, field, [field])
    assert use is not None
    instead, body = veneer(code, use, ADDRESS, PLACE, HERE + len(code))
    assert len(instead) == len(code)
    assert _words(tmp_path, instead, HERE)[0] == f"jmp {PLACE:#x}"
    words = _words(tmp_path, body, PLACE)
    (taken,) = [w for w in words if w.startswith("movabs")]
    assert taken.startswith(f"movabs ${ADDRESS:#x},%")
    assert words[-1] == f"jmp {HERE + len(code):#x}"
    if expected is not None:
        assert expected in words
    if use.form is Form.OPERAND:
        scratch = taken.rpartition("%")[2]
        assert [w for w in words if "rsp" in w] == ["lea -0x80(%rsp),%rsp", "lea 0x80(%rsp),%rsp"]
        assert words[1] == f"push %{scratch}"
        assert f"pop %{scratch}" in words
        assert scratch not in text, "it uses the register that the instruction does"
    else:
        assert len(words) == 2 + (use.form is Form.LOAD)


@pytest.mark.parametrize(
    "text",
    [
        "push variable(%rip)", "pop variable(%rip)", "call *variable(%rip)", "jmp *variable(%rip)",
        "mov variable(%rip),%rsp", "cmp %rsp,variable(%rip)", "lea variable(%rip),%eax", "mov variable(,%rax,8),%rcx",
        "mov %fs:variable,%rax", "vmovups variable(%rip),%ymm1", "cmp $variable,%rax", "push $variable",
        "pshufb variable(%rip),%xmm1", "movq $variable,(%rax)",
    ],
)  # fmt: skip
def test_what_cannot_be_done_from_afar_is_told(tmp_path: Path, text: str) -> None:
    """A bug: the stack pointer is not where the instruction expects it, or an index is lost."""
    code, field = _assembled(tmp_path, text)
    assert direct_use(code, field, [field]) is None


def test_instruction_with_another_field_stays(tmp_path: Path) -> None:
    """A bug: the other field is written where the instruction was, over the jump."""
    code, field = _assembled(tmp_path, "movl $0x7,variable(%rip)")
    assert direct_use(code, field, [field, field + 4]) is None


def test_prefix_of_the_instruction_before_is_not_taken(tmp_path: Path) -> None:
    """A bug: the last byte of a constant is taken for a REX prefix."""
    code, field = _assembled(tmp_path, "mov $0x48000000,%ecx\nmov variable(%rip),%eax")
    use = direct_use(code, field, [field])
    assert use is not None
    assert (use.instruction.start, use.instruction.rex) == (5, 0)
