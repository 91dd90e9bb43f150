"""`katana gc`: what a rule drops, and that nothing else is lost, whatever the history and wherever it is killed."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from katana_cc.cli import gc
from katana_cc.snapshot.garbage import Rule, collect
from katana_cc.snapshot.rows import PatchRow
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.verify import verify_store
from tests.unit.test_store_check import record

OUTPUTS = ("prog", "lib.so")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".katana", create=True)


def patch(store: Store, old: int, new: int) -> Path:
    """A row of a patch object between two snapshots, and a file in its place."""
    path = store.folder / "patches" / "prog" / f"{old}..{new}.kpo"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"patch")
    store.add_patch(PatchRow(f"{old:016x}{new:016x}", "prog", old, new, "a", "b", "safe", str(path), 5, 1.0))
    return path


def read_all(store: Store, identifier: int) -> object:
    """All of a snapshot, to the last byte."""
    snapshot = store.snapshot(identifier)
    return snapshot, store.image(snapshot), [store.blobs.get(unit.blob) for unit in snapshot.units]


step = st.one_of(
    st.tuples(st.just("build"), st.sampled_from(OUTPUTS), st.booleans()),
    st.tuples(st.just("release"), st.booleans(), st.booleans()),
    st.tuples(st.just("gc"), st.one_of(st.none(), st.integers(1, 4)), st.one_of(st.none(), st.integers(0, 12))),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(step, min_size=4, max_size=40))
def test_no_history_and_no_rule_loses_what_a_release_or_the_newest_needs(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object, object]]
) -> None:
    """Against a model of what has to stay: each snapshot as it was when it was recorded, all its bytes."""
    store = Store(tmp_path_factory.mktemp("history") / ".katana", create=True)
    recorded: dict[int, object] = {}
    order: dict[str, list[int]] = {output: [] for output in OUTPUTS}
    times: dict[int, float] = {}
    released: set[int] = set()
    patched: set[int] = set()
    clock = 0
    for number, (kind, first, second) in enumerate(steps):
        if kind == "build":
            clock += 1
            made = record(store, clock, str(first))
            recorded[made.id] = read_all(Store(store.folder), made.id)
            order[str(first)].append(made.id)
            times[made.id] = made.time
            if second and released:  # a patch from some release, as a link of a deployed output makes
                patch(store, min(released), made.id)
                patched |= {min(released), made.id}
        elif kind == "release":
            newest = [its[-1] for its in order.values() if its]
            if newest:
                store.add_release(f"v{number}", bool(first), newest)
                released |= set(newest)
        else:
            rule = None
            if first is not None or second is not None:
                rule = Rule(int(str(first or 1)), None if second is None else clock - int(str(second)))
            collect(store, rule)
            left = {row.id for row in store.snapshot_rows()}
            for output, all_made in order.items():
                last = set(all_made[-(rule.keep_last if rule else 1) :])
                for one in all_made:
                    must = one in released or one in last or (not rule and one in patched)
                    young = rule is not None and rule.before is not None and times[one] >= rule.before
                    assert (one in left) == (must or young), (output, one, rule)
                order[output] = [one for one in all_made if one in left]
            recorded = {one: whole for one, whole in recorded.items() if one in left}
            patched &= left
        again = Store(store.folder)
        assert {one: read_all(again, one) for one in recorded} == recorded
        again.close()
    missing = [p for p in verify_store(store.folder) if ".kpo" not in p and "deployed" not in p]
    assert missing == []
    collect(store)
    store.close()


def test_rule_drops_patch_objects_with_their_snapshots(store: Store) -> None:
    kept = [record(store, n) for n in range(1, 8)]
    store.add_release("v1", True, [kept[0].id])
    paths = [patch(store, kept[0].id, one.id) for one in kept[1:]]
    assert collect(store).snapshots == 0  # without a rule they keep all
    gone = collect(store, Rule(keep_last=2))
    assert (gone.snapshots, gone.patches) == (4, 4)
    assert {p.to_snapshot for p in store.patches()} == {kept[5].id, kept[6].id}
    assert [path.exists() for path in paths] == [False] * 4 + [True] * 2
    assert gone.blobs > 0


def test_age_is_that_of_the_link(store: Store) -> None:
    for n in range(1, 8):
        record(store, n)
    collect(store, Rule(before=4.0))
    assert [row.time for row in store.snapshot_rows()] == [7.0, 6.0, 5.0, 4.0]
    collect(store, Rule(keep_last=3, before=100.0))
    assert [row.time for row in store.snapshot_rows()] == [7.0, 6.0, 5.0]


def test_bases_of_what_stays_stay(store: Store) -> None:
    """A bug: the first build's image goes, and with it what the last is based on."""
    for n in range(1, 20):
        last = record(store, n)
    expected = read_all(store, last.id)
    collect(store, Rule())
    assert read_all(Store(store.folder), last.id) == expected
    assert verify_store(store.folder) == []


