"""One patch taking the place of another in a process: what it takes over, and what is written for it.

Theory of operation.  Both patches start from the build that the process was started from.  The new one is planned on
memory as it would be without the old one (`standing.WithoutPatches`), and written over it in one stop:

    bytes           that only the old patch edits become the original, that the new one edits its own
    variables       that the old patch brought, and the new one too, stay where they are with what they hold: the new
                    code is linked to that place
    functions       that both bring keep their address, where pointers may lead that the program has stored: a jump
                    there leads to the new code, and the new code means that address by the function's
    constants       the same: their contents are exchanged in place; of another size they are made anew, as any constant
    all else        of the old patch is left to itself: its mapping stays, as after a revert

The ledgers of both tell it.  Each has edits of its own from the original to its own bytes, the jumps and constants in
the old mapping among those of the new one; so each byte has three values, and each ledger by itself tells how to get
back to the original.  Taking the new patch out gives the build that the process was started from, not the old patch.

It is refused where it cannot be told what a thing of the old patch is, or where data would have to change its layout
from what only the old patch knows: then the old one has to be taken out first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from katana_cc.errors import RefusedError
from katana_cc.patch.model import UNKNOWN, Brought, BroughtKind, PatchObject
from katana_cc.process.activity import Guard
from katana_cc.process.ledger import Ledger, MemoryEdit, Resident
from katana_cc.process.link import NOTHING_INHERITED, Heritage
from katana_cc.process.memory import Reader
from katana_cc.process.moves import Kind, Move, same_moves
from katana_cc.process.standing import new_bytes, originals, read_bytes, runs


def heritage(po: PatchObject, leaving: Sequence[Ledger], where: str) -> Heritage:
    """What a patch takes over from those that are in force.

    Raises:
        RefusedError: it cannot be told, or a variable would have to change; with what to do.
    """
    for ledger in leaving:
        if why := _unnamed(ledger):
            raise _refusal(where, ledger, why)
    residents = {r.name: r for ledger in leaving for r in ledger.residents}
    places: dict[int, int] = {}
    entries: dict[int, int] = {}
    met = set()
    for b in po.brought:
        r = residents.get(b.name)
        if r is None:
            continue
        met.add(b.name)
        if why := _why_not_one(po, b, r):
            raise _refusal(where, leaving[-1], why)
        if b.kind is BroughtKind.FUNCTION:
            entries[b.section] = r.address
        elif r.size == po.sections[b.section].size:
            places[b.section] = r.address
    lone = {_plain(name): r for name, r in residents.items() if name not in met}
    for b in po.brought:
        other = lone.get(_plain(b.name)) if b.name not in met else None
        if other is not None:
            raise _refusal(
                where, leaving[-1], f"it cannot be told whether {b.name} is {other.name}, which that patch brought"
            )
    _refuse_other_layouts(po, leaving, where)
    return Heritage(places, entries)


def _unnamed(ledger: Ledger) -> str:
    """Why it cannot be told what a patch brought; empty when it can."""
    if not ledger.is_named:
        return "an earlier katana applied it, which did not note what things came with it"
    known = {r.address for r in ledger.residents}
    lone = next((d.name for d in ledger.data if d.address not in known), None)
    return f"it brought the variable {lone}, and does not tell which one that is" if lone is not None else ""


def _why_not_one(po: PatchObject, b: Brought, r: Resident) -> str:
    """Why the new patch cannot go on with a thing of the old one that has its name; empty when it can."""
    if b.kind is not r.kind:
        return f"{b.name}, which that patch brought, was a {r.kind.word} and is a {b.kind.word} now"
    if UNKNOWN in (b.digest, r.digest):
        return f"it cannot be told whether the {b.kind.word} {b.name} is the one that that patch brought"
    if b.kind is BroughtKind.VARIABLE and (b.digest != r.digest or r.size != po.sections[b.section].size):
        return f"the variable {b.name}, which that patch brought, is of another type now, and holds a live value"
    if b.kind is not BroughtKind.FUNCTION and r.address % max(po.sections[b.section].alignment, 1):
        return f"{b.name}, which that patch brought, has another alignment now"
    return ""


def _plain(name: str) -> str:
    """The name as declared."""
    return name.rpartition(": ")[2].rpartition("::")[2]


def _refuse_other_layouts(po: PatchObject, leaving: Sequence[Ledger], where: str) -> None:
    """Objects may live that the old patch's code laid out."""
    known: dict[str, set[bytes]] = {}
    for layout in po.layouts:
        known.setdefault(layout.name, set()).add(layout.digest)
    for ledger in leaving:
        theirs: dict[str, set[bytes]] = {}
        for layout in ledger.layouts:
            theirs.setdefault(layout.name, set()).add(layout.digest)
        for name, digests in theirs.items():
            if name in known and digests != known[name]:
                raise _refusal(where, ledger, f"{name} is laid out otherwise now than by that patch")


