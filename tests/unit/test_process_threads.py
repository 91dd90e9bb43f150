"""What /proc tells of threads."""

from __future__ import annotations

import os

from katana_cc.process.threads import is_dead


def test_a_zombie_is_dead_and_what_runs_is_not() -> None:
    """A bug: a process that was killed is taken for one that does not stop, or the other way round."""
    assert not is_dead(os.getpid())
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(pid)
    os.waitpid(pid, 0)
    assert is_dead(pid), "gone"
