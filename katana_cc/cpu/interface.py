"""What the rest of Katana asks of a CPU.

Three parts, each a module of the CPU's package, so that a link asks for the first only:

    relocations   which types there are, what they mean, which bytes and bits they write
    code          instructions: jumps, stubs, what a function does with a symbol
    system        registers, system calls, function calls of a stopped thread

Adding a CPU is adding such a package, and a row in `choice.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from katana_cc.cpu.extent import Extent
from katana_cc.cpu.field import RelocationKind
from katana_cc.elf.reader import Relocation, Row

ReadMemory = Callable[[int, int], bytes]
Words = Sequence[int] | memoryview


class Located(Protocol):
    """A field of a section, and its type."""

    @property
    def offset(self) -> int: ...
    @property
    def type(self) -> int: ...


class Relocations(Protocol):
    """The relocation types of a CPU."""

    @property
    def NAMES(self) -> Mapping[int, str]:
        """Number → R_*."""

    @property
    def EXTENTS(self) -> Mapping[int, Extent]:
        """Which bytes a linker may write, relaxed instructions included; of every type that is known in an object."""

    @property
    def FIELD_SIZES(self) -> Mapping[int, int]:
        """Bytes from r_offset on that hold the field."""

    @property
    def PC_RELATIVE(self) -> frozenset[int]:
        """Types that count from the place."""

    @property
    def GOT_RELATIVE(self) -> frozenset[int]:
        """Types that lead to a slot of the GOT."""

    @property
    def BIAS(self) -> int:
        """What to add to the addend of a PC-relative field in code to get the offset meant, where the instruction ends
        with its field: it counts from its end on some CPUs."""

    @property
    def PLAIN(self) -> frozenset[int]:
        """Types in code whose field, read back, says where it leads without more."""

    @property
    def ABSOLUTE(self) -> Mapping[int, int]:
        """Width in bytes → the type of a plain address, in data."""

    @property
    def RELATIVE(self) -> Mapping[int, int]:
        """Width in bytes → the type of a plain distance, in data."""

    @property
    def TABLE_WIDTHS(self) -> Mapping[int, int]:
        """Type → width, of those in debug information: absolute ones, and offsets of thread-locals."""

    @property
    def CALLS(self) -> frozenset[int]:
        """Types of calls and jumps: what they lead to may be a stub."""

    @property
    def DIRECT(self) -> frozenset[int]:
        """Types in code whose symbol must be within reach."""

    @property
    def RELAXED_LOADS(self) -> frozenset[int]:
        """Types of loads of an address, which a linker turns into computing it."""

    @property
    def AS_RELAXED(self) -> int:
        """The type that says what came of them."""

    @property
    def THREAD_OFFSET(self) -> frozenset[int]:
        """Types whose field, read back, is an offset from the thread pointer."""

    @property
    def THREAD(self) -> frozenset[int]:
        """Types a patch may use for thread-locals: offsets, and slots that hold one."""

    @property
    def LOADER(self) -> str:
        """The soname of glibc's dynamic linker."""

    @property
    def NONE(self) -> int: ...
    @property
    def COPY(self) -> int: ...
    @property
    def GLOB_DAT(self) -> int: ...
    @property
    def JUMP_SLOT(self) -> int: ...
    @property
    def LOADED(self) -> int:
        """R_*_RELATIVE: the load bias and an addend."""

    @property
    def IRELATIVE(self) -> int: ...
    @property
    def DYNAMIC_THREAD_OFFSET(self) -> int:
        """A slot that the dynamic linker fills with an offset from the thread pointer."""

    def thread_offset(self, vaddr: int, memory_size: int, alignment: int) -> int:
        """Where the program's thread-locals begin, from the thread pointer: of its PT_TLS segment."""

    def relocation_kind(self, number: int, where: str) -> RelocationKind:
        """How to apply a type.

        Raises:
            RefusedError: not supported in a patch.
        """

    def masked(self, data: bytes, relocations: Iterable[Located], *, relaxed: bool) -> bytes:
        """`data` with every relocated field zeroed; with `relaxed`, all that a linker may rewrite around it too.

        Raises:
            KeyError: a type that is not in the table.
        """

    def same_outside(self, data: bytes, final: bytes, rows: Iterable[Row]) -> bool:
        """Whether two pieces of equal length agree in every byte that a linker may not rewrite.

        Raises:
            KeyError: a type that is not in the table.
        """


class Span(NamedTuple):
    """The instruction at [start, end) of a function; its field counts from `origin`, when it counts from a place."""

    start: int
    end: int
    origin: int


class Constant(NamedTuple):
    """A constant in code: the bits of `mask` of the little-endian bytes [start, end)."""

    start: int
    end: int
    mask: int

    def value(self, code: bytes) -> int:
        """What it is."""
        return (int.from_bytes(code[self.start : self.end], "little") & self.mask) // (self.mask & -self.mask)

    def around(self, code: bytes) -> int:
        """What else is in its bytes."""
        return int.from_bytes(code[self.start : self.end], "little") & ~self.mask


