"""Results of the matrix: written by the tests as they run, merged into `docs/support-matrix.json`.

A line of the log is one outcome: {"case", "variant", "state", "codes"}, or of a situation (`tests/live/situations.py`).
Lines are appended, so several processes of pytest may write one log.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.live import situations
from tests.live.matrix.model import COMPILERS, WORKS, Case, Outcome
from tests.support.project import Variant

COMMITTED = Path(__file__).parents[3] / "docs" / "support-matrix.json"
FAILED = "fails"


def label(variant: Variant) -> str:
    """A variant without its linker, which a case may choose: `gcc -O2 pie`."""
    return f"{variant.compiler} {variant.optimise} {variant.mode}"


def record(case: Case, variant: Variant, outcome: Outcome) -> None:
    """Append to the log that KATANA_MATRIX_LOG names, if it does."""
    if path := os.environ.get("KATANA_MATRIX_LOG"):
        line = {"case": case.name, "variant": label(variant), "state": outcome.state, "codes": list(outcome.codes)}
        with Path(path).open("a") as log:
            log.write(json.dumps(line) + "\n")


def committed() -> dict[tuple[str, str], Outcome]:
    """(case, variant) → what the committed results say."""
    if not COMMITTED.exists():
        return {}
    raw = json.loads(COMMITTED.read_text())["results"]
    return {(case, variant): Outcome(v[0], tuple(v[1:])) for case, row in raw.items() for variant, v in row.items()}


def merge(
    log: Path,
    others: Mapping[str, Mapping[str, list[str]]] | None = None,
    situations_before: list[list[str]] | None = None,
) -> dict[str, Any]:
    """The results of a log, as they are committed: case → variant → [state, code, ...].  `others` are results of the
    same form for what the log does not tell of; `situations_before` the same of situations."""
    found: dict[str, dict[str, list[str]]] = {}
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    for line in lines:
        if "situation" in line:
            continue
        row, outcome = found.setdefault(line["case"], {}), [line["state"], *line["codes"]]
        if row.get(line["variant"], [WORKS])[0] == WORKS:  # together and by itself: the worse counts
            row[line["variant"]] = outcome
    for case, kept in (others or {}).items():
        found[case] = {**kept, **found.get(case, {})}
    tools = {name: _version(name) for name in COMPILERS}
    results = {case: dict(sorted(row.items())) for case, row in sorted(found.items())}
    seen = situations.merged([line for line in lines if "situation" in line], situations_before or [])
    return {"tools": tools, "results": results, "situations": seen}


def _version(compiler: str) -> str:
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0]
