"""The `katana` command by fork: of a process that has imported the commands which reach into processes.

Half of what a live test costs is Python starting and importing; so it is done once a worker.  What runs is `main`, in a
process of its own, with its own streams, folder and environment.  Other commands import what must not be in one process
with these: they are started as a user starts them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

COMMANDS: Final = ("apply", "revert", "status")
_LONGEST: Final = 1 << 20  # of a request, in bytes


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run one of `COMMANDS`, with its arguments."""
    with held(words) as command:
        command.go()
        return command.end()


class Held:
    """A command that is held before its first step: see `held`."""

    def __init__(self, words: Sequence[str], line: socket.socket, streams: Sequence[IO[bytes]]) -> None:
        self._words = words
        self._line = line
        self._streams = streams
        self._answers = line.makefile("rb")
        self.pid = int(self._answers.readline())

    def go(self) -> None:
        """Let it begin."""
        self._line.sendall(b"!")

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end."""
        with self._answers:
            status = int(self._answers.read())
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
        return subprocess.CompletedProcess(["katana", *self._words], status, *texts)


@contextlib.contextmanager
def held(words: Sequence[str]) -> Iterator[Held]:
    """One of `COMMANDS`, with its arguments, in a process that waits until it is told to go.  A test that fails
    meanwhile ends it: traced by the test and stopped, it would keep for ever what it traces itself."""
    request = json.dumps({"words": list(words), "folder": str(Path.cwd()), "environment": dict(os.environ)}).encode()
    assert len(request) < _LONGEST
    output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    with output, errors, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(_server().address)
        socket.send_fds(line, [len(request).to_bytes(8, "little")], [output.fileno(), errors.fileno()])
        line.sendall(request)
        command = Held(words, line, (output, errors))
        try:
            yield command
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(command.pid, signal.SIGKILL)
            raise


class _Server(NamedTuple):
    address: str
    process: subprocess.Popen[bytes]  # which ends when its input does


@functools.cache
def _server() -> _Server:
    """This process's."""
    address = tempfile.mkdtemp(prefix="katana-test-") + "/socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forks", address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return _Server(address, server)


def _serve(address: str) -> None:
    for command in COMMANDS:
        importlib.import_module(f"katana_cc.cli.{command}")
    importlib.import_module("katana_cc.cli.main")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door, selectors.DefaultSelector() as either:
        door.bind(address)
        door.listen(64)
        either.register(door, selectors.EVENT_READ)
        either.register(0, selectors.EVENT_READ)
        print("ready", flush=True)
        while all(key.fileobj is door for key, _ in either.select()):
            line, _ = door.accept()
            with line:
                if not os.fork():
                    door.close()
                    _answer(line)
    Path(address).unlink()
    Path(address).parent.rmdir()


def _answer(line: socket.socket) -> None:
    """Fork what does the work, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(line, 8, 2)
    with line.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(head, "little")))
    go, ready = os.pipe()
    pid = os.fork()
    if not pid:
        line.close()
        os.close(ready)
        os.read(go, 1)
        os.close(go)
        _work(request["words"], request["folder"], request["environment"], streams)
    line.sendall(b"%d\n" % pid)
    line.recv(1)
    os.write(ready, b"!")
    _, status = os.waitpid(pid, 0)
    line.sendall(b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _work(words: list[str], folder: str, environment: dict[str, str], streams: Sequence[int]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
    status = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["katana", *words]
        status = importlib.import_module("katana_cc.cli.main").main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    assert threading.active_count() == 1
    _serve(sys.argv[1])
