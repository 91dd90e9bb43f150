"""How long the processes of a server stand that are patched together (`--tree`): each of them, and all together.

Each process is stopped by itself, one after the other, when all of them are prepared.  So what matters is the stop of
each, and how long some processes run the new code while others run the old: that is what the processes themselves see.
The floor stops and frees each process and does nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.figures import Figure, of_samples
from bench.measure import MeasureError, median
from bench.program import Patched, Talk, build_pair, build_tool, katana, started
from bench.setting import Setting
from bench.stop import gap, stop_only

GROUP: Final = "tree"
PROCESSES: Final = 32

_CHANGE: Final = ("seed * 3 + 12", "seed * 5 + 12")
_OLD: Final = "42 42 42"
_NEW: Final = "62 62 62"


@dataclass(frozen=True, slots=True)
class _Command:
    """Milliseconds of one command on the tree; `pauses` of each process."""

    pauses: tuple[float, ...]
    largest_gap: float
    window: float
    wall: float


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the pauses of a tree.

    Raises:
        NotPermitted: tracing is not permitted here.
    """
    floor_tool = build_tool(setting, "floor")
    patched = build_pair(setting, "prefork", *_CHANGE, "-O2")
    applies: list[_Command] = []
    reverts: list[_Command] = []
    floors: list[list[float]] = []
    noises: list[float] = []
    shows: list[float] = []
    for _ in range(setting.rounds(5, 1)):
        with started(patched.old, str(PROCESSES)) as talk:
            floors.append(_floor(talk, floor_tool))
            begun = time.monotonic()
            noises.append(gap(talk, lambda: katana(setting, "show", str(patched.patch)))[1])
            shows.append((time.monotonic() - begun) * 1e3)
            applies.append(_command(setting, talk, patched, "apply", _NEW))
            reverts.append(_command(setting, talk, patched, "revert", _OLD))
    noise = min(noises)
    group = f"{GROUP}.{PROCESSES}"
    single, whole = min(median(f) for f in floors), min(sum(f) for f in floors)
    for name, commands in (("apply", applies), ("revert", reverts)):
        middle = [median(c.pauses) for c in commands]
        yield of_samples(
            group, f"{name}_each", f"a process stopped, as katana {name} reports: the median of {PROCESSES}", middle,
            "ms", floor=single, target=0.5, best=True, note="floor: stop and free one process, in C",
        )  # fmt: skip
        largest = [max(c.pauses) for c in commands]
        yield of_samples(
            group, f"{name}_largest", "the process that stood longest", largest, "ms", floor=single, best=True
        )
        gaps = [max(c.largest_gap - noise, 0.0) for c in commands]
        seen = f"noise of {noise:.3f} ms taken off"
        yield of_samples(group, f"{name}_heartbeat", "largest gap that any child saw", gaps, "ms", note=seen, best=True)
        yield of_samples(
            group, f"{name}_whole", "from the first child that runs the other code to the last",
            [c.window for c in commands], "ms", floor=whole, best=True, note="floor: stop and free all, in C",
        )  # fmt: skip
        walls = [c.wall for c in commands]
        yield of_samples(
            group, f"{name}_command", f"the whole katana {name} --tree", walls, "ms", floor=median(shows),
            note="floor: katana show",
        )  # fmt: skip


def _floor(talk: Talk, tool: Path) -> list[float]:
    return [stop_only(tool, int(pid)) for pid in talk.ask("pids").split()]


def _command(setting: Setting, talk: Talk, patched: Patched, command: str, answers: str) -> _Command:
    words = [command, *([str(patched.patch)] if command == "apply" else []), "--tree", str(talk.pid)]
    begun = time.monotonic()
    answer, largest_gap = gap(talk, lambda: katana(setting, *words))
    wall = (time.monotonic() - begun) * 1e3
    rows: list[dict[str, Any]] = answer["processes"]
    if len(rows) != PROCESSES:
        raise MeasureError(f"of {PROCESSES} processes {len(rows)} were reached by {command}")
    if (got := talk.ask("answers")) != answers:
        raise MeasureError(f"the processes answer {got} instead of {answers} after {command}")
    return _Command(tuple(r["pause_us"] / 1e3 for r in rows), largest_gap, int(talk.ask("window")) / 1e6, wall)
