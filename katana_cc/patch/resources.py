"""Debug information of a patch that was put together: taken from that of the two, as a patch takes it from objects.

Each of the two is a relocatable file with a unit for each object; what of a unit describes code that is kept comes
along.  Where one cannot be read the patch says less, as ever (`sources.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from katana_cc.dwarf.dies import DebugInfo, open_debug_info
from katana_cc.dwarf.functions import functions
from katana_cc.dwarf.sections import Place
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError, RefusedError
from katana_cc.patch.codec import encode
from katana_cc.patch.model import PatchObject, PatchSymbol
from katana_cc.patch.rebase import Rebase
from katana_cc.patch.sources import Origin, with_sources

_BEFORE = 2  # sections of the file before the first carried one: none, and the note


def with_debug_information_of(
    po: PatchObject, parts: Sequence[PatchObject], shifts: Sequence[int], number: Mapping[int, int], rebase: Rebase
) -> PatchObject:
    """`po` with the debug information of what it carries of `parts`.

    Args:
        shifts: the number of the first piece of each part.
        number: piece → section of `po`.
        rebase: what the references of the second part mean.
    """
    origins: list[Origin] = []
    for which, (part, shift) in enumerate(zip(parts, shifts, strict=True)):
        origins += _origins(part, shift, number, rebase if which else None)
    return with_sources(po, origins)


def _origins(part: PatchObject, shift: int, number: Mapping[int, int], rebase: Rebase | None) -> Iterator[Origin]:
    try:
        info = open_debug_info(ElfFile(encode(part), part.identity.output))
        known = functions(info) if isinstance(info, DebugInfo) else ()
    except FormatError:
        return
    if not isinstance(info, DebugInfo):
        return
    kept = {n + _BEFORE: number[n + shift] for n in range(len(part.sections)) if n + shift in number}
    data = {n: at for n, at in kept.items() if not part.sections[n - _BEFORE].flags & c.SHF_EXECINSTR}
    units: dict[int, set[int]] = {}
    for f in known:
        units.setdefault(info.unit_of(f.die).start, set()).update(p.section for p in (f.code, *f.parts))
    for sections in units.values():
        existing = _existing(part, rebase)
        for n in sorted((sections & kept.keys()) | data.keys()):
            yield Origin(kept[n], info, n, existing)


def _existing(part: PatchObject, rebase: Rebase | None) -> Callable[[Place], tuple[PatchSymbol, int] | None]:
    """What lies in the target where an undefined symbol of a part says; a function of its own for each unit."""

    def meaning(place: Place) -> tuple[PatchSymbol, int] | None:
        if place.section != c.SHN_UNDEF or not place.symbol:
            return None
        found = [
            y
            for y in part.symbols
            if y.section is None and y.name == place.symbol and 0 <= place.offset - y.value < max(y.size, 1)
        ]
        if len(found) != 1 or not found[0].value or found[0].type == c.STT_TLS:
            return None
        (symbol,) = found
        offset = place.offset - symbol.value
        if rebase is None:
            return symbol, offset
        if rebase.lying_at(symbol.value) is not None:
            return None  # it came with the first patch
        try:
            return rebase.existing(symbol, ""), offset
        except RefusedError:
            return None

    return meaning
