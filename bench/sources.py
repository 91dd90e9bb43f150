"""Sources of real programs, fetched with apt-get from Debian, the system's configuration untouched."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path


class Unavailable(Exception):
    """The program cannot be had here; the message says why."""


def fetch(package: str, folder: Path) -> Path:
    """Fetch and unpack a source package; returns its folder, without Debian's own patches.

    Raises:
        Unavailable: no apt-get, no network, no dpkg-source, or no such source.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-source"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    options = _own_lists(folder)
    _run(["apt-get", *options, "update", "-qq"], folder)
    candidates = [package]
    listed = subprocess.run(
        ["apt-cache", *options, "showsrc", package], cwd=folder, capture_output=True, text=True, check=False
    )
    # A mirror may list a version whose files it does not have; older ones may still be there.
    candidates += [f"{package}={version}" for version in re.findall(r"^Version: (\S+)", listed.stdout, re.MULTILINE)]
    for candidate in candidates:
        try:
            _run(["apt-get", *options, "source", "--download-only", "-qq", candidate], folder)
        except Unavailable as error:
            reason = error
            continue
        descriptions = sorted(folder.glob(f"{package}_*.dsc"))
        if descriptions:
            source = folder / "source"
            _run(["dpkg-source", "--no-check", "-x", "--skip-patches", descriptions[-1].name, str(source)], folder)
            return source
        reason = Unavailable(f"apt-get fetched no source for {candidate}")
    raise reason


def _own_lists(folder: Path) -> list[str]:
    """Lists and sources of our own for apt-get: those of the system, as deb-src."""
    parts, lists = folder / "apt" / "parts", folder / "apt" / "lists"
    (lists / "partial").mkdir(parents=True)
    parts.mkdir(parents=True)
    found = False
    for file in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        (parts / file.name).write_text(re.sub(r"^Types: .*$", "Types: deb-src", file.read_text(), flags=re.MULTILINE))
        found = True
    for file in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.list"))]:
        if file.is_file():
            (parts / file.name).with_suffix(".list").write_text(
                re.sub(r"^deb\s", "deb-src ", file.read_text(), flags=re.MULTILINE)
            )
            found = True
    if not found:
        raise Unavailable("apt-get has no sources here")
    return [
        "-oDir::Etc::SourceList=/dev/null", f"-oDir::Etc::SourceParts={parts}", f"-oDir::State::Lists={lists}",
        "-oAcquire::Retries=1", "-oAcquire::http::Timeout=20", "-oAPT::Sandbox::User=root",
    ]  # fmt: skip


def _run(command: list[str], cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=180)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(command[:1])} took longer than three minutes") from error
    if done.returncode:
        raise Unavailable(f"{command[0]}: {done.stderr.strip()[-300:]}")
