"""Where the two builds of a patch come from, in words: what `release/provenance` found, as a manifest holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from katana_cc.report.summary import count


def sentences(told: Mapping[str, Any]) -> list[str]:
    """The ends and the compilers, a sentence each without its stop."""
    lines = []
    old, new = (told[end]["describe"] if end in told else "a commit that is not known" for end in ("from", "to"))
    if "from" in told or "to" in told:
        text = f"Sources: from {old} to {new}"
        lines.append(text + (f", {count(told['commits_total'], 'commit')}" if "commits_total" in told else ""))
    for end, name in (("from", "old"), ("to", "new")):
        if end in told and told[end]["uncommitted"]:
            lines.append(f"The {name} build had changes that are not committed")
    if left := told.get("commits_left_behind"):
        lines.append(f"{count(left, 'commit')} of the old build {'is' if left == 1 else 'are'} not in the new one")
    lines += [f"Compiled by {one['compiler']} ({count(one['objects'], 'object')})" for one in told.get("compilers", ())]
    return lines


def listed(told: Mapping[str, Any]) -> list[str]:
    """The commits between, a line each."""
    commits = told.get("commits", ())
    lines = [f"{one['commit'][:12]} {one['subject']}" for one in commits]
    more = told.get("commits_total", 0) - len(commits)
    return [*lines, f"and {more} more"] if more > 0 else lines
