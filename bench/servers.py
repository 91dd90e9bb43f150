"""What the clients of a loaded server see of a patch: throughput, latency, and requests that are lost.

redis and memcached, from Debian's sources, under clients that ask and wait for each answer; the function that answers
them is what is patched.  Windows of the same length are compared, round by round: one in which a command runs that
leaves the server alone (the floor: `katana` itself takes a processor for a third of a second), one with an apply, one
with a revert.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench import redis
from bench.figures import Figure, of_samples
from bench.measure import MeasureError, median, run
from bench.program import Talk, build_tool, katana, started
from bench.setting import Setting
from bench.sources import Unavailable, fetch
from bench.workload import build

GROUP: Final = "servers"

_WINDOW: Final = 2.0  # seconds
_CONNECTIONS: Final = 16
_START: Final = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class _Server:
    """A program under load: how it is built and started, what it is asked, and what it answers before and after."""

    name: str
    program: str  # under its folder
    request: str
    replies: tuple[str, str]
    edit: tuple[str, str, str, str]  # file, its text, what stands there in the deployed build, and in the next
    compile: Callable[[Setting, Path, str], None]  # all of it, by a compiler
    arguments: Callable[[int], Sequence[str]]
    needs: str = ""


@dataclass(frozen=True, slots=True)
class _Window:
    """What clients saw: answers a second, and milliseconds."""

    rate: float
    p999: float
    largest: float
    lost: int


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the figures of each server.

    Raises:
        Unavailable: its source cannot be had here, or, behind the figures of the others, what its build needs.
    """
    load = build_tool(setting, "load")
    missing = []
    for server in _SERVERS[: setting.rounds(len(_SERVERS), 1)]:
        if server.needs and not Path(server.needs).exists():
            missing.append(f"{server.name}: there is no {server.needs}")
        else:
            yield from _of(setting, server, load)
    if missing:
        raise Unavailable("; ".join(missing))


def _of(setting: Setting, server: _Server, load: Path) -> Iterator[Figure]:
    source = fetch(server.name, setting.folder(f"server-{server.name}"))
    store = source / ".katana"
    file = source / server.edit[0]
    text = file.read_text()
    if text.count(server.edit[1]) != 1:
        raise MeasureError(f"the text to change is not there once: {server.edit[1]}", where=str(file))
    file.write_text(text.replace(server.edit[1], server.edit[2]))
    server.compile(setting, source, setting.wrapper)
    deployed = Path(shutil.copy2(source / server.program, source / f"{server.name}.deployed"))
    run([setting.command("katana-release"), "v1"], cwd=source, env=setting.environment(store))
    file.write_text(text.replace(server.edit[1], server.edit[3]))
    server.compile(setting, source, setting.wrapper)
    listed = subprocess.run(
        [setting.command("katana"), "patches", "--json"], cwd=source, env=setting.environment(store),
        capture_output=True, check=True,
    )  # fmt: skip
    made = [row for row in json.loads(listed.stdout) if Path(row["output"]).name == Path(server.program).name]
    if len(made) != 1:
        raise MeasureError(f"one change made {len(made)} patch objects", where=server.name)
    patch = str(made[0]["path"])
    windows: dict[str, list[_Window]] = {"alone": [], "apply": [], "revert": []}
    with (
        _running(deployed, server) as (pid, port),
        started(load, str(port), str(_CONNECTIONS), server.request, *server.replies) as talk,
    ):
        for _ in range(setting.rounds(7, 2)):
            for name, words in (
                ("alone", ["show", patch]),
                ("apply", ["apply", patch, "--pid", str(pid)]),
                ("revert", ["revert", "--pid", str(pid)]),
            ):
                windows[name].append(_window(talk, partial(katana, setting, *words)))
                _expect(port, server, name == "apply")
    yield from _figures(server.name, windows)


