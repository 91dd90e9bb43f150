"""`bench/run`: measure, then write figures as JSON, a table and a chart."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bench import (
    builds,
    calls,
    compiles,
    generated,
    growth,
    history,
    memory,
    objects,
    pause,
    peers,
    probes,
    recording,
    redis,
    servers,
    sizes,
    tree,
)
from bench.chart import chart
from bench.figures import Figure, Report, merged
from bench.program import NotPermitted
from bench.setting import SECTION_FLAGS, Setting, describe_machine, make_setting
from bench.sources import Unavailable, fetch
from bench.table import page, table
from bench.workload import Workload, build
from katana_cc.errors import ExitStatus, KatanaError, UsageError

ROOT: Final = Path(__file__).resolve().parents[1]

WITHOUT_WORKLOAD: Final[dict[str, Callable[[Setting], Iterator[Figure]]]] = {
    compiles.GROUP: compiles.measure,
    probes.GROUP: probes.measure,
    peers.GROUP: peers.measure,
    pause.GROUP: pause.measure,
    tree.GROUP: tree.measure,
    servers.GROUP: servers.measure,
    calls.GROUP: calls.measure,
    growth.GROUP: growth.measure,
    history.GROUP: history.measure,
    memory.GROUP: memory.measure,
    objects.GROUP: objects.measure,
}
OF_WORKLOAD: Final[dict[str, Callable[[Setting, Workload], Iterator[Figure]]]] = {
    builds.GROUP: builds.measure,
    recording.GROUP: recording.measure,
    sizes.GROUP: sizes.measure,
}
GROUPS: Final = (*WITHOUT_WORKLOAD, *OF_WORKLOAD)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 also where a target is missed, which the table says."""
    parser = argparse.ArgumentParser(prog="bench/run", description="Measure what Katana costs.")
    parser.add_argument("--quick", action="store_true", help="few repetitions, the generated program only")
    parser.add_argument("--only", metavar="NAME", choices=GROUPS, action="append", help=f"one of {', '.join(GROUPS)}")
    parser.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "bench" / "out", help="where results go")
    parser.add_argument(
        "--again", action="store_true", help="with --only: take the rest from the results that are there already"
    )
    arguments = parser.parse_args(argv)
    if arguments.again and (arguments.quick or not arguments.only):
        parser.error("--again measures a part of a whole run anew: it takes --only NAME, and not --quick")
    chosen = arguments.only or list(GROUPS)
    try:
        with tempfile.TemporaryDirectory(prefix="katana-bench-") as scratch:
            before = _last_whole(arguments.out) if arguments.again else None
            setting = make_setting(Path(scratch), arguments.quick)
            report = _measure(setting, chosen)
        if before is not None:
            report = _merged(before, report)
        is_whole = not (arguments.quick or report.failed) and (before is not None or not arguments.only)
        _write(report, arguments.out, whole=is_whole)
    except KatanaError as error:
        print(f"bench/run: {error}", file=sys.stderr)
        return int(error.status)
    except KeyboardInterrupt:
        return 130
    for name, reason in report.failed.items():
        print(f"bench/run: {name} could not be measured: {reason}", file=sys.stderr)
    return 1 if report.failed else int(ExitStatus.DONE)


def _last_whole(out: Path) -> Report:
    """The results of the last run, where that was a whole one.

    Raises:
        UsageError: there are none.
    """
    path = out / "results.json"
    try:
        report = Report.from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(str(error), where=str(path), remedy="run bench/run without --only first") from error
    measured = {figure.group.partition(".")[0] for figure in report.figures}
    if report.quick or not set(GROUPS) <= measured | {name.partition(":")[0] for name in report.left_out}:
        raise UsageError("these are not of a whole run", where=str(path), remedy="run bench/run without --only first")
    return report


def _merged(whole: Report, again: Report) -> Report:
    try:
        return merged(whole, again)
    except ValueError as error:
        raise UsageError(
            f"the results are of another machine: {error}", remedy="run bench/run without --only"
        ) from error


def _measure(setting: Setting, chosen: Sequence[str]) -> Report:
    figures: list[Figure] = []
    left_out: list[str] = []
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}

    def take(name: str, found: Iterator[Figure]) -> None:
        started = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            figures.extend(found)
        except (NotPermitted, Unavailable) as error:
            left_out.append(f"{name}: {error}")
        except KatanaError as error:
            failed[name] = str(error)  # what the other groups found in minutes must not be lost
        seconds[name] = time.monotonic() - started

    machine = describe_machine(setting.compiler)
    for name, measure in WITHOUT_WORKLOAD.items():
        if name in chosen:
            take(name, measure(setting))
    if any(name in chosen for name in OF_WORKLOAD):
        workloads, missing = _workloads(setting)
        left_out += missing
        for workload in workloads:
            if builds.GROUP in chosen:  # from an untouched tree, so it comes first
                take(f"{builds.GROUP}.{workload.name}", builds.measure(setting, workload))
            if any(name in chosen for name in OF_WORKLOAD if name != builds.GROUP):
                build(setting, workload, " ".join((setting.compiler, *SECTION_FLAGS)))
            for name, measure_workload in OF_WORKLOAD.items():
                if name in chosen and name != builds.GROUP:
                    take(f"{name}.{workload.name}", measure_workload(setting, workload))
    machine["load_after"] = round(os.getloadavg()[0], 1)
    return Report(machine, setting.quick, tuple(figures), tuple(left_out), failed, seconds)


def _workloads(setting: Setting) -> tuple[list[Workload], list[str]]:
    found = [generated.generate(setting.folder("generated"), setting.rounds(200, 40))]
    if setting.quick:
        return found, ["redis: not in quick mode"]
    try:
        return [*found, redis.workload(setting, fetch("redis", setting.folder("redis")))], []
    except Unavailable as error:
        return found, [f"redis: {error}; the generated program alone was measured"]


def _write(report: Report, out: Path, *, whole: bool) -> None:
    print(table(report))
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(report.to_json())
    (out / "benchmarks.svg").write_text(chart(report))
    (out / "benchmarks.md").write_text(page(report))
    if whole:
        # The last whole run is what the documentation shows.
        (ROOT / "docs" / "benchmarks.md").write_text(page(report))
        (ROOT / "docs" / "benchmarks.svg").write_text(chart(report))
    print(f"\nresults.json, benchmarks.md and benchmarks.svg are in {out}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
