"""Branches of AArch64: those a patch writes, and those it has to find in code.

Theory of operation.  B reaches 128 MiB and is one instruction of 4 bytes, aligned, so that it is written at once.  What
is farther is reached through 16 bytes near the place:

    ldr x16, .+8        x16 and x17 are free between two functions (AAPCS64: IP0, IP1)
    br  x16
    .quad destination

Where a process enforces BTI, an indirect call must land on a landing pad: `bti c`, or PACIASP, which counts as one and
signs the return address besides.  So the jump must leave a landing pad in front of it.  A `bti` stays where it is, and
the jump goes behind it.  PACIASP cannot stay: the new function signs the return address as well.  It becomes `bti c`,
and the jump goes behind it: 8 bytes, which need all threads stopped.  `br x16` itself is let in by `bti c` (Arm ARM,
"BTI": branches through x16 and x17 count as calls), so that a stub and the long form may lead to any function.

A single B may be written while other cores run the old instruction only where both are of the few that the architecture
names (Arm ARM, "Concurrent modification and execution of instructions"); others need a stop, and an ISB on each
core afterwards, which a thread that was stopped has passed: returning to user space is a context synchronization event.

Source: Arm ARM (DDI 0487) C6.2 for the encodings, by name of the instruction.
"""

from __future__ import annotations

from typing import Final

from katana_cc.cpu.aarch64.relocations import BRANCHES, KINDS
from katana_cc.cpu.field import RelocationKind, fits, from_place, read, write
from katana_cc.elf import constants as c
from katana_cc.errors import RefusedError

JUMP_SIZE: Final = 4
JUMP_REACH: Final = 1 << 27
FAR_JUMP_SIZE: Final = 16
STUB_SIZE: Final = 16

B: Final = 0x14000000
NOP: Final = 0xD503201F
BRK: Final = 0xD4200000  # brk #0
BTI_C: Final = 0xD503245F
BTI_J: Final = 0xD503249F
BTI_JC: Final = 0xD50324DF
PACIASP: Final = 0xD503233F
PACIBSP: Final = 0xD503237F
_LDR_X16_8: Final = 0x58000050  # ldr x16, .+8
_BR_X16: Final = 0xD61F0200
_BR_X17: Final = 0xD61F0220
_ADRP_X16: Final = 0x90000010
_LDR_X17_X16: Final = 0xF9400211  # ldr x17, [x16, #0]
_ADD_X16_X16: Final = 0x91000210  # add x16, x16, #0
_PAGE_MASK: Final = 0xFFF

# (mask, value, relocation whose field such a branch has)
_DIRECT: Final = (
    (0x7C000000, 0x14000000, c.R_AARCH64_CALL26),  # B, BL
    (0xFF000000, 0x54000000, c.R_AARCH64_CONDBR19),  # B.cond, BC.cond
    (0x7E000000, 0x34000000, c.R_AARCH64_CONDBR19),  # CBZ, CBNZ
    (0x7E000000, 0x36000000, c.R_AARCH64_TSTBR14),  # TBZ, TBNZ
)
_COMPARE_AND_BRANCH: Final = 0x7E000000, 0x74000000  # CB<cc> (FEAT_CMPBR): 9 bits from bit 5 on
_CALLS: Final = (
    (0xFC000000, 0x94000000),  # BL
    (0xFFFFFC1F, 0xD63F0000),  # BLR
    (0xFEFFF800, 0xD63F0800),  # BLRAA, BLRAB, BLRAAZ, BLRABZ
)
_EXCHANGEABLE: Final = (
    (0x7C000000, 0x14000000),  # B, BL
    (0xFFE0001F, 0xD4000001),  # SVC
    (0xFFE0001F, 0xD4000002),  # HVC
    (0xFFE0001F, 0xD4000003),  # SMC
    (0xFFE0001F, 0xD4200000),  # BRK
    (0xFFFFFFFF, 0xD503201F),  # NOP
    (0xFFFFF0FF, 0xD50330DF),  # ISB
)


def words(*instructions: int) -> bytes:
    """Instructions as bytes: little-endian whatever the data are."""
    return b"".join(i.to_bytes(4, "little") for i in instructions)


def word_at(code: bytes | bytearray, offset: int) -> int:
    """The instruction at an offset."""
    return int.from_bytes(code[offset : offset + 4], "little")


