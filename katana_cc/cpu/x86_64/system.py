"""Registers and system calls of x86-64, in a row of struct user_regs_struct (sys/user.h): 27 words.

Sources: System V ABI, AMD64 supplement, 3.2 and A.2; sys/user.h; linux/errno.h.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

from katana_cc.cpu.stopped import DwarfNumbers, ReadMemory, RegisterSet, Words
from katana_cc.elf import constants as c

MACHINE: Final = c.EM_X86_64

REGISTER_WORDS: Final = 27
REGISTER_SETS: Final = (RegisterSet(1, 0, 8 * REGISTER_WORDS),)  # NT_PRSTATUS
# Index of each register in the 27 words.
R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI, ORIG_RAX, RIP, CS, EFLAGS, RSP = range(20)
SS, FS_BASE = 20, 21
PC, SP, THREAD_POINTER, RESULT = RIP, RSP, FS_BASE, RAX
# Those a program computes with.
GENERAL_REGISTERS: Final = dict(
    enumerate(("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"))
) | {RSP: "rsp"}
_DIRECTION_FLAG: Final = 1 << 10  # of EFLAGS; clear at every call
_FLAGS: Final = 0x3F7FD7, 0x2  # of EFLAGS: those there are, and the one that is always set
_CS_64: Final = 0x33  # any other code segment runs 32-bit code
PC_FOLLOWED_BY: Final = 16
_EXTENDED_MARK: Final = b"SXPF"
_SEGMENTS_MARK: Final = struct.pack("<HHHH", _CS_64, 0, 0, 0x2B)[:7]
_CPU_DESCRIPTION: Final = 1 << 12
_LOADS_CONTEXT: Final = re.compile(rb"\x0f\xae[\x90-\x97]\xc0\x01\0\0")  # ldmxcsr 448(%reg)
# psABI figures 3.4 and 3.36; column 16 is the return address.
DWARF: Final = DwarfNumbers(
    (RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP, R8, R9, R10, R11, R12, R13, R14, R15, RIP), 7, 16, False,
    frozenset((0, 1, 2, 4, 5, 8, 9, 10, 11)),
)  # fmt: skip
# XSAVE: xmm0 on, and what is beyond the header of the area (Intel SDM 13.4).
VECTOR_NOTE: Final = 0x202  # NT_X86_XSTATE
VECTOR_BYTES: Final = 1 << 14
VECTOR_RANGES: Final = ((160, 416), (576, None))
ALL_VECTOR_RANGES: Final = ((32, 512), (576, None))  # mm0 to mm7, too

LIBUNWIND: Final = "x86_64"
SYSCALL_INSTRUCTION: Final = b"\x0f\x05"
SPIN: Final = b"\xeb\xfe"  # a jump to itself
_SYSCALL_ARGUMENTS: Final = (RDI, RSI, RDX, R10, R8, R9)
_FUNCTION_ARGUMENTS: Final = (RDI, RSI, RDX, RCX, R8, R9)
RED_ZONE: Final = 128
POINTER_GUARD: Final = 0x30  # of %fs (glibc: sysdeps/x86_64/nptl/tls.h)
_GUARD_ROTATION: Final = 17  # 2 * LP_SIZE + 1 (glibc: sysdeps/unix/sysv/linux/x86_64/pointer_guard.h)
_IMMEDIATES: Final = (0, 1, 2, 4)  # bytes between a distance and the instruction that it counts from
ADDRESS_LIMIT: Final = 1 << 47
FIXED_LIMIT: Final = 1 << 31  # absolute 32-bit addresses, sign-extended or not

SYS_MMAP: Final = 9
SYS_MPROTECT: Final = 10
SYS_MUNMAP: Final = 11
SYS_CLOSE: Final = 3
SYS_EXIT_GROUP: Final = 231
SYS_RT_SIGACTION: Final = 13
SYS_SIGALTSTACK: Final = 131
SYS_KCMP: Final = 312
SYS_MEMFD_CREATE: Final = 319
SYS_TGKILL: Final = 234
SYS_PERF_EVENT_OPEN: Final = 298
CLONING_SYSCALLS: Final = frozenset((56, 58, 435))  # clone, vfork, clone3: those that wait for a child of vfork's
# Bit of a register in perf's masks -> its index here (asm/perf_regs.h).
PERF_REGISTERS: Final = dict(enumerate((RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, RIP))) | dict(
    enumerate((R8, R9, R10, R11, R12, R13, R14, R15), 16)
)

SYS_RESTART_SYSCALL: Final = 219
NUMBERED_SYSCALL_SIZE: Final = 7  # mov $NUMBER, %eax (B8 imm32); syscall

EINTR: Final = 4
_RESTARTBLOCK: Final = 516  # the kernel kept the arguments (linux/errno.h)
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
        # Of such a socket, too:
        307,  # sendmmsg
        327,  # preadv2
        328,  # pwritev2
        275,  # splice
        40,  # sendfile
        285,  # fallocate, of huge pages (and of tmpfs, on older kernels): what it had done is undone, or found done
    }
)
_SLEEPS: Final = frozenset({35, 230})  # nanosleep, clock_nanosleep
_OWN_MASK: Final = frozenset({281, 441, 333, 426})  # epoll_pwait, epoll_pwait2, io_pgetevents, io_uring_enter
_EVENT_WAITS: Final = frozenset({232, 281})  # epoll_wait, epoll_pwait: milliseconds in r10, an int

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
    }
)
SYS_FUTEX: Final = 202
FUTEX_COMMAND: Final = 0x7F
FUTEX_WAIT_BITSET: Final = 9  # condition variables, joins and semaphores wait so; locks do not

# long allocate(void *(*calloc)(long size, long), long size, long count, void **blocks): how many blocks there are now,
# fewer than `count` when calloc gave none.
ALLOCATE: Final = bytes.fromhex(
    "53 4154 4155 4156 4157"  # push %rbx, %r12, %r13, %r14, %r15: the stack is aligned then
    "4889fb 4989f4 4989d5 4989ce"  # mov %rdi, %rbx; %rsi, %r12; %rdx, %r13; %rcx, %r14
    "4531ff"  # xor %r15d, %r15d
    "4d39ef 7318"  # 24: cmp %r13, %r15; jae 53
    "4c89e7 be01000000 ffd3"  # mov %r12, %rdi; mov $1, %esi; call *%rbx
    "4885c0 7409"  # test %rax, %rax; jz 53
    "4b8904fe 49ffc7 ebe3"  # mov %rax, (%r14,%r15,8); inc %r15; jmp 24
    "4c89f8"  # 53: mov %r15, %rax
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
assert len(ALLOCATE) == 66
assert len(RELEASE) == 38

_MINUS_1: Final = (1 << 64) - 1


def runs_supported_code(words: Words) -> bool:
    """Whether the thread runs 64-bit code."""
    return words[CS] == _CS_64


def in_system_call(words: Words) -> bool:
    """Whether a stopped thread is in a system call."""
    return words[ORIG_RAX] < 1 << 63


@cache
def signal_frame_mark() -> bytes:
    """FP_XSTATE_MAGIC1, where the kernel keeps extended registers (asm/sigcontext.h); else the code segment and what is
    up to the stack's, which takes ten times as long to search for."""
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:  # noqa: PTH123  (of hundreds of CPUs the first)
            has_extended = b" xsave" in file.read(_CPU_DESCRIPTION)
    except OSError:
        has_extended = False
    return _EXTENDED_MARK if has_extended else _SEGMENTS_MARK


