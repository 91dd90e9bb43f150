"""The x86-64 CPU: relocation fields, jumps, import stubs, registers, system calls.  AArch64 goes behind the same names.

Relocations: System V ABI, AMD64 supplement, table 4.9 (S symbol, A addend, P place, G slot of the GOT, Z size).
A 32-bit field that does not hold its value is refused: truncated, it would send the target somewhere else.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Final, NamedTuple

from katana_cc.elf import constants as c
from katana_cc.errors import RefusedError

MACHINE: Final = c.EM_X86_64

# struct user_regs_struct (sys/user.h): index of each register in the 27 words.
R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI, ORIG_RAX, RIP, CS, EFLAGS, RSP = range(20)
SS, FS_BASE = 20, 21
# Those a program computes with.
GENERAL_REGISTERS: Final = dict(
    enumerate(("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"))
) | {RSP: "rsp"}
DIRECTION_FLAG: Final = 1 << 10  # of EFLAGS; clear at every call
CS_64: Final = 0x33  # any other code segment runs 32-bit code
# DWARF register number (psABI figure 3.36) → index above; column 16 is the return address.
DWARF_REGISTERS: Final = (RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP, R8, R9, R10, R11, R12, R13, R14, R15, RIP)

SYSCALL_INSTRUCTION: Final = b"\x0f\x05"
SPIN: Final = b"\xeb\xfe"  # a jump to itself
SYSCALL_ARGUMENTS: Final = (RDI, RSI, RDX, R10, R8, R9)
FUNCTION_ARGUMENTS: Final = (RDI, RSI, RDX, RCX, R8, R9)
RED_ZONE: Final = 128

SYS_MMAP: Final = 9
SYS_MPROTECT: Final = 10
SYS_MUNMAP: Final = 11
SYS_CLOSE: Final = 3
SYS_EXIT_GROUP: Final = 231
SYS_MEMFD_CREATE: Final = 319

SYS_RT_SIGRETURN: Final = 15
SYS_RESTART_SYSCALL: Final = 219
NUMBERED_SYSCALL_SIZE: Final = 7  # mov $NUMBER, %eax (B8 imm32); syscall

EINTR: Final = 4
_RESTARTED: Final = frozenset((1 << 64) - n for n in (512, 513, 514))  # ERESTARTSYS, -NOINTR, -NOHAND
ERESTART_RESTARTBLOCK: Final = 516  # the kernel kept the arguments (linux/errno.h)
# System calls that return EINTR to the program when a tracer's stop interrupts them, though no signal came: the kernel
# restarts all others by itself.  Measured; signal(7) "Interruption of system calls ... by stop signals" lists most.
UNRESTARTED_SYSCALLS: Final = frozenset(
    {
        232,  # epoll_wait
        281,  # epoll_pwait
        441,  # epoll_pwait2
        45,  # recvfrom (SO_RCVTIMEO)
        47,  # recvmsg
        299,  # recvmmsg
        44,  # sendto (SO_SNDTIMEO)
        46,  # sendmsg
        0,  # read of a socket with SO_RCVTIMEO
        1,  # write of a socket with SO_SNDTIMEO
        19,  # readv
        20,  # writev
        42,  # connect (SO_SNDTIMEO)
        43,  # accept
        288,  # accept4
        128,  # rt_sigtimedwait
        65,  # semop
        220,  # semtimedop
        426,  # io_uring_enter
        208,  # io_getevents
        333,  # io_pgetevents
    }
)

# System calls that wait for the world outside, or work for it: no allocator or loader makes them while it holds a lock.
WAITING_SYSCALLS: Final = UNRESTARTED_SYSCALLS | frozenset(
    {
        7,  # poll
        271,  # ppoll
        23,  # select
        270,  # pselect6
        17,  # pread64
        18,  # pwrite64
        34,  # pause
        35,  # nanosleep
        230,  # clock_nanosleep
        46,  # sendmsg
        307,  # sendmmsg
        61,  # wait4
        247,  # waitid
        69,  # msgsnd
        70,  # msgrcv
        72,  # fcntl
        73,  # flock
        74,  # fsync
        75,  # fdatasync
        130,  # rt_sigsuspend
        219,  # restart_syscall
        242,  # mq_timedsend
        243,  # mq_timedreceive
        275,  # splice
        40,  # sendfile
    }
)
SYS_FUTEX: Final = 202
FUTEX_COMMAND: Final = 0x7F
FUTEX_WAIT_BITSET: Final = 9  # condition variables, joins and semaphores wait so; locks do not

# long allocate(void *(*malloc)(long size), long size, long count, void **blocks): how many blocks there are now, fewer
# than `count` when malloc gave none.
ALLOCATE: Final = bytes.fromhex(
    "53 4154 4155 4156 4157"  # push %rbx, %r12, %r13, %r14, %r15: the stack is aligned then
    "4889fb 4989f4 4989d5 4989ce"  # mov %rdi, %rbx; %rsi, %r12; %rdx, %r13; %rcx, %r14
    "4531ff"  # xor %r15d, %r15d
    "4d39ef 7313"  # 24: cmp %r13, %r15; jae 48
    "4c89e7 ffd3"  # mov %r12, %rdi; call *%rbx
    "4885c0 7409"  # test %rax, %rax; jz 48
    "4b8904fe 49ffc7 ebe8"  # mov %rax, (%r14,%r15,8); inc %r15; jmp 24
    "4c89f8"  # 48: mov %r15, %rax
    "415f 415e 415d 415c 5b c3"  # pop %r15, %r14, %r13, %r12, %rbx; ret
)
# void release(void (*free)(void *), void **blocks, long count)
RELEASE: Final = bytes.fromhex(
    "53 4154 4155"  # push %rbx, %r12, %r13: the stack is aligned then
    "4889fb 4989f4 4d8d2cd4"  # mov %rdi, %rbx; %rsi, %r12; lea (%r12,%rdx,8), %r13
    "4d39ec 730c"  # 15: cmp %r13, %r12; jae 32
    "498b3c24 ffd3"  # mov (%r12), %rdi; call *%rbx
    "4983c408 ebef"  # add $8, %r12; jmp 15
    "415d 415c 5b c3"  # 32: pop %r13, %r12, %rbx; ret
)
assert len(ALLOCATE) == 61
assert len(RELEASE) == 38

JUMP_SIZE: Final = 5
STUB_SIZE: Final = 8
GOT_SLOT_SIZE: Final = 8


class Form(Enum):
    """How the value of a relocation is computed."""

    ABSOLUTE = "S + A"
    RELATIVE = "S + A - P"
    GOT_RELATIVE = "G + A - P"
    TLS_OFFSET = "S + A - thread pointer"
    TLS_GOT_RELATIVE = "G(thread pointer offset) + A - P"
    SIZE = "Z + A"
    NOTHING = "nothing"


class RelocationKind(NamedTuple):
    """A row of the table: how to compute, how wide the field is, and which values it can hold."""

    name: str
    form: Form
    width: int
    signed: bool | None  # None: the field is as wide as the value, it cannot overflow


RELOCATIONS: Final = {
    c.R_X86_64_NONE: RelocationKind("R_X86_64_NONE", Form.NOTHING, 0, None),
    c.R_X86_64_64: RelocationKind("R_X86_64_64", Form.ABSOLUTE, 8, None),
    c.R_X86_64_32: RelocationKind("R_X86_64_32", Form.ABSOLUTE, 4, False),
    c.R_X86_64_32S: RelocationKind("R_X86_64_32S", Form.ABSOLUTE, 4, True),
    c.R_X86_64_PC64: RelocationKind("R_X86_64_PC64", Form.RELATIVE, 8, None),
    c.R_X86_64_PC32: RelocationKind("R_X86_64_PC32", Form.RELATIVE, 4, True),
    c.R_X86_64_PLT32: RelocationKind("R_X86_64_PLT32", Form.RELATIVE, 4, True),
    c.R_X86_64_PC8: RelocationKind("R_X86_64_PC8", Form.RELATIVE, 1, True),
    c.R_X86_64_GOTPCREL: RelocationKind("R_X86_64_GOTPCREL", Form.GOT_RELATIVE, 4, True),
    c.R_X86_64_GOTPCRELX: RelocationKind("R_X86_64_GOTPCRELX", Form.GOT_RELATIVE, 4, True),
    c.R_X86_64_REX_GOTPCRELX: RelocationKind("R_X86_64_REX_GOTPCRELX", Form.GOT_RELATIVE, 4, True),
    c.R_X86_64_TPOFF32: RelocationKind("R_X86_64_TPOFF32", Form.TLS_OFFSET, 4, True),
    c.R_X86_64_GOTTPOFF: RelocationKind("R_X86_64_GOTTPOFF", Form.TLS_GOT_RELATIVE, 4, True),
    c.R_X86_64_SIZE32: RelocationKind("R_X86_64_SIZE32", Form.SIZE, 4, False),
    c.R_X86_64_SIZE64: RelocationKind("R_X86_64_SIZE64", Form.SIZE, 8, None),
}

_NAMES_REFUSED: Final = {
    c.R_X86_64_TLSGD: "R_X86_64_TLSGD",
    c.R_X86_64_TLSLD: "R_X86_64_TLSLD",
    c.R_X86_64_DTPOFF32: "R_X86_64_DTPOFF32",
    c.R_X86_64_DTPOFF64: "R_X86_64_DTPOFF64",
    c.R_X86_64_GOTPC32_TLSDESC: "R_X86_64_GOTPC32_TLSDESC",
    c.R_X86_64_TLSDESC_CALL: "R_X86_64_TLSDESC_CALL",
    c.R_X86_64_GOTOFF64: "R_X86_64_GOTOFF64",
    c.R_X86_64_GOTPC32: "R_X86_64_GOTPC32",
    c.R_X86_64_GOT32: "R_X86_64_GOT32",
}


def relocation_kind(number: int, where: str) -> RelocationKind:
    """The table's row for a relocation type.

    Raises:
        RefusedError: the type is not supported, and named.
    """
    kind = RELOCATIONS.get(number)
    if kind is None:
        name = _NAMES_REFUSED.get(number, f"relocation type {number}")
        remedy = "restart the process with the new build instead"
        if "TLS" in name or "DTPOFF" in name:
            remedy = "compile with -ftls-model=initial-exec or -mtls-dialect=gnu; else restart with the new build"
        raise RefusedError(f"{name} is not supported in a patch", where=where, remedy=remedy)
    return kind


def fits(kind: RelocationKind, value: int) -> bool:
    """Whether the field can hold the (unwrapped) value."""
    if kind.signed is None:
        return True
    bits = 8 * kind.width
    return -(1 << (bits - 1)) <= value < 1 << (bits - 1) if kind.signed else 0 <= value < 1 << bits


def encode_field(kind: RelocationKind, value: int) -> bytes:
    """The bytes of the field."""
    return (value & ((1 << (8 * kind.width)) - 1)).to_bytes(kind.width, "little")


def jump(place: int, destination: int) -> bytes:
    """`jmp rel32` at `place`: E9, then the distance from the end of the instruction.

    Raises:
        RefusedError: the destination is out of reach (2 GiB).
    """
    distance = destination - (place + JUMP_SIZE)
    if not -(1 << 31) <= distance < 1 << 31:
        raise RefusedError(f"{destination:#x} is out of reach of a jump at {place:#x}")
    return b"\xe9" + struct.pack("<i", distance)


def stub(place: int, slot: int) -> bytes:
    """An import stub: `jmp *slot(%rip)` (FF 25 rel32), padded with a two-byte `xchg %ax,%ax`."""
    code = b"\xff\x25" + struct.pack("<i", slot - (place + 6)) + b"\x66\x90"
    assert len(code) == STUB_SIZE
    return code


def branches_into(code: bytes, low: int, high: int) -> bool:
    """Whether some direct branch in `code` may lead to an offset within [low, high).

    Every byte is taken for the start of an instruction, so true branches are always seen and others may be imagined:
    wrong only on the safe side.
    """
    size = len(code)
    for at in range(size):
        byte = code[at]
        if (0x70 <= byte <= 0x7F or byte == 0xEB or 0xE0 <= byte <= 0xE3) and at + 2 <= size:
            target = at + 2 + int.from_bytes(code[at + 1 : at + 2], "little", signed=True)
        elif byte in (0xE8, 0xE9) and at + 5 <= size:
            target = at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
        elif byte == 0x0F and at + 6 <= size and 0x80 <= code[at + 1] <= 0x8F:
            target = at + 6 + int.from_bytes(code[at + 2 : at + 6], "little", signed=True)
        else:
            continue
        if low <= target < high:
            return True
    return False


def waits_outside(registers: memoryview | list[int]) -> bool:
    """Whether a stopped thread is in a system call that waits for something else than a lock."""
    number = registers[ORIG_RAX]
    if number == SYS_FUTEX:
        return registers[RSI] & FUTEX_COMMAND == FUTEX_WAIT_BITSET
    return number in WAITING_SYSCALLS


def entered_again(registers: list[int], code: bytes) -> dict[int, int] | None:
    """The registers to change so that a system call of which the kernel has lost how to go on is entered again from the
    start (a wait as long as the first one); None when it needs nothing kept.  Shape: {register index: value}.

    `code` are the NUMBERED_SYSCALL_SIZE bytes before the instruction pointer: once it was restarted, only the `mov
    $NUMBER, %eax` of its wrapper knows its number.  Where that is not there, the program gets EINTR.
    """
    if registers[RAX] != (1 << 64) - ERESTART_RESTARTBLOCK:
        return None
    number = registers[ORIG_RAX]
    if number == SYS_RESTART_SYSCALL:
        if len(code) != NUMBERED_SYSCALL_SIZE or code[0] != 0xB8 or code[5:] != SYSCALL_INSTRUCTION:
            return {RAX: (1 << 64) - EINTR, ORIG_RAX: (1 << 64) - 1}
        number = int.from_bytes(code[1:5], "little")
    return {RAX: number, RIP: registers[RIP] - len(SYSCALL_INSTRUCTION), ORIG_RAX: (1 << 64) - 1}


def begun_again(registers: list[int], code: bytes) -> list[int]:
    """The registers of a thread whose interrupted system call is to be entered again by nobody but itself: from the
    start, since the kernel forgets how to go on.  `code` as of `entered_again`."""
    words = list(registers)
    number = words[ORIG_RAX]
    if number >> 63:
        return words  # it was not in one
    changes = entered_again(words, code) or repaired(words)
    if words[RAX] in _RESTARTED:
        changes = {RAX: number, RIP: words[RIP] - len(SYSCALL_INSTRUCTION)}
    for index, value in (changes or {}).items():
        words[index] = value
    return words


def repaired(registers: memoryview | list[int]) -> dict[int, int] | None:
    """The registers to change so that a system call which a stop interrupted is entered again; None when there is
    nothing to repair.  The caller makes sure that no signal is pending: then the EINTR is the program's own.

    Shape: {register index: value}.
    """
    number = registers[ORIG_RAX]
    if registers[RAX] != (1 << 64) - EINTR or number not in UNRESTARTED_SYSCALLS:
        return None
    return {RAX: number, RIP: registers[RIP] - len(SYSCALL_INSTRUCTION), ORIG_RAX: (1 << 64) - 1}
