"""Words that lead into a moved variable from where no type tells: registers, what the kernel keeps, other modules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from katana_cc.cli.main import main
from katana_cc.process import registers
from tests.live.handmade import Built, build, patch_from, run
from tests.live.programs import HEAD
from tests.live.server import katana, serving, write_patch

SPINNING = (
    HEAD
    + r"""
#include <sys/mman.h>
struct item { /*FRESH*/int count; struct timespec nap; };
struct item item = {/*SEVEN*/3, {0, 0}};
static volatile int stop;
NOINLINE int count_of(void *p) { seen++; return ((struct item *)p)->count; }
NOINLINE void set(int x) { item.count = x; seen++; item.nap.tv_sec = 1000; }
/* The pointer is in one register only, for as long as the loop runs. */
static void *spin(void *p) {
  void *q;
  asm volatile("movq %1, %%rbx\n xor %%eax, %%eax\n xor %%ecx, %%ecx\n xor %%edx, %%edx\n xor %%esi, %%esi\n"
               "xor %%edi, %%edi\n mov %%rcx, %1\n 1: pause\n cmpl $0, %2\n je 1b\n movq %%rbx, %0\n"
               : "=r"(q), "+r"(p) : "m"(stop) : "rax", "rcx", "rdx", "rsi", "rdi", "rbx", "xmm7", "memory");
  printf("%d\n", count_of(q)); fflush(stdout);
  return 0;
}
NOINLINE void wash(void) { volatile char room[16384]; for (unsigned i = 0; i < sizeof room; i++) room[i] = 0; }
static void *nap(void *p) { say("napping"); nanosleep(p, 0); return p; }
int main(int argc, char **argv) {
  int e = epoll_create1(0), pair[2];
  if (pipe(pair) || argc > 9) return 1;
  say("ready");
  char line[200];
  pthread_t t;
  while (fgets(line, sizeof line, stdin)) {
    int x = atoi(line + 2);
    struct epoll_event event = {EPOLLIN, {.ptr = x ? &item : 0}};
    switch (line[0]) {
    case '=': set(x); printf("%d\n", item.count); break;
    case 'c': printf("%d\n", count_of(&item)); break;
    case 's': stop = 0; pthread_create(&t, 0, spin, &item); puts("spinning"); break;
    case 'g': stop = 1; pthread_join(t, 0); continue;
    case 'n': pthread_create(&t, 0, nap, &item.nap); continue;
    case 'e': epoll_ctl(e, EPOLL_CTL_ADD, pair[0], &event); puts("watched"); break;
    case 'E': epoll_ctl(e, EPOLL_CTL_DEL, pair[0], &event); puts("free"); break;
    case 'm': {
      void **shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
      shared[7] = x ? &item : 0; puts("shared"); break;
    }
    case 't': {
      timer_t timer; struct sigevent s = {.sigev_notify = SIGEV_NONE, .sigev_value.sival_ptr = &item};
      timer_create(CLOCK_MONOTONIC, &s, &timer); puts("timed"); break;
    }
    }
    memset(&event, 0, sizeof event);
    fflush(stdout);
    wash();
  }
  return 0;
}
"""
)


def moved_item(folder: Path, source: str = SPINNING, library: tuple[Path, ...] = ()) -> tuple[Built, Path]:
    """The old program and the patch; main only takes the address, and stays as it is."""
    flags, link = ("-O2", "-fno-ipa-cp"), tuple(f"-Wl,-rpath,{path.parent}" for path in library)
    old = build(folder / "old", "server", source, flags=flags, link=link, more=library)
    changed = source.replace("/*FRESH*/", "long fresh; ").replace("/*SEVEN*/", "7, ")
    new = build(folder / "new", "server", changed, flags=flags, link=link, more=library)
    return old, write_patch(folder, patch_from(old, new, ("count_of", "set"), moved=("item",)))


@pytest.mark.parametrize("register", ["rbx", "xmm7"])
def test_register_of_a_running_thread_is_refused_and_followed(tmp_path: Path, register: str) -> None:
    """The thread never makes a system call, so nothing but its registers leads to the variable."""
    old, patch = moved_item(tmp_path, SPINNING.replace("%%rbx", f"%%{register}"))
    with serving(old.output) as server:
        assert server.ask("= 5") == "5"
        assert server.ask("s") == "spinning"
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0.2")
        assert done.returncode == 3
        name = "rbx" if register == "rbx" else "a vector register"
        assert re.search(rf"thread \d+, {name}: item\n", done.stderr), done.stderr
        done = katana("apply", patch, "--pid", server.pid, "--follow", "item")
        assert done.returncode == 0, done.stderr
        assert server.ask("g") == "5", "new code, a new object"


@pytest.mark.parametrize(
    ("command", "answer", "place"),
    [
        ("e 1", "watched", r"epoll_data of descriptor \d+ in epoll \d+"),
        ("t 1", "timed", r"sigev_value of timer \d+"),
        ("m 1", "shared", r"0x[0-9a-f]+ in /dev/zero \(deleted\), shared with others"),
    ],
)
def test_address_that_is_not_ours_to_change_cannot_be_followed(
    tmp_path: Path, command: str, answer: str, place: str
) -> None:
    """The kernel would hand out the old one; and other processes of the old build need it."""
    old, patch = moved_item(tmp_path)
    with serving(old.output) as server:
        assert server.ask(command) == answer
        for words in ((), ("--follow", "item")):
            done = katana("apply", patch, "--pid", server.pid, *words)
            assert done.returncode == 3
            assert re.search(rf"{place}: item; it cannot be rewritten there\n", done.stderr), done.stderr
            assert "restart the process" in done.stderr
        assert server.ask("c") == "3"
        if command.startswith("e"):
            assert server.ask("E") == "free"
            assert katana("apply", patch, "--pid", server.pid, "--follow", "item").returncode == 0


def _waits_in(pid: int, numbers: tuple[str, ...]) -> bool:
    """Whether a thread of the process is in one of these system calls."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/syscall")]
    return any(text.split()[0] in numbers for text in texts)


