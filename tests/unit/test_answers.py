"""What a person has answered, as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.errors import StoreError, UsageError
from katana_cc.snapshot.answers import question, read_answers, write_answers


def test_answers_are_what_was_written(tmp_path: Path) -> None:
    answers = {("conn", "port"): "number", ("ns::pair<int, long>", "first"): "", ("conn", "(anonymous 1)"): "u"}
    write_answers(tmp_path, answers)
    assert read_answers(tmp_path) == answers
    assert (tmp_path / "answers").read_text().splitlines()[1] == "conn.port -> number"


def test_no_file_is_no_answer(tmp_path: Path) -> None:
    assert read_answers(tmp_path) == {}


def test_a_person_may_write_the_file(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("# of 1.3\n\nstruct conn.port -> number\nunion u.a ->\n")
    assert read_answers(tmp_path) == {("conn", "port"): "number", ("u", "a"): ""}


@pytest.mark.parametrize("line", ["struct conn.port", "conn -> number", ".port -> number", "struct conn. -> number"])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "answers").write_text(f"struct conn.a -> b\n{line}\n")
    with pytest.raises(StoreError, match="line 2 is no answer") as raised:
        read_answers(tmp_path)
    assert raised.value.remedy


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "answers").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="it is no text"):
        read_answers(tmp_path)


@pytest.mark.parametrize("text", ["conn", "struct .port", "conn.", ""])
def test_what_is_no_field_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no field of a type"):
        question(text)
