"""Processes in unusual surroundings: patched, or refused at once with the reason, and unharmed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from katana_cc.cpu.native import system
from katana_cc.process import borrowing, ptrace_binding
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.target import Target
from tests.live.conftest import TIMES_TEN
from tests.live.handmade import Built, build, patch_from, run
from tests.live.programs import COUNTER, HEAD, INSIDE
from tests.live.server import NotReadyError, Server, code_of, katana, katana_json, mappings, serving, write_patch
from tests.live.situations import REFUSED, situation

PROGRAM = "import sys; from katana_cc.cli.main import main; sys.exit(main())"
NEW = "static int news; news++; return 10 * x + news;"
MUSL = "/usr/lib/x86_64-linux-musl/musl-gcc.specs"

# What a process does to itself before it says "ready".
SETUPS = {
    "chroot": 'if (chroot("/proc/self/fdinfo") || chdir("/")) return 1;',
    "no_new_privs": "if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return 1;",
    "mdwe": 'if (prctl(65, 1, 0, 0, 0)) { puts("none"); return 0; }',  # PR_SET_MDWE, Linux 6.3
    # What systemd makes of MemoryDenyWriteExecute=yes.
    "mdwe_seccomp": r"""
      struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 9, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 6),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 6, 4, 5),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 10, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 329, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 4, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
      struct sock_fprog program = {11, code};
      prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
      if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 1;
      if (mmap(0, 4096, 6, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) return 2;
    """,
    "other_user": "if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534)) return 1;",
    "not_dumpable": "if (prctl(PR_SET_DUMPABLE, 0)) return 1;",
    "namespaces": 'if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET)) { puts("none"); return 0; }',
    "file_size": "struct rlimit r = {0, 0}; if (setrlimit(RLIMIT_FSIZE, &r)) return 1;",
}
INCLUDES = (
    "#define _GNU_SOURCE\n#include <linux/filter.h>\n#include <linux/seccomp.h>\n#include <sched.h>\n"
    "#include <stddef.h>\n#include <sys/mman.h>\n#include <sys/resource.h>\n"
)


def with_setup(source: str, setup: str) -> str:
    if not setup:
        return source
    return INCLUDES + source.replace("#define _GNU_SOURCE\n", "").replace(
        '  say("ready");', f'  {setup}\n  say("ready");'
    )


def pair(folder: Path, setup: str = "", **how: tuple[str, ...]) -> tuple[Built, Path]:
    """The COUNTER program with a setup, and a patch of its `answer`."""
    old = build(folder / "old", "server", with_setup(COUNTER, setup), **how)  # type: ignore[arg-type]
    new = build(folder / "new", "server", with_setup(TIMES_TEN, setup), **how)  # type: ignore[arg-type]
    return old, write_patch(folder, patch_from(old, new, ("answer",)))


def patched_and_back(server: Server, patch: Path) -> None:
    """Apply and revert, with the right answers and the same code at the end."""
    code = code_of(server.pid)
    done = katana("apply", patch, "--pid", server.pid)
    assert done.returncode == 0, done.stderr
    assert server.ask("a 5") == "51"
    assert katana("revert", "--pid", server.pid).returncode == 0
    assert server.ask("a 5") == "6"
    assert code_of(server.pid) == code


def remedied(server: Server, patch: Path, said: str) -> None:
    """The command that a refusal names makes room, and the patch goes in."""
    (command,) = re.findall("`(prlimit [^`]*)`", said)
    subprocess.run(command, shell=True, check=True)
    patched_and_back(server, patch)


def unharmed(server: Server, code: bytes) -> None:
    assert code_of(server.pid) == code
    assert mappings(server.pid) == []
    assert server.ask("a 5") == "6"


@pytest.mark.parametrize(
    "setup",
    [
        pytest.param("chroot", marks=situation(46, "a process in a chroot without any file of its own"), id="chroot"),
        pytest.param("no_new_privs", marks=situation(46, "no_new_privs"), id="no_new_privs"),
        pytest.param("mdwe", marks=situation(46, "memory-deny-write-execute by prctl (PR_SET_MDWE)"), id="mdwe"),
        pytest.param(
            "mdwe_seccomp",
            marks=situation(46, "MemoryDenyWriteExecute= of systemd (a seccomp filter)"),
            id="mdwe_seccomp",
        ),
        pytest.param("other_user", marks=situation(46, "process of another user, patched by root"), id="other_user"),
        pytest.param(
            "not_dumpable", marks=situation(46, "process that is not dumpable, patched by root"), id="not_dumpable"
        ),
        pytest.param(
            "namespaces",
            marks=situation(46, "process in user, mount, PID and network namespaces of its own"),
            id="namespaces",
        ),
        pytest.param(
            "file_size", marks=situation(46, "process that may write no files (RLIMIT_FSIZE)"), id="file_size"
        ),
    ],
)
def test_confined_process_is_patched(tmp_path: Path, setup: str) -> None:
    """A bug: a path of the target's is used, or a right that it has not."""
    if os.getuid():
        pytest.skip("only root may confine itself like that, and patch such a process")
    old, patch = pair(tmp_path, SETUPS[setup])
    try:
        server = Server([old.output])
    except NotReadyError as error:
        if error.said != "none":
            raise
        pytest.skip("this kernel has no such confinement")
    try:
        patched_and_back(server, patch)
    finally:
        server.close()


@situation(49, "target without memory left (RLIMIT_AS)", REFUSED)
def test_process_without_address_space_is_refused(tmp_path: Path) -> None:
    """A bug: half a mapping is left, or a traceback."""
    setup = (
        'char text[200]; FILE *f = fopen("/proc/self/statm", "r"); fgets(text, 200, f); fclose(f); printf("%s", "");'
        "struct rlimit r = {atol(text) * 4096, RLIM_INFINITY}; if (setrlimit(RLIMIT_AS, &r)) return 1;"
    )
    old, patch = pair(tmp_path, setup)
    with serving(old.output) as server:
        code = code_of(server.pid)
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 3, done.stderr
        assert f"pid {server.pid}" in done.stderr
        assert "mmap in the target failed: Cannot allocate memory" in done.stderr
        assert "ulimit -v" in done.stderr
        unharmed(server, code)
        remedied(server, patch, done.stderr)


@situation(49, "target without a file descriptor left (RLIMIT_NOFILE)", REFUSED)
def test_process_without_descriptors_is_refused(tmp_path: Path) -> None:
    """A bug: a traceback, or a descriptor of the program's is closed."""
    setup = "struct rlimit r = {3, 64}; if (setrlimit(RLIMIT_NOFILE, &r)) return 1;"
    old, patch = pair(tmp_path, setup)
    with serving(old.output) as server:
        code = code_of(server.pid)
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 3, done.stderr
        assert "no file descriptor left (ulimit -n, LimitNOFILE=)" in done.stderr
        unharmed(server, code)
        remedied(server, patch, done.stderr)


@situation(49, "katana may write no files (full disk, RLIMIT_FSIZE)", REFUSED)
def test_katana_that_may_not_write_says_so(tmp_path: Path) -> None:
    """A bug: a traceback, and the mapping is left in the process."""
    old, patch = pair(tmp_path)
    with serving(old.output) as server:
        code = code_of(server.pid)
        words = [sys.executable, "-c", PROGRAM, "apply", str(patch), "--pid", str(server.pid)]
        done = subprocess.run(["prlimit", "--fsize=0", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        assert "File too large" in done.stderr
        unharmed(server, code)


@situation(49, "full disk where `katana status --symfs` writes", REFUSED)
def test_full_disk_is_told(tmp_path: Path) -> None:
    """A bug: a traceback, or half a folder without a word."""
    if not Path("/dev/full").exists() or os.getuid():
        pytest.skip("only root can make a small file system")
    full = tmp_path / "full"
    full.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(full)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    old, patch = pair(tmp_path)
    try:
        (full / "filler").write_bytes(bytes(4096))
        with serving(old.output) as server:
            assert katana("apply", patch, "--pid", server.pid).returncode == 0
            done = katana("status", "--pid", server.pid, "--symfs", full / "symfs")
            assert done.returncode != 0
            assert "Traceback" not in done.stderr
            assert "No space left on device" in done.stderr
            assert server.ask("a 5") == "51"
    finally:
        run("umount", full)


@situation(49, "patch truncated, at any length", REFUSED)
def test_truncated_patch_is_invalid(tmp_path: Path) -> None:
    """A bug: a download that broke off reaches a process."""
    old, patch = pair(tmp_path)
    data = patch.read_bytes()
    with serving(old.output) as server:
        code = code_of(server.pid)
        for size in (0, 3, 63, 64, len(data) // 2, len(data) - 1):
            patch.write_bytes(data[:size])
            done = katana("apply", patch, "--pid", server.pid)
            assert done.returncode == 7, (size, done.stderr)
        unharmed(server, code)


@situation(45, "musl, dynamic")
def test_program_of_musl_is_patched(tmp_path: Path) -> None:
    """A bug: what only glibc has is relied on."""
    if not Path(MUSL).exists():
        pytest.skip("musl-gcc is not installed")
    old, patch = pair(tmp_path, flags=("-O2", f"-specs={MUSL}"), link=(f"-specs={MUSL}",))
    with serving(old.output, "3") as server:
        assert "musl" in Path(f"/proc/{server.pid}/maps").read_text()
        patched_and_back(server, patch)


@situation(45, "musl, static")
def test_static_program_of_musl_is_patched(tmp_path: Path) -> None:
    """A bug: what only glibc has is relied on."""
    if not Path(MUSL).exists():
        pytest.skip("musl-gcc is not installed")
    old, patch = pair(
        tmp_path, flags=("-O2", "-fno-pie", f"-specs={MUSL}"), link=(f"-specs={MUSL}", "-static", "-no-pie")
    )
    with serving(old.output, "3") as server:
        patched_and_back(server, patch)


LIBRARY = (
    "static volatile int seen; int calls;\n"
    "__attribute__((noinline)) int answer(int x) { seen += x; /*ANSWER*/ calls++; return x + 1; }\n"
)
HOST = (
    HEAD
    + r"""
#include <dlfcn.h>
int main(int argc, char **argv) {
  int (*answer[2])(int);
  void *h = 0;
  for (int i = 0; i < argc - 2; i++) {
    h = argv[1][0] == 'm' ? dlmopen(i ? LM_ID_NEWLM : LM_ID_BASE, argv[2 + i], RTLD_NOW)
                                : dlopen(argv[2 + i], RTLD_NOW);
    if (!h) { puts(dlerror()); return 1; }
    answer[i] = (int (*)(int))dlsym(h, "answer");
  }
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'a') printf("%d\n", answer[0](atoi(line + 2)));
    if (line[0] == 'b') printf("%d\n", answer[1](atoi(line + 2)));
    if (line[0] == 'u') printf("unloaded %d\n", dlclose(h));
    if (line[0] == 'l') {
      h = dlopen(argv[2], RTLD_NOW); answer[0] = (int (*)(int))dlsym(h, "answer"); printf("loaded\n");
    }
    fflush(stdout);
  }
  return 0;
}
"""
)


def library_and_host(folder: Path, *link: str) -> tuple[Path, Path, Path]:
    """A shared library, a program that loads it, and a patch of the library's `answer`."""
    how = {"flags": ("-O2", "-fPIC"), "link": ("-shared", *link)}
    old = build(folder / "old", "lib.so", LIBRARY, **how)  # type: ignore[arg-type]
    new = build(folder / "new", "lib.so", LIBRARY.replace("/*ANSWER*/", NEW), **how)  # type: ignore[arg-type]
    host = build(folder / "host", "host", HOST)
    return old.output, host.output, write_patch(folder, patch_from(old, new, ("answer",)))


@situation(44, "a library loaded with dlopen, in several processes (--all)")
def test_loaded_library_is_patched_in_all_its_users(tmp_path: Path) -> None:
    """A bug: only what was linked is looked for, or only the first process."""
    library, host, patch = library_and_host(tmp_path)
    with serving(host, "d", library) as one, serving(host, "d", library) as two:
        report = katana_json("apply", patch, "--all")
        assert {p["pid"] for p in report["processes"]} == {one.pid, two.pid}
        assert [one.ask("a 5"), two.ask("a 5")] == ["51", "51"]
        assert katana("revert", "--pid", one.pid, two.pid).returncode == 0
        assert [one.ask("a 5"), two.ask("a 5")] == ["6", "6"]


@situation(44, "a library that is linked for an address of its own (as prelink does)")
def test_prelinked_library_is_patched(tmp_path: Path) -> None:
    """A bug: addresses of the file are taken for distances from where it is mapped."""
    library, host, patch = library_and_host(tmp_path, "-Wl,-Ttext-segment=0x31000000")
    with serving(host, "d", library) as server:
        starts = [line for line in Path(f"/proc/{server.pid}/maps").read_text().splitlines() if "lib.so" in line]
        assert starts[0].startswith("31000000-"), "it is not where it was linked for: the test shows nothing"
        patched_and_back(server, patch)


@pytest.mark.xdist_group("all processes")
@situation(44, "users of a library in other mount namespaces, under a path that only they have (--all)")
def test_library_in_another_mount_namespace_is_patched_in_all_its_users(tmp_path: Path) -> None:
    """A bug: a path of the target's is opened here, or one that is not here is passed over."""
    library, host, patch = library_and_host(tmp_path)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    mount = f"mount -t tmpfs none {folder} && cp {library} {folder} && exec {host} d {folder}/lib.so"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel has no such confinement")
    with serving("unshare", "--mount", "sh", "-c", mount) as there, serving(host, "d", library) as here:
        assert not list(folder.iterdir())
        report = katana_json("apply", patch, "--all")
        assert {p["pid"] for p in report["processes"]} == {there.pid, here.pid}
        assert [there.ask("a 5"), here.ask("a 5")] == ["51", "51"]
        assert katana("revert", patch, "--all").returncode == 0
        assert [there.ask("a 5"), here.ask("a 5")] == ["6", "6"]


@situation(44, "a library that is unloaded with its patch, and loaded again")
def test_library_that_is_loaded_again_is_patched_again(tmp_path: Path) -> None:
    """A bug: a patch of what is gone stands for one of what came after it."""
    library, host, patch = library_and_host(tmp_path)
    with serving(host, "d", library) as server:
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("a 5") == "51"
        assert server.ask("u") == "unloaded 0"
        (process,) = katana_json("status", "--pid", server.pid)["processes"]
        assert [p["state"] for p in process["patches"]] == ["unloaded"]
        assert server.ask("l") == "loaded"
        assert server.ask("a 5") == "6"
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert server.ask("a 5") == "51"
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("a 5") == "6"


@situation(44, "a library loaded twice, in namespaces (dlmopen)", REFUSED)
def test_library_loaded_twice_is_refused(tmp_path: Path) -> None:
    """A bug: one of the two is patched, and nobody knows which."""
    library, host, patch = library_and_host(tmp_path)
    with serving(host, "m", library, library) as server:
        code = code_of(server.pid)
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 3
        assert f"pid {server.pid} (host): {library} is loaded 2 times (dlmopen)" in done.stderr
        assert "restart the process" in done.stderr
        unharmed(server, code)
        assert server.ask("b 5") == "6"


@situation(46, "leader that has ended while other threads go on", REFUSED)
def test_process_without_its_first_thread_is_refused(tmp_path: Path) -> None:
    """A bug: it is taken for dead, or for a kernel thread."""
    body = COUNTER.replace("int main(int argc, char **argv) {", "static int serve(int argc, char **argv) {")
    source = body + (
        "static char **words; static void *second(void *p) {\n"
        '  char state[200] = ""; while (!strstr(state, "zombie")) {\n'
        '    FILE *f = fopen("/proc/self/status", "r"); while (fgets(state, 200, f) && strncmp(state, "State", 5)) {}\n'
        "    fclose(f); }\n"
        "  exit(serve(1, words)); return p; }\n"
        "int main(int argc, char **argv) { pthread_t t; words = argv; pthread_create(&t, 0, second, 0);\n"
        "  pthread_exit(argc > 99 ? argv : 0); }\n"
    )
    old = build(tmp_path / "old", "server", source)
    new = build(tmp_path / "new", "server", source.replace("/*ANSWER*/", NEW))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output) as server:
        assert "zombie" in Path(f"/proc/{server.pid}/status").read_text()
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 3
        assert "its first thread has ended, and others go on" in done.stderr
        assert "restart the process" in done.stderr
        assert server.ask("a 5") == "6"


@situation(46, "thread that waits for its child in vfork", REFUSED)
def test_vfork_parent_is_busy_until_the_child_goes(tmp_path: Path) -> None:
    """A bug: katana hangs, or patches while the child runs in the same memory."""
    source = COUNTER.replace(
        "static void *idle",
        "static int gate[2]; static void *forking(void *p) { char byte;\n"
        "  if (!vfork()) { while (read(gate[0], &byte, 1) < 0) {} _exit(0); }\n"
        '  say("over"); return p; }\nstatic void *idle',
    ).replace(
        "case 'm'",
        "case 'v': pipe(gate); pthread_create(&t, 0, forking, 0); printf(\"forked\\n\"); break;\n"
        "    case 'x': write(gate[1], \"x\", 1); break;\n    case 'm'",
    )
    old = build(tmp_path / "old", "server", source)
    new = build(tmp_path / "new", "server", source.replace("/*ANSWER*/", NEW))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output, "8") as server:
        waiting = _in_epoll_wait(server.pid, 8)
        assert server.ask("v") == "forked"
        while not _children(server.pid):
            pass
        code = code_of(server.pid)
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0")
        assert done.returncode == 4, done.stderr
        assert "does not stop" in done.stderr
        assert "vfork" in done.stderr
        assert code_of(server.pid) == code
        assert server.ask("a 5") == "6"
        assert _in_epoll_wait(server.pid, 8) == waiting, "EINTR came out of epoll_wait, and ended a thread"
        server.tell("x")
        assert server.line() == "over"
        patched_and_back(server, patch)


def _in_epoll_wait(pid: int, count: int) -> set[str]:
    """The threads in epoll_wait (232), once there are so many, or once too few are left for that."""
    while True:
        calls = {p.parent.name: p.read_text().split()[0] for p in Path(f"/proc/{pid}/task").glob("*/syscall")}
        found = {tid for tid, call in calls.items() if call == "232"}
        if len(found) >= count or len(calls) <= count:
            return found


def _children(pid: int) -> str:
    return " ".join(p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children")).strip()


URING = r"""
  int ends[2]; char byte; struct io_uring_params params; memset(&params, 0, sizeof params);
  if (pipe(ends)) return 1;
  int ring = syscall(425, 8, &params);
  if (ring < 0) { puts("none"); return 0; }
  size_t size = params.sq_off.array + params.sq_entries * 4;
  char *sq = mmap(0, size, 3, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
  struct io_uring_sqe *sqe = mmap(0, params.sq_entries * sizeof *sqe, 3, MAP_SHARED, ring, IORING_OFF_SQES);
  memset(sqe, 0, sizeof *sqe);
  sqe->opcode = IORING_OP_READ; sqe->flags = IOSQE_ASYNC;
  sqe->fd = ends[0]; sqe->addr = (unsigned long)&byte; sqe->len = 1;
  ((unsigned *)(sq + params.sq_off.array))[0] = 0;
  __atomic_store_n((unsigned *)(sq + params.sq_off.tail), 1, __ATOMIC_RELEASE);
  if (syscall(426, ring, 1, 0, 0, 0, 0) != 1) return 2;
"""


@situation(46, "io_uring workers")
def test_process_with_io_uring_workers_is_patched(tmp_path: Path) -> None:
    """A bug: a worker of the kernel's, which has no stack, is unwound or used."""
    if not Path("/usr/include/linux/io_uring.h").exists():
        pytest.skip("linux/io_uring.h is not installed")
    old, patch = pair(tmp_path, URING, flags=("-O2", "-include", "linux/io_uring.h"))
    try:
        server = Server([old.output])
    except NotReadyError as error:
        if error.said != "none":
            raise
        pytest.skip("io_uring is disabled here")
    try:
        while not any("iou-wrk" in p.read_text() for p in Path(f"/proc/{server.pid}/task").glob("*/comm")):
            pass
        patched_and_back(server, patch)
    finally:
        server.close()


COROUTINE = INSIDE.replace(
    "static void *enter(void *unused) {",
    "#include <ucontext.h>\nstatic ucontext_t back, coroutine; static char stack[1 << 16];\n"
    'static void body(void) { printf("left %d\\n", answer(-5)); fflush(stdout); }\n'
    "static void *enter(void *unused) {\n"
    "  getcontext(&coroutine); coroutine.uc_stack.ss_sp = stack; coroutine.uc_stack.ss_size = sizeof stack;\n"
    "  coroutine.uc_link = &back; makecontext(&coroutine, body, 0); swapcontext(&back, &coroutine); return unused; }\n"
    "static void *unused_entry(void *unused) {",
)
SIGNAL_STACK = INSIDE.replace(
    "static void *enter(void *unused) {",
    'static void on(int s) { printf("left %d\\n", answer(-5 + s * 0)); fflush(stdout); }\n'
    "static void *enter(void *unused) {\n"
    "  stack_t s = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16}; sigaltstack(&s, 0);\n"
    "  struct sigaction a = {.sa_handler = on, .sa_flags = SA_ONSTACK}; sigaction(SIGUSR1, &a, 0); raise(SIGUSR1);\n"
    "  return unused; }\nstatic void *unused_entry(void *unused) {",
)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(COROUTINE, marks=situation(50, "a coroutine that runs (swapcontext)"), id="coroutine"),
        pytest.param(SIGNAL_STACK, marks=situation(50, "a handler on an alternate signal stack"), id="signal-stack"),
    ],
)
def test_frame_on_another_stack_is_found(tmp_path: Path, source: str) -> None:
    """A bug: only the thread's own stack is looked at, and the function is replaced under it."""
    assert source != INSIDE
    old = build(tmp_path / "old", "server", source, flags=("-O2", "-Wno-unused-function"))
    new = build(tmp_path / "new", "server", source.replace("/*ANSWER*/", NEW), flags=("-O2", "-Wno-unused-function"))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output) as server:
        assert server.ask("i") == "inside"
        code = code_of(server.pid)
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0.1")
        assert done.returncode == 4, done.stderr
        assert "is in answer" in done.stderr
        assert code_of(server.pid) == code
        server.tell("l")
        assert server.line() == "left -4"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert int(server.ask("a 3")) > 30


