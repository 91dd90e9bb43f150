"""Functions of the user's that make live objects of a type anew: which there are, and for which types they are right.

Theory of operation.  `KATANA_TRANSFORM(struct conn_v1, struct conn, f)` makes a function whose parameters are pointers
to pointers to the two types, so debug information names both.  The second is the type that the new build lays out
otherwise; the first declares what the old build had, under another name, and is right only if it is laid out exactly
so: field by field, by the debug information of both builds.  A source may keep the functions of several releases; the
one whose first type is the deployed build's is meant.  Where a type changed and none of its functions is right, it is
refused, with the first field that differs; where it did not change, its functions are left out.

The way back is the same with the two exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from katana_cc.diff.hooks import HookRecord, hooks_in
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import INFO, REFUSED, Code
from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.functions import functions
from katana_cc.dwarf.naming import AGGREGATES, POINTERS, naming
from katana_cc.dwarf.types import TypeLayout
from katana_cc.errors import FormatError
from katana_cc.patch.model import HookKind, Reason

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff

_DEPTH: Final = 64  # of types in types


@dataclass(frozen=True, slots=True)
class Maker:
    """What makes objects of one type: the wrappers' places, what the user calls his function, and the layouts of the
    type in both builds, since two types may have one name."""

    key: str
    name: str
    forth: Place
    back: Place | None
    before: TypeLayout
    after: TypeLayout


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One macro: from the type `source` to the type `target`, keys in the layouts of its unit."""

    place: Place
    record: HookRecord
    source: str
    target: str


def find_makers(diff: Diff) -> dict[str, Maker]:
    """The functions that are right, by the key of the type; notes what it finds of the others."""
    candidates = [c for unit in _units(diff) for c in _candidates(diff, unit)]
    makers: dict[str, Maker] = {}
    for key in dict.fromkeys(c.target for c in candidates if c.record.kind is HookKind.TRANSFORM):
        found = [c for c in candidates if c.record.kind is HookKind.TRANSFORM and c.target == key]
        before = _deployed(diff, key)
        after = diff.debug.layouts(diff.new, found[0].place.unit)
        if before is None:
            why = f"the build that the patch starts from has no {key}"
        elif before[key].shape == after[key].shape and not _differ(key, before, key, after):
            why = f"{key} is laid out as it was"
        else:
            _choose(diff, key, before, found, candidates, makers)
            continue
        for c in found:
            _note(diff, Code.HOOK_LEFT_OUT, INFO, c, f"makes objects of {key} anew; {why}: it is not needed")
    return makers


def makers_for(
    makers: Mapping[str, Maker], before: Mapping[str, TypeLayout], after: Mapping[str, TypeLayout]
) -> frozenset[str]:
    """The keys of the types that functions make, as two objects know these types."""
    return frozenset(
        key
        for key, m in makers.items()
        if key in before and key in after and (before[key].shape, after[key].shape) == (m.before.shape, m.after.shape)
    )


def _choose(
    diff: Diff,
    key: str,
    before: Mapping[str, TypeLayout],
    found: list[_Candidate],
    candidates: list[_Candidate],
    makers: dict[str, Maker],
) -> None:
    """Pick the one whose first type is what the deployed build has."""
    first = ""
    for c in found:
        why = _differ(c.source, diff.debug.layouts(diff.new, c.place.unit), key, before)
        first = first or why
        if why:
            continue
        backs = (
            b
            for b in candidates
            if b.record.kind is HookKind.TRANSFORM_BACK
            and b.source == key
            and not _differ(b.target, diff.debug.layouts(diff.new, b.place.unit), key, before)
        )
        back = next(backs, None)
        after = diff.debug.layouts(diff.new, c.place.unit)[key]
        makers[key] = Maker(key, c.record.name, c.place, back.place if back is not None else None, before[key], after)
        _note(diff, Code.HOOK, INFO, c, f"makes live objects of {key} anew, from {c.source}")
        for one in (c, back) if back is not None else (c,):
            diff.correlation.forget(one.place)  # whatever the old build calls so, nothing but Katana calls it
            diff.changes.hooks[one.place] = one.record
        if back is not None:
            _note(diff, Code.HOOK, INFO, back, f"makes live objects of {key} anew when the patch is reverted")
        return
    text = f"it makes objects of {key} from another type than the build that the patch starts from has: {first}"
    _note(diff, Code.HOOK_UNUSABLE, REFUSED, found[0], text)


