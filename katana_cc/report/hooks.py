"""Hooks that ran in a process, in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from katana_cc.process.hooks import HookRun
from katana_cc.process.moves import Kind, Move
from katana_cc.process.objects import Cargo as ObjectCargo
from katana_cc.report.summary import count


def hook_lines(runs: Sequence[HookRun]) -> list[str]:
    """A line for each."""
    return [
        f"hook {r.name} {r.failure}"
        if r.failure
        else f"hook {r.name} ran {r.kind.words}, in {r.pause_us / 1000:.2f} ms"
        for r in runs
    ]


def handed_lines(moves: Iterable[Move]) -> list[str]:
    """What functions of the program's would be called for."""
    lines = []
    for move in moves:
        names = dict.fromkeys(made.name for made in move.made)
        for name in names:
            number = sum(made.number for made in move.made if made.name == name)
            lines.append(f"{move.name}: {count(number, 'object')} would be made by {name}")
    return lines


def heap_handed_lines(kinds: Iterable[Kind], cargo: ObjectCargo) -> list[str]:
    """The same of objects on the heap."""
    types = cargo.reached.types
    lines = []
    for kind in kinds:
        number = sum(f.elements for f in cargo.placement.objects if types[f.type].name == kind.name)
        for name in dict.fromkeys(made.name for made in kind.made):
            each = sum(made.number for made in kind.made if made.name == name)
            lines.append(f"{kind.name} on the heap: {count(number * each, 'object')} would be made by {name}")
    return lines


def failures(runs: Sequence[HookRun]) -> list[str]:
    """What went wrong."""
    return [f"the hook {r.name} {r.failure}" for r in runs if r.failure]


def hooks_json(runs: Sequence[HookRun]) -> list[dict[str, Any]]:
    """The same for `json.dumps`."""
    return [
        {
            "name": r.name,
            "kind": r.kind.name.lower(),
            "result": r.result,
            "failure": r.failure or None,
            "pause_us": round(r.pause_us, 1),
        }
        for r in runs
    ]
