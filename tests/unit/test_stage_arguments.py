"""Reading a link's arguments, its map's names, and finding the place of its store."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from katana_cc.recorder.staging.arguments import Options, expand_responses, split_words
from katana_cc.recorder.staging.copying import file_kind
from katana_cc.recorder.staging.failure import StagingError
from katana_cc.recorder.staging.mapnames import contributing_files
from katana_cc.recorder.staging.place import find_store, output_key
from katana_cc.recorder.staging.plain import text, to_json

LD = Path(__file__).resolve().parents[2] / "wrappers" / "libexec" / "katana" / "ld"


# ---- response files ----


@given(st.lists(st.binary().filter(lambda word: b"\0" not in word)))
def test_words_written_as_libiberty_writes_them_come_back(words: list[bytes]) -> None:
    def written(word: bytes) -> bytes:  # writeargv: a backslash before whatever would mean something
        if not word:
            return b'""'
        return b"".join(b"\\" + bytes([c]) if c in b" \t\n\r\f\v'\"\\" else bytes([c]) for c in word)

    assert split_words(b"\n".join(map(written, words)) + b"\n") == words


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_words_quoted_for_a_shell_come_back(words: list[str]) -> None:
    # shlex quotes with '...', where a backslash is plain to a shell, but not to a response file.
    plain = [word for word in words if "\\" not in word]
    assert split_words(shlex.join(plain).encode()) == [word.encode() for word in plain]


def test_response_files_nest_and_a_missing_one_stays(tmp_path: Path) -> None:
    (tmp_path / "outer").write_text(f"a @{tmp_path}/inner @/nonexistent b")
    (tmp_path / "inner").write_text('"c d" e')
    assert expand_responses([f"@{tmp_path}/outer".encode(), b"f"]) == [b"a", b"c d", b"e", b"@/nonexistent", b"b", b"f"]


def test_a_response_file_that_names_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "self").write_text(f"x @{tmp_path}/self")
    assert set(expand_responses([f"@{tmp_path}/self".encode()])) == {b"x", f"@{tmp_path}/self".encode()}


# ---- options ----


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ("a.o", "a.out"),
        ("-o prog a.o", "prog"),
        ("-oprog a.o", "prog"),
        ("--output=prog", "prog"),
        ("--output prog", "prog"),
        ("-omagic", "magic"),  # ld(1): long options in o need two dashes
        ("--omagic a.o", "a.out"),
        ("-o one -o two", "two"),
        ("-rpath -oother -o prog", "prog"),
        ("-z -o -o prog", "prog"),
    ],
)
def test_the_output_is_read_from_every_form(arguments: str, output: str) -> None:
    assert Options(arguments.encode().split()).output == output.encode()


@pytest.mark.parametrize(
    ("arguments", "pure", "build_id", "scripted"),
    [
        ("a.o", False, False, False),
        ("-r a.o", True, False, False),
        ("--relocatable a.o", True, False, False),
        ("-i a.o", True, False, False),
        ("-soname -r a.o", False, False, False),
        ("-rpath /x a.o", False, False, False),
        ("-u -i a.o", False, False, False),
        ("--oformat binary a.o", True, False, False),
        ("--oformat=binary a.o", True, False, False),
        ("--oformat=elf64-x86-64 a.o", False, False, False),
        ("--build-id a.o", False, True, False),
        ("-build-id=none a.o", False, True, False),
        ("-T x.ld a.o", False, False, True),
        ("-Tx.ld a.o", False, False, True),
        ("--script=x.ld a.o", False, False, True),
        ("-Ttext 0x1000 a.o", False, False, False),
        ("-Ttext-segment=0x1000 a.o", False, False, False),
        ("--orphan-handling=error a.o", False, False, True),
        ("--orphan-handling=warn a.o", False, False, False),
    ],
)
def test_shell_and_python_read_options_alike(
    tmp_path: Path, arguments: str, pure: bool, build_id: bool, scripted: bool
) -> None:
    options = Options(arguments.encode().split())
    assert (options.pure, bool(options.build_id), options.scripted) == (pure, build_id, scripted)
    # The shell's reading shows in what it adds for a linker that prints its arguments (and makes no output to stage).
    linker = tmp_path / "linker"
    linker.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    linker.chmod(0o755)
    (tmp_path / "libexec" / "katana").mkdir(parents=True)
    (tmp_path / "libexec" / "katana" / "ld").write_bytes(LD.read_bytes())
    (tmp_path / "libexec" / "katana" / "ld").chmod(0o755)
    (tmp_path / "libexec" / "katana" / "katana_cc" / "recorder").mkdir(parents=True)
    (tmp_path / "libexec" / "katana" / "katana_cc" / "recorder" / "stage.py").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to("/bin/true")
    done = subprocess.run(
        [tmp_path / "libexec" / "katana" / "ld", *arguments.split()],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "KATANA_REAL_LD": str(linker)},
        capture_output=True,
        text=True,
        check=True,
    )
    added = done.stdout.split()[len(arguments.split()) :]
    assert bool(added) == (not pure)
    assert ("--build-id=sha1" in added) == (not pure and not build_id and not scripted)


# ---- link maps ----


def test_a_map_of_no_linker_is_refused() -> None:
    with pytest.raises(StagingError):
        contributing_files(b"something else\n")


def test_data_statements_and_fills_are_no_files() -> None:
    lines = [
        b"\nLinker script and memory map\n",
        b".data           0x0000000000004000       0x20",
        b" .data          0x0000000000004000       0x10 a b.o",
        b" *fill*         0x0000000000004010        0x3 90",
        b"                0x0000000000004013        0x1 BYTE 0x7",
        b"                0x0000000000004014                symbol",
        b" .a_section_with_a_long_name",
        b"                0x0000000000004018        0x8 lib.a(c.o)",
        b"\nCross Reference Table\n",
        b" .text          0x0000000000004018        0x8 not.o",
    ]
    assert contributing_files(b"\n".join(lines)) == ("bfd", [b"a b.o", b"lib.a(c.o)"])


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"!<arch>\n" + b"x" * 12, "input"),
        (b"!<thin>\n" + b"x" * 12, "input"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x01\x00\x3e\x00", "input"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00", "output"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x04\x00\x3e\x00", "other"),
        (b"BC\xc0\xde" + bytes(16), "bitcode"),
        (b"\x7fELF", "other"),
        (b"", "other"),
        (b"/* GNU ld script */", "other"),
    ],
)
def test_a_file_is_what_its_first_bytes_say(head: bytes, kind: str) -> None:
    assert file_kind(head) == kind


# ---- the store's place ----


def place(cwd: Path, katana_dir: str = "", project: str = "", home: str = "") -> tuple[str, str]:
    store, root = find_store(os.fsencode(cwd), katana_dir.encode(), project.encode(), home.encode())
    return os.fsdecode(store), os.fsdecode(root)


def test_the_nearest_store_upwards_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / ".katana").mkdir()
    (tmp_path / "a" / ".katana").mkdir()
    (tmp_path / "a" / "b" / ".git").mkdir()
    assert place(tmp_path / "a" / "b" / "c") == (str(tmp_path / "a" / ".katana"), str(tmp_path / "a"))


def test_a_new_store_goes_beside_the_version_control(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / ".git").write_text("gitdir: elsewhere")  # a worktree's is a file
    (tmp_path / "a" / "b" / "Makefile").touch()
    assert place(tmp_path / "a" / "b")[1] == str(tmp_path / "a")


def test_a_new_store_goes_to_the_topmost_folder_of_a_build(tmp_path: Path) -> None:
    (tmp_path / "up" / "top" / "src" / "deep").mkdir(parents=True)
    for folder in ("top", "top/src"):
        (tmp_path / "up" / folder / "Makefile").touch()
    assert place(tmp_path / "up" / "top" / "src" / "deep")[1] == str(tmp_path / "up" / "top")


def test_a_gap_between_build_folders_ends_the_project(tmp_path: Path) -> None:
    (tmp_path / "top" / "middle" / "src").mkdir(parents=True)
    for folder in ("top", "top/middle/src"):
        (tmp_path / folder / "Makefile").touch()
    assert place(tmp_path / "top" / "middle" / "src")[1] == str(tmp_path / "top" / "middle" / "src")


def test_without_any_sign_of_a_project_it_is_where_the_link_is(tmp_path: Path) -> None:
    assert place(tmp_path) == (str(tmp_path / ".katana"), str(tmp_path))


@pytest.mark.parametrize("kind", ["home", "like /tmp"])
def test_a_folder_that_is_nobodys_project_is_never_walked_into(tmp_path: Path, kind: str) -> None:
    shared = tmp_path / "shared"
    (shared / "work").mkdir(parents=True)
    for mark in (".git", ".katana"):
        (shared / mark).mkdir()
    (shared / "Makefile").touch()
    if kind == "like /tmp":
        shared.chmod(0o1777)
    home = str(shared) if kind == "home" else ""
    assert place(shared / "work", home=home)[1] == str(shared / "work")
    assert place(shared, home=home)[1] == str(shared), "but a link made right there may use it"


def test_katana_dir_decides_and_must_be_absolute(tmp_path: Path) -> None:
    (tmp_path / ".katana").mkdir()
    assert place(tmp_path, katana_dir=f"{tmp_path}/x/") == (f"{tmp_path}/x", str(tmp_path))
    with pytest.raises(StagingError, match="KATANA_DIR"):
        place(tmp_path, katana_dir="relative")


def test_katana_project_names_the_root_of_a_build_elsewhere(tmp_path: Path) -> None:
    assert place(tmp_path, project="/src") == ("/src/.katana", "/src")
    assert place(tmp_path, project="/src", katana_dir="/s") == ("/s", "/src")


@pytest.mark.parametrize(
    ("output", "soname", "key"),
    [
        ("/r/prog", "", "prog"),
        ("/r/a/.libs/prog", "", "a/prog"),
        ("/b/prog", "", "../b/prog"),
        ("/r/.libs/libx.so.1.2", "libx.so.1", "libx.so.1"),
        ("/r/.libs/libx.so.1.3", "libx.so.1", "libx.so.1"),
        ("/r/plugins/a/plugin.so", "plugin.so", "plugins/a/plugin.so"),
        ("/r/plugins/b/plugin.so", "plugin.so", "plugins/b/plugin.so"),
    ],
)
def test_an_outputs_name_through_time(output: str, soname: str, key: str) -> None:
    assert output_key(output.encode(), b"/r", soname.encode()) == key.encode()


# ---- JSON ----


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_reads_back_as_it_was(value: object) -> None:
    assert json.loads(to_json(value)) == value


@given(st.binary())
def test_any_path_survives_json(path: bytes) -> None:
    assert os.fsencode(json.loads(to_json(path))) == path == os.fsencode(text(path))
