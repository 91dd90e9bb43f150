"""The arithmetic of the benchmarks, and how they run commands."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.chart import chart
from bench.figures import Figure, Report, merged, of_samples
from bench.measure import MeasureError, Run, interleave, quantile, run
from bench.table import number, table

SAMPLES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50)


@given(SAMPLES)
def test_quartiles_are_those_of_the_standard_library(samples: list[float]) -> None:
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    assert quantile(samples, 0.25) == pytest.approx(low, abs=1e-6)
    assert quantile(samples, 0.5) == pytest.approx(middle, abs=1e-6)
    assert quantile(samples, 0.75) == pytest.approx(high, abs=1e-6)


def test_variants_take_turns_in_going_first() -> None:
    order: list[str] = []
    interleave({name: lambda name=name: order.append(name) for name in "abc"}, 3)  # type: ignore[misc]
    assert "".join(order) == "abcbcacab"


def test_results_stay_paired_by_round() -> None:
    rounds: list[int] = []
    results = interleave({"one": lambda: rounds[-1], "two": lambda: rounds[-1] * 10}, 4, rounds.append)
    assert results == {"one": [0, 1, 2, 3], "two": [0, 10, 20, 30]}


def test_a_failed_command_is_no_sample(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"status 3: .*reason of its own"):
        run(["sh", "-c", "echo reason of its own >&2; exit 3"], cwd=tmp_path, env=dict(os.environ))


def test_a_command_runs_in_its_folder_and_we_stay_in_ours(tmp_path: Path) -> None:
    before = Path.cwd()
    run(["sh", "-c", "echo here > made"], cwd=tmp_path, env=dict(os.environ))
    assert (tmp_path / "made").read_text() == "here\n"
    assert Path.cwd() == before


def test_cpu_time_and_memory_of_grandchildren_count(tmp_path: Path) -> None:
    busy = "import time; held = b'x' * 90_000_000; [None for _ in iter(lambda: time.process_time() < 0.2, False)]"
    command = ["sh", "-c", f'"{sys.executable}" -S -c "{busy}"; exit 0']
    done = run(command, cwd=tmp_path, env=dict(os.environ))
    assert done.cpu >= 0.2
    assert done.peak >= 90_000_000


def test_a_difference_of_runs_keeps_the_peak() -> None:
    assert Run(3.0, 2.0, 7) - Run(1.0, 0.5, 9) == Run(2.0, 1.5, 7)
    assert Run(3.0, 2.0, 7) + Run(1.0, 0.5, 9) == Run(4.0, 2.5, 9)


def test_the_best_sample_is_the_value_where_that_is_asked() -> None:
    assert of_samples("g", "n", "", [3.0, 1.0, 2.0], "ms", best=True).value == 1.0
    assert of_samples("g", "n", "", [3.0, 1.0, 2.0], "ms").value == 2.0


def test_a_figure_on_its_target_meets_it() -> None:
    assert Figure("g", "n", "", 1.0, "ms", target=1.0).met is True
    assert Figure("g", "n", "", 1.01, "ms", target=1.0).met is False
    assert Figure("g", "n", "", 1.01, "ms").met is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.00123, "0.0012"), (0.5, "0.500"), (1.234, "1.23"), (-45.67, "-45.7"), (1234.5, "1,234")],
)
def test_numbers_show_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_missed_target_is_said_in_the_table_and_seen_in_the_chart() -> None:
    missed = Report({}, False, (Figure("build", "katana", "a < b", 1.2, "x", target=1.05),))
    met = Report({}, False, (Figure("build", "katana", "a < b", 1.0, "x", target=1.05),))
    assert "MISSED" in table(missed) and "MISSED" not in table(met)
    assert "#b5402f" in chart(missed) and "#b5402f" not in chart(met)


def test_what_was_left_out_is_said() -> None:
    assert "left out: redis: no network" in table(Report({}, False, (), ("redis: no network",)))


def _report(machine: dict[str, object], *figures: Figure) -> Report:
    loads = {"load_before": 0.1, "load_after": 1.0}
    return Report({"processor": "one", **loads, **machine}, False, figures, seconds={f.group: 1.0 for f in figures})


def test_a_report_is_read_as_it_was_written() -> None:
    report = _report({}, of_samples("a", "b", "what", [1.0, 2.0, 4.0], "ms", target=3.0), Figure("c", "d", "e", 1, "x"))
    assert Report.from_json(report.to_json()) == report
    for text in ("{}", "[]", '{"format": 99}', "no JSON"):
        with pytest.raises(ValueError, match=r"."):
            Report.from_json(text)


def test_a_group_that_is_measured_again_takes_its_place() -> None:
    """A bug: the page shows a figure twice, or one that was measured beside others as if it were new."""
    whole = _report({}, Figure("a", "x", "", 1, "s"), Figure("b", "x", "", 2, "s"), Figure("b", "y", "", 3, "s"))
    again = _report({"load_before": 0.5}, Figure("b", "x", "", 5, "s"))
    result = merged(whole, again)
    assert [(f.group, f.name, f.value) for f in result.figures] == [("a", "x", 1), ("b", "x", 5)]
    assert result.machine["load_before"] == 0.1
    assert result.machine["again: b"] == "load 0.5 before, 1.0 after"


def test_figures_of_another_machine_are_not_mixed_in() -> None:
    whole, again = (
        _report({}, Figure("a", "x", "", 1, "s")),
        _report({"processor": "two"}, Figure("a", "x", "", 1, "s")),
    )
    with pytest.raises(ValueError, match="processor: one then, two now"):
        merged(whole, again)
