"""A patch object as JSON: all it holds but the contents of its sections (`katana show PO --json`).

Addresses are strings ("0x401200"), since they need not fit the numbers of every JSON reader; sizes are numbers.
Keys are only ever added.
"""

from __future__ import annotations

import hashlib
from typing import Any

from katana_cc.patch.addresses import Blanks
from katana_cc.patch.codec import patch_id
from katana_cc.patch.model import FORMAT_VERSION, Hook, PatchObject, Reason, Reliance
from katana_cc.patch.needs import Need, needs_of
from katana_cc.report import names
from katana_cc.report.handlers import HandlerRow, handler_rows
from katana_cc.report.summary import NewThing, Reference, headline, summarise
from katana_cc.report.transforms import transforms_json


def to_json(po: PatchObject, data: bytes) -> dict[str, Any]:
    """What `json.dumps` takes, for `po`, whose file is `data`."""
    summary = summarise(po)
    i = po.identity
    return {
        "id": patch_id(data),
        "format_version": FORMAT_VERSION,
        "size": len(data),
        "output": i.output,
        "machine": names.machine(i.machine),
        "from": {"release": i.from_release, "build_id": i.from_build_id},
        "to": {"release": i.to_release, "build_id": i.to_build_id},
        "verdict": str(po.verdict),
        "summary": headline(summary),
        "changed_functions": [_replacement(po, n) for n in range(len(po.replacements))],
        "new_functions": [_thing(f) for f in summary.new_functions],
        "new_data": [_thing(d) for d in summary.new_data],
        "new_initial_values": [
            {"name": d.name, "address": f"{d.address:#x}", "size": d.size, "taken": d.is_taken}
            for d in summary.initialisers
        ],
        "rewritten_data": [{"name": d.name, "address": f"{d.address:#x}", "size": d.size} for d in summary.rewritten],
        "carried_over": list(summary.carried_over),
        "types_carried_over": list(summary.types),
        "retargeted_functions": list(summary.retargeted),
        "hooks": [_hook(po, h) for h in po.hooks],
        "imports": [{"name": r.name, "weak": r.weak, "new": r in summary.new_imports} for r in summary.imports],
        "existing": [_existing(r) for r in summary.existing],
        "mapped_bytes": summary.mapped_bytes,
        "needs": [_need(n) for n in needs_of(po)],
        "reliances": [_reliance(po, x) for x in po.reliances],
        "handlers": [_handlers(row) for row in handler_rows(po)],
        "transformations": transforms_json(po),
        "reasons": [reason_json(r) for reasons in summary.reasons.values() for r in reasons],
        "sections": [_section(po, n) for n in range(len(po.sections))],
        "symbols": [_symbol(po, n) for n in range(len(po.symbols))],
    }


def reason_json(r: Reason) -> dict[str, Any]:
    """One reason."""
    fields = {"code": r.code, "severity": r.severity, "subject": r.subject, "file": r.file, "line": r.line}
    return {**fields, "text": r.text}


def _need(n: Need) -> dict[str, Any]:
    return {"code": n.reason.code, "subject": n.reason.subject, "option": str(n.grant) if n.grant else None}


def _hook(po: PatchObject, h: Hook) -> dict[str, Any]:
    function = po.symbols[h.symbol]
    return {"name": h.name, "kind": h.kind.name.lower(), "symbol": h.symbol, "size": function.size}


def _reliance(po: PatchObject, x: Reliance) -> dict[str, Any]:
    caller, callee = po.replacements[x.caller].name, po.replacements[x.callee].name
    return {"caller": caller, "callee": callee, "basis": x.basis.name.lower(), "through": x.through}


def _handlers(row: HandlerRow) -> dict[str, Any]:
    sides = {"catches": list(row.catches), "allows": list(row.allows)}
    return {"function": row.function, **sides, "cleans_up": row.cleans_up}


def _pairs(blanks: Blanks) -> list[list[int]]:
    return [[at, size] for at, size in blanks]


def _replacement(po: PatchObject, number: int) -> dict[str, Any]:
    r = po.replacements[number]
    new = po.symbols[r.symbol]
    parts = [{"address": f"{a:#x}", "size": s, "sha256": d.hex(), "blanks": _pairs(b)} for a, s, d, b in r.ranges[1:]]
    old = {"name": r.name, "address": f"{r.address:#x}", "size": r.size, "sha256": r.digest.hex(), "parts": parts}
    return {**old, "blanks": _pairs(r.ranges[0][3]), "new_name": new.name, "new_size": new.size, "symbol": r.symbol}


def _thing(t: NewThing) -> dict[str, Any]:
    return {"name": t.name, "kind": t.kind, "size": t.size, "section": t.section}


def _existing(r: Reference) -> dict[str, Any]:
    return {"name": r.name, "address": f"{r.address or 0:#x}", "thread_local": r.thread_local}


def _section(po: PatchObject, number: int) -> dict[str, Any]:
    s, machine = po.sections[number], po.identity.machine
    relocations = [
        {
            "offset": r.offset,
            "type": names.relocation(machine, r.type),
            "symbol": r.symbol,
            "addend": r.addend,
        }
        for r in s.relocations
    ]
    return {
        "name": s.name,
        "type": names.section_type(s.type),
        "flags": names.flags(s.flags),
        "size": s.size,
        "alignment": s.alignment,
        "sha256": hashlib.sha256(s.data).hexdigest(),
        "relocations": relocations,
    }


def _symbol(po: PatchObject, number: int) -> dict[str, Any]:
    y = po.symbols[number]
    kinds = {"binding": names.binding(y.binding), "type": names.symbol_type(y.type)}
    return {"name": y.name, **kinds, "section": y.section, "value": f"{y.value:#x}", "size": y.size}
