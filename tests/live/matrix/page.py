"""`docs/support-matrix.md`, made from `docs/support-matrix.json`:  python3 -m tests.live.matrix.page [[--part] LOG]

With a log of results it writes both files; without, the page alone.  What a log with `--part` does not tell of stays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.live import situations
from tests.live.matrix.cases import CASES
from tests.live.matrix.model import JUDGE, KINDS, LEVELS, MUST, REFUSED, VARIANTS, WORKS, Case
from tests.live.matrix.results import COMMITTED, label, merge

PAGE = COMMITTED.with_suffix(".md")
_HEAD = """\
# Support matrix

Every kind of change, each built in both versions, applied to a running process, compared with the new build run
beside it, reverted, and compared with the old one.  Made by `make matrix` from the results of
`tests/live/test_matrix.py`; not edited by hand.  The cases and their sources are in `tests/live/matrix/`.

The cases of a program are patched together; each also by itself in one of the builds, and in all of them if it may be
refused.

- **must**: has to work.  **judge**: works, or is refused with a useful reason.  **refuse**: all else is wrong.
- An option beside it (`--follow`) means that it works with that; without, it is refused and the option named.
- `✓` works; a code means refused when the patch is made, with that reason; `at-apply`: refused when it is applied, for
  what the process holds; `at-revert`: applied, and not taken back, for what the process holds by then; `-` not run;
  `FAILS` is a bug.
- Each cell stands for a position-independent executable and one that is not, in this order, as one mark if they agree.
"""


_SITUATIONS = """\
# Processes and their surroundings

Not what changes, but what is patched, and where.  Each situation is a live test (`tests/live/`), run by `make matrix`
on the machine that the rest was made on.

- `✓` works; `refused`: at once, with its reason and what to do, and the process is as it was; `not run`: this machine
  has not what it takes; `FAILS` is a bug.
"""


def render(raw: Mapping[str, Any]) -> str:
    """The page."""
    lines = [_HEAD, *(f"- {name}: {version}" for name, version in raw["tools"].items()), ""]
    lines += ["## Summary", "", "| Kind | | Cases | Builds that work | Refused |", "|---|---|---|---|---|"]
    for kind, (text, demand) in KINDS.items():
        lines.append(f"| [{kind}](#kind-{kind}) {text} | {demand} | {_tally(kind, raw['results'])} |")
    for kind, (text, demand) in KINDS.items():
        lines += ["", f"## Kind {kind}", "", f"{text} ({demand})", "", *_table(kind, raw["results"])]
    lines += ["", *_situations(raw.get("situations", []))]
    return "\n".join(lines) + "\n"


def _situations(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [_SITUATIONS]
    for kind, (text, demand) in situations.KINDS.items():
        lines += ["", f"## Kind {kind}", "", f"{text} ({demand})", "", "| Situation | | Shown by |", "|---|---|---|"]
        for number, name, test, state in rows:
            if int(number) == kind:
                file, _, function = test.partition("::")
                shown = {situations.WORKS: "✓", situations.FAILS: "FAILS"}.get(state, state)
                lines.append(f"| {name} | {shown} | `{function}` in `{file}` |")
    return lines


def _of(kind: int) -> list[Case]:
    return [case for case in CASES if case.kind == kind]


def _tally(kind: int, results: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    cases = _of(kind)
    states = [results.get(case.name, {}).get(label(v), ["-"])[0] for case in cases for v in VARIANTS]
    return f"{len(cases)} | {states.count(WORKS)} of {len(states)} | {states.count(REFUSED)}"


def _table(kind: int, results: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    columns = [(compiler, level) for compiler in ("gcc", "clang") for level in LEVELS]
    lines = [
        "| Case | | " + " | ".join(f"{c} {level}" for c, level in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for case in _of(kind):
        row = results.get(case.name, {})
        cells = [_cell(row.get(f"{c} {level} pie"), row.get(f"{c} {level} nopie")) for c, level in columns]
        lines.append(f"| {case.name.replace('_', ' ')} | {_demand(case)} | " + " | ".join(cells) + " |")
    return lines


def _demand(case: Case) -> str:
    if case.refused is not None and case.refused.is_right:
        return "refuse"
    options = dict.fromkeys(f"`{words.partition(' ')[0]}`" for words in case.granted)
    return ", ".join([MUST if case.must else JUDGE, *options])


def _cell(pie: Sequence[str] | None, nopie: Sequence[str] | None) -> str:
    marks = [_mark(pie), _mark(nopie)]
    return marks[0] if marks[0] == marks[1] else " / ".join(marks)


def _mark(result: Sequence[str] | None) -> str:
    if result is None:
        return "-"
    if result[0] == WORKS:
        return "✓"
    return ", ".join(f"`{code}`" for code in result[1:]) if result[0] == REFUSED else "FAILS"


def main(arguments: Sequence[str]) -> None:
    """Write the page, and with a log the results too."""
    if arguments:
        others = json.loads(COMMITTED.read_text())["results"] if "--part" in arguments else {}
        before = json.loads(COMMITTED.read_text()).get("situations", []) if "--part" in arguments else []
        marked = {(str(s.kind), s.text, s.test) for s in situations.written(Path(__file__).parents[1])}
        before = [row for row in before if (row[0], row[1], row[2]) in marked]
        raw = merge(
            Path(arguments[-1]), {case.name: others[case.name] for case in CASES if case.name in others}, before
        )
        COMMITTED.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(render(json.loads(COMMITTED.read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
