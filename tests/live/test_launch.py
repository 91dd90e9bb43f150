"""`katana run`: a program that is patched before its `main`, and does not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.live.handmade import Built, build, patch_from, run
from tests.live.programs import HEAD
from tests.live.server import write_patch

# What a program can see of how it was started; the library's constructor comes before it.
STARTED = (
    HEAD
    + r"""
#include <dirent.h>
#include <sys/prctl.h>
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
static int early;
__attribute__((constructor)) static void begin(void) { early = answer(1); }
int main(int argc, char **argv) {
  struct sigaction broken; sigset_t blocked; int files = 0, signals = 0;
  DIR *folder = opendir("/proc/self/fd");
  while (readdir(folder)) files++;
  closedir(folder);
  sigaction(SIGPIPE, NULL, &broken);
  sigprocmask(SIG_SETMASK, NULL, &blocked);
  for (int n = 1; n < 64; n++) signals += sigismember(&blocked, n);
  printf("answers %d %d\n", early, answer(1));
  printf("%s %s, parent %d, ", argv[0], argc > 1 ? argv[1] : "-", getppid());
  printf("children %s, files %d, SIGPIPE %s, blocked %d\n", wait(NULL) < 0 && errno == ECHILD ? "none" : "some", files,
         broken.sa_handler == SIG_DFL ? "default" : "ignored", signals);
  return 9;
}
"""
)
KINDS = {"pie": ((), ("-O2",)), "no-pie": (("-no-pie",), ("-O2", "-fno-pie")), "static": (("-static",), ("-O2",))}


def pair(folder: Path, link: tuple[str, ...] = (), flags: tuple[str, ...] = ("-O2",)) -> tuple[Built, Path]:
    """The program, and a patch by which it answers 100 more."""
    old = build(folder / "old", "server", STARTED, flags=flags, link=link)
    changed = STARTED.replace("/*ANSWER*/", "x += 100;")
    new = build(folder / "new", "server", changed, flags=flags, link=link)
    return old, write_patch(folder, patch_from(old, new, ("answer",)))


def katana_run(*words: str | Path, before: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """`katana run`, in a process whose parent is this one."""
    program = f"import sys\n{before}\nfrom katana_cc.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "run", *(str(w) for w in words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


@pytest.mark.parametrize("kind", KINDS)
def test_program_is_patched_before_its_first_function_and_notices_nothing(tmp_path: Path, kind: str) -> None:
    """A bug: old code runs first, or the program has another parent, a child, a descriptor or a signal more."""
    old, patch = pair(tmp_path, *KINDS[kind])
    plain = subprocess.run([old.output, "word"], capture_output=True, text=True, check=False)
    done = katana_run("--patch", patch, old.output, "word")
    assert f"parent {os.getpid()}" in done.stdout
    assert plain.stdout.startswith("answers 2 2\n")
    assert done.stdout.splitlines() == ["answers 102 102", plain.stdout.splitlines()[1]]
    assert (plain.returncode, done.returncode) == (9, 9)
    assert ": applied: 1 edit" in done.stderr


def test_arguments_that_look_like_options_are_the_programs(tmp_path: Path) -> None:
    """A bug: --wait of the program is taken for one of katana's."""
    old, patch = pair(tmp_path)
    assert "server --patch, parent" in katana_run("--patch", patch, old.output, "--patch", "--wait").stdout


def test_program_that_the_patch_is_not_for_does_not_start(tmp_path: Path) -> None:
    """A bug: it runs unpatched, and nobody is told."""
    other = build(tmp_path / "other", "server", STARTED.replace("return 9", "return 8"))
    _, patch = pair(tmp_path)
    done = katana_run("--patch", patch, other.output)
    assert (done.returncode, done.stdout) == (3, "")
    assert "not started: " in done.stderr
    assert "does not run server" in done.stderr


def test_it_starts_all_the_same_where_that_is_wanted(tmp_path: Path) -> None:
    """A bug: a database stays down since a patch does not fit."""
    other = build(tmp_path / "other", "server", STARTED.replace("return 9", "return 8"))
    _, patch = pair(tmp_path)
    done = katana_run("--or-unpatched", "--patch", patch, other.output)
    assert done.returncode == 8
    assert done.stdout.startswith("answers 2 2\n")
    assert "runs without the patch" in done.stderr
    missing = katana_run("--or-unpatched", "--patch", tmp_path / "none.kpo", other.output)
    assert missing.stdout == done.stdout
    assert "SIGPIPE default" in missing.stdout


def test_build_that_the_patch_leads_to_needs_none(tmp_path: Path) -> None:
    """A bug: a unit file that still names the patch keeps the next version from starting."""
    _, patch = pair(tmp_path)
    done = katana_run("--patch", patch, tmp_path / "new" / "server")
    assert done.returncode == 9
    assert done.stdout.startswith("answers 102 102\n")


