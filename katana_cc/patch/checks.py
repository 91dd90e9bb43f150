"""What must hold of a patch object beyond its format: `katana check PO`.

The codec lets through whatever can be represented.  Here are the rules that make it applicable, as a list of plain
sentences, empty when all is well; and the comparison with an independent second reader (LIEF), which catches a mistake
that our own writer and reader share.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from katana_cc.cpu.choice import of
from katana_cc.dwarf.frames import Fde, records
from katana_cc.dwarf.lsda import read_lsda
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError
from katana_cc.patch.codec import encode
from katana_cc.patch.layout import LINKER_TYPES, is_ours
from katana_cc.patch.lief_reader import SecondView, second_view
from katana_cc.patch.model import REGISTRATION, BroughtKind, PatchObject, PatchSection, Verdict

JUMP_SIZE: Final = 5  # jmp rel32
SEVERITIES: Final = ("info", "needs", "refused")
_HEX: Final = re.compile(r"([0-9a-f]{2})+")


def check_file(path: str | Path, data: bytes, po: PatchObject) -> list[str]:
    """All that is wrong with the patch object at `path`, whose bytes are `data` and which decodes to `po`."""
    found = problems(po)
    if encode(po) != data:
        found.append("the file holds bytes that its contents do not explain (another writer, or altered and re-sealed)")
    view = second_view(path)
    if isinstance(view, str):
        return [*found, f"the second reader cannot confirm the file: {view}"]
    return found + disagreements(po, view)


def problems(po: PatchObject) -> list[str]:
    """What keeps `po` from being applied as it claims."""
    parts = (
        _of_identity,
        _of_sections,
        _of_symbols,
        _of_functions,
        _of_edits,
        _of_frames,
        _of_transforms,
        _of_hooks,
        _of_brought,
    )
    return [text for part in parts for text in part(po)]


def _of_identity(po: PatchObject) -> Iterator[str]:
    i = po.identity
    for side, build_id in (("from", i.from_build_id), ("to", i.to_build_id)):
        if not _HEX.fullmatch(build_id):
            yield f"the {side} build-id {build_id!r} is not hexadecimal"
    if i.from_build_id == i.to_build_id:
        yield "it leads from a build to itself"
    severities = {r.severity for r in po.reasons}
    if unknown := severities - set(SEVERITIES):
        yield f"reasons of unknown severity: {', '.join(sorted(unknown))}"
    worst = max((SEVERITIES.index(s) for s in severities if s in SEVERITIES), default=0)
    stated = tuple(Verdict).index(po.verdict)
    if worst != stated:
        yield f'the verdict is "{po.verdict}", but the gravest reason is "{SEVERITIES[worst]}"'


def _of_sections(po: PatchObject) -> Iterator[str]:
    sizes = of(po.identity.machine).relocations.FIELD_SIZES
    for s in po.sections:
        for r in s.relocations:
            width = sizes.get(r.type)
            if width is None:
                yield f"section {s.name}: relocation of unknown type {r.type} at {r.offset:#x}"
            elif r.offset + width > s.size:
                yield f"section {s.name}: the relocation at {r.offset:#x} reaches beyond its end"


def _of_symbols(po: PatchObject) -> Iterator[str]:
    for y in po.symbols:
        if y.section is not None and y.value + y.size > po.sections[y.section].size:
            yield f"symbol {y.name} reaches beyond its section {po.sections[y.section].name}"


def _of_functions(po: PatchObject) -> Iterator[str]:
    for r in po.replacements:
        if r.size < JUMP_SIZE:
            yield f"function {r.name} has {r.size} bytes, too few for a jump ({JUMP_SIZE})"
        new = po.symbols[r.symbol]
        if new.section is None:
            if not new.value:
                yield f"function {r.name} is replaced by {new.name}, which is not in the patch nor at a known address"
        elif not _is_code(po.sections[new.section]):
            yield f"function {r.name} is replaced by {new.name}, which is not in executable memory"
    yield from _overlaps(_code_ranges(po))


def _of_edits(po: PatchObject) -> Iterator[str]:
    for e in po.data_edits:
        old, new = po.sections[e.expected], po.sections[e.replacement]
        if old.size != new.size or not old.size:
            yield f"data edit of {e.name}: {old.size} bytes expected, {new.size} to write"
        for s in (old, new):
            if s.flags & c.SHF_ALLOC or s.type == c.SHT_NOBITS:
                yield f"data edit of {e.name}: section {s.name} would be mapped, or has no contents"
    known = set(_overlaps(_code_ranges(po)))
    yield from (text for text in _overlaps([*_code_ranges(po), *_edit_ranges(po)]) if text not in known)
    # One that is asked for takes the place of single pointers in it.
    yield from _overlaps(_edit_ranges(po, initialisers=True))


def _of_frames(po: PatchObject) -> Iterator[str]:
    named = {y.name for y in po.symbols if y.section is None and y.name in REGISTRATION}
    if named and len(named) != len(REGISTRATION):
        yield f"to register frames it takes {', '.join(REGISTRATION)}, and it names {', '.join(sorted(named))}"
    for s in po.sections:
        if s.name == ".eh_frame" and s.flags & c.SHF_ALLOC:
            try:
                yield from _of_records(po, s)
            except FormatError as error:
                yield f"call frame information: {error.what}"


def _of_records(po: PatchObject, section: PatchSection) -> Iterator[str]:
    fields = {r.offset: po.symbols[r.symbol] for r in section.relocations}
    for fde in records(section.data):
        if not isinstance(fde, Fde):
            continue
        code = fields.get(fde.pc_offset)
        if code is None or code.section is None or not _is_code(po.sections[code.section]):
            yield f"the frame at {fde.offset:#x} describes no code of the patch"
        if fde.lsda_offset:
            table = fields.get(fde.lsda_offset)
            if table is None or table.section is None:
                yield f"the frame at {fde.offset:#x} has no exception table in the patch"
            else:
                read_lsda(po.sections[table.section].data, table.value)


def _of_transforms(po: PatchObject) -> Iterator[str]:
    variables = [
        (d.address, d.address + d.transformation.old_size, d.transformation.name, d.symbol is None)
        for d in po.transforms
        if d.address is not None
    ]
    yield from _overlaps((start, end, name) for start, end, name, _ in variables)
    # In one that stays, single pointers may be rewritten; one that moves may have to hold what it began with.
    moved = [(start, end, name) for start, end, name, stays in variables if not stays]
    seen = set(_overlaps(moved))
    rewritten = _edit_ranges(po, conditions=False)
    for others in ([*_code_ranges(po), *rewritten], [*_edit_ranges(po, initialisers=True)]):
        known = {*seen, *_overlaps(others)}
        yield from (text for text in _overlaps([*others, *moved]) if text not in known)
    types = Counter(d.transformation.name for d in po.transforms if d.address is None)
    yield from (f"{name} is transformed in {n} ways" for name, n in types.items() if n > 1)
    for d in po.transforms:
        t = d.transformation
        if not t.old_size or not t.new_size:
            yield f"the transformation of {t.name} is of an object without a size"
        if d.symbol is None:
            continue
        new = po.symbols[d.symbol]
        wanted = c.SHF_ALLOC | c.SHF_WRITE
        if new.section is None or po.sections[new.section].flags & wanted != wanted:
            yield f"the new {t.name} is not in writable memory of the patch"
        elif new.size != t.new_size:
            yield f"the new {t.name} has {new.size} bytes, its transformation {t.new_size}"


def _of_hooks(po: PatchObject) -> Iterator[str]:
    for h in po.hooks:
        function = po.symbols[h.symbol]
        if function.section is None or not _is_code(po.sections[function.section]) or function.type != c.STT_FUNC:
            yield f"the hook {h.name} ({h.kind.words}) leads to no function of the patch"


def _of_brought(po: PatchObject) -> Iterator[str]:
    kinds = {
        (True, False): BroughtKind.FUNCTION,
        (False, False): BroughtKind.CONSTANT,
        (False, True): BroughtKind.VARIABLE,
    }
    for b in po.brought:
        section = po.sections[b.section]
        is_writable = bool(section.flags & c.SHF_WRITE)
        if not section.flags & c.SHF_ALLOC or kinds.get((_is_code(section), is_writable)) is not b.kind:
            yield f"the {b.kind.word} {b.name}, which it brings, is in section {section.name}"


def _is_code(s: PatchSection) -> bool:
    wanted = c.SHF_ALLOC | c.SHF_EXECINSTR
    return s.flags & wanted == wanted


def _code_ranges(po: PatchObject) -> Iterator[tuple[int, int, str]]:
    for r in po.replacements:
        yield r.address, r.address + r.size, r.name
        for address, size, _ in r.parts:
            yield address, address + size, f"{r.name} (part)"


def _edit_ranges(
    po: PatchObject, *, initialisers: bool = False, conditions: bool = True
) -> Iterator[tuple[int, int, str]]:
    for e in po.data_edits:
        if e.is_initialiser is not initialisers or (e.is_condition and not conditions):
            continue
        yield e.address, e.address + po.sections[e.expected].size, e.name


def _overlaps(ranges: Iterable[tuple[int, int, str]]) -> Iterator[str]:
    """One sentence for each range that begins inside of one that began before."""
    reach, owner = 0, ""
    for start, end, name in sorted(ranges):
        if start < reach:
            yield f"{name} at {start:#x} overlaps {owner}"
        if end > reach:
            reach, owner = end, name


def disagreements(po: PatchObject, view: SecondView) -> list[str]:
    """Where the second reader sees something else than `po`: carried sections, symbols, relocations."""
    return [
        *_differ("section", _expected_sections(po), _carried_sections(view)),
        *_differ("symbol", _expected_symbols(po, view), _seen_symbols(po, view)),
        *_differ("relocation", _expected_relocations(po), _carried_relocations(po, view)),
    ]


def _differ(kind: str, ours: list[tuple[object, ...]], theirs: list[tuple[object, ...]]) -> Iterator[str]:
    mine, other = Counter(ours), Counter(theirs)
    for item in mine - other:
        yield f"the second reader does not see {kind} {item}"
    for item in other - mine:
        yield f"only the second reader sees {kind} {item}"


def _is_carried(name: str, kind: int) -> bool:
    return kind not in LINKER_TYPES and not is_ours(name)


def _expected_sections(po: PatchObject) -> list[tuple[object, ...]]:
    return [
        (i, s.name, s.type, s.flags, s.size, s.alignment, s.entry_size, _digest(s)) for i, s in enumerate(po.sections)
    ]


def _digest(s: PatchSection) -> str:
    return "" if s.type == c.SHT_NOBITS else hashlib.sha256(s.data).hexdigest()


def _carried_sections(view: SecondView) -> list[tuple[object, ...]]:
    carried = [s for s in view.sections if _is_carried(s[0], s[1])]
    return [(i, *s) for i, s in enumerate(carried)]


def _numbers(view: SecondView) -> list[int]:
    """The section header index of each carried section, in order."""
    return [i for i, s in enumerate(view.sections) if _is_carried(s[0], s[1])]


def _expected_symbols(po: PatchObject, view: SecondView) -> list[tuple[object, ...]]:
    numbers = _numbers(view)
    result: list[tuple[object, ...]] = []
    for y in po.symbols:
        number = 0 if y.section is None else numbers[y.section] if y.section < len(numbers) else -1
        # LIEF does not follow SHN_XINDEX.
        result.append((y.name, y.binding, y.type, min(number, c.SHN_XINDEX), y.value, y.size))
    return result


def _seen_symbols(po: PatchObject, view: SecondView) -> list[tuple[object, ...]]:
    """All symbols but number 0 and the section symbols that the codec added for the data edits."""
    own = Counter(y.section for y in po.symbols if y.type == c.STT_SECTION and not y.name and not y.value)
    numbers = {number: i for i, number in enumerate(_numbers(view))}
    result: list[tuple[object, ...]] = []
    for symbol in view.symbols[1:]:
        name, _, kind, number, value, _ = symbol
        if kind == c.STT_SECTION and not name and not value:
            section = numbers.get(number)
            if not own[section]:
                continue
            own[section] -= 1
        result.append(symbol)
    return result


def _expected_relocations(po: PatchObject) -> list[tuple[object, ...]]:
    return [
        (s.name, r.offset, r.type, po.symbols[r.symbol].name, po.symbols[r.symbol].value, r.addend)
        for s in po.sections
        for r in s.relocations
    ]


def _carried_relocations(po: PatchObject, view: SecondView) -> list[tuple[object, ...]]:
    names = {s.name for s in po.sections}
    return [
        (section, offset, kind, view.symbols[symbol][0], view.symbols[symbol][4], addend)
        for section, offset, kind, symbol, addend in view.relocations
        if section in names
    ]
