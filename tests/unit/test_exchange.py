"""Push and pull between stores: the same bytes, nothing twice, nothing half, and no wrong byte taken."""

from __future__ import annotations

import http.server
import multiprocessing
import random
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from katana_cc.cli.main import main
from katana_cc.errors import InvalidPatchError, KatanaError, StoreError, TargetError, UsageError
from katana_cc.release.exchange import names, pull, push
from katana_cc.release.places import Place, place
from katana_cc.snapshot.garbage import Rule, collect
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.verify import verify_store
from tests.unit.test_garbage import read_all
from tests.unit.test_store_check import record


def built(folder: Path, builds: int = 6, every: int = 2) -> Store:
    """A store of some builds, each second a release."""
    store = Store(folder / ".katana", create=True)
    for n in range(1, builds + 1):
        one, other = record(store, n), record(store, n, "lib.so")
        if n % every == 0:
            store.add_release(f"v{n // every}", False, [one.id, other.id])
    return store


def all_of(store: Store, release: str) -> list[str]:
    """All that a release holds, but for the numbers that snapshots have in one store."""
    (found,) = [r for r in store.releases() if r.name == release]
    return sorted(repr(read_all(store, i)).replace(f"id={i}", "") for i in found.snapshots)


@pytest.fixture
def ci(tmp_path: Path) -> Store:
    (tmp_path / "ci").mkdir()
    return built(tmp_path / "ci")


@pytest.fixture
def laptop(tmp_path: Path) -> Store:
    return Store(tmp_path / "laptop" / ".katana", create=True)


def send(store: Store, there: Place) -> int:
    """Push all releases; the files that were sent."""
    return sum(done.files for done in push(store, there, store.releases(), []))


def take(store: Store, there: Place, *wanted: str) -> int:
    return sum(done.files for done in pull(store, there, wanted or names(there)))