def test_static_program_that_relocates_itself_is_refused(tmp_path: Path) -> None:
    """A bug: what it relocates after it has begun is taken for relocated."""
    old, patch = pair(tmp_path, ("-static-pie",), ("-O2", "-fPIE"))
    done = katana_run("--patch", patch, old.output)
    assert done.stdout == ""
    assert "relocates itself" in done.stderr
    assert done.returncode != 0


def test_file_that_is_no_program(tmp_path: Path) -> None:
    """A bug: a traceback, or a process that is left behind."""
    _, patch = pair(tmp_path)
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    done = katana_run("--patch", patch, tmp_path / "text")
    assert done.returncode == 5
    assert done.stderr.splitlines() == [f"katana run: {tmp_path}/text: it cannot be started: Exec format error"]
    assert katana_run("--patch", patch, "no-such-program").returncode == 5
    assert katana_run(tmp_path / "text").returncode == 2


@pytest.mark.parametrize("moment", ["the patch", "the way to the entry point"])
def test_program_goes_on_when_the_patcher_is_killed(tmp_path: Path, moment: str) -> None:
    """A bug: it waits for ever, or is killed too."""
    old, patch = pair(tmp_path)
    module, name = {
        "the patch": ("katana_cc.cli.run", "apply_patch"),
        "the way to the entry point": ("katana_cc.process.starting", "Start._comes"),
    }[moment]
    kill = f"import os, {module} as m\nm.{name} = lambda *_, **__: os.kill(os.getpid(), 9)"
    done = katana_run("--patch", patch, old.output, before=kill)
    assert done.returncode == 9
    assert done.stdout.startswith("answers 2 2\n")
    assert "the patcher was killed" in done.stderr


# What constructors of libraries do, before the program begins.
CONSTRUCTORS = {
    "fork": "fork();",
    "fork, by a thread": "pthread_t t; pthread_create(&t, 0, forks, 0); pthread_join(t, 0);",
    "vfork": 'int c = vfork(); if (!c) execl("/bin/true", "true", (char *)0); waitpid(c, 0, 0);',
    "a thread": "pthread_t t; pthread_create(&t, 0, waits, 0);",
    "exec": "if (again()) execv(argv[0], argv);",
    "exec, by a thread": "if (again()) { pthread_t t; pthread_create(&t, 0, execs, argv); for (;;) pause(); }",
    "fork, exec": "if (again()) { fork(); execv(argv[0], argv); }",
}
LIBRARY = (
    HEAD
    + r"""
static void *forks(void *unused) { if (!fork()) _exit(seen); wait(0); return unused; }
static void *waits(void *unused) { for (;;) pause(); return unused; }
static void *execs(void *argv) { execv(((char **)argv)[0], argv); return argv; }
static int again(void) { int first = !getenv("AGAIN"); setenv("AGAIN", "1", 1); return first; }
void *const used[] = {forks, waits, execs, again};
__attribute__((constructor)) static void begin(int argc, char **argv) { /*DO*/ }
"""
)


def with_library(folder: Path, does: str, more: str = "") -> tuple[Built, Path]:
    """The program linked with a library whose constructor does that, and the patch."""
    library = folder / "library.so"
    source = LIBRARY.replace("/*DO*/", does).replace("void *const used", f"{more}void *const used")
    (folder / "library.c").write_text(source)
    run("gcc", "-O2", "-w", "-shared", "-fPIC", "-pthread", folder / "library.c", "-o", library)
    return pair(folder, ("-Wl,--no-as-needed", str(library)))


@pytest.mark.parametrize("does", CONSTRUCTORS)
def test_constructor_of_a_library(tmp_path: Path, does: str) -> None:
    """A bug: a child turns for ever in the jump that it was born with, or a program that begins again is old."""
    old, patch = with_library(tmp_path, CONSTRUCTORS[does])
    done = katana_run("--patch", patch, old.output, timeout=20)
    answers = sorted(line for line in done.stdout.splitlines() if line.startswith("answers"))
    has_child = does in ("fork", "fork, exec")
    assert answers == ["answers 102 102", *["answers 2 2"] * has_child]
    assert done.returncode == 9
    assert "killed" not in done.stderr


# Constructors that wait for events, and say so when they are interrupted.
WAITING = {
    "the first thread": "listen_for(100);",
    "another thread": """
  pthread_t t; int tid = 0, number = 0; char name[64];
  pthread_create(&t, 0, listens, &tid);
  while (number != 232 && number != 22) { // (x86-64, AArch64)
    snprintf(name, sizeof name, "/proc/self/task/%d/syscall", *(volatile int *)&tid);
    FILE *f = fopen(name, "r"); if (!f) continue;
    if (fscanf(f, "%d", &number) != 1) number = 0;
    fclose(f);
  }
""",
}
LISTENING = r"""
static void listen_for(int ms) {
  int e = epoll_create1(0); struct epoll_event v; struct timespec before, now;
  clock_gettime(CLOCK_MONOTONIC, &before);
  if (epoll_wait(e, &v, 1, ms)) say(errno == EINTR ? "EINTR" : "failed");
  clock_gettime(CLOCK_MONOTONIC, &now);
  if ((now.tv_sec - before.tv_sec) * 1000 + (now.tv_nsec - before.tv_nsec) / 1000000 > 10 * ms) say("late");
}
static void *listens(void *tid) { *(volatile int *)tid = gettid(); listen_for(-1); return tid; }
void *const waiting[] = {listen_for, listens};
"""


