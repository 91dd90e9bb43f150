"""Which store a command means: where it lies, if nobody says so.

A link asks otherwise (`katana_cc.recorder.staging.place`), since it may be the first one of a project.
"""

import os
from contextlib import suppress
from pathlib import Path

from katana_cc.errors import StoreError, UsageError


def find_store(start: Path | None = None) -> Path:
    """The store a command means: what its command line says, the nearest `.katana` from `start` upwards, `KATANA_DIR`.

    Raises:
        StoreError: there is none.
        UsageError: KATANA_DIR is no absolute path.  A link refuses it too, whatever stores there are.
    """
    named = os.environ.get("KATANA_DIR")
    if named and not Path(named).is_absolute():
        raise UsageError(
            "KATANA_DIR must be an absolute path, since links are made in many folders",
            where=f"KATANA_DIR={named}",
            remedy=f"Say KATANA_DIR={Path.cwd() / named}, or unset it.",
        )
    if named and "dir" in os.environ.get("KATANA_COMMAND_LINE", "").split():
        return Path(named)
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents):
        with suppress(PermissionError):  # a folder that may not be searched has none for us
            if (folder / ".katana").is_dir():
                return folder / ".katana"
    if named:
        return Path(named)
    raise StoreError(
        "no .katana store here or above",
        where=str(here),
        remedy="Build with `CC=katana-cc make` first, change into the project, or set KATANA_DIR.",
    )
