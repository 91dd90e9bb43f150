"""What functions, variables and types are called, equally in two builds; and the references between DIEs.

Qualified names: namespaces and classes with `::`; types and variables local to a function below `function()`.  An
anonymous aggregate is called after the typedef that names it, else after the member that holds it (`request.u`), so
that a change inside it is reported once, where it is; else after a typedef of a pointer to it, `(*handle)`; else after
the first variable of it, `(counters)`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo, Entry
from katana_cc.dwarf.units import Die
from katana_cc.errors import FormatError

AGGREGATES: Final = {
    d.DW_TAG_structure_type: "struct",
    d.DW_TAG_class_type: "struct",  # the same thing to the machine
    d.DW_TAG_union_type: "union",
    d.DW_TAG_enumeration_type: "enum",
}
QUALIFIERS: Final = frozenset(
    {
        d.DW_TAG_const_type, d.DW_TAG_volatile_type, d.DW_TAG_restrict_type, d.DW_TAG_atomic_type,
        d.DW_TAG_immutable_type,
    }
)  # fmt: skip
POINTERS: Final = {
    d.DW_TAG_pointer_type: "*",
    d.DW_TAG_reference_type: "&",
    d.DW_TAG_rvalue_reference_type: "&&",
}
DEPTH_LIMIT: Final = 150  # of types in types: damaged input must end somewhere


class Naming:
    """Names of one object.  Made by `naming`."""

    def __init__(self, info: DebugInfo) -> None:
        self._info = info
        self._members: dict[int, list[tuple[Die, str]]] = {}
        self._entered: list[int] = []
        self._scopes: dict[int, str] = {}
        self._names: dict[int, str] = {}

    # -- following references ------------------------------------------------------------------------------------------

    def target(self, die: Die, attribute: int = d.DW_AT_type) -> Die | None:
        """The DIE that an attribute refers to; a declaration that a type unit completes gives the definition."""
        offset = die.attributes.get(attribute)
        if offset is None:
            return None
        found = self._info.die(offset)
        signature = found.attributes.get(d.DW_AT_signature)
        return self._info.die(signature) if isinstance(signature, int) else found

    def origin(self, die: Die) -> Die | None:
        """The DIE that this one completes: its abstract instance or its declaration."""
        offset = die.attributes.get(d.DW_AT_abstract_origin, die.attributes.get(d.DW_AT_specification))
        return None if offset is None else self._info.die(offset)

    def chain(self, die: Die) -> tuple[Die, ...]:
        """A DIE and what it completes, the nearest first."""
        result = [die]
        while (following := self.origin(result[-1])) is not None:
            result.append(following)
            if len(result) > DEPTH_LIMIT:
                raise self.endless(die)
        return tuple(result)

    def peeled(self, die: Die | None, arrays: bool = False, pointers: bool = False) -> Die | None:
        """The type below typedefs and qualifiers, and where asked below arrays and pointers.  None: void."""
        for _ in range(DEPTH_LIMIT):
            if die is None or not (
                die.tag == d.DW_TAG_typedef
                or die.tag in QUALIFIERS
                or (arrays and die.tag == d.DW_TAG_array_type)
                or (pointers and die.tag in POINTERS)
            ):
                return die
            die = self.target(die)
        raise self.endless(die)

    def constant(self, die: Die | None) -> bool:
        """Whether a type is const, itself or the elements of the array that it is."""
        for _ in range(DEPTH_LIMIT):
            if die is None or die.tag == d.DW_TAG_const_type:
                return die is not None
            if die.tag not in QUALIFIERS and die.tag not in (d.DW_TAG_typedef, d.DW_TAG_array_type):
                return False
            die = self.target(die)
        return False

    def endless(self, die: Die | None) -> FormatError:
        """What to raise when references lead nowhere."""
        at = f" at {die.offset:#x}" if die is not None else ""
        return FormatError(f"damaged debug information: an endless chain of references{at}", where=self._info.where)

    # -- names ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {e.offset: i for i, e in enumerate(self._info.outline)}

    def scope(self, number: int) -> str:
        """The qualified name of the scope that outline entry `number` opens; "" for a unit."""
        if number < 0:
            return ""
        # From the outermost inwards, so that no nesting is too deep for the stack.
        missing = []
        outer = number
        while outer >= 0 and outer not in self._scopes:
            missing.append(outer)
            outer = self._info.outline[outer].parent
        for inner in reversed(missing):
            self._scopes[inner] = ""  # what damaged input that is inside itself finds on its way round
            if len(self._entered) > DEPTH_LIMIT:
                raise self.endless(None)
            self._entered.append(inner)
            try:
                self._scopes[inner] = self._scope(self._info.outline[inner])
            finally:
                self._entered.pop()
        return self._scopes[number]

    def _scope(self, entry: Entry) -> str:
        if entry.parent < 0:
            return ""
        if entry.tag == d.DW_TAG_subprogram:
            return self.qualified(entry) + "()"
        die = self._info.die(entry.offset, entry.unit)
        if entry.tag == d.DW_TAG_namespace:
            return _join(self.scope(entry.parent), die.text(d.DW_AT_name) or "(anonymous namespace)")
        return self.aggregate(die) or _join(self.scope(entry.parent), "(anonymous)")

    def qualified(self, entry: Entry) -> str:
        """The qualified name of a function, variable or named type; "" when it has no name."""
        die = self._info.die(entry.offset, entry.unit)
        name, place = "", entry
        for link in self.chain(die):
            name = name or link.text(d.DW_AT_name)
            if (number := self._numbers.get(link.offset)) is not None:
                place = self._info.outline[number]  # the scope is where it was first declared
            elif link.tag == d.DW_TAG_member:
                return _join(self.scope(self._static_members.get(link.offset, -1)), name)
        return _join(self.scope(place.parent), name) if name else ""

    @cached_property
    def _static_members(self) -> dict[int, int]:
        """Declarations of static data members (a DW_TAG_member up to DWARF 4) → the outline entry of their class."""
        info = self._info
        return {
            child.offset: number
            for number, entry in enumerate(info.outline)
            if entry.tag in AGGREGATES
            for child in info.children(info.die(entry.offset, entry.unit))
            if child.tag == d.DW_TAG_member and d.DW_AT_declaration in child.attributes
        }

    def declared_at(self, entry: Entry) -> tuple[Die, int]:
        """(DIE whose unit and DW_AT_decl_file hold, line) of where something was declared.

        What has no place of its own (the body of a lambda) is where its scope is.  Line 0: the compiler made it.
        """
        while True:
            chain = self.chain(self._info.die(entry.offset, entry.unit))
            # A definition repeats of its declaration what differs, so the nearest wins.
            line = next((n for link in chain if (n := link.integer(d.DW_AT_decl_line)) is not None), 0)
            holder = next((link for link in chain if d.DW_AT_decl_file in link.attributes), chain[0])
            if line or entry.parent < 0 or d.DW_AT_decl_file in holder.attributes:
                return holder, line
            entry = self._info.outline[entry.parent]

    def aggregate(self, die: Die) -> str:
        """The name of a struct, union, class or enum, without the keyword; "" for one that nothing names."""
        offset = die.offset
        found = self._names.get(offset)
        if found is None:
            self._names[offset] = ""  # what a nameless type that holds itself finds on its way round
            signature = die.attributes.get(d.DW_AT_signature)
            if isinstance(signature, int):
                die = self._info.die(signature)  # clang leaves even the name to the type unit
            number = self._numbers.get(die.offset)
            entry = self._info.outline[number] if number is not None else Entry(die.offset, die.tag, -1, die.unit)
            found = self.qualified(entry) or self._given_name(die)
            self._names[entry.offset] = self._names[offset] = found
        return found

    def _given_name(self, die: Die) -> str:
        """The name of an anonymous aggregate: from a typedef or a variable, else from the member that holds it."""
        typedefs, holders = self._givers
        if (typedef := typedefs.get(die.offset)) is not None:
            entry, name = typedef
            return _join(self.scope(entry.parent), name)
        if (holder := holders.get(die.offset)) is not None:
            outer, label = holder
            name = self.aggregate(outer)
            return f"{name}.{label}" if name else ""
        return ""

    @cached_property
    def _givers(self) -> tuple[dict[int, tuple[Entry, str]], dict[int, tuple[Die, str]]]:
        """What names anonymous aggregates: the first typedef of each, the first member that holds or points at it, the
        first typedef of a pointer to it, the first variable."""
        info = self._info
        typedefs: dict[int, tuple[Entry, str]] = {}
        indirect: dict[int, tuple[Entry, str]] = {}
        holders: dict[int, tuple[Die, str]] = {}
        anonymous: set[int] = set()
        aggregates: list[Die] = []
        for entry in info.outline:
            if entry.tag in AGGREGATES:
                die = info.die(entry.offset, entry.unit)
                if not any(link.text(d.DW_AT_name) for link in self.chain(die)):
                    anonymous.add(die.offset)
                if die.tag != d.DW_TAG_enumeration_type:
                    aggregates.append(die)
        for entry in info.outline:
            if entry.tag == d.DW_TAG_typedef:
                die = info.die(entry.offset, entry.unit)
                target, name = self.target(die), die.text(d.DW_AT_name)
                if target is not None and target.offset in anonymous:
                    typedefs.setdefault(target.offset, (entry, name))
                elif target is not None and target.tag in POINTERS:  # typedef struct { ... } *handle;
                    inner = self.peeled(target, arrays=True, pointers=True)
                    if inner is not None and inner.offset in anonymous:
                        indirect.setdefault(inner.offset, (entry, f"(*{name})"))
        if anonymous - typedefs.keys():
            for die in aggregates:
                for member, label in self.members(die):
                    inner = self.peeled(self.target(member), arrays=True, pointers=True)
                    if inner is not None and inner.offset in anonymous:
                        holders.setdefault(inner.offset, (die, label))
        named = {offset: giver for offset, giver in indirect.items() if offset not in holders}
        nameless = anonymous - typedefs.keys() - holders.keys() - named.keys()
        for entry in info.outline if nameless else ():
            if entry.tag == d.DW_TAG_variable:
                die = info.die(entry.offset, entry.unit)
                inner = self.peeled(self.target(die), arrays=True, pointers=True)
                if inner is not None and inner.offset in nameless and (name := die.text(d.DW_AT_name)):
                    named.setdefault(inner.offset, (entry, f"({name})"))
        return named | typedefs, holders

    def members(self, die: Die) -> list[tuple[Die, str]]:
        """The data members of an aggregate with their names; nameless ones are numbered, `(anonymous 1)`.  Static
        members are no part of an object, and left out."""
        found = self._members.get(die.offset)
        if found is None:
            found = self._members[die.offset] = []
            nameless = 0
            for child in self._info.children(die):
                held = child.attributes
                if child.tag != d.DW_TAG_member or d.DW_AT_external in held or d.DW_AT_declaration in held:
                    continue
                name = child.text(d.DW_AT_name)
                if not name:
                    nameless += 1
                    name = f"(anonymous {nameless})"
                found.append((child, name))
        return found


def naming(info: DebugInfo) -> Naming:
    """The naming of an object's types; one instance an object."""
    found = info.memo.get("naming")
    if not isinstance(found, Naming):
        found = info.memo["naming"] = Naming(info)
    return found


def _join(scope: str, name: str) -> str:
    return f"{scope}::{name}" if scope else name
