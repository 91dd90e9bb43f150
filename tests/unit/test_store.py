"""The store: whole after any crash, safe for several at once, clear about what it cannot read."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from katana_cc.errors import StoreError, UsageError
from katana_cc.snapshot.blobs import BlobStore, digest_of
from katana_cc.snapshot.garbage import collect
from katana_cc.snapshot.model import Snapshot, Unit, from_json, to_json
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.rows import PatchRow
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.verify import verify_store


def snapshot(store: Store, number: int, output: str = "prog") -> Snapshot:
    """A snapshot whose blobs are in the store."""
    unit = Unit("a.o", store.blobs.put(b"object %d" % number))
    image = store.blobs.put(b"image %d" % number)
    return Snapshot(
        output, f"/nowhere/{output}", f"{number:040x}", "", float(number), "/usr/bin/ld", ("-o", output), (unit,),
        {(0, 1): 0x1000}, {"common": (0x2000, 4)}, {"_end": 0x3000}, {0x1000: ("f", "g")}, image, ((0, 2, "why"),),
        ("note",),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".katana", create=True)


def test_snapshot_is_read_as_it_was_written(store: Store) -> None:
    kept = store.add_snapshot(snapshot(store, 1))
    assert store.snapshot(kept.id) == kept


def test_snapshot_survives_json() -> None:
    one = Snapshot("o", "/o", "ab", "", 1.5, "ld", (), (), {(1, 2): 3}, {}, {}, {}, "image")
    assert from_json(to_json(one)) == one


def test_release_of_the_same_builds_can_be_named_again(store: Store) -> None:
    kept = store.add_snapshot(snapshot(store, 1))
    store.add_release("v1", True, [kept.id])
    store.add_release("v1", False, [kept.id])
    assert [(r.name, r.deployed) for r in store.releases()] == [("v1", False)]


def test_release_of_other_builds_is_refused(store: Store) -> None:
    store.add_release("v1", True, [store.add_snapshot(snapshot(store, 1)).id])
    other = store.add_snapshot(snapshot(store, 2))
    with pytest.raises(StoreError, match="holds other builds") as caught:
        store.add_release("v1", True, [other.id])
    assert "another name" in caught.value.remedy


def test_same_build_recorded_twice_is_the_same_release(store: Store) -> None:
    """A, B, A again: the second A has a row of its own and is the same build."""
    first = store.add_snapshot(snapshot(store, 1))
    store.add_release("v1", True, [first.id])
    store.add_snapshot(snapshot(store, 2))
    store.add_release("v1", True, [store.add_snapshot(snapshot(store, 1)).id])
    assert store.releases()[0].snapshots == (first.id,)


def test_later_version_is_refused_by_name(store: Store) -> None:
    store.close()
    with sqlite3.connect(store.folder / "index.db") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="version 99") as caught:
        Store(store.folder)
    assert "later" in caught.value.remedy


def test_index_that_was_never_finished_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "index.db").touch()
    with pytest.raises(StoreError, match="nothing is recorded"):
        Store(tmp_path)
    assert Store(tmp_path, create=True).snapshot_rows() == []


def test_index_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "index.db").write_bytes(b"nonsense" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path)


def test_missing_store_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KATANA_DIR", raising=False)
    with pytest.raises(StoreError, match=r"no \.katana") as caught:
        find_store(tmp_path)
    assert "CC=katana-cc" in caught.value.remedy


def test_store_above_comes_before_the_environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KATANA_DIR", "/elsewhere")
    below = store.folder.parent / "a" / "b"
    below.mkdir(parents=True)
    assert find_store(below) == store.folder


def _add_many(folder: Path, worker: int) -> None:
    mine = Store(folder, create=True)
    for i in range(10):
        with mine.hold():
            mine.add_snapshot(snapshot(mine, worker * 100 + i, f"out{worker}"))


def test_eight_writers_at_once(tmp_path: Path) -> None:
    folder = tmp_path / ".katana"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_many, args=(folder, n)) for n in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0] * 8
    assert len(Store(folder).snapshot_rows()) == 80
    assert verify_store(folder) == []


_WRITER = """
import sys
from pathlib import Path
from katana_cc.snapshot.store import Store
from tests.unit.test_store import snapshot
store = Store(Path(sys.argv[1]), create=True)
print("ready", flush=True)
for i in range(100000):
    kept = store.add_snapshot(snapshot(store, i))
    store.objects.remember({f"ident{i}": [("", kept.units[0].blob)]}, {kept.units[0].blob: b"record"})
    store.add_release(f"v{i}", False, [kept.id])
    print(i, flush=True)
