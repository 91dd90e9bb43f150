"""The staged folder of a store: locking, committing an entry, sweeping out what is dead.

Each stager holds `staged/lock` shared while it copies and commits.  Whoever gets it exclusively without waiting also
sweeps: entries whose output is gone, replaced versions, objects no entry needs.  An entry is committed by renaming its
`link.json` into place; all it names was written before, so a crash leaves the old entry or the new one.

Makefiles link `prog.tmp` and rename it to `prog`.  So an output that is not where it was linked is looked for in that
folder, by its inode, size and time, which renaming keeps; the link `at` then leads to it.
"""

from __future__ import annotations

import fcntl
import os

from katana_cc.recorder.staging.copying import remove_file, remove_tree
from katana_cc.recorder.staging.plain import digest, to_json


class Staged:
    """`<store>/staged`, open and locked shared.  Close to unlock."""

    def __init__(self, store: bytes) -> None:
        self.store = store
        self.folder = os.path.join(store, b"staged")
        self.objects = os.path.join(self.folder, b"objects")
        self.links = os.path.join(self.folder, b"links")
        while True:
            self._make_folders()
            self.lock = os.open(os.path.join(self.folder, b"lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self.lock, fcntl.LOCK_SH)
            if os.fstat(self.lock).st_nlink:
                break
            os.close(self.lock)  # swept away together with an empty store while we waited

    def _make_folders(self) -> None:
        if os.path.isdir(self.links) and os.path.isdir(self.objects):
            return
        new = not os.path.isdir(self.store)
        os.makedirs(self.objects, exist_ok=True)
        os.makedirs(self.links, exist_ok=True)
        if new:
            with open(os.path.join(self.store, b".gitignore"), "w") as file:
                file.write("*\n")

    def close(self) -> None:
        os.close(self.lock)

    def link_folder(self, output: bytes) -> bytes:
        return os.path.join(self.links, link_key(output).encode())

    def commit(self, folder: bytes, output: bytes, entry: dict[str, object]) -> None:
        """Make `entry` the staged link of `output`.  All that it names must be there already."""
        os.makedirs(folder, exist_ok=True)
        _lead(folder, output)
        temporary = os.path.join(folder, b"link.json.tmp-%d" % os.getpid())
        try:
            with open(temporary, "w") as file:
                file.write(to_json(entry) + "\n")
            os.rename(temporary, os.path.join(folder, b"link.json"))
        except OSError:
            remove_file(temporary)
            raise

    def sweep(self) -> None:
        """Drop what is dead, if nobody else is staging; else leave it to the next.  The lock is shared again after."""
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        try:
            if self._sweep_links():
                self._sweep_objects()
            if not os.listdir(self.links):
                self._remove_empty_store()
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_SH)

    def _sweep_links(self) -> bool:
        removed = False
        for name in os.listdir(self.links):
            folder = os.path.join(self.links, name)
            keep = {b"at", b"link.json", current_version(folder)}
            # A folder is an entry from its link.json on; before that it is the rest of a stager that was killed.
            if place(folder) is None or not os.path.exists(os.path.join(folder, b"link.json")):
                keep = set()
            for part in os.listdir(folder):
                if part not in keep:
                    remove_tree(os.path.join(folder, part))
                    removed = True
            if not keep:
                os.rmdir(folder)
                removed = True
        return removed

    def _sweep_objects(self) -> None:
        needed: set[bytes] = set()
        for name in os.listdir(self.links):
            folder = os.path.join(self.links, name)
            version = current_version(folder)
            if version:
                with open(os.path.join(folder, version, b"objects"), "rb") as file:
                    needed.update(file.read().split())
        for name in os.listdir(self.objects):
            if name not in needed:
                remove_file(os.path.join(self.objects, name))

    def _remove_empty_store(self) -> None:
        """A store that never came to hold anything goes again (a configure run in a folder that is not a project)."""
        if set(os.listdir(self.store)) - {b"staged", b".gitignore", b"lto-notice"} or os.listdir(self.objects):
            return
        remove_tree(self.folder)
        for name in (b".gitignore", b"lto-notice"):
            remove_file(os.path.join(self.store, name))
        os.rmdir(self.store)


def link_key(output: bytes) -> str:
    """The name of an output's staged link: 16 hex digits of the SHA-1 of its absolute path."""
    return digest(output)[:16]


def current_version(folder: bytes) -> bytes:
    """The sub-folder that a link's `link.json` names, b"" when it names none (a gap)."""
    return _value(_entry(folder), b"version").strip(b'"')


def place(folder: bytes) -> bytes | None:
    """Where the output of the staged link in `folder` is now, under whatever name; None if it is gone."""
    mark = os.path.join(folder, b"at")
    try:
        target = os.readlink(mark)
    except OSError:
        return None
    if os.path.exists(mark):
        return target
    found = _renamed(_entry(folder), os.path.dirname(target))
    if found is not None:
        _lead(folder, found)
    return found


def _renamed(entry: bytes, folder: bytes) -> bytes | None:
    """The file in `folder` that is a link's output by inode, size and time: a new file may have an old one's inode."""
    known = [_value(entry, name) for name in (b"output_inode", b"output_size", b"output_mtime_ns")]
    if not all(known):
        return None
    inode = int(known[0])
    try:
        with os.scandir(folder) as entries:
            for one in entries:
                if one.inode() == inode and one.is_file(follow_symlinks=False):
                    status = one.stat(follow_symlinks=False)
                    return one.path if [status.st_size, status.st_mtime_ns] == [*map(int, known[1:])] else None
    except OSError:
        pass
    return None


def _lead(folder: bytes, output: bytes) -> None:
    """Make `at` lead to the output, so that one stat tells a sweep whether it still exists."""
    mark = os.path.join(folder, b"at")
    try:
        if os.readlink(mark) == output:
            return
    except OSError:
        pass
    temporary = os.path.join(folder, b"at.tmp-%d" % os.getpid())
    try:
        os.symlink(output, temporary)
        os.rename(temporary, mark)
    except OSError:
        remove_file(temporary)
        raise


def _entry(folder: bytes) -> bytes:
    """A `link.json`, b"" if there is none."""
    try:
        with open(os.path.join(folder, b"link.json"), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _value(entry: bytes, key: bytes) -> bytes:
    """The text of a number, or of a string without escapes, in a `link.json`; b"" if it has no such key."""
    mark = b'"%s": ' % key
    at = entry.find(mark)
    if at < 0:
        return b""
    at += len(mark)
    ends = [end for end in (entry.find(b",", at), entry.find(b"}", at)) if end >= 0]
    return entry[at : min(ends)]
