"""Which section of the old program is the same thing as which section of the new one.

Theory of operation.  With -ffunction-sections and -fdata-sections a section holds one function or one datum, so
sections are what is correlated, within objects that are one (`units.py`); in those that are not the same:

1. A global or weak name is its own identity.
2. A local's name without the compiler's numbers (`counter.0` → `counter`) is its identity when only one on either side
   has it.  So renumbering (`.3` became `.5`, because another static appeared) changes nothing.
3. Several of one stem (a `static int n` in each of several functions; two clones of one function) are told apart by
   the scope debug information declares them in (`f()::n`), then by who uses them: the set of functions that refer to
   each.  Equal sets pair first, then the one best overlap.  Even a single one is not the same when its scope differs
   and no function uses both: `n` of `f` went, and `g` got one.  When one does, since `f` and `g` were inlined into it,
   `f` may have been renamed or replaced: that is open.
4. Of what is left, equal canonical keys pair, then equal exact names, when the two sides have as many.
5. A variable that the compiler took apart (clang: `s.0`, `s.1` of a struct `s`) is several; only parts at one offset of
   it pair.  When the whole became parts, or parts the whole, code that uses it is refused.
6. What is still open stays unpaired.  For functions and constants that is harmless (the new one is carried).  A
   writable variable that could be one of several is *ambiguous*: code that uses it is refused, since a wrong guess
   would read another variable's live value.

A variable or function that turned static or global in its file keeps its identity; a variable that moved into a
function of its file or out of it is told by the name it is declared by, since its symbol is another; a global that
moved to another unit is found by name afterwards, and so is the copy of an inline function (COMDAT) that the old link
kept; a static one that moved with its functions by these.  A section that holds several data (without -fdata-sections)
is identified by its own name.  Unnamed read-only data (jump tables) and literals have no identity and are compared by
content wherever something refers to them.

Out of scope here: renamed functions and variables; they are a removed and a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from katana_cc.diff.program import Place, Program
from katana_cc.diff.scope import Scope
from katana_cc.diff.units import Alike, pair_units
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.elf import constants as c
from katana_cc.recorder.record import stem

Scopes = Callable[[Program, int], Mapping[int, Scope]]  # by section, for variables that debug information knows

_LIVE = (Kind.DATA, Kind.THREAD)
_IDENTIFIED = (Kind.FUNCTION, Kind.DATA, Kind.CONST, Kind.THREAD)


@dataclass(slots=True)
class Correlation:
    """`old_of[new]` is the same thing in the old program; `ambiguous` new variables could be one of several.

    `same_units` pairs units that are the same but for where things are declared (new → old).
    """

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

    def new_places(self, olds: Iterable[Place]) -> dict[Place, Place]:
        """Old → new, for those of `olds` that are still there."""
        new_of = {old: new for new, old in self.old_of.items()}
        new_units = {old: new for new, old in self.same_units.items()}
        found = {}
        for old in olds:
            if old.unit in new_units:
                found[old] = Place(new_units[old.unit], old.section)
            elif old in new_of:
                found[old] = new_of[old]
        return found

    def forget(self, new: Place) -> None:
        """Take a new thing for one that did not exist before."""
        self.old_of.pop(new, None)


def correlate(
    old: Program, new: Program, view: Callable[[Program, int], ObjectView], scopes: Scopes, alike: Alike
) -> Correlation:
    """The correlation of two programs; `view` gives the (cached) view of a unit."""
    same, changed, came, gone = pair_units(old, new, alike)
    result = Correlation(new_units=came, removed_units=gone, changed_units=changed, same_units=same)
    for old_unit, new_unit in result.changed_units:
        _match_sections(result, old, new, old_unit, new_unit, view, scopes)
    units = [*result.new_units, *(n for _, n in result.changed_units)]
    for unit in units:
        _match_moved(result, old, new, unit, view)
    for _, unit in result.changed_units:
        _match_kept_copies(result, old, new, unit, view)
    _match_moved_locals(result, old, new, units, view, scopes)
    return result


def _match_sections(
    result: Correlation,
    old: Program,
    new: Program,
    old_unit: int,
    new_unit: int,
    view: Callable[[Program, int], ObjectView],
    scopes: Scopes,
) -> None:
    old_view, new_view = view(old, old_unit), view(new, new_unit)
    sides = _Sides(old_view, new_view, scopes(old, old_unit), scopes(new, new_unit))
    open_olds: dict[str, list[int]] = {}
    open_news: dict[str, list[int]] = {}
    for o, n in _whole_sections(old_view, new_view):
        result.old_of[Place(new_unit, n)] = Place(old_unit, o)
    old_groups, new_groups = _groups(old_view), _groups(new_view)
    for identity, news in new_groups.items():
        olds = old_groups.get(identity, [])
        pairs = _pair(sides, olds, news, strong=identity[0])
        for o, n in pairs:
            result.old_of[Place(new_unit, n)] = Place(old_unit, o)
        result.ambiguous |= {Place(new_unit, n) for n in _undecided(sides, olds, news, pairs) if not identity[0]}
        if len(news) == 1 and not pairs and not olds:
            open_news.setdefault(identity[2], []).append(news[0])
    for identity, olds in old_groups.items():
        if len(olds) == 1 and identity not in new_groups:
            open_olds.setdefault(identity[2], []).append(olds[0])
    # It turned static, or lost that: `counter` of this file is still `counter` of this file.
    for name, news in open_news.items():
        olds = open_olds.get(name, [])
        if len(olds) == len(news) == 1 and old_view.is_function(olds[0]) == new_view.is_function(news[0]):
            result.old_of[Place(new_unit, news[0])] = Place(old_unit, olds[0])
    _match_declared(result, sides, old_unit, new_unit)


def _match_declared(result: Correlation, sides: _Sides, old_unit: int, new_unit: int) -> None:
    """Pair variables that moved into a function of their unit or out of it: clang and C++ call them otherwise then
    (`n`, `f.n`; `_ZL1n`, `_ZZ1fvE1n`), but they are declared by one name."""
    matched = {o.section for o in result.old_of.values() if o.unit == old_unit}
    done = {p.section for p in (*result.old_of, *result.ambiguous) if p.unit == new_unit}
    gone, came = _declared(sides.old, sides.old_scopes, matched), _declared(sides.new, sides.new_scopes, done)
    for name in gone.keys() & came.keys():
        olds, news = gone[name], came[name]
        pairs = _pair(sides, olds, news, strong=False)
        for o, n in pairs:
            result.old_of[Place(new_unit, n)] = Place(old_unit, o)
        result.ambiguous |= {Place(new_unit, n) for n in _undecided(sides, olds, news, pairs)}


def _declared(view: ObjectView, scopes: Mapping[int, Scope], done: Collection[int]) -> dict[str, list[int]]:
    """The writable variables that are left, by the name they are declared by."""
    found: dict[str, list[int]] = {}
    for section, scope in scopes.items():
        if section not in done and view.kinds.get(section) in _LIVE and not view.is_shared(section):
            found.setdefault(scope.declared, []).append(section)
    return found


def _pair(sides: _Sides, olds: Sequence[int], news: Sequence[int], *, strong: bool) -> list[tuple[int, int]]:
    """Which sections of one name are which."""
    if len(olds) == len(news) == 1:
        return [(olds[0], news[0])] if strong or sides.may_be_one(olds[0], news[0]) else []
    parts = sorted({sides.new_scopes.get(n, _WHOLE).part for n in news})
    return [pair for part in parts for pair in _tell_apart(sides, *sides.of_part(part, olds, news))]


def _undecided(
    sides: _Sides, olds: Sequence[int], news: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> Iterator[int]:
    """The new variables that may be one of the old ones that are left."""
    left = set(olds) - {o for o, _ in pairs}
    for n in news:
        live = n not in {m for _, m in pairs} and sides.new.kinds[n] in _LIVE
        if live and any(sides.may_overlap(o, n) for o in left):
            yield n


@dataclass(frozen=True, slots=True)
class _Sides:
    """The two objects whose locals are told apart."""

    old: ObjectView
    new: ObjectView
    old_scopes: Mapping[int, Scope]
    new_scopes: Mapping[int, Scope]

    def may_be_one(self, o: int, n: int) -> bool:
        """Whether a single local of one stem on either side can be the same thing."""
        before, after = self.old_scopes.get(o, _WHOLE), self.new_scopes.get(n, _WHOLE)
        if before.part != after.part or (before != after and before.is_of_function and after.is_of_function):
            return False
        return self._may_be_of_one(o, n)

    def may_overlap(self, o: int, n: int) -> bool:
        """Whether one can be the other, or a part of it."""
        parts = self.old_scopes.get(o, _WHOLE).part, self.new_scopes.get(n, _WHOLE).part
        return (parts[0] == parts[1] or _WHOLE.part in parts) and self._may_be_of_one(o, n)

    def of_part(self, part: int, olds: Iterable[int], news: Iterable[int]) -> tuple[list[int], list[int]]:
        """Those that are one part of their variables."""
        return (
            [o for o in olds if self.old_scopes.get(o, _WHOLE).part == part],
            [n for n in news if self.new_scopes.get(n, _WHOLE).part == part],
        )

    def moved_along(self, o: int, n: int) -> bool:
        """Whether two locals of one stem, of different units, belong to one function or are used by one."""
        before, after = self.old_scopes.get(o, _WHOLE), self.new_scopes.get(n, _WHOLE)
        if before.part != after.part:
            return False
        same_function = "::" in after.name and before.name == after.name
        return same_function or bool(self.old.users.get(o, _NOBODY) & self.new.users.get(n, _NOBODY))

    def _may_be_of_one(self, o: int, n: int) -> bool:
        before, after = self.old_scopes.get(o, _WHOLE).name, self.new_scopes.get(n, _WHOLE).name
        if not before or not after or before == after:
            return True
        return bool(self.old.users.get(o, _NOBODY) & self.new.users.get(n, _NOBODY))


_WHOLE = Scope("")
_NOBODY: frozenset[str] = frozenset()


def _groups(view: ObjectView) -> dict[tuple[bool, bool, str], list[int]]:
    """Sections by identity: (global?, function?, name or stem)."""
    found: dict[tuple[bool, bool, str], list[int]] = {}
    for number, kind in view.kinds.items():
        if kind in _IDENTIFIED and view.symbols_in.get(number) and not view.is_shared(number):
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
            unnamed = kind in _IDENTIFIED and (not view.symbols_in.get(number) or view.is_shared(number))
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


def _tell_apart(sides: _Sides, olds: Iterable[int], news: Iterable[int]) -> list[tuple[int, int]]:
    """Pair several locals of one stem."""
    old_view, new_view = sides.old, sides.new
    olds, news = list(olds), list(news)
    pairs: list[tuple[int, int]] = []

    def settle(o: int, n: int) -> None:
        pairs.append((o, n))
        olds.remove(o)
        news.remove(n)

    def by(trait_old: Callable[[int], object], trait_new: Callable[[int], object]) -> None:
        """Pair those whose trait only one on either side has."""
        for n in list(news):
            mine = [o for o in olds if trait_old(o) == trait_new(n) and sides.may_be_one(o, n)]
            rivals = [m for m in news if trait_new(m) == trait_new(n)]
            if len(mine) == 1 and len(rivals) == 1:
                settle(mine[0], n)

    by(lambda o: sides.old_scopes.get(o) or o, lambda n: sides.new_scopes.get(n) or str(n))
    if not olds or not news:
        return pairs
    if all(n in sides.new_scopes for n in news) and all(o in sides.old_scopes for o in olds):
        # All scopes are known, and none of those left is in both builds: only functions that were renamed remain.
        candidates = [(o, n) for o in olds for n in news if sides.may_be_one(o, n)]
        if not candidates:
            return pairs
    by(lambda o: old_view.users.get(o, _NOBODY), lambda n: new_view.users.get(n, _NOBODY))
    # A user that was added or went (or was inlined differently): the one best overlap, if there is only one.
    for n in list(news):
        mine_users = new_view.users.get(n, _NOBODY)
        fitting = (o for o in olds if sides.may_be_one(o, n))
        scored = sorted(((len(mine_users & old_view.users.get(o, _NOBODY)), o) for o in fitting), reverse=True)
        if not scored or not scored[0][0] or (len(scored) > 1 and scored[1][0] == scored[0][0]):
            continue
        best = scored[0][1]
        rivals = [m for m in news if m != n and new_view.users.get(m, _NOBODY) & old_view.users.get(best, _NOBODY)]
        if not rivals:
            settle(best, n)
    functions = [n for n in news if new_view.kinds[n] is Kind.FUNCTION]
    if functions or not any(new_view.kinds[n] in (Kind.DATA, Kind.THREAD) for n in news):
        by(old_view.keys.of, new_view.keys.of)
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
            data = (Kind.DATA, Kind.CONST, Kind.THREAD)
            if (old_kind is kind or (kind in data and old_kind in data)) and definition.value == s.value:
                result.old_of[place] = definition.place
                break


def _match_kept_copies(
    result: Correlation, old: Program, new: Program, unit: int, view: Callable[[Program, int], ObjectView]
) -> None:
    """Of inline functions that several objects hold, the old one is the copy that the old link kept."""
    new_view = view(new, unit)
    for number in new_view.kinds:
        place = Place(unit, number)
        before = result.old_of.get(place)
        if before is None or old.address(before) is not None or before in old.unplaced:
            continue
        for s in new_view.symbols_in.get(number, ()):
            kept = old.globals.get(s.name) if s.binding != c.STB_LOCAL else None
            chosen = new.globals.get(s.name)
            if kept is None or kept.place is None or kept.address is None or chosen is None or chosen.place != place:
                continue
            if kept.value == s.value:
                result.old_of[place] = kept.place
                break


def _match_moved_locals(
    result: Correlation,
    old: Program,
    new: Program,
    units: Iterable[int],
    view: Callable[[Program, int], ObjectView],
    scopes: Scopes,
) -> None:
    """Pair static variables that went from one unit and came in another: with the function, or with what uses them."""
    came = _unpaired(new, units, set(result.old_of) | result.ambiguous, view)
    if not came:
        return
    gone = _unpaired(
        old, [*result.removed_units, *(o for o, _ in result.changed_units)], set(result.old_of.values()), view
    )
    candidates: dict[Place, list[Place]] = {}
    for name in came.keys() & gone.keys():
        for n in came[name]:
            for o in gone[name]:
                sides = _Sides(view(old, o.unit), view(new, n.unit), scopes(old, o.unit), scopes(new, n.unit))
                if (o.unit, n.unit) not in result.changed_units and sides.moved_along(o.section, n.section):
                    candidates.setdefault(n, []).append(o)
    claims = [o for several in candidates.values() for o in several]
    for n, several in candidates.items():
        if len(several) == 1 and claims.count(several[0]) == 1:
            result.old_of[n] = several[0]
        else:
            result.ambiguous.add(n)


def _unpaired(
    program: Program, units: Iterable[int], done: set[Place], view: Callable[[Program, int], ObjectView]
) -> dict[str, list[Place]]:
    """Local variables of some units that are not `done`, by their stems."""
    found: dict[str, list[Place]] = {}
    for unit in units:
        v = view(program, unit)
        for number, kind in v.kinds.items():
            place = Place(unit, number)
            if kind is not Kind.DATA or place in done or v.is_global(number) or v.is_shared(number):
                continue
            if symbols := v.symbols_in.get(number):
                found.setdefault(stem(symbols[0].name), []).append(place)
    return found
