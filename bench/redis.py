"""The real program: redis, fetched with apt-get from Debian's sources, the system's configuration untouched."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.measure import MeasureError
from bench.workload import Workload

if TYPE_CHECKING:
    from bench.setting import Setting

_FLAGS: Final = ("OPTIMIZATION=-O2", "DEBUG=-g", "MALLOC=libc")
_TARGETS: Final = ("redis-server", "redis-cli", "redis-benchmark")
_EDIT: Final = (
    "server.c",
    "void echoCommand(client *c) {",
    "void echoCommand(client *c) { if (c->argc == {n}) return;",
)


class Unavailable(Exception):
    """Redis cannot be had here; the message says why."""


def fetch(folder: Path) -> Path:
    """Fetch and unpack redis' source; returns its folder, without Debian's own patches.

    Raises:
        Unavailable: no apt-get, no network, no dpkg-source, or no such source.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-source"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    options = _own_lists(folder)
    _run(["apt-get", *options, "update", "-qq"], folder)
    candidates = ["redis"]
    listed = subprocess.run(
        ["apt-cache", *options, "showsrc", "redis"], cwd=folder, capture_output=True, text=True, check=False
    )
    # A mirror may list a version whose files it does not have; older ones may still be there.
    candidates += [f"redis={version}" for version in re.findall(r"^Version: (\S+)", listed.stdout, re.MULTILINE)]
    for candidate in candidates:
        try:
            _run(["apt-get", *options, "source", "--download-only", "-qq", candidate], folder)
        except Unavailable as error:
            reason = error
            continue
        descriptions = sorted(folder.glob("redis_*.dsc"))
        if descriptions:
            source = folder / "source"
            _run(["dpkg-source", "--no-check", "-x", "--skip-patches", descriptions[-1].name, str(source)], folder)
            return source
        reason = Unavailable(f"apt-get fetched no source for {candidate}")
    raise reason


def _own_lists(folder: Path) -> list[str]:
    """Lists and sources of our own for apt-get: those of the system, as deb-src."""
    parts, lists = folder / "apt" / "parts", folder / "apt" / "lists"
    (lists / "partial").mkdir(parents=True)
    parts.mkdir(parents=True)
    found = False
    for file in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        (parts / file.name).write_text(re.sub(r"^Types: .*$", "Types: deb-src", file.read_text(), flags=re.MULTILINE))
        found = True
    for file in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.list"))]:
        if file.is_file():
            (parts / file.name).with_suffix(".list").write_text(
                re.sub(r"^deb\s", "deb-src ", file.read_text(), flags=re.MULTILINE)
            )
            found = True
    if not found:
        raise Unavailable("apt-get has no sources here")
    return [
        "-oDir::Etc::SourceList=/dev/null", f"-oDir::Etc::SourceParts={parts}", f"-oDir::State::Lists={lists}",
        "-oAcquire::Retries=1", "-oAcquire::http::Timeout=20", "-oAPT::Sandbox::User=root",
    ]  # fmt: skip


def _run(command: list[str], cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=180)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(command[:1])} took longer than three minutes") from error
    if done.returncode:
        raise Unavailable(f"{command[0]}: {done.stderr.strip()[-300:]}")


def workload(setting: Setting, source: Path) -> Workload:
    """How to build, link and change the redis in `source`.

    Raises:
        MeasureError: its makefile does not say how redis-server is linked.
    """
    tls = _has_openssl(setting)
    flags = (*_FLAGS, f"BUILD_TLS={'yes' if tls else 'no'}")
    place = source / "src"
    # The real compiler, since the makefile asks it which C standard it knows.
    shown = subprocess.run(
        ["make", "-n", "V=1", *flags, f"CC={setting.compiler}", *_TARGETS],
        cwd=place, capture_output=True, text=True, check=False, env=setting.environment(),
    ).stdout  # fmt: skip
    lines = [shlex.split(line) for line in shown.splitlines() if line.startswith(f"{setting.compiler} ")]
    links = [words[1:] for words in lines if words[-1:] and "redis-server" in words and "-o" in words]
    compiles = [words[1:] for words in lines if "-c" in words and "server.o" in words]
    if not links or not compiles:
        raise MeasureError("redis' makefile does not show how it compiles and links", where=str(place))
    return Workload(
        name="redis",
        folder=source,
        place="src",
        make=(*flags, *_TARGETS),
        output="redis-server",
        compile=tuple(compiles[-1]),
        link=tuple(links[-1]),
        edit=_EDIT,
        objects=sum(word.endswith(".o") for word in links[-1]),
        note=f"redis {_version(place)}, {'with' if tls else 'without'} TLS",
    )


def _version(place: Path) -> str:
    found = re.search(r'REDIS_VERSION "([^"]+)"', (place / "version.h").read_text())
    return found.group(1) if found else "of unknown version"


def _has_openssl(setting: Setting) -> bool:
    program = "#include <openssl/ssl.h>\nint main(void) { return SSL_new(0) != 0; }\n"
    out = setting.scratch / "has-openssl"
    command = [setting.compiler, "-x", "c", "-", "-o", str(out), "-lssl", "-lcrypto"]
    return subprocess.run(command, input=program, text=True, capture_output=True, check=False).returncode == 0
