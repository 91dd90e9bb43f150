"""How large the store is after a first build, what a rebuild adds, and how large a patch object is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure
from bench.measure import MeasureError, run
from bench.recording import patches
from bench.setting import Setting
from bench.workload import Workload

GROUP = "store"


def measure(setting: Setting, workload: Workload) -> Iterator[Figure]:
    """Yield the sizes for a workload that is built already."""
    group = f"{GROUP}.{workload.name}"
    env = setting.environment(workload.store)
    shutil.rmtree(workload.store, ignore_errors=True)
    link = workload.link_command(setting.wrapper, workload.output)
    workload.change(setting, 0)
    run(link, cwd=workload.where, env=env)
    run([setting.command("katana-release"), "v1"], cwd=workload.where, env=env)
    objects = sum((workload.where / word).stat().st_size for word in workload.link if word.endswith((".o", ".a")))
    first, kept = _size(workload.store), _size(workload.store) - _size(workload.store / "staged")
    of = f"floor: the objects and archives linked; {workload.note}"
    yield Figure(group, "first", "store after the first recorded link", first / 1e6, "MB", objects / 1e6, note=of)
    yield Figure(
        group, "kept", "of it for good, the rest is the staged copy of the last link", kept / 1e6, "MB", objects / 1e6
    )
    workload.change(setting, 1)
    run(link, cwd=workload.where, env=env)
    changed = next(word for word in workload.compile if word.endswith(".o"))
    floor = (workload.where / changed).stat().st_size / 1e3
    grown = _size(workload.store) - _size(workload.store / "staged") - kept
    yield Figure(
        group,
        "growth",
        "growth by a rebuild with one changed object",
        grown / 1e3,
        "kB",
        floor,
        note="floor: that object",
    )
    rows = patches(setting, workload)
    if len(rows) != 1:
        raise MeasureError(f"one change made {len(rows)} patch objects", where=workload.name)
    size = Path(str(rows[0]["path"])).stat().st_size
    yield Figure(
        group, "patch", "patch object of a one-function change", size / 1e3, "kB", floor, note="floor: that object"
    )


def _size(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file())
