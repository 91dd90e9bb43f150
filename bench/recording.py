"""What recording a link costs, cold and for one changed object, and how long a patch object takes after a link.

Each is the difference of two links of the same objects by the same compiler, one through our `ld` and one plain with
`-Map`, which the linker needs some milliseconds for; so the difference is staging, and where the output is deployed
also ingestion, diff and patch object.  Ingestion alone is what `katana-release` takes, its start included.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial

from bench.figures import Figure, of_samples
from bench.measure import MeasureError, Run, differences, interleave, median, run, walls
from bench.setting import Setting
from bench.workload import Workload

GROUP = "recording"


def measure(setting: Setting, workload: Workload) -> Iterator[Figure]:
    """Yield the figures of a workload that is built already (its objects are there)."""
    group = f"{GROUP}.{workload.name}"
    release = partial(_release, setting, workload)
    note = workload.note
    workload.change(setting, 0)
    plain_map = partial(_link, setting, workload, "map")
    katana = partial(_link, setting, workload, "katana")

    def forget(_: int) -> None:
        shutil.rmtree(workload.store, ignore_errors=True)

    rounds = setting.rounds(9, 2)
    cold = interleave(
        {"plain": partial(_link, setting, workload, "plain"), "map": plain_map, "katana": katana}, rounds, forget
    )
    links = cold["katana"]
    staging = differences(walls(links), walls(cold["map"]))
    ingesting: list[Run] = []
    for number in range(rounds):
        forget(number)
        katana()
        ingesting.append(release("base", "--not-deployed"))
    ingestion = walls(ingesting)
    floor = median(walls(cold["map"]))
    with_map = f"floor: the plain link with -Map; without a map {median(walls(cold['plain'])):.3f} s"
    yield of_samples(
        group,
        "cold_link",
        f"cold link of {workload.objects} objects through katana-ld",
        walls(links),
        "s",
        floor=floor,
        note=with_map,
    )
    yield of_samples(group, "cold_staging", "of it staging: over the plain link with -Map", staging, "s", floor=floor)
    start = median(
        [
            run([setting.command("katana-release"), "--version"], cwd=workload.where, env=setting.environment()).wall
            for _ in range(rounds)
        ]
    )
    yield of_samples(
        group,
        "cold_ingestion",
        "katana-release of that link",
        ingestion,
        "s",
        floor=start,
        note="floor: its start alone",
    )
    both = [a + b for a, b in zip(staging, ingestion, strict=True)]
    yield of_samples(
        group, "cold", "recording a cold link: staging and ingestion", both, "s", floor=floor, target=0.5, note=note
    )
    memory = max(r.peak for r in links) / 1e6
    linker = max(r.peak for r in cold["map"]) / 1e6
    yield Figure(group, "link_peak", "peak memory of the recorded link", memory, "MB", linker, samples=rounds)
    yield Figure(
        group,
        "ingestion_peak",
        "peak memory of the ingestion",
        max(r.peak for r in ingesting) / 1e6,
        "MB",
        linker,
        samples=rounds,
        note="floor: the linker's own",
    )
    yield from _relinks(setting, workload, rounds)


def _relinks(setting: Setting, workload: Workload, rounds: int) -> Iterator[Figure]:
    """The store holds the base by now, not deployed."""
    group = f"{GROUP}.{workload.name}"
    plain_map = partial(_link, setting, workload, "map")
    katana = partial(_link, setting, workload, "katana")
    release = partial(_release, setting, workload)
    staging: list[float] = []
    ingestion: list[float] = []
    for number in range(rounds):
        workload.change(setting, 1 + number)
        pair = interleave({"map": plain_map, "katana": katana}, 1)
        staging += differences(walls(pair["katana"]), walls(pair["map"]))
        ingestion.append(release(f"again-{number}", "--not-deployed").wall)
    both = [a + b for a, b in zip(staging, ingestion, strict=True)]
    yield of_samples(group, "relink_staging", "one changed object: staging", staging, "s")
    yield of_samples(group, "relink", "one changed object: staging and katana-release", both, "s", target=0.25)

    workload.change(setting, 0)
    katana()
    release("v1")
    same = interleave({"map": plain_map, "katana": katana}, rounds)
    yield of_samples(
        group,
        "deployed_unchanged",
        "deployed, nothing changed: added to the link",
        differences(walls(same["katana"]), walls(same["map"])),
        "s",
    )
    emission: list[float] = []
    peaks: list[int] = []
    plain: list[float] = []
    for number in range(rounds):
        workload.change(setting, 100 + number)
        pair = interleave({"map": plain_map, "katana": katana}, 1)
        emission += differences(walls(pair["katana"]), walls(pair["map"]))
        plain += walls(pair["map"])
        peaks += [r.peak for r in pair["katana"]]
    rows = patches(setting, workload)
    if len(rows) != rounds or any(row["verdict"] == "refused" for row in rows):
        verdicts = ", ".join(str(row["verdict"]) for row in rows) or "none"
        raise MeasureError(f"{rounds} one-function changes gave these patch objects: {verdicts}", where=workload.name)
    yield of_samples(
        group,
        "emission",
        "one-function change: from the end of the plain link to the patch object",
        emission,
        "s",
        floor=median(plain),
        target=1.0,
        note="floor: the plain link",
    )
    yield Figure(
        group,
        "emission_peak",
        "peak memory of that link with diff and patch object",
        max(peaks) / 1e6,
        "MB",
        samples=rounds,
    )


def patches(setting: Setting, workload: Workload) -> list[dict[str, object]]:
    """What `katana patches` lists of a workload's store, newest first."""
    done = subprocess.run(
        [setting.command("katana"), "patches", "--json"],
        cwd=workload.where, env=setting.environment(workload.store), capture_output=True, check=True,
    )  # fmt: skip
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def _link(setting: Setting, workload: Workload, how: str) -> Run:
    env = setting.environment(workload.store)
    if how == "katana":
        return run(workload.link_command(setting.wrapper, workload.output), cwd=workload.where, env=env)
    extra = ["-Wl,--build-id=sha1"]
    if how == "map":
        extra.append(f"-Wl,-Map={setting.scratch / 'plain.map'}")
    return run(workload.link_command(setting.compiler, f"{workload.output}.plain", *extra), cwd=workload.where, env=env)


def _release(setting: Setting, workload: Workload, name: str, *options: str) -> Run:
    command = [setting.command("katana-release"), name, *options]
    return run(command, cwd=workload.where, env=setting.environment(workload.store))
