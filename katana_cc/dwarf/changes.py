"""How type layouts differ between two builds, each difference a sentence that a person can check.

Only definitions known on both sides are compared: a type that is declared only, new, or gone has no live data laid out
one way and read another.  Names decide: a field is the same when its name is.  A field that went and one that came at
the same place with the same size may be a rename; both are reported and flagged so, since whether they mean the same
only a person knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from katana_cc.dwarf.types import Base, Member, TypeKind, TypeLayout


class ChangeKind(StrEnum):
    """What happened to a type."""

    KIND_CHANGED = "kind-changed"
    SIZE_CHANGED = "size-changed"
    BASE_CHANGED = "base-changed"
    FIELD_ADDED = "field-added"
    FIELD_REMOVED = "field-removed"
    FIELD_MOVED = "field-moved"
    FIELD_TYPE_CHANGED = "field-type-changed"
    ENUMERATOR_VALUE_CHANGED = "enumerator-value-changed"
    ENUMERATOR_ADDED = "enumerator-added"
    ENUMERATOR_REMOVED = "enumerator-removed"


_HARMLESS = frozenset({ChangeKind.ENUMERATOR_ADDED, ChangeKind.ENUMERATOR_REMOVED})


@dataclass(frozen=True, slots=True)
class TypeChange:
    """One difference.

    `member` is the field, enumerator or "" for the type as a whole; `file` and `line` are in the new source, in the old
    one for what is gone.  `possible_rename` marks the two halves of what may be a renamed field.
    """

    kind: ChangeKind
    type: str
    member: str
    file: str
    line: int
    text: str
    possible_rename: bool = False

    @property
    def harmless(self) -> bool:
        """Live data means the same to old and new code."""
        return self.kind in _HARMLESS


def compare_layouts(old: Mapping[str, TypeLayout], new: Mapping[str, TypeLayout]) -> tuple[TypeChange, ...]:
    """All differences between the types that two builds both define, in the order of the old ones."""
    result: list[TypeChange] = []
    for name, before in old.items():
        after = new.get(name)
        if after is not None and before.shape != after.shape:
            result.extend(_compare(name, before, after))
    return tuple(result)


def without_consequences(changes: Iterable[TypeChange]) -> tuple[TypeChange, ...]:
    """For people to read: fields of a type that merely moved are one change, since a new field moves all behind it."""
    result: list[TypeChange] = []
    moved: dict[str, list[TypeChange]] = {}
    for change in changes:
        if change.kind is ChangeKind.FIELD_MOVED:
            several = moved.setdefault(change.type, [])
            several.append(change)
            if len(several) > 1:
                continue
        result.append(change)
    return tuple([_together(moved[x.type]) if x.kind is ChangeKind.FIELD_MOVED else x for x in result])


def _together(moved: Sequence[TypeChange]) -> TypeChange:
    first, more = moved[0], len(moved) - 1
    if not more:
        return first
    return replace(first, text=f"{first.text}, and {more} more field{'s' if more > 1 else ''} of it moved")


def _compare(name: str, old: TypeLayout, new: TypeLayout) -> Iterator[TypeChange]:
    title = f"{old.kind} {name}"
    if old.kind is not new.kind:
        text = f"{title} became a {new.kind}"
        yield TypeChange(ChangeKind.KIND_CHANGED, name, "", new.file, new.line, text)
        return
    details = list(_enumerators(title, name, old, new) if old.kind is TypeKind.ENUM else _fields(title, name, old, new))
    if old.bases != new.bases:
        text = f"the base classes of {title} were {_bases(old.bases)}, are {_bases(new.bases)}"
        details.insert(0, TypeChange(ChangeKind.BASE_CHANGED, name, "", new.file, new.line, text))
    if old.size != new.size:
        verb = "grew" if new.size > old.size else "shrank"
        text = f"{title} {verb} from {old.size} to {new.size} bytes{_cause(old, new)}"
        yield TypeChange(ChangeKind.SIZE_CHANGED, name, "", new.file, new.line, text)
    yield from details


def _enumerators(title: str, name: str, old: TypeLayout, new: TypeLayout) -> Iterator[TypeChange]:
    before = {e.name: e.value for e in old.enumerators}
    after = {e.name: e.value for e in new.enumerators}
    for label, value in before.items():
        if label not in after:
            text = f"enumerator `{label}` ({value}) of {title} is gone"
            yield TypeChange(ChangeKind.ENUMERATOR_REMOVED, name, label, old.file, old.line, text)
        elif after[label] != value:
            text = f"enumerator `{label}` of {title} was {value}, is {after[label]}"
            yield TypeChange(ChangeKind.ENUMERATOR_VALUE_CHANGED, name, label, new.file, new.line, text)
    for label, value in after.items():
        if label not in before:
            text = f"{title} has a new enumerator `{label}` ({value})"
            yield TypeChange(ChangeKind.ENUMERATOR_ADDED, name, label, new.file, new.line, text)


def _fields(title: str, name: str, old: TypeLayout, new: TypeLayout) -> Iterator[TypeChange]:
    before = {m.name: m for m in old.members}
    after = {m.name: m for m in new.members}
    gone = {_seat(m): m for m in old.members if m.name not in after}
    came = {_seat(m): m for m in new.members if m.name not in before}
    for field in old.members:
        now = after.get(field.name)
        if now is None:
            successor = came.get(_seat(field))
            text = f"field `{field.name}` ({_type(field)}, at {_where(field)}) of {title} is gone"
            if successor is not None:
                text += f"; `{successor.name}` has its place: possible rename"
            yield TypeChange(
                ChangeKind.FIELD_REMOVED,
                name,
                field.name,
                old.file,
                field.line or old.line,
                text,
                successor is not None,
            )
            continue
        line = now.line or new.line
        if field.bit_offset != now.bit_offset:
            text = f"field `{field.name}` of {title} moved from {_where(field)} to {_where(now)}"
            yield TypeChange(ChangeKind.FIELD_MOVED, name, field.name, new.file, line, text)
        if (field.type, field.bit_size) != (now.type, now.bit_size):
            text = f"field `{field.name}` of {title} was {_type(field)}, is {_type(now)}"
            yield TypeChange(ChangeKind.FIELD_TYPE_CHANGED, name, field.name, new.file, line, text)
    for field in new.members:
        if field.name in before:
            continue
        renamed = gone.get(_seat(field))
        text = f"{title} has a new field `{field.name}` ({_type(field)}) at {_where(field)}"
        if renamed is not None:
            text += f", where `{renamed.name}` was: possible rename"
        elif new.size == old.size and new.kind is TypeKind.STRUCT and _was_padding(field, old):
            text += ", in what was padding"
        line = field.line or new.line
        yield TypeChange(ChangeKind.FIELD_ADDED, name, field.name, new.file, line, text, renamed is not None)


def _seat(field: Member) -> tuple[int, int]:
    return field.bit_offset, field.width


def _was_padding(field: Member, old: TypeLayout) -> bool:
    start, end = field.bit_offset, field.bit_offset + field.width
    return not any(m.bit_offset < end and start < m.bit_offset + m.width for m in old.members)


def _cause(old: TypeLayout, new: TypeLayout) -> str:
    """Why the size changed, as far as the fields tell: at most three of them."""
    before = {m.name: m for m in old.members}
    after = {m.name: m for m in new.members}
    causes = [f"new field `{m.name}` at {_where(m)}" for m in new.members if m.name not in before]
    causes += [f"field `{m.name}` is gone" for m in old.members if m.name not in after]
    causes += [
        f"field `{m.name}` has {after[m.name].size} bytes, had {m.size}"
        for m in old.members
        if m.name in after and after[m.name].size != m.size
    ]
    if not causes:
        return ""
    more = f" and {len(causes) - 3} more" if len(causes) > 3 else ""
    return ": " + ", ".join(causes[:3]) + more


def _where(field: Member) -> str:
    return f"offset {field.offset}" if field.bit_size is None else f"offset {field.offset} bit {field.bit_offset % 8}"


def _type(field: Member) -> str:
    return field.type if field.bit_size is None else f"{field.type}:{field.bit_size}"


def _bases(bases: tuple[Base, ...]) -> str:
    return ", ".join(f"{b.name} ({'virtual' if b.offset < 0 else f'at {b.offset}'})" for b in bases) or "none"
