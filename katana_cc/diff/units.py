"""Which object of the new link is which of the old one.

By name; several of one name are numbered in link order, which may have changed, and are told by the names they define.
A unit that is gone and a new one that define mostly the same names are one renamed file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from katana_cc.diff.program import Program
from katana_cc.elf import constants as c
from katana_cc.recorder.record import stem

Alike = Callable[[int, int], bool]  # whether an old and a new unit are the same but for where things are declared

_RENAMED: Final = 0.5  # two units that share half of the names they define are one file under a new name


class UnitPairs(NamedTuple):
    """What became of the objects: `same` (new → old) are the same but for where things are declared, and not looked at
    any further; `changed` are (old, new)."""

    same: dict[int, int]
    changed: list[tuple[int, int]]
    new: list[int]
    removed: list[int]


def pair_units(old: Program, new: Program, alike: Alike) -> UnitPairs:
    """Pair the objects of two links."""
    same: dict[int, int] = {}
    changed: list[tuple[int, int]] = []
    by_name = {u.name: i for i, u in enumerate(old.snapshot.units)}
    open_units: list[int] = []
    for i, unit in enumerate(new.snapshot.units):
        other = by_name.get(unit.name)
        if other is not None and old.snapshot.units[other].blob == unit.blob:
            del by_name[unit.name]
            same[i] = other
        else:
            open_units.append(i)
    # `x.o`, `x.o#2`: several of one name are numbered in link order, which may have changed.
    several = {_base_name(u.name) for p in (old, new) for u in p.snapshot.units if "#" in u.name}
    pairs = []
    for i in list(open_units):
        name = new.snapshot.units[i].name
        if name in by_name and _base_name(name) not in several:
            pairs.append((by_name.pop(name), i))
            open_units.remove(i)
    pairs += _most_alike(old, new, list(by_name.values()), open_units, least=0.0, renamed=False)
    matched = {o for o, _ in pairs}
    left = [o for o in by_name.values() if o not in matched]
    pairs += _most_alike(old, new, left, open_units, least=_RENAMED, renamed=True)
    for o, n in sorted(pairs, key=lambda p: p[1]):
        if old.snapshot.units[o].blob == new.snapshot.units[n].blob or alike(o, n):
            same[n] = o
        else:
            changed.append((o, n))
    removed = sorted(set(by_name.values()) - {o for o, _ in pairs})
    return UnitPairs(same, changed, open_units, removed)


def _base_name(name: str) -> str:
    return name.partition("#")[0]


def _most_alike(
    old: Program, new: Program, olds: list[int], news: list[int], *, least: float, renamed: bool
) -> list[tuple[int, int]]:
    """Pair units by the share of names both define, the most alike first; what is paired leaves `news`.

    Only units of one base name, or where they may be `renamed`, that have anything in common: a project that was moved
    to another folder has all of them renamed.
    """
    if not olds or not news:
        return []
    old_names = {o: _defined(old, o) for o in olds}
    new_names = {n: _defined(new, n) for n in news}

    def marks(program: Program, unit: int, names: frozenset[str]) -> Iterable[str]:
        known = program.snapshot.units[unit]
        return (*names, f"\0{known.blob}") if renamed else (_base_name(known.name),)

    having: dict[str, list[int]] = {}
    for o in olds:
        for mark in marks(old, o, old_names[o]):
            having.setdefault(mark, []).append(o)
    scored = []
    for n in news:
        for o in {o for mark in marks(new, n, new_names[n]) for o in having.get(mark, ())}:
            same = old.snapshot.units[o].blob == new.snapshot.units[n].blob
            both, either = old_names[o] & new_names[n], old_names[o] | new_names[n]
            share = 2.0 if same else len(both) / len(either) if either else 0.0
            if share >= least:
                scored.append((-share, n, o))
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, n, o in sorted(scored):
        if n not in pairs and o not in taken:
            pairs[n] = o
            taken.add(o)
    news[:] = [n for n in news if n not in pairs]
    return [(o, n) for n, o in pairs.items()]


def _defined(program: Program, unit: int) -> frozenset[str]:
    return frozenset(stem(s.name) for s in program.record(unit).symbols if s.type in (c.STT_FUNC, c.STT_OBJECT))
