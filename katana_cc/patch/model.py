"""What a patch object holds, as frozen values.  The file format is in `docs/patch-object.md`, the codec in `codec.py`.

A patch object is self-contained: a host that applies it needs no store, no compiler and no debug information.
All addresses are link-time addresses of the output it patches; the load bias is added when it is applied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple

from katana_cc.patch.addresses import NO_ADDRESSES, AddressMap, Blanks
from katana_cc.transform.model import Transformation

FORMAT_VERSION = 8

# A patch that has these among its undefined symbols must have its frames registered with them (libgcc's unwinder).
REGISTRATION = ("__register_frame_info", "__deregister_frame_info", "_Unwind_Find_FDE")


class Verdict(StrEnum):
    """What can be said of a change before it is applied."""

    SAFE = "safe"
    NEEDS = "needs"  # something named in the reasons, that an option of `katana apply` grants (`patch/needs.py`)
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class PatchRelocation:
    """A RELA entry; `symbol` indexes `PatchObject.symbols`, `type` is the machine's R_* number."""

    offset: int
    type: int
    symbol: int
    addend: int


@dataclass(frozen=True, slots=True)
class PatchSection:
    """One section carried: a function, a datum, literals, .eh_frame, or (without SHF_ALLOC) debug information and the
    old and new contents of data edits.  `size` exceeds len(data) only for SHT_NOBITS (then `data` is empty)."""

    name: str
    type: int
    flags: int
    alignment: int
    data: bytes
    size: int
    entry_size: int = 0
    relocations: tuple[PatchRelocation, ...] = ()


@dataclass(frozen=True, slots=True)
class PatchSymbol:
    """A symbol of the patch object.

    `section` is an index into `PatchObject.sections`, or None for SHN_UNDEF.  Of the undefined ones:
    `value` != 0 (or STT_TLS): it exists in the target, at that link-time address (STT_TLS: offset in the output's TLS
    segment); `value` == 0: an import, to be found in the target's loaded modules by name (a weak one may be absent: 0).
    Names of file-local existing symbols are told apart as `file.c:name`.  Defined symbols are STB_LOCAL; undefined ones
    STB_GLOBAL or STB_WEAK.
    """

    name: str
    binding: int
    type: int
    section: int | None
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class Replacement:
    """A function replaced: at `address` a jump to `symbol` is written over the first bytes.

    `size` bytes at `address` must have the SHA-256 `digest`, or nothing is written.  No thread may be inside
    [address, address + size) nor inside one of `parts` ((address, size, digest): the .cold half and the like, which are
    compared as well but not jumped from) when it is replaced.

    `blanks` are of a patch that was put together from two (`compose.py`): for the function and each of its parts, what
    the digest takes for zeros, since only a build of its own tells what a linker wrote there.
    """

    name: str
    address: int
    size: int
    digest: bytes
    symbol: int
    parts: tuple[tuple[int, int, bytes], ...] = ()
    blanks: tuple[Blanks, ...] = ()

    @property
    def ranges(self) -> tuple[tuple[int, int, bytes, Blanks], ...]:
        """(address, size, digest, blanks) of the function and of each part."""
        every = ((self.address, self.size, self.digest), *self.parts)
        return tuple((*r, b) for r, b in zip(every, self.blanks or ((),) * len(every), strict=True))


@dataclass(frozen=True, slots=True)
class DataEdit:
    """Data rewritten in place: the relocated contents of section `expected` must be at `address`, and become the
    relocated contents of section `replacement` (same size; both sections lack SHF_ALLOC: they are never mapped).  Where
    both are one section, nothing is rewritten: it is a condition.

    With `is_initialiser` it is a variable whose initial value changed.  Its live value is kept, unless somebody asks
    for the new initial one by `name`; then whatever lives there is overwritten, and `expected` tells the old one.
    With `is_taken` too the source asks for it, and nobody has to.
    """

    name: str
    address: int
    expected: int
    replacement: int
    is_initialiser: bool = False
    is_taken: bool = False

    @property
    def is_condition(self) -> bool:
        """Whether nothing is rewritten: what is there must be as expected, and stays."""
        return self.expected == self.replacement


class Basis(IntEnum):
    """Why old code may rely on what a replaced function did.  Numbers on disk are append-only."""

    BODY_SEEN = 1  # compiled in one unit: registers it spares, memory it leaves alone, how it takes its arguments
    PROTOTYPE = 2  # its parameters or its result are of another type now
    DATA_MOVED = 3  # it uses a variable that is made anew elsewhere: `callee` is the caller, `through` the variable
    TYPE_CHANGED = 4  # it may use objects of a type laid out otherwise: `callee` is the caller, `through` the type
    TWO_STEPS = 5  # of a patch put together from two: the first replaces it, the second changes what it may rely on


@dataclass(frozen=True, slots=True)
class Reliance:
    """The old code of one replaced function relies on the old code of another (or of itself: it recurses).

    `caller` and `callee` index `PatchObject.replacements`.  So the caller must not be active when it is replaced: it
    would go on in its old code, and meet the new callee.  `through` is the function in between, "" when there is none.
    """

    caller: int
    callee: int
    basis: Basis
    through: str = ""


