"""Tasks shared with forked processes, which know all that this one knows.

Theory of operation.  The numbers of the tasks lie in a pipe, and whoever is free takes the next: this process and its
workers end together, however fast each of them runs.  When none is left, a worker sends what its tasks came to, as
`marshal` has it, and ends without a word to anybody else.

Nothing rests on a worker.  A task that is not answered (no process could be forked, the worker was killed, the task
raised an error) is not in the results: the caller does it himself, and meets its error where he would have met it
alone.  So which process did what cannot be told from what comes out.

A worker keeps the descriptors it was forked with, the shared lock of the store among them: a collector waits until the
last blob is written even where this process was killed.
"""

import marshal
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Self

_NUMBER: Final = 4  # bytes
_MOST_NUMBERS: Final = 1024  # a page of them, which every pipe can hold
_TASKS_EACH: Final = 8  # for more than one helper; one is worth its fork for a single object, since others wait less
_MOST_HELPERS: Final = 7


def helpers_for(tasks: int) -> int:
    """How many workers are worth their forks; none where other threads run, whose locks would never open in a fork."""
    threading = sys.modules.get("threading")
    if threading is not None and threading.active_count() > 1:
        return 0
    return min(len(os.sched_getaffinity(0)) - 1, -(-tasks // _TASKS_EACH), _MOST_HELPERS)


class Workers:
    """Processes at work from the start; leaving the `with` block ends those that are still there.

    Args:
        work: what a number comes to, as a value that `marshal` can write.  It may open files, and not the index.
        tasks: the numbers below this are to be done.
        helpers: how many processes to fork.
    """

    def __init__(self, work: Callable[[int], Any], tasks: int, helpers: int) -> None:
        self._work = work
        self._tasks = tasks
        self._step = -(-tasks // _MOST_NUMBERS) or 1
        self._queue = -1
        self._running: list[tuple[int, int]] = []  # process, and the end of the pipe that its results come from
        if helpers > 0:
            try:
                self._start(helpers)
            except OSError:
                pass  # no process or no descriptor to be had: there are fewer, or none
            except BaseException:
                self.end()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def _start(self, helpers: int) -> None:
        self._queue, numbers = os.pipe()
        try:
            os.write(numbers, b"".join([n.to_bytes(_NUMBER, "little") for n in range(0, self._tasks, self._step)]))
        finally:
            os.close(numbers)
        for _ in range(helpers):
            source, sink = os.pipe()
            try:
                process = os.fork()
                if not process:
                    self._serve(sink)
            except OSError:
                os.close(source)
                raise
            finally:
                os.close(sink)
            self._running.append((process, source))

    def _serve(self, sink: int) -> None:
        """What a worker does; never returns."""
        status = 1
        try:
            data = memoryview(marshal.dumps(self._do_some()))
            while data:
                data = data[os.write(sink, data) :]
            status = 0
        finally:
            os._exit(status)

    def _do_some(self) -> dict[int, Any]:
        done = {}
        for number in self._numbers():
            with suppress(Exception):  # whoever asks for the results does it again, and learns why
                done[number] = self._work(number)
        return done

    def _numbers(self) -> Iterator[int]:
        """The tasks that fall to this process."""
        if self._queue < 0:
            return
        while taken := os.read(self._queue, _NUMBER):
            first = int.from_bytes(taken, "little")
            yield from range(first, min(first + self._step, self._tasks))

    def results(self) -> dict[int, Any]:
        """What the tasks came to, those that this process takes a hand in included; tasks without an answer are not
        there, and none is when there are no workers."""
        if not self._running:
            return {}
        done = self._do_some()
        while self._running:
            process, source = self._running[-1]
            with open(source, "rb", closefd=False) as file:
                data = file.read()
            # What it has to say is here, so it is about to end, if it did not long ago.
            self._running.pop()
            os.close(source)
            _reap(process)
            with suppress(EOFError, ValueError, TypeError):  # cut off
                done.update(marshal.loads(data))
        return done

    def end(self) -> None:
        """End the processes that are still there."""
        for process, source in self._running:
            from signal import SIGKILL  # late: a millisecond, and hardly ever wanted

            os.close(source)
            with suppress(ProcessLookupError):
                os.kill(process, SIGKILL)
            _reap(process)
        self._running.clear()
        if self._queue >= 0:
            os.close(self._queue)
            self._queue = -1


def _reap(process: int) -> None:
    with suppress(ChildProcessError):  # where SIGCHLD is ignored, nobody is left to wait for
        os.waitpid(process, 0)
