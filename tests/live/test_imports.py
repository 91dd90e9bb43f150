"""What new code refers to is found in the running process."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.live.handmade import Built, build, patch_from, run
from tests.live.programs import COUNTER
from tests.live.server import identity, katana, serving, write_patch

KINDS = {"pie": (("-O2",), ()), "no-pie": (("-O2", "-fno-pie"), ("-no-pie",))}


def _answer(tmp_path: Path, body: str, kind: str = "pie", old_body: str = "", before: str = "") -> tuple[Built, Built]:
    flags, link = KINDS[kind]
    old = COUNTER.replace("/*GLOBALS*/", before).replace("/*ANSWER*/", old_body)
    new = COUNTER.replace("/*GLOBALS*/", before).replace("/*ANSWER*/", body)
    return (
        build(tmp_path / "old", "server", old, flags=flags, link=link),
        build(tmp_path / "new", "server", new, flags=flags, link=link),
    )


def _asked(tmp_path: Path, pair: tuple[Built, Built], *commands: str) -> list[str]:
    patch = write_patch(tmp_path, patch_from(*pair, ("answer",)))
    with serving(pair[0].output) as server:
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        return [server.ask(command) for command in commands]


@pytest.mark.parametrize("kind", KINDS)
def test_function_never_imported_before(tmp_path: Path, kind: str) -> None:
    """A bug: only what the old program's GOT names is found."""
    pair = _answer(tmp_path, 'return (int)strtol("123", 0, 10) + getppid() * 0 + x;', kind)
    assert "getppid" not in subprocess.run(["nm", "-D", pair[0].output], capture_output=True, text=True).stdout
    assert _asked(tmp_path, pair, "a 4") == ["127"]


@pytest.mark.parametrize("kind", KINDS)
def test_indirect_function_never_imported_before(tmp_path: Path, kind: str) -> None:
    """A bug: the resolver itself is called in the place of memmem's chosen implementation."""
    body = (
        'char b[64]; memset(b, 0, 64); memcpy(b, "abcabc", 7 + x * 0); volatile size_t n = 7; '
        "memmove(b + 1, b, n); return strrchr(b, 'a') - b;"
    )
    pair = _answer(tmp_path, body, kind)
    symbols = subprocess.run(["nm", "-D", pair[0].output], capture_output=True, text=True, check=True).stdout
    assert "strrchr" not in symbols
    assert _asked(tmp_path, pair, "a 4") == ["4"]


@pytest.mark.parametrize("kind", KINDS)
def test_variable_of_a_library_never_imported_before(tmp_path: Path, kind: str) -> None:
    """A bug: a copy relocation cannot be made any more, and the load goes astray."""
    pair = _answer(tmp_path, "return fileno(stderr) * 100 + x;", kind)
    assert "stderr" not in subprocess.run(["nm", "-D", pair[0].output], capture_output=True, text=True).stdout
    assert _asked(tmp_path, pair, "a 4") == ["204"]


def test_variable_with_a_copy_relocation(tmp_path: Path) -> None:
    """A bug: the library's own instance is taken in the place of the program's copy."""
    before = "FILE *err(void) { return stderr; }"
    pair = _answer(tmp_path, "stderr = stdout; return (err() == stdout) * 10 + x;", before=before)
    assert _asked(tmp_path, pair, "a 4") == ["14"]


def test_absent_weak_function_is_null(tmp_path: Path) -> None:
    """A bug: an absent weak symbol is refused, or is not 0."""
    before = "extern int nowhere(void) __attribute__((weak));"
    pair = _answer(tmp_path, "return nowhere ? 1 : 40 + x;", before=before)
    assert _asked(tmp_path, pair, "a 4") == ["44"]


def test_function_no_module_defines_is_refused(tmp_path: Path) -> None:
    """A bug: a call to nowhere goes into the process."""
    old = build(tmp_path / "old", "server", COUNTER)
    library = tmp_path / "libextra.so"
    (tmp_path / "extra.c").write_text("int extra(int x) { return x; }")
    run("gcc", "-shared", "-fPIC", tmp_path / "extra.c", "-o", library)
    source = COUNTER.replace("/*GLOBALS*/", "int extra(int);").replace("/*ANSWER*/", "return extra(x);")
    new = build(tmp_path / "new", "server", source, link=(), more=(library,))
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output) as server:
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 3
        assert "extra" in done.stderr
        assert server.ask("a 5") == "6"


@pytest.mark.parametrize("kind", KINDS)
def test_thread_local_variable_of_the_program(tmp_path: Path, kind: str) -> None:
    """A bug: the offset from the thread pointer is that of another variable."""
    assert _asked(tmp_path, _answer(tmp_path, "mine += x; return mine;", kind), "a 4", "m") == ["11", "11"]


