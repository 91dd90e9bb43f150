"""Where the store of a link is, and by what name its output is known through time."""

from __future__ import annotations

import os

from katana_cc.recorder.staging.failure import StagingError

VCS_MARKS = (b".git", b".hg", b".svn", b"_darcs")
BUILD_MARKS = (
    b"Makefile",
    b"makefile",
    b"GNUmakefile",
    b"CMakeLists.txt",
    b"CMakeCache.txt",
    b"build.ninja",
    b"configure",
    b"meson.build",
)


def find_store(cwd: bytes, katana_dir: bytes, project: bytes, home: bytes) -> tuple[bytes, bytes]:
    """The store's folder and the project's root, for a link made in `cwd`.  The store need not exist yet.

    `katana_dir` (KATANA_DIR) decides about the store when set, `project` (KATANA_PROJECT, set by Katana.cmake, since a
    build folder may be anywhere) about the root, and else about the store too.  Else it is the nearest `.katana`
    upwards, or one in the project's root: the nearest folder under version control, or the topmost one reached through
    folders that hold build files, or `cwd`.  Never in /, in `home` or in a folder like /tmp, unless that is `cwd`.
    """
    folders = [cwd]
    while folders[-1] != os.path.dirname(folders[-1]):
        folders.append(os.path.dirname(folders[-1]))
    allowed = [folder for folder in folders if folder == cwd or not _is_nobodys_project(folder, home)]
    for name, value in ((b"KATANA_DIR", katana_dir), (b"KATANA_PROJECT", project)):
        if value and not os.path.isabs(value):
            raise StagingError(f"{name.decode()} must be an absolute path, since links are made in many folders")
    if katana_dir:
        store = os.path.normpath(katana_dir)
        if project:
            return store, os.path.normpath(project)
        parent = os.path.dirname(store)
        return store, parent if os.path.basename(store) == b".katana" else _project_root(cwd, allowed)
    if project:
        root = os.path.normpath(project)
        return os.path.join(root, b".katana"), root
    for folder in allowed:
        store = os.path.join(folder, b".katana")
        if os.path.isdir(store):
            return store, folder
    root = _project_root(cwd, allowed)
    return os.path.join(root, b".katana"), root


def _project_root(cwd: bytes, allowed: list[bytes]) -> bytes:
    for folder in allowed:
        if _holds_any(folder, VCS_MARKS):
            return folder
    root = cwd
    for folder in allowed:
        # Contiguous: a folder that is not allowed, or that holds no build file, ends the walk.
        if folder != cwd and (os.path.dirname(root) != folder or not _holds_any(folder, BUILD_MARKS)):
            break
        root = folder
    return root


def _holds_any(folder: bytes, names: tuple[bytes, ...]) -> bool:
    return any(os.path.lexists(os.path.join(folder, name)) for name in names)


def _is_nobodys_project(folder: bytes, home: bytes) -> bool:
    if folder == os.path.dirname(folder) or (home and folder == os.path.normpath(home)):
        return True
    try:
        mode = os.stat(folder).st_mode
    except OSError:
        return True
    return bool(mode & 0o1000 and mode & 0o002)


def output_key(output: bytes, root: bytes, soname: bytes) -> bytes:
    """What one output is known by through time: its path under the root without `.libs/`, and for a library with its
    soname as the last part, since the file's own name holds a version.

    The soname alone would make one of the libraries that two folders of a project build under one name.
    """
    parts = [part for part in os.path.relpath(output, root).split(b"/") if part != b".libs"]
    return b"/".join([*parts[:-1], soname or parts[-1]])
