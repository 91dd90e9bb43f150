"""Sources of real programs, fetched from Debian without touching the system's configuration, and their build needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("KATANA_TEST_SOURCES", Path(__file__).parents[2] / "build" / "sources"))
_SYSTEM_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")


class Source:
    """An unpacked Debian source package whose patch series is applied step by step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = folder / "debian/patches/series"
        series = listed.read_text().split("\n") if listed.exists() else []
        self.series = [s.split()[0] for s in series if s.strip() and not s.startswith("#")]
        self.applied = 0

    def apply_until(self, name: str) -> None:
        """Apply the series up to, but without, the patch whose name begins so."""
        while not self._next().startswith(name):
            self.apply_next()

    def apply_next(self) -> str:
        """Apply the next patch of the series; returns its name."""
        name = self.series[self.applied]
        patch = self.folder / "debian/patches" / name
        subprocess.run(["patch", "-s", "-p1", "-i", patch], cwd=self.folder, check=True)
        self.applied += 1
        return name

    def _next(self) -> str:
        if self.applied >= len(self.series):
            pytest.fail(f"{self.folder.name}: the series has no such patch any more: {self.series}")
        return self.series[self.applied].rpartition("/")[2]


def fetch(package: str, target: Path) -> Source:
    """Unpack the newest source package into `target`, no patch applied; downloads are kept in `build/sources`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    descriptions = sorted(CACHE.glob(f"{package}_*.dsc"))
    if not descriptions:
        _download(package)
        descriptions = sorted(CACHE.glob(f"{package}_*.dsc"))
    subprocess.run(
        ["dpkg-source", "--no-check", "-x", "--skip-patches", descriptions[-1], target],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return Source(target)


def _download(package: str) -> None:
    if not _SYSTEM_SOURCES.exists() or shutil.which("apt-get") is None:
        pytest.fail("real projects need a Debian with /etc/apt/sources.list.d/debian.sources")
    lists, parts = CACHE / "apt/lists", CACHE / "apt/parts"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    parts.mkdir(parents=True, exist_ok=True)
    text = _SYSTEM_SOURCES.read_text().replace("Types: deb\n", "Types: deb-src\n")
    (parts / "src.sources").write_text(text)
    options = ["-o", "Dir::Etc::SourceList=/dev/null", "-o", f"Dir::Etc::SourceParts={parts}"]
    options += ["-o", f"Dir::State::Lists={lists}", "-o", "APT::Sandbox::User=root"]
    subprocess.run(["apt-get", *options, "update", "-qq"], check=True, cwd=CACHE)
    subprocess.run(["apt-get", *options, "source", "--download-only", "-qq", package], check=True, cwd=CACHE)


def need_packages(*names: str) -> None:
    """Install development packages that a build needs; where that is not possible, the test fails and names them."""
    query = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *names], capture_output=True, text=True)
    missing = [n for n in names if f"{n} install ok installed" not in query.stdout]
    if not missing:
        return
    if os.geteuid() != 0:
        pytest.fail(f"install first: apt-get install {' '.join(missing)}")
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", *missing], check=True, stdout=subprocess.DEVNULL)
