"""What the pointer types of an object lead to, by the canonical text of it.

`TypeLayout` says of a field what it points to as a text (`struct node *`).  Whoever follows pointers further has to
know what lies there: an aggregate, pointers again, an array of either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.forms import Encoding, Form, forms
from katana_cc.dwarf.functions import Function
from katana_cc.dwarf.naming import POINTERS, naming
from katana_cc.dwarf.texts import texts


class Pointee(NamedTuple):
    """What a pointer leads to.

    `bounds` are those of an array, outermost first, () for what is none; None is an open one.  Of its elements,
    `aggregate` is the key in `katana_cc.dwarf.types.layouts`, "" when they are none, and `to` the text of what they
    point to, "" when they are no pointers; `size` is that of one in bytes.
    """

    text: str
    bounds: tuple[int | None, ...]
    aggregate: str
    to: str
    size: int


def pointees(info: DebugInfo) -> Mapping[str, Pointee]:
    """What each pointer or reference type of an object leads to, by its text; functions and void are left out.

    Raises:
        FormatError: damaged debug information.
    """
    found = info.memo.get("pointees")
    if not isinstance(found, dict):
        found = info.memo["pointees"] = _pointees(info)
    return found


def signature(info: DebugInfo, function: Function) -> Iterator[tuple[Form, str]]:
    """(form, key of the aggregate that it holds by value) of what a function gives, and of each parameter."""
    names, types, shapes = naming(info), texts(info), forms(info)
    die = info.die(function.die)
    for each in (die, *(c for c in info.children(die) if c.tag == d.DW_TAG_formal_parameter)):
        holder = next((link for link in names.chain(each) if d.DW_AT_type in link.attributes), None)
        target = names.target(holder) if holder is not None else None
        if target is not None:
            yield shapes.form(target), types.facts(target)[2]


def _pointees(info: DebugInfo) -> dict[str, Pointee]:
    names, types, shapes = naming(info), texts(info), forms(info)
    result: dict[str, Pointee] = {}
    for die in info.of_tags(frozenset(POINTERS)):
        target = names.target(die)
        text, _size, aggregate = types.facts(target)
        form = shapes.form(target)
        if text not in result and (form.element_size or form.encoding is Encoding.AGGREGATE):
            result[text] = Pointee(text, form.bounds, aggregate, form.pointee, form.element_size)
    return result
