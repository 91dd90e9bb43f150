"""What a new user types wrongly: a message with what to do, its exit status, never a traceback."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from katana_cc.cli.main import main
from katana_cc.cli.release import release
from katana_cc.patch.codec import encode
from katana_cc.snapshot.store import Store
from tests.support.patches import sample

LONG = "a" * 5000
DIGITS = "9" * 5000
WORDS = {
    "empty": "",
    "folder": ".",
    "nothing": "/nonexistent",
    "long": LONG,
    "digits": DIGITS,
    "superscript": "\u00b2",
    "negative": "-1",
    "zero": "a\0b",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an empty store and one patch object, as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KATANA_DIR", raising=False)
    Store(tmp_path / ".katana", create=True).close()
    (tmp_path / "p.kpo").write_bytes(encode(sample()))
    return tmp_path


def status(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as error:  # argparse
        assert isinstance(error.code, int)
        return error.code


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("command", ["show", "diff", "explain", "check", "apply", "revert"])
def test_word_that_names_nothing(command: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    word = WORDS[kind]
    selection = ["--pid", str(os.getppid())] if command in ("apply", "revert") else []
    expected = {"show": {6}, "diff": {6}, "revert": {2}}.get(command, {7})
    if word == "-1":
        expected = expected | {2}
    assert status(command, *selection, word) in expected
    assert capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say a COMMAND"),
        (("apply", "p.kpo", "--pid", "abc"), "'abc' is not a process id"),
        (("apply", "p.kpo", "--pid", "0"), "'0' is not a process id"),
        (("apply", "p.kpo", "--pid", DIGITS), "is not a process id"),
        (("apply", "p.kpo", "--pid"), "expected at least one argument"),
        (("apply", "p.kpo", "--tree", "\u0663"), "is not a process id"),
        (("apply", "p.kpo", "--pid", "1", "--wait", "nan"), "0 or more seconds"),
        (("apply", "p.kpo", "--pid", "1", "--wait", "inf"), "0 or more seconds"),
        (("apply", "p.kpo", "--pid", "1", "--allow-active", ""), "must name a function"),
        (("apply", "p.kpo", "--all", "--tree", "1"), "not allowed with"),
        (("revert", "--all", ""), "neither a patch object nor the beginning of a PO-ID"),
        (("status", "--pid", "0"), "'0' is not a process id"),
    ],
)
def test_usage(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`revert --all "$ID"` with an empty variable must not take everything out."""
    assert status(*words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", LONG, "a/b", "-x y", "\u00e4"])
def test_release_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        found = release([name])
    except SystemExit as error:
        found = int(error.code or 0)
    assert found == 2
    assert capsys.readouterr().err


def test_unreadable_store_is_no_empty_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KATANA_DIR names a file, or a folder that is not there."""
    (project / ".katana" / "index.db").unlink()
    assert status("log") == 6
    (project / ".katana").rename(project / "elsewhere")
    for place in (project / "p.kpo", project / "nowhere"):
        monkeypatch.setenv("KATANA_DIR", str(place))
        assert status("log") == 6
    monkeypatch.setenv("KATANA_DIR", "elsewhere")
    for command in ("log", "patches", "check", "gc"):
        assert status(command) == 2


def test_release_leaves_the_collector_as_it_was() -> None:
    """Only a process that ends with it may do without.  A bug: whoever calls it keeps all garbage from then on."""
    before = gc.isenabled(), gc.get_freeze_count()
    release(["v1"])
    assert (gc.isenabled(), gc.get_freeze_count()) == before
