"""The example of docs/hooks.md, word for word: its sources are built, its commands run, its answers compared."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installation import ROOT, clean_environment

PAGE = (ROOT / "docs" / "hooks.md").read_text()
PROGRAMS = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    """The fenced blocks of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands(session: str) -> list[tuple[str, str]]:
    """(command, answer) of a session."""
    parts = re.split(r"^\$ (.*)\n", session, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def general(text: str) -> str:
    """Without what differs from one run to the next."""
    text = re.sub(r"\b[0-9a-f]{8,}\b", "ID", text)
    text = re.sub(r"pid \d+", "pid N", text)
    return re.sub(r"\d+\.\d+ ms", "T ms", text)


@pytest.mark.parametrize("session", blocks("console"), ids=["shop"])
def test_the_session_is_what_happens(session: str, tmp_path: Path) -> None:
    """A bug: the page promises what Katana does not do."""
    if not (PROGRAMS / "katana-cc").exists() or shutil.which("pidof") is None:
        pytest.skip("the commands are not installed beside this Python")
    (tmp_path / ".git").mkdir()
    environment = clean_environment() | {"PATH": f"{tmp_path / 'bin'}:{PROGRAMS}:{os.environ['PATH']}"}

    def run(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.stdout

    first, second = blocks("c")
    (tmp_path / "shop.c").write_text(first)
    assert run("katana-cc -O1 shop.c -o shop") == ""
    run("katana-release v1")
    live = subprocess.Popen(
        [tmp_path / "shop"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pidof").write_text(f"#!/bin/sh\necho {live.pid}\n")
    (tmp_path / "bin" / "pidof").chmod(0o755)

    def sell(item: str) -> str:
        assert live.stdin is not None
        assert live.stdout is not None
        live.stdin.write(f"{item}\n")
        return live.stdout.readline()

    try:
        assert live.stdout is not None
        assert sell("tea") == "open\n"
        assert live.stdout.readline() == "sold tea, 99 left\n"
        (tmp_path / "shop.c").write_text(second)
        for command, answer in commands(session):
            assert general(run(command)) == general(answer), command
            if command.startswith("katana") and "applied" in answer:
                assert sell("milk") == "sold milk, 98 left\n"
                assert (tmp_path / "audit" / "sales").read_text() == "milk\n"
        assert sell("sugar") == "sold sugar, 97 left\n"
        assert (tmp_path / "audit" / "sales").read_text() == "milk\n"
    finally:
        live.kill()
        live.communicate()
