"""How far a command has come, on a terminal, when it takes longer than a second.

One line on standard error, written over itself and gone at the end.  There is none in a pipe or a file, with `--json`,
with NO_COLOR or on a terminal that cannot go back in a line.  Nothing runs beside the work: the line is drawn anew as
each part of it begins, ten times a second at most, so commands that tell of no parts draw none.  Work never waits for
the terminal: one that is held (Ctrl-S), or gone, is passed over.
"""

from __future__ import annotations

import math
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, TextIO

from katana_cc.telling import TellWait

AFTER: Final = 1.0  # seconds
_AGAIN: Final = 0.1
_WIDTH: Final = 20


class Progress:
    """Told of each part of the work as it begins; knows when to show it."""

    def __init__(self, what: str, stream: TextIO | None) -> None:
        self._what = what
        self._stream = stream
        self._next = time.monotonic() + AFTER
        self._drawn = False

    def __call__(self, done: int, total: int, name: str) -> None:
        """`done` of `total` parts are done, and the one that is called `name` begins."""
        if self._stream is None or time.monotonic() < self._next:
            return
        with suppress(OSError, ValueError):  # the terminal is gone
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
            self._draw("\r" + line(self._what, done, total, name)[: max(columns - 1, 0)] + "\x1b[K")
            self._drawn = True
        self._next = time.monotonic() + _AGAIN

    def waiting(self, waited: float, limit: float, why: str) -> None:
        """Some of `limit` seconds were waited for what `why` says."""
        self(int(waited), math.ceil(limit), f"s, {_first_line(why)}")

    def within(self, done: int, total: int, name: str) -> TellWait:
        """What tells, during a part, that it waits."""
        return lambda _waited, _limit, why: self(done, total, f"{name}: {_first_line(why)}")

    def end(self) -> None:
        """Leave the line as it was."""
        if self._drawn:
            self._drawn = False
            with suppress(OSError, ValueError):
                self._draw("\r\x1b[K")

    def _draw(self, text: str) -> None:
        assert self._stream is not None
        if select.select((), (self._stream,), (), 0)[1]:
            # Past the stream: what it could not write would be an error again at the end of the program.
            os.write(self._stream.fileno(), text.encode(self._stream.encoding, "replace"))


def line(what: str, done: int, total: int, name: str) -> str:
    """The line: `recording [########------------] 12/30 lib/libz.so.1`."""
    filled = _WIDTH * done // total if total else 0
    text = "".join(c if c.isprintable() else "?" for c in name)
    return f"{what} [{'#' * filled}{'-' * (_WIDTH - filled)}] {done}/{total} {text}"


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Progress]:
    """For a `with` around the work; `quiet` is for --json."""
    shown = Progress(what, None if quiet or not can_show(sys.stderr, os.environ) else sys.stderr)
    try:
        yield shown
    finally:
        shown.end()


def can_show(stream: TextIO | None, environment: Mapping[str, str]) -> bool:
    """Whether a line that is written over itself makes sense there."""
    if stream is None or environment.get("NO_COLOR") or environment.get("TERM", "dumb") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False
