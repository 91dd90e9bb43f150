"""Staging real links: what is put away, that it can be trusted, and that it goes again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installation import Installation
from tests.support.staged import input_names, links, only_link, staged_files

MAIN = "int g(void);\nint main(void) { return g(); }\n"
G = "int g(void) { return 0; }\n"


@pytest.fixture
def sources(project: Path) -> Path:
    (project / "main.c").write_text(MAIN)
    (project / "g.c").write_text(G)
    return project


def build(katana: Installation, cwd: Path, *arguments: str, **variables: str) -> None:
    """Run katana-cc and expect silence and success."""
    done = katana.run(katana.cc, *arguments, cwd=cwd, stdin=None, **variables)
    assert (done.returncode, done.stderr) == (0, b"")


def compile_all(katana: Installation, cwd: Path, *names: str) -> None:
    for name in names:
        build(katana, cwd, "gcc", "-c", name)


def copy_of(store: Path, path: str) -> bytes:
    """The staged copy of the input with this base name, of the one link there is."""
    (file,) = {item["file"] for item in only_link(store)["inputs"] if Path(item["path"]).name == path}
    return Path(store, "staged", "objects", file).read_bytes()


# ---- what is put away ----


def test_inputs_output_and_map_are_copied_whole(katana: Installation, linker: str, sources: Path) -> None:
    compile_all(katana, sources, "main.c", "g.c")
    build(katana, sources, "gcc", f"-fuse-ld={linker}", "main.o", "g.o", "-o", "prog")
    entry = only_link(sources / ".katana")
    for item in entry["inputs"]:
        copy = sources / ".katana" / "staged" / "objects" / item["file"]
        assert copy.read_bytes() == Path(item["absolute"]).read_bytes()
        assert not copy.is_symlink() and copy.stat().st_nlink == 1
        assert copy.stat().st_ino != Path(item["absolute"]).stat().st_ino
    assert (entry["folder"] / entry["image"]).read_bytes() == (sources / "prog").read_bytes()
    assert b"g.o" in (entry["folder"] / entry["map"]).read_bytes()


def test_the_c_runtimes_objects_are_among_the_inputs(katana: Installation, sources: Path) -> None:
    build(katana, sources, "gcc", "main.c", "g.c", "-o", "prog")
    names = {Path(item["path"]).name for item in only_link(sources / ".katana")["inputs"]}
    assert {"Scrt1.o", "crti.o", "crtn.o"} <= names


def test_shared_libraries_are_no_inputs(katana: Installation, sources: Path) -> None:
    build(katana, sources, "gcc", "-shared", "-fPIC", "g.c", "-o", "libg.so")
    build(katana, sources, "gcc", "main.c", "-L.", "-lg", "-lm", "-o", "prog")
    (entry,) = [entry for entry in links(sources / ".katana") if entry["output_key"] == "prog"]
    assert not any(".so" in item["path"] for item in entry["inputs"])
    assert entry["missing"] == entry["skipped"] == entry["notes"] == []


def test_temporary_objects_are_kept_although_they_are_gone(katana: Installation, compiler: str, sources: Path) -> None:
    build(katana, sources, compiler, "main.c", "g.c", "-o", "prog")
    temporary = [item for item in only_link(sources / ".katana")["inputs"] if item["path"].startswith("/tmp/")]
    assert len(temporary) == 2
    for item in temporary:
        assert not Path(item["absolute"]).exists()
        copy = sources / ".katana" / "staged" / "objects" / item["file"]
        header = subprocess.run(["readelf", "-h", copy], capture_output=True, text=True, check=True).stdout
        assert "REL (Relocatable file)" in header


def test_an_archive_is_copied_once_with_all_its_members(katana: Installation, linker: str, sources: Path) -> None:
    (sources / "h.c").write_text("int h(void) { return 1; }\n")
    compile_all(katana, sources, "main.c", "g.c", "h.c")
    subprocess.run(["ar", "rcs", "lib (odd).a", "g.o", "h.o"], cwd=sources, check=True)
    build(katana, sources, "gcc", f"-fuse-ld={linker}", "main.o", "lib (odd).a", "-o", "prog")
    entry = only_link(sources / ".katana")
    (archive,) = [item for item in entry["inputs"] if item["archive"]]
    assert archive["path"] == "lib (odd).a"
    assert copy_of(sources / ".katana", "lib (odd).a") == (sources / "lib (odd).a").read_bytes()


def test_the_members_of_a_thin_archive_are_kept(katana: Installation, linker: str, sources: Path) -> None:
    (sources / "sub").mkdir()
    (sources / "g.c").rename(sources / "sub" / "g.c")
    compile_all(katana, sources, "main.c")
    build(katana, sources / "sub", "gcc", "-c", "g.c")
    subprocess.run(["ar", "rcsT", "sub/thin.a", "sub/g.o"], cwd=sources, check=True)
    build(katana, sources, "gcc", f"-fuse-ld={linker}", "main.o", "sub/thin.a", "-o", "prog")
    entry = only_link(sources / ".katana")
    files = {item["file"] for item in entry["inputs"]}
    for item in entry["inputs"]:
        files.update(item.get("thin_members", {}).values())
    copies = [(sources / ".katana" / "staged" / "objects" / file).read_bytes() for file in files]
    assert (sources / "sub" / "g.o").read_bytes() in copies
    assert entry["missing"] == []


def test_names_that_are_no_utf8_survive(katana: Installation, sources: Path) -> None:
    compile_all(katana, sources, "main.c", "g.c")
    odd = os.fsencode(sources) + b"/g\xff.o"
    (sources / "g.o").rename(os.fsdecode(odd))
    done = katana.run(katana.cc.encode(), b"gcc", b"main.o", b"g\xff.o", b"-o", b"pr\xfeg", cwd=sources)
    assert (done.returncode, done.stderr) == (0, b"")
    entry = only_link(sources / ".katana")
    assert os.fsencode(entry["output"]) == os.fsencode(sources) + b"/pr\xfeg"
    assert odd in {os.fsencode(item["absolute"]) for item in entry["inputs"]}


def test_no_output_option_means_a_out(katana: Installation, sources: Path) -> None:
    build(katana, sources, "gcc", "main.c", "g.c")
    assert only_link(sources / ".katana")["output_key"] == "a.out"


def test_an_output_named_between_groups_is_found(katana: Installation, sources: Path) -> None:
    compile_all(katana, sources, "main.c", "g.c")
    build(katana, sources, "gcc", "-Wl,--start-group", "main.o", "-o", "prog", "g.o", "-Wl,--end-group")
    assert only_link(sources / ".katana")["output_key"] == "prog"


def test_a_static_executable_is_recorded(katana: Installation, sources: Path) -> None:
    build(katana, sources, "gcc", "-static", "main.c", "g.c", "-o", "prog")
    entry = only_link(sources / ".katana")
    assert "libc.a" in input_names(entry)
    assert entry["missing"] == []


@pytest.mark.parametrize("form", ["-Wl,-soname,libg.so.1", "-Wl,-soname=libg.so.1", "-Wl,-h,libg.so.1"])
def test_a_library_is_known_by_its_soname(katana: Installation, sources: Path, form: str) -> None:
    (sources / ".libs").mkdir()
    build(katana, sources, "gcc", "-shared", "-fPIC", form, "g.c", "-o", ".libs/libg.so.1.0")
    assert only_link(sources / ".katana")["output_key"] == "libg.so.1"


def test_libtools_folder_is_left_out_of_an_outputs_name(katana: Installation, sources: Path) -> None:
    (sources / "src" / ".libs").mkdir(parents=True)
    build(katana, sources, "gcc", "main.c", "g.c", "-o", "src/.libs/prog")
    assert only_link(sources / ".katana")["output_key"] == "src/prog"


# ---- through time ----


def test_a_relink_copies_only_what_changed(katana: Installation, sources: Path) -> None:
    compile_all(katana, sources, "main.c", "g.c")
    build(katana, sources, "gcc", "main.o", "g.o", "-o", "prog")
    before = {path: path.stat().st_ino for path in staged_files(sources / ".katana")}
    (sources / "g.c").write_text("int g(void) { return 5; }\n")
    compile_all(katana, sources, "g.c")
    build(katana, sources, "gcc", "main.o", "g.o", "-o", "prog")
    after = {path: path.stat().st_ino for path in staged_files(sources / ".katana")}
    assert len(set(after.items()) - set(before.items())) == 1
    assert len(after) == len(before), "the replaced object goes"
    assert copy_of(sources / ".katana", "g.o") == (sources / "g.o").read_bytes()


def test_an_object_rewritten_in_place_with_its_old_time_is_copied_again(katana: Installation, sources: Path) -> None:
    compile_all(katana, sources, "main.c", "g.c")
    build(katana, sources, "gcc", "main.o", "g.o", "-o", "prog")
    status = (sources / "g.o").stat()
    content = bytearray((sources / "g.o").read_bytes())
    at = content.index(b"GNU C17")
    content[at : at + 3] = b"XXX"
    with (sources / "g.o").open("r+b") as file:
        file.write(content)
    os.utime(sources / "g.o", ns=(status.st_atime_ns, status.st_mtime_ns))
    build(katana, sources, "gcc", "main.o", "g.o", "-o", "prog")
    assert copy_of(sources / ".katana", "g.o") == bytes(content)


def test_an_object_shared_by_two_outputs_outlives_one_of_them(katana: Installation, sources: Path) -> None:
    compile_all(katana, sources, "main.c", "g.c")
    for output in ("one", "two"):
        build(katana, sources, "gcc", "main.o", "g.o", "-o", output)
    (sources / "one").unlink()
    build(katana, sources, "gcc", "main.o", "g.o", "-o", "three")
    assert {entry["output_key"] for entry in links(sources / ".katana")} == {"two", "three"}
    for entry in links(sources / ".katana"):
        for item in entry["inputs"]:
            assert (sources / ".katana" / "staged" / "objects" / item["file"]).exists()


def test_what_a_killed_stager_left_is_swept(katana: Installation, sources: Path) -> None:
    compile_all(katana, sources, "main.c", "g.c")
    build(katana, sources, "gcc", "main.o", "g.o", "-o", "prog")
    staged = sources / ".katana" / "staged"
    folder = only_link(sources / ".katana")["folder"]
    (folder / "1-1").mkdir()
    (folder / "1-1" / "map").write_text("cut off")
    (folder / "link.json.tmp-1").write_text("{")
    (staged / "links" / "0123456789abcdef" / "2-2").mkdir(parents=True)
    (staged / "objects" / "feed.tmp-1").write_text("cut off")
    (sources / "g.c").write_text("int g(void) { return 5; }\n")
    compile_all(katana, sources, "g.c")
    build(katana, sources, "gcc", "main.o", "g.o", "-o", "prog")
    entry = only_link(sources / ".katana")
    assert {path.name for path in folder.iterdir()} == {"at", "link.json", entry["version"]}
    assert [path.name for path in (staged / "links").iterdir()] == [folder.name]
    assert not (staged / "objects" / "feed.tmp-1").exists()


def test_a_stager_that_dies_halfway_leaves_the_old_entry(katana: Installation, sources: Path) -> None:
    # Its last act would be to rename link.json: a limit on file size kills it while it copies the output.
    compile_all(katana, sources, "main.c", "g.c")
    build(katana, sources, "gcc", "main.o", "g.o", "-o", "prog")
    before = only_link(sources / ".katana")
    stage = katana.libexec / "katana_cc" / "recorder" / "stage.py"
    python = katana.prefix / "bin" / "python3"
    map_file = sources / "map"
    shutil.copy(before["folder"] / before["map"], map_file)
    limited = 'ulimit -f 8; exec "$0" "$@"'  # 4 KiB, and SIGXFSZ kills where Python did not ignore it
    done = katana.run(
        "sh", "-c", limited, python, "-I", "-S", stage, map_file, "/usr/bin/ld", "0", "-o", "prog", cwd=sources
    )
    assert done.returncode == 0
    assert b"is not recorded" in done.stderr
    # The failure was noticed, so a gap is on record, and nothing half-made.
    after = only_link(sources / ".katana")
    assert "gap" in after or after["version"] == before["version"]
    if "gap" in after:
        assert after["output_key"] == "prog"
        assert {path.name for path in after["folder"].iterdir()} <= {"at", "link.json", before["version"]}


def test_a_gap_is_mended_by_the_next_link(katana: Installation, sources: Path) -> None:
    build(katana, sources, "gcc", "main.c", "g.c", "-o", "prog")
    entry = only_link(sources / ".katana")
    gap = {"format": 1, "output": entry["output"], "output_key": "prog", "gap": "for this test", "time": 1}
    (entry["folder"] / "link.json").write_text(json.dumps(gap))
    build(katana, sources, "gcc", "main.c", "g.c", "-o", "prog")
    entry = only_link(sources / ".katana")
    assert "gap" not in entry
    assert {path.name for path in entry["folder"].iterdir()} == {"at", "link.json", entry["version"]}


# ---- many at once ----


def test_eight_links_at_once_are_all_recorded(katana: Installation, project: Path) -> None:
    rules = ["all: " + " ".join(f"p{n}" for n in range(24))]
    for number in range(24):
        (project / f"p{number}.c").write_text("int shared(void);\nint main(void) { return shared(); }\n")
        rules.append(f"p{number}: p{number}.o shared.o\n\t$(CC) -o $@ $^")
    (project / "shared.c").write_text("int shared(void) { return 0; }\n")
    (project / "Makefile").write_text("\n".join(rules) + "\n")
    for _ in range(2):
        done = katana.run("make", "-s", "-j8", f"CC='{katana.cc}'", cwd=project)
        assert (done.returncode, done.stderr) == (0, b"")
        found = links(project / ".katana")
        assert {entry["output_key"] for entry in found} == {f"p{number}" for number in range(24)}
        for entry in found:
            assert input_names(entry) == {"shared.o", f"{entry['output_key']}.o"}
            for item in entry["inputs"]:
                copy = project / ".katana" / "staged" / "objects" / item["file"]
                assert copy.read_bytes() == Path(item["absolute"]).read_bytes()
        for number in range(24):
            os.utime(project / f"p{number}.c")
            (project / f"p{number}").unlink()
    assert not list((project / ".katana").rglob("*.tmp-*"))


# ---- deployed outputs ----


def test_a_deployed_output_is_ingested_at_once(katana: Installation, sources: Path, tmp_path: Path) -> None:
    # The ingester is replaced by one that writes down how it is called: its work is another test's matter.
    stand_in = tmp_path / "package" / "katana_cc" / "recorder"
    stand_in.mkdir(parents=True)
    for folder in (stand_in, stand_in.parent):
        (folder / "__init__.py").touch()
    (stand_in / "ingest.py").write_text("import sys\nprint(*sys.argv[1:], input(), sep='\\n')\nsys.exit(3)\n")
    prefix = tmp_path / "prefix"
    shutil.copytree(katana.prefix, prefix, symlinks=True)
    (pth,) = prefix.glob("lib/python*/site-packages/katana.pth")
    pth.write_text(f"{tmp_path / 'package'}\n")
    copied = Installation(prefix)
    build(copied, sources, "gcc", "main.c", "g.c", "-o", "prog")
    (sources / ".katana" / "deployed").write_text("other\nprog\n")
    key = hashlib.sha1(os.fsencode(sources / "prog")).hexdigest()[:16]
    done = copied.run(copied.cc, "gcc", "main.c", "g.c", "-o", "prog", cwd=sources)
    assert done.returncode == 0
    lines = done.stderr.decode().splitlines()
    assert lines == [str(sources / ".katana"), key]  # and no word of ours: the ingester says itself what is wrong
    assert done.stdout == b""
    strict = copied.run(copied.cc, "gcc", "main.c", "g.c", "-o", "prog", cwd=sources, KATANA_STRICT="1")
    assert strict.returncode == 1


def test_other_outputs_are_not_ingested(katana: Installation, sources: Path) -> None:
    build(katana, sources, "gcc", "main.c", "g.c", "-o", "prog")
    (sources / ".katana" / "deployed").write_text("program\npro\n")
    build(katana, sources, "gcc", "main.c", "g.c", "-o", "prog")
    assert not (sources / ".katana" / "index.db").exists()


# ---- places that cannot be written ----


def mount_or_skip(*arguments: str) -> None:
    if os.geteuid() != 0 or subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")


def test_a_full_disk_is_one_warning_and_leaves_nothing_half_made(
    katana: Installation, sources: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount_or_skip("-t", "tmpfs", "-o", "size=32k", "tmpfs", str(small))
    try:
        done = katana.run(
            katana.cc, "gcc", "main.c", "g.c", "-o", "prog", cwd=sources, KATANA_DIR=str(small / ".katana")
        )
        assert done.returncode == 0
        assert done.stderr.count(b"\n") == 1
        assert b"No space left on device" in done.stderr
        assert not list(small.rglob("*.tmp-*"))
        for entry in links(small / ".katana"):
            assert "gap" in entry
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_read_only_store_is_one_warning(katana: Installation, sources: Path, tmp_path: Path) -> None:
    store = tmp_path / "store" / ".katana"
    store.mkdir(parents=True)
    mount_or_skip("-t", "tmpfs", "-o", "ro", "tmpfs", str(store))
    try:
        done = katana.run(katana.cc, "gcc", "main.c", "g.c", "-o", "prog", cwd=sources, KATANA_DIR=str(store))
    finally:
        subprocess.run(["umount", store], check=True)
    assert done.returncode == 0
    assert done.stderr.count(b"\n") == 1
    assert b"Read-only file system" in done.stderr
    assert b"Errno" not in done.stderr
    assert b"set KATANA_DIR" in done.stderr
    assert (sources / "prog").exists()


def test_root_writes_as_the_stores_owner(katana: Installation, sources: Path) -> None:
    # `sudo make install` relinks; files of root's in the store would stop the owner's next build.
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.chown(sources, 12345, 12345)
    build(katana, sources, "gcc", "main.c", "g.c", "-o", "prog")
    store = sources / ".katana"
    assert {path.lstat().st_uid for path in (store, *store.rglob("*"))} == {12345}


# ---- cost ----


def test_staging_imports_next_to_nothing(katana: Installation, tmp_path: Path) -> None:
    stage = katana.libexec / "katana_cc" / "recorder" / "stage.py"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-I", "-S", stage, "map", "/usr/bin/ld", "0", "-o", "/dev/null"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.split("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    ours = {name for name in imported if name.startswith("katana_cc")}
    bare = subprocess.run(
        [sys.executable, "-X", "importtime", "-I", "-S", "-c", "import os"], capture_output=True, text=True, check=True
    )
    start = {line.split("|")[2].strip() for line in bare.stderr.splitlines() if line.startswith("import time:")}
    assert imported - ours - start == {"__future__", "fcntl", "_json", "_sha1"}
    assert len(ours) < 14


# ---- beside the link ----


def ahead(katana: Installation, sources: Path, orders: bytes) -> subprocess.CompletedProcess[bytes]:
    """Stage the link of `prog` as the wrapper does while it goes on; `orders` is what it says in the end."""
    stage = katana.libexec / "katana_cc" / "recorder" / "stage.py"
    words = ("-I", "-S", stage, "--ahead", "map", "/usr/bin/ld", "0", "-o", "prog")
    return katana.run(katana.prefix / "bin" / "python3", *words, cwd=sources, stdin=orders)


def test_a_link_that_fails_is_not_staged_by_who_waits_for_it(katana: Installation, sources: Path) -> None:
    (sources / "map").write_text("")
    shutil.copy("/bin/true", sources / "prog")  # an older one
    done = ahead(katana, sources, b"")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not (sources / ".katana").exists()


def test_a_link_that_succeeds_is_staged_by_who_waited_for_it(katana: Installation, sources: Path) -> None:
    compile_all(katana, sources, "main.c", "g.c")
    build(katana, sources, "gcc", "main.o", "g.o", "-o", "prog")
    before = only_link(sources / ".katana")
    (sources / "map").write_bytes((before["folder"] / before["map"]).read_bytes())
    done = ahead(katana, sources, b"\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    after = only_link(sources / ".katana")
    assert after["version"] != before["version"]
    assert input_names(after) == input_names(before)


def test_an_ingester_that_was_started_for_a_link_that_fails_is_not_heard_of(
    katana: Installation, sources: Path
) -> None:
    build(katana, sources, "gcc", "main.c", "g.c", "-o", "prog")
    python = katana.prefix / "bin" / "python3"
    assert katana.run(python, "-m", "katana_cc.cli.release", "v1", cwd=sources).returncode == 0
    (sources / "main.c").write_text(MAIN.replace("return g()", "return g() + h()"))
    failed = katana.run(katana.cc, "gcc", "-w", "main.c", "g.c", "-o", "prog", cwd=sources)
    assert failed.returncode == 1
    assert b"undefined reference to `h'" in failed.stderr
    assert b"katana" not in failed.stderr.replace(b"libexec/katana", b"")
    (sources / "main.c").write_text(MAIN.replace("return g()", "return g() + 1"))
    done = katana.run(katana.cc, "gcc", "main.c", "g.c", "-o", "prog", cwd=sources)
    assert done.stderr.startswith(b"katana: prog (v1 ")


def test_without_a_pipe_the_link_is_staged_afterwards(katana: Installation, sources: Path, tmp_path: Path) -> None:
    (tmp_path / "mkfifo").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "mkfifo").chmod(0o755)
    compile_all(katana, sources, "main.c", "g.c")
    path = f"{tmp_path}:{katana.prefix / 'bin'}:{os.environ['PATH']}"
    build(katana, sources, "gcc", "main.o", "g.o", "-o", "prog", PATH=path)
    assert "main.o" in input_names(only_link(sources / ".katana"))
