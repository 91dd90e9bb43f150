"""What a look at the stacks of a running process foretells, in words."""

from __future__ import annotations

from typing import Any

from katana_cc.process.forecast import Forecast


def forecast_lines(seen: Forecast) -> list[str]:
    """For a person: which replaced functions are on a stack, and whether waiting helps."""
    lines = []
    for p in seen.present:
        who = f"thread {p.tid} ({p.comm})"
        if p.is_constant:
            lines.append(
                f"forecast  {p.function} was never off the stack of {who} in {p.looks} looks: it may not be left at all"
            )
        else:
            lines.append(f"forecast  {p.function} was on the stack of {who} in {p.seen} of {p.looks} looks")
    if not seen.present:
        plural = "s" if seen.threads != 1 else ""
        lines.append(
            f"forecast  no replaced function was on a stack in {seen.seconds:g} s ({seen.threads} thread{plural})"
        )
    if seen.switchers:
        names = ", ".join(seen.switchers)
        lines.append(
            f"forecast  the program switches stacks by itself ({names}): all memory that it can write to is "
            "searched when the patch is applied, for what leads back into replaced functions"
        )
    for s in seen.suspended:
        words = f"{s.words} words lead" if s.words > 1 else "a word leads"
        lines.append(
            f"forecast  {s.function} may be on such a stack, unless what is there is stale: {words} back into it, "
            f"first at {s.address:#x}"
        )
    if seen.unseen:
        lines.append(f"forecast  {seen.unseen} that ran could not be looked at (perf_event_open is not permitted)")
    return lines


def forecast_json(seen: Forecast | None) -> dict[str, Any] | None:
    """The same for a script."""
    if seen is None:
        return None
    return {
        "seconds": seen.seconds,
        "threads": seen.threads,
        "unseen": seen.unseen,
        "functions": [
            {
                "name": p.function,
                "thread": p.tid,
                "comm": p.comm,
                "seen": p.seen,
                "looks": p.looks,
                "never_off": p.is_constant,
            }
            for p in seen.present
        ],
        "switchers": list(seen.switchers),
        "suspended": [{"name": s.function, "words": s.words, "first": f"{s.address:#x}"} for s in seen.suspended],
    }
