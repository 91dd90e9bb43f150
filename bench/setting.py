"""What a benchmark is given: the installed commands, the real compiler, a clean environment, a scratch folder."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from katana_cc.errors import UsageError

SECTION_FLAGS: Final = ("-g", "-ffunction-sections", "-fdata-sections")
"""What the wrapper adds to a compile; the plain builds get the same, so that only the wrapper itself is measured."""

_STEERING: Final = ("KATANA_", "MAKE", "MFLAGS", "CFLAGS", "LDFLAGS", "CPATH", "COMPILER_PATH", "LIBRARY_PATH",
                    "GCC_EXEC_PREFIX", "PYTHON")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """The setting of a run."""

    prefix: Path
    compiler: str
    scratch: Path
    quick: bool

    @property
    def wrapper(self) -> str:
        """The absolute path of `katana-cc`."""
        return str(self.prefix / "bin" / "katana-cc")

    def command(self, name: str) -> str:
        """The absolute path of one of our commands."""
        return str(self.prefix / "bin" / name)

    def rounds(self, full: int, quick: int) -> int:
        """How often to repeat."""
        return quick if self.quick else full

    def environment(self, store: Path | None = None) -> dict[str, str]:
        """The environment without what steers compilers, make or us; with `store`, links are recorded there."""
        values = {name: value for name, value in os.environ.items() if not name.startswith(_STEERING)}
        values["PATH"] = f"{self.prefix / 'bin'}:{values.get('PATH', os.defpath)}"
        values["LC_ALL"] = "C.UTF-8"
        if store is not None:
            values["KATANA_DIR"] = str(store)
        values["KATANA_STRICT"] = "1"  # a link that was not recorded must not pass for a cheap one
        return values

    def folder(self, name: str) -> Path:
        """A new, empty folder."""
        path = self.scratch / name
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        return path


def make_setting(scratch: Path, quick: bool) -> Setting:
    """The setting for the installation that this Python belongs to.

    Raises:
        UsageError: Katana is not installed there, or there is no compiler or no make.
    """
    prefix = Path(sys.prefix)
    for name in ("katana-cc", "katana", "katana-release"):
        if not (prefix / "bin" / name).is_file():
            raise UsageError(f"{name} is not installed", where=str(prefix / "bin"), remedy="Run `make .venv` first.")
    compiler = shutil.which("cc")
    if compiler is None or shutil.which("make") is None:
        raise UsageError("cc and make are needed", remedy="Install gcc (or clang) and make.")
    return Setting(prefix, compiler, scratch, quick)


def describe_machine(compiler: str) -> dict[str, object]:
    """What the figures depend on; nothing that tells one machine or its owner from another of its kind."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "compiler": _first_line(compiler, "--version"),
        "linker": _first_line("ld", "--version"),
        "load_before": round(os.getloadavg()[0], 1),
    }


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]
