"""From a patch object and a process to a plan: all that will be written, and all that must hold before.

Nothing is stopped and nothing written here.  What is fixed after each step:

1. the module the patch is for, by build-id in the target's memory;
2. which earlier patches are there: of this same one, and those whose place it takes;
3. that every replaced function holds the expected bytes (SHA-256);
4. the address of every import;
5. where everything goes, and every relocated byte;
6. the list of edits.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from katana_cc.cpu.native import code as cpu
from katana_cc.elf import constants as c
from katana_cc.errors import InvalidPatchError, RefusedError
from katana_cc.patch.model import PatchObject, Replacement
from katana_cc.patch.needs import Grant, Option, initialisers_of
from katana_cc.process import ledger as ledgers
from katana_cc.process.activity import Guard
from katana_cc.process.draft import edits_room, ledger_of
from katana_cc.process.earlier import Earlier, earlier_patches
from katana_cc.process.identify import find_module
from katana_cc.process.image import with_head
from katana_cc.process.imports import Linker, Resolution, thread_pointer_offset
from katana_cc.process.ledger import CodeRange, Ledger, MemoryEdit
from katana_cc.process.link import DATA, Heritage, Layout, Linked, lay_out, link
from katana_cc.process.modules import Module
from katana_cc.process.moves import followed_by, kinds_of, moves_of, with_functions
from katana_cc.process.permission import refuse_unless_ready
from katana_cc.process.phases import Bytes
from katana_cc.process.place import base_for
from katana_cc.process.replaced import Originals, compare_functions, replaced_guards
from katana_cc.process.standing import WithoutPatches
from katana_cc.process.succession import (
    exchanged,
    guards_of,
    heritage,
    refuse_other_moves,
    standing_bytes,
    with_values,
)
from katana_cc.process.target import PatchMapping, Target
from katana_cc.process.unwinders import Unwinders, unwinders_for


@dataclass(frozen=True, slots=True)
class Plan:
    """What applying a patch to one process comes to.

    `existing` is an earlier mapping of the same patch that is used again: it holds what the plan would write.
    `leaving` are the patches whose place it takes.  `snapshot` holds (address, bytes) that must still be there at the
    commit.  `resolution.pending` resolvers are called when the mapping is made; `image` is final only after that.
    `followed` are the variables that `--follow` names.  `over`: address → section, of functions and constants of the
    patches that leave, which new ones are written over.
    """

    po: PatchObject
    patch_id: str
    module: Module
    resolution: Resolution
    unwinders: Unwinders
    tls_offset: int | None
    layout: Layout
    base: int
    linked: Linked
    ledger: Ledger
    guards: tuple[Guard, ...]
    snapshot: tuple[tuple[int, bytes], ...]
    existing: PatchMapping | None
    found: Bytes
    followed: frozenset[str]
    leaving: tuple[Ledger, ...]
    over: Mapping[int, int]

    @property
    def is_applied(self) -> bool:
        """Whether every edit of this patch is there already."""
        return self.existing is not None and self.found is Bytes.NEW

    @property
    def image(self) -> bytes:
        """The bytes of the mapping, from its base."""
        head = ledgers.encode(self.ledger)
        return head + self.linked.image[len(head) :]

    @property
    def name(self) -> str:
        """What the mapping is called in /proc/PID/maps."""
        identity = self.po.identity
        start = identity.from_release or identity.from_build_id[:12]
        return f"katana:{start}..{identity.to_release or identity.to_build_id[:12]}"

    @property
    def takes_over_moves(self) -> bool:
        """Whether live data has its new layout already, by a patch whose place this one takes."""
        return any(g.moves_data for g in self.leaving)

    def resets(self) -> tuple[tuple[int, bytes], ...]:
        """(address, initial bytes) of the writable part, but for what lives there already."""
        part = self.layout.parts[DATA]
        # What unwinders keep there is theirs.
        start, end = part.offset, min((part.offset + part.size, *self.layout.records))
        kept = sorted(
            (at, at + self.po.sections[n].size)
            for n, address in self.layout.heritage.places.items()
            if start <= (at := address - self.base) < end
        )
        result = []
        for low, high in [*kept, (end, end)]:
            if low > start:
                result.append((self.base + start, self.linked.image[start:low]))
            start = max(start, high)
        return tuple(result)

    def writes(self, target: Target) -> tuple[MemoryEdit, ...]:
        """What is written in the stop where the place of other patches is taken: from the bytes there now."""
        values = (e for e in self.ledger.edits if e.is_value)
        kept = {e.address for g in self.leaving for e in g.edits if e.is_value and e in self.ledger.edits}
        there = [(e, target.memory.read(e.address, len(e.expected))) for e in values if e.address not in kept]
        return (
            *exchanged(target.memory, self.leaving, self.ledger.edits),
            *(dataclasses.replace(e, expected=now) for e, now in there if now != e.replacement),
        )

    def is_same_code(self, target: Target) -> bool:
        """Whether the earlier mapping of this patch holds what we would write now (state and variables aside)."""
        if self.existing is None or self.resolution.pending:
            return False
        image = self.image
        end = next((p.offset for p in self.layout.parts if p.protection & 2), self.layout.size)
        if self.existing.end - self.existing.base != self.layout.size:
            return False
        there = WithoutPatches(target.memory, self.leaving).read(self.base, end)
        # The state and what is registered are not its contents.
        return there[:12] == image[:12] and there[16:56] == image[16:56] and there[64:] == image[64:end]


def prepare(target: Target, po: PatchObject, patch_id: str, granted: Collection[Grant] = ()) -> Plan:
    """Make the plan for one process.

    Raises:
        NotThisBuildError: the build is not there.
        RefusedError: anything else that speaks against it.
        TargetError: the process is gone.
    """
    refuse_unless_ready(po, granted)
    module = find_module(target, po)
    earlier = earlier_patches(target, module, patch_id)
    linker = Linker(target.memory, target.modules, module)
    for existing in earlier.own:
        plan = _prepared(target, po, patch_id, granted, module, linker, earlier, existing)
        # What was whole before its first edit is as it has to be.
        if earlier.found is not Bytes.OLD or plan.is_same_code(target):
            return plan
    return _prepared(target, po, patch_id, granted, module, linker, earlier, None)


def _prepared(
    target: Target, po: PatchObject, patch_id: str, granted: Collection[Grant], module: Module, linker: Linker,
    earlier: Earlier, existing: PatchMapping | None,
) -> Plan:  # fmt: skip
    """The plan that uses an earlier mapping of the patch again, or with a new one."""
    followed = followed_by(po, granted)
    kinds = kinds_of(po, granted)
    originals = compare_functions(target, module, po, earlier)
    unwinders = unwinders_for(po, module, linker)
    resolution = linker.resolve(po)
    program = target.program_module()
    tls_offset = thread_pointer_offset(target.memory, module, program is None or program is module)
    moves = moves_of(po, module.bias, 0, None, None, followed)
    for m in moves:
        if not (module.holds(m.old) and module.holds(m.old + max(m.transformation.old_size, 1) - 1)):
            raise InvalidPatchError(f"the variable {m.name} lies outside the module", where=po.identity.output)
    refuse_other_moves(po, earlier.leaving, moves, kinds, target.where)
    inherited = heritage(po, earlier.leaving, target.where)
    size = len(ledgers.encode(ledger_of(po, patch_id, module, None, 0, (), (), unwinders, moves, kinds)))
    size += edits_room(po, earlier.leaving)
    layout = dataclasses.replace(lay_out(po, size, unwinders.count), heritage=inherited)
    layout = with_head(po, layout)
    base = existing.base if existing else base_for(target.regions, module, layout)
    over = {
        address: section
        for section, address in {**inherited.entries, **_constants(po, inherited)}.items()
        if address != base + layout.sections[section]
    }
    plan = Plan(
        po, patch_id, module, resolution, unwinders, tls_offset, layout, base, Linked(b"", {}),
        ledger_of(po, patch_id, module, layout, base, (), (), unwinders, (), kinds), (), (), existing, earlier.found,
        followed, earlier.leaving, over,
    )  # fmt: skip
    plan = _with_earlier_resolutions(plan, target)
    resolution = plan.resolution
    plan = relink(plan, base, dict.fromkeys((p.index for p in resolution.pending), module.start))
    taken = _taken(po, granted)
    plan = _with_edits(plan, target, originals, earlier, taken)
    _refuse_later_wish(plan, target, taken)
    guards = replaced_guards(po, module, {g.value for g in granted if g.option is Option.ALLOW_ACTIVE}, originals)
    return dataclasses.replace(plan, guards=(*guards, *guards_of(earlier.leaving)))


def _constants(po: PatchObject, inherited: Heritage) -> dict[int, int]:
    return {n: at for n, at in inherited.places.items() if not po.sections[n].flags & c.SHF_WRITE}


def _with_earlier_resolutions(plan: Plan, target: Target) -> Plan:
    """What an earlier mapping of the same patch has in its GOT slots need not be asked of the target again."""
    if plan.existing is None:
        return plan
    found = {
        p.index: int.from_bytes(target.memory.read(plan.base + plan.layout.got[p.index], 8), "little")
        for p in plan.resolution.pending
        if p.index in plan.layout.got
    }
    pending = tuple(p for p in plan.resolution.pending if p.index not in found)
    return dataclasses.replace(plan, resolution=Resolution({**plan.resolution.addresses, **found}, pending))


def relink(plan: Plan, base: int, resolved: dict[int, int]) -> Plan:
    """The same plan at another base, or with IFUNC symbols resolved."""
    addresses = {**plan.resolution.addresses, **resolved}
    linked = link(plan.po, plan.layout, base, plan.module.bias, addresses, plan.tls_offset)
    edits = tuple(
        dataclasses.replace(e, replacement=_over(plan.over[e.address], plan.layout, base, linked, e.address))
        if e.address in plan.over
        else dataclasses.replace(e, replacement=_jump(plan.po, plan.po.replacements[i], plan.layout, base, e.address))
        if e.is_jump
        else e
        for i, e in enumerate(plan.ledger.edits)
    )
    moves = moves_of(plan.po, plan.module.bias, base, plan.layout, linked, plan.followed)
    ledger = ledger_of(
        plan.po, plan.patch_id, plan.module, plan.layout, base, edits, plan.ledger.old, plan.unwinders, moves,
        with_functions(plan.po, plan.ledger.kinds, base, plan.layout),
    )  # fmt: skip
    layout = with_head(plan.po, plan.layout, base, plan.module.bias)
    return dataclasses.replace(plan, layout=layout, base=base, linked=linked, ledger=ledger)


def _taken(po: PatchObject, granted: Collection[Grant]) -> frozenset[str]:
    """The names of variables that are to get their new initial value."""
    asked = {g.value for g in granted if g.option is Option.TAKE_INITIALISER}
    known = initialisers_of(po)
    if unknown := sorted(asked - known):
        offered = f"it has those of {', '.join(sorted(known))}" if known else "it has none"
        raise RefusedError(
            f"{Option.TAKE_INITIALISER}: the patch has no new initial value of {', '.join(unknown)} ({offered})",
            where=po.identity.output,
        )
    return frozenset(e.name for e in po.data_edits if e.is_initialiser and (e.is_taken or e.name in asked))


def _refuse_later_wish(plan: Plan, target: Target, taken: frozenset[str]) -> None:
    """An initial value cannot be taken once the patch is in: what was written there since would be lost unseen."""
    ledger = plan.existing.ledger if plan.existing and plan.found in (Bytes.NEW, Bytes.TORN) else None
    if ledger is not None and (missing := sorted(taken - {e.name for e in ledger.edits if e.is_value})):
        raise RefusedError(
            f"the patch is applied already, without the initial value of {', '.join(missing)}",
            where=target.where,
            remedy=f"revert it first: katana revert --pid {target.pid} {plan.patch_id}",
        )


def _with_edits(
    plan: Plan,
    target: Target,
    originals: Originals,
    earlier: Earlier,
    taken: frozenset[str],
) -> Plan:
    """Add the edits, and the bytes that must still be there at the commit."""
    snapshot = [(address, now) for address, (_, now) in originals.items()]
    snapshot += standing_bytes(target.memory, earlier.leaving)
    without = earlier.without(target)
    edits = []
    for r in plan.po.replacements:
        address = plan.module.bias + r.address
        new = _jump(plan.po, r, plan.layout, plan.base, address)
        edits.append(MemoryEdit(r.name, address, originals[address][0][: len(new)], new, True))
    whole = [
        range(e.address, e.address + plan.po.sections[e.replacement].size)
        for e in plan.po.data_edits
        if e.is_initialiser and e.name in taken
    ]
    for e in plan.po.data_edits:
        # Of what is taken as a whole, single pointers are a part.
        if e.name not in taken if e.is_initialiser else any(e.address in r for r in whole):
            continue
        address = plan.module.bias + e.address
        expected, new = plan.linked.loose[e.expected], plan.linked.loose[e.replacement]
        if len(expected) != len(new):
            raise InvalidPatchError(f"data edit of {e.name} changes its size", where=plan.po.identity.output)
        now = target.memory.read(address, len(expected))
        if e.is_initialiser:
            was = _earlier_value(earlier.own_ledger, e.name)
            snapshot += [] if was else [(address, now)]
            before = _value_before(earlier.leaving, address, now)
            edits.append(was or MemoryEdit(e.name, address, before, new, False, True))
            continue
        if without.read(address, len(expected)) != expected:
            raise RefusedError(
                f"the data {e.name} at {address:#x} is not what the build produced",
                where=target.where,
                remedy="the program or another tool has changed it; restart the process with the new build",
            )
        snapshot.append((address, now))
        if not e.is_condition:
            edits.append(MemoryEdit(e.name, address, expected, new, False))
    for address, section in plan.over.items():
        name = next(b.name for b in plan.po.brought if b.section == section)
        new = _over(section, plan.layout, plan.base, plan.linked, address)
        is_jump = section in plan.layout.heritage.entries
        edits.append(MemoryEdit(name, address, without.read(address, len(new)), new, is_jump))
        snapshot.append((address, target.memory.read(address, len(new))))
    edits = with_values(earlier.leaving, edits)
    _refuse_overlap(edits)
    old = tuple(
        CodeRange(r.name, plan.module.bias + start, size)
        for r in plan.po.replacements
        for start, size in [(r.address, r.size), *((a, s) for a, s, _ in r.parts)]
    )
    ledger = dataclasses.replace(plan.ledger, edits=tuple(edits), old=old)
    if len(ledgers.encode(ledger)) > plan.layout.sections_start:
        raise InvalidPatchError("the ledger is larger than its room", where=plan.po.identity.output)
    return dataclasses.replace(plan, ledger=ledger, snapshot=tuple(snapshot))


def _earlier_value(torn: Ledger | None, name: str) -> MemoryEdit | None:
    """How a variable was given its initial value by a katana that died, or when the patch was applied before."""
    return next((e for e in torn.edits if e.is_value and e.name == name), None) if torn else None


def _value_before(leaving: Sequence[Ledger], address: int, now: bytes) -> bytes:
    """What a variable held before it was given an initial value: an earlier patch's goes with that patch."""
    given = (e for g in leaving for e in g.edits if e.is_value and e.address == address and e.replacement == now)
    return next((e.expected for e in given), now)


def _refuse_overlap(edits: Sequence[MemoryEdit]) -> None:
    ordered = sorted(edits, key=lambda e: e.address)
    for first, second in itertools.pairwise(ordered):
        if first.address + len(first.expected) > second.address:
            raise InvalidPatchError(f"the edits of {first.name} and {second.name} overlap")


def _over(section: int, layout: Layout, base: int, linked: Linked, address: int) -> bytes:
    """What is written at a function or constant of an earlier patch: a jump, or the new contents."""
    if section in layout.heritage.entries:
        return cpu.jump(address, base + layout.sections[section])
    return linked.loose[section]


def _jump(po: PatchObject, replacement: Replacement, layout: Layout, base: int, address: int) -> bytes:
    symbol = po.symbols[replacement.symbol]
    if symbol.section is None or symbol.section not in layout.sections:
        raise InvalidPatchError(f"the replacement of {replacement.name} is not in the patch", where=po.identity.output)
    return cpu.jump(address, base + layout.sections[symbol.section] + symbol.value)
