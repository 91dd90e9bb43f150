"""Clients that check every answer of a server: `python load.py KIND PORT CONNECTIONS`.

Prints "ready" once every connection has had its first answer, runs until its standard input closes, and prints one JSON
object: requests, wrong answers, errors, the longest time an answer took.
"""

from __future__ import annotations

import http.server
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

if __name__ == "__main__":  # run as a file, from any folder
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.projects.resp import Client

Conversation = Iterator[bool]
"""Each step is one request and says whether the answer was right."""


def redis(port: int, number: int) -> Conversation:
    """SET, GET and INCR of keys of this connection's own."""
    client = Client(port)
    client.ask("DEL", f"count:{number}")
    turn = 0
    while True:
        turn += 1
        yield client.ask("SET", f"key:{number}", f"v{turn}") == "OK"
        yield client.ask("GET", f"key:{number}") == f"v{turn}"
        yield client.ask("INCR", f"count:{number}") == turn


def memcached(port: int, number: int) -> Conversation:
    """set, get and incr of keys of this connection's own, by the text protocol."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, connection.makefile("rb") as file:

        def ask(command: str, lines: int = 1) -> str:
            connection.sendall(command.encode() + b"\r\n")
            return b"".join(file.readline() for _ in range(lines)).decode()

        ask(f"set count:{number} 0 0 1\r\n0")
        turn = 0
        while True:
            turn += 1
            value = f"v{turn}"
            yield ask(f"set key:{number} 0 0 {len(value)}\r\n{value}") == "STORED\r\n"
            wanted = f"VALUE key:{number} 0 {len(value)}\r\n{value}\r\nEND\r\n"
            yield ask(f"get key:{number}", 3) == wanted
            yield ask(f"incr count:{number} 1") == f"{turn}\r\n"


DNS_NAME: Final = "katana.test"
DNS_ANSWER: Final = bytes((10, 1, 2, 3))


def dns(port: int, number: int) -> Conversation:
    """The A record of `DNS_NAME` over UDP (RFC 1035, section 4)."""
    name = b"".join(bytes([len(part)]) + part.encode() for part in DNS_NAME.split(".")) + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        query.settimeout(30)
        query.connect(("127.0.0.1", port))
        turn = number
        while True:
            turn = (turn + 8) % 65536
            query.send(struct.pack(">6H", turn, 0x0100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1))
            answer = query.recv(512)
            yield answer[:2] == struct.pack(">H", turn) and answer.endswith(DNS_ANSWER)


def proxied(port: int, number: int) -> Conversation:
    """A page of a web server of ours, through the proxy; each request is a connection, as HTTP/1.0 wants it."""
    page = f"page of connection {number}".encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    origin = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=origin.serve_forever, daemon=True).start()
    where = f"127.0.0.1:{origin.server_address[1]}"
    while True:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(f"GET http://{where}/ HTTP/1.0\r\nHost: {where}\r\n\r\n".encode())
            answer = b""
            while part := connection.recv(4096):
                answer += part
        yield answer.startswith(b"HTTP/1.0 200 ") and answer.endswith(page)


KINDS: Final[dict[str, Callable[[int, int], Conversation]]] = {
    "redis": redis,
    "memcached": memcached,
    "dns": dns,
    "proxy": proxied,
}


@dataclass
class Tally:
    """What one connection saw."""

    requests: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)
    longest_ms: float = 0.0


def _work(talk: Conversation, stop: threading.Event, started: threading.Barrier, tally: Tally) -> None:
    try:
        begin = time.perf_counter()
        for right in talk:
            now = time.perf_counter()
            tally.longest_ms = max(tally.longest_ms, (now - begin) * 1000)
            tally.requests += 1
            tally.wrong += not right
            if tally.requests == 1:
                started.wait()
            if stop.is_set():
                return
            begin = time.perf_counter()
    except Exception as error:  # whatever it is, a client has seen it
        tally.errors.append(f"{type(error).__name__}: {error}")
        started.abort()


def main() -> None:
    """The load."""
    kind, port, connections = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    stop = threading.Event()
    started = threading.Barrier(connections + 1)
    tallies = [Tally() for _ in range(connections)]
    threads = [
        threading.Thread(target=_work, args=(KINDS[kind](port, i), stop, started, tally))
        for i, tally in enumerate(tallies)
    ]
    for thread in threads:
        thread.start()
    try:
        started.wait()
        print("ready", flush=True)
        sys.stdin.read()
    except threading.BrokenBarrierError:
        pass
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
