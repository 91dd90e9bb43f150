"""The ledger: what a patch did to a process, kept in that process.  Specified in docs/ledger.md.

Pure codec.  Everything but the state is written once, before the first edit, and is covered by a checksum; the state
is a single aligned word.  Sizes do not depend on addresses, so that the ledger can be placed before they are known.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from katana_cc.errors import LaterKatanaError
from katana_cc.patch.model import BroughtKind, HookKind, NewLayout
from katana_cc.process.memory import Reader
from katana_cc.process.moves import (
    Kind,
    Move,
    packed,
    packed_kinds,
    packed_made,
    unpacked,
    unpacked_kinds,
    unpacked_made,
)
from katana_cc.process.packing import Cursor, block, text
from katana_cc.process.phases import Bytes, Phase, judge_bytes

MAGIC: Final = b"KATANALG"
VERSION: Final = 9
_OLDEST = 1
_HEADER = struct.Struct("<8sIIQ16sQQQ")  # magic, version, state, length, checksum, base, size, registered
HEADER_SIZE: Final = _HEADER.size
STATE_OFFSET: Final = 12
REGISTERED_OFFSET: Final = 56
_MAX_LENGTH = 1 << 28

_WITHOUT_EDITS: Final = {Phase.MAPPED: Bytes.OLD, Phase.REVERTED: Bytes.OLD, Phase.APPLIED: Bytes.NEW}
_LAST: Final = {Phase.COMMITTING: Bytes.NEW, Phase.REVERTING: Bytes.OLD}  # what the edits are when all was written

assert HEADER_SIZE == 64


@dataclass(frozen=True, slots=True)
class MemoryEdit:
    """Bytes of a target to exchange: `expected` at `address` become `replacement`.  `name` is the function or datum;
    `is_jump` tells a redirected function from edited data.  `is_value` is a variable that was given its new initial
    value: the program may write to it at any time, so what it holds says nothing of the patch."""

    name: str
    address: int
    expected: bytes
    replacement: bytes
    is_jump: bool
    is_value: bool = False

    @property
    def kind(self) -> str:
        """What is edited: "jump", "data" or "value"."""
        return "jump" if self.is_jump else "value" if self.is_value else "data"

    def reversed(self) -> MemoryEdit:
        """The edit that undoes this one."""
        return replace(self, expected=self.replacement, replacement=self.expected)


@dataclass(frozen=True, slots=True)
class CodeRange:
    """A named range of addresses of the target."""

    name: str
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Registration:
    """How the frames of new code are made known to one unwinder of the process: addresses of its functions
    `__register_frame_info`, `__deregister_frame_info` and `_Unwind_Find_FDE`, and of the memory it keeps its record
    in."""

    register: int
    deregister: int
    find: int
    record: int


class Listing(NamedTuple):
    """How new code is made known to a libunwind of the process (`libunwind.py`): addresses of its `_U_dyn_register`,
    `_U_dyn_cancel`, `_U_dyn_info_list_addr` and `unw_get_proc_info_by_ip`, of the variable `unw_local_addr_space`, and
    of the memory for our entries in its list."""

    register: int
    cancel: int
    head: int
    ask: int
    space: int
    record: int


@dataclass(frozen=True, slots=True)
class HookEntry:
    """A function of the user's that runs when the patch is applied or reverted: when, what he calls it, and where the
    function to call is."""

    kind: HookKind
    name: str
    address: int


class Resident(NamedTuple):
    """A thing that came with a patch, or with one that it took the place of, and where it lives: a variable has its
    value there, a constant and the entry of a function are known to pointers by that address.  `name` and `digest` as
    of `katana_cc.patch.model.Brought`."""

    kind: BroughtKind
    name: str
    address: int
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the ledger holds.  `base` and `size` are those of the mapping, whose first bytes the ledger is.

    `old` are the replaced functions and their parts, `new` the functions that came, `data` the variables that came,
    `eh_frame` the call-frame information of `new` (size 0: none), `parts` (address, size, protection) of the mapping.
    `registrations` and `listings` are the unwinders that `eh_frame` is registered with, once `is_registered` is set: it
    is a word of its own, as the state is, and tells what was done last; the unwinders themselves know.  `moves` are the
    variables that have another layout at another place now, and those whose pointers followed them; `kinds` the types
    whose objects on the heap have another layout now, and those on the way to them.  `hooks` run in this order.
    `residents` is all that came and has a name, `layouts` the aggregates that the new build lays out otherwise; without
    `is_named` an earlier katana wrote it, which did not tell.
    """

    state: Phase
    base: int
    size: int
    patch_id: str
    from_build_id: str
    to_build_id: str
    from_release: str
    to_release: str
    output: str
    bias: int
    eh_frame: tuple[int, int]
    parts: tuple[tuple[int, int, int], ...]
    edits: tuple[MemoryEdit, ...]
    old: tuple[CodeRange, ...]
    new: tuple[CodeRange, ...]
    data: tuple[CodeRange, ...]
    registrations: tuple[Registration, ...] = ()
    is_registered: bool = False
    moves: tuple[Move, ...] = ()
    kinds: tuple[Kind, ...] = ()
    hooks: tuple[HookEntry, ...] = ()
    residents: tuple[Resident, ...] = ()
    layouts: tuple[NewLayout, ...] = ()
    is_named: bool = True
    listings: tuple[Listing, ...] = ()

    @property
    def records(self) -> tuple[int, ...]:
        """The memory for what unwinders record of the new frames, by its addresses."""
        return (*(r.record for r in self.registrations), *(x.record for x in self.listings))

    @property
    def fixed(self) -> tuple[MemoryEdit, ...]:
        """The edits that tell whether the patch is applied: those that change something the program leaves alone."""
        return tuple(e for e in self.edits if not e.is_value and e.expected != e.replacement)

    @property
    def moves_data(self) -> bool:
        """Whether live data has another layout while it is applied."""
        return bool(self.moves or self.kinds)

    def found_bytes(self, memory: Reader) -> Bytes:
        """What stands at the edits now; without edits that the program leaves alone, what the state says.

        Of a patch that is not in force (its state word says so before any byte is written, and after the last was put
        back), bytes that are not its own are another patch's: not applied.

        Raises:
            TargetError: the process is gone, or the module was unloaded.
        """
        fixed = self.fixed
        if not fixed:
            return _WITHOUT_EDITS.get(self.state, Bytes.TORN)
        found = judge_bytes((e.expected, e.replacement, memory.read(e.address, len(e.expected))) for e in fixed)
        if self.moves_data and found is not Bytes.FOREIGN and self.state in _LAST:
            # Variables and pointers are written before the edits: only when these are all there, those are.
            return found if found is _LAST[self.state] else Bytes.TORN
        inactive = self.state in (Phase.MAPPED, Phase.REVERTED)
        return Bytes.OLD if inactive and found in (Bytes.FOREIGN, Bytes.TORN) else found


