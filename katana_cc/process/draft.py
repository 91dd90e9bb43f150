"""The ledger of a patch in the making, and how much room it will need: placed before its edits are known."""

from __future__ import annotations

from collections.abc import Iterable

from katana_cc.cpu.choice import of
from katana_cc.cpu.native import code as cpu
from katana_cc.elf import constants as c
from katana_cc.patch.model import BroughtKind, PatchObject
from katana_cc.process.ledger import CodeRange, HookEntry, Ledger, Listing, MemoryEdit, Registration
from katana_cc.process.link import CODE, DATA, PAGE, Layout, group_of
from katana_cc.process.modules import Module
from katana_cc.process.moves import Kind, Move, entry
from katana_cc.process.phases import Phase
from katana_cc.process.succession import residents_of
from katana_cc.process.unwinders import Unwinders


def ledger_of(
    po: PatchObject, patch_id: str, module: Module, layout: Layout | None, base: int,
    edits: tuple[MemoryEdit, ...], old: tuple[CodeRange, ...], unwinders: Unwinders,
    moves: tuple[Move, ...] = (), kinds: tuple[Kind, ...] = (),
) -> Ledger:  # fmt: skip
    """The ledger, as it is before the commit; without `layout` one of the same size but for edits and ranges."""
    new, data = [], []
    for i, section in enumerate(po.sections):
        if layout is None or i not in layout.sections or section.name == ".eh_frame":
            continue
        group = group_of(section)
        at = layout.heritage.places.get(i, base + layout.sections[i])
        item = CodeRange(_name_of(po, i), at, section.size)
        if group == CODE:
            new.append(item)
        elif group == DATA:
            data.append(item)
    if layout is not None:
        # Stubs and veneers are code too: a thread may be between two of their instructions.
        new.extend(CodeRange("import stub", base + at, cpu.STUB_SIZE) for at in layout.stubs.values())
        new.extend(CodeRange("veneer", base + at, cpu.VENEER_SIZE) for at in layout.veneers.values())
    identity = po.identity
    records = [base + at for at in layout.records] if layout else [0] * unwinders.count
    return Ledger(
        Phase.MAPPED, base, layout.size if layout else 0, patch_id,
        identity.from_build_id, identity.to_build_id, identity.from_release, identity.to_release, identity.output,
        module.bias, (base + layout.eh_frame[0], layout.eh_frame[1]) if layout else (0, 0),
        tuple((base + p.offset, p.size, p.protection) for p in layout.parts) if layout else (),
        edits, old, tuple(new), tuple(data),
        tuple(Registration(*r, at) for r, at in zip(unwinders.registries, records, strict=False)),
        moves=moves, kinds=kinds,
        hooks=tuple(HookEntry(h.kind, h.name, entry(po, h.symbol, layout, base)) for h in po.hooks),
        residents=residents_of(po, base, layout.sections, layout.heritage) if layout else residents_of(po, 0, {}),
        layouts=po.layouts,
        listings=tuple(
            Listing(*x, at) for x, at in zip(unwinders.lists, records[len(unwinders.registries) :], strict=True)
        ),
    )  # fmt: skip


def _name_of(po: PatchObject, section: int) -> str:
    """What a carried section is called: its function or variable, as far as a symbol says."""
    named = [s for s in po.symbols if s.section == section and s.name and s.type in (c.STT_FUNC, c.STT_OBJECT)]
    return max(named, key=lambda s: s.size).name if named else po.sections[section].name


def edits_room(po: PatchObject, leaving: Iterable[Ledger]) -> int:
    """An upper bound of what edits and ranges add to an empty ledger."""
    every = [s.name for s in po.sections] + [s.name for s in po.symbols]
    names = sum(len(name.encode("utf-8", "surrogateescape")) + 20 for name in every)
    for r in po.replacements:
        name = len(r.name.encode("utf-8", "surrogateescape"))
        names += (name + 20) * (2 + len(r.parts)) + 12 + 2 * cpu.JUMP_SIZE
    for e in po.data_edits:
        names += len(e.name.encode("utf-8", "surrogateescape")) + 24 + 2 * po.sections[e.expected].size
    for b in po.brought:
        size = cpu.JUMP_SIZE if b.kind is BroughtKind.FUNCTION else po.sections[b.section].size
        names += len(b.name.encode("utf-8", "surrogateescape")) + 24 + 2 * size
    for g in leaving:
        values = (e for e in g.edits if e.is_value)
        names += sum(len(e.name.encode("utf-8", "surrogateescape")) + 24 + 2 * len(e.expected) for e in values)
    relocations = sum(len(s.relocations) for s in po.sections if s.flags & c.SHF_ALLOC)
    stubs = min(relocations, len(po.symbols))
    direct = of(po.identity.machine).relocations.DIRECT
    veneers = sum(1 for s in po.sections for r in s.relocations if r.type in direct and s.flags & c.SHF_EXECINSTR)
    return names + 40 * stubs + 40 * veneers + 3 * 24 + PAGE // 4
