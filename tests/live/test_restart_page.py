"""docs/restart.md, word for word: its command and its unit files are run as a shell and systemd run them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.live.conftest import TIMES_TEN
from tests.live.handmade import Built, build, patch_from
from tests.live.server import mappings, serving, write_patch
from tests.support.installation import ROOT

PAGE: Final = (ROOT / "docs" / "restart.md").read_text()
COMMAND, DROP_IN, AFTERWARDS = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PATCHED, UNPATCHED = "11", "2"
_PREFIXES: Final = "@-:+!|"  # of a line of a unit file; systemd.service(5)


class Host:
    """A folder that has what the page's host has at its root."""

    def __init__(self, folder: Path, builds: tuple[Built, Built]) -> None:
        self.root = folder / "host"
        self.builds = builds
        patch = write_patch(folder, patch_from(*builds, ("answer",)))
        for path in ("/var/lib/katana/redis.kpo", "/home/redis.kpo"):
            self.install(patch, path)
        self.install(builds[0].output, "/usr/bin/redis-server")
        program = folder / "katana"
        lines = f"#!{sys.executable}", "import sys", "from katana_cc.cli.main import main", "sys.exit(main())", ""
        program.write_text("\n".join(lines))
        program.chmod(0o755)
        for path in ("/opt/katana/bin/katana", "/home/katana"):
            self.install(program, path)

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def install(self, file: Path, path: str) -> None:
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).unlink(missing_ok=True)
        shutil.copy(file, self.at(path))

    def words(self, command: str, folder: str = "/") -> list[str]:
        """A command line in which each file is this host's; those without a folder are in that one."""
        result = []
        for word in shlex.split(command):
            known = self.at(word) if word.startswith("/") else self.at(f"{folder}/{word}")
            result.append(str(known) if word.startswith("/") or known.is_file() else word)
        return result

    def unit(self, text: str, key: str) -> list[str]:
        """What a unit file has for a key, as systemd takes it: an empty value forgets those before."""
        lines = [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]
        while "" in lines:
            lines = lines[lines.index("") + 1 :]
        return lines


@pytest.fixture
def host(tmp_path: Path, counter: tuple[Built, Built]) -> Host:
    return Host(tmp_path, counter)


def arguments_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


def test_program_is_started_with_the_patch(host: Host) -> None:
    """A bug: the command does not work as it stands."""
    words = host.words(COMMAND, "/home")
    assert words[0] == str(host.at("/home/katana"))
    with serving(*words) as server:
        assert server.ask("a 1") == PATCHED
        assert arguments_of(server.pid) == [str(host.at(p)) for p in ("/usr/bin/redis-server", "/etc/redis/redis.conf")]


def test_drop_in_starts_it_with_the_patch_and_later_builds_without(host: Host, tmp_path: Path) -> None:
    """A bug: the unit does not come up; or not any more, when the new build, or another one, is installed."""
    (line,) = host.unit("ExecStart=/usr/bin/redis-server\n" + DROP_IN, "ExecStart")
    words = host.words(line)
    with serving(*words) as server:
        assert server.ask("a 1") == PATCHED
        assert mappings(server.pid)
        assert arguments_of(server.pid)[2:] == ["--supervised", "systemd"]
    host.install(host.builds[1].output, "/usr/bin/redis-server")
    with serving(*words) as server:
        assert server.ask("a 1") == PATCHED
        assert not mappings(server.pid)
    other = build(tmp_path / "other", "server", TIMES_TEN.replace("10 * x", "20 * x"))
    host.install(other.output, "/usr/bin/redis-server")
    with serving(*words) as server:
        assert server.ask("a 1") == "21"


def test_line_of_the_unit_patches_the_process_that_runs(host: Host) -> None:
    """A bug: the command does not work as it stands, or a patch that is refused takes the service down."""
    (line,) = host.unit(AFTERWARDS, "ExecStartPost")
    prefixes = line[: len(line) - len(line.lstrip(_PREFIXES))]
    assert set(prefixes) == set("+-"), "with full privileges, and its failure does not count"
    with serving(host.at("/usr/bin/redis-server")) as server:
        words = host.words(line.lstrip(_PREFIXES).replace("$MAINPID", str(server.pid)))
        assert server.ask("a 1") == UNPATCHED
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert server.ask("a 1") == PATCHED


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("text", [DROP_IN, AFTERWARDS], ids=["drop-in", "afterwards"])
def test_systemd_takes_the_unit_files(host: Host, tmp_path: Path, text: str) -> None:
    """A bug: a key that systemd does not know, or a line that it cannot read, is said in the journal and left out."""
    unit = tmp_path / "units" / "redis-server.service"
    unit.with_name("redis-server.service.d").mkdir(parents=True)
    program = host.at("/usr/bin/redis-server")
    unit.write_text(f"[Unit]\nDescription=test\nDefaultDependencies=no\n[Service]\nExecStart={program}\n")
    known = re.sub(r"(?<=[ =+-])(/(?:opt|usr|var|etc)/\S+)", lambda m: str(host.at(m.group(1))), text)
    assert known.count(str(host.root)) >= 2
    (unit.with_name("redis-server.service.d") / "katana.conf").write_text(known)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