"""


@pytest.mark.parametrize("seed", range(8))
def test_killed_writer_leaves_a_whole_store(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / ".katana"
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, folder],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert writer.stdout
    assert writer.stdout.readline() == "ready\n"
    chance = random.Random(seed)
    last = -1
    for _ in range(chance.randrange(1, 12)):
        last = int(writer.stdout.readline())
    # It is somewhere in the next round now: in a blob, between blobs and index, in a transaction.
    os.sched_yield()
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert verify_store(folder) == []
    after = Store(folder)
    assert len(after.releases()) >= last + 1
    kept = after.add_snapshot(snapshot(after, 10**6))
    assert after.snapshot(kept.id) == kept
    collect(after)
    assert verify_store(folder) == []
    assert list(after.blobs.unfinished()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A file system of half a megabyte."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", mount], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("cannot mount a small file system here")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def test_full_disk_is_a_clear_error_and_leaves_a_whole_store(small_disk: Path) -> None:
    folder = small_disk / ".katana"
    store = Store(folder, create=True)
    added = 0
    with pytest.raises(StoreError) as caught:
        for i in range(1000):
            store.blobs.put(random.Random(i).randbytes(20000))
            store.add_snapshot(snapshot(store, i))
            added += 1
    assert added
    assert caught.value.remedy
    store.close()
    assert verify_store(folder) == []
    assert len(Store(folder).snapshot_rows()) >= added


def test_read_only_medium_can_be_read_and_says_so_when_written(small_disk: Path) -> None:
    store = Store(small_disk / ".katana", create=True)
    kept = store.add_snapshot(snapshot(store, 1))
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    reader = Store(small_disk / ".katana")
    assert reader.snapshot(kept.id) == kept
    with pytest.raises(StoreError):
        reader.add_release("v1", True, [kept.id])
    with pytest.raises(StoreError), reader.hold():
        pass


def test_store_on_a_read_only_medium_can_be_checked(small_disk: Path) -> None:
    """A bug: the check opens the index for writing, and calls a whole store damaged."""
    store = Store(small_disk / ".katana", create=True)
    kept = store.add_snapshot(snapshot(store, 1))
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    problems = verify_store(small_disk / ".katana")
    assert [p for p in problems if p.startswith("index")] == []
    assert Store(small_disk / ".katana").snapshot(kept.id) == kept


def test_messages_are_plain_words_with_a_remedy(small_disk: Path, tmp_path: Path) -> None:
    """A bug: `[Errno 28] …` or SQLite's own text reaches the user."""
    store = Store(small_disk / ".katana", create=True)
    with pytest.raises(StoreError) as full:
        for i in range(1000):
            store.blobs.put(random.Random(i).randbytes(20000))
            store.add_snapshot(snapshot(store, i))
    store.close()
    with pytest.raises(StoreError) as missing:
        Store(small_disk / "file", create=False)
    (tmp_path / "index.db").write_bytes(b"no database " * 100)
    with pytest.raises(StoreError) as foreign:
        Store(tmp_path)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError) as readonly:
        Store(small_disk / "other", create=True)
    assert "the disk is full" in full.value.what
    assert "nothing is recorded here yet" in missing.value.what
    assert "it is no index of a Katana store" in foreign.value.what
    assert "it lies on a read-only medium" in readonly.value.what
    for caught in (full, foreign, readonly):
        assert not re.search(r"Errno|unable to open|disk image", str(caught.value))
        assert caught.value.remedy


