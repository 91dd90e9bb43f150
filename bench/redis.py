"""The real program: redis, from Debian's sources."""

from __future__ import annotations

import re
import shlex
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
