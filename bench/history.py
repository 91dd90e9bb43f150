"""The store over many builds of one program: how it grows, and whether what is done with it grows along.

Each build changes a function of another file, so that all behind it moves; each twentieth is named a release that runs,
so that from then on every link makes a patch from each.  KATANA_BENCH_HISTORY=1000x100 sets objects and builds (the
compiler takes minutes for so many objects); the default is a tenth of both, nearly.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench import generated
from bench.figures import Figure, of_samples
from bench.measure import MeasureError, Run, cpus, median, run, walls
from bench.setting import SECTION_FLAGS, Setting
from bench.workload import Workload, build

GROUP = "history"
VARIABLE: Final = "KATANA_BENCH_HISTORY"
_DEFAULT: Final = "100x40"
_RELEASE_EACH: Final = 20
_TOLD: Final = (10, 20, 50, 100, 200, 500)  # builds after which the size is told
_KEPT: Final = 10


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield sizes and times of one history."""
    objects, builds = _extent(setting)
    workload = generated.generate(setting.folder("history"), objects - 1)
    build(setting, workload, " ".join((setting.compiler, *SECTION_FLAGS)))
    env = setting.environment(workload.store)
    note = f"{objects} objects, {builds} builds"

    def katana(*words: str) -> Run:
        return run([setting.command(words[0]), *words[1:]], cwd=workload.where, env=env)

    def link(compiler: str, output: str) -> Run:
        return run(workload.link_command(compiler, output), cwd=workload.where, env=env)

    link(setting.wrapper, workload.output)
    katana("katana-release", "v0")
    first, sizes, links, plain = _size(workload.store), [], [], []
    releases, packed = 1, []
    for number in range(1, builds + 1):
        _change(setting, workload, number, objects)
        plain.append(link(setting.compiler, f"{workload.output}.plain"))
        links.append(link(setting.wrapper, workload.output))
        sizes.append(_size(workload.store))
        if number % _RELEASE_EACH == 0:
            out = f"bundle-{number}"
            packed.append(katana("katana-release", "--since", "v0", "-o", out))
            katana("katana-release", f"v{number // _RELEASE_EACH}")
            releases += 1
        if number in _TOLD:
            yield Figure(GROUP, f"size_{number}", f"the store after {number} builds, over that after the first",
                         sizes[-1] / first, "x", note=note)  # fmt: skip
    grown = [100 * (after - before) / first for before, after in zip([first, *sizes], sizes, strict=False)]
    patches = sum(path.stat().st_size for path in (workload.store / "patches").rglob("*.kpo"))
    yield of_samples(GROUP, "growth", "what a build adds to the store, patch objects from all releases included", grown,
                     "%", note=f"{note}; {first / 1e6:.1f} MB after the first")  # fmt: skip
    own = 100 * (sizes[-1] - first - patches) / builds / first
    yield Figure(GROUP, "growth_own", "the same without the patch objects", own, "%", target=1.0, note=note)
    third = max(1, builds // 3)
    for name, which in (("link_early", slice(0, third)), ("link_late", slice(-third, None))):
        what = (
            f"a recorded link with its patches, {'first' if which.start == 0 else 'last'} third of the builds, CPU time"
        )
        yield of_samples(GROUP, name, what, cpus(links[which]), "s", floor=median(cpus(plain[which])),
                         note=f"floor: the plain link; at the end from {releases} releases")  # fmt: skip
    for number, done in zip(range(1, len(packed) + 1), packed, strict=True):
        yield _single(f"release_{number}", f"katana-release --since v0, {number} releases", done, note)
    yield _single("diff", "katana diff from the first build to the last", katana("katana", "diff", "v0"), note)
    yield _single("check", "katana check", katana("katana", "check"), f"{note}; {sizes[-1] / 1e6:.1f} MB")
    yield _single("log", "katana log", katana("katana", "log"), note)
    yield _single("gc", f"katana gc --keep-last {_KEPT}", katana("katana", "gc", "--keep-last", str(_KEPT)), note)
    after = _size(workload.store)
    yield Figure(GROUP, "size_collected", "the store after that, over that after the first build", after / first, "x",
                 note=f"{releases} releases stay")  # fmt: skip
    yield _single("check_collected", "katana check after that", katana("katana", "check"), note)


def _single(name: str, what: str, done: Run, note: str) -> Figure:
    return Figure(GROUP, name, f"{what}, CPU time", cpus([done])[0], "s", note=f"{note}; {walls([done])[0]:.1f} s")


def _extent(setting: Setting) -> tuple[int, int]:
    text = "12x4" if setting.quick else os.environ.get(VARIABLE, _DEFAULT)
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,3})", text)
    if match is None or int(match[1]) < 3:
        raise MeasureError(f"{VARIABLE}={text} is not OBJECTSxBUILDS", where=GROUP)
    return int(match[1]), int(match[2])


def _change(setting: Setting, workload: Workload, number: int, objects: int) -> None:
    """Have a function of one file grow, or shrink; of another file each time."""
    unit = number * 37 % (objects - 1)
    path = workload.where / f"unit_{unit}.c"
    text = re.sub(r"(unsigned long total = 5ul \+ \d+ul;).*", r"\1", path.read_text())
    more = "".join(f" total = (total ^ depth) * {1000003 + 2 * k}ul;" for k in range(1 + number % 7))
    path.write_text(re.sub(r"(unsigned long total = 5ul \+ \d+ul;)", lambda found: found[1] + more, text))
    command = [setting.compiler, *SECTION_FLAGS, "-O2", "-c", "-o", f"unit_{unit}.o", f"unit_{unit}.c"]
    run(command, cwd=workload.where, env=setting.environment())


def _size(store: Path) -> int:
    """What is recorded, in bytes; the staged copies of the newest link are replaced by the next."""
    return sum(p.lstat().st_size for p in store.rglob("*") if p.is_file() and "staged" not in p.parts)
