"""What counts as padding behind a function, judged by what the assembler pads with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from katana_cc.cpu.x86_64.code import is_padding
from katana_cc.elf.reader import ElfFile


def assembled(tmp_path: Path, text: str) -> bytes:
    """The code that `as` makes."""
    (tmp_path / "p.s").write_text(text + "\n")
    subprocess.run(["as", "p.s", "-o", "p.o"], cwd=tmp_path, check=True)
    elf = ElfFile((tmp_path / "p.o").read_bytes())
    section = elf.section(".text")
    assert section is not None
    return elf.contents(section)


@pytest.mark.parametrize("used", range(1, 16))
def test_padding_of_the_assembler_is_padding(tmp_path: Path, used: int) -> None:
    """A bug: a long no-operation is not known, and callers are redirected for nothing."""
    code = assembled(tmp_path, f".fill {used},1,0xc3\n.p2align 4")[used:]
    for size in range(1, min(4, len(code)) + 1):
        assert is_padding(code, size)


@pytest.mark.parametrize("byte", [0x00, 0x90, 0xCC])
def test_fill_of_linkers_is_padding(byte: int) -> None:
    assert is_padding(bytes([byte] * 8), 4)


@pytest.mark.parametrize(
    "text",
    [
        "ret",
        "nop\nret",
        "int3\nret\nret\nret",
        "push %rbp\nnop\nnop\nnop",
        "endbr64\nret",
        "pause\nnop\nnop",
        "xor %eax,%eax\nret",
    ],
)
def test_code_is_no_padding(tmp_path: Path, text: str) -> None:
    """A bug: the neighbour's first instructions are overwritten."""
    assert not is_padding(assembled(tmp_path, text), 4)


def test_padding_that_ends_too_soon_is_not_enough(tmp_path: Path) -> None:
    """A bug: the jump's last byte is the neighbour's first."""
    code = assembled(tmp_path, "nop\nnop\nnop\npush %rbp\nret")
    assert is_padding(code, 3)
    assert not is_padding(code, 4)
