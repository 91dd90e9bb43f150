"""`katana check`: whatever bit of a store flips, whatever file is cut off or gone, is found and named."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from katana_cc.errors import KatanaError, StoreError
from katana_cc.patch import codec
from katana_cc.release.naming import write_deployed
from katana_cc.snapshot import images
from katana_cc.snapshot.index import TABLES
from katana_cc.snapshot.model import Snapshot, Unit
from katana_cc.snapshot.rows import PatchRow
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.verify import verify_store
from tests.support.patches import sample


def record(store: Store, number: int, output: str = "prog") -> Snapshot:
    """A snapshot of which each part is like that of the one before, and so is based on it."""
    chance = random.Random(output)
    before = store.latest(output)
    earlier = store.snapshot(before.id) if before else None
    units = []
    for name in ("a.o", "b.o"):
        data = bytearray(chance.randbytes(2000))
        data[number % len(data)] ^= 1 + (number >> 8) % 255 if name == "a.o" else 0
        like = next((u.blob for u in earlier.units if u.name == name), "") if earlier else ""
        units.append(Unit(name, store.blobs.put(bytes(data), like)))
    image = chance.randbytes(4000) + b"%08d" % number
    blob = store.add_image([[8, 500], [], [900]], image, before, lambda *_: images.Moves(len(image), ((0, 0),), ()))
    store.objects.remember({f"ident{number}": [("", units[0].blob)]}, {units[0].blob: b"record %d" % number})
    made = Snapshot(
        output, f"/nowhere/{output}", f"{number:040x}", "", float(number), "/usr/bin/ld", ("-o", output), tuple(units),
        {(0, n): 0x1000 + 64 * n for n in range(200)}, {}, {"_end": 0x3000}, {}, blob,
    )  # fmt: skip
    return store.add_snapshot(made)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with some of everything."""
    folder = tmp_path_factory.mktemp("whole") / ".katana"
    store = Store(folder, create=True)
    kept = [record(store, number) for number in range(1, 6)]
    store.add_release("v1", True, [kept[0].id])
    store.add_release("v2", False, [kept[2].id])
    store.add_gap("prog", "/nowhere/prog", "the disk was full")
    write_deployed(store)
    data = codec.encode(sample())
    path = folder / "patches" / "prog" / "v1..v2.kpo"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    identity = codec.patch_id(data)
    row = PatchRow(identity, "prog", kept[0].id, kept[2].id, "v1", "v2", "safe", str(path), len(data), 1.0)
    store.add_patch(row)
    store.close()
    # Most are based on others: a store of whole blobs would test half of it.
    assert sum(bool((store.blobs.header(blob) or pytest.fail()).digest) for blob in store.blobs) >= 10
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / ".katana"))


def flips(path: Path, places: int) -> Iterator[int]:
    """Flip a bit in some of the bytes, in one after another; put back what was there.  Of bytes that are zero, of which
    an index has many, only some."""
    data = path.read_bytes()
    chance = random.Random(path.name)
    for kind in ([at for at, byte in enumerate(data) if byte], [at for at, byte in enumerate(data) if not byte]):
        for at in chance.sample(kind, min(len(kind), places)):
            changed = bytearray(data)
            changed[at] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            yield at
        places //= 5
    path.write_bytes(data)


def problems(folder: Path) -> list[str]:
    try:
        return verify_store(folder)
    except KatanaError as error:
        return [str(error)]


def test_whole_store_has_no_problem(copy: Path) -> None:
    assert verify_store(copy) == []


def test_flipped_bit_of_any_blob_names_it_and_a_snapshot(copy: Path) -> None:
    for path in sorted((copy / "blobs").glob("?/*")):
        name = (path.parent.name + path.name)[:12]
        for at in flips(path, 12):
            found = [text for text in problems(copy) if name in text]
            assert found, (path, at)
            assert any("snapshot" in text for text in found), (path, at, found)
    assert problems(copy) == []


def test_flipped_bit_of_a_patch_object_names_it(copy: Path) -> None:
    (path,) = (copy / "patches").glob("*/*")
    for at in flips(path, 60):
        assert any(path.name in text for text in problems(copy)), at


