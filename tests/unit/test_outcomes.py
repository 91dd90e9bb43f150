"""What comes of each process: words, counts and exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from katana_cc.cli.main import run_reporting_errors
from katana_cc.errors import BusyError, ExitStatus, HookError, KatanaError, PartlyError, RefusedError, TargetError
from katana_cc.outcomes import APPLYING, REVERTING, OfProcess, ProcessOutcome, count_line, counts_json, outcome_of
from katana_cc.process.members import Member, failed
from katana_cc.process.target import Target

MEMBERS = [
    OfProcess(11, "a", ProcessOutcome.TAKEN_BACK),
    OfProcess(12, "b\x1b[31m", ProcessOutcome.BUSY, "no safe moment\nat all", "wait longer"),
    OfProcess(13, "c", ProcessOutcome.NOT_TRIED),
]


def test_each_kind_of_error_is_an_outcome() -> None:
    kinds = {RefusedError: "refused", HookError: "refused", BusyError: "busy", TargetError: "failed"}
    assert {kind: str(outcome_of(kind(""))) for kind in kinds} == kinds


def test_counts_are_in_the_order_of_the_table() -> None:
    outcomes = [m.outcome for m in MEMBERS]
    assert count_line(outcomes) == "1 busy, 1 taken back, 1 not tried"
    assert counts_json(outcomes, APPLYING) == {
        "applied": 0, "already applied": 0, "skipped": 0, "refused": 0, "busy": 1, "failed": 0, "taken back": 1,
        "not tried": 1, "stuck": 0,
    }  # fmt: skip
    assert set(APPLYING) | set(REVERTING) | {ProcessOutcome.WOULD_APPLY, ProcessOutcome.WOULD_BE_REFUSED} == set(
        ProcessOutcome
    )


def test_every_outcome_is_documented_with_its_status() -> None:
    text = Path("docs/safety.md").read_text()
    section = text.partition("## Several processes")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted("".join(rows).replace(",", " ").split("`")[1::2]) == sorted(map(str, ProcessOutcome))


def test_failure_tells_what_came_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> ExitStatus:
        error = BusyError("no safe moment", where="pid 12 (b)")
        error.processes = tuple(MEMBERS)
        raise error

    assert run_reporting_errors("katana apply", fail) == 4
    text = capsys.readouterr()
    assert text.out.splitlines() == [
        "pid 11 (a): taken back",
        "pid 12 (b?[31m): busy: no safe moment",
        "pid 13 (c): not tried",
        "1 busy, 1 taken back, 1 not tried",
    ]
    assert text.err == "katana apply: pid 12 (b): no safe moment\n"
    assert run_reporting_errors("katana revert", fail, as_json=True) == 4
    result = json.loads(capsys.readouterr().out)
    assert result["error"]["status"] == 4
    assert [p["outcome"] for p in result["processes"]] == ["taken back", "busy", "not tried"]
    assert result["processes"][1]["remedy"] == "wait longer"
    assert result["counts"] == counts_json([m.outcome for m in MEMBERS], REVERTING)


def member(stuck: str = "", error: KatanaError | None = None) -> Member:
    class FakeTarget:
        pid, name = 7, "server"

    return Member(target=cast("Target", FakeTarget()), stuck=stuck, error=error)


def test_stuck_process_is_never_told_as_untouched() -> None:
    busy = BusyError("no safe moment", where="pid 8", remedy="nothing was touched; wait longer (--wait)")
    told = [member(stuck="the patch stays applied: never a safe moment").told(), member(error=busy).told()]
    error = failed(busy, told)
    assert isinstance(error, PartlyError)
    assert (error.status, error.remedy) == (ExitStatus.PARTLY, "wait longer (--wait)")
    assert error.processes == tuple(told)
    assert "pid 7 (server): the patch stays applied: never a safe moment" in error.what
    assert failed(busy, told[1:]) is busy
    assert busy.processes == tuple(told[1:])
