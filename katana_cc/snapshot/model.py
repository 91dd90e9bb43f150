"""What is recorded of one output at one link, as frozen values.

Named tuples here and in all that a link imports, without `from __future__ import annotations`: each process compiles
dataclasses anew, and annotations of named tuples that are text.
"""

from collections.abc import Mapping
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple


class Unit(NamedTuple):
    """One relocatable object of a link.

    `name` knows it through time: its path under the project's root (with `(member)` for archives), or its STT_FILE
    symbol when the object was temporary.  `blob` holds the object's bytes.
    """

    name: str
    blob: str


class Snapshot(NamedTuple):
    """One output at one link.

    `placements[(unit, section)]` is the link-time address of an input section: unit index, section header index.
    `commons` gives address and size of symbols that were SHN_COMMON in their objects.  `folded` names the functions at
    addresses where identical-code folding (or the linker) left several unrelated ones.  `image` is a blob with the
    ELF header, program headers and PT_LOAD contents, as `images.pack` makes it; section headers and debug sections are
    cut off.  `sources` is what `git describe` said of the sources, "" if nothing.
    """

    output: str
    path: str
    build_id: str
    soname: str
    time: float
    linker: str
    arguments: tuple[str, ...]
    units: tuple[Unit, ...]
    placements: Mapping[tuple[int, int], int]
    commons: Mapping[str, tuple[int, int]]
    linker_symbols: Mapping[str, int]
    folded: Mapping[int, tuple[str, ...]]
    image: str
    unplaced: tuple[tuple[int, int, str], ...] = ()
    notes: tuple[str, ...] = ()
    id: int = 0
    sources: str = ""


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as JSON values; placements flattened to [unit, section, distance, …], by their addresses.

    The distance is that from the address before, the first from 0: so what only moved is written as it was, and the
    manifest of the next build is nearly this one.
    """
    places = sorted([(address, unit, section) for (unit, section), address in snapshot.placements.items()])
    last = 0
    flat: list[int] = []
    for address, unit, section in places:
        flat += (unit, section, address - last)
        last = address
    return {
        "format": 2,
        "output": snapshot.output,
        "path": snapshot.path,
        "build_id": snapshot.build_id,
        "soname": snapshot.soname,
        "time": snapshot.time,
        "linker": snapshot.linker,
        "arguments": list(snapshot.arguments),
        "units": [[u.name, u.blob] for u in snapshot.units],
        "placements": flat,
        "commons": {k: list(v) for k, v in snapshot.commons.items()},
        "linker_symbols": dict(snapshot.linker_symbols),
        "folded": {str(k): list(v) for k, v in snapshot.folded.items()},
        "image": snapshot.image,
        "unplaced": [list(u) for u in snapshot.unplaced],
        "notes": list(snapshot.notes),
        **({"sources": snapshot.sources} if snapshot.sources else {}),
    }


def from_json(raw: Mapping[str, Any], identifier: int = 0) -> Snapshot:
    """The inverse of `to_json`; `identifier` is the snapshot's row in the store."""
    flat = raw["placements"]
    places = list(zip(flat[::3], flat[1::3], accumulate(flat[2::3]), strict=True))
    places.sort(key=itemgetter(0))  # as a link map has them: unit by unit, and each in order
    return Snapshot(
        output=raw["output"],
        path=raw["path"],
        build_id=raw["build_id"],
        soname=raw["soname"],
        time=raw["time"],
        linker=raw["linker"],
        arguments=tuple(raw["arguments"]),
        units=tuple(Unit(name, blob) for name, blob in raw["units"]),
        placements={(u, s): a for u, s, a in places},
        commons={k: (v[0], v[1]) for k, v in raw["commons"].items()},
        linker_symbols=dict(raw["linker_symbols"]),
        folded={int(k): tuple(v) for k, v in raw["folded"].items()},
        image=raw["image"],
        unplaced=tuple((u[0], u[1], u[2]) for u in raw["unplaced"]),
        notes=tuple(raw["notes"]),
        id=identifier,
        sources=raw.get("sources", ""),
    )