@pytest.mark.parametrize("who", WAITING)
def test_constructor_that_waits_is_not_interrupted(tmp_path: Path, who: str) -> None:
    """A bug: looking where the program is, or letting it go, gives EINTR to what its libraries wait for."""
    old, patch = with_library(tmp_path, WAITING[who], LISTENING)
    done = katana_run("--patch", patch, old.output, timeout=20)
    assert done.stdout.splitlines()[0] == "answers 102 102"
    assert done.returncode == 9


@pytest.mark.parametrize("does", ["fork", "vfork"])
def test_child_where_kcmp_is_forbidden(tmp_path: Path, does: str) -> None:
    """A bug: the jump is taken out of the memory that child and parent have together, or stays in the child's own."""
    old, patch = with_library(tmp_path, CONSTRUCTORS[does])
    before = "from katana_cc.process import starting\nstarting.same_memory = lambda *_: None"
    done = katana_run("--patch", patch, old.output, before=before, timeout=20)
    answers = sorted(line for line in done.stdout.splitlines() if line.startswith("answers"))
    assert answers == ["answers 102 102", *["answers 2 2"] * (does == "fork")]
    assert done.returncode == 9


# A child is killed, or cannot be looked into, when the jump is to be taken out of its memory.
CHILD = """
import os, signal
from katana_cc.errors import TargetError
from katana_cc.process import starting
def killed(child, _):
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | 0x40000000)
    return False
def hidden(child, _):
    raise TargetError("its memory may not be read", where=f"pid {child}")
starting.same_memory = """


@pytest.mark.parametrize(("what", "answers"), [("killed", "102 102"), ("hidden", "2 2")])
def test_child_that_the_jump_cannot_be_taken_out_of(tmp_path: Path, what: str, answers: str) -> None:
    """A bug: the program itself stays in the jump at its entry point for ever."""
    old, patch = with_library(tmp_path, "if (!fork()) _exit(0);")
    done = katana_run("--or-unpatched", "--patch", patch, old.output, before=CHILD + what, timeout=20)
    assert done.returncode == 9, done.stderr
    assert done.stdout.startswith(f"answers {answers}\n")


# Somebody traces the program when it is to go on, until that was tried in vain.
TRACER = """
import os
from katana_cc.cli import run
from katana_cc.process import ptrace_binding as pt
apply, seize = run.apply_patch, pt.seize
tried, try_ = os.pipe()
traced, trace = os.pipe()
def applying(po, identity, pids, **options):
    done = apply(po, identity, pids, **options)
    if not os.fork():
        os.close(try_)
        seize(pids[0], 0)
        os.write(trace, b"!")
        os.read(tried, 1)
        os._exit(0)
    os.read(traced, 1)
    return done
def seizing(tid, options):
    try:
        seize(tid, options)
    except PermissionError:
        os.write(try_, b"!")
        raise
run.apply_patch, pt.seize = applying, seizing
"""


def test_program_goes_on_though_somebody_traces_it_meanwhile(tmp_path: Path) -> None:
    """A bug: it stays in the jump at its entry point for ever."""
    old, patch = pair(tmp_path)
    done = katana_run("--patch", patch, old.output, before=TRACER, timeout=20)
    assert done.returncode == 9, done.stderr
    assert done.stdout.startswith("answers 102 102\n")


def test_program_starts_where_ends_of_children_are_ignored(tmp_path: Path) -> None:
    """SIGCHLD is ignored, and stays so.  A bug: katana waits for a child that nobody tells of."""
    old, patch = pair(tmp_path)
    before = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    done = katana_run("--patch", patch, old.output, before=before, timeout=20)
    assert done.returncode == 9, done.stderr
    assert done.stdout.startswith("answers 102 102\n")


@pytest.mark.parametrize("options", [(), ("--or-unpatched",)], ids=["needed", "wanted"])
def test_program_that_may_not_be_traced_any_more(options: tuple[str, ...]) -> None:
    """A constructor forbids it to whoever is not root.  A bug: nobody can take the program out of the jump at its entry
    point."""
    become_nobody = (
        "import ctypes, os, katana_cc.cli.run, katana_cc.cli.main\n"
        "if os.getuid() == 0: os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)"  # PR_SET_DUMPABLE, as after an exec
    )
    with tempfile.TemporaryDirectory() as name:  # pytest's are for its own user only
        Path(name).chmod(0o755)
        old, patch = with_library(Path(name), "prctl(PR_SET_DUMPABLE, 0);")
        done = katana_run(*options, "--patch", patch, old.output, before=become_nobody, timeout=20)
    assert "may not be traced any more" in done.stderr
    if options:
        assert done.returncode == 9, done.stderr
        assert done.stdout.startswith("answers 2 2\n")
    else:
        assert done.returncode == -signal.SIGKILL
        assert done.stdout == ""
