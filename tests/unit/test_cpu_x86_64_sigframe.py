"""Signal frames against the C library's and the kernel's own headers, and the code that leads to them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from katana_cc.cpu.x86_64 import system as cpu
from katana_cc.cpu.x86_64.sigframe import frame, keeper, size_of
from katana_cc.errors import RefusedError, TargetError
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.maps import MemoryMap

OFFSETS = r"""
#define _GNU_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <ucontext.h>
#define REG(name) printf("%s %zu\n", #name, 8 + offsetof(ucontext_t, uc_mcontext.gregs[REG_##name]))
int main(void) {
  REG(R8); REG(R9); REG(R10); REG(R11); REG(R12); REG(R13); REG(R14); REG(R15); REG(RDI); REG(RSI); REG(RBP); REG(RBX);
  REG(RDX); REG(RAX); REG(RCX); REG(RSP); REG(RIP);
  printf("EFLAGS %zu\n", 8 + offsetof(ucontext_t, uc_mcontext.gregs[REG_EFL]));
  printf("CS %zu\n", 8 + offsetof(ucontext_t, uc_mcontext.gregs[REG_CSGSFS]));
  printf("state %zu\n", 8 + offsetof(ucontext_t, uc_mcontext.fpregs));
  printf("mask %zu\n", 8 + offsetof(ucontext_t, uc_sigmask));
  return 0;
}
"""
MAGIC = r"""
#include <asm/sigcontext.h>
#include <stddef.h>
#include <stdio.h>
int main(void) {
  printf("magic1 %zu\n", offsetof(struct _xstate, fpstate.sw_reserved.magic1));
  printf("size %zu\n", offsetof(struct _xstate, fpstate.sw_reserved.xstate_size));
  printf("features %zu\n", offsetof(struct _xstate, fpstate.sw_reserved.xfeatures));
  printf("MAGIC1 %u\nMAGIC2 %u\n", FP_XSTATE_MAGIC1, FP_XSTATE_MAGIC2);
  return 0;
}
"""
STATE = bytes(range(256)) * 4


def asked(folder: Path, source: str) -> dict[str, int]:
    """What a C program prints: name and number a line."""
    (folder / "ask.c").write_text(source)
    subprocess.run(["gcc", "-w", "ask.c", "-o", "ask"], cwd=folder, check=True)
    said = subprocess.run([folder / "ask"], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in (line.split() for line in said.splitlines())}


@pytest.mark.parametrize("at", [0x7000, 0x7008, 0x7FF8])
def test_every_field_is_where_the_headers_say(tmp_path: Path, at: int) -> None:
    """A bug: a thread comes back with another one's registers."""
    registers = [0x1000 + n for n in range(27)]
    data = frame(at, 0xABCD, registers, 0x55AA, STATE)

    def word(offset: int, size: int = 8) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    assert word(0) == 0xABCD
    places = asked(tmp_path, OFFSETS)
    for name, offset in places.items():
        if name == "state":
            state = word(offset) - at
        elif name == "mask":
            assert word(offset) == 0x55AA
        else:
            assert word(offset, 2 if name == "CS" else 8) == registers[getattr(cpu, name)], name
    assert (at + state) % 64 == 0
    marks = asked(tmp_path, MAGIC)
    assert data[state : state + 464] == STATE[:464]
    assert word(state + marks["magic1"], 4) == marks["MAGIC1"]
    assert word(state + marks["size"], 4) == len(STATE)
    assert word(state + marks["features"]) == int.from_bytes(STATE[464:472], "little")
    assert data[state + 512 : state + len(STATE)] == STATE[512:]
    assert word(state + len(STATE), 4) == marks["MAGIC2"]
    assert len(data) <= size_of(STATE)


@pytest.mark.parametrize(
    ("text", "words"),
    [("pop %rbx; ret", 1), ("ret", 0), ("add $24, %rsp; pop %rbx; pop %rbp; ret", 5), ("pop %r12; pop %r15; ret", 2)],
)
def test_instructions_that_keep_a_result(tmp_path: Path, text: str, words: int) -> None:
    """A bug: the frame does not lie where the `ret` takes its address from."""
    lines = "nop; mov %rax, (%rbx); mov %rdi, %rax; ret; mov %rax, (%rbx); " + text
    (tmp_path / "x.s").write_text(lines.replace("; ", "\n") + "\n")
    subprocess.run(["as", "x.s", "-o", "x.o"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "x.o", "x"], cwd=tmp_path, check=True)
    code = (tmp_path / "x").read_bytes()
    assert keeper(code) == (code.rindex(b"\x48\x89\x03"), words)


def test_other_instructions_do_not() -> None:
    """A bug: a stack pointer that is moved by what is no multiple of a word."""
    assert keeper(b"\x48\x89\x03\x48\x83\xc4\x0c\xc3") is None
    assert keeper(b"\x48\x89\x03\x50\xc3") is None


class _Code:
    def __init__(self, code: bytes | None) -> None:
        self._code = code

    def read(self, address: int, size: int) -> bytes:
        if self._code is None:
            raise TargetError("gone")
        return self._code[address - 0x1000 : address - 0x1000 + size]


MAP = MemoryMap.parse("00001000-00002000 r-xp 00000000 00:00 1 /lib/libc.so.6\n")


def test_process_without_a_system_call() -> None:
    """A bug: one that has died is said to have no system call."""
    with pytest.raises(RefusedError, match="no syscall"):
        find_gadgets(_Code(bytes(4096)), MAP, "pid 1")
    with pytest.raises(TargetError, match="died"):
        find_gadgets(_Code(None), MAP, "pid 1")


def test_what_is_missing_is_nought() -> None:
    """A bug: a thread is sent to address 0."""
    found = find_gadgets(_Code(b"\x0f\x05".rjust(16, b"\x90").ljust(4096, b"\x90")), MAP, "pid 1")
    assert (found.syscall, found.returning, found.restorer, found.keeper) == (0x100E, 0, 0, 0)
    assert not found.lead_back


@pytest.mark.parametrize(("features", "extent"), [(0b10_0000_0111, 2696), (0b11 << 17 | 0b111, 11008)])
def test_frame_is_no_larger_than_what_is_in_use(features: int, extent: int) -> None:
    """A bug: where the machine has AMX, room is taken for tiles that nobody has: 8 KB more of a small stack."""
    state = bytearray(11008)
    state[512:520] = features.to_bytes(8, "little")
    data = frame(0x7000, 0xABCD, [0] * 27, 0, bytes(state))
    assert extent < len(data) <= size_of(bytes(state)) < extent + 600
