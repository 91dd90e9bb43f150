"""A process of our own that finishes what we had begun to write, should we be killed meanwhile.

It waits on a pipe of which we hold the other end: a byte says that all is well, and that the end was closed without one
that we are dead.  So a target stands still for no longer than some milliseconds, and nobody has to call katana again.
It is forked before what a stop needs is read, since each page that both have must be copied when we write to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Final, NoReturn

from katana_cc.errors import KatanaError
from katana_cc.process import finishing

_MOST_FILES: Final = 1 << 16
_PATIENCE: Final = 600.0  # seconds: nobody else may come, and the machine may be a busy one


@contextlib.contextmanager
def guarded(pid: int) -> Iterator[None]:
    """While the body runs, have somebody there who finishes it in the process `pid`.  Where none can be forked (a
    limit), a target stands still until the next katana comes."""
    source, sink = os.pipe()
    everything = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, everything)
    guardian = -1
    try:
        with contextlib.suppress(OSError):
            guardian = os.fork()
        if not guardian:
            _wait(pid, source)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(source)
    is_well = True
    try:
        yield
    except KatanaError:
        raise
    except BaseException:
        is_well = False  # nobody knows how far it came: the guardian looks, once we have ended
        raise
    finally:
        if is_well:
            with contextlib.suppress(OSError):
                os.write(sink, b"!")
        os.close(sink)
        if is_well and guardian > 0:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(guardian, 0)


def _wait(pid: int, source: int) -> NoReturn:
    """What the guardian does; it runs nothing that was to run at our own end."""
    try:
        os.setsid()  # what ends all of a terminal's, or of a group, is not meant for it
        os.closerange(0, source)
        os.closerange(source + 1, _MOST_FILES)
        if not os.read(source, 1):
            finishing.finish(pid, _PATIENCE)
    except BaseException:
        os._exit(1)
    os._exit(0)
