"""Building and running the real programs: our commands in a project's folder, servers, and their load."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.projects.debian import Source

BIN = Path(sys.executable).parent


def katana_cc() -> dict[str, str]:
    """The environment of somebody who has our commands on the path and builds with them."""
    return dict(os.environ, CC="katana-cc", PATH=f"{BIN}:{os.environ['PATH']}")


def build(source: Source, *commands: Sequence[str]) -> str:
    """Run build commands as users do; returns what we printed to stderr."""
    said = []
    for command in commands:
        done = subprocess.run(command, cwd=source.folder, env=katana_cc(), capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-3000:])
        said += [line for line in done.stderr.splitlines() if line.startswith("katana")]
    return "\n".join(said)


def run(source: Source, *words: str | Path, status: int = 0) -> str:
    """One of our commands, in the project's folder."""
    program, *arguments = words
    done = subprocess.run([BIN / program, *arguments], cwd=source.folder, capture_output=True, text=True)
    assert done.returncode == status, (words, done.stdout, done.stderr)
    return done.stdout


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def server(
    source: Source, *command: str | Path, listens: int = 0, environment: dict[str, str] | None = None
) -> Iterator[int]:
    """A running server that accepts connections at `listens`; the value is its pid."""

    def logged() -> str:
        log.seek(0)
        return log.read()[-2000:]

    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [source.folder / command[0], *command[1:]], cwd=source.folder, env=dict(os.environ, **(environment or {})),
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True,
        ) as process,
    ):  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", listens)):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    pytest.fail(f"{command[0]} did not start: {logged()}")
            yield process.pid
            assert process.poll() is None, f"{command[0]} died: {logged()}"
        finally:
            process.kill()


@contextlib.contextmanager
def load(kind: str, port: int, connections: int = 8) -> Iterator[Callable[[], dict[str, object]]]:
    """Connections that check every answer; the value stops them and gives the tally."""
    command: list[str | Path] = [sys.executable, Path(__file__).with_name("load.py"), kind, str(port), str(connections)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == "ready\n", first + process.stdout.read()

        def finish() -> dict[str, object]:
            out, _ = process.communicate("")
            tally: dict[str, object] = json.loads(out)
            return tally

        try:
            yield finish
        finally:
            process.kill()
