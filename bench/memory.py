"""How long a process stands while a variable moves, by how much memory it has written to: all of it may hold a pointer.

The floor is a patch of the same program without that memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.figures import Figure, of_samples
from bench.measure import MeasureError
from bench.program import Patched, build_pair, katana, started
from bench.setting import Setting

GROUP = "memory"

MEGABYTES: Final = {64: 7, 1024: 3}  # and rounds
_BEFORE: Final = "\tlong most;\n"
_AFTER: Final = "\tlong least;\n\tlong most;\n"
_FOLLOW: Final = ("--follow", "limits")  # what a function left behind on the stack


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the stop of apply and of revert for each amount of memory.

    Raises:
        MeasureError: the variable holds something else afterwards.
    """
    patched = build_pair(setting, "memory", _BEFORE, _AFTER, "-O2")
    floor = [_stops(setting, patched, 0) for _ in range(setting.rounds(7, 1))]
    for amount, rounds in list(MEGABYTES.items())[: setting.rounds(2, 1)]:
        stops = [_stops(setting, patched, amount) for _ in range(setting.rounds(rounds, 1))]
        for which, name in enumerate(("apply", "revert")):
            what = f"all threads stopped, as katana {name} reports, {amount} MB of writable memory"
            samples = [pair[which] for pair in stops]
            least = min(pair[which] for pair in floor)
            yield of_samples(f"{GROUP}.{amount}", name, what, samples, "ms", floor=least, best=True)


def _stops(setting: Setting, patched: Patched, amount: int) -> tuple[float, float]:
    """Milliseconds that the process stood for apply and for revert."""
    with started(patched.old, str(amount)) as talk:
        before = talk.ask("limit")
        pauses = []
        pid = ("--pid", str(talk.pid))
        for command in (("apply", str(patched.patch), *pid, *_FOLLOW), ("revert", *pid)):
            pauses.append(katana(setting, *command)["processes"][0]["pause_us"] / 1e3)
            if talk.ask("limit") != before:
                raise MeasureError(f"the variable holds something else after {command[0]}")
        return pauses[0], pauses[1]
