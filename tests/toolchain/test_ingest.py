"""Ingestion: what is recorded of links of each linker, and that damaged input is a gap with its reason."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError, KatanaError
from katana_cc.recorder import inputs
from katana_cc.recorder.ingest import StagedLink, ingest, read_staged, staged_links
from katana_cc.release.naming import current_snapshots, ingest_staged
from katana_cc.snapshot.model import to_json
from katana_cc.snapshot.store import Store
from tests.support.project import Project, Variant

FILES = {
    "main.c": "int serve(int); static int calls; int main(int c, char **v) { calls++; return serve(c) + calls; }",
    "sub/a.c": "static int n = 3; static int work(int x) { return x * 77 + n++; } int serve(int x) { return work(x); }",
    "lib/one.c": "int helper(int x) { return x * 5 + 3; }",
}


@pytest.mark.parametrize("linker", ["bfd", "gold", "lld", "mold"])
def test_every_function_is_placed_where_the_symbol_table_has_it(tmp_path: Path, linker: str) -> None:
    if shutil.which(f"ld.{linker}") is None:
        pytest.skip(f"ld.{linker} is not installed")
    project = Project(tmp_path, Variant("gcc", "-O0", "pie", linker))
    build = project.build(FILES)
    lines = subprocess.run(["nm", build.path], check=True, capture_output=True, text=True).stdout.splitlines()
    known = {name: int(address, 16) for address, _, name in (x.split() for x in lines if len(x.split()) == 3)}
    units = {Path(u.name).name: i for i, u in enumerate(build.snapshot.units)}
    checked = 0
    for file, names in (("main.o", ["main", "calls"]), ("a.o", ["work", "serve", "n"]), ("one.o", ["helper"])):
        elf = ElfFile(project.store.blobs.get(build.snapshot.units[units[file]].blob))
        for s in elf.symbols:
            if s.name in names and s.type in (c.STT_FUNC, c.STT_OBJECT):
                assert build.snapshot.placements[units[file], s.section] + s.value == known[s.name]
                checked += 1
    assert checked == 6
    assert build.snapshot.unplaced == ()


def test_units_are_named_by_their_path_in_the_project(tmp_path: Path) -> None:
    build = Project(tmp_path).build(FILES, archive=["lib/one.c"])
    names = {u.name for u in build.snapshot.units}
    assert {"main.o", "sub/a.o"} <= names


def test_archive_member_is_named_with_its_archive(tmp_path: Path) -> None:
    files = {
        **FILES,
        "main.c": "int helper(int); int serve(int); int main(int c, char **v) { return helper(serve(c)); }",
    }
    build = Project(tmp_path).build(files, archive=["lib/one.c"])
    assert "libpart.a(one.o)" in {u.name for u in build.snapshot.units}


def test_same_build_is_the_same_snapshot(tmp_path: Path) -> None:
    project = Project(tmp_path)
    assert project.build(FILES).snapshot.id == project.build(FILES).snapshot.id


def test_renumbered_copy_of_an_object_is_read_once(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.build(FILES)
    blobs = set(project.store.blobs)
    project.build({**FILES, "sub/a.c": FILES["sub/a.c"].replace("77", "78")})
    # Its object, the new image and the new manifest.
    assert len(set(project.store.blobs) - blobs) == 3


def staged(tmp_path: Path) -> tuple[Project, StagedLink]:
    """A project whose link is staged and not yet ingested."""
    project = Project(tmp_path)
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    words = ["gcc", "-g", "-O2", "-ffunction-sections", *FILES, "-Wl,--build-id=sha1", "-Wl,-Map=.map", "-o", "prog"]
    subprocess.run([*words, "-save-temps=obj"], cwd=tmp_path, check=True)
    return project, project.stage("prog", words)


def assert_gap(store: Store, link: StagedLink) -> str:
    """The link cannot be ingested, and says why; returns the reason."""
    with pytest.raises(KatanaError) as caught:
        ingest(store, link)
    assert caught.value.remedy
    assert store.gaps()[0].reason
    assert store.snapshot_rows() == []
    return store.gaps()[0].reason


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("part", ["map", "output", "object"])
def test_truncated_input_is_a_gap_or_makes_no_difference(tmp_path: Path, part: str, share: float) -> None:
    project, link = staged(tmp_path)
    inputs = [i for i in link.info["inputs"] if i["path"].endswith("a.o")]
    target = tmp_path / ".katana/staged/objects" / inputs[0]["file"] if part == "object" else link.folder / part
    data = target.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    try:
        snapshot = ingest(project.store, link)
    except KatanaError as error:
        assert error.remedy or error.where
        assert project.store.gaps()[0].reason
    else:
        # What was cut off was not needed (debug sections at the end of the output, the map's cross references).
        assert part in ("map", "output")
        assert share > 0.5
        assert snapshot.placements


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_are_a_gap_or_a_snapshot_never_a_traceback(tmp_path: Path, seed: int) -> None:
    project, link = staged(tmp_path)
    chance = random.Random(seed)
    files = [link.folder / "map", link.folder / "output"]
    files += [tmp_path / ".katana/staged/objects" / i["file"] for i in link.info["inputs"] if i["path"].endswith(".o")]
    for _ in range(3):
        target = chance.choice(files)
        data = bytearray(target.read_bytes())
        for _ in range(200):
            data[chance.randrange(min(len(data), 2000) if chance.random() < 0.5 else len(data))] = chance.randrange(256)
        target.write_bytes(data)
    try:
        ingest(project.store, link)
    except KatanaError as error:
        assert error.what
        assert project.store.gaps()


@pytest.mark.parametrize("key", ["map", "image", "inputs", "argv", "linker", "time", "output_key"])
def test_entry_without_a_key_is_a_gap(tmp_path: Path, key: str) -> None:
    project, link = staged(tmp_path)
    info = {k: v for k, v in link.info.items() if k != key}
    (link.folder / "link.json").write_text(json.dumps(info))
    for entry in staged_links(project.store.folder):
        if key == "output_key":
            assert ingest(project.store, entry).output
        else:
            assert assert_gap(project.store, entry)


def test_gap_of_the_stager_keeps_its_reason(tmp_path: Path) -> None:
    project, link = staged(tmp_path)
    info = {k: link.info[k] for k in ("format", "output", "output_key", "time")} | {"gap": "no space left on device"}
    (link.folder / "link.json").write_text(json.dumps(info))
    assert ingest_staged(project.store).failed == (("prog", "no space left on device"),)


def test_gap_is_noted_once(tmp_path: Path) -> None:
    project, link = staged(tmp_path)
    (link.folder / "map").write_text("no map")
    ingest_staged(project.store)
    ingest_staged(project.store)
    assert len(project.store.gaps()) == 1


def test_output_whose_newest_link_is_a_gap_has_no_current_snapshot(tmp_path: Path) -> None:
    project, link = staged(tmp_path)
    ingest(project.store, link)
    assert len(current_snapshots(project.store)) == 1
    shutil.copytree(link.folder, link.folder.parent / "again")
    (link.folder.parent / "again" / "output").write_bytes(b"")
    link.folder.rename(tmp_path / "gone")
    ingest_staged(project.store)
    assert current_snapshots(project.store) == []


def test_staged_link_that_is_not_there(tmp_path: Path) -> None:
    project = Project(tmp_path)
    with pytest.raises(KatanaError, match="cannot be read"):
        read_staged(project.store.folder, "0123456789abcdef")


def test_output_without_build_id_is_a_gap(tmp_path: Path) -> None:
    project, link = staged(tmp_path)
    words = ["gcc", "-g", *FILES, "-Wl,--build-id=none", "-Wl,-Map=.map", "-o", "prog"]
    subprocess.run(words, cwd=tmp_path, check=True)
    shutil.rmtree(link.folder)
    (project.folder / ".map").write_bytes((tmp_path / ".map").read_bytes())
    assert "build-id" in assert_gap(project.store, project.stage("prog", words))


MANY = 30


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> StagedLink:
    """A link of many objects that is staged: some in an archive, with a member that nobody takes and two of one name,
    and some that are the same to the byte."""
    folder = tmp_path_factory.mktemp("many")
    project = Project(folder)
    files = {f"f{n}.c": f"static int s{n}; int f{n}(int x) {{ return x * {n} + s{n}++; }}" for n in range(MANY)}
    files["main.c"] = "".join(f"int f{n}(int); " for n in range(MANY))
    files["main.c"] += f"int main(int c, char **v) {{ return {' + '.join(f'f{n}(c)' for n in range(MANY))}; }}"
    files["none.c"] = "int nobody_calls_it(void) { return 1; }"
    files["same/f1.c"] = files["same/f2.c"] = "static __attribute__((used)) int same(int x) { return x - 1; }"
    objects = project.compile(files)
    shutil.copy(folder / "same/f1.o", folder / "same/f2.o")
    members = [objects[name] for name in ("f1.c", "f2.c", "none.c", "same/f1.c", "same/f2.c")]
    subprocess.run(["ar", "qc", "libmany.a", *members], cwd=folder, check=True)
    words = ["gcc", *[o for o in objects.values() if o not in members], "same/f1.o", "libmany.a"]
    subprocess.run([*words, "-Wl,--build-id=sha1,-Map=.map", "-o", "prog"], cwd=folder, check=True)
    link = project.stage("prog", words)
    project.store.close()
    (folder / ".katana").rename(folder / "staged")
    return link


def fresh(link: StagedLink) -> Store:
    """A store that holds nothing but the staged link."""
    folder = Path(link.info["output"]).parent
    shutil.rmtree(folder / ".katana", ignore_errors=True)
    shutil.copytree(folder / "staged", folder / ".katana")
    return Store(folder / ".katana")


def all_of(store: Store) -> object:
    """All that a store holds."""
    tables = ("snapshots", "objects", "records")
    return sorted(store.blobs), [store.index.rows(f"SELECT * FROM {table} ORDER BY rowid") for table in tables]


def die(self: inputs.Inputs, key: tuple[str, str], whole: bool) -> object:
    """In place of `_read`: a worker ends at its first object."""
    if os.getpid() != HERE:
        os._exit(1)
    return READ(self, key, whole)


HERE, READ = os.getpid(), inputs.Inputs._read


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("way", ["two", "five", "dying", "no fork", "after a failure"])
def test_store_is_the_same_however_many_processes_read(
    many: StagedLink, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(inputs, "helpers_for", lambda _: 0)
    store = fresh(many)
    alone = to_json(ingest(store, many))
    expected = all_of(store)
    store = fresh(many)
    monkeypatch.setattr(inputs, "helpers_for", lambda _: {"two": 1, "five": 4}.get(way, 2))
    if way == "dying":
        monkeypatch.setattr(inputs.Inputs, "_read", die)
    elif way == "no fork":
        monkeypatch.setattr(os, "fork", lambda: os.close(-1))
    elif way == "after a failure":
        # All blobs are there then, and no record.
        with monkeypatch.context() as failing:
            failing.setattr(inputs.Inputs, "remember", lambda _: store.index.rows("no SQL"))
            with pytest.raises(KatanaError):
                ingest(store, many)
    assert to_json(ingest(store, many)) == alone
    assert all_of(store) == expected


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("helpers", [0, 1, 3])
def test_first_damaged_object_is_named_however_many_processes_read(
    many: StagedLink, monkeypatch: pytest.MonkeyPatch, helpers: int
) -> None:
    store = fresh(many)
    for item in many.info["inputs"]:
        if item["path"] in ("f5.o", "f20.o"):
            (store.folder / "staged/objects" / item["file"]).write_bytes(b"no object")
    monkeypatch.setattr(inputs, "helpers_for", lambda _: helpers)
    with pytest.raises(FormatError) as caught:
        ingest(store, many)
    assert caught.value.where == "f5.o"
