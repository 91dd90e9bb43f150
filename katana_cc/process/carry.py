"""Variables that move, looked at: what would be written, and what would not.

    objects and what they point from    one bulk read
    losses                              a value that the other layout cannot hold
    words                               all memory, registers and stacks (`katana_cc.process.words`, `follow`)
    cargo                               the new objects' bytes, the words and registers to rewrite

The same is asked twice: before the stop, to refuse early and for a dry run, when threads run on and registers and most
stacks are not known; and in the stop, where the answer counts.  Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from katana_cc.errors import TargetError
from katana_cc.process.ahead import Ahead, AheadSight
from katana_cc.process.follow import (
    Edited,
    Finding,
    Lead,
    Leads,
    Passage,
    elsewhere,
    held_by,
    put,
    spared,
)
from katana_cc.process.kernel import KernelWord
from katana_cc.process.ledger import MemoryEdit
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.objects import Cargo as ObjectCargo
from katana_cc.process.objects import Objects, Sight
from katana_cc.process.registers import RegisterWord
from katana_cc.process.remembered import Remembered
from katana_cc.process.watch import Watch
from katana_cc.process.words import WORD, Pages, Seeker, to_search
from katana_cc.transform.execute import apply
from katana_cc.transform.losses import LossKind, losses


@dataclass(frozen=True, slots=True)
class Carry:
    """The variables of one process that move, and what is needed to look at them; a value.

    `edits` are what is exchanged along with it; `module` (start, end) is the patched one; `own` is the mapping of the
    patch, where nothing that lives points anywhere but by the types of the variables in it; `where` and `retry` are
    for errors: the process, and how to try again with an option.  `objects` are those on the heap, None where none
    gets a new layout.  `deniable` are types whose objects need not be looked for, if it is stated that there are none.
    """

    passages: tuple[Passage, ...]
    edits: tuple[MemoryEdit, ...]
    own: tuple[int, int]
    module: tuple[int, int]
    where: str
    retry: str
    objects: Objects | None = None
    deniable: tuple[str, ...] = ()
    leads: Leads = field(init=False)
    edited: Edited = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "leads", Leads(self.passages))
        object.__setattr__(self, "edited", Edited((e.address, e.address + len(e.expected)) for e in self.edits))


@dataclass(frozen=True, slots=True)
class Stray:
    """A word or register that nothing explains.  `place`: where it is, for a person; `can_follow`: it could be
    rewritten; `is_passing`: a register or a live stack, which may hold something else in a moment."""

    place: str
    address: int | None
    lead: Lead
    can_follow: bool
    is_passing: bool


@dataclass(frozen=True, slots=True)
class Cargo:
    """What a look at the variables came to.

    `objects`: (address, bytes) of whole objects to write; `words`: (address, bytes there now, bytes to write);
    `registers`: what each is to hold.  `live`: what each passage's object holds, in their order.  `followed`: what was
    rewritten, by its type or because somebody said so; `strays`: what is not.  `lost`: sentences, of values that
    cannot be carried over; `broken`: sentences, of typed pointers that lead nowhere then; `dropped`: (variable,
    sentence) of values whose field the new build does not have.  `discardable`: the variables that would have to lose
    such values, where that is all that is lost.  `heap`: what comes of objects on the heap, None where none is looked
    for; `leads` tells where words lead, into these too.
    """

    objects: tuple[tuple[int, bytes], ...]
    words: tuple[tuple[int, bytes, bytes], ...]
    registers: tuple[tuple[RegisterWord, int], ...]
    live: tuple[bytes, ...]
    followed: tuple[Finding, ...]
    strays: tuple[Stray, ...]
    lost: tuple[str, ...]
    broken: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    discardable: tuple[str, ...]
    heap: ObjectCargo | None = None
    leads: Leads | None = None


def look(
    carry: Carry,
    bulk: BulkReader,
    regions: MemoryMap,
    stacks: Sequence[tuple[int, int]],
    registers: Callable[[Seeker], Iterable[RegisterWord]],
    kernel: Iterable[KernelWord],
    pages: Pages,
    watch: Watch | None = None,
    ahead: Ahead | None = None,
    *,
    is_stopped: bool,
) -> Cargo:
    """Read the variables, and the objects on the heap, and search for words that lead into them.

    Args:
        stacks: as of `Finder.lowest`, of the threads of which it is known.
        registers: gives those that lead into what moves.
        kernel: what the kernel keeps for the process (`katana_cc.process.kernel.kept`).
        pages: of the process.
        watch: what was searched before; None: everything is searched.
        ahead: objects on the heap that were looked at before; None: all of them are looked for.
        is_stopped: every thread is, and its stack pointer known.

    Raises:
        TargetError: the process is gone.
        BusyError, RefusedError: as of `Objects.look`.
        UnrepairableError: as of `Ahead.look`.
    """
    try:
        live, objects = _read(carry, bulk)
        sight: Sight | AheadSight | None = None
        leads: Leads = carry.leads
        more: Sequence[tuple[int, int]] = ()
        if ahead is not None:
            sight = ahead.look(regions, live)
            leads, more = sight.leads, ahead.fresh_ranges()
        elif carry.objects is not None:
            sight = carry.objects.look(carry.passages, live, bulk, regions, carry.edited, is_stopped=is_stopped)
            leads = sight.leads
        findings = [
            f for p, data in zip(carry.passages, live, strict=True) for f in held_by(p, data, leads, carry.edited)
        ]
        holes = [carry.own, *spared(carry.passages)]
        if sight is not None:
            findings += sight.findings(carry.edited)
            holes += sight.holes
        vectors = to_search(_beside(carry, regions), holes, stacks, pages.touched, pages.written)
        found = leads.seeker.in_memory(bulk, vectors) if watch is None else watch.words(vectors, leads.seeker, more)
        findings += elsewhere(found, leads, carry.edited)
    except OSError as error:
        raise TargetError(f"the process cannot be read: {error.strerror}", where=carry.where) from None
    strays: list[Stray] = []
    followed: list[Finding] = []
    broken: list[str] = []
    words: list[tuple[int, bytes, bytes]] = []
    for f in findings:
        if f.lead.moved == f.word.value:
            continue  # an object that stays in its block, and where it begins
        if f.is_explained and f.holder is not None and f.lead.moved is None:
            broken.append(f"{f.holder.named(f.field)} points to {f.lead} ({f.lead.depth}), and {NOWHERE}")
            continue
        change = _change(f, regions)
        if change is None or not (f.is_explained or f.lead.passage.is_followed):
            strays.append(_stray(f, regions, stacks, is_stopped))
            continue
        followed.append(f)
        if not put(objects, carry.passages, *change):
            address, value = change
            words.append((address, f.word.value.to_bytes(WORD, "little"), value.to_bytes(WORD, "little")))
    moved_registers = []
    for register in registers(leads.seeker):
        lead = leads.of(register.value)
        if lead.moved == register.value:
            continue
        if lead.moved is None or register.is_argument_kept or not lead.passage.is_followed:
            can = lead.moved is not None and not register.is_argument_kept
            strays.append(Stray(f"thread {register.tid}, {register.name}", None, lead, can, True))
        else:
            moved_registers.append((register, lead.moved))
    kept = [(word, leads.of(word.value)) for word in kernel if leads.seeker.leads(word.value)]
    strays += [Stray(word.place, None, lead, False, False) for word, lead in kept if lead.moved != word.value]
    lost, dropped, discardable = _losses(carry, live)
    made = sight.cargo.converted if sight is not None else None
    if made is not None:
        only_dropped = (not lost or discardable) and (not made.lost or made.discardable)
        discardable = (*discardable, *made.discardable) if only_dropped else ()
        lost, dropped = [*lost, *made.lost], [*dropped, *made.dropped]
    return Cargo(
        tuple((address, bytes(data)) for address, data in objects.items()),
        tuple(words),
        tuple(moved_registers),
        tuple(live),
        tuple(followed),
        tuple(strays),
        tuple(lost),
        tuple(broken),
        tuple(dropped),
        discardable,
        sight.cargo if sight is not None else None,
        leads,
    )


def read_contents(carry: Carry, bulk: BulkReader) -> list[bytes]:
    """What each variable holds.

    Raises:
        TargetError: the process is gone.
    """
    try:
        return _read(carry, bulk)[0]
    except OSError as error:
        raise TargetError(f"the process cannot be read: {error.strerror}", where=carry.where) from None


def search_ahead(carry: Carry, regions: MemoryMap, pages: Pages, watch: Watch, ahead: Ahead | None) -> None:
    """Search all memory for words that lead to what moves, so that a look in the stop searches what changed only.

    Raises:
        TargetError: the process is gone.
    """
    holes = [carry.own, *spared(carry.passages), *(ahead.holes if ahead is not None else ())]
    seeker = carry.leads.seeker if ahead is None else ahead.leads.seeker
    try:
        watch.words(to_search(_beside(carry, regions), holes, (), pages.touched, pages.written), seeker)
        watch.settle(seeker)
    except OSError as error:
        raise TargetError(f"the process cannot be read: {error.strerror}", where=carry.where) from None


_ROOM: Final = 64 << 20  # bytes
_made = Remembered(lambda t, live, initial: apply(t, live, initial or b""), _ROOM)
_lost = Remembered(losses, _ROOM)
NOWHERE = "nothing says where that is in the new layout"


def _beside(carry: Carry, regions: MemoryMap) -> MemoryMap:
    """The memory map without the read-only parts of the patched module: of these the patch knows, as of its code."""
    start, end = carry.module
    return MemoryMap(tuple(r for r in regions.regions if r.permissions.startswith("rw") or not start <= r.start < end))


def _read(carry: Carry, bulk: BulkReader) -> tuple[list[bytes], dict[int, bytearray]]:
    """(what each variable holds, destination → what the object there is to hold)."""
    wanted = [(p.source, p.transformation.old_size) for p in carry.passages]
    there = [p for p in carry.passages if p.initial is None and not p.stays]
    wanted += [(p.destination, p.transformation.new_size) for p in there]
    data = bytes(bulk.read(wanted))
    parts, at = [], 0
    for _, size in wanted:
        parts.append(data[at : at + size])
        at += size
    live = parts[: len(carry.passages)]
    begun = dict(zip((p.destination for p in there), parts[len(live) :], strict=True))
    objects = {}
    for p, content in zip(carry.passages, live, strict=True):
        if not p.stays:
            initial = begun[p.destination] if p.initial is None else p.initial
            objects[p.destination] = bytearray(_made(p.transformation, content, initial))
    return live, objects


def _losses(carry: Carry, live: Sequence[bytes]) -> tuple[list[str], list[tuple[str, str]], tuple[str, ...]]:
    """(what is lost, what is dropped, the variables of which may be discarded what they lose)."""
    lost: list[str] = []
    dropped: list[tuple[str, str]] = []
    kinds: dict[str, set[LossKind]] = {}
    for p, content in zip(carry.passages, live, strict=True):
        for loss in _lost(p.transformation, content, p.usual) if not p.stays else ():
            if loss.kind is LossKind.DROPPED and p.made:
                continue
            if loss.kind is LossKind.DROPPED and p.may_drop:
                dropped.append((p.name, loss.text))
            else:
                lost.append(f"{p.name}: {loss.text}")
                kinds.setdefault(p.name, set()).add(loss.kind)
    only_dropped = all(found == {LossKind.DROPPED} for found in kinds.values())
    return lost, dropped, tuple(kinds) if only_dropped else ()


def _change(f: Finding, regions: MemoryMap) -> tuple[int, int] | None:
    """(where, what) to write so that a word leads into the new object; None where that cannot be: it means nothing
    there, or other processes read it too."""
    if f.lead.moved is None or f.new_address is None:
        return None
    region = regions.at(f.word.address)
    is_own = f.holder is not None or (region is not None and region.permissions.endswith("p"))
    return (f.new_address, f.lead.moved) if is_own else None


def _stray(f: Finding, regions: MemoryMap, stacks: Sequence[tuple[int, int]], is_stopped: bool) -> Stray:
    can = _change(f, regions) is not None
    if f.holder is not None:
        return Stray(f"{f.word.address:#x} in {f.holder.named(f.field)}", f.word.address, f.lead, can, False)
    region = regions.at(f.word.address)
    owner = next((tid for tid, pointer in stacks if region is not None and region.start <= pointer < region.end), None)
    if owner is not None:
        return Stray(f"{f.word.address:#x} on the stack of thread {owner}", f.word.address, f.lead, can, True)
    path = region.path if region is not None else ""
    is_shared = region is not None and region.permissions.endswith("s")
    place = f"{path or 'anonymous memory'}{', shared with others' if is_shared else ''}"
    may_be_stack = path == "[stack]" or (not is_stopped and region is not None and regions.is_guarded(region))
    return Stray(f"{f.word.address:#x} in {place}", f.word.address, f.lead, can, may_be_stack)
