"""Which waiting signals end a system call."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from katana_cc.process import pending
from katana_cc.process import ptrace_binding as pt

TID = 100


def _waiting(monkeypatch: pytest.MonkeyPatch, *own: int, status: bytes | OSError) -> None:
    def read(_: Path) -> bytes:
        if isinstance(status, OSError):
            raise status
        return status

    monkeypatch.setattr(pt, "pending_signals", lambda _, shared: [] if shared else list(own))
    monkeypatch.setattr(Path, "read_bytes", read)


@pytest.mark.parametrize(
    ("number", "ignored", "caught", "ends"),
    [
        (signal.SIGUSR1, 0, 0, True),
        (signal.SIGUSR1, 1 << signal.SIGUSR1 - 1, 0, False),
        (signal.SIGCHLD, 0, 0, False),
        (signal.SIGCHLD, 0, 1 << signal.SIGCHLD - 1, True),
    ],
)
def test_ignored_signal_ends_none(
    monkeypatch: pytest.MonkeyPatch, number: int, ignored: int, caught: int, ends: bool
) -> None:
    """A bug: EINTR of a program that handles no signal; or one that does never hears of it."""
    _waiting(monkeypatch, number, status=b"SigIgn:\t%016x\nSigCgt:\t%016x\n" % (ignored, caught))
    assert pending.Pending().ends_call(TID, 0) is ends
    assert not pending.Pending().ends_call(TID, 1 << number - 1)


def test_stop_that_holds_a_thread_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: behind the last write a file is opened for each commit that moves data, and the stop is longer for it."""
    _waiting(monkeypatch, signal.SIGSTOP, status=b"")
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it is"))
    assert not pending.Pending().ends_call(TID, 0)


def test_want_of_files_in_the_stop_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: what was written is taken back for it, or cannot be."""
    _waiting(monkeypatch, signal.SIGUSR1, status=OSError(errno.EMFILE, "too many"))
    assert pending.Pending().ends_call(TID, 0)