def refuse_other_moves(
    po: PatchObject, leaving: Iterable[Ledger], moves: Sequence[Move], kinds: Sequence[Kind], where: str
) -> None:
    """Raises RefusedError where live data would have to change from a layout that only an earlier patch knows, or where
    it gets a new layout while things of the earlier patch may lead there or go on running."""
    for ledger in leaving:
        if ledger.moves_data and not same_moves(ledger.moves, ledger.kinds, moves, kinds):
            raise _refusal(where, ledger, f"it gave {_moved(ledger.moves, ledger.kinds)} another layout")
        if ledger.moves_data or not (moves or kinds):
            continue
        data = next((e.name for e in ledger.fixed if not e.is_jump), None)
        if data is not None:
            what = f"{_moved(moves, kinds)} would get another layout, and what it was before that patch edited {data}"
            raise _refusal(where, ledger, f"{what} may lead there")
        names = {b.name for b in po.brought}
        for r in ledger.residents:
            if r.kind is BroughtKind.VARIABLE or r.name not in names:
                what = f"{_moved(moves, kinds)} would get another layout, and the {r.kind.word} {r.name} of that patch"
                raise _refusal(where, ledger, f"{what} may lead there")


def _moved(moves: Iterable[Move], kinds: Iterable[Kind]) -> str:
    names = [m.name for m in moves if not m.stays] + [k.name for k in kinds if not k.stays]
    return ", ".join(sorted(names)) or "live data"


def _refusal(where: str, ledger: Ledger, why: str) -> RefusedError:
    to = ledger.to_release or ledger.to_build_id[:12]
    return RefusedError(
        f"cannot take the place of patch {ledger.patch_id} (to {to}): {why}",
        where=where,
        remedy=f"take that patch out first (katana revert {ledger.patch_id}; what it brought begins anew), or restart "
        "the process with the new build",
    )


def residents_of(
    po: PatchObject, base: int, sections: Mapping[int, int], inherited: Heritage = NOTHING_INHERITED
) -> tuple[Resident, ...]:
    """What comes with a patch and has a name, and where it lives.

    Args:
        base: address of the mapping.
        sections: section → offset from the base; empty while only the sizes are of interest.
    """
    homes = {n: base + at for n, at in sections.items()} | {**inherited.places, **inherited.entries}
    return tuple(
        Resident(b.kind, b.name, homes.get(b.section, 0), po.sections[b.section].size, b.digest) for b in po.brought
    )


def exchanged(memory: Reader, leaving: Sequence[Ledger], entering: Sequence[MemoryEdit]) -> tuple[MemoryEdit, ...]:
    """What is written where a patch takes the place of others: from the bytes there now to what they become.

    An edit is written as a whole, though some of its bytes may stay: a katana that is killed between two writes must
    not leave a jump half of which leads to the one patch and half to the other.

    Args:
        entering: the edits of the new patch; none: the original comes back.
    """
    fixed = [e for e in entering if not e.is_value]
    final = originals(leaving) | new_bytes(fixed)
    there = read_bytes(memory, final)
    every_edit = [*(x for g in leaving for x in g.fixed), *fixed]
    names = {e.address + i: e for e in every_edit for i in range(len(e.expected))}
    spans = [range(e.address, e.address + len(e.expected)) for e in every_edit]
    changed = {at for span in spans if any(final[at] != there[at] for at in span) for at in span}
    result = []
    for start, size in runs(changed):
        every = range(start, start + size)
        of = names[start]
        result.append(
            MemoryEdit(of.name, start, bytes(there[at] for at in every), bytes(final[at] for at in every), of.is_jump)
        )
    return tuple(result)


def left_behind(leaving: Iterable[Ledger], entering: Ledger) -> list[str]:
    """The variables that came with patches that leave, and of which the new one has none: by name."""
    kept = {r.name for r in entering.residents}
    every = (r for g in leaving for r in g.residents)
    return [r.name for r in every if r.kind is BroughtKind.VARIABLE and r.name not in kept]


def standing_bytes(memory: Reader, leaving: Iterable[Ledger]) -> Iterator[tuple[int, bytes]]:
    """(address, bytes now) of all that these patches edit: it must still be there in the stop."""
    for start, size in runs(originals(leaving)):
        yield start, memory.read(start, size)


def guards_of(leaving: Iterable[Ledger]) -> Iterator[Guard]:
    """Where no thread may be while these patches are taken out: in their code, and behind the first byte of a jump."""
    for ledger in leaving:
        for r in ledger.new:
            if r.size:
                yield Guard(r.name, r.address, r.size, False)
        for e in ledger.edits:
            if e.is_jump:
                yield Guard(e.name, e.address, len(e.replacement) - 1, True)


def with_values(leaving: Sequence[Ledger], own: Sequence[MemoryEdit]) -> list[MemoryEdit]:
    """The edits of the new patch, with the initial values that the old ones gave variables: these stay, and go with the
    new patch when it is reverted."""
    taken = {e.address for e in own if e.is_value}
    kept = {e.address: e for g in leaving for e in g.edits if e.is_value and e.address not in taken}
    return [*own, *kept.values()]
