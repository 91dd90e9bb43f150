"""`.ci/need`: what is missing is installed where that is possible, and named where it is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

NEED = Path(__file__).resolve().parents[2] / ".ci" / "need"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A PATH with nothing on it but what a test puts there: `id` says who we are, `apt-get` makes programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def need(system: Path, *pairs: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", NEED, *pairs], env={"PATH": str(system)}, capture_output=True, text=True, check=False
    )


def test_nothing_is_said_when_all_is_there(system: Path) -> None:
    program(system, "tool", ":")
    done = need(system, "tool:package")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_ordinary_user_gets_the_command(system: Path) -> None:
    program(system, "tool", ":")
    program(system, "id", "echo 1000")
    program(system, "apt-get", "echo must not run; exit 9")
    done = need(system, "tool:package", "other:other-package", "third:third-package")
    assert done.returncode == 1
    assert done.stderr == "not installed. Please run:\n    sudo apt-get install other-package third-package\n"


def test_headers_are_looked_for(system: Path) -> None:
    """In the folder of the machine's architecture too."""
    program(system, "id", "echo 1000")
    assert need(system, "stdio.h:package", "asm/types.h:package").returncode == 0
    assert need(system, "no-such.h:package").stderr.endswith("apt-get install package\n")


def test_root_on_a_debian_gets_it_installed(system: Path) -> None:
    program(system, "id", "echo 0")
    log = system.parent / "log"
    program(system, "apt-get", f'echo "$@" >>"{log}"; echo "#!/bin/sh" >"{system}/tool"; /bin/chmod +x "{system}/tool"')
    done = need(system, "tool:package")
    assert done.returncode == 0, done.stderr
    assert log.read_text().splitlines()[1].split()[-1] == "package"


def test_an_installation_that_did_not_help_is_an_error(system: Path) -> None:
    program(system, "id", "echo 0")
    program(system, "apt-get", ":")
    done = need(system, "tool:package")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "still not there after installing: tool"
