"""Property tests for a while: `python -m tests.fuzz --minutes 5`; or one stored counterexample: `... replay FILE`.

Each round has a seed of its own, which is printed; `--seed` starts from one.  Counterexamples, shrunk, are stored as
cases, and the run goes on.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from katana_cc.errors import KatanaError
from tests.fuzz.cases import Case, cases, load
from tests.fuzz.check import Checker, Counterexample
from tests.fuzz.edits import EDITS

PROBLEMS = (AssertionError, KatanaError, LookupError, ValueError, TypeError, subprocess.CalledProcessError)
ROUND = 25  # examples of one seed: those of a seed are much alike


class Tally:
    """What came of the examples so far."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.edits: Counter[tuple[str, str]] = Counter()

    def add(self, case: Case, kind: str, codes: tuple[str, ...]) -> None:
        self.outcomes[kind] += 1
        self.codes.update(codes)
        self.edits.update((e, kind) for e in case.edits)

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.outcomes.most_common())
        codes = ", ".join(f"{code} {n}" for code, n in self.codes.most_common())
        return f"{sum(self.outcomes.values())} examples: {kinds}" + (f" (refusals: {codes})" if codes else "")

    def table(self) -> str:
        """Edits by what came of them."""
        kinds = sorted(self.outcomes)
        names = sorted({name for name, _ in self.edits})
        lines = [" " * 20 + "".join(f"{k:>14}" for k in kinds)]
        lines += [f"{n:20}" + "".join(f"{self.edits[n, k]:>14}" for k in kinds) for n in names]
        return "\n".join(lines)


def run_round(
    number: int, checker: Checker, tally: Tally, out: Path, deadline: float, shrink: bool, keep: set[str],
    first: tuple[str, ...],
) -> str:  # fmt: skip
    """One seed's examples; what is wrong, or ""."""
    path = out / f"seed-{number}.json"

    @seed(number)
    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(cases(first))
    def examples(case: Case) -> None:
        if time.monotonic() > deadline:
            return
        try:
            outcome = checker.check(case)
        except PROBLEMS:
            # The last one that is stored is the smallest.
            out.mkdir(parents=True, exist_ok=True)
            path.write_text(case.to_json())
            raise
        tally.add(case, outcome.kind, outcome.codes)
        if keep & {outcome.kind, *outcome.codes}:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"kept-{number}-{sum(tally.outcomes.values())}.json").write_text(case.to_json())

    try:
        examples()
    except (*PROBLEMS, Flaky) as error:
        return f"{path}: {str(error)[:800]}"
    return ""


def replay(path: Path) -> int:
    """Check a stored case; the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = Checker(Path(folder)).check(load(path))
        except Counterexample as error:
            print(f"{path}: {error}")
            return 1
    print(f"{path}: {outcome.kind} {', '.join(outcome.codes)}")
    return 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["run", "replay"], default="run")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=None, help="the first seed (default: a new one)")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where counterexamples go")
    parser.add_argument("--no-shrink", action="store_true", help="store counterexamples as they were found")
    parser.add_argument("--keep", action="append", default=[], help="store cases of an outcome or a refusal, too")
    parser.add_argument("--edit", action="append", default=[], choices=sorted(EDITS), help="begin with one of these")
    words = parser.parse_args()
    if words.what == "replay":
        return max((replay(f) for f in words.files), default=0)
    first = random.SystemRandom().randrange(1 << 30) if words.seed is None else words.seed
    deadline = time.monotonic() + 60 * words.minutes
    tally, wrong, number = Tally(), 0, first
    with tempfile.TemporaryDirectory() as folder:
        checker = Checker(Path(folder))
        while time.monotonic() < deadline:
            problem = run_round(
                number, checker, tally, words.out, deadline, not words.no_shrink, set(words.keep), tuple(words.edit)
            )
            if problem:
                wrong += 1
                print(f"seed {number}: COUNTEREXAMPLE {problem}", flush=True)
            print(f"seed {number}: {tally}", flush=True)
            number += 1
    print(tally.table())
    print(f"seeds {first} to {number - 1}: {tally}; {wrong} counterexamples")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