def test_tools_that_situations_need_are_named() -> None:
    """A bug: a situation is skipped everywhere, since nobody installs what it needs."""
    assert "musl-gcc:musl-tools" in Path("Makefile").read_text()
    assert shutil.which("prlimit")


def test_thread_that_gets_no_processor_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: on a machine with a load of a hundred nothing can be patched, however long one is ready to wait."""
    wait, late = ptrace_binding.wait, [None] * 100

    def later(tid: int) -> ptrace_binding.Stop | None:
        return late.pop() if late else wait(tid)

    with serving(build(tmp_path, "server", COUNTER).output, "0") as server, Target(server.pid) as target:
        gadgets = find_gadgets(target.memory, target.regions, target.where)
        monkeypatch.setattr(borrowing, "STOP_TIMEOUT", 0.0)
        monkeypatch.setattr(ptrace_binding, "wait", later)
        with borrowing.BorrowedThread(target.memory, gadgets) as thread:
            assert thread.syscall(39) == server.pid  # getpid
        assert not late
        monkeypatch.undo()
        assert server.ask("a 5") == "6"


# A thread with some bytes left of a stack that the program gave it; below them are somebody else's.
POOLED = (
    HEAD
    + r"""
enum { BELOW = 1 << 14, SIZE = 1 << 16 };
static char pool[BELOW + SIZE] __attribute__((aligned(64))); static int gate[2], left;
static void *enter(void *p) {
  char *here = __builtin_frame_address(0), *volatile low = __builtin_alloca(here - (pool + BELOW) - left), byte;
  *low = 1; if (write(1, "low\n", 4) != 4) return p;
  while (read(gate[0], &byte, 1) < 0) {}
  return p;
}
int main(int argc, char **argv) {
  pthread_t t; pthread_attr_t a; char line[9];
  pthread_attr_init(&a); pthread_attr_setstack(&a, pool + BELOW, SIZE);
  memset(pool, 0xAA, BELOW); left = atoi(argv[1]) + argc * 0;
  if (pipe(gate)) return 1;
  printf("ready\n%lx\n", (long)pool + BELOW); fflush(stdout);
  pthread_create(&t, &a, enter, 0);
  return !fgets(line, sizeof line, stdin);
}
"""
)


@pytest.mark.parametrize(("left", "has_room"), [(900, False), (30000, True)])
def test_nothing_is_put_below_the_end_of_a_stack(tmp_path: Path, left: int, has_room: bool) -> None:
    """A bug: what katana puts below the stack pointer, so that a thread comes back by itself, is put into the next
    stack of a pool, whose thread runs."""
    with (
        serving(build(tmp_path, "server", POOLED, link=("-Wl,-z,now",)).output, str(left)) as server,
        Target(server.pid) as target,
    ):
        bottom = int(server.line(), 16)
        assert server.line() == "low"
        gadgets = find_gadgets(target.memory, target.regions, target.where)
        before = target.memory.read(bottom - (1 << 14), 1 << 14)
        assert before == b"\xaa" * (1 << 14)

        def unfit(words: Sequence[int]) -> str:
            return "" if bottom <= words[system.SP] < bottom + (1 << 16) else "is another"

        for _ in range(2):
            with borrowing.BorrowedThread(target.memory, gadgets, unfit) as thread:
                assert thread.syscall(39) == server.pid  # getpid
                assert target.memory.read(bottom - (1 << 14), 1 << 14) == before
                assert bool(thread._frame) == has_room