def _units(diff: Diff) -> list[int]:
    return sorted({*(n for _, n in diff.correlation.changed_units), *diff.correlation.new_units})


def _candidates(diff: Diff, unit: int) -> Iterator[_Candidate]:
    try:
        records = [r for r in hooks_in(diff.view(diff.new, unit).elf) if r.kind.makes_objects]
    except FormatError:
        return  # said by `note_hooks`
    if not records:
        return
    info = diff.debug.readable(diff.new, unit)
    by_section = {f.code.section: f for f in functions(info)} if info is not None else {}
    for record in records:
        place = Place(unit, record.section)
        function = by_section.get(record.section)
        keys = _parameters(info, function.die) if info is not None and function is not None else []
        known = diff.debug.layouts(diff.new, unit)
        if len(keys) < 2 or any(k not in known for k in keys[:2]):
            c = _Candidate(place, record, "", "")
            text = "debug information does not tell which types it is for: both must be defined where the macro stands"
            _note(diff, Code.HOOK_UNUSABLE, REFUSED, c, text)
        else:
            yield _Candidate(place, record, keys[0], keys[1])


def _parameters(info: DebugInfo, at: int) -> list[str]:
    """The keys of the aggregates that a function's parameters lead to, "" for others."""
    names = naming(info)
    found = []
    for child in info.children(names.chain(info.die(at))[-1]):
        if child.tag == d.DW_TAG_formal_parameter:
            target = names.peeled(names.target(child), pointers=True)
            is_pointer = (outer := names.peeled(names.target(child))) is not None and outer.tag in POINTERS
            found.append(
                names.aggregate(target) if is_pointer and target is not None and target.tag in AGGREGATES else ""
            )
    return found


def _deployed(diff: Diff, key: str) -> Mapping[str, TypeLayout] | None:
    """The layouts of an old object that knows a type."""
    units = [*(o for o, _ in diff.correlation.changed_units), *range(len(diff.old.snapshot.units))]
    return next((known for unit in units if key in (known := diff.debug.layouts(diff.old, unit))), None)


def _differ(
    key: str, layouts: Mapping[str, TypeLayout], deployed_key: str, deployed: Mapping[str, TypeLayout], depth: int = 0
) -> str:
    """The first difference between two types, in words; "" when they are laid out alike.  What pointers lead to does
    not count: it has another name."""
    mine, theirs = layouts.get(key), deployed.get(deployed_key)
    if mine is None or theirs is None:
        return f"{deployed_key if theirs is None else key} is not defined there"
    if depth > _DEPTH:
        return f"{key} holds itself"
    if mine.kind is not theirs.kind:
        return f"{key} is a {mine.kind}, and {deployed_key} was a {theirs.kind}"
    fields = {m.name: m for m in mine.members}
    for was in theirs.members:
        now = fields.pop(was.name, None)
        if now is None:
            return f"`{was.name}` of {deployed_key} is not in {key}"
        if (now.bit_offset, now.bit_size, now.size) != (was.bit_offset, was.bit_size, was.size):
            return f"`{was.name}` is {now.size} bytes at {now.offset} in {key}, was {was.size} at {was.offset}"
        if (now.form.encoding, now.form.bounds) != (was.form.encoding, was.form.bounds):
            return f"`{was.name}` is {now.type} in {key}, was {was.type}"
        if was.aggregate and (inner := _differ(now.aggregate, layouts, was.aggregate, deployed, depth + 1)):
            return inner
    if fields:
        return f"`{next(iter(fields))}` of {key} was not in {deployed_key}"
    if mine.size != theirs.size:
        return f"{key} has {mine.size} bytes, and {deployed_key} had {theirs.size}"
    if [(b.offset) for b in mine.bases] != [(b.offset) for b in theirs.bases]:
        return f"{key} has other base classes than {deployed_key} had"
    return ""


def _note(diff: Diff, code: Code, severity: str, c: _Candidate, text: str) -> None:
    file, line = diff.debug.declared(diff.new, c.place)
    where = file or diff.new.unit_name(c.place.unit)
    diff.changes.reasons.append(Reason(code.value, severity, c.record.name, where, line, text))
