"""What the two links say beside their objects: kinds of output, options, and whom each global name means.

Objects that did not change are not compared.  Yet the same call in the same object may lead elsewhere, when the link
bound its name to something else: a function of the program that came from a library before, another alias, a symbol
that --wrap diverts.  A running process keeps the old binding, so each such name is refused when unchanged code uses it.
(Changed code is carried, and its names are resolved anew.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from katana_cc.diff.program import Place
from katana_cc.diff.reasons import REFUSED, Code
from katana_cc.diff.view import Kind
from katana_cc.elf import constants as c
from katana_cc.patch.model import Reason

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff


def check_outputs(diff: Diff) -> None:
    """Refuse what the two outputs as such, and their removed objects, make impossible."""
    old, new = diff.old.image, diff.new.image
    if (old.type, old.machine) != (new.type, new.machine):
        text = "the old output is position-independent and the new one is not, or the other way round"
        diff.reason(Code.MACHINE_CHANGED, REFUSED, None, text)
    for tag, value in old.dynamic:
        if tag == c.DT_TEXTREL or (tag == c.DT_FLAGS and value & c.DF_TEXTREL):
            text = "the old output has relocations in its code (DT_TEXTREL)"
            diff.reason(Code.TEXT_RELOCATIONS, REFUSED, None, text)
    for unit in diff.correlation.removed_units:
        view = diff.view(diff.old, unit)
        for number, kind in view.kinds.items():
            place = Place(unit, number)
            name = view.elf.sections[number].name
            if kind is Kind.STARTUP:
                text = f"{diff.old.unit_name(unit)} is gone, and with it its start-up code ({name})"
                diff.reason(Code.STARTUP_CHANGED, REFUSED, place, text, program=diff.old)
            elif kind is Kind.OTHER and diff.old.address(place) is not None:
                text = f"{diff.old.unit_name(unit)} is gone, and with it its part of section {name}"
                diff.reason(Code.SECTION_CHANGED, REFUSED, place, text, program=diff.old)
    _check_options(diff)


def _check_options(diff: Diff) -> None:
    before, after = diff.old.options, diff.new.options
    for option, was, now in (("--wrap", before.wrapped, after.wrapped), ("--defsym", before.defined, after.defined)):
        if changed := sorted(was ^ now):
            text = (
                f"the link's {option} changed for {', '.join(changed)}: unchanged code would mean something else by it"
            )
            diff.changes.reasons.append(Reason(Code.LINK_OPTIONS.value, REFUSED, option, "", 0, text))


def check_names(diff: Diff) -> None:
    """Refuse names that lead unchanged code somewhere else than before."""
    links = diff.correlation
    if not (links.changed_units or links.new_units or links.removed_units):
        return
    old, new = diff.old, diff.new
    rebound: dict[str, str] = {}
    for name, definition in new.globals.items():
        before = old.globals.get(name)
        if before is None:
            if name in old.imports:
                rebound[name] = "it came from a library, and the program now defines it"
        elif before.address is not None and before.place is not None and definition.place is not None:
            same = links.old_place(definition.place) == before.place and definition.value == before.value
            if not same and definition.address is not None:
                rebound[name] = "the name means another function or variable now"
    for name, before in old.globals.items():
        if before.address is not None and name not in new.globals and name in new.imports:
            rebound[name] = "the program defined it, and it now comes from a library"
    if rebound:
        _refuse_rebound(diff, rebound)


def _refuse_rebound(diff: Diff, rebound: dict[str, str]) -> None:
    users: dict[str, str] = {}
    for unit in diff.correlation.same_units:
        for name in diff.view(diff.new, unit).undefined & rebound.keys():
            users.setdefault(name, diff.new.unit_name(unit))
    for name, why in sorted(rebound.items()):
        exported = diff.old.is_library and name in diff.old.tables.by_name
        if name not in users and not exported:
            continue
        user = users.get(name) or "other modules"
        text = f"{why}; {user} did not change and would go on using the old one"
        diff.changes.reasons.append(Reason(Code.NAME_REBOUND.value, REFUSED, name, "", 0, text))
