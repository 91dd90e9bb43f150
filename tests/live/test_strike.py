"""What strikes a katana in tests does not leave one behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.live.handmade import Built, patch_from
from tests.live.server import serving, write_patch
from tests.support.strike import strike

_WALL = 0x40000000


def test_command_is_ended_where_the_test_fails_that_strikes_it(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: it stands for ever, and so does whoever waits for the end of what it traces: the whole run of tests."""
    struck: list[int] = []

    def fail(pid: int) -> None:
        struck.append(pid)
        raise TimeoutError

    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving(counter[0].output) as server:
        with pytest.raises(TimeoutError):
            strike(["apply", str(patch), "--pid", str(server.pid)], lambda _: True, fail)
        _, status = os.waitpid(struck[0], _WALL)  # its tracer hears of it first
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        assert server.ask("a 5") == "6"
