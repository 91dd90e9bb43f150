"""Running commands against the clock.

Theory of operation.  The machine is noisy, and its noise comes in stretches longer than one command.  So the variants
to be compared are run alternately, in an order that turns by one each round, and what is reported is the median of the
*paired* differences (or ratios) of each round, in which a slow stretch cancels out.  A command is started by
posix_spawn and reaped by wait4, which gives the CPU time and the peak memory of it and all its children: CPU time is
the figure to trust where other programs share the processors.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from katana_cc.errors import KatanaError

T = TypeVar("T")


class MeasureError(KatanaError):
    """A command that is being measured failed, or an answer is not what it must be: no figure is worth anything."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one command took: seconds of wall clock and of CPU (with all children), peak memory of its largest process.

    The kernel counts the memory of the parent that spawned it too (getrusage(2), "ru_maxrss"), some 20 MB here.
    """

    wall: float
    cpu: float
    peak: int

    def __sub__(self, other: Run) -> Run:
        """What this took more than another; the peak stays."""
        return Run(self.wall - other.wall, self.cpu - other.cpu, self.peak)

    def __add__(self, other: Run) -> Run:
        """One after the other."""
        return Run(self.wall + other.wall, self.cpu + other.cpu, max(self.peak, other.peak))


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Run:
    """Run a command to its end, its output kept aside.

    Raises:
        MeasureError: it ended with another status than 0; the end of its output is part of the message.
    """
    with tempfile.TemporaryFile() as log, contextlib.chdir(cwd):
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
        ]
        started = time.perf_counter()
        child = os.posix_spawnp(command[0], list(command), env, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
        wall = time.perf_counter() - started
        if status != 0:
            log.seek(0)
            tail = log.read()[-2000:].decode(errors="replace").strip()
            shown = " ".join(command)
            raise MeasureError(
                f"ended with status {os.waitstatus_to_exitcode(status)}: {tail}",
                where=shown[:200],
                remedy="Run it by hand.",
            )
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def interleave(
    variants: Mapping[str, Callable[[], T]], rounds: int, before: Callable[[int], None] | None = None
) -> dict[str, list[T]]:
    """Call every variant once a round, in an order that turns by one each round; results by variant, in rounds' order.

    `before` is called with the number of each round, outside all variants.
    """
    names = list(variants)
    results: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        if before is not None:
            before(number)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            results[name].append(variants[name]())
    return results


def walls(runs: Sequence[Run]) -> list[float]:
    """The wall clock seconds of some runs."""
    return [r.wall for r in runs]


def cpus(runs: Sequence[Run]) -> list[float]:
    """The CPU seconds of some runs."""
    return [r.cpu for r in runs]


def differences(ours: Sequence[float], theirs: Sequence[float], scale: float = 1.0) -> list[float]:
    """Ours minus theirs, round by round, times `scale`."""
    return [(a - b) * scale for a, b in zip(ours, theirs, strict=True)]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the two in the middle."""
    return quantile(samples, 0.5)


def quantile(samples: Sequence[float], fraction: float) -> float:
    """A quantile by linear interpolation between the two nearest samples."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * fraction
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