class Handed(NamedTuple):
    """Parts of an object that a function of the user's makes anew: `number` of them from byte `old` of the old object
    on, `old_stride` apart, and from byte `new` of the new one on.  `hook` and `back` index `PatchObject.hooks`: the
    function, and the one for the way back, -1 where there is none."""

    hook: int
    back: int
    old: int
    new: int
    number: int
    old_stride: int
    new_stride: int


@dataclass(frozen=True, slots=True)
class DataTransform:
    """Live data that gets a new layout, or that holds pointers to such data.

    A *variable* has the `address` of the old object, and `symbol` indexes the new one in `PatchObject.symbols`: its
    relocated contents are the initial bytes.  One without `symbol` stays where it is: its transformation is an
    identity, and names the pointers in it that may lead to what does not, or to objects of the types below.

    A *type* has neither: all objects of it that typed pointers lead to from these variables.  Its name is the text that
    pointers to it have (`struct conn`; `struct conn *` for what a `struct conn **` leads to; `struct conn[4]`).  It is
    an identity where its objects stay as they are and only lead on to others.  `begins`: the name of the type among
    these that an object of it begins with (its first field or base, however deep), "" if there is none: a pointer to
    that may lead to the whole.  `handed` are the parts of it that functions of the user's make; what the transformation
    says of them is what they begin as.
    """

    transformation: Transformation
    address: int | None = None
    symbol: int | None = None
    begins: str = ""
    handed: tuple[Handed, ...] = ()

    @property
    def is_type(self) -> bool:
        """Whether it speaks of all objects of a type."""
        return self.address is None


class HookKind(IntEnum):
    """When a hook of the user's runs (`katana.h`).  Numbers on disk and in objects are append-only."""

    BEFORE = 1
    AFTER = 2
    BEFORE_REVERT = 3
    AFTER_REVERT = 4
    TRANSFORM = 5
    TRANSFORM_BACK = 6

    @property
    def makes_objects(self) -> bool:
        """Whether it makes live objects anew, and is called for each."""
        return self in (HookKind.TRANSFORM, HookKind.TRANSFORM_BACK)

    @property
    def words(self) -> str:
        """When that is: "before the revert"."""
        return _WHEN[self]


_WHEN = {
    HookKind.BEFORE: "before",
    HookKind.AFTER: "after",
    HookKind.BEFORE_REVERT: "before the revert",
    HookKind.AFTER_REVERT: "after the revert",
    HookKind.TRANSFORM: "for live objects",
    HookKind.TRANSFORM_BACK: "for live objects on the way back",
}


@dataclass(frozen=True, slots=True)
class Hook:
    """A function of the user's that runs when the patch is applied or reverted.  `name` is what he calls it, `symbol`
    indexes `PatchObject.symbols`: the function of the patch to call, which returns an int, 0 when all is well.  It
    takes nothing; or, where it makes objects, the addresses of the addresses of `count` old ones and of new ones,
    `count`, and where it keeps how many are done."""

    kind: HookKind
    name: str
    symbol: int


class BroughtKind(IntEnum):
    """What kind of thing a patch brings.  Numbers on disk are append-only."""

    FUNCTION = 1
    CONSTANT = 2
    VARIABLE = 3

    @property
    def word(self) -> str:
        """As people say."""
        return self.name.lower()


UNKNOWN = bytes(32)  # the digest of what cannot be told from other things


class Brought(NamedTuple):
    """A thing that the old build has not, in a carried section of its own: what another patch from the same build calls
    by the same `name` is the same thing.  `digest` tells the type of a variable (`katana_cc.patch.brought`)."""

    section: int
    kind: BroughtKind
    name: str
    digest: bytes


def without_doubles(found: Iterable[Brought]) -> Iterator[Brought]:
    """The same; of things of one name it cannot be told which is which."""
    every = list(found)
    names = Counter(b.name for b in every)
    for b in every:
        yield b if names[b.name] == 1 else b._replace(digest=UNKNOWN)


class NewLayout(NamedTuple):
    """An aggregate that the new build lays out otherwise than the old one, or alone has: its name with the keyword, and
    a digest of how."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing a person should know of the change: an enumerated code, what it is about, where, in words.

    `severity` is "info" (carried, or left out for the reason given), "needs" or "refused".
    """

    code: str
    severity: str
    subject: str
    file: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Which snapshot the patch starts from and which it leads to.  Build-ids in hex."""

    output: str
    machine: int
    from_build_id: str
    to_build_id: str
    from_release: str
    to_release: str


@dataclass(frozen=True, slots=True)
class PatchObject:
    """A whole patch object.  With the verdict `REFUSED` it carries reasons only: no sections, no replacements.
    `addresses` is what it takes to compose it with another one."""

    identity: Identity
    verdict: Verdict
    reasons: tuple[Reason, ...]
    sections: tuple[PatchSection, ...] = ()
    symbols: tuple[PatchSymbol, ...] = ()
    replacements: tuple[Replacement, ...] = ()
    data_edits: tuple[DataEdit, ...] = ()
    reliances: tuple[Reliance, ...] = ()
    transforms: tuple[DataTransform, ...] = ()
    hooks: tuple[Hook, ...] = ()
    brought: tuple[Brought, ...] = ()
    layouts: tuple[NewLayout, ...] = ()
    addresses: AddressMap = NO_ADDRESSES
