"""What recording adds to a whole build, and what the compiler flags alone cost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from bench.figures import Figure, of_samples
from bench.measure import Run, cpus, interleave, median, ratios, walls
from bench.setting import SECTION_FLAGS, Setting
from bench.workload import Workload, build

GROUP = "build"


def measure(setting: Setting, workload: Workload) -> Iterator[Figure]:
    """Yield ratios of whole builds of `workload`, each from an untouched copy of its tree."""
    flagged = " ".join((setting.compiler, *SECTION_FLAGS))
    variants = {"bare": setting.compiler, "plain": flagged, "katana": setting.wrapper}
    results = interleave(
        {name: partial(_build_copy, setting, workload, compiler) for name, compiler in variants.items()},
        setting.rounds(3, 1),
    )
    seconds = median(walls(results["plain"])), median(cpus(results["plain"]))
    jobs = f"{workload.note}; plain: {seconds[0]:.1f} s, {seconds[1]:.1f} s of CPU"
    for name, ours, theirs, what, target in (
        ("katana", "katana", "plain", "make -j2 by katana-cc over cc with the same flags", 1.05),
        ("flags", "plain", "bare", "make -j2 by cc with -g and section flags over cc without", None),
    ):
        wall = ratios(walls(results[ours]), walls(results[theirs]))
        cpu = ratios(cpus(results[ours]), cpus(results[theirs]))
        group = f"{GROUP}.{workload.name}"
        yield of_samples(group, name, f"{what}, wall clock", wall, "x", target=target, note=jobs)
        yield of_samples(group, f"{name}_cpu", f"{what}, CPU time", cpu, "x", target=target, note="steadier")


def _build_copy(setting: Setting, workload: Workload, compiler: str) -> Run:
    copy = setting.scratch / "build"
    if copy.exists():
        shutil.rmtree(copy)
    shutil.copytree(workload.folder, copy, symlinks=True)
    moved = replace(workload, folder=copy)
    # The page cache holds the sources now, for every variant alike.
    return build(setting, moved, compiler)
