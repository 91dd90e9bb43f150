"""Whom this host trusts, and whether it takes what nobody signed.

    keys          every *.pem in the folders named on the command line, in KATANA_TRUSTED, and in /etc/katana/trusted.d
    demanded      --require-signature, KATANA_REQUIRE_SIGNATURE=1, or a file /etc/katana/require-signature

The administrator's demand holds whatever the environment and the command line say: both can only add to it.  A file
that is signed is checked as soon as any key is trusted, demanded or not: one that was altered is never let pass as one
that was not signed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from katana_cc.errors import InvalidPatchError, RefusedError, UsageError

SYSTEM: Final = Path("/etc/katana")
SUFFIX: Final = ".sig"
_DEMANDED_BY: Final = "require-signature"


@dataclass(frozen=True, slots=True)
class Policy:
    """`keys` are trusted: files, in the order of their names.  `demanded` says who wants a signature, "" for nobody."""

    keys: tuple[Path, ...]
    demanded: str

    def check(self, data: bytes, signature: bytes | None, where: str) -> str:
        """The name of the trusted key that signed `data`; "" when nobody asks, or no key is trusted.

        Raises:
            RefusedError: a signature is demanded, and there is none, or no key to check it by.
            InvalidPatchError: there is a signature, but of other data, or of a key that is not trusted.
        """
        if signature is None:
            if not self.demanded:
                return ""
            raise RefusedError(
                f"it is not signed, and {self.demanded} demands a signature",
                where=where,
                remedy=f"put {Path(where).name}{SUFFIX} beside it; `katana-release --since NAME --sign KEY` makes it",
            )
        if not self.keys:
            if not self.demanded:
                return ""
            raise RefusedError(
                f"{self.demanded} demands a signature, and no key is trusted",
                where=where,
                remedy=f"put the public key, as a file *.pem, into {SYSTEM}/trusted.d, or name a folder: --trusted DIR",
            )
        from katana_cc.trust import ed25519  # late: most hosts and commands have nothing to check

        for path in self.keys:
            key = ed25519.public_key(_read(path), str(path))
            if len(signature) == ed25519.SIZE and ed25519.is_signed(key, data, signature):
                return path.stem
        names = ", ".join(path.stem for path in self.keys)
        raise InvalidPatchError(
            f"its signature is none of these keys' for what it holds: {names}",
            where=where,
            remedy="it was altered on its way, or signed by somebody whom this host does not trust; fetch it again",
        )


def policy(
    folders: Iterable[Path] = (),
    is_demanded: bool = False,
    environment: Mapping[str, str] | None = None,
    system: Path = SYSTEM,
) -> Policy:
    """The policy in force: what the command line says, the environment, and the host's own.

    Raises:
        UsageError: a folder that was named cannot be read.
    """
    environment = os.environ if environment is None else environment
    named = [*folders, *(Path(word) for word in environment.get("KATANA_TRUSTED", "").split(":") if word)]
    keys = [path for folder in named for path in _keys_in(folder)]
    if (system / "trusted.d").is_dir():
        keys += _keys_in(system / "trusted.d")
    demanded = ""
    if (system / _DEMANDED_BY).exists():
        demanded = str(system / _DEMANDED_BY)
    elif is_demanded:
        demanded = "--require-signature"
    elif environment.get("KATANA_REQUIRE_SIGNATURE", "") not in ("", "0"):
        demanded = "KATANA_REQUIRE_SIGNATURE"
    return Policy(tuple(dict.fromkeys(keys)), demanded)


def _keys_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".pem")
    except OSError as error:
        raise UsageError(
            f"the folder of trusted keys cannot be read: {error.strerror}",
            where=str(folder),
            remedy="it holds public keys, as files *.pem",
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"the key cannot be read: {error.strerror}", where=str(path)) from error


def signature_of(path: Path) -> bytes | None:
    """What stands in the signature beside a file; None when there is none.

    Raises:
        InvalidPatchError: it is there and cannot be read: it must not be taken for missing.
    """
    beside = path.with_name(path.name + SUFFIX)
    try:
        return beside.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidPatchError(f"the signature cannot be read: {error.strerror}", where=str(beside)) from error