def encode(ledger: Ledger) -> bytes:
    """Header and data."""
    data = b"".join(_pieces(ledger))
    checksum = hashlib.sha256(data).digest()[:16]
    head = MAGIC, VERSION, ledger.state, len(data), checksum, ledger.base, ledger.size, int(ledger.is_registered)
    return _HEADER.pack(*head) + data


def _pieces(ledger: Ledger) -> Iterator[bytes]:
    for word in (
        ledger.patch_id, ledger.from_build_id, ledger.to_build_id,
        ledger.from_release, ledger.to_release, ledger.output,
    ):  # fmt: skip
        yield text(word)
    yield struct.pack("<QQQ", ledger.bias, *ledger.eh_frame)
    yield struct.pack("<I", len(ledger.parts))
    for part in ledger.parts:
        yield struct.pack("<QQQ", *part)
    yield struct.pack("<I", len(ledger.edits))
    for edit in ledger.edits:
        yield struct.pack("<QI", edit.address, edit.is_jump | edit.is_value << 1)
        yield text(edit.name) + block(edit.expected) + block(edit.replacement)
    for ranges in (ledger.old, ledger.new, ledger.data):
        yield struct.pack("<I", len(ranges))
        for item in ranges:
            yield struct.pack("<QQ", item.address, item.size) + text(item.name)
    yield struct.pack("<I", len(ledger.registrations))
    for each in ledger.registrations:
        yield struct.pack("<QQQQ", each.register, each.deregister, each.find, each.record)
    yield from packed(ledger.moves)
    yield from packed_kinds(ledger.kinds)
    yield struct.pack("<I", len(ledger.hooks))
    for hook in ledger.hooks:
        yield struct.pack("<IQ", hook.kind, hook.address) + text(hook.name)
    yield from packed_made(ledger.moves)
    yield from packed_made(ledger.kinds)
    yield struct.pack("<I", len(ledger.residents))
    for r in ledger.residents:
        yield struct.pack("<IQQ32s", r.kind, r.address, r.size, r.digest) + text(r.name)
    yield struct.pack("<I", len(ledger.layouts))
    for layout in ledger.layouts:
        yield layout.digest + text(layout.name)
    yield struct.pack("<I", len(ledger.listings))
    for listing in ledger.listings:
        yield struct.pack("<6Q", *listing)


