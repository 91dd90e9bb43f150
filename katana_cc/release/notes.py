"""What people read of a bundle: release notes as Markdown, from the manifest alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from katana_cc.report.origins import listed, sentences

_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#])")


def overall(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """(verdict, sentence) of a whole bundle: as bad as its worst part."""
    patches, missing = manifest["patches"], manifest["missing"]
    verdicts = {p["verdict"] for p in patches}
    if missing:
        return "refused", "Not for every release there is a patch: a present build is not recorded."
    if "refused" in verdicts:
        return "refused", "Some processes have to be restarted with the new build: a change to them cannot be patched."
    if "needs" in verdicts:
        return "needs", "A person has to decide before some of these patches may be applied."
    return "safe", "All of these patches may be applied." if patches else "Nothing has to be patched."


def notes(title: str, manifest: Mapping[str, Any]) -> str:
    """The notes."""
    lines = [f"# {_plain(title)}", "", overall(manifest)[1], ""]
    for patch in manifest["patches"]:
        lines += [
            f"## {_plain(patch['output'])}: {_plain(patch['from'])} → {_plain(patch['to'])}",
            "",
            f"**{patch['verdict']}**: {_plain(patch['summary'])}. File `{patch['file']}`.",
            "",
            *_details(patch),
            *_provenance(patch.get("provenance", {})),
        ]
    for same in manifest["unchanged"]:
        lines.append(f"- {_plain(same['output'])} of {_plain(same['release'])} needs no patch.")
    for lost in manifest["missing"]:
        lines.append(
            f"- **{_plain(lost['output'])} of {_plain(lost['release'])} has no patch**: {_plain(lost['reason'])}."
        )
    return "\n".join(lines).rstrip() + "\n"


def _details(patch: Mapping[str, Any]) -> Iterator[str]:
    for key, label in (("changed_functions", "changed"), ("new_functions", "new")):
        if patch[key]:
            yield f"- Functions {label}: {', '.join(_plain(f['name']) for f in patch[key])}"
    for key, label in (("types_carried_over", "Types"), ("carried_over", "Variables")):
        if patch[key]:
            yield f"- {label} carried over: {', '.join(map(_plain, patch[key]))}"
    for need in patch["needs"]:
        yield f"- To decide: {_plain(need['subject'])}" + (f", `{need['option']}`" if need["option"] else "")
    for reason in patch["reasons"]:
        if reason["severity"] == "refused":
            yield f"- Refused: {_plain(reason['subject'])}: {_plain(reason['text'])} (`{reason['code']}`)"
    yield ""


def _provenance(told: Mapping[str, Any]) -> Iterator[str]:
    for sentence in sentences(told):
        yield f"- {_plain(sentence)}."
    for line in listed(told):
        yield f"  - {_plain(line)}"
    if told:
        yield ""


def _plain(text: str) -> str:
    """Text that Markdown prints as it is."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