@pytest.fixture(params=["folder", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "folder": str(tmp_path / "there"),
        "file": f"file://{tmp_path}/there",
        "memory": f"memory://{tmp_path.name}-{request.param}",
    }[request.param]


def test_pulled_release_is_the_pushed_one_to_the_byte(ci: Store, laptop: Store, url: str) -> None:
    assert send(ci, place(url)) > 0
    assert names(place(url)) == ["v1", "v2", "v3"]
    take(laptop, place(url))
    again = Store(laptop.folder)
    for release in ("v1", "v2", "v3"):
        assert all_of(again, release) == all_of(ci, release)
    assert [(r.name, r.deployed, r.time) for r in again.releases()] == [
        (r.name, r.deployed, r.time) for r in ci.releases()
    ]
    assert verify_store(laptop.folder) == []


def test_what_is_there_is_not_moved_again(ci: Store, laptop: Store, url: str) -> None:
    send(ci, place(url))
    assert send(ci, place(url)) == 0
    assert take(laptop, place(url)) > 0
    assert take(laptop, place(url)) == 0
    for n in (7, 8):
        made = [record(ci, n), record(ci, n, "lib.so")]
    ci.add_release("v4", True, [one.id for one in made])
    assert 0 < send(ci, place(url)) <= 16
    assert 0 < take(laptop, place(url)) <= 16
    assert (laptop.folder / "deployed").read_text() == "lib.so\nprog\n"


def test_web_server_that_serves_the_folder_can_be_pulled_from(ci: Store, laptop: Store, tmp_path: Path) -> None:
    send(ci, place(str(tmp_path / "there")))
    with serving(tmp_path / "there") as url:
        take(laptop, place(url), "v2")
        with pytest.raises(UsageError, match="does not tell"):
            names(place(url))
        with pytest.raises(UsageError, match="read only"):
            record(ci, 9)
            send(ci, place(url + "/other"))
    assert all_of(laptop, "v2") == all_of(ci, "v2")


class serving:
    """A web server of a folder."""

    def __init__(self, folder: Path) -> None:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        handler = partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Breaking:
    """A place that is gone after the files of some blobs were read or written."""

    def __init__(self, inner: Place, left: int) -> None:
        self.inner, self.left, self.url = inner, left, inner.url

    def _count(self, path: str) -> None:
        self.left -= path.startswith("store/files")
        if self.left < 0:
            raise TargetError("the connection broke", where=self.url)

    def read(self, path: str) -> bytes | None:
        self._count(path)
        return self.inner.read(path)

    def write(self, path: str, data: bytes) -> None:
        self._count(path)
        self.inner.write(path, data)

    def sizes(self, folder: str) -> Mapping[str, int] | None:
        return self.inner.sizes(folder)


def test_push_and_pull_that_break_off_go_on_where_they_were(ci: Store, laptop: Store, url: str) -> None:
    """Broken off after each number of files: no name is there before all of it, and nothing is sent twice."""
    sent, left = 0, 7
    while True:
        try:
            send(ci, Breaking(place(url), left))
            break
        except TargetError:
            sent += left
            assert sent <= len(list(ci.blobs))
            for name in names(place(url)):
                other = Store(laptop.folder.parent / f"after{sent}" / ".katana", create=True)
                take(other, place(url), name)
                assert all_of(other, name) == all_of(ci, name)
    assert send(ci, place(url)) == 0
    assert sent > 0
    tries = 0
    while True:
        try:
            take(laptop, Breaking(place(url), 9))
            break
        except TargetError:
            tries += 1
            assert verify_store(laptop.folder) == []
            assert tries < 100
    assert tries > 2
    for release in ("v1", "v2", "v3"):
        assert all_of(laptop, release) == all_of(ci, release)


def test_every_wrong_byte_at_the_place_is_refused_by_name(ci: Store, laptop: Store, tmp_path: Path) -> None:
    there = tmp_path / "there"
    send(ci, place(str(there)))
    chance = random.Random(1)
    files = sorted(p for p in there.rglob("*") if p.is_file())
    for path in chance.sample(files, 25) + [p for p in files if p.suffix]:
        data = path.read_bytes()
        for number in range(3):
            changed = bytearray(data)
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            other = Store(tmp_path / f"{path.name}{number}" / ".katana", create=True)
            with pytest.raises(KatanaError) as caught:
                take(other, place(str(there)))
            assert path.name in str(caught.value)
            assert verify_store(other.folder) == []
            collect(other, Rule())
            other.close()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(InvalidPatchError, match=path.name):
            take(Store(tmp_path / f"cut{path.name}" / ".katana", create=True), place(str(there)))
        path.unlink()
        if path.parent.name == "names":
            with pytest.raises(StoreError, match="there is no"):
                take(laptop, place(str(there)), path.stem)
        else:
            with pytest.raises(InvalidPatchError, match=path.name):
                take(Store(tmp_path / f"fresh{path.name}" / ".katana", create=True), place(str(there)))
        path.write_bytes(data)
    take(laptop, place(str(there)))
    assert verify_store(laptop.folder) == []


def test_half_a_file_at_the_place_is_sent_again(ci: Store, laptop: Store, tmp_path: Path) -> None:
    there = tmp_path / "there"
    send(ci, place(str(there)))
    for folder in ("names", "snapshots"):
        for path in (there / "store" / folder).iterdir():
            path.unlink()
    path = max((there / "store" / "files").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    path.write_bytes(path.read_bytes()[:100])
    assert send(ci, place(str(there))) == 1
    take(laptop, place(str(there)))


def test_name_of_other_builds_is_refused_both_ways(ci: Store, laptop: Store, url: str) -> None:
    send(ci, place(url))
    laptop.add_release("v1", True, [record(laptop, 77).id])
    with pytest.raises(StoreError, match="v1 is there already and holds other builds"):
        send(laptop, place(url))
    with pytest.raises(StoreError, match="v1 exists already and holds other builds"):
        take(laptop, place(url))
    assert all_of(ci, "v1") == all_of(ci, "v1")


def test_mark_of_a_deployed_release_goes_along(ci: Store, laptop: Store, url: str) -> None:
    send(ci, place(url))
    take(laptop, place(url))
    ci.add_release("v2", True, list(ci.releases()[1].snapshots))
    send(ci, place(url))
    take(laptop, place(url))
    assert [r.deployed for r in laptop.releases()] == [False, True, False]


def test_single_build_by_its_build_id(ci: Store, laptop: Store, url: str) -> None:
    row = ci.snapshot_rows("prog")[1]
    (done,) = push(ci, place(url), [], [row])
    assert done.name == row.build_id
    take(laptop, place(url), row.build_id)
    assert [r.build_id for r in laptop.snapshot_rows()] == [row.build_id]
    assert laptop.releases() == []


def test_older_build_that_is_pulled_is_not_the_newest(ci: Store, laptop: Store, url: str) -> None:
    """A bug: what was pulled last is taken for what is in the build tree."""
    mine = record(laptop, 50)
    send(ci, place(url))
    take(laptop, place(url))
    newest = laptop.latest("prog")
    assert newest
    assert newest.id == mine.id


def test_stores_that_keep_the_same_in_other_forms_can_share_a_place(ci: Store, tmp_path: Path, url: str) -> None:
    """A bug: A based on B from one store and B on A from another, and neither can be read."""
    backwards = Store(tmp_path / "backwards" / ".katana", create=True)
    made = [record(backwards, n, output) for n in (6, 5, 4, 3, 2, 1) for output in ("prog", "lib.so")]
    backwards.add_release("back", False, [made[-1].id, made[-2].id])
    forward = tmp_path / "forward"
    forward.mkdir()
    for first, second in ((ci, backwards), (backwards, ci)):
        send(first, place(url))
        send(second, place(url))
    other = Store(forward / ".katana", create=True)
    for wanted in (["back", "v3"], ["v1", "v2", "back"]):
        take(other, place(url), *wanted)
    assert all_of(other, "back") == all_of(backwards, "back")
    assert all_of(other, "v3") == all_of(ci, "v3")
    assert verify_store(other.folder) == []
    take(ci, place(url))
    take(backwards, place(url))
    assert verify_store(ci.folder) == verify_store(backwards.folder) == []


def _push_all(folder: Path, url: str) -> None:
    send(Store(folder), place(url))


def test_two_pushes_at_once(ci: Store, laptop: Store, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = built(tmp_path / "second", 9, 3)  # of the same builds, with releases of other builds
    for number, release in enumerate(second.releases()):
        with second.index.transaction() as db:
            db.execute("DELETE FROM release_snapshots WHERE release = ?", (number + 1,))
            db.execute("DELETE FROM releases WHERE name = ?", (release.name,))
        second.add_release(f"w{number}", False, list(release.snapshots))
    context = multiprocessing.get_context("spawn")
    url = str(tmp_path / "there")
    writers = [context.Process(target=_push_all, args=(s.folder, url)) for s in (ci, second, ci, second)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    take(laptop, place(url))
    for release in ci.releases():
        assert all_of(laptop, release.name) == all_of(ci, release.name)
    for release in second.releases():
        assert all_of(laptop, release.name) == all_of(second, release.name)
    assert verify_store(laptop.folder) == []
    assert [p for p in (tmp_path / "there").rglob("*") if p.is_file() and "tmp" in p.name] == []


def test_place_that_is_down_is_a_clear_error(ci: Store, laptop: Store) -> None:
    with pytest.raises(TargetError, match="cannot be fetched") as caught:
        take(laptop, place("http://127.0.0.1:9/store"), "v1")
    assert caught.value.remedy
    with pytest.raises(UsageError, match="not known here"):
        send(ci, place("nosuch://host/path"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "v1\n"])
def test_name_that_is_a_path_is_refused(laptop: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no name"):
        take(laptop, place(str(tmp_path)), name)


def test_damaged_blob_is_not_pushed(ci: Store, tmp_path: Path) -> None:
    blob = ci.snapshot_rows()[0].image
    path = ci.blobs.path(blob)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match=blob[:12]):
        send(Store(ci.folder), place(str(tmp_path / "there")))


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("KATANA_DIR", raising=False)
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    yield tmp_path / "new"


@pytest.mark.usefixtures("ci")
def test_commands(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = str(tmp_path / "there")
    assert main(["pull", there]) == 6
    assert "nothing was pushed there" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "ci")
    assert main(["push", there, "v1", "v3"]) == 0
    assert "v1: 2 snapshots: " in capsys.readouterr().out
    monkeypatch.chdir(inside)
    assert main(["pull", there]) == 0
    assert main(["pull", there, "v1", "--json"]) == 0
    assert '"files": 0' in capsys.readouterr().out
    assert [r.name for r in Store(inside / ".katana").releases()] == ["v1", "v3"]
    assert main(["pull", there, "v2"]) == 6
