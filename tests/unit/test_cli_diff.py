"""The exit status of `katana diff --exit-code`."""

from __future__ import annotations

import pytest

from katana_cc.cli.diff import status_of


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([], 0),
        (["same"], 0),
        (["safe"], 1),
        (["same", "needs", "safe"], 8),
        (["needs", "refused", "safe"], 3),
    ],
)
def test_gravest_verdict_is_the_status(verdicts: list[str], status: int) -> None:
    """A bug: a patch that needs a decision passes for a safe one."""
    results = [{"verdict": v, "needed": v != "same"} for v in verdicts]
    assert int(status_of(results)) == status


def test_harmless_difference_is_nothing_to_patch() -> None:
    assert int(status_of([{"verdict": "safe", "needed": False}])) == 0
