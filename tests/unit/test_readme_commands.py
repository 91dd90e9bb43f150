"""README's list of commands against what they take: an option that is missing there, or that is there no more."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest

from katana_cc.cli.main import COMMANDS

README = Path(__file__).parents[2] / "README.md"


def said_once() -> set[str]:
    """What the text below the list says of several commands at once."""
    text = README.read_text().partition("## Commands\n\n```\n")[2].partition("```")[2].partition("\n## ")[0]
    return {"--help", *re.findall(r"--[a-z][a-z-]*", text)}


def listed() -> dict[str, set[str]]:
    """Command → the options that README's list has of it."""
    block = README.read_text().partition("## Commands\n\n```\n")[2].partition("```")[0]
    found: dict[str, set[str]] = {}
    names: list[str] = []
    for line in block.splitlines():
        if not line.startswith(" "):
            head = re.match(r"katana ((?:[a-z]+(?: \| )?)+)", line)
            names = head.group(1).split(" | ") if head else []
        for name in names:
            found.setdefault(name.strip(), set()).update(re.findall(r"--[a-z][a-z-]*", line))
    return found


def taken(command: str) -> set[str]:
    """The long options that a command takes."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"katana_cc.cli.{command}").add_arguments(parser)
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


@pytest.mark.parametrize("command", ["apply", "revert", "run", "update", "status"])
def test_each_option_is_listed(command: str) -> None:
    missing = taken(command) - said_once() - listed()[command]
    assert not missing, f"README's list lacks {', '.join(sorted(missing))}"


@pytest.mark.parametrize("command", sorted(set(COMMANDS) & set(listed())))
def test_each_option_that_is_listed_is_taken(command: str) -> None:
    gone = {option for option in listed()[command] if option not in taken(command)}
    assert not gone, f"`katana {command}` takes no {', '.join(sorted(gone))}"
