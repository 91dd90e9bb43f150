"""The line that tells how far a command has come."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from katana_cc.cli.progress import Progress, can_show, line, progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, int]]:
    """A terminal to write to, and the descriptor that reads what it shows."""
    reader, writer = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with os.fdopen(writer, "w") as stream:
        yield stream, reader
    os.close(reader)


def written(reader: int) -> bytes:
    """All that was written to the terminal by now."""
    os.set_blocking(reader, False)
    found = b""
    while True:
        try:
            found += os.read(reader, 4096)
        except BlockingIOError:
            return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its last element."""
    now = [100.0]
    monkeypatch.setattr("katana_cc.cli.progress.time.monotonic", lambda: now[-1])
    return now


def test_nothing_is_shown_in_the_first_second_and_the_line_goes_at_the_end(
    terminal: tuple[TextIO, int], clock: list[float]
) -> None:
    stream, reader = terminal
    shown = Progress("recording", stream)
    for second, part in ((100.0, "a"), (100.9, "b"), (101.1, "c"), (101.15, "d"), (101.3, "e")):
        clock.append(second)
        shown(ord(part) - ord("a"), 5, part)
    shown.end()
    text = written(reader).decode()
    assert text.split("\r") == [
        "",
        "recording [########------------] 2/5 c\x1b[K",
        "recording [################----] 4/5 e\x1b[K",
        "\x1b[K",
    ]
    shown.end()  # once only
    assert written(reader) == b""


@pytest.mark.usefixtures("clock")
def test_quick_work_writes_nothing(terminal: tuple[TextIO, int]) -> None:
    stream, reader = terminal
    shown = Progress("recording", stream)
    shown(0, 2, "a")
    shown.end()
    assert written(reader) == b""


def test_where_it_is_shown(terminal: tuple[TextIO, int]) -> None:
    stream, _ = terminal
    assert can_show(stream, {"TERM": "xterm"})
    assert can_show(stream, {"TERM": "xterm", "NO_COLOR": ""})  # no-color.org: only when it is not empty
    assert not can_show(stream, {"TERM": "xterm", "NO_COLOR": "1"})
    assert not can_show(stream, {"TERM": "dumb"})
    assert not can_show(stream, {})
    assert not can_show(io.StringIO(), {"TERM": "xterm"})
    assert not can_show(None, {"TERM": "xterm"})
    closed = io.StringIO()
    closed.close()
    assert not can_show(closed, {"TERM": "xterm"})


@pytest.mark.parametrize("quiet", [True, False])
def test_json_is_quiet(
    terminal: tuple[TextIO, int], clock: list[float], monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    stream, reader = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(RuntimeError), progress("comparing", quiet=quiet) as shown:
        clock.append(102.0)
        shown(0, 1, "a")
        raise RuntimeError
    assert written(reader) == (b"" if quiet else b"\rcomparing [--------------------] 0/1 a\x1b[K\r\x1b[K")


def test_a_name_cannot_write_to_the_terminal() -> None:
    assert line("x", 1, 2, "a\x1b[2J\n") == "x [##########----------] 1/2 a?[2J?"
    assert line("x", 0, 0, "a") == "x [--------------------] 0/0 a"
