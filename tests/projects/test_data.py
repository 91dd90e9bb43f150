"""Real programs whose live data changes its layout: what their history added to a struct goes into a running server."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.projects.debian import Source, fetch, need_packages
from tests.projects.resp import Client
from tests.projects.running import build, free_port, load, run, server

pytestmark = pytest.mark.timeout(1200)

# memcached's statistics of each class of items: a table of structs that grew by one counter after the other.  Each
# version of the past is the present one without a counter, by the lines that tell of it.
COUNTERS = {
    "evicted_active": (
        "    uint64_t evicted_active; /* items evicted that should have been shuffled */\n",
        "            totals.evicted_active += itemstats[i].evicted_active;\n",
        '        APPEND_STAT("evicted_active", "%llu",\n'
        "                    (unsigned long long)totals.evicted_active);\n",
        '            APPEND_NUM_FMT_STAT(fmt, n, "evicted_active",\n'
        '                                "%llu", (unsigned long long)totals.evicted_active);\n',
        "                    if ((search->it_flags & ITEM_ACTIVE)) {\n"
        "                        itemstats[id].evicted_active++;\n                    }\n",
    ),
    "direct_reclaims": (
        "    uint64_t direct_reclaims;\n",
        "            totals.direct_reclaims += itemstats[i].direct_reclaims;\n",
        '        APPEND_STAT("direct_reclaims", "%llu",\n'
        "                    (unsigned long long)totals.direct_reclaims);\n",
        '            APPEND_NUM_FMT_STAT(fmt, n, "direct_reclaims",\n'
        '                                "%llu", (unsigned long long)totals.direct_reclaims);\n',
        "        itemstats[id].direct_reclaims += i;\n",
    ),
    "tailrepairs": (
        "    uint64_t tailrepairs;\n",
        "            totals.tailrepairs += itemstats[i].tailrepairs;\n",
        '        APPEND_NUM_FMT_STAT(fmt, n, "tailrepairs",\n'
        '                            "%llu", (unsigned long long)totals.tailrepairs);\n',
        "                itemstats[id].tailrepairs++;\n",
    ),
}


def statistics(port: int) -> dict[str, int]:
    """What `stats items` tells, summed over the classes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, connection.makefile("rb") as file:
        connection.sendall(b"stats items\r\n")
        found: dict[str, int] = {}
        for line in iter(file.readline, b"END\r\n"):
            _, name, value = line.decode().split()
            label = name.rpartition(":")[2]
            found[label] = found.get(label, 0) + int(value)
        return found


def without(text: str, counter: str) -> str:
    """The source before it had this counter."""
    for lines in COUNTERS[counter]:
        assert lines in text, f"memcached has changed: {lines}"
        text = text.replace(lines, "")
    assert counter not in text
    return text


