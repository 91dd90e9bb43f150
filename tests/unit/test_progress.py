"""The line that tells how far a command has come."""

from __future__ import annotations

import io
import itertools
import os
import pty
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from katana_cc.cli.main import main
from katana_cc.cli.progress import Progress, can_show, line, progress
from katana_cc.snapshot.store import Store
from tests.support.terminal import Terminal, opened
from tests.unit.test_store_check import record


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """One that can show a line which is written over itself."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with opened() as terminal:
        yield terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its last element."""
    now = [100.0]
    monkeypatch.setattr("katana_cc.cli.progress.time.monotonic", lambda: now[-1])
    return now


def test_nothing_is_shown_in_the_first_second_and_the_line_goes_at_the_end(
    terminal: Terminal, clock: list[float]
) -> None:
    shown = Progress("recording", terminal.stream)
    for second, part in ((100.0, "a"), (100.9, "b"), (101.1, "c"), (101.15, "d"), (101.3, "e")):
        clock.append(second)
        shown(ord(part) - ord("a"), 5, part)
    shown.end()
    text = terminal.shown()
    assert text.split("\r") == [
        "",
        "recording [########------------] 2/5 c\x1b[K",
        "recording [################----] 4/5 e\x1b[K",
        "\x1b[K",
    ]
    shown.end()  # once only
    assert terminal.shown() == ""


@pytest.mark.usefixtures("clock")
def test_quick_work_writes_nothing(terminal: Terminal) -> None:
    shown = Progress("recording", terminal.stream)
    shown(0, 2, "a")
    shown.end()
    assert terminal.shown() == ""


def test_where_it_is_shown(terminal: Terminal) -> None:
    stream = terminal.stream
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
def test_json_is_quiet(terminal: Terminal, clock: list[float], monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with pytest.raises(RuntimeError), progress("comparing", quiet=quiet) as shown:
        clock.append(102.0)
        shown(0, 1, "a")
        raise RuntimeError
    assert terminal.shown() == ("" if quiet else "\rcomparing [--------------------] 0/1 a\x1b[K\r\x1b[K")


def test_a_name_cannot_write_to_the_terminal() -> None:
    assert line("x", 1, 2, "a\x1b[2J\n") == "x [##########----------] 1/2 a?[2J?"
    assert line("x", 0, 0, "a") == "x [--------------------] 0/0 a"


def test_work_does_not_wait_for_a_terminal_that_takes_nothing(terminal: Terminal, clock: list[float]) -> None:
    """A bug: Ctrl-S in the midst of `katana apply --tree` leaves one half of a tree with the patch, until Ctrl-Q."""
    shown = Progress("waiting", terminal.stream)
    clock.append(102.0)
    shown(0, 5, "a")
    descriptor = terminal.stream.fileno()
    tty.setraw(descriptor)
    os.set_blocking(descriptor, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(descriptor, b"." * 4096)
    os.set_blocking(descriptor, True)
    clock.append(103.0)
    shown(1, 5, "b")
    shown.end()
    assert terminal.shown().strip(".") == "\rwaiting [--------------------] 0/5 a\x1b[K"


def test_terminal_that_is_gone_ends_nothing(clock: list[float]) -> None:
    """A bug: a window is closed, a katana that ignores SIGHUP asks how wide it is, and gives up with a traceback."""
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as stream:
        shown = Progress("waiting", stream)
        clock.append(102.0)
        shown(0, 5, "a")
        os.close(reader)
        clock.append(103.0)
        shown(1, 5, "b")
        shown.end()


def test_waiting_is_told_in_seconds(terminal: Terminal, clock: list[float]) -> None:
    shown = Progress("waiting", terminal.stream)
    clock.append(102.0)
    shown.waiting(2.4, 4.5, "pid 7 (server): thread 8 is in f\nmore of it")
    clock.append(103.0)
    shown.within(1, 3, "build-id 12")(2.4, 4.5, "why")
    assert terminal.shown().split("\r") == [
        "",
        "waiting [########------------] 2/5 s, pid 7 (server): thread 8 is in f\x1b[K",
        "waiting [######--------------] 1/3 build-id 12: why\x1b[K",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check"], ["checking [", " snapshot 3 of prog", " blob "]),
        (["gc"], ["collecting [", " snapshot 3 of prog", " blob "]),
        (["check", "--json"], []),
    ],
)
def test_commands_tell_of_their_parts(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], told: list[str]
) -> None:
    """With a clock by which each part takes a second."""
    store = Store(tmp_path / ".katana", create=True)
    kept = [record(store, number) for number in range(1, 4)]
    store.add_release("v1", False, [k.id for k in kept])
    store.close()
    ticks = itertools.count()
    monkeypatch.setattr("katana_cc.cli.progress.time.monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    shown = terminal.shown()
    assert [text for text in told if text not in shown] == []
    assert bool(shown) == bool(told)
    assert shown.endswith("\r\x1b[K" if told else "")
