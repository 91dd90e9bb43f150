"""Objects on the heap that are made anew, for a person and for scripts: how many of each type, by which variables they
were found, and before it is done, of the first ones, every field that comes, goes or is converted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from katana_cc.process.convert import Group
from katana_cc.process.objects import Cargo
from katana_cc.process.reachable import Found
from katana_cc.process.supply import Leftover
from katana_cc.report.moves import fate_line, fates_json
from katana_cc.report.summary import clean, count
from katana_cc.transform.fates import Fate, fates
from katana_cc.transform.places import field_at

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


def object_preview_lines(found: Cargo, *, every: bool = False) -> list[str]:
    """What would be made anew, a line a type, and the fields of its first objects; `every`: of all."""
    lines: list[str] = []
    numbers = {f.address: n for n, f in enumerate(found.reached.objects)}
    for tally in _tallies(found):
        lines.append(_line(tally, "would be made anew"))
        group = tally.group
        for n, block in enumerate(_blocks(group)):
            if n == _SHOWN and not every:
                lines.append(f"    and {len(group.objects) - _SHOWN} blocks more")
                break
            address = block.found.address
            # A path from the variable on has as many steps as there are objects before it.
            path = found.reached.path_to(numbers[address]) if n < _SHOWN else _last_step(found, numbers[address])
            lines.append(clean(f"    {path} -> {address:#x}"))
            for element in range(block.found.elements if every else 1):
                if element:
                    lines.append(f"      [{element}]")
                changes = list(block.fates(element))
                shown = len(changes) if every else _FIELDS
                lines += [clean(f"        {fate_line(fate)}") for fate in changes[:shown]]
                if len(changes) > shown:
                    lines.append(f"        and {len(changes) - shown} fields more")
    return lines


class _Block(NamedTuple):
    """The objects of one block: what they are, of a group, from which element on."""

    group: Group
    found: Found
    first: int

    def fates(self, element: int) -> Iterator[Fate]:
        """What becomes of the fields of one."""
        t = self.group.kind.transformation
        at = self.first + element
        old = self.group.old[at * t.old_size : (at + 1) * t.old_size]
        return fates(t, old, self.group.new[at * t.new_size : (at + 1) * t.new_size])


def _blocks(group: Group) -> Iterator[_Block]:
    first = 0
    for f in group.objects:
        yield _Block(group, f, first)
        first += f.elements


def _last_step(found: Cargo, number: int) -> str:
    """The pointer by which an object was found, by the address of what holds it."""
    f = found.reached.objects[number]
    if f.holder < 0:
        return found.reached.path_to(number)
    holder = found.reached.objects[f.holder]
    t = found.reached.types[holder.type]
    element, inside = divmod(f.at, t.old_size)
    field = field_at(t, inside)
    return f"{holder.address:#x}{f'[{element}]' if element else ''}{f'->{field}' if field else ''}"


def _line(tally: _Tally, verb: str) -> str:
    t = tally.group.kind.transformation
    sizes = f"{count(t.old_size, 'byte')} -> {count(t.new_size, 'byte')}"
    moved = tally.number - tally.staying
    where = ", ".join(f"{n} {text}" for n, text in ((tally.staying, "in place"), (moved, "in new blocks")) if n)
    things = count(tally.number, "object")
    return clean(f"{things} of {t.name} {verb}, {sizes}: {where}; found from {', '.join(tally.roots)}")


def objects_json(found: Cargo | None, leftover: Leftover, *, every: bool = False) -> list[dict[str, Any]]:
    """What `json.dumps` takes: an entry a type; `every`: with `blocks`, all objects and their fields."""
    if found is None:
        return []
    numbers = {f.address: n for n, f in enumerate(found.reached.objects)} if every else {}
    return [
        {
            "type": tally.group.kind.name,
            "old_size": tally.group.kind.transformation.old_size,
            "new_size": tally.group.kind.transformation.new_size,
            "count": tally.number,
            "in_place": tally.staying,
            "found_from": list(tally.roots),
            "not_freed": leftover.kept,
            **({"blocks": [_block_json(b, found, numbers) for b in _blocks(tally.group)]} if every else {}),
        }
        for tally in _tallies(found)
    ]


def _block_json(block: _Block, found: Cargo, numbers: dict[int, int]) -> dict[str, Any]:
    return {
        "address": block.found.address,
        "found_by": _last_step(found, numbers[block.found.address]),
        "objects": [fates_json(block.fates(element)) for element in range(block.found.elements)],
    }
