"""A real installation of the wrappers in a folder of its own: what the wheel would put there, at copying speed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tomllib
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WHEEL_TARGET = ("tool", "hatch", "build", "targets", "wheel")


@dataclass(frozen=True, slots=True)
class Installation:
    """`prefix/bin/katana-cc` and all that belongs to it."""

    prefix: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def cc(self) -> str:
        return str(self.prefix / "bin" / "katana-cc")

    @property
    def cxx(self) -> str:
        return str(self.prefix / "bin" / "katana-c++")

    @property
    def libexec(self) -> Path:
        return self.prefix / "libexec" / "katana"

    def run(
        self, *command: str | bytes | Path, cwd: Path, stdin: bytes | None = None, **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in `cwd`, with this installation's programs found first on PATH."""
        environment = clean_environment() | self.environment
        environment["PATH"] = f"{self.prefix / 'bin'}:{environment['PATH']}"
        environment |= variables
        return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, env=environment, check=False)


def clean_environment() -> dict[str, str]:
    """The environment without anything that steers the wrappers or compilers."""
    drop = ("KATANA_", "COMPILER_PATH", "LIBRARY_PATH", "CPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "GCC_EXEC_PREFIX")
    return {name: value for name, value in os.environ.items() if not name.startswith(drop)}


def install(prefix: Path) -> Installation:
    """Install into a new venv at `prefix`: scripts and data as `pyproject.toml` says, the package by reference."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(prefix)
    site = next(prefix.glob("lib/python*/site-packages"))
    (site / "katana.pth").write_text(f"{ROOT}\n{sysconfig.get_paths()['purelib']}\n")
    table: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for key in WHEEL_TARGET:
        table = table[key]
    for source, name in table["shared-scripts"].items():
        shutil.copy2(ROOT / source, prefix / "bin" / name)
    for source, name in table["shared-data"].items():
        target = prefix / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / source, target)
    for name, module in (("katana", "main"), ("katana-release", "release")):
        call = f"import sys; from katana_cc.cli.{module} import main; sys.exit(main())"
        command = prefix / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "${{0%/*}}/python3" -c \'{call}\' "$@"\n')
        command.chmod(0o755)
    return Installation(prefix)
