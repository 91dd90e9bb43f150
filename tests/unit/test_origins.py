"""What is said of the commits and compilers of two builds."""

from __future__ import annotations

import pytest

from katana_cc.release.provenance import described
from katana_cc.report.origins import listed, sentences

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "words", "uncommitted"),
    [
        (COMMIT, COMMIT[:12], False),
        (f"{COMMIT}-dirty", f"{COMMIT[:12]}-dirty", True),
        (f"v1.2-0-g{COMMIT}", "v1.2", False),
        (f"v1.2-0-g{COMMIT}-dirty", "v1.2-dirty", True),
        (f"rel-5-g1-17-g{COMMIT}", f"rel-5-g1-17-g{COMMIT[:12]}", False),
        (f"v2-3-g{COMMIT}{'0' * 24}", f"v2-3-g{COMMIT[:12]}", False),
    ],
)
def test_what_git_describe_says_is_shortened(text: str, words: str, uncommitted: bool) -> None:
    told = described(text)
    assert (told["describe"], told["uncommitted"]) == (words, uncommitted)
    assert text.removesuffix("-dirty").endswith(told["commit"])


@pytest.mark.parametrize("text", ["", "fatal: not a repository", "v1.2", COMMIT[:12], f"{COMMIT}-broken", f"g{COMMIT}"])
def test_what_is_no_answer_of_git_is_nothing(text: str) -> None:
    assert described(text) == {}


def test_what_is_not_known_is_not_said() -> None:
    assert (sentences({}), listed({})) == ([], [])
    end = {"commit": COMMIT, "describe": "v1", "uncommitted": False}
    assert sentences({"to": end}) == ["Sources: from a commit that is not known to v1"]
    assert sentences({"compilers": [{"compiler": "GNU C17", "objects": 1}]}) == ["Compiled by GNU C17 (1 object)"]


def test_a_long_list_says_how_many_are_left_out() -> None:
    commits = [{"commit": COMMIT, "subject": "Say it"}]
    assert listed({"commits": commits, "commits_total": 3}) == [f"{COMMIT[:12]} Say it", "and 2 more"]
