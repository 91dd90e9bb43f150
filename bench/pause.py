"""How long a process stands while it is patched: by its threads, by the depth of their stacks, by replaced functions.

Each round has a fresh process, so that the first mapping of code into it is part of what its heartbeat sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.figures import Figure
from bench.program import Patched, build_pair, build_tool, started
from bench.setting import Setting
from bench.stop import Round, figures, one_round

GROUP = "pause"

THREADS: Final = {3: 0.5, 64: 3.0, 256: 12.0}
"""At most this many milliseconds with that many threads."""

DEPTHS: Final = (5, 50, 500, 5000)
FUNCTIONS: Final = (1, 100, 5000)
_FEW: Final = 8  # threads, where something else grows
_OUTER: Final = 3  # frames of a worker beside those that it is told to have

_CHANGE: Final = ("#define FACTOR 3", "#define FACTOR 5")
_FLAGS: Final = ("-O2", "-pthread")
_ANSWER: Final = ("42", "62")


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the pauses.

    Raises:
        NotPermitted: tracing is not permitted here.
    """
    floor = build_tool(setting, "floor")
    patched = build_pair(setting, "threads", *_CHANGE, *_FLAGS)
    for threads, target in THREADS.items():
        yield from _of(setting, patched, floor, f"threads-{threads}", target, threads)
    for depth in DEPTHS[: setting.rounds(len(DEPTHS), 2)]:
        words = (str(max(depth - _OUTER, 0)),)
        yield from _of(setting, patched, floor, f"depth-{depth}", None, _FEW, *words)
        # A word that may be a return address has to be proved to be none, by walking over all frames up to it.
        yield from _of(setting, patched, floor, f"depth-{depth}-stale", None, _FEW, *words, "stale")
    for count in FUNCTIONS[: setting.rounds(len(FUNCTIONS), 2)]:
        more = range(1, count)
        filled = "/*MORE*/", " ".join(f"F({i})" for i in more)
        patched = build_pair(setting, "threads", *_CHANGE, *_FLAGS, filled=filled)
        answers = {"more": tuple(str(sum(10 * factor + i for i in more)) for factor in (3, 5))}
        yield from _of(setting, patched, floor, f"functions-{count}", None, _FEW, answers=answers)


def _of(
    setting: Setting,
    patched: Patched,
    floor: Path,
    name: str,
    target: float | None,
    threads: int,
    *words: str,
    answers: dict[str, tuple[str, ...]] | None = None,
) -> Iterator[Figure]:
    kinds: set[str] = set()
    rounds: list[Round] = []
    expected = {"answer": _ANSWER} | {q: (a, b) for q, (a, b) in (answers or {}).items()}
    for _ in range(setting.rounds(9, 2)):
        with started(patched.old, str(threads), *words) as talk:
            kinds.add(talk.ready)
            rounds.append(one_round(setting, patched, floor, talk, threads, expected))
    yield from figures(f"{GROUP}.{name}", rounds, target, "/".join(sorted(kinds)))
