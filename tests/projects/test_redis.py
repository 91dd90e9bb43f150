"""redis from Debian's sources: built as a user would, a real security fix put into it under load, and taken out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import pytest

from tests.projects.debian import Source, fetch, need_packages
from tests.projects.resp import Client, ServerError
from tests.projects.running import build, free_port, load, run, server

MAKE = ("OPTIMIZATION=-O2", "DEBUG=-g", "MALLOC=libc", "BUILD_TLS=yes")

pytestmark = pytest.mark.timeout(600)


def make(source: Source) -> str:
    """`make` as redis' users do; returns what we printed to stderr."""
    return build(source, ["make", "-C", "src", f"-j{os.cpu_count()}", *MAKE, "redis-server"])


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """redis up to, but without, the fix of CVE-2024-51741, built and released as v1."""
    need_packages("libssl-dev", "dpkg-dev", "patch", "make", "gcc")
    source = fetch("redis", tmp_path_factory.mktemp("redis") / "redis")
    source.apply_until("0002-Fix-Read-Write-key-pattern-selector")
    assert make(source) == "", "nothing is deployed yet: the wrappers have nothing to say"
    assert "src/redis-server" in run(source, "katana-release", "v1")
    return source


def accepts_empty_selector(client: Client, user: str) -> bool:
    """CVE-2024-51741: `%` without a permission and a pattern was taken for a key pattern."""
    try:
        return client.ask("ACL", "SETUSER", user, "%") == "OK"
    except ServerError as error:
        assert "Error in ACL SETUSER" in str(error)
        return False


def requests_go_on(client: Client, more: int = 2000) -> None:
    """Wait until the server has served `more` further commands."""

    def served() -> int:
        info = str(client.ask("INFO", "stats"))
        return int(info.split("total_commands_processed:")[1].split()[0])

    goal = served() + more
    deadline = time.monotonic() + 60
    while served() < goal:
        assert time.monotonic() < deadline, "the load does not get through any more"


def test_fix_goes_into_a_loaded_server_and_out_again(redis: Source, record_property: Callable[..., None]) -> None:
    """A bug would be a client error, a lost request, the old answer, or a server that is not itself afterwards."""
    port = free_port()
    command = "src/redis-server", "--port", str(port), "--save", "", "--io-threads", "4"
    with server(redis, *command, listens=port) as pid, load("redis", port) as finish:
        client = Client(port)
        assert accepts_empty_selector(client, "k1"), "the old server has the bug"

        redis.apply_next()
        said = make(redis)
        assert "src/redis-server (v1 → " in said
        assert ", safe: " in said
        assert len(said.splitlines()) == 1, said
        patches = json.loads(run(redis, "katana", "patches", "--json"))
        assert [p["verdict"] for p in patches] == ["safe"]
        patch = patches[0]["path"]
        run(redis, "katana", "check", patch)

        requests_go_on(client)
        dry = run(redis, "katana", "apply", patch, "--pid", str(pid), "--dry-run")
        assert accepts_empty_selector(client, "k2"), "--dry-run changes nothing"
        applied = json.loads(run(redis, "katana", "apply", patch, "--pid", str(pid), "--json"))
        assert not accepts_empty_selector(client, "k3"), "the fix is not visible from outside"
        requests_go_on(client)
        assert patches[0]["to"] in run(redis, "katana", "status", "--pid", str(pid))
        again = run(redis, "katana", "apply", patch, "--pid", str(pid))
        assert "already" in again

        reverted = json.loads(run(redis, "katana", "revert", "--pid", str(pid), "--json"))
        assert accepts_empty_selector(client, "k4"), "reverted, the old behaviour is back"
        requests_go_on(client)
        client.close()
        tally = finish()
    assert tally["errors"] == []
    assert tally["wrong"] == 0
    for key, value in {"dry-run": dry, "apply": applied, "revert": reverted, "load": tally, "line": said}.items():
        record_property(key, value)
        print(key, value)


def test_a_rebuild_without_change_says_nothing(redis: Source) -> None:
    """An object compiled again to the same code must not make a patch or a line of output."""
    before = run(redis, "katana", "patches")
    (redis.folder / "src/acl.o").unlink()
    make(redis)
    assert run(redis, "katana", "patches") == before
