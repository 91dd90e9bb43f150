"""Which objects of changed types typed pointers lead to from variables, and whether the types tell of every way there.

Theory of operation.  An object on the heap has no name, but a program that uses it gets there by pointers, from some
variable on.  Where the types of all pointers on the way are known, whoever applies the patch goes the same way and
finds each object.  So for a changed type T that is to be carried over:

    targets    T, and what holds one by value: it is laid out otherwise, too
    parts      what T holds by value: a pointer to one may lead into a T, or to its start
    walked     all types that lead to targets or parts by typed pointers, as texts: `struct list`, `struct node *`
    roots      variables with a pointer to what leads to a target

What no type tells makes the walk miss objects, and is found here, not later.  Objects that cannot be made anew where
they are found are an *obstacle*: T in a union or kept as bytes by a C++ container, names that mean two types, and the
like; it is asked or refused as if there were no walk.  Pointers that cannot be followed are *hidden*: such a one in a
union, in an open array, in a thread's own variables, in a variable that the compiler took apart.  Mostly they lead to
objects that others lead to as well; somebody has to say so.  What lies behind `void *` shows only in the process:
blocks of the size of T that nothing led to.

A type of the way that is laid out otherwise is transformed itself; one that is not gets an identity, which names its
pointers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from katana_cc.diff.handmade import makers_for
from katana_cc.diff.program import Place
from katana_cc.diff.view import Kind
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.forms import Encoding
from katana_cc.dwarf.functions import functions
from katana_cc.dwarf.graph import TypeGraph
from katana_cc.dwarf.pointees import Pointee, pointees, signature
from katana_cc.dwarf.types import TypeLayout, layouts
from katana_cc.dwarf.uses import holders_of
from katana_cc.dwarf.variables import CHANGED, Variable, variables
from katana_cc.transform.between import between_types, type_parts_by_hand
from katana_cc.transform.byhand import Part
from katana_cc.transform.model import POINTER_SIZE, Copy, Pointer, Repeat, Transformation
from katana_cc.transform.places import pointer_steps, pointers

_MALLOC_ALIGNMENT: Final = 16  # glibc with 64-bit pointers

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff


@dataclass(frozen=True, slots=True)
class Walked:
    """What a patch has to know to find all objects of changed types.

    `types`: by text, how objects of each type on the ways there are made anew, or an identity; `begins`: which other
    one of these an object of it begins with.  `pointed`: the texts of what may lie in such an object or on the way to
    one: whatever variable points to one of these, is followed.  `parts`: what functions of the user's make of an
    object, by its text.  `others`: the types of all that typed pointers lead to besides, with their pointers and no
    more: what is of one of these is no object of a changed type, and what its pointers lead to moves with them.
    """

    types: Mapping[str, Transformation] = field(default_factory=dict)
    begins: Mapping[str, str] = field(default_factory=dict)
    pointed: frozenset[str] = frozenset()
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    others: Mapping[str, Transformation] = field(default_factory=dict)


class Reach:
    """Asks for the ways to the objects of changed types.

    Args:
        diff: whose changed units are known.
        changed: keys of the types whose live objects have to be made anew.
    """

    def __init__(self, diff: Diff, changed: Collection[str]) -> None:
        self._diff = diff
        self._changed = frozenset(changed)
        self._transformations: dict[str, Transformation | str] = {}
        self._parts: dict[str, tuple[Part, ...]] = {}

    # -- answers -------------------------------------------------------------------------------------------------------

    def roots(self, key: str) -> list[str]:
        """The names of the variables from which typed pointers lead to an object of a type, in order."""
        leading = self._graph.leading_to(self._targets(key))
        return list(dict.fromkeys(v.qualified for v in self._placed if leading & self._leads(v)))

    def obstacle(self, key: str) -> str:
        """Why types do not tell of every way to the objects of a type, as a clause; "" if they do."""
        return next(self._obstacles(key), "")

    def handed_out(self, key: str) -> str:
        """The name of a function that other modules may call and that takes or gives what leads to an object of a type;
        "" if there is none."""
        exported = self._diff.old.tables.by_name
        targets = self._targets(key)
        leading = self._graph.leading_to(targets)
        for _, info in self._units:
            for f in functions(info):
                known = exported.get(f.linkage_name or f.name)
                if known is not None and known.defined:
                    for form, aggregate in signature(info, f):
                        if form.pointee in leading or self._graph.held(aggregate) & leading or aggregate in targets:
                            return f.name
        return ""

    def passes(self, key: str) -> frozenset[str]:
        """The keys of the types, laid out otherwise themselves, that the ways to the objects of one lead through."""
        known = (self._graph.pointees[text].aggregate for text in self._ways(key))
        return (self._targets(key) | frozenset(known)) & self._moving

    def walked(self, keys: Collection[str]) -> Walked:
        """What the patch is to know, for types without an obstacle."""
        found: dict[str, Transformation] = {}
        pointed: set[str] = set()
        for key in keys:
            ways = self._ways(key)
            made = [self._of_text(text) for text in ways] + [self._transformation(k) for k in self._targets(key)]
            found |= {t.name: t for t in made if isinstance(t, Transformation) and t.old_size and t.new_size}
            pointed |= {*ways, *self._graph.fields(key)}
        begins = {text: next((x for x in self._graph.beginning(text) if x in found), "") for text in found}
        others = {text: t for text, t in self._others() if text not in found}
        pointed |= others.keys()
        parts = {text: self._parts[text] for text in found if self._parts.get(text)}
        return Walked(dict(sorted(found.items())), begins, frozenset(pointed), parts, dict(sorted(others.items())))

    def _others(self) -> Iterator[tuple[str, Transformation]]:
        """What typed pointers lead to from variables, as far as it stays as it is."""
        waiting = {text for v in self._placed for text in self._leads(v)}
        seen: set[str] = set()
        while waiting:
            text = waiting.pop()
            seen.add(text)
            made = self._of_text(text) if text in self._graph.pointees else ""
            if isinstance(made, Transformation):
                waiting |= self._graph.next(text) - seen
                if made.is_identity and made.old_size:
                    yield text, _pointers_only(made)

    # -- the graph -----------------------------------------------------------------------------------------------------

    @cached_property
    def _units(self) -> list[tuple[int, DebugInfo]]:
        """The objects of the old build whose debug information tells of types."""
        old = self._diff.old
        found = ((unit, self._diff.debug.readable(old, unit)) for unit in range(len(old.snapshot.units)))
        return [(unit, info) for unit, info in found if info is not None]

    @cached_property
    def _graph(self) -> TypeGraph:
        return TypeGraph((layouts(info), pointees(info)) for _, info in self._units)

    @cached_property
    def _variables(self) -> list[tuple[int, Variable]]:
        """Those that have storage in the old build, or a part of it, and may hold a live pointer."""
        return [
            (unit, v)
            for unit, info in self._units
            for v in variables(info)
            if not v.declaration and (self._is_live(unit, v) if v.place is not None else v.pieces or _is_odd(v))
        ]

    @cached_property
    def _placed(self) -> list[Variable]:
        """Those of them from which a walk can begin."""
        return [v for unit, v in self._variables if self._is_placed(unit, v)]

    def _is_placed(self, unit: int, v: Variable) -> bool:
        known = v.place is not None and not v.thread_local
        return known and self._diff.old.address(Place(unit, v.place.section if v.place else 0)) is not None

    def _is_live(self, unit: int, v: Variable) -> bool:
        """Whether a variable is in the output, and can be written to."""
        assert v.place is not None
        place, old = Place(unit, v.place.section), self._diff.old
        if v.constant and self._diff.view(old, unit).kinds.get(place.section) is not Kind.DATA:
            return False
        return v.thread_local or not v.is_stored or old.address(place) is not None or place in old.unplaced

    def _leads(self, v: Variable) -> frozenset[str]:
        own = frozenset([v.form.pointee]) if v.form.encoding is Encoding.POINTER else frozenset()
        return own | self._graph.held(v.aggregate)

    def _targets(self, key: str) -> frozenset[str]:
        return holders_of([key], self._graph.layouts)

    def _ways(self, key: str) -> frozenset[str]:
        return self._graph.leading_to(self._targets(key) | self._graph.inside(key))

    # -- obstacles -----------------------------------------------------------------------------------------------------

    def hidden(self, key: str) -> str:
        """From where pointers lead to objects of a type that cannot be followed, as a clause; "" if from nowhere."""
        return next(self._hidden(key), "")

    def _hidden(self, key: str) -> Iterator[str]:
        leading = self._graph.leading_to(self._targets(key))
        for holder in self._graph.layouts:
            for hidden in self._graph.hidden(holder):
                if not hidden.is_value and hidden.text in leading:
                    yield f"from {hidden.where}"
        for unit, v in self._variables:
            if not leading & self._leads(v):
                continue
            if v.thread_local:
                yield f"from {v.qualified}, of which each thread has one of its own"
            elif v.place is None:
                why = "how the compiler keeps it is not known" if _is_odd(v) else "the compiler took it apart"
                yield f"from {v.qualified} ({why})"
            elif not self._is_placed(unit, v):
                yield f"from {v.qualified}, of which the place is not known"

    def _obstacles(self, key: str) -> Iterator[str]:
        graph, targets = self._graph, self._targets(key)
        for holder in graph.layouts:
            for hidden in graph.hidden(holder):
                if hidden.is_value and hidden.text in targets:
                    yield f"one is {hidden.where}"
        for text in sorted(self._ways(key)):
            made = self._of_text(text)
            if isinstance(made, str):
                yield made
        for target in sorted(targets):
            made = self._transformation(target)
            if isinstance(made, str):
                yield made
            elif not made.is_identity:
                yield from self._as_bytes(target)
            yield from self._begins_as_any(target)
            yield from self._aligned(target)
        yield from self._left_behind(targets)
        yield from self._lost_pointers(key)

    def _lost_pointers(self, key: str) -> Iterator[str]:
        """Pointers in fields that a function of the user's takes over, since it alone knows to what: where they lead to
        objects that are made anew, these would not be found."""
        maker, made = self._diff.makers.get(key), self._transformation(key)
        if maker is None or isinstance(made, str):
            return
        same = between_types(key, self._graph.layouts, key, self._graph.layouts)
        known = {p.old for p in pointers(made)}
        for p in pointers(same) if isinstance(same, Transformation) else ():
            if p.old not in known and p.pointee in self._ways(key):
                yield f"`{p.path}` of {key}, which only {maker.name} takes over, leads to others"

    def _begins_as_any(self, key: str) -> Iterator[str]:
        """A union at the start of an object: a pointer to one of its members may be one to the object."""
        pointed = {known.aggregate for known in self._graph.pointees.values()}
        for union in self._graph.unions_first(key):
            if member := next((m for m in sorted(self._graph.inside(union)) if m in pointed), ""):
                yield f"{key} begins with union {union}, and a pointer to {member} may lead to the whole"

    def _aligned(self, key: str) -> Iterator[str]:
        """An alignment that malloc does not give, in either build."""
        new = (self._diff.debug.layouts(self._diff.new, unit) for _, unit in self._diff.correlation.changed_units)
        inside = {key, *self._graph.inside(key)}
        asked = (known[k].alignment for known in (self._graph.layouts, *new) for k in inside if k in known)
        if (most := max(asked, default=0)) > _MALLOC_ALIGNMENT:
            yield f"{key} asks to be aligned to {most} bytes, which malloc does not give"

    def _as_bytes(self, key: str) -> Iterator[str]:
        """What a C++ container keeps an object in that it makes and ends itself."""
        size = self._graph.layouts[key].size
        for name, layout in self._graph.layouts.items():
            if "<" in name and key in name[name.index("<") :]:
                for m in layout.members:
                    if m.size == size and m.form.bounds and m.form.element_size == 1:
                        yield f"struct {name} keeps one as bytes"

    def _left_behind(self, targets: Collection[str]) -> Iterator[str]:
        """Objects that were not made again, so that the new build lays a type out in two ways."""
        new = self._diff.new
        for unit in sorted(self._diff.correlation.same_units):
            for key in sorted(self._moving.intersection(targets, self._diff.debug.layouts(new, unit))):
                yield f"{new.unit_name(unit)} was not made again, and lays {key} out as before"

    # -- transformations -----------------------------------------------------------------------------------------------

    @cached_property
    def _moving(self) -> frozenset[str]:
        """The keys of the types that are made anew, and of what holds one."""
        return holders_of(self._changed, self._graph.layouts)

    def _of_text(self, text: str) -> Transformation | str:
        """How what a text names is made anew, or why that is not known."""
        known = self._graph.pointees[text]
        if known.to:
            element: Transformation | str = _pointer(text, known.to)
        elif known.aggregate:
            element = self._transformation(known.aggregate)
        else:
            element = Transformation(text, known.size, known.size, (Copy(0, 0, known.size),))
        if isinstance(element, str):
            return element
        self._parts[text] = _in_array(known, element, self._parts.get(element.name, ()))
        return _array(text, known, element)

    def _transformation(self, key: str) -> Transformation | str:
        found = self._transformations.get(key)
        if found is None:
            found = self._transformations[key] = self._made(key)
        return found

    def _made(self, key: str) -> Transformation | str:
        if key in self._graph.ambiguous:
            return f"{key} is the name of several types"
        sides = list(self._sides(key))
        if not sides:
            return f"nothing tells how {key} is laid out"
        makers = self._diff.makers
        found = {
            between_types(key, before, key, after, self._diff.answers, makers_for(makers, before, after))
            for before, after in sides
        }
        made = found.pop()
        if found:
            return f"{key} is laid out otherwise in several ways"
        if isinstance(made, Transformation):
            self._parts[made.name] = type_parts_by_hand(key, *sides[0], makers_for(makers, *sides[0]))
            return made
        return made[0].text

    def _sides(self, key: str) -> Iterator[tuple[Mapping[str, TypeLayout], Mapping[str, TypeLayout]]]:
        """The layouts of both builds to look a type up in: of each pair of objects that may differ in it, else of any
        old one."""
        if key in self._moving:
            for old_unit, new_unit in self._diff.correlation.changed_units:
                before = self._diff.debug.layouts(self._diff.old, old_unit)
                after = self._diff.debug.layouts(self._diff.new, new_unit)
                if key in before and key in after:
                    yield before, after
            return
        for _, info in self._units:
            known = layouts(info)
            if key in known:
                yield known, known
                return


def _is_odd(v: Variable) -> bool:
    """Whether a variable is stored in a way that is not understood."""
    return v.place is None and v.why.startswith(CHANGED)


def _pointer(text: str, to: str) -> Transformation:
    return Transformation(text, POINTER_SIZE, POINTER_SIZE, (Pointer(0, 0, to),))


def _pointers_only(t: Transformation) -> Transformation:
    """An identity without what holds no pointer."""
    return replace(t, steps=tuple(pointer_steps(t.steps)) or (Copy(0, 0, t.old_size),))


def _in_array(known: Pointee, element: Transformation, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The parts of an array, whose elements have these."""
    count = 1
    for bound in known.bounds:
        count *= bound or 1
    old, new = element.old_size, element.new_size
    return tuple(p._replace(old=p.old + i * old, new=p.new + i * new) for i in range(count) for p in parts)


def _array(text: str, known: Pointee, element: Transformation) -> Transformation:
    """An array of elements; of an open one, an element: how many there are, the block says."""
    made = element
    for count in reversed(known.bounds):
        if count:
            step = Repeat(count, 0, made.new_size, 0, made.old_size, made.steps, "[]", "[]")
            steps = (step,) if made.steps else ()
            made = Transformation(text, made.old_size * count, made.new_size * count, steps)
    return Transformation(text, made.old_size, made.new_size, made.steps)
