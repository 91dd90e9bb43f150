"""Variables that move, for a person and for scripts: before it is done with every value, afterwards in a line each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from katana_cc.process.carry import Cargo, Stray
from katana_cc.process.follow import Finding
from katana_cc.process.moves import Move
from katana_cc.process.objections import stray_line
from katana_cc.report.summary import clean, count
from katana_cc.transform.fates import Fate, FateKind, fates

_FIELDS: Final = 40  # of one variable that are listed for a person
_WORDS: Final = 40


def moved_line(move: Move, verb: str = "moved") -> str:
    """Where a variable went, in one line."""
    t = move.transformation
    if move.stays:
        return clean(f"pointers in {move.name} at {move.old:#x}")
    sizes = f"{count(t.old_size, 'byte')} -> {count(t.new_size, 'byte')}"
    return clean(f"{verb} {move.name} {move.old:#x} -> {move.new:#x}, {sizes}")


def moved_back_line(move: Move) -> str:
    """The same of the way back."""
    return clean(f"moved {move.name} back, {move.new:#x} -> {move.old:#x}")


def preview_lines(moves: Sequence[Move], seen: Cargo) -> list[str]:
    """What would happen to each variable, field by field, and to each word that leads into one."""
    lines: list[str] = []
    for move, found in _with_fates(moves, seen):
        lines.append(moved_line(move, "move    "))
        lines += [f"    {fate_line(fate)}" for fate in found[:_FIELDS]]
        if len(found) > _FIELDS:
            lines.append(f"    and {len(found) - _FIELDS} fields more")
    followed = [f"follow  {_finding_line(f)}" for f in seen.followed]
    strays = [f"nothing explains  {stray_line(s)}{_passing(s)}" for s in seen.strays]
    for words in (followed, strays):
        lines += words[:_WORDS]
        if len(words) > _WORDS:
            lines.append(f"    and {len(words) - _WORDS} words more")
    return [clean(line) for line in lines]


def _passing(stray: Stray) -> str:
    return " (as of now; a stack changes all the time)" if stray.is_passing else ""


def _with_fates(moves: Sequence[Move], seen: Cargo) -> list[tuple[Move, list[Fate]]]:
    made = dict(seen.objects)
    return [
        (move, list(fates(move.transformation, live, made[move.new])) if not move.stays else [])
        for move, live in zip(moves, seen.live, strict=True)
    ]


def fate_line(fate: Fate) -> str:
    """What becomes of one field."""
    name = fate.field or "value"
    if fate.kind is FateKind.COMES:
        return f"comes      {name} = {fate.new}"
    if fate.kind is FateKind.GOES:
        return f"goes       {name}, which is {fate.old}"
    return f"converted  {name}: {fate.old} -> {fate.new}"


def fates_json(found: Iterable[Fate]) -> list[dict[str, Any]]:
    """What becomes of fields, an entry each."""
    return [
        {
            "kind": str(fate.kind),
            "field": fate.field,
            "old": None if fate.kind is FateKind.COMES else fate.old,
            "new": None if fate.kind is FateKind.GOES else fate.new,
        }
        for fate in found
    ]


def _finding_line(f: Finding) -> str:
    where = f"{f.word.address:#x}"
    if f.holder is not None:
        where = f"{f.holder.named(f.field)} at {where}"
    why = "" if f.is_explained else ", as --follow says"
    return f"{where}: {f.lead}{why}"


def moves_json(moves: Sequence[Move], seen: Cargo | None = None) -> list[dict[str, Any]]:
    """What `json.dumps` takes; with `fields` when values are known."""
    result: list[dict[str, Any]] = []
    found = dict(enumerate(_with_fates(moves, seen))) if seen is not None else {}
    for i, move in enumerate(moves):
        t = move.transformation
        entry: dict[str, Any] = {
            "name": move.name,
            "stays": move.stays,
            "old_address": move.old,
            "old_size": t.old_size,
            "new_address": move.new,
            "new_size": t.new_size,
            "followed": move.is_followed,
        }
        if seen is not None:
            entry["fields"] = fates_json(found[i][1])
        result.append(entry)
    return result


def words_json(seen: Cargo) -> list[dict[str, Any]]:
    """Every word that leads into a variable that moves."""
    followed = [
        {
            "address": f.word.address,
            "in": f.holder.name if f.holder is not None else None,
            "field": f.field if f.holder is not None else None,
            "leads_to": str(f.lead),
            "becomes": f.lead.moved,
            "explained": f.is_explained,
            "followed": True,
        }
        for f in seen.followed
    ]
    strays = [
        {
            "address": s.address,
            "place": s.place,
            "leads_to": str(s.lead),
            "becomes": s.lead.moved,
            "explained": False,
            "followed": False,
            "passing": s.is_passing,
        }
        for s in seen.strays
    ]
    return [*followed, *strays]