class Instructions(Protocol):
    """The instructions of a CPU."""

    @property
    def JUMP_SIZE(self) -> int:
        """Bytes of `jump`."""

    @property
    def JUMP_REACH(self) -> int:
        """Distances in [-reach, reach) can be jumped."""

    @property
    def STUB_SIZE(self) -> int:
        """Bytes of `stub`."""

    @property
    def GOT_SLOT_SIZE(self) -> int:
        """Bytes of an address."""

    @property
    def VENEER_SIZE(self) -> int:
        """Bytes of a veneer."""

    @property
    def FILL(self) -> bytes:
        """What faults when it is run: a byte, or an instruction."""

    def jump(self, place: int, destination: int) -> bytes:
        """A direct jump.

        Raises:
            RefusedError: out of reach.
        """

    def stub(self, place: int, slot: int) -> bytes:
        """A jump to where the word at `slot` says."""

    def branches_into(self, code: bytes, low: int, high: int) -> bool:
        """Whether some direct branch in `code` may lead to an offset within [low, high); wrong only on the safe
        side."""

    def is_branch(self, code: bytes, offset: int, kind: int) -> bool:
        """Whether a relocated field of code is the target of a direct call or jump."""

    def is_call(self, code: bytes, offset: int, kind: int) -> bool:
        """Whether it is that of a call."""

    def stub_slot(self, address: int, code: bytes) -> int | None:
        """The slot that a stub of the procedure linkage table jumps through; None when it is none.  `code` are the
        bytes at `address`."""

    def field_ends(self, code: bytes) -> Mapping[int, int]:
        """Offset of a PC-relative field → what it counts from, where that is not the field."""

    def bias(self, code: bytes, offset: int) -> int | None:
        """What to add to the addend of a PC-relative field to get the offset that its instruction means; None when the
        bytes before it do not tell."""

    def constants_moved(self, code: bytes) -> Iterator[Constant]:
        """Each constant that is put into a register or memory as it stands, or pushed."""

    def is_padding(self, code: bytes, size: int) -> bool:
        """Whether the first `size` bytes are what linkers and compilers fill gaps with."""

    def was_relaxed(self, code: bytes, offset: int) -> bool:
        """Whether a linker made the load of an address at a field into computing it."""

    def slot_of(self, before: bytes, linked: bytes, relocation: Relocation, place: int) -> int | None:
        """The slot of the GOT that a linked load goes through; None when it was rewritten, or does not tell.

        Args:
            before, linked: the code as it was, and is.
            place: the address of the field.
        """

    def relaxed_target(self, linked: bytes, relocation: Relocation, place: int) -> int | None:
        """S of a load through the GOT that a linker rewrote; None when it does not tell."""

    def far_use(self, code: bytes, field: int, fields: Iterable[int]) -> Span | None:
        """The instruction of a function that uses the symbol of the field at `field`, when it can be made to from
        afar.  `fields` are all relocated fields."""

    def veneer(self, code: bytes, field: int, address: int, place: int, back: int) -> tuple[bytes, bytes]:
        """What replaces an instruction that `far_use` found, and the veneer, which does the same from afar.

        Args:
            code: the function that holds the instruction.
            address: of the variable.
            place: where the veneer will be.
            back: where the instruction ends.
        """


class DwarfNumbers(NamedTuple):
    """Registers in debug information: `order` are the indices of registers 0, 1, ... in a row of registers.

    Attributes:
        stack_pointer: its number.
        pc: the number that stands for the address itself.
        is_return_in_register: whether a function may leave its return address in a register, without a rule for it.
    """

    order: tuple[int, ...]
    stack_pointer: int
    pc: int
    is_return_in_register: bool


class RegisterSet(NamedTuple):
    """What PTRACE_GETREGSET gives for a note type: `size` bytes, kept from word `word` of a row on."""

    note: int
    word: int
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
    def RED_ZONE(self) -> int:
        """Bytes below the stack pointer that belong to the function."""

    @property
    def ADDRESS_LIMIT(self) -> int:
        """Where the addresses of a process end."""

    @property
    def FIXED_LIMIT(self) -> int:
        """Where those end that code of a program linked for fixed addresses can name."""

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
    def EINTR(self) -> int: ...
    @property
    def ALLOCATE(self) -> bytes:
        """long allocate(void *(*malloc)(long size), long size, long count, void **blocks): how many blocks there are
        now, fewer than `count` when malloc gave none."""

    @property
    def RELEASE(self) -> bytes:
        """void release(void (*free)(void *), void **blocks, long count)."""

    def runs_supported_code(self, words: Words) -> bool:
        """Whether the thread is in the mode that is meant: 64-bit."""

    def in_system_call(self, words: Words) -> bool:
        """Whether a thread is known to be in a system call."""

    def keeps_arguments(self, words: Words) -> bool:
        """Whether the kernel keeps the arguments of the system call for itself (or may)."""

    def waits_outside(self, words: Words, read: ReadMemory) -> bool:
        """Whether a thread is in a system call that waits for something else than a lock."""

    def repaired(self, words: Words) -> dict[int, int] | None:
        """The registers to change so that a system call which a stop interrupted is entered again; None when there is
        nothing to repair.  The caller makes sure that no signal is pending: then the EINTR is the program's own.

        Shape: {register index: value}.
        """

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

    def size_of(self, state: bytes) -> int:
        """How many bytes `frame` makes, at most."""

    def begun_again(self, registers: Sequence[int], code: bytes) -> list[int]:
        """The registers of a thread whose interrupted system call is to be entered again by nobody but itself; `code`
        as of `System.entered_again`."""

    def park(self, words: list[int], restorer: int, at: int) -> None:
        """Put a thread in front of the code that goes back by the frame at `at`."""

    def set_system_call(
        self, words: list[int], instruction: int, at: int, number: int, arguments: Sequence[int]
    ) -> None:
        """Prepare registers to make a system call at `instruction`, which returns to the frame at `at`."""

    def set_call(self, words: list[int], function: int, stack: int, result: int, arguments: Sequence[int]) -> None:
        """Prepare registers to call a function, whose return address, a keeper, lies at `stack` already, and have its
        result kept at `result`."""

    def has_returned(self, words: list[int], restored: int, at: int) -> bool:
        """Whether a thread at the entry of a system call is about to go back by the frame at `at`; its registers are
        then changed so that it does not.  `restored`: where the restorer ends."""