def test_flipped_bit_of_the_list_of_deployed_outputs_is_found(copy: Path) -> None:
    """A bug: a link of a deployed output makes no patch any more, and nobody learns of it."""
    for at in flips(copy / "deployed", 100):
        assert any("deployed" in text for text in problems(copy)), at


def everything(folder: Path) -> object:
    """All that the index says; each value as it would be acted on."""
    with sqlite3.connect(folder / "index.db") as db:
        version = db.execute("PRAGMA user_version").fetchone()
        found = [version, *[db.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall() for table in TABLES]]
    db.close()
    return found


def test_flipped_bit_of_the_index_is_found_or_means_nothing(copy: Path) -> None:
    """A bug: a release that has another name, a time that is another, and a check that says all is well."""
    before = everything(copy)
    caught = 0
    for at in flips(copy / "index.db", 300):
        found = [text for text in problems(copy) if "index" in text or "store" in text]
        for name in ("index.db-wal", "index.db-shm"):
            (copy / name).unlink(missing_ok=True)
        if found:
            caught += 1
        else:
            assert everything(copy) == before, at
    assert caught > 150
    assert problems(copy) == []


def test_each_value_of_each_row_is_sealed(copy: Path) -> None:
    with sqlite3.connect(copy / "index.db") as db:
        for table in TABLES:
            (first,) = db.execute(f"SELECT min(rowid) FROM {table}").fetchone()
            for column in [row[1] for row in db.execute(f"PRAGMA table_info({table})")]:
                if column in ("id", "release", "snapshot", "from_snapshot", "to_snapshot"):
                    continue  # they would no longer be of the row that they refer to
                (was,) = db.execute(f"SELECT {column} FROM {table} WHERE rowid = {first}").fetchone()
                now = {str: "other", int: 77, float: 7.5, bytes: b"other"}[type(was)]
                one = f"WHERE rowid = {first}"
                db.execute(f"UPDATE {table} SET {column} = ? {one}", (now,))
                db.commit()
                assert any(f"of {table} is damaged" in text for text in problems(copy)), (table, column)
                db.execute(f"UPDATE {table} SET {column} = ? {one}", (was,))
                db.commit()
    db.close()
    assert problems(copy) == []


def test_missing_file_is_named(copy: Path) -> None:
    paths = [*(copy / "blobs").glob("?/*"), *(copy / "patches").glob("*/*"), copy / "deployed"]
    for path in paths:
        data = path.read_bytes()
        path.unlink()
        name = (path.parent.name + path.name)[:12] if "blobs" in path.parts else path.name
        assert any(name in text for text in problems(copy)), path
        path.write_bytes(data)
    (copy / "index.db").unlink()
    with pytest.raises(StoreError, match="nothing is recorded"):
        verify_store(copy)


def test_file_that_is_cut_off_anywhere_is_named(copy: Path) -> None:
    for path in [*sorted((copy / "blobs").glob("?/*")), *(copy / "patches").glob("*/*")]:
        data = path.read_bytes()
        name = (path.parent.name + path.name)[:12] if "blobs" in path.parts else path.name
        for size in {0, 1, len(data) // 3, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:size])
            assert any(name in text for text in problems(copy)), (path, size)
        path.write_bytes(data)


def test_log_of_an_index_that_nobody_closed_is_looked_at_too(copy: Path, tmp_path: Path) -> None:
    """A bug: SQLite takes a log up to the first wrong sum, and what was recorded after it is gone without a word."""
    store = Store(copy)
    for number in range(6, 10):
        record(store, number)
    left = tmp_path / "left"
    shutil.copytree(copy, left)  # as a writer that is killed leaves it
    store.close()
    log = left / "index.db-wal"
    assert log.stat().st_size > 20000
    assert problems(Path(shutil.copytree(left, tmp_path / "whole"))) == []
    last = log.stat().st_size - 4096 - 24  # of the last frame nobody can tell: a writer may have been killed there
    for n, at in enumerate(flips(log, 60)):
        if at < last:
            there = Path(shutil.copytree(left, tmp_path / f"flipped{n}"))
            assert any("log is damaged" in text or "head of its log" in text for text in problems(there)), at
            shutil.rmtree(there)
