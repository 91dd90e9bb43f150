"""A terminal to write to, whose other end tells what it shows."""

from __future__ import annotations

import os
import pty
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Terminal:
    """`stream` is what a program has; `reader` the descriptor of the other end."""

    stream: TextIO
    reader: int

    def shown(self) -> str:
        """All that was written to it by now, and not asked for before."""
        os.set_blocking(self.reader, False)
        found = b""
        while True:
            try:
                found += os.read(self.reader, 4096)
            except BlockingIOError:
                return found.decode()

    def wait_for(self, text: str) -> str:
        """All that is written until `text` was."""
        os.set_blocking(self.reader, True)
        found = b""
        while text.encode() not in found:
            found += os.read(self.reader, 4096)
        return found.decode()


@contextmanager
def opened() -> Iterator[Terminal]:
    """A terminal for the length of a block."""
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 200))
    try:
        with os.fdopen(writer, "w") as stream:
            yield Terminal(stream, reader)
    finally:
        os.close(reader)
