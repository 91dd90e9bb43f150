"""Debian's security fixes of real servers, one after the other: each built as a user would, put into the running old
server under load, and taken out again; or refused, where it changes what the process holds already."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.projects.debian import Source, fetch, need_packages
from tests.projects.load import DNS_ANSWER, DNS_NAME
from tests.projects.resp import Client, ServerError
from tests.projects.running import build, free_port, load, run, server

pytestmark = pytest.mark.timeout(1500)

JOBS: Final = f"-j{os.cpu_count()}"

REDIS_FLAGS: Final = ("OPTIMIZATION=-O2", "DEBUG=-g", "MALLOC=libc", "BUILD_TLS=yes")

Ask = Callable[[int], str]
"""Asks the server at a port what the fix changes the answer to."""


@dataclass(frozen=True, slots=True)
class Fix:
    """One patch of a series: how its name begins, and what must come of it.

    `refused` holds words that its refusal must name; empty for a patch that goes in.  `grants` are the options that it
    needs.  `ask` is answered `old` before it and `new` after it.
    """

    name: str
    refused: tuple[str, ...] = ()
    grants: tuple[str, ...] = ()
    ask: Ask | None = None
    old: str = ""
    new: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """A server of Debian: what its build needs, how it is built and run, and its fixes in the series' order.

    `bundled` builds the libraries that come with the program, which its makefile does once only.  `environment` is
    that of the server.
    """

    package: str
    needs: tuple[str, ...]
    configure: tuple[tuple[str, ...], ...]
    make: tuple[str, ...]
    output: str
    arguments: Callable[[int, Path], tuple[str, ...]]
    load: str
    fixes: tuple[Fix, ...]
    bundled: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def acl(pattern: str) -> Ask:
    """What redis answers to a user whose key pattern is malformed."""

    def ask(port: int) -> str:
        with contextlib.closing(Client(port)) as client:
            try:
                return str(client.ask("ACL", "SETUSER", "somebody", pattern))
            except ServerError as error:
                return f"error: {error}"

    return ask


def error_page(port: int) -> str:
    """What tinyproxy says of a request that is none: the part after `url=` on its page."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"XXXX\r\n\r\n")
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert b"Bad Request" in answer
    return "junk" if b"\xff" in answer or not answer.isascii() else "clean"


def redis_arguments(port: int, _: Path) -> tuple[str, ...]:
    return "--port", str(port), "--save", "", "--io-threads", "4", "--enable-debug-command", "yes"


def memcached_arguments(port: int, _: Path) -> tuple[str, ...]:
    return "-p", str(port), "-U", "0", "-l", "127.0.0.1", "-u", "root", "-t", "4"


def dnsmasq_arguments(port: int, _: Path) -> tuple[str, ...]:
    address = ".".join(str(part) for part in DNS_ANSWER)
    return (
        "--keep-in-foreground", f"--port={port}", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root",
        "--listen-address=127.0.0.1", "--bind-interfaces", f"--address=/{DNS_NAME}/{address}", "--pid-file=",
    )  # fmt: skip


def tinyproxy_arguments(port: int, folder: Path) -> tuple[str, ...]:
    page = folder / "default.html"
    page.write_text("{cause} {url}\n")
    file = folder / "tinyproxy.conf"
    file.write_text(f'Port {port}\nListen 127.0.0.1\nMaxClients 100\nTimeout 60\nDefaultErrorFile "{page}"\n')
    return "-d", "-c", str(file)


