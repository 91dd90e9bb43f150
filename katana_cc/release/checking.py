"""Whether a bundle is whole: what `katana check FOLDER` says of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from katana_cc.errors import InvalidPatchError, KatanaError, RefusedError
from katana_cc.patch.codec import decode, patch_id
from katana_cc.release.bundle import MANIFEST_FORMAT, SUMS
from katana_cc.telling import Tell, silent
from katana_cc.trust.policy import SUFFIX, Policy, signature_of


def check_bundle(folder: Path, trust: Policy, tell: Tell = silent) -> list[str]:
    """What is wrong with a bundle, a sentence for each finding; nothing when all is well.

    `tell` hears of each patch as it is read, as by `ingest_staged`.

    Raises:
        InvalidPatchError: the folder holds no bundle, or cannot be read.
    """
    try:
        names = {path.name for path in folder.iterdir()}
        sums = _sums((folder / SUMS).read_text(encoding="utf-8"))
        files = {name: (folder / name).read_bytes() for name in sums if name in names}
        manifest = json.loads(files["manifest.json"])
    except (OSError, ValueError, KeyError) as error:
        text = f"no bundle, or one that is damaged: {error}"
        raise InvalidPatchError(text, where=str(folder), remedy="`katana-release --since NAME` makes one") from error
    found = [f"{name}: it is missing" for name in sorted(sums.keys() - names)]
    found += [
        f"{n}: no part of the bundle"
        for n in sorted(names - sums.keys())
        if n.removesuffix(SUFFIX) not in sums | {SUMS: ""}
    ]
    found += [
        f"{name}: its SHA-256 is not that of {SUMS}"
        for name, data in sorted(files.items())
        if hashlib.sha256(data).hexdigest() != sums[name]
    ]
    for name in sorted({*files, SUMS}):
        try:
            trust.check(files.get(name) or (folder / name).read_bytes(), signature_of(folder / name), name)
        except (InvalidPatchError, RefusedError) as error:
            found.append(f"{name}: {error.what}")
    return [*found, *_patches(manifest, files, tell)]


def _sums(text: str) -> dict[str, str]:
    """File → SHA-256, of the lines of sha256sum.

    Raises:
        ValueError: a line is none of them, or names what is not in the folder.
    """
    result = {}
    for line in text.splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64 or "/" in name or name in ("", ".", ".."):
            raise ValueError(f"{SUMS} has a line that is none: {line!r}")
        result[name] = digest
    return result


def _patches(manifest: Any, files: dict[str, bytes], tell: Tell) -> list[str]:
    """What is wrong with the manifest, or with the patches that it lists."""
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        return [f"manifest.json: not of format {MANIFEST_FORMAT}"]
    found = []
    listed = {}
    patches = manifest.get("patches")
    if not isinstance(patches, list) or not all(isinstance(fields, dict) for fields in patches):
        return ["manifest.json: what it lists as patches are none"]
    for number, fields in enumerate(patches):
        name, identity = str(fields.get("file")), fields.get("id")
        tell(number, len(patches), name)
        listed[name] = identity
        try:
            data = files[name]
            if decode(data, name).identity.to_build_id != fields.get("to_build_id") or patch_id(data) != identity:
                found.append(f"{name}: it is another patch than manifest.json says")
        except KeyError:
            found.append(f"{name}: manifest.json lists it, and {SUMS} does not")
        except KatanaError as error:
            found.append(f"{name}: {error.what}")
    found += [
        f"{name}: manifest.json does not list it" for name in files if name.endswith(".kpo") and name not in listed
    ]
    return found