def test_way_to_a_blob_stays_short_where_each_build_is_collected_after_the_next(store: Store) -> None:
    """A bug: what a new image could be based on is gone each time but the last, and the way grows by one a build."""
    for n in range(1, 60):
        last = record(store, n)
        collect(store, Rule())
    for blob in (last.image, *[unit.blob for unit in last.units]):
        header = store.blobs.header(blob)
        assert header
        assert header.way <= 12
    assert verify_store(store.folder) == []


def test_index_gives_back_what_it_held(store: Store) -> None:
    for n in range(1, 150):
        record(store, n)
    store.close()
    before = (store.folder / "index.db").stat().st_size
    again = Store(store.folder)
    collect(again, Rule())
    again.close()
    assert (store.folder / "index.db").stat().st_size < before / 2


_COLLECTOR = """
import sys
from pathlib import Path
from katana_cc.snapshot.garbage import Rule, collect
from katana_cc.snapshot.store import Store
store = Store(Path(sys.argv[1]))
remove, count = Path.unlink, 0
def unlink(self, missing_ok=False):
    global count
    if count == int(sys.argv[2]):
        print("there", flush=True)
        sys.stdin.read()
    count += 1
    remove(self, missing_ok)
Path.unlink = unlink
collect(store, Rule())
"""


@pytest.mark.parametrize("place", [0, 1, 2, 5, 9, 14, 22])
def test_collector_that_is_killed_leaves_a_whole_store(store: Store, place: int) -> None:
    """Killed before it removes its first file, its second, …: all that is named is there and whole."""
    kept = [record(store, n) for n in range(1, 12)]
    store.add_release("v1", True, [kept[2].id])
    for one in kept[4:8]:
        patch(store, kept[2].id, one.id)
    stays = {one: read_all(store, one) for one in (kept[2].id, kept[10].id)}
    command = [sys.executable, "-c", _COLLECTOR, str(store.folder), str(place)]
    environment = {**os.environ, "PYTHONPATH": "."}
    collector = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert collector.stdout
    assert collector.stdout.readline() == "there\n"
    collector.send_signal(signal.SIGKILL)
    collector.communicate()
    again = Store(store.folder)
    assert {one: read_all(again, one) for one in stays} == stays
    assert [p for p in verify_store(store.folder) if "deployed" not in p] == []
    # What was half dropped may come again: the object that a revert of the source makes.
    for n in (4, 5, 6):
        new = record(again, n)
        assert read_all(Store(store.folder), new.id)
    collect(again, Rule())
    assert list(again.blobs.unfinished()) == []
    assert [p for p in verify_store(store.folder) if "deployed" not in p] == []
    needed = {row.manifest for row in again.snapshot_rows()}
    assert needed <= set(again.blobs)


def _builder(folder: Path, output: str, seed: int) -> None:
    mine = Store(folder)
    for n in random.Random(seed).sample(range(1000), 25):
        with mine.hold():
            made = record(mine, n + 1, output)
            patch(mine, made.id, made.id)
        newest = mine.latest(output)
        assert newest
        assert newest.id == made.id
        assert read_all(Store(folder), made.id)


def test_collector_beside_builds_takes_nothing_of_what_they_store(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    builders = [context.Process(target=_builder, args=(store.folder, f"out{n}", n)) for n in range(3)]
    for builder in builders:
        builder.start()
    rounds = 0
    while any(builder.is_alive() for builder in builders):
        collect(store, Rule())
        rounds += 1
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert rounds > 1
    collect(store, Rule())
    assert len(store.snapshot_rows()) == 3
    assert [p for p in verify_store(store.folder) if ".kpo" not in p] == []  # these are none


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    gc.add_arguments(parser)
    return parser.parse_args(words)


def test_ages_and_counts_as_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments("--older-than", "90m").older_than == 5400
    assert arguments("--older-than", "2w", "--keep-last", "5").older_than == 14 * 86400
    for words in (["--older-than", "soon"], ["--keep-last", "0"], ["--keep-last", "-1"], ["--older-than", "3"]):
        with pytest.raises(SystemExit):
            arguments(*words)
    assert "30d" in capsys.readouterr().err


def test_command_says_what_went(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(1, 6):
        record(store, n)
    monkeypatch.chdir(store.folder.parent)
    gc.run(arguments("--keep-last", "2"))
    assert "dropped 3 snapshots, 0 patch objects and" in capsys.readouterr().out
    gc.run(arguments("--older-than", "1d"))
    assert "dropped 1 snapshot," in capsys.readouterr().out
