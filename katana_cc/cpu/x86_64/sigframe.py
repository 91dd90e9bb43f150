"""Signal frames of x86-64 Linux, by which a thread of the target puts itself back should katana be killed.

Theory of operation.  `rt_sigreturn` sets all registers of a thread, and which signals it blocks, from a frame on its
stack.  So whenever a thread is made to do something for us, its stack pointer is at a frame of what it was, and what it
runs ends with that system call: as long as it is traced it never gets there, and when its tracer has died it goes on
where it was.  A system call that was interrupted is entered again then, from the start.

    stack pointer →  return address     of a `ret` after a system call: the code that calls rt_sigreturn
                     ucontext           flags, alternate stack, registers, blocked signals
                     siginfo            not read
                     extended state     as PTRACE_GETREGSET gave it, at a multiple of 64, with the marks of the kernel

Sources: arch/x86/include/asm/sigframe.h, arch/x86/include/uapi/asm/sigcontext.h (struct _fpx_sw_bytes),
arch/x86/kernel/fpu/signal.c (check_xstate_in_sigframe), signal(7).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final

from katana_cc.cpu.x86_64 import system as cpu

RESTORERS: Final = (
    b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05",  # mov $15, %rax; syscall: glibc
    b"\xb8\x0f\x00\x00\x00\x0f\x05",  # mov $15, %eax; syscall: musl
)
"""The code that ends each signal handler: the C library has it wherever a handler can be set."""
SYSCALL_AND_RETURN: Final = b"\x0f\x05\xc3"
# mov %rax, (%rbx), then what leaves a function that keeps registers: add $n, %rsp; pop of rbx, rbp, r12 to r15; ret.
_KEEPERS: Final = rb"\x48\x89\x03(?:\x48\x83\xc4(?P<more>[\x08-\x78]))?(?P<pops>\x5b?\x5d?(?:\x41[\x5c-\x5f]){0,4})\xc3"


def keeper(code: bytes) -> tuple[int, int] | None:
    """Where instructions lie that keep rax where rbx points and return, and how many words they take from the stack
    before; None where there are none."""
    for found in re.finditer(_KEEPERS, code, re.DOTALL):
        more = found["more"][0] if found["more"] else 0
        if not more % 8:
            return found.start(), more // 8 + len(found["pops"].replace(b"\x41", b""))
    return None


_MAGIC1: Final = 0x46505853
_MAGIC2: Final = 0x46505845
_SOFTWARE_BYTES: Final = 464  # of the extended state: for the kernel
_FEATURES_AT: Final = 512  # XSTATE_BV
_LEGACY: Final = 512 + 64
_WITHOUT_TILES: Final = 2696  # all a thread has that did not ask for AMX
_TILES: Final = 0b11 << 17
_UC_FP_XSTATE: Final = 1
_UC_SIGCONTEXT_SS: Final = 2
_UC_STRICT_RESTORE_SS: Final = 4
_NO_SUCH_FLAG: Final = 7  # of an alternate stack: it stays as it is
_CONTEXT_ORDER: Final = (
    cpu.R8, cpu.R9, cpu.R10, cpu.R11, cpu.R12, cpu.R13, cpu.R14, cpu.R15, cpu.RDI, cpu.RSI, cpu.RBP, cpu.RBX, cpu.RDX,
    cpu.RAX, cpu.RCX, cpu.RSP, cpu.RIP, cpu.EFLAGS,
)  # fmt: skip
_HEAD: Final = struct.Struct("<QQQQiiQ18QHHHHQQQQQ64xQ")  # return address, ucontext up to the blocked signals
_SIGINFO_SIZE: Final = 128
_BEFORE: Final = _HEAD.size + _SIGINFO_SIZE + 64  # the extended state, at most


def frame(at: int, restorer: int, registers: Sequence[int], mask: int, state: bytes) -> bytes:
    """A frame to lie at `at`, a multiple of 8: the bytes from the return address on.

    Args:
        restorer: where the code lies that calls rt_sigreturn.
        registers: words of user_regs_struct that the thread is to have.
        mask: the signals it is to block.
        state: its extended registers, as the XSAVE area that ptrace gives.
    """
    used = _used(state)
    area = bytearray(state[:used])
    if used >= _LEGACY:
        features = area[_SOFTWARE_BYTES : _SOFTWARE_BYTES + 8]  # those the kernel has enabled
        struct.pack_into("<II8sI", area, _SOFTWARE_BYTES, _MAGIC1, used + 4, bytes(features), used)
        area += _MAGIC2.to_bytes(4, "little")
    extended = _extended_at(at)
    words = [registers[index] for index in _CONTEXT_ORDER]
    head = _HEAD.pack(
        restorer,
        _UC_FP_XSTATE | _UC_SIGCONTEXT_SS | _UC_STRICT_RESTORE_SS, 0,
        0, _NO_SUCH_FLAG, 0, 0,
        *words,
        registers[cpu.CS], 0, 0, registers[cpu.SS],
        0, 0, 0, 0,
        at + extended,
        mask,
    )  # fmt: skip
    return head.ljust(extended, b"\0") + bytes(area)


def size_of(state: bytes) -> int:
    """How many bytes `frame` makes of an extended state, at most."""
    return _BEFORE + _used(state) + 4


def reach_of(state: bytes) -> int:
    """How many bytes from its start on have to be mapped: XRSTOR reads of the whole area that the thread may use, also
    what is behind the registers in use."""
    return _BEFORE + len(state) + 4


def _used(state: bytes) -> int:
    """How many bytes of an extended state have to be in a frame."""
    has_tiles = int.from_bytes(state[_FEATURES_AT : _FEATURES_AT + 8], "little") & _TILES
    return len(state) if has_tiles else min(len(state), _WITHOUT_TILES)


def _extended_at(at: int) -> int:
    return (at + _HEAD.size + _SIGINFO_SIZE + 63 & -64) - at


_RESTARTED: Final = frozenset((1 << 64) - n for n in (512, 513, 514))  # ERESTARTSYS, -NOINTR, -NOHAND
_NO_SYSCALL: Final = (1 << 64) - 1  # as orig_rax


def begun_again(registers: Sequence[int], code: bytes) -> list[int]:
    """The registers of a thread whose interrupted system call is to be entered again by nobody but itself: from the
    start, since the kernel forgets how to go on.  `code` as of `system.entered_again`."""
    words = list(registers)
    if not cpu.in_system_call(words):
        return words
    changes = cpu.entered_again(words, code) or cpu.repaired(words)
    if words[cpu.RAX] in _RESTARTED:
        changes = {cpu.RAX: words[cpu.ORIG_RAX], cpu.RIP: words[cpu.RIP] - len(cpu.SYSCALL_INSTRUCTION)}
    for index, value in (changes or {}).items():
        words[index] = value
    return words


def park(words: list[int], restorer: int, at: int) -> None:
    """Put a thread in front of the code that goes back by the frame at `at`; a system call that it is about to make is
    not made."""
    words[cpu.RIP], words[cpu.RSP] = restorer, at + 8
    words[cpu.ORIG_RAX] = _NO_SYSCALL


def set_system_call(words: list[int], instruction: int, at: int, number: int, arguments: Sequence[int]) -> None:
    """Prepare registers to make a system call at `instruction`, which returns to the frame at `at`."""
    cpu.set_system_call(words, instruction, number, arguments)
    words[cpu.RSP] = at


def set_call(words: list[int], function: int, stack: int, result: int, arguments: Sequence[int]) -> None:
    """Prepare registers to call a function, whose return address, a keeper, lies at `stack` already; it puts the result
    at `result`."""
    cpu.set_call(words, function, stack + 8, 0, arguments)
    words[cpu.RBX] = result


def has_returned(words: Sequence[int], restored: int, at: int) -> bool:
    """Whether a thread at the entry of a system call is about to go back by the frame at `at`.  `restored`: where the
    restorer ends."""
    return words[cpu.RIP] == restored and words[cpu.RSP] == at + 8
