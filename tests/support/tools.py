"""Tools that the tests ask for a second opinion."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def silent(*command: str | Path, cwd: Path) -> str:
    """What a tool prints, when it succeeds without a word on stderr; skips the test where it is not installed."""
    if not shutil.which(str(command[0])):
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
