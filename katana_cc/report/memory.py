"""Memory of patches that was given back, or was kept and why, in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from katana_cc.process.giving_back import GivingReport
from katana_cc.process.uses import Fate, Returned
from katana_cc.report.summary import clean, count

_LISTED: Final = 8  # words that are shown for each


def memory_lines(reports: Sequence[GivingReport]) -> Iterator[str]:
    """For a person."""
    for report in reports:
        head = f"pid {report.pid} ({clean(report.name)})"
        if report.failure:
            yield f"{head}: memory of patches is kept: {clean(report.failure)}"
        elif not report.mappings:
            yield f"{head}: no memory to give back"
        for m in report.mappings:
            title = m.patch_id or "a patch that never was whole"
            if m.fate is Fate.GIVEN_BACK:
                pause = f"in a stop of {report.pause_us / 1000:.1f} ms"
                yield f"{head}: gave back the {m.size} bytes of {title}, {pause}"
                continue
            yield f"{head}: keeps the {m.size} bytes of {title}: {clean(_reason(m))}"
            for use in m.uses[:_LISTED]:
                yield f"  {clean(use.place)}" + (f" leads to {clean(use.thing)}" if use.thing else "")
            if len(m.uses) > _LISTED:
                yield f"  and {len(m.uses) - _LISTED} more"


def _reason(m: Returned) -> str:
    if not m.uses:
        return m.why
    if m.fate is Fate.BUSY:
        return "a thread may be there still; wait longer (--wait)"
    return f"{count(len(m.uses), 'word')} may lead there"


def memory_as_json(reports: Sequence[GivingReport]) -> list[dict[str, Any]]:
    """For a script."""
    return [
        {
            "pid": report.pid,
            "name": report.name,
            "pause_us": round(report.pause_us, 1),
            "tries": report.tries,
            "failure": report.failure,
            "mappings": [
                {
                    "patch": m.patch_id or None,
                    "address": m.base,
                    "size": m.size,
                    "outcome": m.fate.value,
                    "uses": [{"place": u.place, "thing": u.thing, "is_passing": u.is_passing} for u in m.uses],
                    "why": m.why,
                }
                for m in report.mappings
            ],
        }
        for report in reports
    ]