def _figures(name: str, windows: dict[str, list[_Window]]) -> Iterator[Figure]:
    group, alone = f"{GROUP}.{name}", windows["alone"]
    floor = "floor: the same with a command that leaves the server alone"
    for command in ("apply", "revert"):
        seen = windows[command]
        what = f"answers a second, {_WINDOW:g} s with one {command} in it"
        rate = median([w.rate for w in alone])
        yield of_samples(group, f"{command}_rate", what, [w.rate for w in seen], "/s", floor=rate, note=floor)
        for field, what in (("p999", "99.9 % of the answers came within"), ("largest", "the slowest answer")):
            of_alone = median([getattr(w, field) for w in alone])
            values = [getattr(w, field) for w in seen]
            yield of_samples(group, f"{command}_{field}", f"{what}, with one {command}", values, "ms", floor=of_alone,
                             note=floor)  # fmt: skip
        lost = sum(w.lost for w in seen)
        answers = int(sum(w.rate for w in seen) * _WINDOW)
        yield Figure(group, f"{command}_lost", "requests lost or wrongly answered", lost, "requests", samples=len(seen),
                     target=0, note=f"of about {answers:,}")  # fmt: skip


def _window(talk: Talk, command: Callable[[], object]) -> _Window:
    talk.ask("reset")
    begun = time.monotonic()
    command()
    time.sleep(max(0.0, begun + _WINDOW - time.monotonic()))
    answers, lost, _, p999, largest, elapsed = map(int, talk.ask("report").split())
    return _Window(answers / (elapsed / 1e9), p999 / 1e6, largest / 1e6, lost)


def _expect(port: int, server: _Server, is_new: bool) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(server.request.encode())
        got = connection.recv(512).decode()
    if got != server.replies[is_new]:
        raise MeasureError(f"the server answers {got!r}", where=server.name)


@contextlib.contextmanager
def _running(program: Path, server: _Server) -> Iterator[tuple[int, int]]:
    """The server's pid and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [str(program), *server.arguments(port)],
            cwd=program.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + _START
            while True:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise MeasureError("the server did not come up", where=server.name)
                time.sleep(0.02)
            yield process.pid, port
            if process.poll() is not None:
                raise MeasureError(f"the server died ({process.returncode})", where=server.name)
        finally:
            process.kill()


def _compile_redis(setting: Setting, source: Path, compiler: str) -> None:
    build(setting, redis.workload(setting, source), compiler)


def _compile_memcached(setting: Setting, source: Path, compiler: str) -> None:
    env = setting.environment(source / ".katana")
    if not (source / "Makefile").exists():
        run(["./configure", "--disable-docs", f"CC={compiler}"], cwd=source, env=env)
    run(["make", f"-j{os.cpu_count()}", "memcached"], cwd=source, env=env)


_SERVERS: Final = (
    _Server(
        "redis",
        "src/redis-server",
        "*2\r\n$4\r\nECHO\r\n$5\r\nhello\r\n",
        ("$5\r\nhello\r\n", "$5\r\nHELLO\r\n"),
        (
            "src/server.c",
            "void echoCommand(client *c) {",
            "void echoCommand(client *c) {",
            'void echoCommand(client *c) { if (c->argc == 2) { addReplyBulkCString(c, "HELLO"); return; }',
        ),
        _compile_redis,
        lambda port: ("--port", str(port), "--save", ""),
    ),
    _Server(
        "memcached",
        "memcached",
        "version\r\n",
        ("VERSION 1.0\r\n", "VERSION 2.0\r\n"),
        (
            "proto_text.c",
            'out_string(c, "VERSION " VERSION);',
            'out_string(c, "VERSION 1.0");',
            'out_string(c, "VERSION 2.0");',
        ),
        _compile_memcached,
        lambda port: ("-p", str(port), "-U", "0", "-l", "127.0.0.1", "-u", "root", "-t", "4"),
        "/usr/include/event2/event.h",
    ),
)
