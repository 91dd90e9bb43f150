"""What is asked of a CPU about stopped threads: their registers, what system calls make of them, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

ReadMemory = Callable[[int, int], bytes]
Words = Sequence[int] | memoryview


class DwarfNumbers(NamedTuple):
    """Registers in debug information: `order` are the indices of registers 0, 1, ... in a row of registers.

    Attributes:
        stack_pointer: its number.
        pc: the number that stands for the address itself.
        is_return_in_register: whether a function may leave its return address in a register, without a rule for it.
        lost: those that a call does not keep: the caller's values are not known, unless a rule tells them.
    """

    order: tuple[int, ...]
    stack_pointer: int
    pc: int
    is_return_in_register: bool
    lost: frozenset[int]


class RegisterSet(NamedTuple):
    """What PTRACE_GETREGSET gives for a note type: `size` bytes, kept from word `word` of a row on."""

    note: int
    word: int
    size: int


class SavedContext(NamedTuple):
    """What a coroutine that is switched out goes on with: DWARF-numbered registers, the pc among them; and the stack
    that it was made with (address, size), if it was made."""

    registers: Mapping[int, int]
    stack: int
    size: int


class System(Protocol):
    """The registers of a stopped thread, as a row of 64-bit words, and what system calls make of them."""

    @property
    def MACHINE(self) -> int:
        """EM_*."""

    @property
    def REGISTER_WORDS(self) -> int:
        """Words in a row."""

    @property
    def REGISTER_SETS(self) -> tuple[RegisterSet, ...]:
        """Where they come from."""

    @property
    def PC(self) -> int:
        """Index of the instruction pointer."""

    @property
    def SP(self) -> int:
        """Index of the stack pointer."""

    @property
    def THREAD_POINTER(self) -> int:
        """Index of the thread pointer."""

    @property
    def RESULT(self) -> int:
        """Index of what a system call gives."""

    @property
    def GENERAL_REGISTERS(self) -> Mapping[int, str]:
        """Index → name of those a program computes with."""

    @property
    def DWARF(self) -> DwarfNumbers: ...
    @property
    def VECTOR_NOTE(self) -> int:
        """Note type of the vector registers."""

    @property
    def VECTOR_BYTES(self) -> int:
        """At most so many."""

    @property
    def VECTOR_RANGES(self) -> tuple[tuple[int, int | None], ...]:
        """[start, end) of registers in them."""

    @property
    def ALL_VECTOR_RANGES(self) -> tuple[tuple[int, int | None], ...]:
        """The same with those that no compiler uses."""

    @property
    def RED_ZONE(self) -> int:
        """Bytes below the stack pointer that belong to the function."""

    @property
    def ADDRESS_LIMIT(self) -> int:
        """Where the addresses of a process end."""

    @property
    def FIXED_LIMIT(self) -> int:
        """Where those end that code of a program linked for fixed addresses can name."""

    @property
    def LIBUNWIND(self) -> str:
        """What libunwind calls it, in names of functions."""

    @property
    def SYSCALL_INSTRUCTION(self) -> bytes: ...
    @property
    def SPIN(self) -> bytes:
        """A jump to itself."""

    @property
    def SYS_MMAP(self) -> int: ...
    @property
    def SYS_MPROTECT(self) -> int: ...
    @property
    def SYS_EXIT_GROUP(self) -> int: ...
    @property
    def SYS_MUNMAP(self) -> int: ...
    @property
    def SYS_CLOSE(self) -> int: ...
    @property
    def SYS_MEMFD_CREATE(self) -> int: ...
    @property
    def SYS_TGKILL(self) -> int: ...
    @property
    def SYS_RT_SIGACTION(self) -> int: ...
    @property
    def SYS_SIGALTSTACK(self) -> int: ...
    @property
    def SYS_PERF_EVENT_OPEN(self) -> int: ...
    @property
    def SYS_KCMP(self) -> int: ...
    @property
    def CLONING_SYSCALLS(self) -> frozenset[int]:
        """Those in which a thread waits for its child of vfork's."""

    @property
    def PERF_REGISTERS(self) -> Mapping[int, int]:
        """Bit of a register in perf's masks → its index in a row."""

    @property
    def EINTR(self) -> int: ...
    @property
    def ALLOCATE(self) -> bytes:
        """long allocate(void *(*calloc)(long size, long), long size, long count, void **blocks): how many blocks
        there are now, fewer than `count` when calloc gave none."""

    @property
    def RELEASE(self) -> bytes:
        """void release(void (*free)(void *), void **blocks, long count)."""

    def runs_supported_code(self, words: Words) -> bool:
        """Whether the thread is in the mode that is meant: 64-bit."""

    def in_system_call(self, words: Words) -> bool:
        """Whether a thread is known to be in a system call."""

    @property
    def PC_FOLLOWED_BY(self) -> int:
        """Bytes behind the pc in a signal frame that `was_interrupted` looks at."""

    def signal_frame_mark(self) -> bytes:
        """Bytes that each signal frame has in it, and little else."""

    def was_interrupted(self, following: bytes) -> bool:
        """Whether an address in memory may be the pc of what a signal interrupted, as a signal frame keeps it."""

    def switches_stacks(self, code: bytes) -> bool:
        """Whether code has in it what glibc's `swapcontext` and `setcontext` alone have; false where that is not
        known."""

    @property
    def POINTER_GUARD(self) -> int | None:
        """How far from the thread pointer the word lies with which glibc hides addresses; None: in no thread."""

    def mangled(self, address: int, guard: int) -> int:
        """An address as glibc hides it in a jmp_buf and in lists of functions (PTR_MANGLE)."""

    def unmangled(self, word: int, guard: int) -> int:
        """The inverse."""

    def displaced(self, code: bytes, address: int, low: int, high: int) -> Iterator[tuple[int, int]]:
        """(address of a field, where it leads) of all that may be fields of code which lead into [low, high) by their
        distance, wherever instructions begin."""

    def keeps_arguments(self, words: Words) -> bool:
        """Whether the kernel keeps the arguments of the system call for itself (or may)."""

    def waits_outside(self, words: Words, read: ReadMemory) -> bool:
        """Whether a thread is in a system call that waits for something else than a lock."""

    def repaired(self, words: Words) -> dict[int, int] | None:
        """The registers to change so that a system call which a stop interrupted is entered again; None when there is
        nothing to repair.  The caller makes sure that no signal is pending: then the EINTR is the program's own.

        Shape: {register index: value}.
        """

    def forgets_restart(self, words: Words) -> bool:
        """Whether a system call makes the kernel forget how another that was interrupted before it goes on."""

    def has_own_mask(self, words: Words) -> bool:
        """Whether a thread was interrupted in a call that waits with a signal mask of its own: as long as the kernel
        has not put the thread's back, signals come by that of the call."""

    def time_out(self, words: Words) -> int | None:
        """The register that holds the time-out of the wait for events that a thread was interrupted in: milliseconds,
        an int in its low half; the kernel ignores the high half.  None: in another call, or without a time-out."""

    @property
    def NUMBERED_SYSCALL_SIZE(self) -> int:
        """Bytes before the pc of a thread in a system call that tell which it is."""

    def entered_again(self, words: Words, code: bytes) -> dict[int, int] | None:
        """The registers to change so that a system call of which the kernel has lost how to go on is entered again from
        the start; None when it needs nothing kept.  Shape: {register index: value}.

        `code` are the NUMBERED_SYSCALL_SIZE bytes before the pc: once it was restarted, only its wrapper knows its
        number.
        """

    def set_system_call(self, words: list[int], instruction: int, number: int, arguments: Sequence[int]) -> None:
        """Prepare registers to make a system call at `instruction`; what was interrupted is not restarted."""

    def set_call(
        self, words: list[int], function: int, stack_end: int, back: int, arguments: Sequence[int]
    ) -> tuple[int, bytes]:
        """Prepare registers to call a function on a stack that ends at `stack_end` and return to `back`.

        Returns: address and bytes of what has to lie on the stack.
        """

    def has_returned(self, words: Words, back: int, stack_end: int) -> bool:
        """Whether a thread at the entry of a system call is where that function returns to: an instruction at `back`
        that makes one."""

    def take_result(self, words: list[int]) -> int:
        """What the function returned; the registers are changed so that the system call is none."""


