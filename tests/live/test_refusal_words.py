"""Each refusal of a process names it, the obstacle and a remedy, and leaves it as it was: all in one form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.live.handmade import Built, build, patch_from
from tests.live.programs import COUNTER, SECCOMP
from tests.live.server import Server, code_of, mappings, serving, write_patch
from tests.live.situations import REFUSED, situation
from tests.live.test_refusals import traced

PROGRAM = "import sys; from katana_cc.cli.main import main; sys.exit(main())"
# As what katana runs: a user who is nobody, or under a seccomp filter that permits everything.
NOBODY = (
    "import os, sys; sys.path.insert(0, os.getcwd()); import katana_cc.cli.apply; from katana_cc.cli.main import main;"
    "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); sys.exit(main())"
)
FILTERED = (
    "import ctypes, struct, sys; libc = ctypes.CDLL(None, use_errno=True);"
    "code = ctypes.create_string_buffer(struct.pack('<HBBI', 6, 0, 0, 0x7fff0000));"
    "program = ctypes.create_string_buffer(struct.pack('<HxxxxxxQ', 1, ctypes.addressof(code)));"
    "libc.prctl(38, 1, 0, 0, 0); assert libc.prctl(22, 2, program) == 0;"
    "from katana_cc.cli.main import main; sys.exit(main())"
)


class Case:
    """One refusal: who is refused, by which katana, and what has to be said."""

    def __init__(self, folder: Path, counter: tuple[Built, Built], stack: ExitStack) -> None:
        self.folder, self.counter, self.stack = folder, counter, stack
        self.patch = patch_from(*counter, ("answer",))
        self.program = PROGRAM

    def start(self, program: Path | None = None, *words: str) -> Server:
        return self.stack.enter_context(serving(program or self.counter[0].output, *words))

    def built(self, source: str) -> Server:
        old = build(self.folder / "old", "server", source)
        new = build(self.folder / "new", "server", source.replace("/*ANSWER*/", "x *= 10;"))
        self.patch = patch_from(old, new, ("answer",))
        return self.start(old.output)


def other_build(case: Case) -> Server:
    return case.start(build(case.folder / "third", "server", COUNTER.replace("/*OTHER*/", "x *= 3;")).output)


def altered(case: Case) -> Server:
    server = case.start()
    with Path(f"/proc/{server.pid}/maps").open() as maps:
        start = int(next(maps).partition("-")[0], 16)
    with Path(f"/proc/{server.pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(start + case.patch.replacements[0].address)
        memory.write(b"\xcc")
    return server


def under_a_tracer(case: Case) -> Server:
    server = case.start()
    case.stack.enter_context(traced(server.pid))
    return server


def zombie(case: Case) -> Server:
    server = case.start()
    server.kill()
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    return server


def of_another_user(case: Case) -> Server:
    case.program = NOBODY
    return case.start()


def filtered_katana(case: Case) -> Server:
    case.program = FILTERED
    server = case.built(SECCOMP)
    assert server.ask("go") == "confined"
    return server


def without_descriptors(case: Case) -> Server:
    return case.built(
        COUNTER.replace("#define NOINLINE", "#include <sys/resource.h>\n#define NOINLINE").replace(
            'say("ready");', 'struct rlimit r = {3, 64}; if (setrlimit(RLIMIT_NOFILE, &r)) return 1; say("ready");'
        )
    )


@pytest.mark.parametrize(
    ("prepare", "status", "obstacle", "remedy"),
    [
        pytest.param(
            other_build, 3, "does not run", "katana patches", marks=situation(48, "another build: the words", REFUSED)
        ),
        pytest.param(altered, 3, "answer", "restart", marks=situation(48, "altered code: the words", REFUSED)),
        pytest.param(
            under_a_tracer, 5, "already traced by", "debugger",
            marks=situation(46, "already traced: the words", REFUSED),
        ),
        pytest.param(zombie, 5, "zombie", "parent", marks=situation(46, "a zombie: the words", REFUSED)),
        pytest.param(
            of_another_user, 5, "may not be", "CAP_SYS_PTRACE", marks=situation(46, "another user: the words", REFUSED)
        ),
        pytest.param(
            filtered_katana, 3, "seccomp", "SystemCallFilter=",
            marks=situation(46, "katana under seccomp itself: it may not suspend the target's filter", REFUSED),
        ),
        pytest.param(
            without_descriptors, 3, "Too many open files", "LimitNOFILE=",
            marks=situation(46, "no descriptor left: the words", REFUSED),
        ),
    ],
)  # fmt: skip
def test_refusal_names_process_obstacle_and_remedy(
    tmp_path: Path,
    counter: tuple[Built, Built],
    prepare: Callable[[Case], Server],
    status: int,
    obstacle: str,
    remedy: str,
) -> None:
    """A bug: a refusal that leaves an operator with "operation not permitted", or that has already done something."""
    if os.getuid() and prepare in (of_another_user, filtered_katana):
        pytest.skip("only root can become another user, or lose the right by a filter alone")
    with ExitStack() as stack:
        case = Case(tmp_path, counter, stack)
        server = prepare(case)
        patch = write_patch(tmp_path, case.patch)
        for folder in (tmp_path, *tmp_path.parents):
            if "pytest" in str(folder):
                folder.chmod(0o755)
        is_alive = prepare is not zombie
        code = code_of(server.pid) if is_alive else b""
        before = mappings(server.pid) if is_alive else []
        words = [sys.executable, "-c", case.program, "apply", str(patch), "--pid", str(server.pid), "--json"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        error = json.loads(done.stdout)["error"]
        assert f"pid {server.pid} (server)" in error["where"]
        assert obstacle in error["what"]
        assert remedy in error["remedy"]
        if is_alive:
            assert code_of(server.pid) == code
            assert mappings(server.pid) == before