@pytest.mark.parametrize("kind", KINDS)
def test_old_static_variables_keep_their_values(tmp_path: Path, kind: str) -> None:
    """A bug: the new code counts in a variable of its own."""
    pair = _answer(tmp_path, "calls += 100;", kind)
    patch = write_patch(tmp_path, patch_from(*pair, ("answer",)))
    with serving(pair[0].output) as server:
        server.ask("a 1")
        server.ask("a 1")
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        server.ask("a 1")
        assert server.ask("c") == "103"


@pytest.mark.parametrize("kind", KINDS)
def test_address_of_a_library_function_is_the_one_the_program_knows(tmp_path: Path, kind: str) -> None:
    """A program linked for fixed addresses stands for a library's function with its own PLT entry, and all modules take
    that for its address.  A bug: new code gets another one, or is refused since the library's does not fit."""
    before = "int (*volatile known)(const char *); NOINLINE void hold(void) { known = puts; }"
    old_body = "hold();"
    body = 'int (*now)(const char *) = puts; if (x == 9) puts("called"); return (known == now) * 10 + x;'
    pair = _answer(tmp_path, body, kind, old_body, before)
    patch = write_patch(tmp_path, patch_from(*pair, ("answer",)))
    with serving(pair[0].output) as server:
        server.ask("a 1")
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert server.ask("a 4") == "14"
        server.tell("a 9")
        assert (server.line(), server.line()) == ("called", "19")


def test_address_of_a_function_stays_the_old_one(tmp_path: Path) -> None:
    """A bug: pointer comparisons break after the patch."""
    old = COUNTER.replace("/*OTHER*/", "hook = answer; return hook == answer;")
    new = old.replace("/*ANSWER*/", "return 10 * x + (hook == answer);")
    pair = build(tmp_path / "old", "server", old), build(tmp_path / "new", "server", new)
    po = patch_from(*pair, ("answer",))
    # `answer` refers to itself: as the patch builder does, its address is left to be the old function's.
    with serving(pair[0].output) as server:
        assert server.ask("o 0") == "1"
        assert katana("apply", write_patch(tmp_path, po), "--pid", server.pid).returncode == 0
        assert server.ask("h 5") in ("50", "51")
        assert server.ask("o 0") == "1"


@pytest.mark.parametrize("kind", KINDS)
def test_constant_table_is_edited_in_place(tmp_path: Path, kind: str) -> None:
    """A bug: the table's pointers are those of the object file, or revert leaves the new ones."""
    flags, link = KINDS[kind]
    old = build(tmp_path / "old", "server", COUNTER, flags=flags, link=link)
    new = build(tmp_path / "new", "server", COUNTER.replace('"two"', '"deux"'), flags=flags, link=link)
    po = patch_from(old, new, (), edits=("names",))
    with serving(old.output) as server:
        assert server.ask("n 1") == "two"
        done = katana("apply", write_patch(tmp_path, po), "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert [server.ask(f"n {i}") for i in range(3)] == ["one", "deux", "three"]
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert [server.ask(f"n {i}") for i in range(3)] == ["one", "two", "three"]


@pytest.mark.xdist_group("all processes")
def test_shared_library_is_patched_in_every_process(tmp_path: Path) -> None:
    """A bug: only the program itself is looked at."""
    source = "static int n; int extra(int x) { n++; return x + n; }"
    old = build(tmp_path / "old", "libextra.so", source, flags=("-O2", "-fPIC"), link=("-shared",))
    changed = source.replace("return", "static int m; m += 2; return 100 +")
    new = build(tmp_path / "new", "libextra.so", changed, flags=("-O2", "-fPIC"), link=("-shared",))
    program = COUNTER.replace("/*GLOBALS*/", "int extra(int);").replace("/*ANSWER*/", "return extra(x);")
    user = build(tmp_path / "user", "server", program, link=(f"-Wl,-rpath,{tmp_path / 'old'}",), more=(old.output,))
    po = patch_from(old, new, ("extra",))
    patch = write_patch(tmp_path, po)
    with serving(user.output) as one, serving(user.output) as two:
        assert one.ask("a 5") == "6"
        done = katana("apply", patch, "--all")
        assert done.returncode == 0, done.stderr
        assert (one.ask("a 5"), two.ask("a 5")) == ("107", "106")
        assert katana("revert", "--all", identity(po)).returncode == 0
        assert (one.ask("a 5"), two.ask("a 5")) == ("8", "7")
