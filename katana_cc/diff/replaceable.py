"""Whether an old function can be jumped away from, judged by the old output alone.  (Its size: `small.py`.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

from katana_cc.diff.program import Place
from katana_cc.diff.reasons import NEEDS, REFUSED, Code
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.elf import constants as c

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff


_ALL_STARTUP = ".text.startup"


def check_replaceable(diff: Diff, place: Place, old_place: Place) -> None:
    """Refuse what cannot be jumped away from."""
    old_view = diff.view(diff.old, old_place.unit)
    address = diff.old.address(old_place)
    assert address is not None
    if others := diff.old.snapshot.folded.get(address):
        text = f"the linker folded it with {', '.join(others)}: changing one would change all"
        diff.reason(Code.FUNCTION_FOLDED, REFUSED, place, text)
    for number in (old_place.section, *old_view.parts.get(old_place.section, ())):
        _check_bytes(diff, place, Place(old_place.unit, number))
    if any(s.type == c.STT_GNU_IFUNC for s in old_view.symbols_in.get(old_place.section, ())):
        text = "it resolves an IFUNC, which happens once, when the program starts"
        diff.reason(Code.IFUNC, REFUSED, place, text)
    if runs_at_start(diff.view(diff.new, place.unit), place.section):
        text = "it runs once, before main: what it does differently would never happen in a running process"
        diff.reason(Code.STARTUP_CHANGED, REFUSED, place, text)
    if old_view.label(old_place.section) == "main" and not diff.old.is_library:
        text = (
            "it is on the stack for the whole life of the process, and goes on in its old code there: "
            "what changed in it takes effect in no process that runs already"
        )
        diff.reason(Code.MAIN_ACTIVE, NEEDS, place, text)


def runs_at_start(view: ObjectView, section: int) -> bool:
    """Whether code is a constructor, or a local function that nothing but constructors call: gcc and clang put the
    initialisation of globals there.  A destructor is no different from other functions."""
    return _is_startup(view, section, set())


def _is_startup(view: ObjectView, section: int, seen: set[int]) -> bool:
    """`seen` are functions under question already: recursion alone enters nothing."""
    seen.add(section)
    startup = [n for n in view.referrers.get(section, ()) if view.kinds[n] is Kind.STARTUP]
    if startup:
        return any(not view.elf.sections[n].name.startswith((".fini_array", ".dtors")) for n in startup)
    callers = {view.parent.get(n, n) for n in view.referrers.get(section, ())} - {section}
    if view.is_global(section) or not callers:
        return False
    for caller in view.referrers.get(section, ()):
        # clang has all of a file's in one section.
        own = view.kinds[caller] is Kind.FUNCTION or view.elf.sections[caller].name == _ALL_STARTUP
        if not own or not all(r.branch for r in view.references(caller) if r.section == section):
            return False
    return all(n in seen or _is_startup(view, n, seen) for n in callers)


def _check_bytes(diff: Diff, place: Place, old_place: Place) -> None:
    """The old output must hold the old object's bytes where the recorder says: the jump goes there."""
    address = diff.old.address(old_place)
    why = diff.old.unplaced.get(old_place)
    if address is None or why:
        diff.reason(Code.NOT_PLACED, REFUSED, place, f"its place in the old output is not known: {why or 'not in it'}")
        return
    view = diff.view(diff.old, old_place.unit)
    elf, known = view.elf, view.relocations
    data = elf.contents(elf.sections[old_place.section])
    relocations = elf.relocations(old_place.section)
    if any(r.type not in known.EXTENTS for r in relocations):
        return  # the comparison said so already
    final = diff.old.image.read(address, len(data))
    if known.masked(final, relocations, relaxed=True) != known.masked(data, relocations, relaxed=True):
        diff.reason(Code.BYTES_UNEXPECTED, REFUSED, place, "the old output does not hold the old object's code there")
