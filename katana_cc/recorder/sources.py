"""Which commit the sources of a build are at, in git's own words: `git describe`.

Asked while a link is ingested, for an output of a deployed release right after its link, else when `katana-release`
records it; once for a project in each process, and beside the reading of objects, so that nobody waits for it.  A build
outside a repository starts no process; git that is not there, that refuses or that takes long is a build of which
nothing is known.
"""

import os
import select
import signal
import time
from pathlib import Path
from typing import Final

_PATIENCE: Final = 1.0  # seconds; to see whether files changed, git looks at each of them
_COMMAND: Final = (
    "-c", "core.fsmonitor=false", "describe", "--always", "--tags", "--long", "--abbrev=64", "--dirty",
)  # fmt: skip
# A hook's variables tell git of the repository the hook is of, not of the folder that is built.
_STRANGE: Final = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")
_asked: "dict[Path, Question]" = {}


class Question:
    """A git that runs, or what it has said."""

    __slots__ = ("_began", "_pid", "_pipe", "_text")

    def __init__(self, folder: Path) -> None:
        self._text = ""
        self._pid = 0
        if not _in_repository(folder):
            return
        self._pipe, theirs = os.pipe()
        command = ("git", "-C", str(folder), *_COMMAND)
        environment = {name: value for name, value in os.environ.items() if name not in _STRANGE}
        environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, theirs, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        self._began = time.monotonic()
        try:
            self._pid = os.posix_spawnp("git", command, environment, file_actions=actions)
        except OSError:  # there is no git
            os.close(self._pipe)
        finally:
            os.close(theirs)

    def answer(self) -> str:
        """What it said; "" if nothing, or not in time."""
        if self._pid:
            self._text = self._read()
            pid, self._pid = self._pid, 0
            os.close(self._pipe)
            if os.waitpid(pid, 0)[1]:
                self._text = ""
        return self._text

    def _read(self) -> str:
        said = b""
        while True:
            left = self._began + _PATIENCE - time.monotonic()
            if not select.select([self._pipe], [], [], max(left, 0))[0]:
                os.kill(self._pid, signal.SIGKILL)
                return ""
            part = os.read(self._pipe, 4096)
            if not part:
                return said.decode(errors="replace").strip()
            said += part


def ask(folder: Path) -> Question:
    """Ask of a project's folder, if nobody has yet."""
    if folder not in _asked:
        _asked[folder] = Question(folder)
    return _asked[folder]


def _in_repository(folder: Path) -> bool:
    return any(os.path.lexists(f"{above}/.git") for above in (folder, *folder.parents))
