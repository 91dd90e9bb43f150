"""`bench/run --quick` end to end: every figure is there and has a sane shape.  Never how long anything took."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import GROUPS

ROOT = Path(__file__).resolve().parents[2]

# One worker of pytest-xdist makes the run, which takes minutes.
pytestmark = [pytest.mark.rest, pytest.mark.timeout(1800), pytest.mark.xdist_group("bench")]

PAUSES = {
    *(f"{command}_{name}" for command in ("apply", "revert") for name in ("reported", "heartbeat", "attached")),
    "mapping",
}
TREES = {
    *(
        f"{command}_{name}"
        for command in ("apply", "revert")
        for name in ("whole", "command", "each", "largest", "heartbeat")
    )
}
EXPECTED = {
    "compile": {"added", "added_cpu"},
    "probes": {
        "conftest_added",
        "conftest_ratio",
        "other_added",
        "other_ratio",
        "configure",
        "configure_cpu",
        "left_links",
        "left_bytes",
    },
    **{f"pause.threads-{n}": PAUSES for n in (3, 64, 256)},
    **{f"pause.depth-{n}{stale}": PAUSES for n in (5, 50) for stale in ("", "-stale")},
    **{f"pause.functions-{n}": PAUSES for n in (1, 100)},
    "tree.32": TREES,
    "objects.1000": {"apply", "revert"},
    "memory.64": {"apply", "revert"},
    "calls": {"unrecorded", "recorded", "patched", "added_before", "added_patched", "code_differs"},
    "growth.10": {"diff", "diff_cpu", "peak"},
    "history": {
        *("growth", "growth_own", "link_early", "link_late", "diff", "check", "log", "gc"),
        *("size_collected", "check_collected"),
    },
    "build.generated": {"katana", "katana_cpu", "flags", "flags_cpu"},
    "recording.generated": {
        *(name + clock for name in ("cold_link", "cold_staging", "cold_ingestion", "cold") for clock in ("", "_cpu")),
        *(name + clock for name in ("relink_staging", "relink", "deployed_unchanged") for clock in ("", "_cpu")),
        *("emission", "emission_cpu", "link_peak", "ingestion_peak", "emission_peak"),
    },
    "peers": {"katana", "katana_cpu", "no_change", "store_growth"},
    "store.generated": {"first", "kept", "growth", "patch"},
}
CHOSEN = [name for name in GROUPS if name != "servers"]  # which tests/projects builds and patches, too
MAY_BE_MISSING = ("ccache_", "katana_with_ccache_", "bear", "wllvm_")  # compared with where they are installed
WITH_TARGET = {
    ("compile", "added"), ("build.generated", "katana"), ("recording.generated", "cold"),
    ("recording.generated", "relink"), ("recording.generated", "emission"), ("calls", "code_differs"),
    *((f"pause.threads-{n}", name) for n in (3, 64, 256) for name in ("apply_reported", "revert_reported")),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a quick run left."""

    stdout: str
    out: Path
    results: dict[str, Any]

    @property
    def figures(self) -> list[dict[str, Any]]:
        return list(self.results["figures"])

    def is_left_out(self, group: str) -> bool:
        """Tracing may be forbidden where tests run; then, and only then, those groups may be missing."""
        return any(reason.startswith(f"{group.partition('.')[0]}:") for reason in self.results["left_out"])


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One quick run, by the Python (and so the installation) that runs the tests."""
    out = tmp_path_factory.mktemp("bench")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", *(f"--only={name}" for name in CHOSEN), "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Outcome(done.stdout, out, json.loads((out / "results.json").read_text()))


def test_every_figure_is_measured(quick: Outcome) -> None:
    found: dict[str, set[str]] = {}
    for figure in quick.figures:
        if figure["group"] == "peers" and figure["name"].startswith(MAY_BE_MISSING):
            continue
        found.setdefault(figure["group"], set()).add(figure["name"])
    assert found == {group: names for group, names in EXPECTED.items() if not quick.is_left_out(group)}


def test_nothing_is_left_out_without_a_reason(quick: Outcome) -> None:
    assert all(len(reason.partition(": ")[2]) > 10 for reason in quick.results["left_out"])


def test_every_value_is_a_number_within_its_samples(quick: Outcome) -> None:
    for figure in quick.figures:
        assert math.isfinite(figure["value"]), figure
        assert figure["samples"] >= 1, figure
        if figure["low"] is not None:
            assert figure["low"] <= figure["high"], figure
            assert figure["value"] <= figure["high"], figure


def test_every_floor_is_of_the_same_run_and_gives_the_ratio(quick: Outcome) -> None:
    floored = [f for f in quick.figures if f["floor"]]
    assert {f["group"].partition(".")[0] for f in floored} >= {"recording", "store"}
    for figure in floored:
        assert figure["floor"] > 0, figure
        assert figure["ratio"] == pytest.approx(figure["value"] / figure["floor"], rel=1e-3), figure


def test_targets_are_judged_by_the_value(quick: Outcome) -> None:
    judged = {(f["group"], f["name"]) for f in quick.figures if f["target"] is not None}
    assert judged >= {key for key in WITH_TARGET if not quick.is_left_out(key[0])}
    for figure in quick.figures:
        expected = None if figure["target"] is None else figure["value"] <= figure["target"]
        assert figure["met"] is expected, figure


def test_recording_changes_no_machine_code(quick: Outcome) -> None:
    differing = [f["value"] for f in quick.figures if f["name"] == "code_differs"]
    assert differing == ([] if quick.is_left_out("calls") else [0.0])


def test_the_table_shows_every_figure(quick: Outcome) -> None:
    lines = [line.split()[:1] for line in quick.stdout.splitlines()]
    for figure in quick.figures:
        assert [figure["group"]] in lines
        assert [figure["name"]] in lines


def test_the_chart_has_a_bar_for_every_target(quick: Outcome) -> None:
    chart = ElementTree.parse(quick.out / "benchmarks.svg").getroot()
    bars = [e for e in chart.iter("{http://www.w3.org/2000/svg}rect") if e.find("{*}title") is not None]
    assert len(bars) == sum(bool(f["target"]) for f in quick.figures)
    assert all(float(bar.attrib["width"]) > 0 for bar in bars)


def test_the_page_names_no_path_of_this_machine(quick: Outcome) -> None:
    page = (quick.out / "benchmarks.md").read_text()
    assert "emission" in page
    assert str(ROOT) not in page
    assert str(quick.out) not in page


def test_an_unknown_group_is_a_usage_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--only", "nonsense"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "nonsense" in done.stderr