class WayBack(Protocol):
    """How a thread that was made to do something goes back to what it was by itself, if nobody tells it to any more: by
    a signal frame on its stack."""

    @property
    def SYSCALL_AND_RETURN(self) -> bytes:
        """Code that makes a system call and returns."""

    @property
    def RESTORERS(self) -> Sequence[bytes]:
        """Codes that go back by a frame."""

    def keeper(self, code: bytes) -> tuple[int, int] | None:
        """Where instructions lie that keep a function's result in memory and return, and how many words they take from
        the stack before; None where there are none."""

    def frame(self, at: int, restorer: int, registers: Sequence[int], mask: int, state: bytes) -> bytes:
        """A frame to lie at `at`, a multiple of 8.

        Args:
            restorer: where the code lies that goes back.
            registers: a row, as the thread is to have them.
            mask: the signals it is to block.
            state: its vector registers, as ptrace gives them.
        """

    def reach_of(self, state: bytes) -> int:
        """How many bytes from a frame's start on have to be mapped, whether they are of the frame or not."""

    def size_of(self, state: bytes) -> int:
        """How many bytes `frame` makes, at most."""

    def begun_again(self, registers: Sequence[int], code: bytes) -> list[int]:
        """The registers of a thread whose interrupted system call is to be entered again by nobody but itself; `code`
        as of `System.entered_again`."""

    def park(self, words: list[int], restorer: int, at: int) -> None:
        """Put a thread in front of the code that goes back by the frame at `at`; a system call that it is about to make
        is not made."""

    def set_system_call(
        self, words: list[int], instruction: int, at: int, number: int, arguments: Sequence[int]
    ) -> None:
        """Prepare registers to make a system call at `instruction`, which returns to the frame at `at`."""

    def set_call(self, words: list[int], function: int, stack: int, result: int, arguments: Sequence[int]) -> None:
        """Prepare registers to call a function, whose return address, a keeper, lies at `stack` already, and have its
        result kept at `result`."""

    def has_returned(self, words: Words, restored: int, at: int) -> bool:
        """Whether a thread at the entry of a system call is about to go back by the frame at `at`.  `restored`: where
        the restorer ends."""


class Contexts(Protocol):
    """What the C library keeps of a coroutine that is switched out."""

    @property
    def MARK_SIZE(self) -> int:
        """Bytes of the mark that each context has."""

    @property
    def MARK_AT(self) -> int:
        """Where it begins in a context."""

    @property
    def SIZE(self) -> int:
        """Bytes of a context that are read."""

    def marks(self, data: bytes | memoryview) -> Iterator[int]:
        """The offsets of marks, in memory from a multiple of 8 on."""

    def are_cut(self, data: bytes | memoryview) -> tuple[bool, bool]:
        """Whether a mark may begin before memory from a multiple of 8 to one, and whether one may end behind it."""

    def returns_of_first(self, code: bytes, address: int, read: ReadMemory) -> frozenset[int]:
        """Where the function that a coroutine begins with returns to: what `makecontext`, whose code this is, writes to
        the end of each stack.  Empty where its code is not as expected."""

    def saved_context(self, data: bytes, address: int) -> SavedContext | None:
        """What is kept in the SIZE bytes at an address; None where that is no context."""
