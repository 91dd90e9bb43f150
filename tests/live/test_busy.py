"""No thread is inside a function when it is replaced or given back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.handmade import Built, build, patch_from
from tests.live.programs import INSIDE
from tests.live.server import code_of, katana, katana_json, mappings, serving, write_patch
from tests.live.situations import REFUSED, situation

NEW = INSIDE.replace("/*ANSWER*/", "static int news; news++; return 10 * x + news;")


@pytest.fixture(scope="module", params=["-O0", "-O2"])
def inside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """The INSIDE program and its new build."""
    folder = tmp_path_factory.mktemp("inside")
    flags = (str(request.param),)
    return build(folder / "old", "server", INSIDE, flags=flags), build(folder / "new", "server", NEW, flags=flags)


@situation(41, "a thread that stays inside: thread, function and frame are named", REFUSED)
def test_thread_inside_is_named_and_nothing_touched(tmp_path: Path, inside: tuple[Built, Built]) -> None:
    """A bug: the function is replaced under the thread, or the mapping is left behind."""
    patch = write_patch(tmp_path, patch_from(*inside, ("answer",)))
    with serving(inside[0].output) as server:
        assert server.ask("i") == "inside"
        before = code_of(server.pid)
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0.2")
        assert done.returncode == 4, done.stderr
        assert "is in answer: frame" in done.stderr
        assert "(server)" in done.stderr
        assert "or let it be active: --allow-active answer" in done.stderr
        assert code_of(server.pid) == before
        assert mappings(server.pid) == []
        server.tell("l")
        assert server.line() == "left -4"


def test_frame_address_is_that_of_gdb(tmp_path: Path, inside: tuple[Built, Built]) -> None:
    """A bug: the unwinder stops at another frame of the function, or finds it by luck."""
    patch = write_patch(tmp_path, patch_from(*inside, ("answer",)))
    with serving(inside[0].output) as server:
        server.ask("i")
        words = ["gdb", "-p", str(server.pid), "-batch", "-nx", "-ex", "set debuginfod enabled off", "-ex"]
        trace = subprocess.run([*words, "thread apply all bt"], capture_output=True, text=True, check=False).stdout
        address = next(int(line.split()[1], 16) for line in trace.splitlines() if " answer (" in line)
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0")
        assert f", {address:#x}\n" in done.stderr


@situation(41, "a thread that leaves is waited for")
def test_apply_waits_for_the_thread_to_leave(tmp_path: Path, inside: tuple[Built, Built]) -> None:
    """A bug: it gives up at the first try."""
    patch = write_patch(tmp_path, patch_from(*inside, ("answer",)))
    program = "import sys; from katana_cc.cli.main import main; sys.exit(main())"
    with serving(inside[0].output) as server:
        server.ask("i")
        words = [sys.executable, "-c", program, "apply", str(patch), "--pid", str(server.pid), "--wait", "60"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
            while not mappings(server.pid):  # the mapping comes before the first try
                assert waiting.poll() is None
            server.tell("l")
            assert server.line() == "left -4", "the call in progress must end in the old code"
            said = waiting.communicate()[0]
            assert waiting.returncode == 0, said
        assert server.ask("a 3") == "31"


@situation(41, "allowed by name")
def test_function_may_be_active_when_allowed_by_name(tmp_path: Path, inside: tuple[Built, Built]) -> None:
    """A bug: the thread inside crashes, or its call is not the old one to its end."""
    patch = write_patch(tmp_path, patch_from(*inside, ("answer",)))
    with serving(inside[0].output) as server:
        server.ask("i")
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0", "--allow-active", "answer")
        assert done.returncode == 0, done.stderr
        assert server.ask("a 3") == "31"
        server.tell("l")
        assert server.line() == "left -4"


def test_allowing_a_function_the_patch_does_not_replace_is_refused(tmp_path: Path, inside: tuple[Built, Built]) -> None:
    """A bug: a misspelt name is silently no permission."""
    patch = write_patch(tmp_path, patch_from(*inside, ("answer",)))
    with serving(inside[0].output) as server:
        done = katana("apply", patch, "--pid", server.pid, "--allow-active", "anwser")
        assert done.returncode == 3
        assert "anwser" in done.stderr


def test_revert_waits_for_threads_in_new_code(tmp_path: Path, inside: tuple[Built, Built]) -> None:
    """A bug: the unwinder cannot cross new code, so that a thread in it is not seen."""
    patch = write_patch(tmp_path, patch_from(*inside, ("answer",)))
    with serving(inside[0].output) as server:
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("i") == "inside"
        patched = code_of(server.pid)
        done = katana("revert", "--pid", server.pid, "--wait", "0.2")
        assert done.returncode == 4
        assert "is in answer: frame" in done.stderr, "not unwound through new code"
        assert "--allow-active" not in done.stderr, "revert has no such option"
        assert code_of(server.pid) == patched
        server.tell("l")
        assert server.line() == "left -49"
        assert katana_json("revert", "--pid", server.pid)["processes"][0]["outcome"] == "reverted"
        assert server.ask("a 3") == "4"
