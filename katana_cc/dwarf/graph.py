"""Which types lead to which by typed pointers: a graph of all types of a program.

    struct list { int n; struct node **slots; };          struct list  →  struct node *  →  struct node
    struct node { int key; struct node *next; };          struct node  →  struct node

Nodes are the texts of what pointers lead to (`katana_cc.dwarf.pointees`): an aggregate leads to whatever the pointers
in it do, those in nested aggregates, bases and arrays among them.  Pointers in unions and in open arrays lead nowhere:
which member is in use, and how many elements there are, no type says.  Who asks whether types tell of *every* way to
an object asks for these hidden ones too.

Types are known by name, as in C; names that mean several layouts in one program are told (`ambiguous`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from katana_cc.dwarf.forms import Encoding
from katana_cc.dwarf.pointees import Pointee
from katana_cc.dwarf.types import Member, TypeKind, TypeLayout


class Hidden(NamedTuple):
    """A pointer, or an object, that a type holds where nobody can follow it: `text` is what it leads to, or the
    aggregate itself (`is_value`); `where` says it in words."""

    text: str
    is_value: bool
    where: str


class _Held(NamedTuple):
    texts: frozenset[str]
    hidden: tuple[Hidden, ...]


class TypeGraph:
    """The types of a program, from the layouts and pointees of each of its objects."""

    def __init__(self, objects: Iterable[tuple[Mapping[str, TypeLayout], Mapping[str, Pointee]]]) -> None:
        self.layouts: dict[str, TypeLayout] = {}
        self.pointees: dict[str, Pointee] = {}
        self.ambiguous: set[str] = set()
        self._held: dict[str, _Held] = {}
        for layouts, pointees in objects:
            for key, layout in layouts.items():
                first = self.layouts.setdefault(key, layout)
                name, _, copy = key.rpartition("#")
                if first.shape != layout.shape:
                    self.ambiguous.add(key)
                elif copy.isdigit() and name in layouts:
                    self.ambiguous |= {key, name}
            self.pointees.update(pointees)
        self._leaders: dict[str, set[str]] = defaultdict(set)
        for text in self.pointees:
            for target in self.next(text):
                self._leaders[target].add(text)

    def held(self, key: str) -> frozenset[str]:
        """The texts of what the pointers in an aggregate lead to."""
        return self._of(key).texts

    def hidden(self, key: str) -> tuple[Hidden, ...]:
        """What it holds where nobody can follow it."""
        return self._of(key).hidden

    def next(self, text: str) -> frozenset[str]:
        """The texts of what lies behind the pointers in what `text` names."""
        known = self.pointees.get(text)
        if known is None:
            return frozenset()
        return frozenset([known.to]) if known.to else self.held(known.aggregate)

    def leading_to(self, keys: Collection[str]) -> frozenset[str]:
        """The texts of all from which typed pointers lead, however far, to an aggregate of these keys; those aggregates
        themselves, and arrays of them, among them."""
        waiting = [text for text, known in self.pointees.items() if known.aggregate in keys]
        found = set(waiting)
        while waiting:
            more = self._leaders.get(waiting.pop(), set()) - found
            found |= more
            waiting += more
        return frozenset(found)

    def inside(self, key: str) -> frozenset[str]:
        """The keys of the aggregates that one holds by value, however deep: members, elements, bases."""
        found: set[str] = set()
        waiting = [key]
        while waiting:
            layout = self.layouts.get(waiting.pop())
            for inner in _inner(layout) if layout is not None else ():
                if inner and inner not in found:
                    found.add(inner)
                    waiting.append(inner)
        return frozenset(found)

    def fields(self, key: str) -> Iterator[str]:
        """The texts of what lies in an aggregate: itself, its fields, their fields, elements of arrays."""
        return fields_in(self.layouts, key)

    def beginning(self, text: str) -> Iterator[str]:
        """The texts of what lies at byte 0 of what `text` names, from the outside inwards, itself left out.

        A union ends it: which of its members is there, no type says.
        """
        known = self.pointees.get(text)
        if known is not None:
            yield from list(with_elements(text, known.bounds))[1:]
        key = known.aggregate if known is not None else text.partition(" ")[2]
        for inner, member in self._first(key):
            yield from with_elements(member.type, member.form.bounds) if member is not None else [f"struct {inner}"]

    def unions_first(self, key: str) -> list[str]:
        """The keys of the unions at byte 0 of an aggregate."""
        keys = [key, *(inner for inner, _ in self._first(key))]
        return [k for k in keys if k in self.layouts and self.layouts[k].kind is TypeKind.UNION]

    def _first(self, key: str) -> Iterator[tuple[str, Member | None]]:
        """(key of the aggregate that it is, "" for none; the member, None for a base) of what lies at byte 0, from the
        outside inwards."""
        seen = {""}
        while key not in seen:
            seen.add(key)
            layout = self.layouts.get(key)
            if layout is None or layout.kind is not TypeKind.STRUCT:
                return
            members = [m for m in layout.members if not m.bit_offset and m.size and m.bit_size is None]
            bases = [b for b in layout.bases if not b.offset and (self.held(b.key) or self._is_filled(b.key))]
            if bases:
                key = bases[0].key
                yield key, None
            elif members:
                key = members[0].aggregate
                yield key, members[0]
            else:
                return

    def _is_filled(self, key: str) -> bool:
        layout = self.layouts.get(key)
        return layout is not None and bool(layout.members or layout.bases)

    def _of(self, key: str) -> _Held:
        found = self._held.get(key)
        if found is None:
            self._held[key] = _Held(frozenset(), ())  # damaged input may hold itself
            layout = self.layouts.get(key)
            if layout is not None and layout.kind is not TypeKind.ENUM:
                found = self._held[key] = self._gathered(layout)
            else:
                found = self._held[key]
        return found

    def _gathered(self, layout: TypeLayout) -> _Held:
        texts: set[str] = set()
        hidden: list[Hidden] = []
        title = f"{layout.kind} {layout.name}"
        for member in layout.members:
            if layout.kind is TypeKind.UNION:
                hidden += self._unseen(member, f"`{member.name}` of {title}, which may be something else")
            elif member.form.bounds and not member.form.count:
                where = f"`{member.name}` of {title}, of which no type says how many there are"
                hidden += self._unseen(member, where)
            elif member.form.encoding is Encoding.POINTER:
                texts.add(member.form.pointee)
            elif member.aggregate:
                inner = self._of(member.aggregate)
                texts |= inner.texts
                hidden += inner.hidden
        for base in layout.bases:
            inner = self._of(base.key)
            texts |= inner.texts
            hidden += inner.hidden
        return _Held(frozenset(texts), tuple(dict.fromkeys(hidden)))

    def _unseen(self, member: Member, where: str) -> Iterator[Hidden]:
        if member.form.encoding is Encoding.POINTER:
            yield Hidden(member.form.pointee, False, where)
        elif member.aggregate:
            yield Hidden(member.aggregate, True, where)
            inner = self._of(member.aggregate)
            yield from (Hidden(text, False, where) for text in sorted(inner.texts))
            yield from inner.hidden


def fields_in(layouts: Mapping[str, TypeLayout], key: str) -> Iterator[str]:
    """The texts of what lies in an aggregate, as `TypeGraph.fields` says."""
    waiting, seen = [key], set()
    while waiting:
        key = waiting.pop()
        layout = layouts.get(key)
        if layout is None or key in seen:
            continue
        seen.add(key)
        if layout.kind is not TypeKind.ENUM:
            yield f"{layout.kind} {key}"
        for m in layout.members:
            yield from with_elements(m.type, m.form.bounds)
            waiting.append(m.aggregate)
        waiting += [b.key for b in layout.bases]


def with_elements(text: str, bounds: tuple[int | None, ...]) -> Iterator[str]:
    """The text of a type, and of the elements of the array that it is."""
    yield text
    for count in bounds:
        text = text.replace(f"[{'' if count is None else count}]", "", 1)
        yield text


def _inner(layout: TypeLayout) -> list[str]:
    return [m.aggregate for m in layout.members] + [b.key for b in layout.bases]
