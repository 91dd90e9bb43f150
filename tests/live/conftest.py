"""Live tests stop and patch real processes: they need permission to trace."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator

import pytest

from tests.live.handmade import Built, build
from tests.live.programs import COUNTER
from tests.live.situations import FAILS, NOT_RUN, WORKS, record

PTRACE_SEIZE = 0x4206


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Log what came of a test that shows a situation."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        record(item, FAILS)
    elif report.skipped:
        record(item, NOT_RUN)
    elif report.when == "call":
        record(item, WORKS)


def _may_trace() -> bool:
    child = subprocess.Popen(["sleep", "60"])
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.ptrace(PTRACE_SEIZE, child.pid, 0, 0) == 0)
    finally:
        child.kill()
        child.wait()


@pytest.fixture(scope="session", autouse=True)
def permission() -> None:
    """Skip, visibly, where tracing is forbidden."""
    if not _may_trace():
        pytest.skip("ptrace is not permitted here")


@pytest.fixture(scope="session")
def counter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """The COUNTER program, and a build whose `answer` is ten times x plus a new static counter."""
    folder = tmp_path_factory.mktemp("counter")
    return build(folder / "old", "server", COUNTER), build(folder / "new", "server", TIMES_TEN)


TIMES_TEN = COUNTER.replace("/*ANSWER*/", "static int news; news++; calls++; return 10 * x + news;")
