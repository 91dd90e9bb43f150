"""docs/tutorial.md, word for word: its commands are typed into one shell, and what they say is compared with the page.

`python3 -m tests.live.test_tutorial` writes what they say into the page.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.installation import ROOT, clean_environment

PAGE: Final = ROOT / "docs" / "tutorial.md"
PROGRAMS: Final = Path(sys.executable).parent
_BLOCK: Final = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PORT: Final = "8765"  # of the page's web server
_HOSTS: Final = ("one", "two", "three", "four")
pytestmark = [pytest.mark.rest, pytest.mark.timeout(900)]


class Shell:
    """A shell that is typed into; its folder is one that holds the sources as the page says."""

    def __init__(self, folder: Path) -> None:
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / "hosts.ansible").mkdir()
        environment = {
            **clean_environment(),
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_HOME": str(folder / "hosts.ansible"),
            "ANSIBLE_NOCOLOR": "1",
        }
        self.folder = folder
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def type(self, command: str) -> str:
        """What a command says on both its streams."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho; echo '-- over'\n")
        lines = list(iter(self._process.stdout.readline, "-- over\n"))
        return "".join(lines[:-1]) if lines[-1] == "\n" else "".join(lines)[:-1] + "\n"

    def close(self) -> None:
        """End it, and whatever it started that is left."""
        for pid in (self.folder / "shop").glob("hosts/*/pid"):
            subprocess.run(["kill", "-KILL", pid.read_text().strip()], check=False, stderr=subprocess.DEVNULL)
        self._process.communicate("kill -KILL $(jobs -p) 2> /dev/null\n")


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(command, what it says), in the order of the page."""
    for block in _BLOCK.findall(text):
        parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
        assert not parts[0]
        yield from zip(parts[1::2], parts[2::2], strict=True)


def general(text: str) -> str:
    """Without what differs from one run to the next."""
    text = re.sub(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{12,}\b", "ID", text)
    text = re.sub(r"\d+ (→ \d+ )?(bytes|objects)|from \d+ to (?=\d+ bytes)|Size    \d+", r"N \2", text)
    text = re.sub(r"\bpid \d+", "pid N", text)
    text = re.sub(r"\d+\.\d+ ms", "T ms", text)
    text = re.sub(r"\d+ orders|orders=\d+|pieces=\d+|cents=\d+", lambda m: re.sub(r"\d+", "N", m[0]), text)
    return re.sub(r"[ \t]+$", "", re.sub(r"\*{3,}| {2,}", " ", text), flags=re.MULTILINE)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """An empty folder's."""
    needed = {"katana-cc": PROGRAMS / "katana-cc", "ansible-playbook": PROGRAMS / "ansible-playbook"}
    missing = [name for name, path in needed.items() if not path.exists()]
    if missing or shutil.which("openssl") is None:
        pytest.skip(f"not installed: {', '.join(missing) or 'openssl'}")
    shell = Shell(tmp_path)
    yield shell
    shell.close()


def test_the_tutorial_is_what_happens(shell: Shell) -> None:
    """A bug: the page promises what Katana does not do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    seen = ""
    for command, said in commands(PAGE.read_text()):
        heard = shell.type(command.replace(_PORT, port))
        assert general(heard) == general(said), command
        if command.startswith("cp -r examples"):
            hosts = shell.folder / "shop" / "hosts.yml"
            hosts.write_text(hosts.read_text().replace(_PORT, port))
        seen += heard
    orders = [int(number) for number in re.findall(r"^\S+: (\d+) orders, 0 lost or wrong$", seen, re.MULTILINE)]
    assert len(orders) == 2 * len(_HOSTS)
    assert min(orders) > 100  # while all was going on
    sold = [int(number) for number in re.findall(r"^orders=(\d+)", seen, re.MULTILINE)]
    assert len(sold) == len(_HOSTS)
    assert min(sold) > 100


def main() -> None:
    """Write the page anew."""
    with tempfile.TemporaryDirectory() as name:
        shell = Shell(Path(name))

        def typed(block: re.Match[str]) -> str:
            told = "".join(f"$ {command}\n{shell.type(command)}" for command, _ in commands(block[0]))
            return f"```console\n{told}```"

        try:
            page = _BLOCK.sub(typed, PAGE.read_text())
        finally:
            shell.close()
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
