"""What glibc's getcontext and swapcontext keep of registers, in a ucontext_t: found in memory, and read.

    0    flags, link, stack (address, flags, size)
    40   r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, ...: those that a call keeps are written
    224  a pointer to the state of the x87, which is
    424  within: what FNSTENV writes

The last is what one is found by: reserved bits are ones, and no x87 register is in use at a call.  That the pointer
leads there is what makes it sure.

Sources: sys/ucontext.h; sysdeps/unix/sysv/linux/x86_64/swapcontext.S; Intel SDM volume 1, 8.1.10.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from katana_cc.cpu.stopped import ReadMemory, SavedContext
from katana_cc.cpu.x86_64 import system as cpu
from katana_cc.errors import TargetError

MARK_AT: Final = 424
MARK_SIZE: Final = 12
SIZE: Final = MARK_AT + MARK_SIZE
# Control word (bit 6 set, 7 and 13 on clear), status word, tag word: the upper halves are ones, and all tags "empty".
_MARK: Final = re.compile(rb"[\x40-\x7f][\x00-\x1f]\xff\xff..\xff{6}", re.DOTALL)
_CUT: Final = re.compile(rb"..\xff\xff..\xff\xff", re.DOTALL)
_LIKELY_AT: Final = 2
_LIKELY: Final = re.compile(
    rb"\xff\xff..\xff{6}", re.DOTALL
)  # the same without its beginning: a literal is searched for
_ONES: Final = b"\xff" * 10
_RUN_END: Final = re.compile(rb"[^\xff]")
_STACK: Final = struct.Struct("<16xQ8xQ")
_REGISTERS: Final = struct.Struct("<40x32xQQQQ16xQQ24xQQ")  # r12 to r15, rbp, rbx, rsp, rip
_ORDER: Final = (cpu.R12, cpu.R13, cpu.R14, cpu.R15, cpu.RBP, cpu.RBX, cpu.RSP, cpu.RIP)
_POINTER_AT: Final = 224
_LOADS_ADDRESS: Final = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d](.{4})", re.DOTALL)  # lea n(%rip)
# endbr64, where it has one; mov %rbx, %rsp; then pop %rdi, or mov (%rsp), %rdi
_GOES_BACK: Final = re.compile(rb"(\xf3\x0f\x1e\xfa)?\x48\x89\xdc(\x5f|\x48\x8b\x3c\x24)")
_LONGEST_HEAD: Final = 11
_NUMBERS: Final = {register: number for number, register in enumerate(cpu.DWARF.order)}


def marks(data: bytes | memoryview) -> Iterator[int]:
    """The offsets of marks, in memory from a multiple of 8 on."""
    at = 0
    while (found := _LIKELY.search(data, at)) is not None:
        start = found.start()
        mark = start - _LIKELY_AT
        if mark >= 0 and not mark % 8 and _MARK.match(data, mark):
            yield mark
        at = start + 1
        if found.group() == _ONES:
            # However many ones follow, before them is no control word.
            end = _RUN_END.search(data, at)
            if end is None:
                return
            at = end.start()


def returns_of_first(code: bytes, address: int, read: ReadMemory) -> frozenset[int]:
    """As of `Contexts`: glibc's __start_context, of which the address is loaded, and which begins by going back to
    what makecontext kept in rbx."""
    targets = {address + m.end() + struct.unpack("<i", m.group(1))[0] for m in _LOADS_ADDRESS.finditer(code)}
    return frozenset(t for t in targets if _goes_back(t, read))


def _goes_back(address: int, read: ReadMemory) -> bool:
    try:
        return _GOES_BACK.match(read(address, _LONGEST_HEAD)) is not None
    except TargetError:
        return False


def are_cut(data: bytes | memoryview) -> tuple[bool, bool]:
    """Whether a mark may begin before memory from a multiple of 8 to one, and whether one may end behind it."""
    return data[:4] == _ONES[:4], bool(_CUT.match(data, max(len(data) - 8, 0)))


def saved_context(data: bytes, address: int) -> SavedContext | None:
    """What is kept in the SIZE bytes at an address; None where that is no context."""
    if int.from_bytes(data[_POINTER_AT : _POINTER_AT + 8], "little") != address + MARK_AT:
        return None
    values = _REGISTERS.unpack_from(data)
    registers = {_NUMBERS[register]: value for register, value in zip(_ORDER, values, strict=True)}
    return SavedContext(registers, *_STACK.unpack_from(data))
