"""Whether an aggregate is laid out in both builds alike, all the way down; and whether it holds pointers.

What is alike is copied whole, which keeps a transformation as short as the change.  Names alone do not say it: a struct
may hold another one whose layout changed.
"""

from __future__ import annotations

from katana_cc.dwarf.forms import Encoding
from katana_cc.dwarf.types import TypeKind, TypeLayout
from katana_cc.transform.values import Layouts

_DEPTH_LIMIT = 100  # of aggregates in aggregates: damaged input must end somewhere


class Alike:
    """Compares the aggregates of two builds; what was found is kept."""

    def __init__(self, old: Layouts, new: Layouts) -> None:
        self._old, self._new = old, new
        self._found: dict[tuple[str, str], bool] = {}
        self._pointers: dict[str, bool] = {}

    def alike(self, old_key: str, new_key: str) -> bool:
        """Whether a live object of the old type is one of the new as it stands."""
        key = old_key, new_key
        found = self._found.get(key)
        if found is None:
            self._found[key] = True  # damaged input may hold itself
            old, new = self._old.get(old_key), self._new.get(new_key)
            found = self._found[key] = old is not None and new is not None and self._same(old, new)
        return found

    def _same(self, old: TypeLayout, new: TypeLayout) -> bool:
        if (old.kind, old.size, len(old.members), old.bases) != (new.kind, new.size, len(new.members), new.bases):
            return False
        if old.kind is TypeKind.ENUM:
            return old.enumerators == new.enumerators
        for was, now in zip(old.members, new.members, strict=True):
            facts = (was.name, was.bit_offset, was.bit_size, was.size, was.type, was.form)
            if facts != (now.name, now.bit_offset, now.bit_size, now.size, now.type, now.form):
                return False
            if bool(was.aggregate) != bool(now.aggregate):
                return False
            if was.aggregate and not self.alike(was.aggregate, now.aggregate):
                return False
            if was.form.encoding is Encoding.AGGREGATE and not was.aggregate:
                return False  # nothing is known of what it holds
        return all(self.alike(b.key, b.key) for b in old.bases)

    def holds_pointers(self, old_key: str) -> bool:
        """Whether an old aggregate holds a pointer by value, members of unions left out (no step can tell of them)."""
        found = self._pointers.get(old_key)
        if found is None:
            self._pointers[old_key] = False
            layout = self._old.get(old_key)
            found = layout is not None and layout.kind is TypeKind.STRUCT and self._holds(layout)
            self._pointers[old_key] = found
        return found

    def _holds(self, layout: TypeLayout) -> bool:
        if any(m.form.encoding is Encoding.POINTER for m in layout.members):
            return True
        inner = [m.aggregate for m in layout.members if m.aggregate] + [b.key for b in layout.bases]
        return any(self.holds_pointers(key) for key in inner)

    def open_ended(self, old_key: str, depth: int = 0) -> bool:
        """Whether an old aggregate ends in an open array (`char data[]`, or `data[0]` before C99 had it)."""
        layout = self._old.get(old_key)
        if layout is None or not layout.members or depth > _DEPTH_LIMIT:
            return False
        last = layout.members if layout.kind is TypeKind.UNION else layout.members[-1:]
        return any(
            (m.form.bounds and not m.form.count) or (m.aggregate and self.open_ended(m.aggregate, depth + 1))
            for m in last
        )


def is_empty(key: str, layouts: Layouts, depth: int = 0) -> bool:
    """Whether an aggregate has no field at all: an empty class, whose byte may be another field's."""
    layout = layouts.get(key)
    if layout is None or layout.kind is not TypeKind.STRUCT or depth > _DEPTH_LIMIT:
        return False
    inner = [b.key for b in layout.bases]
    for member in layout.members:
        if member.form.bounds or member.form.encoding is not Encoding.AGGREGATE:
            return False
        inner.append(member.aggregate)
    return all(is_empty(k, layouts, depth + 1) for k in inner)
