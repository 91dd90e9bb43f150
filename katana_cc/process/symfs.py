"""A folder in which profilers find the code of patches: for `perf report --symfs DIR`.

perf looks up the file that a sampled address was mapped from; of a patch that is `/memfd:katana:FROM..TO (deleted)`,
which is no file.  perf reads `/tmp/perf-PID.map` only for memory without a file, takes build-ids from files, not from
memory, and a jitdump only from a program that maps it.  What it does take, of any version, is another root for all
files (`--symfs`).  So a folder is made that is a root like the process's own, by symbolic links, and holds the images
of the patches (`image.py`) under their names besides.  Nothing is written where the process or another tool sees it.

What the process maps decides the names of these files, and it may not be trusted: a name that is no single file name,
or that two mappings have, is refused.

Measured with perf 6.1: `perf-PID.map` is not read for a memfd; `record --buildid-mmap` gets no build-id of what was
mapped before; `inject --known-build-ids` with `buildid-cache --add` works as well, and changes the user's cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from katana_cc.errors import RefusedError, TargetError, UsageError
from katana_cc.process.image import image_file
from katana_cc.process.target import PatchMapping, Target

_LARGEST: Final = 1 << 28


def write_symfs(target: Target, patches: Sequence[PatchMapping], folder: Path) -> tuple[Path, ...]:
    """Make `folder`, with the images of `patches`; the paths of these.

    Raises:
        UsageError: it exists and is not empty, or cannot be written.
        RefusedError: a name that cannot be a file's.
        TargetError: the process is gone.
    """
    names = [f"memfd:{p.name} (deleted)" for p in patches]
    for name in names:
        if "/" in name or "\0" in name:
            raise RefusedError(f"a mapping is called {name!r}, which cannot be the name of a file", where=target.where)
        if names.count(name) > 1:
            raise RefusedError(
                f"two patches are mapped under one name, {name!r}, and perf would take one for the other",
                where=target.where,
                remedy="give the releases of program and library different names",
            )
    if any(p.end - p.start > _LARGEST for p in patches):
        raise RefusedError("a mapping is larger than any patch", where=target.where)
    images = [image_file(target.memory, p.start, p.end) for p in patches]
    # From here on nothing is read of the process.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty", remedy="name a folder that does not exist yet")
        root = _root(target.pid)
        for entry in sorted(root.iterdir()):
            (folder / entry.name).symlink_to(entry)
        paths = []
        for name, image in zip(names, images, strict=True):
            path = folder / name
            path.write_bytes(image)
            paths.append(path)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}") from None
    return tuple(paths)


def _root(pid: int) -> Path:
    """The root folder of a process: our own name of it where it is our own, since that outlives the process."""
    theirs = Path(f"/proc/{pid}/root")
    try:
        same = os.path.samestat(theirs.stat(), Path("/").stat()) and _namespace(pid) == _namespace(os.getpid())
    except OSError as error:
        raise TargetError(f"its root folder may not be read: {error.strerror}", where=f"pid {pid}") from None
    return Path("/") if same else theirs


def _namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/mnt").readlink())