def was_interrupted(following: bytes) -> bool:
    """Whether EFLAGS and the code segment follow, as in struct sigcontext (asm/sigcontext.h)."""
    flags, segments = struct.unpack("<QQ", following)
    return not flags & ~_FLAGS[0] and bool(flags & _FLAGS[1]) and segments & 0xFFFF == _CS_64


def switches_stacks(code: bytes) -> bool:
    """Whether code loads MXCSR from where it is in a ucontext_t of glibc (sys/ucontext.h): no other has that offset."""
    return _LOADS_CONTEXT.search(code) is not None


def mangled(address: int, guard: int) -> int:
    """An address as glibc hides it (PTR_MANGLE)."""
    word = (address ^ guard) & _MINUS_1
    return (word << _GUARD_ROTATION | word >> 64 - _GUARD_ROTATION) & _MINUS_1


def unmangled(word: int, guard: int) -> int:
    """The inverse."""
    return ((word >> _GUARD_ROTATION | word << 64 - _GUARD_ROTATION) & _MINUS_1) ^ guard


def displaced(code: bytes, address: int, low: int, high: int) -> Iterator[tuple[int, int]]:
    """(address of a field, where it leads) of all 4 bytes whose distance leads into [low, high), behind what may be the
    opcode of a branch or the ModRM byte of `distance(%rip)`: wrong only on the safe side."""
    furthest = low - max(_IMMEDIATES)
    for shift in range(4):
        distances = array("i", code[shift : max(shift, len(code) - (len(code) - shift) % 4)])
        for n, distance in enumerate(distances):
            if furthest <= address + shift + 4 + 4 * n + distance < high:
                at = shift + 4 * n
                before = code[at - 1] if at else 0
                is_operand = before & 0xC7 == 0x05
                is_branch = before & 0xFE == 0xE8 or (before & 0xF0 == 0x80 and at > 1 and code[at - 2] == 0x0F)
                for size in _IMMEDIATES[: 4 if is_operand else int(is_branch)]:
                    if low <= (leads := address + at + 4 + size + distance) < high:
                        yield address + at, leads


