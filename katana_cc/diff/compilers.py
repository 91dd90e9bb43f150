"""Objects compiled by another compiler, or with other options, than before: why half a program differs.

Debug information has it (DW_AT_producer, DWARF 5 section 3.1.1): gcc writes its version and the options that change
code, clang its version alone.  Such a patch is no worse than another, since every function is compared by what it
means; but whoever reads that four hundred functions changed has to learn that nobody wrote four hundred.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from katana_cc.diff.program import Program
from katana_cc.diff.reasons import INFO, Code
from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.patch.model import Reason

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff

# Options that say where things are, or how much debug information there is; they change no code.
_HARMLESS = ("-g", "-fdebug-", "-ffile-prefix-map", "-fmacro-prefix-map", "-fprofile-prefix-map", "-frandom-seed")


def note_compilers(diff: Diff) -> None:
    """Say once of all objects that a change of compiler or options concerns."""
    units: dict[tuple[str, ...], list[int]] = {}
    for old_unit, unit in diff.correlation.changed_units:
        before, after = (_producers(diff, p, u) for p, u in ((diff.old, old_unit), (diff.new, unit)))
        if before and after and (text := difference(before, after)):
            units.setdefault((text,), []).append(unit)
    for (text,), found in sorted(units.items()):
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        name = diff.new.unit_name(found[0])
        diff.changes.reasons.append(Reason(Code.COMPILED_OTHERWISE.value, INFO, f"{name}{more}", "", 0, text))


def _producers(diff: Diff, program: Program, unit: int) -> tuple[str, ...]:
    """The producers of an object's units, each once; none where debug information cannot be read."""
    info = diff.debug.info(program, unit)
    if not isinstance(info, DebugInfo):
        return ()
    roots = [u.root for u in info.units if u.root.tag == d.DW_TAG_compile_unit]
    return tuple(dict.fromkeys(root.text(d.DW_AT_producer) for root in roots if root.text(d.DW_AT_producer)))


def difference(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    """What is different, in words; "" if nothing that changes code."""
    was, now = (Counter(word for producer in all_ for word in _words(producer)) for all_ in (before, after))
    if was == now:
        return ""
    gone, come = (" ".join(words.elements()) or "none" for words in (was - now, now - was))
    return f"compiled otherwise ({gone} -> {come}); what only that changes is replaced too"


def _words(producer: str) -> list[str]:
    """A compiler's name with its version as one word, then its options."""
    words = producer.split()
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return [" ".join(words[:first]), *(w for w in words[first:] if not w.startswith(_HARMLESS))]
