"""What `katana check FOLDER` says of a bundle that was damaged: always a sentence, whatever is in its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from katana_cc.patch import codec
from katana_cc.release.bundle import MANIFEST_FORMAT
from katana_cc.release.checking import check_bundle
from katana_cc.trust.policy import Policy
from tests.support.patches import sample

_NOBODY = Policy((), "")


def _bundle(folder: Path, manifest: Any) -> Path:
    files = {"manifest.json": json.dumps(manifest).encode(), "prog.kpo": codec.encode(sample())}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    (folder / "SHA256SUMS").write_text(sums)
    return folder


def _listed() -> dict[str, Any]:
    data = codec.encode(sample())
    return {"file": "prog.kpo", "id": codec.patch_id(data), "to_build_id": sample().identity.to_build_id}


def test_whole_bundle_has_nothing_wrong(tmp_path: Path) -> None:
    manifest = {"format": MANIFEST_FORMAT, "patches": [_listed()]}
    assert check_bundle(_bundle(tmp_path, manifest), _NOBODY) == []


@pytest.mark.parametrize("key", ["id", "to_build_id"])
def test_patch_that_is_another_than_the_manifest_says_is_named(tmp_path: Path, key: str) -> None:
    manifest = {"format": MANIFEST_FORMAT, "patches": [{**_listed(), key: "0123"}]}
    assert check_bundle(_bundle(tmp_path, manifest), _NOBODY) == [
        "prog.kpo: it is another patch than manifest.json says"
    ]


@pytest.mark.parametrize("value", [None, 7, "prog.kpo", {"prog.kpo": {}}, [7], ["prog.kpo"], [None], [[]]])
def test_list_of_patches_that_is_none_is_a_finding(tmp_path: Path, value: Any) -> None:
    """A bug: a traceback."""
    found = check_bundle(_bundle(tmp_path, {"format": MANIFEST_FORMAT, "patches": value}), _NOBODY)
    assert found == ["manifest.json: what it lists as patches are none"]


def test_manifest_without_patches_lists_none_of_them(tmp_path: Path) -> None:
    found = check_bundle(_bundle(tmp_path, {"format": MANIFEST_FORMAT}), _NOBODY)
    assert found == ["manifest.json: what it lists as patches are none"]


@pytest.mark.parametrize("value", [7, None, ["prog.kpo"], {}])
def test_entry_whose_file_is_no_name_is_a_finding(tmp_path: Path, value: Any) -> None:
    manifest = {"format": MANIFEST_FORMAT, "patches": [{**_listed(), "file": value}]}
    found = check_bundle(_bundle(tmp_path, manifest), _NOBODY)
    assert f"{value}: manifest.json lists it, and SHA256SUMS does not" in found
    assert "prog.kpo: manifest.json does not list it" in found


def test_manifest_that_is_not_the_object_it_must_be_is_a_finding(tmp_path: Path) -> None:
    assert check_bundle(_bundle(tmp_path, [1, 2]), _NOBODY) == [f"manifest.json: not of format {MANIFEST_FORMAT}"]
