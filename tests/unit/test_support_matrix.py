"""The support matrix as committed: complete, green where it has to be, and made from the results."""

from __future__ import annotations

import json
from pathlib import Path

from tests.live import situations
from tests.live.matrix.cases import CASES, sample, single
from tests.live.matrix.model import KINDS, MUST, REFUSED, VARIANTS, WORKS
from tests.live.matrix.page import PAGE, render
from tests.live.matrix.results import COMMITTED, committed, label, merge


def test_page_is_what_the_results_make() -> None:
    """A bug: the page was edited by hand, or the results changed without it."""
    assert PAGE.read_text() == render(json.loads(COMMITTED.read_text()))


def test_every_case_was_run_in_every_variant() -> None:
    """A bug: a case was added and `make matrix` not run."""
    assert set(committed()) == {(case.name, label(v)) for case in CASES for v in VARIANTS}


def test_every_kind_has_cases_and_every_must_works() -> None:
    """A bug: a kind of change is forgotten, or a failure is committed as it is."""
    results = committed()
    for kind, (text, demand) in KINDS.items():
        mine = [case for case in CASES if case.kind == kind]
        assert mine, text
        assert any(case.must for case in mine) or demand != MUST, text
        for case in mine:
            for variant in VARIANTS:
                outcome = results[case.name, label(variant)]
                may_be_refused = case.refused is not None or not case.must
                assert outcome.state == WORKS or (outcome.state == REFUSED and outcome.codes and may_be_refused), (
                    case.name
                )


def test_every_situation_was_run_and_came_to_what_its_test_says() -> None:
    """A bug: a test was marked and `make matrix` not run; a kind is forgotten; a failure is committed as it is."""
    rows = json.loads(COMMITTED.read_text())["situations"]
    marked = set(situations.written(COMMITTED.parents[1] / "tests" / "live"))
    assert {s.kind for s in marked} == set(situations.KINDS)
    assert {tuple(row) for row in rows} == {(str(s.kind), s.text, s.test, s.outcome) for s in marked}


def test_worst_of_a_situation_counts() -> None:
    """A bug: one parameter that fails is hidden by another that works."""
    lines = [{"kind": 46, "situation": "s", "test": "t", "state": state} for state in ("works", "fails", "works")]
    assert situations.merged(lines, [["46", "s", "t", "works"], ["40", "r", "t", "works"]]) == [
        ["40", "r", "t", "works"],
        ["46", "s", "t", "fails"],
    ]


def test_names_are_told_apart_and_the_sample_covers_all() -> None:
    """A bug: two cases share a name, or a variant or case is never in the sample."""
    assert len({case.name for case in CASES}) == len(CASES)
    covered = {v for number in range(len(CASES)) for v in sample(number)}
    assert covered == set(VARIANTS)
    assert all(single(number) in sample(number) for number in range(len(CASES)))
    assert {single(number) for number in range(len(CASES))} == set(VARIANTS)


def test_worse_of_two_results_counts(tmp_path: Path) -> None:
    """A bug: what was refused is not in the page, or a failure is hidden by a success."""
    log = tmp_path / "log"
    states = {"a": ["works"], "b": ["refused"], "c": ["works", "fails"], "d": ["fails", "works"]}
    lines = [
        {"case": case, "variant": "gcc -O2 pie", "state": state, "codes": []}
        for case, several in states.items()
        for state in several
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = merge(log)["results"]
    assert {case: row["gcc -O2 pie"] for case, row in results.items()} == {
        "a": ["works"], "b": ["refused"], "c": ["fails"], "d": ["fails"],
    }  # fmt: skip


def test_part_of_the_results_leaves_the_others(tmp_path: Path) -> None:
    """A bug: what was not run again is lost, or stays as it was although it was run."""
    log = tmp_path / "log"
    log.write_text(json.dumps({"case": "a", "variant": "gcc -O2 pie", "state": "works", "codes": []}) + "\n")
    results = merge(log, {"a": {"gcc -O2 pie": ["fails"], "gcc -O0 pie": ["fails"]}, "b": {"gcc -O2 pie": ["works"]}})
    assert results["results"] == {
        "a": {"gcc -O2 pie": ["works"], "gcc -O0 pie": ["fails"]},
        "b": {"gcc -O2 pie": ["works"]},
    }