@pytest.fixture(scope="module")
def memcached(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """memcached, configured."""
    need_packages("libevent-dev", "pkg-config", "dpkg-dev", "patch", "make", "gcc")
    source = fetch("memcached", tmp_path_factory.mktemp("memcached") / "memcached")
    build(source, ["./configure", "--disable-docs"])
    return source


@pytest.mark.parametrize("counter", COUNTERS)
def test_counter_goes_into_the_live_table(
    memcached: Source, counter: str, record_property: Callable[..., None]
) -> None:
    """A bug would be a wrong answer, an error, a counter that lost its value, or one that did not come back."""
    items = memcached.folder / "items.c"
    now = items.read_text()
    make = ["make", f"-j{os.cpu_count()}", "memcached"]
    try:
        items.write_text(without(now, counter))
        build(memcached, make)
        run(memcached, "katana-release", f"before-{counter}")
        started = memcached.folder / f"memcached-{counter}"
        started.write_bytes((memcached.folder / "memcached").read_bytes())
        started.chmod(0o755)
    finally:
        items.write_text(now)
    said = build(memcached, make)
    line = next(text for text in said.splitlines() if f"(before-{counter} → " in text)
    assert "1 variable carried over, safe: " in line
    patch = line.rpartition(": ")[2]

    port = free_port()
    arguments = "-p", str(port), "-U", "0", "-l", "127.0.0.1", "-u", "root", "-t", "4", "-m", "4"
    with server(memcached, started.name, *arguments, listens=port) as pid, load("memcached", port) as finish:
        fill(port, 20_000)
        before = statistics(port)
        assert before["evicted"] > 0, "there is something to keep"
        assert counter not in before
        applied = run(memcached, "katana", "apply", patch, "--pid", str(pid), "--json")
        after = statistics(port)
        assert after[counter] == 0
        assert after["evicted"] >= before["evicted"]
        fill(port, 20_000)
        assert statistics(port)["evicted"] > after["evicted"], "the live counters go on"
        reverted = run(memcached, "katana", "revert", "--pid", str(pid), "--discard", "itemstats", "--json")
        back = statistics(port)
        assert counter not in back
        assert back["evicted"] > after["evicted"], "what was counted meanwhile is kept"
        tally = finish()
    assert tally["errors"] == []
    assert tally["wrong"] == 0
    record_property("transcript", {"line": line, "load": tally})
    pauses = [json.loads(text)["processes"][0] for text in (applied, reverted)]
    print(line, tally, [p.get("pause_us") for p in pauses])


def fill(port: int, number: int) -> None:
    """Store more than fits, so that items are evicted."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, connection.makefile("rb") as file:
        value = b"x" * 500
        for start in range(0, number, 100):
            keys = range(start, start + 100)
            connection.sendall(b"".join(b"set fill:%d 0 0 500\r\n%s\r\n" % (k, value) for k in keys))
            assert all(file.readline() == b"STORED\r\n" for _ in keys)


# The struct that holds nearly all of redis: 700 functions use it, `main` among them, which is always active.
UNEXPECTED = (
    (
        "src/server.h",
        "    long long stat_unexpected_error_replies; "
        "/* Number of unexpected (aof-loading, replica to master, etc.) error replies */\n",
    ),
    ("src/server.c", "    server.stat_unexpected_error_replies = 0;\n"),
    ("src/server.c", '            "unexpected_error_replies:%lld\\r\\n"\n'),
    ("src/server.c", "            server.stat_unexpected_error_replies,\n"),
    ("src/networking.c", "        server.stat_unexpected_error_replies++;\n"),
)
REDIS = "make", "-C", "src", f"-j{os.cpu_count()}", "OPTIMIZATION=-O2", "DEBUG=-g", "MALLOC=libc", "redis-server"


def test_counter_goes_into_the_struct_that_holds_all_of_redis(
    tmp_path: Path, record_property: Callable[..., None]
) -> None:
    """A bug would be a wrong answer, an error, a setting that is forgotten, or a server that is not itself any more."""
    need_packages("dpkg-dev", "patch", "make", "gcc")
    source = fetch("redis", tmp_path / "redis")
    now = {name: (source.folder / name).read_text() for name, _ in UNEXPECTED}
    for name, line in UNEXPECTED:
        text = (source.folder / name).read_text()
        assert text.count(line) == 1, f"redis has changed: {line}"
        (source.folder / name).write_text(text.replace(line, ""))
    build(source, REDIS)
    run(source, "katana-release", "before")
    started = shutil.copy2(source.folder / "src/redis-server", tmp_path / "redis-before")
    for name, text in now.items():
        (source.folder / name).write_text(text)
    said = build(source, REDIS)
    assert "1 variable carried over" in said, said
    (patch,) = json.loads(run(source, "katana", "patches", "--json"))
    decided = "--not-imported", "server", "--follow", "server"

    port = free_port()
    arguments = "--port", str(port), "--save", "", "--io-threads", "4", "--maxmemory-samples", "7"
    with server(source, started, *arguments, listens=port) as pid, load("redis", port) as finish:
        client = Client(port)
        assert client.ask("CONFIG", "SET", "maxmemory-samples", "9") == "OK"
        run(source, "katana", "apply", patch["path"], "--pid", str(pid), status=3)
        applied = run(source, "katana", "apply", patch["path"], "--pid", str(pid), *decided, "--wait", "30", "--json")
        assert "unexpected_error_replies:0" in str(client.ask("INFO", "stats"))
        assert client.ask("CONFIG", "GET", "maxmemory-samples") == ["maxmemory-samples", "9"]
        assert client.ask("CONFIG", "SET", "maxmemory-samples", "8") == "OK", "pointers into it are followed"
        run(source, "katana", "revert", "--pid", str(pid), "--wait", "30")
        assert "unexpected_error_replies" not in str(client.ask("INFO", "stats"))
        assert client.ask("CONFIG", "GET", "maxmemory-samples") == ["maxmemory-samples", "8"]
        client.close()
        tally = finish()
    assert tally["errors"] == []
    assert tally["wrong"] == 0
    (process,) = json.loads(applied)["processes"]
    record_property("redis", tally)
    print(said, process["threads"], process["pause_us"], tally)


# Each connection of memcached is one object on the heap, found in a table of pointers; libevent, which is not patched,
# keeps pointers into the middle of it.
CONNECTION = "struct conn"
COUNTED = {
    "memcached.h": ("struct conn {\n", "struct conn {\n    uint64_t answered;\n"),
    "memcached.c": ("static void reset_cmd_handler(conn *c) {\n", "\\g<0>    c->answered++;\n"),
}


def test_open_connections_gain_a_field(memcached: Source, record_property: Callable[..., None]) -> None:
    """A bug would be a connection that breaks, a wrong answer, or an event of libevent that comes no more."""
    sources = {name: memcached.folder / name for name in COUNTED}
    texts = {name: path.read_text() for name, path in sources.items()}
    make = ["make", f"-j{os.cpu_count()}", "memcached"]
    build(memcached, make)
    run(memcached, "katana-release", "before-answered")
    started = memcached.folder / "memcached-answered"
    started.write_bytes((memcached.folder / "memcached").read_bytes())
    started.chmod(0o755)
    try:
        for name, (old, new) in COUNTED.items():
            assert texts[name].count(old) == 1, f"memcached has changed: {name}"
            sources[name].write_text(texts[name].replace(old, new.replace("\\g<0>", old)))
        said = build(memcached, make)
    finally:
        for name, path in sources.items():
            path.write_text(texts[name])
    line = next(text for text in said.splitlines() if "(before-answered → " in text)
    assert f"objects of 1 type carried over, needs --only-reached '{CONNECTION}': " in line
    patch = line.rpartition(": ")[2]

    port = free_port()
    arguments = "-p", str(port), "-U", "0", "-l", "127.0.0.1", "-u", "root", "-t", "4", "-m", "64"
    granted = "--only-reached", CONNECTION, "--follow", CONNECTION
    with server(memcached, started.name, *arguments, listens=port) as pid, load("memcached", port) as finish:
        mine = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(40)]
        assert {answer(c, "version") for c in mine} == {answer(mine[0], "version")}
        run(memcached, "katana", "apply", patch, "--pid", str(pid), "--only-reached", CONNECTION, status=3)
        applied = json.loads(run(memcached, "katana", "apply", patch, "--pid", str(pid), *granted, "--json"))
        mine += [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(10)]
        for n, connection in enumerate(mine):
            assert answer(connection, f"set mine{n} 0 0 3\r\nabc") == "STORED"
        # What was counted since would be lost.
        run(memcached, "katana", "revert", "--pid", str(pid), status=3)
        back = ("--follow", CONNECTION, "--discard", CONNECTION, "--only-reached", CONNECTION)
        reverted = json.loads(run(memcached, "katana", "revert", "--pid", str(pid), *back, "--json"))
        for n, connection in enumerate(mine):
            assert answer(connection, f"incr none{n} 1") == "NOT_FOUND"
            connection.close()
        tally = finish()
    assert tally["errors"] == []
    assert tally["wrong"] == 0
    (entry,) = applied["processes"][0]["objects"]
    assert entry["type"] == CONNECTION
    assert entry["count"] > 40
    pauses = [p["processes"][0].get("pause_us") for p in (applied, reverted)]
    record_property("transcript", {"line": line, "load": tally, "connections": entry["count"], "pauses_us": pauses})
    print(line, tally, entry, pauses)


def answer(connection: socket.socket, command: str) -> str:
    """The line that memcached answers with."""
    connection.sendall(f"{command}\r\n".encode())
    received = b""
    while not received.endswith(b"\r\n"):
        received += connection.recv(4096)
    return received.decode().strip()
