"""The layout of patch objects (docs/patch-object.md): names, entries, the digest, and the rules that both ways keep."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Final

from katana_cc.cpu.choice import SUPPORTED, of
from katana_cc.elf import constants as c
from katana_cc.errors import InvalidPatchError
from katana_cc.patch.addresses import NO_ADDRESSES
from katana_cc.patch.model import FORMAT_VERSION, HookKind, PatchObject, Verdict
from katana_cc.transform.rules import broken
from katana_cc.transform.tables import SECTION

NOTE_SECTION: Final = ".note.katana"
NT_VERSION: Final = 1  # all is in the name, the descriptor is empty: the only foreign note that eu-elflint lets pass
PREFIX: Final = ".katana."
TABLES: Final = tuple(
    PREFIX + n
    for n in (
        "functions", "parts", "edits", "reliances", "transforms", "fields", "handed", "hooks", "brought",
        "layouts", "blanks", "addresses", "symbols", "strings", "reasons",
    )
)  # fmt: skip

NOTE_HEAD: Final = struct.Struct("<III")  # n_namesz, n_descsz, n_type
NOTE_AT: Final = 64  # straight after the ELF header
NOTE_MARK: Final = b"Katana patch "
MARK_AT: Final = NOTE_AT + NOTE_HEAD.size
DIGEST_AT: Final = MARK_AT + len(b"Katana patch %d " % FORMAT_VERSION)
DIGEST_SIZE: Final = 32  # hex digits
UNQUOTED: Final = "/:@+,=~"  # beside letters, digits, "_.-"
FUNCTION: Final = struct.Struct("<QQQII32s")  # address, size, new (relocated), name, 0, SHA-256
PART: Final = struct.Struct("<QQII32s")  # address, size, function, 0, SHA-256
EDIT: Final = struct.Struct(
    "<QQQII"
)  # address, expected, replacement (both relocated), name, 1: an initial value, 3: to be taken
RELIANCE: Final = struct.Struct("<IIII")  # caller, callee, basis, name of the function in between
TRANSFORM: Final = struct.Struct("<QQQIIII")  # address, new (relocated), old size, name, kind, fields, type
FIELD: Final = struct.Struct("<III")  # new field, old field, what a pointer points to
HANDED: Final = struct.Struct("<IIiIQQQQQ")  # transformation, hook, back or -1, 0, old, new, count, strides
HOOK: Final = struct.Struct("<QIIII")  # function (relocated), kind, name, 0, 0
BROUGHT: Final = struct.Struct("<IIII32s")  # section, kind, name, 0, digest
BLANK: Final = struct.Struct("<IIQQ")  # function, 0 or 1 + which of its parts, offset, size
LAYOUT: Final = struct.Struct("<II32s")  # name, 0, digest
NEW_AT, EXPECTED_AT, REPLACEMENT_AT, TRANSFORM_NEW_AT = 16, 8, 16, 8
MACHINES: Final = {machine: of(machine).name for machine in SUPPORTED}
ABSOLUTE_64: Final = {machine: of(machine).relocations.ABSOLUTE[8] for machine in SUPPORTED}  # "the address S + A"
LINKER_TYPES: Final = (c.SHT_NULL, c.SHT_SYMTAB, c.SHT_STRTAB, c.SHT_RELA, c.SHT_REL, c.SHT_GROUP, c.SHT_SYMTAB_SHNDX)
MAX_ALIGNMENT: Final = 1 << 24  # a forged one must not make the writer pad the file without end
REMEDY: Final = "make the patch again (`katana-release --since NAME`), or copy it again if it was copied"


def digest_of(data: bytes | bytearray) -> bytes:
    """The digest of a file in hex, computed as if its own digits were zeros."""
    sha = hashlib.sha256(data[:DIGEST_AT])
    sha.update(b"0" * DIGEST_SIZE)
    sha.update(data[DIGEST_AT + DIGEST_SIZE :])
    return sha.hexdigest()[:DIGEST_SIZE].encode("ascii")


def verified_digest(data: bytes, where: str) -> bytes:
    """The digest of the file, which it must also state.

    Raises:
        InvalidPatchError: not a patch object, of another format version, or damaged.
    """
    if data[:4] != b"\x7fELF" or not data.startswith(NOTE_MARK, MARK_AT):
        raise InvalidPatchError("not a patch object (or cut off)", where=where, remedy=REMEDY)
    version = data[MARK_AT + len(NOTE_MARK) : DIGEST_AT + 16].split(b" ")[0]
    if version.isdigit() and int(version) != FORMAT_VERSION:
        what = f"patch object of format version {int(version)}; this katana reads version {FORMAT_VERSION}"
        remedy = f"use a katana that reads version {int(version)}, or make the patch again with this one"
        raise InvalidPatchError(what, where=where, remedy=remedy)
    digest = data[DIGEST_AT : DIGEST_AT + DIGEST_SIZE]
    if digest_of(data) != digest:
        raise InvalidPatchError("patch object is damaged: its digest does not match", where=where, remedy=REMEDY)
    return bytes(digest)


def validate(po: PatchObject) -> None:
    """The rules of the model that the format relies on; `decode` holds a file to the same ones."""

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise InvalidPatchError(f"against the rules of patch objects: {what}")

    need(po.identity.machine in ABSOLUTE_64, f"machine {po.identity.machine} is not supported")
    count, symbols = len(po.sections), len(po.symbols)
    if po.verdict is Verdict.REFUSED:
        need(
            not (
                count
                or symbols
                or po.replacements
                or po.data_edits
                or po.reliances
                or po.transforms
                or po.hooks
                or po.brought
                or po.layouts
                or po.addresses != NO_ADDRESSES
            ),
            "a refused change that carries something",
        )
    for s in po.sections:
        need(s.type not in LINKER_TYPES, f"carried section {s.name} of type {s.type}")
        need(not is_ours(s.name), f"carried section named {s.name}")
        need(_is_alignment(s.alignment), f"section {s.name}: alignment {s.alignment}")
        need(s.type == c.SHT_NOBITS or s.size == len(s.data), f"section {s.name}: size {s.size}, {len(s.data)} bytes")
        need(s.type != c.SHT_NOBITS or not (s.data or s.relocations), f"section {s.name}: SHT_NOBITS with contents")
        need(all(0 <= r.offset < s.size for r in s.relocations), f"section {s.name}: relocation outside of it")
        need(all(0 <= r.symbol < symbols for r in s.relocations), f"section {s.name}: relocation for no symbol")
    for y in po.symbols:
        if y.section is None:
            need(y.binding in (c.STB_GLOBAL, c.STB_WEAK), f"undefined symbol {y.name} is neither global nor weak")
            need(bool(y.name), f"undefined symbol without a name, value {y.value:#x}")
        else:
            need(0 <= y.section < count, f"symbol {y.name}: no section {y.section}")
            need(y.binding == c.STB_LOCAL, f"defined symbol {y.name} is not local")
    for r in po.replacements:
        need(0 <= r.symbol < symbols, f"function {r.name}: no symbol {r.symbol}")
        need(all(len(d) == 32 for d in (r.digest, *(p[2] for p in r.parts))), f"function {r.name}: no SHA-256")
        known = len(r.blanks) in (0, 1 + len(r.parts)) and (not r.blanks or any(r.blanks))
        need(known, f"function {r.name}: blanks of something else")
        for _, size, _, blanks in r.ranges if known else ():
            need(are_apart(blanks, size), f"function {r.name}: blanks outside of it, or not ascending")
    for e in po.data_edits:
        need(0 <= e.expected < count and 0 <= e.replacement < count, f"edit of {e.name}: no such section")
    functions = range(len(po.replacements))
    for x in po.reliances:
        need(x.caller in functions and x.callee in functions, "reliance of a function that is not replaced")
    for d in po.transforms:
        t = d.transformation
        wrong = broken(t)
        need(not wrong, f"transformation of {t.name}: {wrong[0] if wrong else ''}")
        need(d.symbol is None or d.address is not None, f"transformation of {t.name}: neither a variable nor a type")
        changes = d.address is not None and d.symbol is None and not t.is_identity
        need(not changes, f"transformation of {t.name}: it has no new symbol, and does not stay as it is")
        need(d.address is None or d.address > 0, f"transformation of {t.name}: no address")
        need(not (t.type if d.is_type else d.begins), f"transformation of {t.name}: what a type or a variable has not")
        need(d.symbol is None or 0 <= d.symbol < symbols, f"transformation of {t.name}: no symbol {d.symbol}")
    hooks = range(len(po.hooks))
    for d in po.transforms:
        for each in d.handed:
            name, t = d.transformation.name, d.transformation
            need(each.hook in hooks and po.hooks[each.hook].kind is HookKind.TRANSFORM, f"{name}: handed to no hook")
            known = each.back == -1 or (each.back in hooks and po.hooks[each.back].kind is HookKind.TRANSFORM_BACK)
            need(known, f"{name}: handed back to no hook")
            need(each.number > 0 and min(each[2:]) >= 0, f"{name}: handed in no number")
            for start, stride, size in (
                (each.old, each.old_stride, t.old_size), (each.new, each.new_stride, t.new_size)
            ):  # fmt: skip
                need(start + (each.number - 1) * stride < size, f"{name}: handed beyond its end")
    for b in po.brought:
        need(bool(b.name), "it brings a thing without a name")
        need(0 <= b.section < count, f"it brings {b.name}: no section {b.section}")
    need(len({b.section for b in po.brought}) == len(po.brought), "it brings two things in one section")
    digests = [b.digest for b in po.brought] + [x.digest for x in po.layouts]
    need(all(len(digest) == 32 for digest in digests), "a digest of another size")
    need(all(x.name for x in po.layouts), "a layout without a name")
    m = po.addresses
    for stretches in (m.stretches, m.thread):
        need(are_apart([s[:2] for s in stretches], 1 << 64), "a map of addresses that is not ascending")
        need(all(s.old >= 0 for s in stretches), "a map of addresses that leads below 0")
    need(all(x.section < count for x in m.carried), "a map of addresses for no section")
    need(len({x.section for x in m.carried}) == len(m.carried), "a map of addresses with a section twice")
    need(all(n < len(po.data_edits) for n in m.fixed), "a map of addresses for no edit")
    if m.shapes:
        known = [len(x) for x in m.shapes] == [1 + len(r.parts) for r in po.replacements]
        need(known, "shapes of other functions than are replaced")
    for h in po.hooks:
        need(bool(h.name), "a hook without a name")
        need(0 <= h.symbol < symbols and po.symbols[h.symbol].section is not None, f"hook {h.name}: no symbol of ours")


def are_apart(ranges: Iterable[tuple[int, int]], end: int) -> bool:
    """Whether (offset, size) ascend, do not meet, are not empty and end at `end`."""
    at = 0
    for start, size in ranges:
        if start < at or size < 1 or start + size > end:
            return False
        at = start + size
    return True


def is_ours(name: str) -> bool:
    """Whether a section of this name is no carried one, but says something to a reader of patch objects."""
    return name in (NOTE_SECTION, SECTION) or name.startswith(PREFIX)


def _is_alignment(number: int) -> bool:
    return 0 <= number <= MAX_ALIGNMENT and not number & (number - 1)
