"""The report as text: a table for the terminal, and the page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence

from bench.figures import Figure, Report

_HEAD = ("figure", "value", "floor", "ratio", "quartiles", "n", "at most", "")

_READING = """\
# Benchmarks

Written by `make bench` (`bench/run`), which replaces this page with the figures of its last whole run.

- Every figure is measured against a *floor*: the same work without Katana, in the same run. The variants run
  alternately, and a difference or ratio is taken within each round, so that a slow stretch of a busy machine hits both.
- A value is the median of its rounds, with the quartiles beside it; pauses are the best of their rounds, as the target
  is stated for a quiet machine, and the quartiles show the rest.
- CPU time (`_cpu`) counts all processes a command starts. Where wall clock and CPU time disagree, other programs were
  running: the load averages before and after the run tell how many (the run itself makes 1 to 2).
- *recording* is the link through our `ld` less the plain link with `-Map`; *emission* is the same for an output that a
  deployed release knows, so it holds ingestion, diff and patch object. *peak* is the largest process, not a sum.
- *pause*: `reported` is what `katana apply` measured from the first thread it stopped to the last it let go;
  `heartbeat` is the largest gap that a real-time thread of the target saw, less the largest gap while nothing was
  applied; `attached` is from the first thread attached to the last detached. Its floor is a small C program that stops
  and frees the same threads and does nothing else. `depth-N`: six of eight threads are so many frames deep; `stale`:
  with a word at the far end of each stack that looks like a return address into the replaced function. `functions-N`:
  so many are replaced.
- *tree*: a server of 32 processes, patched together: how long each stands, and how long some run the new code while
  others run the old.
- *servers*: redis and memcached under 16 clients, in windows of two seconds with an apply, a revert, or (the floor) a
  command of `katana` that leaves the server alone.
- *objects*: `reported` as above, for a list on the heap whose nodes all grow beyond their blocks; the floor is the same
  patch without a node.
- *memory*: the same for a variable that moves, by how much memory the program has written to: any of it may hold a
  pointer.
- *history*: many builds of one program, each with a change in another file; `KATANA_BENCH_HISTORY=1000x100` is the run
  at full size.
- *calls*: nanoseconds for one call of a function of a few instructions.

`bench/run --only NAME` measures one group, and with `--again` puts it into this page; `--quick` finishes in a minute,
`--out DIR` puts the results elsewhere.
"""


def table(report: Report) -> str:
    """A table in plain text, one line a figure, groups apart."""
    rows: list[Sequence[str]] = [_HEAD]
    group = ""
    for figure in report.figures:
        if figure.group != group:
            group = figure.group
            rows += [("",) * len(_HEAD), (group, *("",) * (len(_HEAD) - 1))]
        rows.append((f"  {figure.name}", *_cells(figure)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(w) if i in (0, len(_HEAD) - 1) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += [f"left out: {reason}" for reason in report.left_out]
    lines += [f"FAILED: {name}: {reason}" for name, reason in report.failed.items()]
    return "\n".join(lines)


def page(report: Report) -> str:
    """The page of the documentation, in Markdown."""
    lines = [_READING, "## Figures", ""]
    if report.left_out:
        lines += [*(f"- Left out: {reason}." for reason in report.left_out), ""]
    lines += ["![values against their targets](benchmarks.svg)", ""]
    lines += ["| Machine | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in report.machine.items()]
    group = ""
    for figure in report.figures:
        if figure.group != group:
            group = figure.group
            lines += ["", f"### {group}", "", "| | " + " | ".join(_HEAD[1:-1]) + " | |", "|---|" + "---:|" * 6 + "---|"]
        what = f"`{figure.name}` {figure.what}" + (f" ({figure.note})" if figure.note else "")
        lines.append(f"| {what} | " + " | ".join(_cells(figure)) + " |")
    return "\n".join(lines) + "\n"


def _cells(figure: Figure) -> tuple[str, ...]:
    quartiles = f"{number(figure.low)} .. {number(figure.high)}" if figure.low is not None else ""
    return (
        f"{number(figure.value)} {figure.unit}",
        number(figure.floor) if figure.floor is not None else "",
        f"{number(figure.ratio)} x" if figure.ratio is not None else "",
        quartiles,
        str(figure.samples),
        number(figure.target) if figure.target is not None else "",
        {None: "", True: "met", False: "MISSED"}[figure.met],
    )


def number(value: float | None) -> str:
    """Three significant digits, never in powers of ten."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    digits = max(0, 2 - _magnitude(abs(value)))
    return f"{value:,.{min(digits, 4)}f}"


def _magnitude(value: float) -> int:
    power = 0
    while value >= 10:
        value, power = value / 10, power + 1
    while value < 1 and power > -4:
        value, power = value * 10, power - 1
    return power
