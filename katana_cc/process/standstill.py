"""All threads of a process at a standstill for a moment, with this process first in line and not to be disturbed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from katana_cc.errors import KatanaError, TargetError
from katana_cc.process.priority import first_in_line, spared, undisturbed
from katana_cc.process.threads import Threads
from katana_cc.process.uncollected import uncollected


@contextlib.contextmanager
def standstill(threads: Threads, where: str) -> Iterator[None]:
    """Stop them and read their registers for the length of a block; then they go on as if nothing had been.

    Raises:
        BusyError: a thread does not stop in time.
        TargetError: the process died, or cannot be traced or read.
    """
    with uncollected(), undisturbed(), first_in_line(), spared():
        try:
            threads.seize()
            threads.stop()
            threads.read_registers()
            if not threads.order:
                raise TargetError("the process died", where=where)
            try:
                yield
            finally:
                threads.repair_system_calls()
        except OSError as error:
            if isinstance(error, KatanaError):
                raise
            raise TargetError(f"the process cannot be read: {error.strerror}", where=where) from None
        finally:
            threads.release()
