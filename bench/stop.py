"""How long one process stands for one apply and one revert: by its own clock and by what `katana` reports.

Two clocks: what `katana apply --json` reports, and what a real-time thread of the target saw.  The floor is a C program
that stops and frees the same threads and does nothing else, run on the same process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.figures import Figure, of_samples
from bench.measure import MeasureError
from bench.program import NotPermitted, Patched, Talk, katana
from bench.setting import Setting

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Round:
    """Milliseconds; `noise` is the heartbeat's largest gap while commands ran that leave the target alone."""

    floor: float
    floor_gap: float
    noise: float
    apply: float
    apply_attached: float
    apply_gap: float
    mapping: float
    revert: float
    revert_attached: float
    revert_gap: float


def one_round(
    setting: Setting, patched: Patched, floor: Path, talk: Talk, threads: int, answers: dict[str, tuple[str, str]]
) -> Round:
    """Patch a process once, and take the patch out again.

    Args:
        threads: how many it has.
        answers: question → what it answers before the patch, and with it.

    Raises:
        MeasureError: it answers something else, or not all threads were stopped.
        NotPermitted: tracing is not permitted here.
    """
    pid = ["--pid", str(talk.pid)]
    po = str(patched.patch)

    def expect(which: int) -> None:
        for question, known in answers.items():
            if (got := talk.ask(question)) != known[which]:
                raise MeasureError(f"the target answers {got} instead of {known[which]}, asked: {question}")

    expect(0)
    stopped, floor_gap = gap(talk, lambda: stop_only(floor, talk.pid))
    _, before = gap(talk, lambda: katana(setting, "show", po))
    applied, apply_gap = gap(talk, lambda: _process(katana(setting, "apply", po, *pid), "applied", threads))
    expect(1)
    _, between = gap(talk, lambda: katana(setting, "show", po))
    reverted, revert_gap = gap(talk, lambda: _process(katana(setting, "revert", *pid), "reverted", threads))
    expect(0)
    return Round(
        stopped, floor_gap, min(before, between),
        applied["pause_us"] / 1e3, applied["attach_us"] / 1e3, apply_gap, applied["map_pause_us"] / 1e3,
        reverted["pause_us"] / 1e3, reverted["attach_us"] / 1e3, revert_gap,
    )  # fmt: skip


def figures(group: str, rounds: Sequence[Round], target: float | None, kind: str) -> Iterator[Figure]:
    """What some rounds come to; `target` in milliseconds, `kind` the scheduling class of the heartbeat."""
    floor = min(r.floor for r in rounds)
    noise = min(r.noise for r in rounds)
    least = f"best of {len(rounds)}; floor: stop and free all threads, in C"
    seen = f"heartbeat of scheduling class {kind}; noise of {noise:.3f} ms taken off"
    stop = min(r.floor_gap for r in rounds) - noise
    # With few threads the least stop is lost in the noise, and a ratio to it means nothing.
    floor_gap = stop if stop > noise else None
    for name, what, samples in (
        ("apply", "an apply", [r.apply_gap for r in rounds]),
        ("revert", "a revert", [r.revert_gap for r in rounds]),
    ):
        net = [max(gap - noise, 0.0) for gap in samples]
        what = f"largest gap a real-time thread saw in {what}"
        yield of_samples(
            group, f"{name}_heartbeat", what, net, "ms", floor=floor_gap, target=target, note=seen, best=True
        )
    for name, samples in (("apply", [r.apply for r in rounds]), ("revert", [r.revert for r in rounds])):
        what = f"all threads stopped, as katana {name} reports"
        yield of_samples(
            group, f"{name}_reported", what, samples, "ms", floor=floor, target=target, note=least, best=True
        )
    for name, samples in (
        ("apply", [r.apply_attached for r in rounds]),
        ("revert", [r.revert_attached for r in rounds]),
    ):
        what = "first thread attached to last detached, running most of it"
        yield of_samples(group, f"{name}_attached", what, samples, "ms", floor=floor, target=target, best=True)
    mapping = [r.mapping for r in rounds]
    yield of_samples(group, "mapping", "one thread stopped alone before, to map the new code", mapping, "ms", best=True)


def gap(talk: Talk, action: Callable[[], T]) -> tuple[T, float]:
    """What `action` gives, and the heartbeat's largest gap in it, in milliseconds."""
    talk.ask("reset")
    done = action()
    return done, int(talk.ask("gap")) / 1e6


def stop_only(floor: Path, pid: int) -> float:
    """Milliseconds from the first thread that the floor stops to the last that it frees.

    Raises:
        NotPermitted: tracing is not permitted here.
    """
    done = subprocess.run([str(floor), str(pid)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPermitted(f"a process cannot be traced here: {done.stderr.strip() or done.returncode}")
    return int(done.stdout) / 1e6


def _process(answer: dict[str, Any], outcome: str, threads: int) -> dict[str, Any]:
    row: dict[str, Any] = answer["processes"][0]
    if row["outcome"] != outcome or row["threads"] != threads:
        raise MeasureError(f"of {threads} threads {row['threads']} were stopped, and the outcome is {row['outcome']}")
    return row
