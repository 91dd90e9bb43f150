"""What the pointer types of an object lead to, by the canonical text of it.

`TypeLayout` says of a field what it points to as a text (`struct node *`).  Whoever follows pointers further has to
know what lies there: an aggregate, pointers again, an array of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.forms import Encoding, forms
from katana_cc.dwarf.naming import POINTERS, naming
from katana_cc.dwarf.texts import texts


class Pointee(NamedTuple):
    """What a pointer leads to.

    `bounds` are those of an array, outermost first, () for what is none; None is an open one.  Of its elements,
    `aggregate` is the key in `katana_cc.dwarf.types.layouts`, "" when they are none, and `to` the text of what they
    point to, "" when they are no pointers.
    """

    text: str
    bounds: tuple[int | None, ...]
    aggregate: str
    to: str


def pointees(info: DebugInfo) -> Mapping[str, Pointee]:
    """What each pointer or reference type of an object leads to, by its text; functions and void are left out.

    Raises:
        FormatError: damaged debug information.
    """
    found = info.memo.get("pointees")
    if not isinstance(found, dict):
        found = info.memo["pointees"] = _pointees(info)
    return found


def _pointees(info: DebugInfo) -> dict[str, Pointee]:
    names, types, shapes = naming(info), texts(info), forms(info)
    result: dict[str, Pointee] = {}
    for die in info.of_tags(frozenset(POINTERS)):
        target = names.target(die)
        text, _size, aggregate = types.facts(target)
        form = shapes.form(target)
        if text not in result and form.encoding in (Encoding.AGGREGATE, Encoding.POINTER):
            result[text] = Pointee(text, form.bounds, aggregate, form.pointee)
    return result
