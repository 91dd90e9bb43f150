"""The same build by others that stand before a compiler, for comparison; a make that has nothing to do; the store.

All variants get the flags that we add, so that only the standing in between is measured.  Those that are not installed
are left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.figures import Figure, of_samples
from bench.generated import generate
from bench.measure import Run, cpus, interleave, median, ratios, run, walls
from bench.setting import SECTION_FLAGS, Setting
from bench.workload import Workload

GROUP = "peers"


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the ratio of each whole build to the plain one, of a make without work, and how the store grows."""
    workload = generate(setting.folder("peers"), setting.rounds(149, 20))
    results = interleave(_builds(setting, workload), setting.rounds(3, 1))
    plain = results.pop("plain")
    note = f"{workload.note}; plain: {median(walls(plain)):.1f} s, {median(cpus(plain)):.1f} s of CPU"
    for name, runs in results.items():
        what = f"make -j2 by {name.replace('_', ' ')} over cc with the same flags"
        target = 1.03 if name == "katana" else None
        yield of_samples(
            GROUP, name, f"{what}, wall clock", ratios(walls(runs), walls(plain)), "x", target=target, note=note
        )
        yield of_samples(
            GROUP, f"{name}_cpu", f"{what}, CPU time", ratios(cpus(runs), cpus(plain)), "x", note="steadier"
        )
    yield from _no_change(setting, workload)
    yield from _growth(setting, workload)


def _builds(setting: Setting, workload: Workload) -> dict[str, Callable[[], Run]]:
    flagged = " ".join((setting.compiler, *SECTION_FLAGS))
    made: dict[str, Callable[[], Run]] = {
        "plain": partial(_clean_make, setting, workload, flagged),
        "katana": partial(_clean_make, setting, workload, setting.wrapper),
    }
    if shutil.which("ccache"):
        cached = f"ccache {flagged}"
        made["ccache_cold"] = partial(_cached_make, setting, workload, cached, warm=False)
        made["ccache_warm"] = partial(_cached_make, setting, workload, cached, warm=True)
        ours = f"{setting.wrapper} ccache {setting.compiler}"
        made["katana_with_ccache_warm"] = partial(_cached_make, setting, workload, ours, warm=True)
    if shutil.which("bear"):
        made["bear"] = partial(_clean_make, setting, workload, flagged, before=("bear", "--"))
    if shutil.which("wllvm") and shutil.which("clang"):
        made["wllvm_with_clang"] = partial(_clean_make, setting, workload, " ".join(("wllvm", *SECTION_FLAGS)))
    return made


def _make(setting: Setting, workload: Workload, compiler: str, before: tuple[str, ...] = (), **variables: str) -> Run:
    command = [*before, "make", "-j2", f"CC={compiler}", *workload.make]
    environment = setting.environment(setting.scratch / "peers-store") | {"LLVM_COMPILER": "clang"} | variables
    return run(command, cwd=workload.folder, env=environment)


def _clean_make(setting: Setting, workload: Workload, compiler: str, before: tuple[str, ...] = ()) -> Run:
    _clean(workload)
    shutil.rmtree(setting.scratch / "peers-store", ignore_errors=True)
    return _make(setting, workload, compiler, before)


def _cached_make(setting: Setting, workload: Workload, compiler: str, *, warm: bool) -> Run:
    cache = str(setting.folder("peers-cache"))
    if warm:
        _clean(workload)
        _make(setting, workload, compiler, CCACHE_DIR=cache)
    _clean(workload)
    return _make(setting, workload, compiler, CCACHE_DIR=cache)


def _clean(workload: Workload) -> None:
    for path in (*workload.folder.glob("*.o"), workload.folder / workload.output):
        path.unlink(missing_ok=True)


def _no_change(setting: Setting, workload: Workload) -> Iterator[Figure]:
    flagged = " ".join((setting.compiler, *SECTION_FLAGS))
    _clean_make(setting, workload, setting.wrapper)
    variants = {
        "plain": partial(_make, setting, workload, flagged),
        "katana": partial(_make, setting, workload, setting.wrapper),
    }
    results = interleave(variants, setting.rounds(20, 5))
    ratio = ratios(walls(results["katana"]), walls(results["plain"]))
    yield of_samples(GROUP, "no_change", "a make that has nothing to do, over the plain one", ratio, "x", target=1.01)


def _growth(setting: Setting, workload: Workload) -> Iterator[Figure]:
    """How much a link of one changed file adds to what the first build left in the store."""
    store = setting.scratch / "peers-store"
    _clean_make(setting, workload, setting.wrapper)
    environment = setting.environment(store)
    release = [setting.command("katana-release"), "v1"]
    run(release, cwd=workload.folder, env=environment)
    first = _size(store)
    name, old, new = workload.edit
    file = workload.folder / name
    text = file.read_text()
    file.write_text(text.replace(old, new.format(n=77)))
    _make(setting, workload, setting.wrapper)
    file.write_text(text)
    share = 100 * (_size(store) - first) / first
    note = f"the first build left {first / 1e6:.1f} MB"
    yield Figure(
        GROUP, "store_growth", "what a build of one changed file adds to the store", share, "%", target=1.0, note=note
    )


def _size(store: Path) -> int:
    """What is recorded; the staged copies of the newest link are replaced by the next."""
    return sum(p.lstat().st_size for p in store.rglob("*") if p.is_file() and "staged" not in p.parts)
