"""The figures a run yields, and the report they make: plain values, written as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.measure import median, quantile

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    `value` is in `unit` ("ms", "s", "ns", "x" for a ratio, "MB" of 10^6 bytes, "kB", "bytes").  `floor` is what the
    same work costs without us, in the same unit, measured in the same run; None where the value is a ratio already.
    `low` and `high` are the quartiles of the samples.  `target` is the most the value may be; None where none is set.
    """

    group: str
    name: str
    what: str
    value: float
    unit: str
    floor: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int = 1
    target: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None when there is none."""
        return None if self.target is None else self.value <= self.target

    @property
    def ratio(self) -> float | None:
        """The value over its floor; None without a floor."""
        return self.value / self.floor if self.floor else None

    def as_json(self) -> dict[str, object]:
        """The figure as JSON holds it: floats with five significant digits, which is more than any clock gives."""
        names = ("group", "name", "what", "value", "unit", "floor", "low", "high", "samples", "target", "note")
        row: dict[str, object] = {name: rounded(getattr(self, name)) for name in names}
        row["ratio"] = rounded(self.ratio)
        row["met"] = self.met
        return row


def of_samples(
    group: str,
    name: str,
    what: str,
    samples: Sequence[float],
    unit: str,
    *,
    floor: float | None = None,
    target: float | None = None,
    note: str = "",
    best: bool = False,
) -> Figure:
    """A figure whose value is the median of samples (or, with `best`, the least), with their quartiles."""
    value = min(samples) if best else median(samples)
    low, high = quantile(samples, 0.25), quantile(samples, 0.75)
    return Figure(group, name, what, value, unit, floor, low, high, len(samples), target, note)


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of a run; `machine` describes what it ran on, `left_out` what this system
    does not allow to be measured, `failed` the groups that went wrong; each with the reason."""

    machine: dict[str, object]
    quick: bool
    figures: tuple[Figure, ...]
    left_out: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The report as a JSON document."""
        document = {
            "format": FORMAT,
            "machine": self.machine,
            "quick": self.quick,
            "left_out": list(self.left_out),
            "failed": self.failed,
            "seconds": {name: rounded(value) for name, value in self.seconds.items()},
            "figures": [figure.as_json() for figure in self.figures],
        }
        return json.dumps(document, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Report:
        """The report that `to_json` wrote, to five digits.

        Raises:
            ValueError: it is none, or of another format.
        """
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}, not {FORMAT}")
            rows = ({k: v for k, v in row.items() if k not in ("ratio", "met")} for row in document["figures"])
            figures = tuple(Figure(**row) for row in rows)
            parts = document["machine"], document["quick"], figures, tuple(document["left_out"])
            return Report(*parts, document["failed"], document["seconds"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a report: {error!r}") from error


def merged(whole: Report, again: Report) -> Report:
    """A whole run with some groups as they were measured again, which the description of the machine says.

    Raises:
        ValueError: it was another machine, or other software.
    """
    for name, value in again.machine.items():
        if not name.startswith("load") and whole.machine.get(name) != value:
            raise ValueError(f"{name}: {whole.machine.get(name)} then, {value} now")
    groups: dict[str, list[Figure]] = {}
    for figure in whole.figures:
        groups.setdefault(figure.group, []).append(figure)
    new: dict[str, list[Figure]] = {}
    for figure in again.figures:
        new.setdefault(figure.group, []).append(figure)
    load = f"load {again.machine['load_before']} before, {again.machine['load_after']} after"
    machine = {**whole.machine, f"again: {', '.join(new)}": load}
    figures = [figure for group in (groups | new).values() for figure in group]
    failed = {name: why for name, why in whole.failed.items() if name not in again.seconds} | again.failed
    left_out = tuple(dict.fromkeys((*whole.left_out, *again.left_out)))
    return Report(machine, whole.quick, tuple(figures), left_out, failed, {**whole.seconds, **again.seconds})


def rounded(value: object) -> object:
    """Floats to five significant digits; anything else as it is."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
