"""A patch object in words: all it holds, for a person (`katana show PO`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from katana_cc.diff.reasons import relies
from katana_cc.patch.codec import patch_id
from katana_cc.patch.model import FORMAT_VERSION, PatchObject
from katana_cc.report import names
from katana_cc.report.handlers import handler_rows
from katana_cc.report.summary import (
    SEVERITY_TITLES,
    Reference,
    Summary,
    clean,
    conclusion,
    count,
    headline,
    location,
    summarise,
)
from katana_cc.report.transforms import transform_rows


def render(po: PatchObject, data: bytes, *, verbose: bool = True) -> str:
    """All that `po` holds, whose file is `data`; without `verbose`, no sections, symbols and relocations."""
    summary = summarise(po)
    lines = [*identity_lines(po, data, summary), *change_lines(summary), *reason_lines(summary)]
    lines += handler_lines(po)
    lines += reliance_lines(po)
    lines += transform_lines(po)
    if verbose:
        lines += [*_sections(po), *_symbols(po), *_relocations(po)]
    return "\n".join(clean(line).rstrip() for line in lines) + "\n"


def identity_lines(po: PatchObject, data: bytes, summary: Summary) -> list[str]:
    """Which patch it is, from which build to which, and the verdict."""
    i = po.identity
    return [
        f"patch     {patch_id(data)} ({count(len(data), 'byte')}, format version {FORMAT_VERSION})",
        f"output    {i.output} ({names.machine(i.machine)})",
        f"from      {_side(i.from_release, i.from_build_id)}",
        f"to        {_side(i.to_release, i.to_build_id)}",
        f"changes   {headline(summary)}",
        f"verdict   {conclusion(summary)}",
    ]


def change_lines(summary: Summary) -> list[str]:
    """What the patch replaces, brings, rewrites and uses; only what there is."""
    lines: list[str] = []
    rows: list[Sequence[str]] = []
    for f in summary.changed:
        text = f"{count(f.old_size, 'byte')} at {f.address:#x} → {count(f.new_size, 'byte')}"
        if f.new_name != f.name:
            text += f" ({f.new_name})"
        text += "".join(f"; also {count(size, 'byte')} at {address:#x}" for address, size in f.parts)
        rows.append((f.name, text))
    lines += _block("Replaced functions", rows)
    lines += _block(
        "Hooks",
        [
            (h.name, f"{'called' if h.kind.makes_objects else 'runs'} {h.kind.words}", count(h.size, "byte"))
            for h in summary.hooks
        ],
    )
    lines += _block("New functions", [(f.name, count(f.size, "byte"), f.section) for f in summary.new_functions])
    data = [(d.name, count(d.size, "byte"), d.kind, d.section) for d in summary.new_data]
    if summary.unnamed_bytes:
        data.append(("(without a name)", count(summary.unnamed_bytes, "byte"), "literals, tables, unwind tables", ""))
    lines += _block("New data", data)
    rewritten = [(d.name, f"{count(d.size, 'byte')} at {d.address:#x}") for d in summary.rewritten]
    lines += _block("Data rewritten in place", rewritten)
    lines += _block("Functions that stay, and are made to use variables made anew", [(n,) for n in summary.retargeted])
    initial = [((d.name, f"{count(d.size, 'byte')} at {d.address:#x}"), d) for d in summary.initialisers]
    lines += _block("New initial values, taken as the source says", [i for i, d in initial if d.is_taken])
    lines += _block("New initial values, taken with --take-initialiser only", [i for i, d in initial if not d.is_taken])
    lines += _block("New imports, found by name", [_import(r) for r in summary.new_imports])
    used = [_import(r) for r in summary.imports if r not in summary.new_imports]
    lines += _block("Used of libraries, as before", used)
    return lines + _block("Used of what is there", [(r.name, _where(r)) for r in summary.existing])


def reason_lines(summary: Summary) -> list[str]:
    """The reasons, gravest first."""
    lines = [] if summary.reasons else ["", "Reasons", "  none"]
    for severity, reasons in summary.reasons.items():
        lines += ["", SEVERITY_TITLES.get(severity, severity)]
        for r in reasons:
            lines.append(f"  {r.subject or '-'}: {r.text}")
            lines.append("    " + "  ".join(filter(None, (location(r), f"[{r.code}]"))))
    return lines


def reliance_lines(po: PatchObject) -> list[str]:
    """Which replaced functions must not be active, and why."""
    rows = []
    for x in po.reliances:
        text = relies(po.replacements[x.callee].name, x.basis, x.through)
        rows.append((po.replacements[x.caller].name, text))
    return _block("May not be active when it is replaced", rows)


def transform_lines(po: PatchObject) -> list[str]:
    """How live data is carried over, field by field."""
    if not po.transforms:
        return ["", "Transformations", "  none"]
    lines = ["", "Transformations"]
    for title, rows in transform_rows(po):
        table = _block("", [(new, f"← {old}", how) for new, old, how in rows], "    ")
        lines += [f"  {title}", *table[2:]]
    return lines


def handler_lines(po: PatchObject) -> list[str]:
    """What carried functions catch and clean up."""
    rows = []
    for row in handler_rows(po):
        parts = [f"catches {', '.join(row.catches)}"] if row.catches else []
        parts += [f"lets only {', '.join(row.allows)} pass"] if row.allows else []
        parts += ["cleans up"] if row.cleans_up else []
        rows.append((row.function, "; ".join(parts)))
    return _block("When an exception passes", rows)


def _side(release: str, build_id: str) -> str:
    return f"{release}, build-id {build_id}" if release else f"build-id {build_id}"


def _import(r: Reference) -> tuple[str, str]:
    return r.name, "may be absent" if r.weak else ""


def _where(r: Reference) -> str:
    return f"{'thread-local, offset' if r.thread_local else 'at'} {r.address or 0:#x}"


def _sections(po: PatchObject) -> list[str]:
    rows: list[Sequence[str]] = [
        (
            f"[{i}]",
            s.name,
            names.section_type(s.type),
            names.flags(s.flags),
            f"{s.size:#x}",
            f"align {s.alignment}",
            count(len(s.relocations), "relocation") if s.relocations else "",
        )
        for i, s in enumerate(po.sections)
    ]
    return _block("Sections", rows, "")


def _symbols(po: PatchObject) -> list[str]:
    rows: list[Sequence[str]] = [
        (
            f"[{i}]",
            y.name or "-",
            names.binding(y.binding),
            names.symbol_type(y.type),
            f"{y.value:#x}",
            count(y.size, "byte"),
            "undefined" if y.section is None else f"in [{y.section}] {po.sections[y.section].name}",
        )
        for i, y in enumerate(po.symbols)
    ]
    return _block("Symbols", rows, "")


def _relocations(po: PatchObject) -> list[str]:
    lines: list[str] = []
    for i, s in enumerate(po.sections):
        rows = []
        for r in s.relocations:
            y = po.symbols[r.symbol]
            name = y.name or (po.sections[y.section].name if y.section is not None else "-")
            addend = f"{name} {'-' if r.addend < 0 else '+'} {abs(r.addend):#x}"
            rows.append((f"{r.offset:#x}", names.relocation(po.identity.machine, r.type), addend))
        lines += _block(f"Relocations of [{i}] {s.name}", rows)
    return lines


def _block(title: str, rows: Iterable[Sequence[str]], indent: str = "  ") -> list[str]:
    """A titled table, its columns aligned; nothing at all when there is no row."""
    table = [[clean(cell) for cell in row] for row in rows]
    if not table:
        return []
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return ["", title, *(indent + line for line in body)]
