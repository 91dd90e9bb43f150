"""Reads what staging left in a project, independently of the code that wrote it (docs/staging.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def links(store: Path) -> list[dict[str, Any]]:
    """Every staged link's `link.json`, with its folder under the key "folder"."""
    found = []
    for file in sorted((store / "staged" / "links").glob("*/link.json")):
        entry = json.loads(file.read_text())
        entry["folder"] = file.parent
        found.append(entry)
    return found


def only_link(store: Path) -> dict[str, Any]:
    """The one staged link there must be."""
    (entry,) = links(store)
    return entry


def input_names(entry: dict[str, Any]) -> set[str]:
    """The base names of the inputs of a link, without the C runtime's own."""
    names = {Path(item["path"]).name for item in entry["inputs"]}
    return {name for name in names if not name.startswith(("crt", "Scrt", "rcrt", "gcrt"))}


def staged_files(store: Path) -> list[Path]:
    """All copies of objects and archives in a store."""
    return sorted((store / "staged" / "objects").iterdir())
