"""From a patch object and a process to a plan: all that will be written, and all that must hold before.

Nothing is stopped and nothing written here.  What is fixed after each step:

1. the module the patch is for, by build-id in the target's memory;
2. which earlier patches are there, and that none stands in the way;
3. that every replaced function holds the expected bytes (SHA-256);
4. the address of every import;
5. where everything goes, and every relocated byte;
6. the list of edits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from katana_cc.cpu.choice import of
from katana_cc.cpu.native import code as cpu
from katana_cc.elf import constants as c
from katana_cc.errors import InvalidPatchError, RefusedError
from katana_cc.patch.model import PatchObject, Replacement
from katana_cc.patch.needs import Grant, Option, initialisers_of
from katana_cc.process import ledger as ledgers
from katana_cc.process.activity import Guard
from katana_cc.process.image import with_head
from katana_cc.process.imports import Linker, Resolution, thread_pointer_offset
from katana_cc.process.ledger import CodeRange, HookEntry, Ledger, MemoryEdit, Registration
from katana_cc.process.link import CODE, DATA, PAGE, Layout, Linked, group_of, lay_out, link
from katana_cc.process.modules import Module, with_build_id
from katana_cc.process.moves import Kind, Move, entry, followed_by, kinds_of, moves_of, with_functions
from katana_cc.process.objections import half_moved
from katana_cc.process.permission import refuse_if_not_allowable, refuse_unless_ready, why_not_active
from katana_cc.process.phases import Bytes, Phase
from katana_cc.process.place import base_for
from katana_cc.process.target import PatchMapping, Target
from katana_cc.process.unwinders import FrameRegistry, registries_for


class NotThisBuildError(RefusedError):
    """The process does not run the build the patch starts from."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What applying a patch to one process comes to.

    `existing` is an earlier mapping of the same patch that is used again.  `snapshot` holds (address, bytes) that must
    still be there at the commit.  `resolution.pending` resolvers are called when the mapping is made; `image` is final
    only after that.  `followed` are the variables that `--follow` names.
    """

    po: PatchObject
    patch_id: str
    module: Module
    resolution: Resolution
    registries: tuple[FrameRegistry, ...]
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

    def data_part(self) -> tuple[int, bytes] | None:
        """(address, initial bytes) of the writable part, if there is one."""
        part = self.layout.parts[DATA]
        # What unwinders keep there is theirs.
        end = min((part.offset + part.size, *self.layout.records))
        return (self.base + part.offset, self.linked.image[part.offset : end]) if end > part.offset else None


def prepare(target: Target, po: PatchObject, patch_id: str, granted: Collection[Grant] = ()) -> Plan:
    """Make the plan for one process.

    Raises:
        NotThisBuildError: the build is not there.
        RefusedError: anything else that speaks against it.
        TargetError: the process is gone.
    """
    refuse_unless_ready(po, granted)
    followed = followed_by(po, granted)
    kinds = kinds_of(po, granted)
    module = find_module(target, po)
    existing = _earlier_patches(target, module, patch_id)
    found = existing.ledger.found_bytes(target.memory) if existing and existing.ledger else Bytes.OLD
    if found is Bytes.FOREIGN:
        raise RefusedError(
            "this patch was applied, and its jumps were altered since",
            where=target.where,
            remedy="another tool has written to the process; restart it",
        )
    if found is Bytes.TORN and existing and existing.ledger and (existing.ledger.moves or existing.ledger.kinds):
        raise half_moved(target.where, existing.ledger)
    torn = existing.ledger if existing and found in (Bytes.TORN, Bytes.NEW) else None
    originals = _compare_functions(target, module, po, torn)
    linker = Linker(target.memory, target.modules, module)
    registries = registries_for(po, module, linker)
    resolution = linker.resolve(po)
    program = target.program_module()
    tls_offset = thread_pointer_offset(target.memory, module, program is None or program is module)
    moves = moves_of(po, module.bias, 0, None, None, followed)
    for m in moves:
        if not (module.holds(m.old) and module.holds(m.old + max(m.transformation.old_size, 1) - 1)):
            raise InvalidPatchError(f"the variable {m.name} lies outside the module", where=po.identity.output)
    size = len(ledgers.encode(_ledger(po, patch_id, module, None, 0, (), (), registries, moves, kinds)))
    size += _edits_room(po)
    layout = with_head(po, lay_out(po, size, len(registries)))
    base = existing.base if existing else base_for(target.regions, module, layout)
    plan = Plan(
        po, patch_id, module, resolution, registries, tls_offset, layout, base, Linked(b"", {}),
        _ledger(po, patch_id, module, layout, base, (), (), registries, (), kinds), (), (), existing, found, followed,
    )  # fmt: skip
    plan = _with_earlier_resolutions(plan, target)
    resolution = plan.resolution
    plan = relink(plan, base, dict.fromkeys((p.index for p in resolution.pending), module.start))
    taken = _taken(po, granted)
    plan = _with_edits(plan, target, originals, torn, taken)
    _refuse_later_wish(plan, target, taken)
    guards = _guards(po, module, {g.value for g in granted if g.option is Option.ALLOW_ACTIVE}, originals)
    return dataclasses.replace(plan, guards=guards)


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
        dataclasses.replace(e, replacement=_jump(plan.po, plan.po.replacements[i], plan.layout, base, e.address))
        if e.is_jump
        else e
        for i, e in enumerate(plan.ledger.edits)
    )
    moves = moves_of(plan.po, plan.module.bias, base, plan.layout, linked, plan.followed)
    ledger = _ledger(
        plan.po, plan.patch_id, plan.module, plan.layout, base, edits, plan.ledger.old, plan.registries, moves,
        with_functions(plan.po, plan.ledger.kinds, base, plan.layout),
    )  # fmt: skip
    layout = with_head(plan.po, plan.layout, base, plan.module.bias)
    return dataclasses.replace(plan, layout=layout, base=base, linked=linked, ledger=ledger)


def find_module(target: Target, po: PatchObject) -> Module:
    """The one module that is the build the patch starts from."""
    found = list(with_build_id(target.modules, po.identity.from_build_id))
    if len(found) == 1:
        return found[0]
    if found:
        raise RefusedError(
            f"{found[0].path} is loaded {len(found)} times (dlmopen)",
            where=target.where,
            remedy="restart the process with the new build",
        )
    newer = any(m.build_id == po.identity.to_build_id for m in target.modules)
    remedy = "it runs the new build already" if newer else "see `katana status --pid` for the builds it runs"
    raise NotThisBuildError(
        f"does not run {po.identity.output} with build-id {po.identity.from_build_id}",
        where=target.where,
        remedy=remedy,
    )


def _earlier_patches(target: Target, module: Module, patch_id: str) -> PatchMapping | None:
    """The mapping of this same patch, if any; refuses when another patch of the module is in force."""
    same = None
    for mapping in target.patches:
        ledger = mapping.ledger
        if ledger is None or ledger.bias != module.bias or ledger.from_build_id != module.build_id:
            continue
        found = ledger.found_bytes(target.memory)
        if ledger.patch_id == patch_id:
            if same is None or found is not Bytes.OLD:
                same = mapping
        elif found is not Bytes.OLD:
            to = ledger.to_release or ledger.to_build_id[:12]
            raise RefusedError(
                f"already carries another patch of {ledger.output}: {ledger.patch_id} (to {to}), {found.value}",
                where=target.where,
                remedy=f"revert first: katana revert --pid {target.pid} {ledger.patch_id}",
            )
    return same


def _compare_functions(
    target: Target, module: Module, po: PatchObject, torn: Ledger | None
) -> dict[int, tuple[bytes, bytes]]:
    """Address → (expected bytes, bytes there now) of all replaced functions and parts; refuses when they differ.  Where
    our own earlier edits stand, the bytes they replaced are taken."""
    result = {}
    for replacement in po.replacements:
        if replacement.size < cpu.JUMP_SIZE:
            raise RefusedError(
                f"{replacement.name} is {replacement.size} bytes long, too short for a jump",
                where=po.identity.output,
                remedy="restart the process with the new build",
            )
        ranges = [(replacement.address, replacement.size, replacement.digest), *replacement.parts]
        for link_time, size, digest in ranges:
            address = module.bias + link_time
            if not (module.holds(address) and module.holds(address + size - 1)):
                raise InvalidPatchError(f"{replacement.name} lies outside the module", where=po.identity.output)
            now = target.memory.read(address, size)
            was = bytearray(now)
            for edit in torn.edits if torn else ():
                if edit.is_jump and address <= edit.address < address + size:
                    at = edit.address - address
                    was[at : at + len(edit.expected)] = edit.expected
            if hashlib.sha256(was).digest() != digest:
                raise RefusedError(
                    f"the code of {replacement.name} at {address:#x} is not what the build produced",
                    where=target.where,
                    remedy="a breakpoint, a probe or another patcher has altered it; remove that, or restart",
                )
            result[address] = (bytes(was), now)
    return result


def _guards(
    po: PatchObject, module: Module, allowed: set[str], originals: dict[int, tuple[bytes, bytes]]
) -> tuple[Guard, ...]:
    unknown = allowed - {r.name for r in po.replacements}
    if unknown:
        raise RefusedError(
            f"--allow-active: the patch does not replace {', '.join(sorted(unknown))}", where=po.identity.output
        )
    guards = []
    for number, r in enumerate(po.replacements):
        address = module.bias + r.address
        is_allowed = r.name in allowed
        why_not = why_not_active(po, number, module.bias, originals)
        if is_allowed:
            refuse_if_not_allowable(po, r.name, why_not)
        guards.append(Guard(r.name, address, r.size, True, is_allowed, not why_not))
        for part, size, _ in r.parts:
            # A part has no jump: all of it must be empty, unless the whole function is allowed to go on as it was.
            if not is_allowed:
                guards.append(Guard(r.name, module.bias + part, size, False))
    return tuple(guards)


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
    originals: dict[int, tuple[bytes, bytes]],
    torn: Ledger | None,
    taken: frozenset[str],
) -> Plan:
    """Add the edits, and the bytes that must still be there at the commit."""
    snapshot = [(address, now) for address, (_, now) in originals.items()]
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
            was = _earlier_value(torn, e.name)
            snapshot += [] if was else [(address, now)]
            edits.append(was or MemoryEdit(e.name, address, now, new, False, True))
            continue
        mixed = torn is not None and all(n in pair for n, *pair in zip(now, expected, new, strict=True))
        if now != expected and not mixed:
            raise RefusedError(
                f"the data {e.name} at {address:#x} is not what the build produced",
                where=target.where,
                remedy="the program or another tool has changed it; restart the process with the new build",
            )
        snapshot.append((address, now))
        if not e.is_condition:
            edits.append(MemoryEdit(e.name, address, expected, new, False))
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


def _refuse_overlap(edits: Sequence[MemoryEdit]) -> None:
    ordered = sorted(edits, key=lambda e: e.address)
    for first, second in itertools.pairwise(ordered):
        if first.address + len(first.expected) > second.address:
            raise InvalidPatchError(f"the edits of {first.name} and {second.name} overlap")


def _jump(po: PatchObject, replacement: Replacement, layout: Layout, base: int, address: int) -> bytes:
    symbol = po.symbols[replacement.symbol]
    if symbol.section is None or symbol.section not in layout.sections:
        raise InvalidPatchError(f"the replacement of {replacement.name} is not in the patch", where=po.identity.output)
    return cpu.jump(address, base + layout.sections[symbol.section] + symbol.value)


def _ledger(
    po: PatchObject, patch_id: str, module: Module, layout: Layout | None, base: int,
    edits: tuple[MemoryEdit, ...], old: tuple[CodeRange, ...], registries: tuple[FrameRegistry, ...],
    moves: tuple[Move, ...] = (), kinds: tuple[Kind, ...] = (),
) -> Ledger:  # fmt: skip
    new, data = [], []
    for i, section in enumerate(po.sections):
        if layout is None or i not in layout.sections or section.name == ".eh_frame":
            continue
        group = group_of(section)
        item = CodeRange(_name_of(po, i), base + layout.sections[i], section.size)
        if group == CODE:
            new.append(item)
        elif group == DATA:
            data.append(item)
    if layout is not None:
        # Stubs and veneers are code too: a thread may be between two of their instructions.
        new.extend(CodeRange("import stub", base + at, cpu.STUB_SIZE) for at in layout.stubs.values())
        new.extend(CodeRange("veneer", base + at, cpu.VENEER_SIZE) for at in layout.veneers.values())
    identity = po.identity
    return Ledger(
        Phase.MAPPED, base, layout.size if layout else 0, patch_id,
        identity.from_build_id, identity.to_build_id, identity.from_release, identity.to_release, identity.output,
        module.bias, (base + layout.eh_frame[0], layout.eh_frame[1]) if layout else (0, 0),
        tuple((base + p.offset, p.size, p.protection) for p in layout.parts) if layout else (),
        edits, old, tuple(new), tuple(data),
        tuple(Registration(*r, base + (layout.records[n] if layout else 0)) for n, r in enumerate(registries)),
        moves=moves, kinds=kinds,
        hooks=tuple(HookEntry(h.kind, h.name, entry(po, h.symbol, layout, base)) for h in po.hooks),
    )  # fmt: skip


def _name_of(po: PatchObject, section: int) -> str:
    """What a carried section is called: its function or variable, as far as a symbol says."""
    named = [s for s in po.symbols if s.section == section and s.name and s.type in (c.STT_FUNC, c.STT_OBJECT)]
    return max(named, key=lambda s: s.size).name if named else po.sections[section].name


def _edits_room(po: PatchObject) -> int:
    """An upper bound of what edits and ranges add to an empty ledger."""
    every = [s.name for s in po.sections] + [s.name for s in po.symbols]
    names = sum(len(name.encode("utf-8", "surrogateescape")) + 20 for name in every)
    for r in po.replacements:
        name = len(r.name.encode("utf-8", "surrogateescape"))
        names += (name + 20) * (2 + len(r.parts)) + 12 + 2 * cpu.JUMP_SIZE
    for e in po.data_edits:
        names += len(e.name.encode("utf-8", "surrogateescape")) + 24 + 2 * po.sections[e.expected].size
    relocations = sum(len(s.relocations) for s in po.sections if s.flags & c.SHF_ALLOC)
    stubs = min(relocations, len(po.symbols))
    direct = of(po.identity.machine).relocations.DIRECT
    veneers = sum(1 for s in po.sections for r in s.relocations if r.type in direct and s.flags & c.SHF_EXECINSTR)
    return names + 40 * stubs + 40 * veneers + 3 * 24 + PAGE // 4
