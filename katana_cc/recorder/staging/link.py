"""One link: what the wrapper knows of it, staged; and the entry point that never lets a build fail."""

from __future__ import annotations

import os
import sys
import time

from katana_cc.recorder.staging.arguments import Options, expand_responses, scan
from katana_cc.recorder.staging.copying import Copies, copy_file, file_kind, remove_file, remove_tree
from katana_cc.recorder.staging.failure import StagingError, in_words
from katana_cc.recorder.staging.folder import Staged, link_key
from katana_cc.recorder.staging.mapnames import contributing_files
from katana_cc.recorder.staging.place import find_store, output_key
from katana_cc.recorder.staging.plain import text as as_text

FORMAT = 1


class Link:
    """What the wrapper knows of the link just made."""

    __slots__ = ("argv", "build_id_added", "cwd", "environ", "linker", "options", "output")

    def __init__(self, linker: bytes, build_id_added: bool, argv: list[bytes], environ: dict[bytes, bytes]) -> None:
        try:
            self.cwd = os.getcwdb()
        except FileNotFoundError:
            self.cwd = b""
        self.linker = os.path.join(self.cwd, linker)
        self.build_id_added = build_id_added
        self.argv = expand_responses(argv)
        self.options = Options(self.argv)
        self.output = os.path.normpath(os.path.join(self.cwd, self.options.output))
        self.environ = environ

    def notes(self) -> list[str]:
        """What the flags of this link mean for a patch, in words for the report."""
        notes = []
        if self.options.build_id in (b"none", b"uuid"):
            notes.append(f"build-id: the link asks for {self.options.build_id.decode()}")
        elif not self.options.build_id and not self.build_id_added:
            notes.append("build-id: none added, since the link has a linker script of its own")
        return notes


def stage(link: Link, map_path: bytes, ahead: Ingester | None = None) -> bool:
    """Stage one link; ingest it at once when its output belongs to a deployed release, by the ingester that was started
    ahead if there is one.

    False when the ingester failed, which has said why.  Raises StagingError or OSError; where the store can still be
    written then, a gap is recorded for the output.
    """
    status = _output_status(link.output)
    if status is None:
        return True
    if _is_set(link.environ, b"KATANA_READONLY"):
        raise StagingError("KATANA_READONLY is set")
    with open(map_path, "rb") as file:
        text = file.read()
    store, root, key = _place(link)
    staged = Staged(store)
    try:
        try:
            lto = _stage_into(staged, link, text, status, key, root)
        except (StagingError, OSError) as error:
            _record_gap(staged, link, key, str(error))
            raise
        if link.environ.get(b"KATANA_LTO_OFF") and not lto:
            _say_once_that_lto_is_off(store)
        ingested = not _is_deployed(store, key) or _ingest(store, link_key(link.output), ahead)
        staged.sweep()
        return ingested
    finally:
        _give_to_owner(store)
        staged.close()


def _place(link: Link) -> tuple[bytes, bytes, bytes]:
    """The store, the project's root, and the output's name through time."""
    if not link.cwd:
        raise StagingError("the folder of the link is gone")
    places = (link.environ.get(name, b"") for name in (b"KATANA_DIR", b"KATANA_PROJECT", b"HOME"))
    store, root = find_store(link.cwd, *places)
    return store, root, output_key(link.output, root, link.options.soname)


