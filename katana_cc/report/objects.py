"""Objects on the heap that are made anew, for a person and for scripts: how many of each type, by which variables they
were found, and before it is done, of the first ones, every field that comes, goes or is converted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from katana_cc.process.convert import Group
from katana_cc.process.objects import Cargo
from katana_cc.process.supply import Leftover
from katana_cc.report.moves import fate_line
from katana_cc.report.summary import clean, count
from katana_cc.transform.fates import Fate, fates

_SHOWN: Final = 3  # objects of each type that a dry run shows
_FIELDS: Final = 20  # of one object that are listed for a person


class _Tally(NamedTuple):
    """The objects of one type: how many, how many of them stay in their block, and from which variables they were
    found."""

    group: Group
    number: int
    staying: int
    roots: tuple[str, ...]


def _tallies(found: Cargo) -> list[_Tally]:
    reached = found.reached
    roots: list[int] = []  # of each object, the variable
    for f in reached.objects:
        roots.append(-1 - f.holder if f.holder < 0 else roots[f.holder])
    names: dict[int, dict[int, None]] = {}
    for f, root in zip(reached.objects, roots, strict=True):
        names.setdefault(f.type, {})[root] = None
    result = []
    for group in found.converted.groups:
        type_ = group.objects[0].type
        result.append(
            _Tally(
                group,
                sum(f.elements for f in group.objects),
                sum(f.elements for f, new in zip(group.objects, group.news, strict=True) if f.address == new),
                tuple(reached.roots[r].transformation.name for r in sorted(names[type_])),
            )
        )
    return result


def object_lines(found: Cargo, leftover: Leftover) -> list[str]:
    """What was made anew, a line a type, and what became of the old blocks."""
    lines = [_line(tally, "made anew") for tally in _tallies(found)]
    if leftover.kept:
        lines.append(
            f"{count(leftover.kept, 'block')} that nothing leads to any more stay allocated: no thread was where they "
            "could be freed"
        )
    return lines


def object_preview_lines(found: Cargo) -> list[str]:
    """What would be made anew, a line a type, and the fields of its first objects."""
    lines: list[str] = []
    numbers = {f.address: n for n, f in enumerate(found.reached.objects)}
    for tally in _tallies(found):
        lines.append(_line(tally, "would be made anew"))
        group = tally.group
        for n in range(min(_SHOWN, len(group.objects))):
            address = group.objects[n].address
            lines.append(clean(f"    {found.reached.path_to(numbers[address])} -> {address:#x}"))
            changes = list(_fates(group, n))
            lines += [clean(f"        {fate_line(fate)}") for fate in changes[:_FIELDS]]
            if len(changes) > _FIELDS:
                lines.append(f"        and {len(changes) - _FIELDS} fields more")
        if len(group.objects) > _SHOWN:
            lines.append(f"    and {len(group.objects) - _SHOWN} blocks more")
    return lines


def _line(tally: _Tally, verb: str) -> str:
    t = tally.group.kind.transformation
    sizes = f"{count(t.old_size, 'byte')} -> {count(t.new_size, 'byte')}"
    moved = tally.number - tally.staying
    where = ", ".join(f"{n} {text}" for n, text in ((tally.staying, "in place"), (moved, "in new blocks")) if n)
    things = count(tally.number, "object")
    return clean(f"{things} of {t.name} {verb}, {sizes}: {where}; found from {', '.join(tally.roots)}")


def _fates(group: Group, n: int) -> Iterator[Fate]:
    """Of the first element of block `n`."""
    t = group.kind.transformation
    element = sum(f.elements for f in group.objects[:n])
    old = group.old[element * t.old_size : (element + 1) * t.old_size]
    return fates(t, old, group.new[element * t.new_size : (element + 1) * t.new_size])


def objects_json(found: Cargo | None, leftover: Leftover) -> list[dict[str, Any]]:
    """What `json.dumps` takes: an entry a type."""
    if found is None:
        return []
    return [
        {
            "type": tally.group.kind.name,
            "old_size": tally.group.kind.transformation.old_size,
            "new_size": tally.group.kind.transformation.new_size,
            "count": tally.number,
            "in_place": tally.staying,
            "found_from": list(tally.roots),
            "not_freed": leftover.kept,
        }
        for tally in _tallies(found)
    ]
