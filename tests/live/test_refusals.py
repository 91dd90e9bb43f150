"""What cannot be patched is refused with its own exit status, and the target is unharmed."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from katana_cc.patch.model import PatchObject, Reason, Verdict
from tests.live.handmade import Built, build, patch_from
from tests.live.programs import COUNTER
from tests.live.server import Server, code_of, katana, mappings, serving, write_patch
from tests.live.situations import REFUSED, situation


@pytest.fixture(scope="module")
def patch(counter: tuple[Built, Built]) -> PatchObject:
    """The patch of the COUNTER program."""
    return patch_from(*counter, ("answer",))


def _unharmed(server: Server, code: bytes) -> None:
    assert code_of(server.pid) == code
    assert mappings(server.pid) == []
    assert server.ask("a 5") == "6"


@situation(48, "another build", REFUSED)
def test_other_build_is_refused(tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject) -> None:
    """A bug: a patch lands in code it was not made for."""
    with serving(counter[1].output) as server:
        code = code_of(server.pid)
        done = katana("apply", write_patch(tmp_path, patch), "--pid", server.pid)
        assert done.returncode == 3
        assert patch.identity.from_build_id in done.stderr
        assert "runs the new build already" in done.stderr
        assert code_of(server.pid) == code


@situation(48, "one of several processes runs another build", REFUSED)
def test_one_foreign_process_among_several_refuses_all(
    tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject
) -> None:
    """A bug: the first is patched, the second refused."""
    with serving(counter[0].output) as server, serving("sh", "-c", "echo ready; cat") as foreign:
        code = code_of(server.pid)
        done = katana("apply", write_patch(tmp_path, patch), "--pid", server.pid, foreign.pid)
        assert done.returncode == 3
        _unharmed(server, code)


@situation(48, "a breakpoint in the function", REFUSED)
def test_altered_function_is_refused(tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject) -> None:
    """A bug: bytes that someone else wrote are overwritten."""
    with serving(counter[0].output) as server:
        start = next(
            int(line.split("-")[0], 16)
            for line in Path(f"/proc/{server.pid}/maps").read_text().splitlines()
            if str(counter[0].output) in line and " 00000000 " in line
        )
        address = start + patch.replacements[0].address + patch.replacements[0].size - 1
        with Path(f"/proc/{server.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(address)
            byte = memory.read(1)
            memory.seek(address)
            memory.write(b"\xcc")
            altered = code_of(server.pid)
            done = katana("apply", write_patch(tmp_path, patch), "--pid", server.pid)
            assert done.returncode == 3
            assert "answer" in done.stderr
            assert code_of(server.pid) == altered
            memory.seek(address)
            memory.write(byte)


@situation(48, "something else over our jump, at revert", REFUSED)
def test_altered_jump_refuses_revert(tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject) -> None:
    """A bug: revert overwrites what another tool put over our jump."""
    with serving(counter[0].output) as server:
        applied = katana("apply", write_patch(tmp_path, patch), "--pid", server.pid)
        assert applied.returncode == 0
        start = min(
            int(line.split("-")[0], 16)
            for line in Path(f"/proc/{server.pid}/maps").read_text().splitlines()
            if str(counter[0].output) in line
        )
        with Path(f"/proc/{server.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start + patch.replacements[0].address)
            memory.write(b"\xcc")
        assert katana("revert", "--pid", server.pid).returncode == 3


def test_gone_process(tmp_path: Path, patch: PatchObject) -> None:
    """A bug: a traceback, or status 3."""
    child = subprocess.Popen(["true"])
    child.wait()
    done = katana("apply", write_patch(tmp_path, patch), "--pid", child.pid)
    assert done.returncode == 5
    assert "no process" in done.stderr


@situation(46, "a zombie", REFUSED)
def test_zombie(tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject) -> None:
    """A bug: EPERM of a zombie is reported as a lack of permission."""
    with serving(counter[0].output) as server:
        server.kill()
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        done = katana("apply", write_patch(tmp_path, patch), "--pid", server.pid)
        assert done.returncode == 5
        assert "zombie" in done.stderr


def test_kernel_thread(tmp_path: Path, patch: PatchObject) -> None:
    """A bug: a traceback on a process without memory."""
    kthreadd = next((p for p in Path("/proc").glob("[0-9]*") if (p / "comm").read_text() == "kthreadd\n"), None)
    if kthreadd is None:
        pytest.skip("no kernel thread is visible in this PID namespace")
    assert katana("apply", write_patch(tmp_path, patch), "--pid", kthreadd.name).returncode in (3, 5)


def test_thread_id_is_refused_with_its_process(
    tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject
) -> None:
    """A bug: a thread is taken for a process."""
    with serving(counter[0].output, "1") as server:
        tid = next(t for t in os.listdir(f"/proc/{server.pid}/task") if t != str(server.pid))  # noqa: PTH208
        done = katana("apply", write_patch(tmp_path, patch), "--pid", tid)
        assert done.returncode == 3
        assert f"--pid {server.pid}" in done.stderr


@situation(46, "process of another user, without the right to trace it", REFUSED)
def test_process_of_another_user(tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject) -> None:
    """A bug: a traceback instead of EPERM in words."""
    if os.getuid():
        pytest.skip("only root can become another user")
    file = write_patch(tmp_path, patch)
    program = (
        "import os, sys; sys.path.insert(0, sys.argv.pop(1)); from katana_cc.cli.main import main;"
        "import katana_cc.cli.apply; os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534);"
        "sys.exit(main())"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder) not in ("/", "/tmp") and folder.stat().st_uid == 0 and "pytest" in str(folder):
            folder.chmod(0o755)
    with serving(counter[0].output) as server:
        words = [sys.executable, "-c", program, str(Path.cwd()), "apply", str(file), "--pid", str(server.pid)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 5, done.stderr
        assert "run katana as" in done.stderr


@contextmanager
def traced(pid: int) -> Iterator[int]:
    """Another process traces it; its pid."""
    tracer = (
        "import ctypes, sys; libc = ctypes.CDLL(None); r = libc.ptrace(0x4206, int(sys.argv[1]), 0, 0);"
        "print('tracing' if r == 0 else 'failed', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", tracer, str(pid)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "tracing\n"
        yield other.pid


@situation(46, "already traced: the tracer is named", REFUSED)
def test_traced_process_names_the_tracer(tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject) -> None:
    """A bug: "operation not permitted" and no hint at the debugger."""
    with serving(counter[0].output) as server:
        code = code_of(server.pid)
        with traced(server.pid) as tracer:
            done = katana("apply", write_patch(tmp_path, patch), "--pid", server.pid)
            assert done.returncode == 5
            assert f"pid {tracer}" in done.stderr
        _unharmed(server, code)


@pytest.mark.xdist_group("all processes")
def test_traced_process_that_carries_another_patch_is_no_business_of_a_revert_of_all(
    tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject
) -> None:
    """A bug: one process under a debugger, with a patch of its own, keeps all others from being reverted."""
    new = replace(patch.identity, to_build_id="ab" * 20)
    other = write_patch(tmp_path, replace(patch, identity=new), "other.kpo")
    with serving(counter[0].output) as server, serving(counter[0].output) as other_one:
        assert katana("apply", write_patch(tmp_path, patch), "--pid", server.pid).returncode == 0
        assert katana("apply", other, "--pid", other_one.pid).returncode == 0
        with traced(other_one.pid) as tracer:
            done = katana("revert", tmp_path / "patch.kpo", "--all")
            assert done.returncode == 0, done.stderr
            assert server.ask("a 1") == "2"
            done = katana("revert", other, "--all")
            assert done.returncode == 5
            assert f"pid {tracer}" in done.stderr
        assert other_one.ask("a 1") == "11"


@situation(49, "patch with a flipped bit", REFUSED)
def test_damaged_patch_object(tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject) -> None:
    """A bug: a flipped bit reaches a process."""
    file = write_patch(tmp_path, patch)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with serving(counter[0].output) as server:
        assert katana("apply", file, "--pid", server.pid).returncode == 7


@pytest.mark.parametrize("verdict", [Verdict.REFUSED, Verdict.NEEDS])
def test_verdict_that_is_not_safe_is_refused_with_its_reasons(
    tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject, verdict: Verdict
) -> None:
    """A bug: the verdict travels inside, and nobody looks."""
    reason = Reason("TYPE_CHANGED", str(verdict), "struct x", "x.c", 12, "it grew by 8 bytes")
    if verdict is Verdict.REFUSED:
        patch = PatchObject(patch.identity, verdict, (reason,))
    else:
        patch = dataclasses.replace(patch, verdict=verdict, reasons=(reason,))
    with serving(counter[0].output) as server:
        code = code_of(server.pid)
        done = katana("apply", write_patch(tmp_path, patch), "--pid", server.pid)
        assert done.returncode == 3
        assert "x.c:12" in done.stderr
        assert "it grew by 8 bytes" in done.stderr
        _unharmed(server, code)


@situation(47, "earlier patch whose variables have no names: it has to be reverted first", REFUSED)
def test_another_patch_whose_things_have_no_names_has_to_be_reverted_first(
    tmp_path: Path, counter: tuple[Built, Built], patch: PatchObject
) -> None:
    """A bug: a variable of the earlier patch begins anew, and nobody is told."""
    third = build(tmp_path / "third", "server", COUNTER.replace("/*ANSWER*/", "if (x > 100) return 0;"))
    later = patch_from(counter[0], third, ("answer",), releases=("v1", "v3"))
    with serving(counter[0].output) as server:
        assert katana("apply", write_patch(tmp_path, patch), "--pid", server.pid).returncode == 0
        done = katana("apply", write_patch(tmp_path, later, "later.kpo"), "--pid", server.pid)
        assert done.returncode == 3
        assert "it brought the variable" in done.stderr
        assert "take that patch out first (katana revert" in done.stderr
        assert server.ask("a 1") == "11"


def test_function_shorter_than_a_jump_is_refused(tmp_path: Path) -> None:
    """A bug: the neighbour's first bytes are overwritten."""
    short = COUNTER.replace("/*GLOBALS*/", "NOINLINE int tiny(void) { return 0; }")
    old = build(tmp_path / "old", "server", short, flags=("-O2", "-falign-functions=1"))
    new = build(tmp_path / "new", "server", short.replace("{ return 0; }", "{ return 77; }"))
    with serving(old.output) as server:
        done = katana("apply", write_patch(tmp_path, patch_from(old, new, ("tiny",))), "--pid", server.pid)
        assert done.returncode == 3
        assert "too short" in done.stderr


