"""Whether two builds of an output were compiled with other flags, as far as their objects tell.

gcc keeps the options that matter to code in DW_AT_producer ("GNU C17 12.2.0 -O2 -ffunction-sections"), a string that is
found in an object without parsing it.  clang keeps its version only, and compressed debug sections hide it: then
nothing is said, which is no more than was known before.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.store import Store

_LOOKED_AT: Final = 8  # pairs of objects: flags of a build change for all of them, or for those of one folder
_PRODUCER: Final = re.compile(rb"GNU [A-Z][^\0]{0,40} [0-9]+\.[0-9.]+( -[^\0]{0,4000})?\0")


def changed_flags(store: Store, old: Snapshot, new: Snapshot) -> str:
    """ "-O2 -> -O0": what the first objects were compiled with in one build only; "" if nothing is known to differ."""
    before = {unit.name: unit.blob for unit in old.units}
    pairs = ((before[u.name], u.blob) for u in new.units if before.get(u.name, u.blob) != u.blob)
    for first, second in islice(pairs, _LOOKED_AT):
        mine, its = _options(store.blobs.get(first)), _options(store.blobs.get(second))
        if mine and its and mine != its:
            lost, gained = (" ".join(sorted(a - b)) or "none" for a, b in ((mine, its), (its, mine)))
            return f"{lost} -> {gained}"
    return ""


def _options(data: bytes) -> frozenset[str]:
    found = _PRODUCER.search(data)
    return frozenset((found[1] or b" ").decode(errors="replace").split()) if found else frozenset()
