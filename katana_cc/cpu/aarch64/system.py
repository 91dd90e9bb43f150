"""Registers and system calls of AArch64 Linux, in a row of 36 words.

    0..33   struct user_pt_regs (asm/ptrace.h): x0 to x30, sp, pc, pstate        NT_PRSTATUS
    34      the thread pointer (TPIDR_EL0)                                       NT_ARM_TLS
    35      the number of the system call; -1: in none                           NT_ARM_SYSTEM_CALL

How a stop shows a system call differs from x86-64.  The kernel prepares the restart before it stops for a tracer
(`do_signal` in arch/arm64/kernel/signal.c: "We do this here so that a debugger will see the already changed PC") and
forgets the number.  So a thread that was waiting in one that is restarted stands *before* `svc` with all arguments in
place, and word 35 says -1: that it waits is told by the instruction at its pc and by x8.

Of a call that is not restarted x0 holds -EINTR where the first argument was.  The kernel has it still (orig_x0), but no
register set shows it.  So it cannot be entered again from here: `repaired` says that nothing can be done
(docs/porting.md tells what is left).

Sources: linux/arch/arm64: include/uapi/asm/ptrace.h, kernel/ptrace.c (`aarch64_regsets`), kernel/signal.c;
include/uapi/asm-generic/unistd.h; AAPCS64 "Machine registers", AADWARF64 "DWARF register names".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from katana_cc.cpu.stopped import DwarfNumbers, ReadMemory, RegisterSet, Words
from katana_cc.elf import constants as c

MACHINE: Final = c.EM_AARCH64

X8: Final = 8  # number of a system call
LINK: Final = 30  # x30: return address
SP, PC, PSTATE, THREAD_POINTER, SYSCALL = 31, 32, 33, 34, 35
RESULT: Final = 0
REGISTER_WORDS: Final = 36
_NT_PRSTATUS, _NT_PRFPREG, _NT_ARM_TLS, _NT_ARM_SYSTEM_CALL = 1, 2, 0x401, 0x404  # linux/elf.h
REGISTER_SETS: Final = (
    RegisterSet(_NT_PRSTATUS, 0, 34 * 8),
    RegisterSet(_NT_ARM_TLS, THREAD_POINTER, 8),
    RegisterSet(_NT_ARM_SYSTEM_CALL, SYSCALL, 4),
)
NO_SYSCALL: Final = (1 << 32) - 1  # -1 in 4 bytes
GENERAL_REGISTERS: Final = {n: f"x{n}" for n in range(31)} | {SP: "sp"}
# x0 to x17 are not kept by a call, x18 is the platform's (AAPCS64, 6.1.1).
DWARF: Final = DwarfNumbers((*range(31), SP, PC), 31, 32, True, frozenset(range(18)))
_BRANCH_TYPE: Final = 3 << 10  # PSTATE.BTYPE: what kind of branch the next instruction must expect
_MODE_32: Final = 1 << 4  # PSTATE.nRW
_MODE: Final = 0x1F  # PSTATE.M: 0 in a program
PC_FOLLOWED_BY: Final = 8
# struct user_fpsimd_state: v0 to v31, then fpsr and fpcr.  What SVE has beyond 16 bytes a register is in NT_ARM_SVE.
VECTOR_NOTE: Final = _NT_PRFPREG
VECTOR_BYTES: Final = 528
VECTOR_RANGES: Final[tuple[tuple[int, int | None], ...]] = ((0, 512),)
ALL_VECTOR_RANGES: Final = VECTOR_RANGES
POINTER_GUARD: Final = None  # a variable of the loader's (glibc: __pointer_chk_guard)
RED_ZONE: Final = 0  # AAPCS64, "Universal stack constraints": nothing below sp is anyone's
ADDRESS_LIMIT: Final = 1 << 48
_PAGE: Final = 4096
# (mask, value, lowest bit of the distance, its bits): b and bl, b.cond, cbz and cbnz, tbz and tbnz, ldr of a literal.
_DISTANCES: Final = (
    (0x7C000000, 0x14000000, 0, 26),
    (0xFF000000, 0x54000000, 5, 19),
    (0x7E000000, 0x34000000, 5, 19),
    (0x7E000000, 0x36000000, 5, 14),
    (0x3B000000, 0x18000000, 5, 19),
)
_ADR_MASK, _ADR = 0x1F000000, 0x10000000  # adr, and adrp with the highest bit
FIXED_LIMIT: Final = 1 << 48  # no code names an address in 32 bits

LIBUNWIND: Final = "aarch64"
SYSCALL_INSTRUCTION: Final = bytes.fromhex("010000d4")  # svc #0
SPIN: Final = bytes.fromhex("00000014")  # b .
SYS_MMAP: Final = 222
SYS_MUNMAP: Final = 215
SYS_MPROTECT: Final = 226
SYS_EXIT_GROUP: Final = 94
SYS_RT_SIGACTION: Final = 134
SYS_SIGALTSTACK: Final = 132
SYS_KCMP: Final = 272
SYS_CLOSE: Final = 57
SYS_MEMFD_CREATE: Final = 279
SYS_TGKILL: Final = 131
SYS_PERF_EVENT_OPEN: Final = 241
CLONING_SYSCALLS: Final = frozenset((220, 435))  # clone, clone3: those that wait for a child of vfork's
PERF_REGISTERS: Final = {n: n for n in range(31)} | {31: SP, 32: PC}  # asm/perf_regs.h
SYS_RESTART_SYSCALL: Final = 128
NUMBERED_SYSCALL_SIZE: Final = 4  # mov x8, #NUMBER
EINTR: Final = 4

# System calls that let EINTR through when a stop interrupts them: as measured on x86-64, since the kernel's code for
# them is the same.
UNRESTARTED_SYSCALLS: Final = {
    22: "epoll_pwait",
    441: "epoll_pwait2",
    207: "recvfrom",
    212: "recvmsg",
    243: "recvmmsg",
    206: "sendto",
    211: "sendmsg",
    63: "read",
    64: "write",
    65: "readv",
    66: "writev",
    203: "connect",
    202: "accept",
    242: "accept4",
    137: "rt_sigtimedwait",
    193: "semop",
    192: "semtimedop",
    426: "io_uring_enter",
    4: "io_getevents",
    292: "io_pgetevents",
    269: "sendmmsg",
    286: "preadv2",
    287: "pwritev2",
    76: "splice",
    71: "sendfile",
    47: "fallocate",
}
# Of these the kernel may keep the arguments for itself (restart_syscall(2)).
KEPT_SYSCALLS: Final = {73: "ppoll", 98: "futex", 101: "nanosleep", 115: "clock_nanosleep", 128: "restart_syscall"}
WAITING_SYSCALLS: Final = UNRESTARTED_SYSCALLS | {
    73: "ppoll",
    72: "pselect6",
    67: "pread64",
    68: "pwrite64",
    101: "nanosleep",
    115: "clock_nanosleep",
    260: "wait4",
    95: "waitid",
    189: "msgsnd",
    188: "msgrcv",
    25: "fcntl",
    32: "flock",
    82: "fsync",
    83: "fdatasync",
    133: "rt_sigsuspend",
    128: "restart_syscall",
    182: "mq_timedsend",
    183: "mq_timedreceive",
}
SYS_FUTEX: Final = 98
_FUTEX_COMMAND: Final = 0x7F
_FUTEX_WAIT_BITSET: Final = 9  # condition variables, joins and semaphores wait so; locks do not

ALLOCATE: Final = b"".join(
    i.to_bytes(4, "little")
    for i in (
        0xA9BC7BFD, 0x910003FD,  # stp x29, x30, [sp, #-64]!; mov x29, sp
        0xA90153F3, 0xA9025BF5, 0xF9001BF7,  # stp x19, x20, [sp, #16]; stp x21, x22, [sp, #32]; str x23, [sp, #48]
        0xAA0003F3, 0xAA0103F4, 0xAA0203F5, 0xAA0303F6,  # mov x19, x0; x20, x1; x21, x2; x22, x3
        0xAA1F03F7,  # mov x23, xzr
        0xEB1502FF, 0x54000102,  # 40: cmp x23, x21; b.hs 76
        0xAA1403E0, 0xD2800021, 0xD63F0260,  # mov x0, x20; mov x1, #1; blr x19
        0xB4000080, 0xF8377AC0,  # cbz x0, 76; str x0, [x22, x23, lsl #3]
        0x910006F7, 0x17FFFFF8,  # add x23, x23, #1; b 40
        0xAA1703E0, 0xF9401BF7,  # 76: mov x0, x23; ldr x23, [sp, #48]
        0xA9425BF5, 0xA94153F3, 0xA8C47BFD,  # ldp x21, x22, [sp, #32]; ldp x19, x20, [sp, #16]; ldp x29, x30, [sp], #64
        0xD65F03C0,  # ret
    )
)  # fmt: skip
RELEASE: Final = b"".join(
    i.to_bytes(4, "little")
    for i in (
        0xA9BD7BFD, 0x910003FD,  # stp x29, x30, [sp, #-48]!; mov x29, sp
        0xA90153F3, 0xF90013F5,  # stp x19, x20, [sp, #16]; str x21, [sp, #32]
        0xAA0003F3, 0xAA0103F4, 0x8B020C35,  # mov x19, x0; x20, x1; add x21, x1, x2, lsl #3
        0xEB15029F, 0x54000082,  # 28: cmp x20, x21; b.hs 48
        0xF8408680, 0xD63F0260, 0x17FFFFFC,  # ldr x0, [x20], #8; blr x19; b 28
        0xF94013F5, 0xA94153F3, 0xA8C37BFD,  # 48: ldr x21, [sp, #32]; ldp x19, x20, [sp, #16]; ldp x29, x30, [sp], #48
        0xD65F03C0,  # ret
    )
)  # fmt: skip
assert len(ALLOCATE) == 100
assert len(RELEASE) == 64

_WORD: Final = (1 << 64) - 1
_MOV_X8: Final = 0xFFE0001F, 0xD2800008  # movz x8, #
_MOV_W8: Final = 0xFFE0001F, 0x52800008


def runs_supported_code(words: Words) -> bool:
    """Whether the thread runs 64-bit code."""
    return not words[PSTATE] & _MODE_32


def in_system_call(words: Words) -> bool:
    """False: a stop does not show it (see above).  So vector registers are always looked at, dead ones too."""
    return words[SYSCALL] & NO_SYSCALL != NO_SYSCALL


def signal_frame_mark() -> bytes:
    """The head of struct fpsimd_context (asm/sigcontext.h)."""
    return struct.pack("<II", 0x4650_8001, VECTOR_BYTES)[:6]


def was_interrupted(following: bytes) -> bool:
    """Whether a PSTATE of a 64-bit program follows, as in struct sigcontext (asm/sigcontext.h)."""
    state = int.from_bytes(following, "little")
    return not state >> 32 and not state & _MODE


def switches_stacks(code: bytes) -> bool:  # noqa: ARG001
    """Not known."""
    return False


def mangled(address: int, guard: int) -> int:
    """An address as glibc hides it (PTR_MANGLE)."""
    return address ^ guard


def unmangled(word: int, guard: int) -> int:
    """The inverse."""
    return word ^ guard


def displaced(code: bytes, address: int, low: int, high: int) -> Iterator[tuple[int, int]]:
    """(address of an instruction, where it leads) of all that may lead into [low, high) by their distance; of `adrp`
    some address in the page that it leads to."""
    for n, (word,) in enumerate(struct.iter_unpack("<I", code[: len(code) & -4])):
        at = address + 4 * n
        for mask, value, shift, bits in _DISTANCES:
            if word & mask == value:
                distance = word >> shift & (1 << bits) - 1
                leads = at + 4 * (distance - (distance >> bits - 1 << bits))
                if low <= leads < high:
                    yield at, leads
        if word & _ADR_MASK == _ADR:
            distance = word >> 29 & 3 | word >> 3 & 0x1FFFFC
            distance -= distance >> 20 << 21
            page = (at & -_PAGE) + _PAGE * distance if word >> 31 else at + distance
            end = page + _PAGE if word >> 31 else page + 1
            if page < high and end > low:
                yield at, max(page, low)


def keeps_arguments(words: Words) -> bool:
    """Whether the kernel may keep the arguments of the call that x8 names: it does not show whether one is made."""
    return words[X8] in KEPT_SYSCALLS


def waits_outside(words: Words, read: ReadMemory) -> bool:
    """Whether a thread stands before the `svc` of a call that waits for something else than a lock, or behind one that
    a stop made return."""
    pc = words[PC]
    interrupted = words[RESULT] == _WORD + 1 - EINTR
    if read(pc - 4 if interrupted else pc, 4) != SYSCALL_INSTRUCTION:
        return False
    if words[X8] == SYS_FUTEX:
        return words[1] & _FUTEX_COMMAND == _FUTEX_WAIT_BITSET
    return words[X8] in WAITING_SYSCALLS


def entered_again(words: Words, code: bytes) -> dict[int, int] | None:
    """The number of the call that `restart_syscall` was to go on with; its arguments are still in their registers.

    `code` are the NUMBERED_SYSCALL_SIZE bytes before the pc, which is at `svc`.  A first stop left the call's own
    number in x8, and nothing is needed.  Where no `mov x8, #NUMBER` is there, restart_syscall gives the program EINTR.
    """
    word = int.from_bytes(code, "little")
    if words[X8] != SYS_RESTART_SYSCALL or len(code) != NUMBERED_SYSCALL_SIZE:
        return None
    if not any(word & mask == value for mask, value in (_MOV_X8, _MOV_W8)):
        return None
    return {X8: word >> 5 & 0xFFFF}


def repaired(words: Words) -> dict[int, int] | None:  # noqa: ARG001
    """None: the first argument is lost (see above)."""
    return None


def forgets_restart(words: Words) -> bool:
    """Whether a system call makes the kernel forget how another that was interrupted before it goes on."""
    return words[X8] in (101, 115)  # nanosleep, clock_nanosleep


def has_own_mask(words: Words) -> bool:  # noqa: ARG001
    """False: no call is entered again (see above)."""
    return False


def time_out(words: Words) -> int | None:  # noqa: ARG001
    """None: no call is entered again (see above)."""
    return None


def set_system_call(words: list[int], instruction: int, number: int, arguments: Sequence[int]) -> None:
    """Prepare registers to make a system call at `instruction`."""
    words[PC] = instruction
    words[PSTATE] &= ~_BRANCH_TYPE
    words[X8] = number
    words[SYSCALL] = NO_SYSCALL
    for register, value in enumerate(arguments[:6]):
        words[register] = value & _WORD


def set_call(words: list[int], function: int, stack_end: int, back: int, arguments: Sequence[int]) -> tuple[int, bytes]:
    """Prepare registers to call a function; nothing has to lie on the stack."""
    words[SP] = stack_end
    words[PC] = function
    words[PSTATE] &= ~_BRANCH_TYPE
    words[LINK] = back
    words[SYSCALL] = NO_SYSCALL
    for register, value in enumerate(arguments[:8]):
        words[register] = value & _WORD
    return stack_end, b""


def has_returned(words: Words, back: int, stack_end: int) -> bool:
    """Whether a thread at the entry of a system call is where a function returned to."""
    return words[PC] == back + len(SYSCALL_INSTRUCTION) and words[SP] == stack_end


def take_result(words: list[int]) -> int:
    """x0, which the kernel took for the first argument of a system call."""
    words[SYSCALL] = NO_SYSCALL  # skip it
    return words[RESULT]
