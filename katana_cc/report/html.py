"""Explanations as self-contained HTML pages: no script, nothing loaded, fit for print and for dark screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2  # noqa: TID251 - the one importer

from katana_cc.patch.model import PatchObject
from katana_cc.report.explanation import explain
from katana_cc.report.origins import listed, sentences
from katana_cc.report.summary import clean, location, summarise


def page(po: PatchObject, data: bytes) -> str:
    """The page that explains `po`, whose file is `data`.  All text is escaped."""
    return _rendered("explanation.html.j2", {"e": explain(po, data), "s": summarise(po)})


def bundle_page(
    title: str, verdict: str, conclusion: str, manifest: Mapping[str, Any], patches: Sequence[tuple[PatchObject, bytes]]
) -> str:
    """The page of a bundle: what is in it, then the explanation of each patch, in the order of the manifest."""
    values = {key: manifest[key] for key in ("patches", "unchanged", "missing")}
    origins = [patch.get("provenance", {}) for patch in manifest["patches"]]
    explanations = [
        (explain(po, data), summarise(po), sentences(told), listed(told))
        for (po, data), told in zip(patches, origins, strict=True)
    ]
    head = {"title": title, "verdict": verdict, "conclusion": conclusion}
    return _rendered("bundle.html.j2", {**head, **values, "explanations": explanations})


def _rendered(name: str, values: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("katana_cc.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(location=location, **values)