PROGRAMS: Final = (
    Program(
        "redis",
        ("libssl-dev",),
        (),
        ("make", "-C", "src", JOBS, *REDIS_FLAGS, "redis-server"),
        "src/redis-server",
        redis_arguments,
        "redis",
        (
            Fix("0001-Apply-security-fixes", ask=acl("%~"), old="OK", new="error: "),
            Fix("0001-Fix-LUA-garbage-collector-CVE-2024-46981"),
            Fix("0002-Fix-Read-Write-key-pattern", ask=acl("%"), old="OK", new="error: "),
            Fix("0001-Limiting-output-buffer-for-unauthenticated-client"),
            Fix("0006-CVE-2025-32023"),
            Fix("0007-CVE-2025-48367"),
            Fix("CVE-2025-46817"),
            Fix("CVE-2025-46818", grants=("--not-imported=server", "--not-imported=static_configs", "--follow=server")),
            Fix("CVE-2025-49844"),
            Fix("CVE-2025-46819"),
            Fix("CVE-2025-67733"),
            Fix("CVE-2026-21863"),
            Fix("CVE-2026-23631"),
            Fix("CVE-2026-25243"),
            Fix("CVE-2026-66373"),
            Fix("CVE-2026-81934"),
            Fix("CVE-2026-92925"),
        ),
        ("make", "-C", "deps", JOBS, *REDIS_FLAGS, "hiredis", "linenoise", "lua", "hdr_histogram"),
    ),
    Program(
        "memcached",
        ("libevent-dev", "libsasl2-dev", "pkg-config"),
        (("./configure", "--enable-proxy", "--enable-sasl", "--enable-sasl-pwdb"),),
        ("make", JOBS),
        "memcached",
        memcached_arguments,
        "memcached",
        (
            Fix("0007-uninitialized-variables"),
            Fix("0008-CVE-2026-47783"),
            Fix("0009-CVE-2023-46852"),
            Fix("CVE-2023-46853", refused=("mcp_request_s", "mcp_parser_s")),
        ),
    ),
    Program(
        "dnsmasq",
        ("nettle-dev", "libgmp-dev", "pkg-config"),
        (),
        ("make", JOBS, "COPTS=-DHAVE_DNSSEC"),
        "src/dnsmasq",
        dnsmasq_arguments,
        "dns",
        (
            Fix("CVE-2026-2291", refused=("bigname",)),
            Fix("CVE-2026-4890"),
            Fix("CVE-2026-4891"),
            Fix("CVE-2026-4892"),
            Fix("CVE-2026-5172"),
        ),
    ),
    Program(
        "tinyproxy",
        (),
        (("./configure", "--disable-manpage_support"),),
        ("make", JOBS),
        "src/tinyproxy",
        tinyproxy_arguments,
        "proxy",
        (
            Fix("0001-prevent-junk", ask=error_page, old="junk", new="clean"),
            Fix("0002-CVE-2023-49606"),
        ),
        # What the first fix is about is memory as malloc gives it: here it always holds what is no text (mallopt(3)).
        environment={"MALLOC_PERTURB_": "1"},
    ),
)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.package)
def test_fixes_go_in_and_out_of_the_running_server(
    program: Program, tmp_path: Path, record_property: Callable[..., None]
) -> None:
    """A bug would be a fix refused or let through wrongly, a client error, the old answer, or a server that is ill."""
    need_packages("dpkg-dev", "patch", "make", "gcc", *program.needs)
    source = fetch(program.package, tmp_path / program.package)
    source.apply_until(program.fixes[0].name)
    build(source, *program.configure, program.make)
    carried = 0
    for fix in program.fixes:
        source.apply_until(fix.name)
        base(source, program)
        seen = refuse(source, program, fix) if fix.refused else carry(source, program, fix, tmp_path)
        carried += not fix.refused
        record_property(fix.name, seen)
        print(program.package, fix.name, seen)
    assert carried == sum(not fix.refused for fix in program.fixes)


def base(source: Source, program: Program) -> None:
    """The build before a fix, in a store of its own, deployed."""
    shutil.rmtree(source.folder / ".katana", ignore_errors=True)
    linked_anew(source, program)
    run(source, "katana-release", "v1")


def linked_anew(source: Source, program: Program) -> str:
    """Build what changed, bundled libraries too, and link; what we said."""
    (source.folder / program.output).unlink(missing_ok=True)
    return build(source, *([program.bundled] if program.bundled else []), program.make)


def made(source: Source, program: Program) -> dict[str, str]:
    """Apply the next patch of the series and build; the patch object that came of it for the program's output."""
    source.apply_next()
    said = linked_anew(source, program)
    assert f"{program.output} (v1 → " in said, said
    patches = json.loads(run(source, "katana", "patches", "--json"))
    return next(p for p in patches if p["output"] == program.output)


def refuse(source: Source, program: Program, fix: Fix) -> str:
    """The fix is refused when it is built, and says what of."""
    patch = made(source, program)
    assert patch["verdict"] == "refused", patch
    words = run(source, "katana", "explain", patch["path"])
    assert all(word in words for word in fix.refused), words
    return "refused"


def carry(source: Source, program: Program, fix: Fix, folder: Path) -> str:
    """The fix goes into an old server that is loaded, and out again.

    The old program is a copy, as on a machine where it is installed, and the load starts when the compiler is done.
    """
    old = shutil.copy2(source.folder / program.output, folder / "installed")
    patch = made(source, program)
    assert patch["verdict"] == ("needs" if fix.grants else "safe"), run(source, "katana", "explain", patch["path"])
    run(source, "katana", "check", patch["path"])
    port = free_port()
    running = server(source, old, *program.arguments(port, folder), listens=port, environment=program.environment)
    with running as pid, load(program.load, port) as finish:
        assert fix.ask is None or fix.ask(port).startswith(fix.old)
        applied = json.loads(run(source, "katana", "apply", patch["path"], "--pid", str(pid), "--json", *fix.grants))
        assert fix.ask is None or fix.ask(port).startswith(fix.new), "the fix is not visible from outside"
        assert patch["to"] in run(source, "katana", "status", "--pid", str(pid))
        run(source, "katana", "revert", "--pid", str(pid))
        assert fix.ask is None or fix.ask(port).startswith(fix.old), "reverted, the old behaviour is back"
        tally = finish()
    assert tally["errors"] == []
    assert tally["wrong"] == 0
    (process,) = applied["processes"]
    jumps = [edit["name"] for edit in process["edits"]]
    return f"{', '.join(jumps)}: {process['threads']} threads, {process['pause_us'] / 1000:.2f} ms; {json.dumps(tally)}"
