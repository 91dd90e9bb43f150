"""Which section of the old program is the same thing as which section of the new one.

Theory of operation.  With -ffunction-sections and -fdata-sections a section holds one function or one datum, so
sections are what is correlated.  Two objects of the same unit name are matched first; in them:

1. A global or weak name is its own identity.
2. A local's name without the compiler's numbers (`counter.0` → `counter`) is its identity when only one on either side
   has it.  So renumbering (`.3` became `.5`, because another static appeared) changes nothing.
3. Several of one stem (a `static int n` in each of several functions; two clones of one function) are told apart by
   who uses them: the set of functions that refer to each.  Equal sets pair first, then the one best overlap.
4. Of what is left, equal canonical keys pair, then equal exact names, when the two sides have as many.
5. What is still open stays unpaired.  For functions and constants that is harmless (the new one is carried).  A
   writable variable that could be one of several is *ambiguous*: code that uses it is refused, since a wrong guess
   would read another variable's live value.

A global that moved to another unit is found by name afterwards.  Unnamed read-only data (jump tables) and literals have
no identity and are compared by content wherever something refers to them.

Out of scope here: renamed functions and variables; they are a removed and a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from katana_cc.diff.program import Place, Program
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.elf import constants as c
from katana_cc.recorder.record import stem

_IDENTIFIED = (Kind.FUNCTION, Kind.DATA, Kind.CONST, Kind.THREAD)


@dataclass(slots=True)
class Correlation:
    """`old_of[new]` is the same thing in the old program; `ambiguous` new variables could be one of several."""

    old_of: dict[Place, Place] = field(default_factory=dict)
    ambiguous: set[Place] = field(default_factory=set)
    new_units: list[int] = field(default_factory=list)
    removed_units: list[int] = field(default_factory=list)
    changed_units: list[tuple[int, int]] = field(default_factory=list)
    same_units: dict[int, int] = field(default_factory=dict)

    def old_place(self, new: Place) -> Place | None:
        """The same place in the old program; units whose object is identical need no entries of their own."""
        if new.unit in self.same_units:
            return Place(self.same_units[new.unit], new.section)
        return self.old_of.get(new)


def match_units(old: Program, new: Program) -> Correlation:
    """Pair the objects of two links by name; identical ones are not looked at any further."""
    result = Correlation()
    by_name = {u.name: i for i, u in enumerate(old.snapshot.units)}
    for i, unit in enumerate(new.snapshot.units):
        other = by_name.pop(unit.name, None)
        if other is None:
            result.new_units.append(i)
        elif old.snapshot.units[other].blob == unit.blob:
            result.same_units[i] = other
        else:
            result.changed_units.append((other, i))
    result.removed_units = sorted(by_name.values())
    return result


def correlate(old: Program, new: Program, view: Callable[[Program, int], ObjectView]) -> Correlation:
    """The correlation of two programs; `view` gives the (cached) view of a unit."""
    result = match_units(old, new)
    for old_unit, new_unit in result.changed_units:
        _match_sections(result, old, new, old_unit, new_unit, view)
    for unit in [*result.new_units, *(n for _, n in result.changed_units)]:
        _match_moved(result, old, new, unit, view)
    return result


def _match_sections(
    result: Correlation,
    old: Program,
    new: Program,
    old_unit: int,
    new_unit: int,
    view: Callable[[Program, int], ObjectView],
) -> None:
    old_view, new_view = view(old, old_unit), view(new, new_unit)
    for o, n in _whole_sections(old_view, new_view):
        result.old_of[Place(new_unit, n)] = Place(old_unit, o)
    old_groups, new_groups = _groups(old_view), _groups(new_view)
    for identity, news in new_groups.items():
        olds = old_groups.get(identity, [])
        if len(olds) == len(news) == 1:
            pairs = [(olds[0], news[0])]
        else:
            keys = (_keys(old, old_unit), _keys(new, new_unit))
            pairs = _tell_apart(old_view, new_view, olds, news, keys)
        paired = {n for _, n in pairs}
        for o, n in pairs:
            result.old_of[Place(new_unit, n)] = Place(old_unit, o)
        left_over = len(olds) > len(pairs)
        for n in news:
            if n not in paired and left_over and new_view.kinds[n] in (Kind.DATA, Kind.THREAD):
                result.ambiguous.add(Place(new_unit, n))


def _groups(view: ObjectView) -> dict[tuple[bool, bool, str], list[int]]:
    """Sections by identity: (global?, function?, name or stem)."""
    found: dict[tuple[bool, bool, str], list[int]] = {}
    for number, kind in view.kinds.items():
        if kind in _IDENTIFIED and view.symbols_in.get(number):
            strong = view.is_global(number)
            symbols = view.symbols_in[number]
            name = next((s.name for s in symbols if s.binding != c.STB_LOCAL), symbols[0].name)
            found.setdefault((strong, kind is Kind.FUNCTION, name if strong else stem(name)), []).append(number)
    return found


def _whole_sections(old_view: ObjectView, new_view: ObjectView) -> list[tuple[int, int]]:
    """Sections that hold several things or unknown ones: paired by name and order when there are as many."""
    found: list[dict[tuple[str, Kind], list[int]]] = []
    for view in (old_view, new_view):
        by_name: dict[tuple[str, Kind], list[int]] = {}
        for number, kind in view.kinds.items():
            unnamed = kind in _IDENTIFIED and not view.symbols_in.get(number)
            if kind in (Kind.CODE, Kind.OTHER, Kind.STARTUP) or unnamed:
                by_name.setdefault((view.elf.sections[number].name, kind), []).append(number)
        found.append(by_name)
    olds, news = found
    return [
        pair
        for name, numbers in news.items()
        if len(olds.get(name, ())) == len(numbers)
        for pair in zip(olds[name], numbers, strict=True)
    ]


def _keys(program: Program, unit: int) -> dict[int, str]:
    return {s.number: s.key for s in program.record(unit).sections}


def _tell_apart(
    old_view: ObjectView,
    new_view: ObjectView,
    olds: Iterable[int],
    news: Iterable[int],
    keys: tuple[dict[int, str], dict[int, str]],
) -> list[tuple[int, int]]:
    """Pair several locals of one stem."""
    olds, news = list(olds), list(news)
    pairs: list[tuple[int, int]] = []

    def settle(o: int, n: int) -> None:
        pairs.append((o, n))
        olds.remove(o)
        news.remove(n)

    def by(trait_old: Callable[[int], object], trait_new: Callable[[int], object]) -> None:
        """Pair those whose trait only one on either side has."""
        for n in list(news):
            mine = [o for o in olds if trait_old(o) == trait_new(n)]
            rivals = [m for m in news if trait_new(m) == trait_new(n)]
            if len(mine) == 1 and len(rivals) == 1:
                settle(mine[0], n)

    nobody: frozenset[str] = frozenset()
    by(lambda o: old_view.users.get(o, nobody), lambda n: new_view.users.get(n, nobody))
    # A user that was added or went (or was inlined differently): the one best overlap, if there is only one.
    for n in list(news):
        mine_users = new_view.users.get(n, nobody)
        scored = sorted(((len(mine_users & old_view.users.get(o, nobody)), o) for o in olds), reverse=True)
        if not scored or not scored[0][0] or (len(scored) > 1 and scored[1][0] == scored[0][0]):
            continue
        best = scored[0][1]
        rivals = [m for m in news if m != n and new_view.users.get(m, nobody) & old_view.users.get(best, nobody)]
        if not rivals:
            settle(best, n)
    functions = [n for n in news if new_view.kinds[n] is Kind.FUNCTION]
    if functions or not any(new_view.kinds[n] in (Kind.DATA, Kind.THREAD) for n in news):
        by(keys[0].get, keys[1].get)
    if len(olds) == len(news):
        # Same function, same stem, as many as before: compilers number them in source order.
        by(old_view.label, new_view.label)
    return pairs


def _match_moved(
    result: Correlation, old: Program, new: Program, unit: int, view: Callable[[Program, int], ObjectView]
) -> None:
    new_view = view(new, unit)
    taken = set(result.old_of.values())
    for number, kind in new_view.kinds.items():
        place = Place(unit, number)
        if kind not in _IDENTIFIED or place in result.old_of:
            continue
        for s in new_view.symbols_in.get(number, ()):
            definition = old.globals.get(s.name) if s.binding != c.STB_LOCAL else None
            if definition is None or definition.place is None or definition.place in taken:
                continue
            old_kind = view(old, definition.place.unit).kinds.get(definition.place.section)
            if old_kind is kind and definition.value == s.value:
                result.old_of[place] = definition.place
                break
