"""What recording a link costs, cold and for one changed object, and how long a patch object takes after a link.

Each is the difference of two links of the same objects by the same compiler, one through our `ld` and one plain with
`-Map`, which the linker needs some milliseconds for; so the difference is staging, and where the output is deployed
also ingestion, diff and patch object.  Ingestion alone is what `katana-release` takes, its start included.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

from bench.figures import Figure, of_samples
from bench.measure import MeasureError, Run, cpus, interleave, median, run, walls
from bench.setting import Setting
from bench.workload import Workload

GROUP = "recording"


def measure(setting: Setting, workload: Workload) -> Iterator[Figure]:
    """Yield the figures of a workload that is built already (its objects are there)."""
    subject = _Subject(setting, workload)
    rounds = setting.rounds(9, 2)
    workload.change(setting, 0)
    yield from _cold(subject, rounds)
    # The store holds the first build by now, which is not deployed.
    yield from _relink(subject, rounds)
    workload.change(setting, 0)
    subject.link("katana")
    subject.release("v1")
    yield from _deployed(subject, rounds)


@dataclass(frozen=True, slots=True)
class _Subject:
    setting: Setting
    workload: Workload

    @property
    def group(self) -> str:
        return f"{GROUP}.{self.workload.name}"

    def link(self, how: str) -> Run:
        """One link: "plain", "map" (plain with -Map), or "katana"."""
        workload = self.workload
        env = self.setting.environment(workload.store)
        if how == "katana":
            return run(workload.link_command(self.setting.wrapper, workload.output), cwd=workload.where, env=env)
        extra = ["-Wl,--build-id=sha1"]
        if how == "map":
            extra.append(f"-Wl,-Map={self.setting.scratch / 'plain.map'}")
        command = workload.link_command(self.setting.compiler, f"{workload.output}.plain", *extra)
        return run(command, cwd=workload.where, env=env)

    def release(self, *arguments: str) -> Run:
        command = [self.setting.command("katana-release"), *arguments]
        return run(command, cwd=self.workload.where, env=self.setting.environment(self.workload.store))

    def seconds(
        self, name: str, what: str, runs: Sequence[Run], floor: Sequence[Run], note: str, target: float | None = None
    ) -> Iterator[Figure]:
        """Two figures: wall clock and CPU time, each over the median of what `floor` took."""
        for suffix, clock, words in (("", walls, "wall clock"), ("_cpu", cpus, "CPU time")):
            least = median(clock(floor))
            yield of_samples(
                self.group, name + suffix, f"{what}, {words}", clock(runs), "s", floor=least, target=target, note=note
            )

    def megabytes(self, name: str, what: str, runs: Sequence[Run], floor: Sequence[Run]) -> Figure:
        """The largest process of some runs; the floor is that of others."""
        peaks = [max(r.peak for r in group) / 1e6 for group in (runs, floor)]
        return Figure(self.group, name, what, peaks[0], "MB", peaks[1], samples=len(runs), note="floor: the plain link")


def _cold(subject: _Subject, rounds: int) -> Iterator[Figure]:
    graves = count()

    def forget(_: int) -> None:
        # Moved away and not removed: ext4 shuns the inodes of files deleted within the last 35 s (ialloc.c,
        # recently_deleted), which nearly doubles the time of a command that makes hundreds of files.
        if subject.workload.store.exists():
            subject.workload.store.rename(subject.setting.scratch / f"{subject.group}-{next(graves)}")

    links = interleave({how: partial(subject.link, how) for how in ("plain", "map", "katana")}, rounds, forget)
    staging = _more(links["katana"], links["map"])
    ingestion: list[Run] = []
    for number in range(rounds):
        forget(number)
        subject.link("katana")
        ingestion.append(subject.release("base", "--not-deployed"))
    starts = [subject.release("--version") for _ in range(rounds)]
    objects = f"{subject.workload.note}; floor: the plain link with -Map"
    yield from subject.seconds("cold_link", "cold link through katana-ld", links["katana"], links["plain"],
                               "floor: the plain link without -Map")  # fmt: skip
    yield from subject.seconds("cold_staging", "of it staging: over the plain link with -Map", staging, links["map"],
                               objects)  # fmt: skip
    yield from subject.seconds("cold_ingestion", "katana-release of that link", ingestion, starts,
                               "floor: katana-release --version")  # fmt: skip
    both = [a + b for a, b in zip(staging, ingestion, strict=True)]
    yield from subject.seconds("cold", "recording a cold link: staging and katana-release", both, links["map"],
                               objects, 0.5)  # fmt: skip
    yield subject.megabytes("link_peak", "peak memory of the recorded link", links["katana"], links["map"])
    yield subject.megabytes("ingestion_peak", "peak memory of the ingestion", ingestion, links["map"])


def _relink(subject: _Subject, rounds: int) -> Iterator[Figure]:
    numbers = count()
    ingestion: list[Run] = []

    def link_and_release() -> Run:
        linked = subject.link("katana")
        ingestion.append(subject.release(f"again-{next(numbers)}", "--not-deployed"))
        return linked

    links = interleave(
        {"map": lambda: subject.link("map"), "katana": link_and_release},
        rounds,
        lambda number: subject.workload.change(subject.setting, 1 + number),
    )
    staging = _more(links["katana"], links["map"])
    both = [a + b for a, b in zip(staging, ingestion, strict=True)]
    note = "floor: the plain link with -Map"
    yield from subject.seconds("relink_staging", "one changed object: staging", staging, links["map"], note)
    yield from subject.seconds(
        "relink", "one changed object: staging and katana-release", both, links["map"], note, 0.25
    )


def _deployed(subject: _Subject, rounds: int) -> Iterator[Figure]:
    variants = {how: partial(subject.link, how) for how in ("map", "katana")}
    same = interleave(variants, rounds)
    note = "floor: the plain link with -Map"
    added = _more(same["katana"], same["map"])
    yield from subject.seconds("deployed_unchanged", "deployed, nothing changed: added", added, same["map"], note)
    before = len(patches(subject.setting, subject.workload))
    changed = interleave(variants, rounds, lambda number: subject.workload.change(subject.setting, 100 + number))
    rows = patches(subject.setting, subject.workload)
    if len(rows) != before + rounds or any(row["verdict"] == "refused" for row in rows):
        verdicts = ", ".join(str(row["verdict"]) for row in rows) or "none"
        raise MeasureError(f"{rounds} one-function changes gave these patch objects: {verdicts}", where=subject.group)
    added = _more(changed["katana"], changed["map"])
    what = "one-function change: from the plain link's end to the patch object"
    yield from subject.seconds("emission", what, added, changed["map"], note, 1.0)
    yield subject.megabytes("emission_peak", "peak memory of that link and the diff", changed["katana"], changed["map"])


def _more(ours: Sequence[Run], theirs: Sequence[Run]) -> list[Run]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def patches(setting: Setting, workload: Workload) -> list[dict[str, object]]:
    """What `katana patches` lists of a workload's store, newest first."""
    done = subprocess.run(
        [setting.command("katana"), "patches", "--json"],
        cwd=workload.where, env=setting.environment(workload.store), capture_output=True, check=True,
    )  # fmt: skip
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows
