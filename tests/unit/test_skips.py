"""`.ci/skips`: live tests that were left out fail the whole check, but for what a machine may lack."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

SKIPS = Path(__file__).resolve().parents[2] / ".ci" / "skips"
LIVE = Path(__file__).resolve().parents[1] / "live"
TOLD = "SKIPPED tests/live/test_a.py::test_it[x-1] - Skipped: "


def skips(folder: Path, *lines: str) -> tuple[int, list[str]]:
    """Status, and what it names, of a log."""
    log = folder / "log"
    log.write_text(
        "".join(line + "\n" for line in ("== short test summary info ==", *lines, "== 3 passed in 1.00s =="))
    )
    done = subprocess.run([SKIPS, log], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_what_a_machine_may_lack_is_no_failure(tmp_path: Path) -> None:
    assert skips(tmp_path, TOLD + "perf may not count here", TOLD + "namespaces cannot be made here") == (0, [])
    assert skips(tmp_path) == (0, [])


def test_tests_that_were_left_out_are_named(tmp_path: Path) -> None:
    """In colour too.  A bug: a tool that is not installed hides the tests that need it."""
    colour = "\x1b[33mSKIPPED\x1b[0m tests/live/test_a.py::\x1b[1mtest_it\x1b[0m - Skipped: needs perf"
    more = "SKIPPED tests/unit/test_b.py::test_it - Skipped: needs eu-elflint"
    found = [TOLD + "core files do not come here, since", colour.replace("\x1b[33m", ""), more]
    status, named = skips(tmp_path, TOLD + "core files do not come here", *found)
    assert status == 1
    assert named == [found[0], "SKIPPED tests/live/test_a.py::test_it - Skipped: needs perf"]


def test_every_reason_is_one_that_tests_give() -> None:
    """A bug: a reason was reworded, and a machine that lacks it fails the check."""
    sources = "".join(path.read_text() for path in LIVE.glob("*.py"))
    reasons = re.findall(r"Skipped: (.*)\$'", SKIPS.read_text())
    assert len(reasons) > 5
    assert [reason for reason in reasons if f'"{reason}"' not in sources] == []