def test_argument_that_the_kernel_keeps_cannot_be_followed(tmp_path: Path) -> None:
    """nanosleep goes on with the address it was given, whatever the register holds."""
    old, patch = moved_item(tmp_path)
    with serving(old.output) as server:
        server.ask("= 5")
        assert server.ask("n") == "napping"
        while not _waits_in(server.pid, ("35", "230")):
            pass
        for words in ((), ("--follow", "item")):
            done = katana("apply", patch, "--pid", server.pid, "--wait", "0.2", *words)
            assert done.returncode == 3
            assert re.search(r"thread \d+, r\w\w: item.nap", done.stderr), done.stderr
        assert "it cannot be rewritten there" in done.stderr
        assert server.ask("c") == "5"


def test_address_that_the_loader_gave_another_module_is_seen(tmp_path: Path) -> None:
    """It is in read-only memory, where the library goes on to find the old variable."""
    library = tmp_path / "libuser.so"
    text = "extern int item; int *user(void) { return &item; }"
    (tmp_path / "user.c").write_text(text)
    run("gcc", "-fPIC", "-shared", "-O2", "-Wl,-z,relro,-z,now", tmp_path / "user.c", "-o", library)
    declared = SPINNING.replace("int main(", "extern void *user(void);\nint main(", 1)
    source = declared.replace("argc > 9", "argc > 9 && !user()")
    old, patch = moved_item(tmp_path, source, (library,))
    with serving(old.output) as server:
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 3
        assert re.search(r"0x[0-9a-f]+ in \S+/libuser.so: item\n", done.stderr), done.stderr


def test_register_of_a_running_thread_is_put_back_where_a_later_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug: it leads to where nothing is any more, as the new place goes with the patch."""
    old, patch = moved_item(tmp_path)
    written: list[bool] = []
    with serving(old.output) as server:
        assert server.ask("= 5") == "5"
        assert server.ask("s") == "spinning"

        def writing(*arguments: Any) -> None:
            registers.write(*arguments)
            written.append(True)
            monkeypatch.undo()
            raise MemoryError

        monkeypatch.setattr("katana_cc.process.commit.write_registers", writing)
        assert main(["apply", str(patch), "--pid", str(server.pid), "--follow", "item"]) != 0
        assert written
        assert server.ask("g") == "5"
        assert server.ask("c") == "5"
