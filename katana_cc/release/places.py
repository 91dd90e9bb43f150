"""Files of a mirror: written to and read from a folder, a web server, a bucket or whatever else fsspec reaches.

The one importer of fsspec.  Web servers are read with the standard library: hosts that only fetch patches need no
asynchronous HTTP client for it.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from katana_cc.errors import StoreError, TargetError, UsageError

_TIMEOUT: Final = 20  # seconds that a server may be silent
_LARGEST: Final = 1 << 30  # bytes of one file; more is no patch


class Place(Protocol):
    """Where files of a mirror lie, by paths below its base."""

    @property
    def url(self) -> str:
        """As the user named it."""
        ...

    def read(self, path: str) -> bytes | None:
        """What a file holds; None when there is none.

        Raises:
            TargetError: the place cannot be reached.
        """
        ...

    def sizes(self, folder: str) -> Mapping[str, int] | None:
        """The files right in a folder and their sizes in bytes; None when the place does not tell.

        Raises:
            TargetError: the place cannot be reached.
        """
        ...

    def write(self, path: str, data: bytes) -> None:
        """Make or replace a file, which is there whole or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        ...


def place(url: str) -> Place:
    """The place that a URL, or the path of a folder, means.

    Raises:
        UsageError: nothing on this machine knows such URLs.
    """
    return _Web(url.rstrip("/")) if url.startswith(("http://", "https://")) else _Files(url.rstrip("/") or "/")


class _Web:
    def __init__(self, url: str) -> None:
        self.url = url

    def read(self, path: str) -> bytes | None:
        request = urllib.request.Request(f"{self.url}/{path}", headers={"User-Agent": "katana"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                data: bytes = answer.read(_LARGEST)
                return data
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                return None
            raise self._unreachable(path, f"the server says {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise self._unreachable(path, str(reason) or type(error).__name__) from error

    def sizes(self, folder: str) -> None:
        del folder  # web servers list folders each in a way of its own, or not at all

    def write(self, path: str, data: bytes) -> None:
        raise UsageError(
            f"a web server is read only: {path} of {len(data)} bytes cannot be put there",
            where=self.url,
            remedy="publish into the folder, or the bucket, that it serves",
        )

    def _unreachable(self, path: str, why: str) -> TargetError:
        return TargetError(f"{path} cannot be fetched: {why}", where=self.url, remedy="see whether the mirror is up")


class _Files:
    def __init__(self, url: str) -> None:
        import fsspec  # type: ignore[import-untyped]  # noqa: TID251 - the one importer; late: it takes 0.3 s

        self.url = url
        try:
            self._system, self._base = fsspec.core.url_to_fs(url)
            self._is_local = isinstance(self._system, fsspec.get_filesystem_class("file"))
        except (ImportError, ValueError) as error:
            raise UsageError(f"such a place is not known here: {error}", where=url) from error

    def read(self, path: str) -> bytes | None:
        whole = f"{self._base}/{path}"
        try:
            data: bytes = self._system.cat_file(whole)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # each kind of file system has exceptions of its own
            raise TargetError(f"{path} cannot be read: {error}", where=self.url) from error
        return data

    def sizes(self, folder: str) -> Mapping[str, int]:
        whole = f"{self._base}/{folder}"
        try:
            self._system.invalidate_cache()  # others write there
            rows = self._system.ls(whole, detail=True)
            return {row["name"].rstrip("/").rpartition("/")[2]: row["size"] for row in rows if row["type"] == "file"}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except Exception as error:  # as above
            raise TargetError(f"{folder} cannot be listed: {error}", where=self.url) from error

    def write(self, path: str, data: bytes) -> None:
        whole = f"{self._base}/{path}"
        try:
            self._system.makedirs(whole.rpartition("/")[0], exist_ok=True)
            with self._system.transaction, self._system.open(whole, "wb") as file:
                file.write(data)
            if self._is_local:
                Path(whole).chmod(0o644)  # a temporary file's mode would keep a web server out
        except Exception as error:  # as above
            raise StoreError(f"{path} cannot be written: {error}", where=self.url) from error