def _stage_into(staged: Staged, link: Link, text: bytes, status: os.stat_result, key: bytes, root: bytes) -> bool:
    kind, names = contributing_files(text)
    copies = Copies(staged.objects, link.cwd, kind)
    copies.add_all(names)
    # From here on every input is safe; what follows only describes them.
    folder = staged.link_folder(link.output)
    version = b"%x-%x" % (time.time_ns(), os.getpid())
    place = os.path.join(folder, version)
    os.makedirs(place)
    try:
        for name, content in ((b"map", text), (b"objects", "\n".join(sorted(copies.identities)).encode())):
            with open(os.path.join(place, name), "wb") as file:
                file.write(content)
        source = os.open(link.output, os.O_RDONLY | os.O_CLOEXEC)
        try:
            copy_file(source, os.path.join(place, b"output"))
        finally:
            os.close(source)
        notes = link.notes()
        notes += [f"missing: {as_text(name)} is named in the map, and no longer there" for name in copies.missing]
        notes += [f"skipped: {as_text(name)} is neither an object nor an archive" for name in copies.skipped]
        entry: dict[str, object] = {
            "format": FORMAT,
            "output": link.output,
            "output_key": key,
            "output_inode": status.st_ino,
            "output_size": status.st_size,
            "output_mtime_ns": status.st_mtime_ns,
            "version": version,
            "root": root,
            "cwd": link.cwd,
            "argv": link.argv,
            "linker": link.linker,
            "linker_kind": kind,
            "compiler": link.environ.get(b"KATANA_COMPILER", b""),
            "compiler_path": link.environ.get(b"COMPILER_PATH", b""),
            "map": version + b"/map",
            "image": version + b"/output",
            "inputs": [copies.inputs[name].as_json() for name in sorted(copies.inputs)],
            "missing": copies.missing,
            "skipped": copies.skipped,
            "build_id_added": link.build_id_added,
            "lto": copies.lto,
            "notes": notes,
            "time": int(time.time()),
        }
        staged.commit(folder, link.output, entry)
    except BaseException:
        remove_tree(place)
        raise
    return copies.lto


def _record_gap(staged: Staged, link: Link, key: bytes, reason: str) -> None:
    """So that no later step takes the previous link of this output for the present one.  The disk may be full."""
    entry: dict[str, object] = {
        "format": FORMAT,
        "output": link.output,
        "output_key": key,
        "gap": reason,
        "time": int(time.time()),
    }
    try:
        staged.commit(staged.link_folder(link.output), link.output, entry)
    except OSError:
        # Not even that: then at least nothing stale may stay.  Removing needs no space.
        remove_file(os.path.join(staged.link_folder(link.output), b"link.json"))


def _output_status(output: bytes) -> os.stat_result | None:
    """None when the link left no ELF executable or shared library there."""
    try:
        with open(output, "rb") as file:
            return os.fstat(file.fileno()) if file_kind(file.read(20)) == "output" else None
    except FileNotFoundError:
        return None


def _give_to_owner(store: bytes) -> None:
    """As root in somebody's project (`sudo make install` relinks): what we wrote is his, or his next build fails."""
    if os.geteuid() != 0:
        return
    owner = os.stat(os.path.dirname(store))
    if owner.st_uid == 0 or owner.st_mode & 0o1000:
        return
    paths = [store]
    for folder, folders, files in os.walk(store):
        paths += [os.path.join(folder, name) for name in folders + files]
    for path in paths:
        try:
            if os.lstat(path).st_uid == 0:
                os.lchown(path, owner.st_uid, owner.st_gid)
        except OSError:
            pass  # gone meanwhile, or an owner that does not exist in this user namespace


