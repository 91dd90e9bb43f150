"""The layouts of all struct, union, class and enum types that an object defines.

Live data was laid out by the old program.  Where the new one lays the same type out otherwise, its code would misread
what it finds, so the diff compares layouts (`katana_cc.dwarf.changes`) before it allows a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo, Entry
from katana_cc.dwarf.forms import NO_FORM, Form, forms
from katana_cc.dwarf.lines import line_tables
from katana_cc.dwarf.naming import AGGREGATES, Naming, naming
from katana_cc.dwarf.texts import Texts, texts
from katana_cc.dwarf.units import Block, Die


class TypeKind(StrEnum):
    """What kind of aggregate; a C++ class is a struct to the machine."""

    STRUCT = "struct"
    UNION = "union"
    ENUM = "enum"


@dataclass(frozen=True, slots=True)
class Member:
    """A data member.  Offsets in bits from the start of the aggregate.

    `bit_size` is that of a bit-field, else None; `size` is that of the declared type in bytes (0: open array).  `type`
    is canonical (`katana_cc.dwarf.texts`).  `aggregate` is the key in `layouts` of the aggregate it holds by value,
    itself or as array elements, else "".  `form` says what kind of value it is.
    """

    name: str
    bit_offset: int
    bit_size: int | None
    size: int
    type: str
    aggregate: str
    line: int
    form: Form = NO_FORM

    @property
    def offset(self) -> int:
        """The offset in whole bytes."""
        return self.bit_offset // 8

    @property
    def width(self) -> int:
        """Bits taken."""
        return self.size * 8 if self.bit_size is None else self.bit_size


@dataclass(frozen=True, slots=True)
class Enumerator:
    """A named value of an enum."""

    name: str
    value: int


@dataclass(frozen=True, slots=True)
class Base:
    """A base class and its offset in bytes; -1 for a virtual one, whose place is known at run time only."""

    name: str
    offset: int

    @property
    def key(self) -> str:
        """Its key in layouts: `name` is its type in words."""
        return self.name.removeprefix("struct ")


@dataclass(frozen=True, slots=True)
class TypeLayout:
    """How one type is laid out; `size` in bytes.  `file` and `line` say where it is defined.  `alignment` in bytes is
    what it, or a member of its own, asks for beyond what types have by themselves (`alignas`, vectors); else 0."""

    name: str
    kind: TypeKind
    size: int
    members: tuple[Member, ...]
    enumerators: tuple[Enumerator, ...]
    bases: tuple[Base, ...]
    file: str
    line: int
    alignment: int = 0

    @property
    def shape(self) -> tuple[object, ...]:
        """What matters for live data: all but where in the source it stands."""
        members = tuple((m.name, m.bit_offset, m.bit_size, m.size, m.type) for m in self.members)
        return self.kind, self.size, members, self.enumerators, self.bases


def layouts(info: DebugInfo) -> Mapping[str, TypeLayout]:
    """Every aggregate defined in an object, by its name (see `katana_cc.dwarf.naming`), without the keyword.

    Two definitions of one name in one object (in different blocks of a function, say) get `#2`, `#3` appended, in
    source order, unless they are alike.  Anonymous aggregates that no typedef, member or variable names have no entry:
    they are spelled out in the types that use them.

    Raises:
        FormatError: damaged debug information.
    """
    found = info.memo.get("layouts")
    if not isinstance(found, dict):
        found = info.memo["layouts"] = _layouts(info)
    return found


def _layouts(info: DebugInfo) -> dict[str, TypeLayout]:
    names = naming(info)
    result: dict[str, TypeLayout] = {}
    for entry in info.outline:
        if entry.tag not in AGGREGATES:
            continue
        die = info.die(entry.offset, entry.unit)
        # With a signature it only stands for the definition in a type unit.
        stub = d.DW_AT_declaration in die.attributes or d.DW_AT_signature in die.attributes
        if stub or not (name := names.aggregate(die)):
            continue
        layout = _layout(info, names, entry, die, name)
        key, copies = name, 1
        while key in result and result[key].shape != layout.shape:
            copies += 1
            key = f"{name}#{copies}"
        result.setdefault(key, layout)
    return result


def _layout(info: DebugInfo, names: Naming, entry: Entry, die: Die, name: str) -> TypeLayout:
    kind, types = TypeKind(AGGREGATES[die.tag]), texts(info)
    enumerators: list[Enumerator] = []
    bases: list[Base] = []
    if kind is TypeKind.ENUM:
        enumerators = [
            Enumerator(child.text(d.DW_AT_name), child.integer(d.DW_AT_const_value) or 0)
            for child in info.children(die)
            if child.tag == d.DW_TAG_enumerator
        ]
    elif die.children and info.cpp:
        bases = [_base(names, types, child) for child in info.children(die) if child.tag == d.DW_TAG_inheritance]
    holder, line = names.declared_at(entry)
    members = () if kind is TypeKind.ENUM else tuple(names.members(die))
    return TypeLayout(
        name=name,
        kind=kind,
        size=types.size(die),
        members=tuple(_member(info, names, m, label) for m, label in members),
        enumerators=tuple(enumerators),
        bases=tuple(bases),
        file=line_tables(info).file(holder.unit, holder.integer(d.DW_AT_decl_file)),
        line=line,
        alignment=max([die.integer(d.DW_AT_alignment) or 0, *(_alignment(names, types, m) for m, _ in members)]),
    )


def _alignment(names: Naming, types: Texts, member: Die) -> int:
    """What a member asks for itself, or as a vector (Intel's ABI: as many bytes as it has)."""
    asked = member.integer(d.DW_AT_alignment) or 0
    target = names.target(member)
    while target is not None and target.tag in (d.DW_TAG_typedef, d.DW_TAG_const_type, d.DW_TAG_volatile_type):
        asked = max(asked, target.integer(d.DW_AT_alignment) or 0)
        target = names.target(target)
    if target is not None and target.tag == d.DW_TAG_array_type and d.DW_AT_GNU_vector in target.attributes:
        asked = max(asked, types.size(target))
    return asked


def _member(info: DebugInfo, names: Naming, member: Die, label: str) -> Member:
    types = texts(info)
    target = names.target(member)
    text, size, aggregate = types.facts(target)
    return Member(
        name=label,
        bit_offset=types.bit_offset(member),
        bit_size=member.integer(d.DW_AT_bit_size),
        size=size,
        type=text,
        aggregate=aggregate,
        line=member.integer(d.DW_AT_decl_line) or 0,
        form=forms(info).form(target),
    )


def _base(names: Naming, types: Texts, inheritance: Die) -> Base:
    target = names.target(inheritance)
    location = inheritance.attributes.get(d.DW_AT_data_member_location, 0)
    virtual = inheritance.integer(d.DW_AT_virtuality) or isinstance(location, Block)
    return Base(types.text(target), -1 if virtual else int(location))
