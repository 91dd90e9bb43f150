"""What a patch brings that the old build has not, by names under which another patch of that build may bring it too.

Theory of operation.  A process may carry v1..v2 when v1..v3 is to take its place.  Variables that v1..v2 brought hold
live values then, pointers to its functions and constants may be anywhere, and objects of types that only v2 knows
lie on the heap; v1..v3 was made without a look at v2.  So each patch says what it brings, in words that are the same in
both:

- *things*: functions, constants and variables that the old build has not (or has elsewhere, laid out otherwise).  A
  global one is called by its name, any other by the object it is in and, a variable, by its scope (`a.o: serve()::n`):
  numbers that compilers append say nothing.  Of a variable a digest tells its type all the way down, through what it
  holds and what its pointers lead to.
- *layouts*: the aggregates that the new build lays out otherwise than the old one, or alone knows, with a digest of
  each.

A digest of zeros means: it cannot be told what this is.  That is so of two things of one name, of a section in which
the compiler put several variables, and where debug information does not tell.  Whoever replaces one patch by another
refuses then.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from katana_cc.diff.program import Place
from katana_cc.diff.view import Kind
from katana_cc.dwarf.types import TypeLayout
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError
from katana_cc.patch.carrying import Carrier
from katana_cc.patch.model import UNKNOWN, Brought, BroughtKind, NewLayout, without_doubles
from katana_cc.recorder.record import stem

_KINDS: Final = {
    Kind.FUNCTION: BroughtKind.FUNCTION,
    Kind.CODE: BroughtKind.FUNCTION,
    Kind.CONST: BroughtKind.CONSTANT,
    Kind.DATA: BroughtKind.VARIABLE,
}
_GUARD: Final = "_ZGV"  # Itanium C++ ABI 5.1.4.1: 64 bits that tell whether a static was initialised
_AGGREGATE: Final = re.compile(r"(?:struct|union|enum) ([^*\[\]()]+)")


def things(carrier: Carrier) -> tuple[Brought, ...]:
    """What the patch carries that has no counterpart in the old build, in the order of its sections."""
    found = [
        Brought(number, _KINDS[kind], *_named(carrier, place))
        for place, number in carrier.carried.items()
        if (kind := carrier.view(place).kinds[place.section]) in _KINDS and _is_new(carrier, place)
    ]
    found += [Brought(number, BroughtKind.VARIABLE, name, UNKNOWN) for name, number in carrier.commons.items()]
    return tuple(sorted(without_doubles(found)))


def _is_new(carrier: Carrier, place: Place) -> bool:
    changes = carrier.changes
    if place in changes.replaced or place in changes.hooks or carrier.view(place).is_part(place.section):
        return False
    if place in changes.moved or place in changes.recreated:
        return True
    old = carrier.diff.correlation.old_place(place)
    return old is None or carrier.diff.old.address(old) is None


def _named(carrier: Carrier, place: Place) -> tuple[str, bytes]:
    """The name and the digest of a thing."""
    view, diff = carrier.view(place), carrier.diff
    kind = view.kinds[place.section]
    symbols = view.symbols_in.get(place.section, ())
    label = view.label(place.section)
    exported = next((s.name for s in symbols if s.binding != c.STB_LOCAL and not s.value), "")
    name = exported or f"{diff.new.unit_name(place.unit)}: {stem(label)}"
    several = kind is Kind.CODE or view.is_shared(place.section)
    if several and len({s.value for s in symbols}) != 1:
        return name, UNKNOWN
    if kind is not Kind.DATA:
        return name, _digest(name)
    variable = diff.debug.stored_in(diff.new, place)
    if variable is None:
        size = view.elf.sections[place.section].size
        return name, _digest(name, size) if label.startswith(_GUARD) else UNKNOWN
    if not exported:
        name = f"{diff.new.unit_name(place.unit)}: {variable.qualified}"
    try:
        known = diff.debug.layouts(diff.new, place.unit)
    except FormatError:
        return name, UNKNOWN
    if variable.aggregate and variable.aggregate not in known:
        return name, UNKNOWN
    layouts = deep(known, [variable.aggregate, *_mentioned(variable.type)])
    return name, _digest(variable.type, variable.size, *layouts)


def deep(known: Mapping[str, TypeLayout], keys: Iterable[str]) -> list[tuple[str, object]]:
    """The shapes of aggregates, and of all that they hold or point to, by their names; those that are not known here
    are left out: nothing here can look into one."""
    found: dict[str, object] = {}
    queue = list(keys)
    while queue:
        key = queue.pop()
        layout = known.get(key)
        if layout is None or key in found:
            continue
        found[key] = layout.shape
        queue += [b.key for b in layout.bases]
        for m in layout.members:
            queue += [m.aggregate, *_mentioned(m.type)]
    return sorted(found.items())


def _mentioned(text: str) -> Iterator[str]:
    """The aggregates that a type in words speaks of."""
    return (name.strip() for name in _AGGREGATE.findall(text))


def layouts(carrier: Carrier) -> tuple[NewLayout, ...]:
    """The aggregates that the objects of what is carried know, and that the old build does not, or otherwise."""
    diff = carrier.diff
    before = {new: old for old, new in diff.correlation.changed_units} | dict(diff.correlation.same_units)
    found: set[NewLayout] = set()
    for unit in sorted({place.unit for place in carrier.carried}):
        try:
            now = diff.debug.layouts(diff.new, unit)
            was = diff.debug.layouts(diff.old, before[unit]) if unit in before else {}
        except FormatError:
            continue  # refused by check_types
        found.update(differing(was, now))
    return tuple(sorted(found))


def differing(was: Mapping[str, TypeLayout], now: Mapping[str, TypeLayout]) -> Iterator[NewLayout]:
    """The layouts of `now` that `was` has not so."""
    for name, layout in now.items():
        if name not in was or was[name].shape != layout.shape:
            yield NewLayout(f"{layout.kind} {name}", _digest(layout.shape))


def _digest(*facts: object) -> bytes:
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).digest()


def unknown(found: Collection[Brought]) -> Iterator[Brought]:
    """Those of which it cannot be told what they are."""
    return (b for b in found if b.digest == UNKNOWN)
