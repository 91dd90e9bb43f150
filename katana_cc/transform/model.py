"""What a data transformation is: field by field, how the new object is made from the old.

The new object begins as its *initial bytes* (the new initialiser of a variable; zeros where there is none).  Each step
then writes one field.  A transformation says nothing of padding: there the initial bytes stay.

    struct conn { int fd; short port; char name[8]; }       →  struct conn { long fd; int flags; char name[16]; }

    integer  fd    64 bits at bit   0  <-  fd    signed, 32 bits at bit 0
    initial  flags 32 bits at bit  64
    copy     name   8 bytes at     12  <-  name  at 6
    initial  name[8..15]
    dropped  port  16 bits at bit 32

So every field of either object has a step, and `invert` is to swap the two sides of each.  Positions count from the
start of the object (inside of a `Repeat`: of the element), in bytes or bits as each says; bit 0 is the least
significant bit of byte 0 (x86-64, System V ABI).

Fields have paths: `at.x`, `table[]` for all elements of an array; of C++ bases, `(Base).x`.
"""

from __future__ import annotations

from dataclasses import dataclass

from katana_cc.dwarf.forms import Encoding

POINTER_SIZE = 8  # bytes


@dataclass(frozen=True, slots=True)
class Copy:
    """`size` bytes as they are.  `new`, `old`: byte offsets."""

    new: int
    old: int
    size: int
    field: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Pointer:
    """A pointer, copied.  `pointee` is the canonical text of what it points to (`struct conn`, `char`, `void`), in the
    old build: whoever moves objects finds by it what must follow.  `new`, `old`: byte offsets."""

    new: int
    old: int
    pointee: str
    field: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Integer:
    """A number converted as C assigns it, or a bit-field moved.

    `old_bits` (1 to 64) at bit `old` are read as `old_encoding` says (signed, unsigned, bool); the lowest `new_bits`
    of that are stored at bit `new`, or, of a number that becomes a bool, whether it is not 0.
    """

    new: int
    new_bits: int
    new_encoding: Encoding
    old: int
    old_bits: int
    old_encoding: Encoding
    field: str = ""
    source: str = ""

    @property
    def truth(self) -> bool:
        """Whether only "is it not 0" is kept."""
        return self.new_encoding is Encoding.BOOL and self.old_encoding is not Encoding.BOOL


@dataclass(frozen=True, slots=True)
class Float:
    """A number of IEEE 754 converted between 4 and 8 bytes (rounded to nearest).  Offsets and sizes in bytes."""

    new: int
    new_size: int
    old: int
    old_size: int
    field: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same steps for each of `count` elements of an array; positions in `steps` count from the element's start.
    Offsets and strides in bytes."""

    count: int
    new: int
    new_stride: int
    old: int
    old_stride: int
    steps: tuple[Step, ...]
    field: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Initial:
    """A field without an old one: its initial bytes stay.  `new`: bit offset; `bits`: its width."""

    new: int
    bits: int
    field: str = ""


@dataclass(frozen=True, slots=True)
class Dropped:
    """An old field without a new one.  `old`: bit offset; `bits`: its width."""

    old: int
    bits: int
    source: str = ""


Step = Copy | Pointer | Integer | Float | Repeat | Initial | Dropped


@dataclass(frozen=True, slots=True)
class Transformation:
    """How one object is made anew.  `name` is that of a type, with its keyword (`struct conn`), or of a variable
    (`serve()::count`), whose type in the old build `type` is then, as canonical text.  Sizes in bytes.  The steps are
    in the order of `katana_cc.transform.rules.ordered` and keep the rules of `katana_cc.transform.rules.broken`."""

    name: str
    old_size: int
    new_size: int
    steps: tuple[Step, ...]
    type: str = ""

    @property
    def is_identity(self) -> bool:
        """Nothing moves, comes, goes or is converted: the object may stay as it is."""
        return self.old_size == self.new_size and all(_stays(s) for s in self.steps)

    @property
    def takes_nothing(self) -> bool:
        """Nothing of the old object comes over, whatever its fields: the new one is as its initial bytes have it."""
        return self.steps == nothing_of(self.old_size, self.new_size)


def nothing_of(old_size: int, new_size: int) -> tuple[Step, ...]:
    """The steps that leave a whole object behind.  Sizes in bytes."""
    return Initial(0, new_size * 8), Dropped(0, old_size * 8)


def joined(prefix: str, name: str) -> str:
    """The path of a field of what `prefix` names."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _stays(step: Step) -> bool:
    match step:
        case Copy() | Pointer():
            return step.new == step.old
        case Integer():
            return (step.new, step.new_bits) == (step.old, step.old_bits) and not step.truth
        case Repeat():
            same = (step.new, step.new_stride) == (step.old, step.old_stride)
            return same and all(_stays(s) for s in step.steps)
        case _:
            return False
