"""How long a process stands while it is patched, by its number of threads.

Two clocks: what `katana apply --json` reports, and what a real-time thread of the target saw.  The floor is a C program
that stops and frees the same threads and does nothing else.  Each round has a fresh process, so that the first mapping
of code into it is part of what its heartbeat sees.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.figures import Figure, of_samples
from bench.measure import MeasureError
from bench.program import NotPermitted, Patched, Talk, build_pair, build_tool, katana, started
from bench.setting import Setting

GROUP = "pause"

T = TypeVar("T")

TARGETS: Final = {3: 1.0, 64: 5.0, 256: 20.0}
"""At most this many milliseconds with that many threads."""

_ANSWERS: Final = ("42", "62")


@dataclass(frozen=True, slots=True)
class _Round:
    """Milliseconds; `noise` is the heartbeat's largest gap while commands ran that leave the target alone."""

    floor: float
    floor_gap: float
    noise: float
    apply: float
    apply_attached: float
    apply_gap: float
    mapping: float
    revert: float
    revert_gap: float


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the pauses for each number of threads.

    Raises:
        NotPermitted: tracing is not permitted here.
    """
    floor = build_tool(setting, "floor")
    patched = build_pair(setting, "threads", "seed * 3 + 12", "seed * 5 + 12", "-O2", "-pthread")
    for threads, target in TARGETS.items():
        kinds: set[str] = set()
        rounds: list[_Round] = []
        for _ in range(setting.rounds(7, 2)):
            with started(patched.old, str(threads)) as talk:
                kinds.add(talk.ready)
                rounds.append(_round(setting, patched, floor, talk, threads))
        yield from _figures(f"{GROUP}.{threads}", rounds, target, "/".join(sorted(kinds)))


def _figures(group: str, rounds: list[_Round], target: float, kind: str) -> Iterator[Figure]:
    floor = min(r.floor for r in rounds)
    noise = min(r.noise for r in rounds)
    least = f"best of {len(rounds)}; floor: stop and free all threads, in C"
    seen = f"heartbeat of scheduling class {kind}; noise of {noise:.3f} ms taken off"
    for name, what, samples in (
        ("apply_reported", "all threads stopped, as katana apply reports", [r.apply for r in rounds]),
        ("revert_reported", "all threads stopped, as katana revert reports", [r.revert for r in rounds]),
    ):
        yield of_samples(group, name, what, samples, "ms", floor=floor, target=target, note=least, best=True)
    stop = min(r.floor_gap for r in rounds) - noise
    # With few threads the least stop is lost in the noise, and a ratio to it means nothing.
    floor_gap = stop if stop > noise else None
    for name, what, gaps in (
        ("apply_heartbeat", "largest gap a real-time thread saw in an apply", [r.apply_gap for r in rounds]),
        ("revert_heartbeat", "largest gap a real-time thread saw in a revert", [r.revert_gap for r in rounds]),
    ):
        net = [max(gap - noise, 0.0) for gap in gaps]
        yield of_samples(group, name, what, net, "ms", floor=floor_gap, target=target, note=seen, best=True)
    attached = [r.apply_attached for r in rounds]
    yield of_samples(
        group,
        "apply_attached",
        "first thread attached to last detached, running most of it",
        attached,
        "ms",
        floor=floor,
        best=True,
    )
    mapping = [r.mapping for r in rounds]
    yield of_samples(group, "mapping", "one thread stopped alone before, to map the new code", mapping, "ms", best=True)


def _round(setting: Setting, patched: Patched, floor: Path, talk: Talk, threads: int) -> _Round:
    pid = ["--pid", str(talk.pid)]
    po = str(patched.patch)
    _expect(talk, _ANSWERS[0])
    stopped, floor_gap = _gap(talk, lambda: _stop_only(floor, talk.pid))
    _, before = _gap(talk, lambda: katana(setting, "show", po))
    applied, apply_gap = _gap(talk, lambda: _process(katana(setting, "apply", po, *pid), "applied", threads))
    _expect(talk, _ANSWERS[1])
    _, between = _gap(talk, lambda: katana(setting, "show", po))
    reverted, revert_gap = _gap(talk, lambda: _process(katana(setting, "revert", *pid), "reverted", threads))
    _expect(talk, _ANSWERS[0])
    return _Round(
        stopped, floor_gap, min(before, between),
        applied["pause_us"] / 1e3, applied["attach_us"] / 1e3, apply_gap, applied["map_pause_us"] / 1e3,
        reverted["pause_us"] / 1e3, revert_gap,
    )  # fmt: skip


def _gap(talk: Talk, action: Callable[[], T]) -> tuple[T, float]:
    """What `action` gives, and the heartbeat's largest gap in it, in milliseconds."""
    talk.ask("reset")
    done = action()
    return done, int(talk.ask("gap")) / 1e6


def _stop_only(floor: Path, pid: int) -> float:
    done = subprocess.run([str(floor), str(pid)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPermitted(f"a process cannot be traced here: {done.stderr.strip() or done.returncode}")
    return int(done.stdout) / 1e6


def _process(answer: dict[str, Any], outcome: str, threads: int) -> dict[str, Any]:
    row: dict[str, Any] = answer["processes"][0]
    if row["outcome"] != outcome or row["threads"] != threads:
        raise MeasureError(f"of {threads} threads {row['threads']} were stopped, and the outcome is {row['outcome']}")
    return row


def _expect(talk: Talk, answer: str) -> None:
    got = talk.ask("answer")
    if got != answer:
        raise MeasureError(f"the target answers {got} instead of {answer}")
