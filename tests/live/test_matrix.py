"""Every kind of change, live, in every kind of build (docs/support-matrix.md).

The sample repeats itself exactly: each case of code together with others in four of the sixteen variants, and by itself
in one of them; less of those of live data (`sample`).  `make test` takes half of these variants, `make test-rest` the
others.  `make matrix` sets KATANA_MATRIX: all
cases in every variant, those that may be refused each by itself; its log becomes the committed results, and the sample
must agree with those.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from _pytest.mark.structures import ParameterSet

from tests.live.matrix.cases import CASES, is_alone_in_sample, is_in_test, sample, single
from tests.live.matrix.model import PROGRAMS, VARIANTS, WORKS, Case, Outcome
from tests.live.matrix.results import FAILED, committed, label, record
from tests.live.matrix.runner import Workshop
from tests.support.project import Variant

FULL = bool(os.environ.get("KATANA_MATRIX"))
KNOWN = committed()
_MOST = 20  # cases in one program: more of them make each link slower than a further program is


@dataclass(frozen=True, slots=True)
class Shop:
    """What is built into one program: cases of one kind of program in one variant."""

    variant: Variant
    program: str
    number: int
    cases: tuple[Case, ...]

    def __str__(self) -> str:
        return f"{label(self.variant)} {self.program}{self.number}".replace(" ", "-").replace("--", "-")


def _shops() -> Iterator[Shop]:
    for variant, program in itertools.product(VARIANTS, PROGRAMS):
        chosen = [case for n, case in enumerate(CASES) if case.program == program and (FULL or variant in sample(n))]
        for start in range(0, len(chosen), _MOST):
            yield Shop(variant, program, start // _MOST, tuple(chosen[start : start + _MOST]))


SHOPS = list(_shops())


def _singles(shop: Shop) -> list[Case]:
    """The cases of a shop that are also patched by themselves."""
    numbers = [CASES.index(case) for case in shop.cases]
    chosen = [CASES[n] for n in numbers if shop.variant == single(n) and (FULL or is_alone_in_sample(n))]
    return chosen + [c for c in shop.cases if FULL and c not in chosen and (c.refused or not c.must)]


@pytest.fixture(scope="module")
def workshop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """All cases of a program, built in a variant."""
    shop: Shop = request.param
    made = Workshop(tmp_path_factory.mktemp("matrix"), shop.variant, shop.cases)
    if not made.variant.available():
        pytest.skip(f"{made.variant} needs a tool that is not installed")
    yield made
    made.remove()


def _tests() -> Iterator[ParameterSet]:
    """Each shop with its single cases, and with all; one after the other, since building it is most of the work."""
    for shop in SHOPS:
        is_in_rest = not FULL and not is_in_test(shop.variant, map(CASES.index, shop.cases))
        for case in (*_singles(shop), None):
            # One process of pytest-xdist (--dist loadgroup) takes all of a shop.
            marks = [pytest.mark.xdist_group(str(shop))]
            if is_in_rest:
                marks.append(pytest.mark.rest)
            yield pytest.param(shop, case, marks=marks, id=f"{shop}-{case.name if case else 'together'}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("workshop", "case"), list(_tests()), indirect=["workshop"])
def test_change(workshop: Workshop, case: Case | None) -> None:
    """A bug: a change is left out or half carried, a neighbour breaks, or a refusal where it has to work.  Without a
    case: changes that each work disturb one another in one patch."""
    if case is None:
        _run_together(workshop)
        return
    outcome = _run_alone(workshop, case)
    assert outcome.state == WORKS or case.refused or not case.must, workshop.refusals
    known = KNOWN.get((case.name, label(workshop.asked_for)))
    assert FULL or known == outcome, "docs/support-matrix.md says otherwise: make matrix"


def _run_alone(workshop: Workshop, case: Case) -> Outcome:
    try:
        outcome = workshop.run([case])
    except Exception:
        record(case, workshop.asked_for, Outcome(FAILED))
        raise
    record(case, workshop.asked_for, outcome)
    return outcome


def _run_together(workshop: Workshop) -> None:
    variant = label(workshop.asked_for)
    fit = [
        c
        for c in workshop.cases
        if c.refused is None and (c.must or (not FULL and KNOWN[c.name, variant].state == WORKS))
    ]
    if not fit:
        return
    try:
        outcome = workshop.run(fit)
        assert outcome.state == WORKS, workshop.refusals
    except AssertionError:
        for case in fit if FULL else ():  # which of them is it?
            with contextlib.suppress(AssertionError):
                _run_alone(workshop, case)
        raise
    for case in fit:
        record(case, workshop.asked_for, outcome)
