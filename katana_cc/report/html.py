"""An explanation as one self-contained HTML page: no script, nothing loaded, fit for print and for dark screens."""

from __future__ import annotations

import jinja2  # noqa: TID251 - the one importer

from katana_cc.patch.model import PatchObject
from katana_cc.report.explanation import explain
from katana_cc.report.summary import clean, location, summarise


def page(po: PatchObject, data: bytes) -> str:
    """The page that explains `po`, whose file is `data`.  All text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("katana_cc.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("explanation.html.j2")
    return template.render(e=explain(po, data), s=summarise(po), location=location)
