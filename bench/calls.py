"""What one call of a function costs: before a patch, through the jump of a patch, and in a program built anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.figures import Figure, of_samples
from bench.measure import MeasureError, differences, interleave
from bench.program import NotPermitted, Talk, build_pair, katana, started
from bench.setting import Setting
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile

GROUP = "calls"


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield nanoseconds a call in four processes that run the same tight loop.

    Raises:
        NotPermitted: tracing is not permitted here.
    """
    built = build_pair(setting, "calls", "* 3 + 1", "* 5 + 1", "-O2")
    count = setting.rounds(30_000_000, 2_000_000)
    with ExitStack() as stack:
        paths = {"unrecorded": built.unrecorded, "recorded": built.old, "patched": built.old, "new": built.new}
        talks = {name: stack.enter_context(started(path)) for name, path in paths.items()}
        try:
            katana(setting, "apply", str(built.patch), "--pid", str(talks["patched"].pid))
        except MeasureError as error:
            if "status 5" not in error.what:
                raise
            raise NotPermitted(error.what) from error
        sums = {name: _time(talk, 1000)[1] for name, talk in talks.items()}
        if not sums["unrecorded"] == sums["recorded"] != sums["patched"] == sums["new"]:
            raise MeasureError(f"the loops do not agree: {sums}")
        rounds = interleave({name: partial(_time, talk, count) for name, talk in talks.items()}, setting.rounds(21, 3))
    ns = {name: [taken for taken, _ in samples] for name, samples in rounds.items()}
    plain, new = min(ns["unrecorded"]), min(ns["new"])
    best = f"best of {len(ns['new'])} loops of {count:,} calls"
    yield of_samples(
        GROUP, "unrecorded", "a call, built by the plain compiler", ns["unrecorded"], "ns", note=best, best=True
    )
    yield of_samples(
        GROUP,
        "recorded",
        "a call, built by katana-cc, not patched",
        ns["recorded"],
        "ns",
        floor=plain,
        note="floor: unrecorded",
        best=True,
    )
    yield of_samples(
        GROUP,
        "patched",
        "a call of the new version through the patch",
        ns["patched"],
        "ns",
        floor=new,
        note="floor: a plain call of the new version",
        best=True,
    )
    yield of_samples(
        GROUP,
        "added_before",
        "katana-cc over the plain compiler, round by round",
        differences(ns["recorded"], ns["unrecorded"]),
        "ns",
    )
    yield of_samples(
        GROUP,
        "added_patched",
        "the jump: patched over built anew, round by round",
        differences(ns["patched"], ns["new"]),
        "ns",
    )
    yield Figure(
        GROUP,
        "code_differs",
        "bytes of machine code that recording changed",
        _differing(built.unrecorded, built.old),
        "bytes",
        target=0.0,
    )


def _time(talk: Talk, count: int) -> tuple[float, str]:
    """Nanoseconds a call, and what the calls added up to."""
    taken, total = talk.ask(f"time {count}").split()
    return int(taken) / count, total


def _differing(one: Path, other: Path) -> float:
    codes = []
    for path in (one, other):
        elf = ElfFile(path.read_bytes(), path.name)
        codes.append(b"".join(elf.contents(s) for s in elf.sections if s.name == ".text" and s.flags & c.SHF_EXECINSTR))
    if len(codes[0]) != len(codes[1]):
        return float(max(map(len, codes)))
    return float(sum(a != b for a, b in zip(*codes, strict=True)))