def keeps_arguments(words: Words) -> bool:
    """Whether the kernel keeps the arguments of the system call for itself: restart_syscall(2)."""
    return in_system_call(words) and words[RAX] == (1 << 64) - _RESTARTBLOCK


def waits_outside(registers: Words, read: ReadMemory) -> bool:  # noqa: ARG001  (the registers tell)
    """Whether a stopped thread is in a system call that waits for something else than a lock."""
    number = registers[ORIG_RAX]
    if number == SYS_FUTEX:
        return registers[RSI] & FUTEX_COMMAND == FUTEX_WAIT_BITSET
    return number in WAITING_SYSCALLS


def entered_again(registers: Words, code: bytes) -> dict[int, int] | None:
    """The registers to change so that a system call of which the kernel has lost how to go on is entered again from the
    start (a wait as long as the first one); None when it needs nothing kept.  Shape: {register index: value}.

    `code` are the NUMBERED_SYSCALL_SIZE bytes before the instruction pointer: once it was restarted, only the `mov
    $NUMBER, %eax` of its wrapper knows its number.  Where that is not there, the program gets EINTR.
    """
    if registers[RAX] != (1 << 64) - _RESTARTBLOCK:
        return None
    number = registers[ORIG_RAX]
    if number == SYS_RESTART_SYSCALL:
        if len(code) != NUMBERED_SYSCALL_SIZE or code[0] != 0xB8 or code[5:] != SYSCALL_INSTRUCTION:
            return {RAX: (1 << 64) - EINTR, ORIG_RAX: _MINUS_1}
        number = int.from_bytes(code[1:5], "little")
    return {RAX: number, RIP: registers[RIP] - len(SYSCALL_INSTRUCTION), ORIG_RAX: _MINUS_1}


def repaired(registers: Words) -> dict[int, int] | None:
    """The registers to change so that a system call which a stop interrupted is entered again; None when there is
    nothing to repair.  The caller makes sure that no signal is pending: then the EINTR is the program's own.

    Shape: {register index: value}.
    """
    number = registers[ORIG_RAX]
    if registers[RAX] != (1 << 64) - EINTR or number not in UNRESTARTED_SYSCALLS:
        return None
    return {RAX: number, RIP: registers[RIP] - len(SYSCALL_INSTRUCTION), ORIG_RAX: _MINUS_1}


def forgets_restart(registers: Words) -> bool:
    """Whether a system call makes the kernel forget how another that was interrupted before it goes on."""
    return registers[ORIG_RAX] in _SLEEPS


def has_own_mask(registers: Words) -> bool:
    """Whether a thread was interrupted in a call that waits with a signal mask of its own: as long as the kernel has
    not put the thread's back, signals come by that of the call."""
    return registers[ORIG_RAX] in _OWN_MASK


def time_out(registers: Words) -> int | None:
    """The register that holds the time-out of the wait for events that a thread was interrupted in: milliseconds, an
    int in its low half; the kernel ignores the high half."""
    return R10 if registers[ORIG_RAX] in _EVENT_WAITS else None


def set_system_call(words: list[int], instruction: int, number: int, arguments: Sequence[int]) -> None:
    """Prepare registers to make a system call at `instruction`."""
    words[RIP] = instruction
    words[RAX] = number
    words[ORIG_RAX] = _MINUS_1  # no restart of what was interrupted, yet
    for register, value in zip(_SYSCALL_ARGUMENTS, arguments, strict=False):
        words[register] = value & _MINUS_1


def set_call(words: list[int], function: int, stack_end: int, back: int, arguments: Sequence[int]) -> tuple[int, bytes]:
    """Prepare registers to call a function; the return address lies on the stack."""
    words[RSP] = stack_end - 8
    words[RIP] = function
    words[EFLAGS] &= ~_DIRECTION_FLAG
    words[ORIG_RAX] = _MINUS_1
    for register, value in zip(_FUNCTION_ARGUMENTS, arguments, strict=False):
        words[register] = value
    return stack_end - 8, struct.pack("<Q", back)


def has_returned(words: Words, back: int, stack_end: int) -> bool:
    """Whether a thread at the entry of a system call is where a function returned to."""
    return words[RIP] == back + len(SYSCALL_INSTRUCTION) and words[RSP] == stack_end


def take_result(words: list[int]) -> int:
    """rax, which the kernel took for the number of a system call."""
    result = words[ORIG_RAX]
    words[ORIG_RAX] = _MINUS_1  # skip it
    return result
