"""What katana asks of the system for the moment in which a target stands still."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.process import priority


def test_score_is_lowered_and_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bug: also what katana does before and after is its to keep, and a server is killed for it."""
    score = tmp_path / "score"
    score.write_text("200")
    monkeypatch.setattr(priority, "_SCORE", score)
    with pytest.raises(MemoryError), priority.spared() as is_spared:
        assert is_spared
        assert score.read_text() == "-1000"
        raise MemoryError
    assert score.read_text() == "200"


def test_stop_goes_on_where_the_score_may_not_be_lowered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bug: katana without CAP_SYS_RESOURCE patches nothing."""
    monkeypatch.setattr(priority, "_SCORE", tmp_path)  # a folder: no open to write
    with priority.spared() as is_spared:
        assert not is_spared
