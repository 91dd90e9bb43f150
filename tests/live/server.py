"""A running C program that a test talks to, and the `katana` command run on it."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from katana_cc.patch.codec import encode, patch_id
from katana_cc.patch.model import PatchObject
from tests.support import forks

_PTRACE_SEIZE = 0x4206


class NotReadyError(AssertionError):
    """A program said something else than "ready" at its start, or nothing."""

    def __init__(self, said: str) -> None:
        super().__init__(f"it is not ready: {said!r}")
        self.said = said


class Server:
    """A program with a line protocol on its standard streams."""

    def __init__(self, words: Sequence[str | Path]) -> None:
        self._process = subprocess.Popen(
            [str(w) for w in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid
        first = self.line()
        if first != "ready":
            self.close()
            raise NotReadyError(first)

    def line(self) -> str:
        """The next line it says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def tell(self, command: str) -> None:
        """A command without an answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def ask(self, command: str) -> str:
        """A command and its answer."""
        self.tell(command)
        return self.line()

    def finish(self) -> list[str]:
        """End its input; what it says until it has ended, and with what status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        rest = self._process.stdout.read().splitlines()
        return [*rest, f"status {self._process.wait()}"]

    @property
    def ended(self) -> int | None:
        """The status it ended with (negative: the signal); None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it without waiting for it: it stays a zombie until `close`."""
        self._process.kill()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def serving(*words: str | Path) -> Iterator[Server]:
    """A server for the length of a block."""
    server = Server(words)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def tracing(pid: int) -> Iterator[None]:
    """A process is traced, as by a debugger: by a thread, whose end lets go of it."""
    is_traced, is_done = threading.Event(), threading.Event()

    def trace() -> None:
        assert ctypes.CDLL(None).ptrace(_PTRACE_SEIZE, pid, 0, 0) == 0
        is_traced.set()
        is_done.wait()

    thread = threading.Thread(target=trace)
    thread.start()
    assert is_traced.wait(10)
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def write_patch(folder: Path, po: PatchObject, name: str = "patch.kpo") -> Path:
    """The patch object as a file."""
    path = folder / name
    path.write_bytes(encode(po))
    return path


def identity(po: PatchObject) -> str:
    """The patch's identity."""
    return patch_id(encode(po))


def katana(*words: str | Path | int) -> subprocess.CompletedProcess[str]:
    """Run the command; never raises."""
    if words[0] in forks.COMMANDS:
        return forks.run([str(w) for w in words])
    program = "import sys; from katana_cc.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *(str(w) for w in words)], capture_output=True, text=True, check=False
    )


def katana_json(*words: str | Path | int) -> Any:
    """Run the command with --json; it must succeed."""
    done = katana(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def code_of(pid: int) -> bytes:
    """All executable, file-backed memory of a process but katana's own."""
    result = b""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split()
            if "x" in fields[1] and len(fields) > 5 and "katana" not in line and fields[5].startswith("/"):
                start, end = (int(x, 16) for x in fields[0].split("-"))
                memory.seek(start)
                result += memory.read(end - start)
    return result


def mappings(pid: int) -> list[str]:
    """The lines of /proc/PID/maps that katana made."""
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "katana:" in line]