def test_relative_katana_dir_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: links refuse it, and commands look into whatever folder they stand in."""
    (tmp_path / ".katana").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KATANA_DIR", "store")
    with pytest.raises(UsageError, match="must be an absolute path") as caught:
        find_store()
    assert str(tmp_path / "store") in caught.value.remedy


def test_damaged_blob_is_found_with_what_needs_it(store: Store) -> None:
    kept = store.add_snapshot(snapshot(store, 1))
    path = store.blobs.path(kept.image)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (problem,) = verify_store(store.folder)
    assert kept.image[:12] in problem
    assert "snapshot 1 of prog" in problem


def test_missing_blob_is_found(store: Store) -> None:
    kept = store.add_snapshot(snapshot(store, 1))
    store.blobs.path(kept.units[0].blob).unlink()
    assert verify_store(store.folder) == [f"blob {kept.units[0].blob[:12]} is missing, needed by snapshot 1 of prog"]


def test_swapped_blobs_are_found(store: Store) -> None:
    kept = store.add_snapshot(snapshot(store, 1))
    a, b = store.blobs.path(kept.image), store.blobs.path(kept.units[0].blob)
    data = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(data)
    assert len(verify_store(store.folder)) == 2


def test_empty_blob_of_a_power_failure_is_written_again(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    digest = blobs.put(b"data")
    blobs.path(digest).write_bytes(b"")
    assert blobs.put(b"data") == digest
    assert blobs.get(digest) == b"data"


def test_blob_is_named_by_its_contents(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    assert blobs.put(b"data") == blobs.put(b"data") == digest_of(b"data")
    assert list(blobs) == [digest_of(b"data")]


def test_collecting_keeps_releases_patches_and_the_newest(store: Store) -> None:
    kept = [store.add_snapshot(snapshot(store, n)) for n in range(5)]
    store.add_release("v1", False, [kept[0].id])
    store.add_patch(PatchRow("id", "prog", kept[1].id, kept[2].id, "a", "b", "safe", "/nowhere.kpo", 1, 1.0))
    other = store.add_snapshot(snapshot(store, 50, "other"))
    gone = collect(store)
    assert gone.snapshots == 1
    assert gone.blobs == 3
    assert {r.id for r in store.snapshot_rows()} == {kept[0].id, kept[1].id, kept[2].id, kept[4].id, other.id}
    for row in store.snapshot_rows():
        whole = store.snapshot(row.id)
        assert store.blobs.get(whole.image)
        assert store.blobs.get(whole.units[0].blob)


def test_collecting_forgets_the_objects_it_drops(store: Store) -> None:
    first = store.add_snapshot(snapshot(store, 1))
    store.objects.remember({"ident": [("", first.units[0].blob)]}, {first.units[0].blob: b"record"})
    store.add_snapshot(snapshot(store, 2))
    collect(store)
    assert store.objects.members(["ident"]) == {}
    assert store.objects.records([first.units[0].blob]) == {}


def test_damaged_record_is_named_and_made_again(store: Store) -> None:
    kept = store.add_snapshot(snapshot(store, 1))
    blob = kept.units[0].blob
    store.objects.remember({}, {blob: b"record"})
    assert store.objects.records([blob]) == {blob: b"record"}
    with store.index.transaction() as db:
        db.execute("UPDATE records SET record = zeroblob(20)")
    assert store.objects.records([blob]) == {}
    assert [p for p in verify_store(store.folder) if "record" in p and blob[:12] in p]
    store.objects.remember({}, {blob: b"record"})
    assert store.objects.records([blob]) == {blob: b"record"}
    assert verify_store(store.folder) == []


def test_collecting_waits_for_a_recording(store: Store) -> None:
    """Blobs that are put but not yet named by a row are not garbage."""
    context = multiprocessing.get_context("spawn")
    with store.hold():
        one = snapshot(store, 1)
        collector = context.Process(target=_collect, args=(store.folder,))
        collector.start()
        collector.join(1)
        assert collector.is_alive()
        kept = store.add_snapshot(one)
    collector.join()
    assert collector.exitcode == 0
    assert store.blobs.get(kept.image)


def _collect(folder: Path) -> None:
    collect(Store(folder))


def test_damaged_manifest_stops_the_collector_before_it_drops_anything(store: Store) -> None:
    kept = store.add_snapshot(snapshot(store, 1))
    store.add_snapshot(snapshot(store, 2))
    blobs = len(list(store.blobs))
    newest = store.snapshot_rows()[0].manifest
    store.blobs.path(newest).write_bytes(b"damage")
    with pytest.raises(StoreError):
        collect(store)
    assert len(list(store.blobs)) == blobs
    assert kept.id in {r.id for r in store.snapshot_rows()}