def _say_once_that_lto_is_off(store: bytes) -> None:
    try:
        os.close(
            os.open(os.path.join(store, b"lto-notice"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        )
    except FileExistsError:
        return
    warn(
        "-flto is turned off in recorded builds, since its objects hold no machine code (KATANA_LTO=keep leaves it on)"
    )


def _is_deployed(store: bytes, key: bytes) -> bool:
    try:
        with open(os.path.join(store, b"deployed"), "rb") as file:
            return key in file.read().split(b"\n")
    except FileNotFoundError:
        return False


class Ingester:
    """An interpreter that has the libraries, for which a link need not wait: started ahead, it loads them meanwhile."""

    __slots__ = ("_orders", "_pid", "store")

    def __init__(self, store: bytes) -> None:
        self.store = store
        command = [sys.executable, "-I", "-m", "katana_cc.recorder.ingest", os.fsdecode(store)]
        orders, self._orders = os.pipe()  # closed on exec, as all of Python's
        sys.stderr.flush()
        actions = [(os.POSIX_SPAWN_DUP2, 2, 1), (os.POSIX_SPAWN_DUP2, orders, 0)]
        try:
            self._pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        except OSError:
            os.close(self._orders)
            raise
        finally:
            os.close(orders)

    def run(self, key: str) -> int:
        """Have it ingest a staged link, and wait for its end; its status (negative: the signal that killed it)."""
        try:
            os.write(self._orders, key.encode() + b"\n")
        except BrokenPipeError:
            pass  # its status tells
        return self.end()

    def end(self) -> int:
        """Let it end, if it has not yet."""
        if not self._pid:
            return 0
        pid, self._pid = self._pid, 0
        os.close(self._orders)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _start_ahead(link: Link) -> Ingester | None:
    """The ingester, if the link will want one; what stands in the way of that, `stage` will say."""
    try:
        store, _, key = _place(link)
        return Ingester(store) if _is_deployed(store, key) else None
    except (StagingError, OSError):
        return None


def _ingest(store: bytes, key: str, ahead: Ingester | None) -> bool:
    """Hand a link of a deployed output to the ingester; wait for it."""
    status = (ahead if ahead is not None and ahead.store == store else Ingester(store)).run(key)
    if status < 0:
        raise StagingError(f"the ingester was killed by signal {-status}")
    return status == 0


def _is_set(environ: dict[bytes, bytes], name: bytes) -> bool:
    return environ.get(name, b"0") not in (b"", b"0")


def _log(link: Link, text: str) -> None:
    """A line in KATANA_LOGFILE: when, which output, what came of it.  One that cannot be written fails nothing."""
    path = link.environ.get(b"KATANA_LOGFILE", b"")
    if not path:
        return
    when = time.strftime("%Y-%m-%dT%H:%M:%S")
    line = f"{when} {as_text(link.output)}: {text}\n".encode("utf-8", "surrogateescape")
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        os.write(file, line)  # at once, so that lines of links at the same time do not mix
        os.close(file)
    except OSError:
        pass


def warn(text: str) -> None:
    """One line on stderr, whatever the locale can say of it; a closed stderr is no reason to fail a build."""
    try:
        os.write(2, f"katana: {text}\n".encode("utf-8", "surrogateescape"))
    except OSError:
        pass


def main(arguments: list[str]) -> int:
    """Entry point.  Returns 0 unless KATANA_STRICT is set: a build never fails because it could not be recorded."""
    words = [os.fsencode(argument) for argument in arguments]
    if words[:1] == [b"--scan"]:
        os.write(1, scan(words[1:]))
        return 0
    is_ahead = words[:1] == [b"--ahead"]
    map_path, linker, added = words[is_ahead : is_ahead + 3]
    link = Link(linker, added == b"1", words[is_ahead + 3 :], dict(os.environb))
    strict = _is_set(link.environ, b"KATANA_STRICT")
    ingester = _start_ahead(link) if is_ahead else None
    try:
        if is_ahead and not os.read(0, 1):
            return 0
        staged = stage(link, map_path, ingester)
        _log(link, "recorded" if staged else "its ingester failed")
        return int(not staged and strict)
    except StagingError as error:
        reason = str(error)
    except OSError as error:
        reason = in_words(error)
    except Exception as error:  # the boundary to somebody's build: a bug of ours must not break it either
        reason = f"{type(error).__name__}: {error}, which is a bug in katana-cc"
    finally:
        if ingester is not None:
            ingester.end()
    _log(link, f"not recorded: {reason}")
    warn(f"{as_text(link.options.output)} is not recorded: {reason.replace(os.linesep, ' ')}")
    return int(strict)
