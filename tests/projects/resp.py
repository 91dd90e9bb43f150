"""A small redis client, and a load that checks every answer.

Run as a program, it is the load: `python resp.py PORT CONNECTIONS`; it prints "ready" once every connection has had its
first answer, runs until its standard input closes, and prints one JSON object: requests, wrong answers, errors, the
longest time an answer took.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from dataclasses import dataclass, field


class ServerError(Exception):
    """An error reply."""


class Client:
    """One connection; replies come as str, int, list or None."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.file = self.socket.makefile("rb")

    def ask(self, *words: str) -> object:
        """Send one command and read its reply.

        Raises:
            ServerError: the server answered with an error.
        """
        parts = [f"*{len(words)}\r\n".encode()]
        for word in words:
            raw = word.encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(raw), raw))
        self.socket.sendall(b"".join(parts))
        return self._reply()

    def _reply(self) -> object:
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"+":
            return rest
        if kind == b"-":
            raise ServerError(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == "-1" else self.file.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return None if rest == "-1" else [self._reply() for _ in range(int(rest))]
        raise ConnectionError(f"not RESP: {line!r}")

    def close(self) -> None:
        """Close the connection."""
        self.file.close()
        self.socket.close()


@dataclass
class Tally:
    """What one connection saw."""

    requests: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)
    longest_ms: float = 0.0


def _work(port: int, number: int, stop: threading.Event, started: threading.Barrier, tally: Tally) -> None:
    try:
        client = Client(port)
        client.ask("DEL", f"count:{number}")
        started.wait()
        while not stop.is_set():
            value = f"v{tally.requests}"
            for words, wanted in (
                (("SET", f"key:{number}", value), "OK"),
                (("GET", f"key:{number}"), value),
                (("INCR", f"count:{number}"), tally.requests // 3 + 1),
            ):
                begin = time.perf_counter()
                answer = client.ask(*words)
                tally.longest_ms = max(tally.longest_ms, (time.perf_counter() - begin) * 1000)
                tally.requests += 1
                tally.wrong += answer != wanted
        client.close()
    except (OSError, ServerError) as error:
        tally.errors.append(f"{type(error).__name__}: {error}")


def main() -> None:
    """The load."""
    port, connections = int(sys.argv[1]), int(sys.argv[2])
    stop = threading.Event()
    started = threading.Barrier(connections + 1)
    tallies = [Tally() for _ in range(connections)]
    threads = [threading.Thread(target=_work, args=(port, i, stop, started, tally)) for i, tally in enumerate(tallies)]
    for thread in threads:
        thread.start()
    started.wait()
    print("ready", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    result = {
        "requests": sum(t.requests for t in tallies),
        "wrong": sum(t.wrong for t in tallies),
        "errors": [e for t in tallies for e in t.errors],
        "longest_ms": round(max(t.longest_ms for t in tallies), 2),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