def encode_state(state: Phase) -> bytes:
    """The state word, to be written at base + STATE_OFFSET."""
    return struct.pack("<I", state)


def encode_registered(is_registered: bool) -> bytes:
    """The word that tells whether the frames are registered, to be written at base + REGISTERED_OFFSET."""
    return struct.pack("<Q", int(is_registered))


def read_ledger(memory: Reader, base: int) -> Ledger | None:
    """The ledger of the mapping at `base`; None when there is none (yet): its magic is missing or its checksum wrong,
    as a katana that died while it wrote leaves it.  Nothing can lead into such a mapping.

    Raises:
        LaterKatanaError: a ledger of a later format version.
        TargetError: the process is gone.
    """
    magic, version, state, length, checksum, own_base, size, registered = _HEADER.unpack(memory.read(base, HEADER_SIZE))
    if magic != MAGIC:
        return None
    if not _OLDEST <= version <= VERSION:
        raise LaterKatanaError(
            f"the patch at {base:#x} was applied by a later katana (ledger version {version})",
            remedy="use that katana, or a later one",
        )
    if length > _MAX_LENGTH or own_base != base:
        return None
    data = memory.read(base + HEADER_SIZE, length)
    if hashlib.sha256(data).digest()[:16] != checksum or state not in set(Phase):
        return None
    cursor = Cursor(data)
    patch_id, from_id, to_id, from_release, to_release, output = (cursor.text() for _ in range(6))
    bias, frame_address, frame_size = cursor.take("<QQQ")
    parts = []
    for _ in range(cursor.count()):
        address, part_size, protection = cursor.take("<QQQ")
        parts.append((address, part_size, protection))
    edits = []
    for _ in range(cursor.count()):
        address, flags = cursor.take("<QI")
        kind = bool(flags & 1), bool(flags & 2)
        edits.append(MemoryEdit(cursor.text(), address, cursor.block(), cursor.block(), *kind))
    old, new, variables = (tuple(_range(cursor) for _ in range(cursor.count())) for _ in range(3))
    registrations = [Registration(*cursor.take("<QQQQ")) for _ in range(cursor.count() if version > 1 else 0)]
    moves = unpacked(cursor) if version > 3 else ()
    kinds = unpacked_kinds(cursor) if version > 4 else ()
    hooks = tuple(_hook(cursor) for _ in range(cursor.count() if version > 5 else 0))
    if version > 6:
        made = unpacked_made(len(moves), cursor)
        moves = tuple(replace(m, made=rows) for m, rows in zip(moves, made, strict=True))
        made = unpacked_made(len(kinds), cursor)
        kinds = tuple(replace(k, made=rows) for k, rows in zip(kinds, made, strict=True))
    is_named = version > 7
    residents = tuple(_resident(cursor) for _ in range(cursor.count() if is_named else 0))
    layouts = tuple(_layout(cursor) for _ in range(cursor.count() if is_named else 0))
    listings = tuple(Listing(*cursor.take("<6Q")) for _ in range(cursor.count() if version > 8 else 0))
    return Ledger(
        Phase(state), base, size, patch_id, from_id, to_id, from_release, to_release, output, bias,
        (frame_address, frame_size), tuple(parts), tuple(edits), old, new, variables,
        tuple(registrations), version > 1 and bool(registered), moves,
        kinds, hooks, residents, layouts, is_named, listings,
    )  # fmt: skip


def _hook(cursor: Cursor) -> HookEntry:
    kind, address = cursor.take("<IQ")
    return HookEntry(HookKind(kind), cursor.text(), address)


def _resident(cursor: Cursor) -> Resident:
    kind, address, size = cursor.take("<IQQ")
    digest = cursor.raw(32)
    return Resident(BroughtKind(kind), cursor.text(), address, size, digest)


def _layout(cursor: Cursor) -> NewLayout:
    digest = cursor.raw(32)
    return NewLayout(cursor.text(), digest)


def _range(cursor: Cursor) -> CodeRange:
    address, size = cursor.take("<QQ")
    return CodeRange(cursor.text(), address, size)
