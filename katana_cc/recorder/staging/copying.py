"""Copying the inputs of a link, each once: a file that did not change since the last link is not even opened."""

from __future__ import annotations

import os

from katana_cc.recorder.staging.failure import StagingError
from katana_cc.recorder.staging.plain import digest, text

LTO_MARKS = (b".ltrans", b".lto.", b"lto.tmp")
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
_COPY_STEP = 1 << 30


def identity(path: bytes, status: os.stat_result) -> str:
    """The name of a staged copy.  Whoever rewrites a file changes one of these; ctime cannot be set back."""
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return digest(path + b"\0" + b" ".join(b"%d" % part for part in parts))


def copy_file(source: int, target: bytes) -> None:
    """Copy the open file `source` to `target`, by renaming a finished copy; the filesystem shares blocks if it can.

    Never a hard link: the next compile may rewrite an object in place.
    """
    temporary = b"%s.tmp-%d" % (target, os.getpid())
    size = os.fstat(source).st_size
    try:
        sink = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            _copy_bytes(source, sink, size)
        finally:
            os.close(sink)
        os.rename(temporary, target)
    except BaseException:
        remove_file(temporary)
        raise


def _copy_bytes(source: int, sink: int, size: int) -> None:
    done = 0
    try:
        while done < size:
            copied = os.copy_file_range(source, sink, min(size - done, _COPY_STEP), done, done)
            if not copied:
                break
            done += copied
    except OSError as error:
        if error.errno == 28:  # ENOSPC; what the others mean is that this pair of filesystems cannot do it
            raise
    os.lseek(sink, done, os.SEEK_SET)
    while done < size:
        copied = os.sendfile(sink, source, done, min(size - done, _COPY_STEP))
        if not copied:
            raise StagingError("a file shrank while it was copied")
        done += copied


def remove_file(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


class Input:
    """One staged object or archive, as `link.json` describes it."""

    __slots__ = ("absolute", "archive", "file", "members", "path", "status")

    def __init__(self, path: bytes, absolute: bytes, status: os.stat_result, file: str, archive: bool) -> None:
        self.path = path
        self.absolute = absolute
        self.status = status
        self.file = file
        self.archive = archive
        self.members: dict[bytes, str] = {}

    def as_json(self) -> dict[str, object]:
        """The entry in `inputs`; a file known under two identities only when it changed in between."""
        entry: dict[str, object] = {
            "path": self.path,
            "absolute": self.absolute,
            "file": self.file,
            "size": self.status.st_size,
            "mtime_ns": self.status.st_mtime_ns,
            "inode": self.status.st_ino,
            "archive": self.archive,
        }
        if self.members:
            entry["thin_members"] = self.members
        return entry


class Copies:
    """Copies the inputs of one link into `objects`, each file once."""

    def __init__(self, objects: bytes, cwd: bytes, kind: str) -> None:
        self.objects = objects
        self.cwd = cwd
        self.kind = kind  # of linker, as `contributing_files` tells it
        self.inputs: dict[bytes, Input] = {}
        self.identities: set[str] = set()
        self.lto = False
        self.missing: list[bytes] = []
        self.skipped: list[bytes] = []

    def add_all(self, names: list[bytes]) -> None:
        """Stage the files behind the names of a map: `path`, or `path(member)`."""
        archives: dict[bytes, list[bytes]] = {}
        for name in names:
            split = self._split_member(name)
            if split is None:
                self._add_plain(name)
            else:
                archives.setdefault(split[0], []).append(split[1])
        for path, members in archives.items():
            self._add_archive(path, members)

    def _split_member(self, name: bytes) -> tuple[bytes, bytes] | None:
        """Archive and member, or None when the whole name is a file; both file names may hold parentheses."""
        if name[-1:] != b")" or os.path.isfile(os.path.join(self.cwd, name)):
            return None
        at = name.rfind(b"(")
        while at > 0:
            if os.path.isfile(os.path.join(self.cwd, name[:at])):
                return name[:at], name[at + 1 : -1]
            at = name.rfind(b"(", 0, at)
        return None

    def _add_plain(self, name: bytes) -> None:
        copied = self._copy(name)
        if copied is not None:
            self.inputs[name] = Input(name, *copied, archive=False)

    def _add_archive(self, path: bytes, members: list[bytes]) -> None:
        copied = self._copy(path)
        if copied is None:
            return
        self.inputs[path] = archive = Input(path, *copied, archive=True)
        with open(os.path.join(self.objects, archive.file.encode()), "rb") as file:
            thin = file.read(8) == b"!<thin>\n"
        if not thin:
            return
        # lld names a member as the archive does, relative to it (ar(1), "T"); gold and mold as they opened it.
        folder = os.path.dirname(path) if self.kind == "lld" else b""
        for member in members:
            copied = self._copy(os.path.join(folder, member))
            if copied is not None:
                archive.members[member] = copied[2]

    def _copy(self, path: bytes) -> tuple[bytes, os.stat_result, str] | None:
        """Absolute path, status and staged name of one file; None, and noted why, when it is not there or no object."""
        absolute = os.path.join(self.cwd, path)
        try:
            status = os.stat(absolute)
        except OSError:
            if any(mark in path for mark in LTO_MARKS):
                self.lto = True
            self.missing.append(path)
            return None
        file = identity(absolute, status)
        target = os.path.join(self.objects, file.encode())
        if file not in self.identities and not os.path.exists(target):
            source = os.open(absolute, os.O_RDONLY | os.O_CLOEXEC)
            try:
                kind = file_kind(os.pread(source, 20, 0))
                if kind == "bitcode":
                    self.lto = True
                if kind != "input":
                    self.skipped.append(path)
                    return None
                copy_file(source, target)
                if identity(absolute, os.fstat(source)) != file:
                    raise StagingError(f"{text(path)} changed while it was recorded; is another make running?")
            finally:
                os.close(source)
        self.identities.add(file)
        return absolute, status, file


def file_kind(head: bytes) -> str:
    """What the first 20 bytes make of a file: "input" (object, archive), "output" (linked ELF), "bitcode" or "other".

    Source: gABI chapter 4 (e_type at 16), ar(5), LLVM "Bitcode File Format".
    """
    if head[:8] in (b"!<arch>\n", b"!<thin>\n"):
        return "input"
    if head[:4] in (b"BC\xc0\xde", b"\xde\xc0\x17\x0b"):
        return "bitcode"
    if head[:4] == b"\x7fELF" and len(head) >= 18:
        kind = head[16] | head[17] << 8
        return "input" if kind == ET_REL else "output" if kind in (ET_EXEC, ET_DYN) else "other"
    return "other"


def remove_tree(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            remove_tree(os.path.join(path, name))
        os.rmdir(path)
    else:
        remove_file(path)
