"""A short run of the property; `make fuzz` runs it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.cases import Case, cases, load
from tests.fuzz.check import Checker

STORED = sorted((Path(__file__).parent / "stored").glob("*.json"))


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Checker:
    """One for all examples, since it keeps the driver's objects."""
    return Checker(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.timeout(600)
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
@given(case=cases())
def test_patched_process_does_what_the_new_build_does(checker: Checker, case: Case) -> None:
    """The examples are always the same; `python -m tests.fuzz` shrinks and stores what it finds."""
    checker.check(case)


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_stored_case(checker: Checker, path: Path) -> None:
    """Counterexamples of earlier days."""
    checker.check(load(path))
