"""What the diff of a one-function change costs in programs of 10, 100 and 1,000 objects: CPU time and peak memory.

The program grows and the change does not, so the curve shows what the diff pays for things that did not change.  A
process of its own makes the patch object again from the two snapshots, as the link did; the floor is the same process
up to the point where the store is open.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Final

from bench import generated
from bench.figures import Figure, of_samples
from bench.measure import MeasureError, Run, cpus, interleave, median, run, walls
from bench.recording import patches
from bench.setting import SECTION_FLAGS, Setting
from bench.workload import Workload, build

GROUP = "growth"
OBJECTS: Final = (10, 100, 1000)

_PROGRAM: Final = """\
import sys
from pathlib import Path
from katana_cc.patch import codec
from katana_cc.release.emit import make_patch
from katana_cc.snapshot.store import Store
store = Store(Path(sys.argv[1]))
if sys.argv[2] == "diff":
    newest, oldest = store.snapshot_rows()
    codec.encode(make_patch(store, store.snapshot(oldest.id), store.snapshot(newest.id), "old", "new")[0])
"""


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield time and memory for each size of program."""
    for objects in OBJECTS[: setting.rounds(3, 1)]:
        yield from _of_size(setting, objects)


def _of_size(setting: Setting, objects: int) -> Iterator[Figure]:
    workload = generated.generate(setting.folder(f"growth-{objects}"), objects - 1)
    build(setting, workload, " ".join((setting.compiler, *SECTION_FLAGS)))
    workload.change(setting, 0)
    _link(setting, workload)
    env = setting.environment(workload.store)
    run([setting.command("katana-release"), "v1"], cwd=workload.where, env=env)
    workload.change(setting, 1)
    _link(setting, workload)
    rows = patches(setting, workload)
    if len(rows) != 1 or rows[0]["verdict"] == "refused":
        raise MeasureError(f"a one-function change gave {len(rows)} patch objects", where=workload.name)
    variants = {how: partial(_process, setting, workload, how) for how in ("open", "diff")}
    runs = interleave(variants, setting.rounds(9, 2))
    floor, group = runs["open"], f"{GROUP}.{objects}"
    for suffix, clock, words in (("", walls, "wall clock"), ("_cpu", cpus, "CPU time")):
        yield of_samples(
            group, "diff" + suffix, f"diff and patch object of a one-function change, {objects} objects, {words}",
            clock(runs["diff"]), "s", floor=median(clock(floor)), note="floor: start, imports, opening the store",
        )  # fmt: skip
    peaks = [max(r.peak for r in runs[how]) / 1e6 for how in ("diff", "open")]
    yield Figure(group, "peak", "its peak memory", peaks[0], "MB", peaks[1], samples=len(floor), note="floor: the same")


def _link(setting: Setting, workload: Workload) -> None:
    run(
        workload.link_command(setting.wrapper, workload.output),
        cwd=workload.where, env=setting.environment(workload.store),
    )  # fmt: skip


def _process(setting: Setting, workload: Workload, how: str) -> Run:
    command = [sys.executable, "-c", _PROGRAM, str(workload.store), how]
    return run(command, cwd=workload.where, env=setting.environment())