def _filled(instruction: int, kind: RelocationKind, target: int, place: int) -> int:
    value = from_place(kind, target, place)
    if not fits(kind, value):
        raise RefusedError(f"{target:#x} is out of reach of an instruction at {place:#x}")
    data = bytearray(words(instruction))
    write(kind, data, 0, value)
    return word_at(data, 0)


def jump(place: int, destination: int) -> bytes:
    """`b destination` at `place`.

    Raises:
        RefusedError: the destination is out of reach (128 MiB), or no instruction.
    """
    if place % 4:
        raise RefusedError(f"no instruction can be at {place:#x}")
    return words(_filled(B, KINDS[c.R_AARCH64_JUMP26], destination, place))


def far_jump(destination: int) -> bytes:
    """A jump anywhere, wherever it is."""
    return words(_LDR_X16_8, _BR_X16) + destination.to_bytes(8, "little")


def entry_jump(code: bytes, place: int, destination: int) -> bytes:
    """What to write over the beginning of a function at `place`, whose code is `code`: a jump, behind a landing pad
    where there is one.

    Raises:
        RefusedError: out of reach, or the function has no room.
    """
    first = word_at(code, 0)
    if first not in (BTI_C, BTI_JC, PACIASP, PACIBSP):
        return jump(place, destination)
    if len(code) < 8:
        raise RefusedError(f"the function at {place:#x} has no room for a jump behind its landing pad")
    return words(BTI_JC if first == BTI_JC else BTI_C) + jump(place + 4, destination)


def may_be_exchanged(old: int, new: int) -> bool:
    """Whether one instruction may be written over another while cores may be running it."""
    return all(any(i & mask == value for mask, value in _EXCHANGEABLE) for i in (old, new))


def stub(place: int, slot: int) -> bytes:
    """A jump to where the word at `slot` says, as in a procedure linkage table: x16 is the slot's address then.

    Raises:
        RefusedError: the slot is out of reach (4 GiB), or not aligned.
    """
    low = slot & _PAGE_MASK
    return words(
        _filled(_ADRP_X16, KINDS[c.R_AARCH64_ADR_PREL_PG_HI21], slot, place),
        _filled(_LDR_X17_X16, KINDS[c.R_AARCH64_LDST64_ABS_LO12_NC], slot, place),
        _ADD_X16_X16 | low << 10,
        _BR_X17,
    )


def stub_slot(address: int, code: bytes) -> int | None:
    """The slot of `adrp x16; ldr x17, [x16, #]`, after a landing pad; None when the code is something else."""
    at = 4 if word_at(code, 0) in (BTI_C, BTI_JC) else 0
    if len(code) < at + 8:
        return None
    page, load = word_at(code, at), word_at(code, at + 4)
    if page & 0x9F00001F != _ADRP_X16 or load & 0xFFC003FF != _LDR_X17_X16:
        return None
    pages = read(KINDS[c.R_AARCH64_ADR_PREL_PG_HI21], code, at)
    return (address + at & ~_PAGE_MASK) + pages + read(KINDS[c.R_AARCH64_LDST64_ABS_LO12_NC], code, at + 4)


def branch_target(code: bytes, offset: int) -> int | None:
    """The offset that the direct branch at an offset leads to; None when none is there."""
    word = word_at(code, offset)
    for mask, value, number in _DIRECT:
        if word & mask == value:
            return offset + read(KINDS[number], code, offset)
    if word & _COMPARE_AND_BRANCH[0] == _COMPARE_AND_BRANCH[1]:
        distance = word >> 5 & 0x1FF
        return offset + 4 * (distance - 0x200 if distance >> 8 else distance)
    return None


def branches_into(code: bytes, low: int, high: int) -> bool:
    """Whether some direct branch in `code` leads to an offset within [low, high); data in code may look like one."""
    targets = (branch_target(code, at) for at in range(0, len(code) - 3, 4))
    return any(target is not None and low <= target < high for target in targets)


def behind_calls(code: bytes) -> frozenset[int]:
    """The offsets behind a call; data in code may look like one."""
    found = ((at + 4, word_at(code, at)) for at in range(0, len(code) - 3, 4))
    return frozenset(end for end, word in found if any(word & mask == value for mask, value in _CALLS))


def is_branch(code: bytes, offset: int, kind: int) -> bool:  # noqa: ARG001  (the type tells)
    """Whether a relocated field is the target of a direct call or jump."""
    return kind in BRANCHES


def is_call(code: bytes, offset: int, kind: int) -> bool:  # noqa: ARG001
    """Whether it is that of BL."""
    return kind == c.R_AARCH64_CALL26
