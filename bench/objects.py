"""How long a process stands while the objects of a list on its heap are made anew, by their number.

Each node grows beyond its block, so that all get new ones: what costs most.  The floor is a patch of the same program
without a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from bench.figures import Figure, of_samples
from bench.measure import MeasureError
from bench.program import Patched, build_pair, katana, started
from bench.setting import Setting

GROUP = "objects"

NODES: Final = {1_000: 5, 100_000: 3, 1_000_000: 1}  # and rounds
_BEFORE: Final = "\tlong key;\n"
_AFTER: Final = "\tlong stamp[3];\n\tlong key;\n"
_FOLLOW: Final = ("--follow", "struct node")  # what a function left behind on the stack


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the stop of apply and of revert for each number of nodes.

    Raises:
        MeasureError: not all nodes were made anew, or the program's answer is another one afterwards.
    """
    patched = build_pair(setting, "list", _BEFORE, _AFTER, "-O2")
    floor = min(_stops(setting, patched, 0)[0] for _ in range(setting.rounds(5, 1)))
    for nodes, rounds in list(NODES.items())[: setting.rounds(3, 1)]:
        stops = [_stops(setting, patched, nodes) for _ in range(setting.rounds(rounds, 1))]
        for which, name in enumerate(("apply", "revert")):
            what = f"all threads stopped, as katana {name} reports, {nodes:,} nodes"
            samples = [pair[which] for pair in stops]
            yield of_samples(f"{GROUP}.{nodes}", name, what, samples, "ms", floor=floor, best=True)


def _stops(setting: Setting, patched: Patched, nodes: int) -> tuple[float, float]:
    """Milliseconds that the process stood for apply and for revert."""
    with started(patched.old, str(nodes)) as talk:
        before = talk.ask("sum")
        pid = ("--pid", str(talk.pid))
        applied = _process(katana(setting, "apply", str(patched.patch), *pid, *_FOLLOW), nodes)
        if talk.ask("sum") != before:
            raise MeasureError("the list is another one after the patch")
        reverted = _process(katana(setting, "revert", *pid), nodes)
        if talk.ask("sum") != before:
            raise MeasureError("the list is another one after the revert")
        return applied["pause_us"] / 1e3, reverted["pause_us"] / 1e3


def _process(answer: dict[str, Any], nodes: int) -> dict[str, Any]:
    row: dict[str, Any] = answer["processes"][0]
    made = sum(entry["count"] for entry in row["objects"])
    if made != nodes:
        raise MeasureError(f"of {nodes} nodes {made} were made anew")
    return row
