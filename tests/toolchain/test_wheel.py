"""The wheel: what pip installs is what the other tests' copied installation holds, and it records a link."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.installation import ROOT, Installation
from tests.support.staged import input_names, only_link


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built here, with the hatchling of the test environment, so that no network is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    prefix = tmp_path_factory.mktemp("wheel") / "with space"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(prefix)
    python = str(prefix / "bin" / "python3")
    subprocess.run(
        [sys.executable, "-m", "pip", "-q", "--python", python, "install", "--no-deps", "--no-index", wheel], check=True
    )
    return Installation(prefix)


def test_a_link_through_the_installed_wheel_is_recorded(installed: Installation, project: Path) -> None:
    (project / "a.c").write_text("int main(void) { return 0; }\n")
    for command in (["gcc", "-c", "a.c"], ["gcc", "a.o", "-o", "prog"]):
        done = installed.run(installed.cc, *command, cwd=project)
        assert (done.returncode, done.stderr) == (0, b"")
    assert input_names(only_link(project / ".katana")) == {"a.o"}


def test_the_wheel_holds_what_the_copied_installation_does(installed: Installation, katana: Installation) -> None:
    def files(installation: Installation) -> dict[str, tuple[bytes, bool]]:
        found = {}
        for folder in ("libexec", "share", "bin"):
            for path in (installation.prefix / folder).rglob("*"):
                name = str(path.relative_to(installation.prefix))
                if path.is_file() and "__pycache__" not in name and not name.startswith(("bin/python", "bin/pip")):
                    found[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
        return {
            name: content
            for name, content in found.items()
            if not name.startswith(("bin/activate", "bin/Activate"))
            and name not in ("bin/katana", "bin/katana-release")
        }

    assert files(installed) == files(katana)


def test_the_commands_are_in_the_wheel(installed: Installation) -> None:
    for name in ("katana", "katana-release", "katana-cc", "katana-c++", "katana-ld"):
        assert (installed.prefix / "bin" / name).stat().st_mode & 0o111


def test_everything_works_after_the_build_tree_is_gone(installed: Installation, project: Path) -> None:
    """A release, a patch, the module for CMake and the pages, with nothing of the checkout on any path."""
    (project / "main.c").write_text("int g(void);\nint main(void) { return g(); }\n")
    words = [installed.cc, "gcc", "main.c", "g.c", "-o", "prog"]
    # Libraries of other people's are taken from the test environment; katana_cc is the wheel's.
    libraries = sysconfig.get_paths()["purelib"]
    site = next(installed.prefix.glob("lib/python*/site-packages"))
    for name in ("elftools", "zstandard", "jinja2", "markupsafe"):
        if not (site / name).exists():
            (site / name).symlink_to(Path(libraries) / name)
    (project / "g.c").write_text("int g(void) { return 1; }\n")
    assert installed.run(*words, cwd=project).returncode == 0
    done = installed.run("katana-release", "v1", cwd=project)
    assert done.returncode == 0, done.stderr
    (project / "g.c").write_text("int g(void) { return 2; }\n")
    done = installed.run(*words, cwd=project)
    assert b"1 function changed, safe" in done.stderr
    where = installed.run(
        installed.prefix / "bin" / "python3", "-c", "import katana_cc; print(katana_cc.__file__)", cwd=project
    )
    assert where.stdout.decode().startswith(str(installed.prefix))
    folder = Path(installed.run("katana", "--cmake-dir", cwd=project).stdout.decode().strip())
    assert {path.name for path in folder.iterdir()} == {
        "Katana.cmake",
        "KatanaConfig.cmake",
        "KatanaConfigVersion.cmake",
    }
    pages = {path.name for path in (installed.prefix / "share" / "man" / "man1").iterdir()}
    assert pages == {"katana.1", "katana-cc.1", "katana-release.1"}


def test_the_wheel_holds_no_tests_and_no_links(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            assert not info.filename.startswith("tests/")
            assert (info.external_attr >> 16) & 0o170000 != 0o120000, info.filename
