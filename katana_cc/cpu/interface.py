"""What the rest of Katana asks of a CPU.

Three parts, each a module of the CPU's package, so that a link asks for the first only:

    relocations   which types there are, what they mean, which bytes and bits they write
    code          instructions: jumps, stubs, what a function does with a symbol
    system        registers, system calls, function calls of a stopped thread (`stopped.py`)

Adding a CPU is adding such a package, and a row in `choice.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from katana_cc.cpu.extent import Extent
from katana_cc.cpu.field import RelocationKind
from katana_cc.elf.reader import Relocation, Row


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
    def ADDRESSES(self) -> Mapping[int, int]:
        """How the fields that tell an address do it (`extent`), where they are whole bytes; others may lack."""

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

    def behind_calls(self, code: bytes) -> frozenset[int]:
        """The offsets behind what may be a call: where return addresses lead; wrong only on the safe side."""

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