def test_thread_local_variable_in_the_patch_is_refused(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: a new thread-local variable lands in ordinary memory."""
    source = COUNTER.replace("/*GLOBALS*/", "static __thread int fresh = 3;").replace(
        "/*ANSWER*/", "fresh++; calls += fresh;"
    )
    new = build(tmp_path / "new", "server", source)
    po = patch_from(counter[0], new, ("answer",))
    with serving(counter[0].output) as server:
        code = code_of(server.pid)
        done = katana("apply", write_patch(tmp_path, po), "--pid", server.pid)
        assert done.returncode == 3
        assert "thread-local" in done.stderr
        _unharmed(server, code)


def test_32_bit_process_is_refused(tmp_path: Path, patch: PatchObject) -> None:
    """A bug: 64-bit code goes into a 32-bit process."""
    source = tmp_path / "small.s"
    # write(1, "ready\n", 6); then read(0, ...) for ever
    source.write_text(
        ".globl _start\n_start: mov $4,%eax; mov $1,%ebx; mov $text,%ecx; mov $6,%edx; int $0x80\n"
        '1: mov $3,%eax; mov $0,%ebx; mov $text,%ecx; mov $1,%edx; int $0x80; jmp 1b\n.data\ntext: .ascii "ready\\n"\n'
    )
    subprocess.run(["as", "--32", source, "-o", tmp_path / "small.o"], check=True)
    subprocess.run(["ld", "-m", "elf_i386", tmp_path / "small.o", "-o", tmp_path / "small"], check=True)
    try:
        server = Server([tmp_path / "small"])
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        pytest.skip("this kernel runs no 32-bit programs")
    try:
        done = katana("apply", write_patch(tmp_path, patch), "--pid", server.pid)
        assert done.returncode == 3
        assert "32-bit" in done.stderr
    finally:
        server.close()
