"""Patch objects as files: `encode` writes one, `decode` reads one.  The format is specified in docs/patch-object.md.

A patch object is a valid relocatable ELF file, so that every ELF tool reads it; what ELF has no words for stands in
sections of our own, none of which is SHF_ALLOC:

    .note.katana        first in the file: format version, digest, verdict, machine, identity
    (carried sections)  as the compiler named them, each with its relocations
    .katana.functions   the replacement table; the new function through a relocation
    .katana.parts       further ranges of the replaced functions (.cold)
    .katana.edits       data edits; old and new contents through relocations against section symbols
    .katana.reliances   which old function relies on which other one that is replaced
    .katana.handed      which parts of live objects functions of the user's make
    .katana.hooks       functions of the user's that run before and after, through relocations
    .katana.brought     things that the old build has not, by what another patch calls them
    .katana.layouts     how aggregates are laid out that the old build has not so
    .katana.blanks      what the digests of replaced functions leave out
    .katana.addresses   what lies where in the new output, and in the old one
    .katana.symbols     the order of the symbols before ELF wanted the local ones first
    .katana.strings     names that the tables use
    .katana.reasons     the reasons, as JSON

The digest covers the whole file, and the note has a fixed place, so a damaged file is recognised before any of it is
parsed.  The digest is no signature: whatever is parsed is checked again, and a forged file gives the same error.
"""

from __future__ import annotations

from dataclasses import replace

from katana_cc.patch.decoder import decode
from katana_cc.patch.encoder import encode
from katana_cc.patch.layout import DIGEST_AT, DIGEST_SIZE, NOTE_SECTION, PREFIX, digest_of, verified_digest

__all__ = ["NOTE_SECTION", "PREFIX", "decode", "encode", "patch_id", "seal"]


def patch_id(data: bytes) -> str:
    """The identity of an encoded patch object, 32 hex digits: the digest it would have without the releases' names.

    So a patch stays the same patch when its builds get names, or other ones.

    Raises:
        InvalidPatchError: not a patch object, of a later format version, or damaged.
    """
    patch = decode(data, "patch object")
    nameless = replace(patch, identity=replace(patch.identity, from_release="", to_release=""))
    return verified_digest(encode(nameless), "patch object").decode("ascii")


def seal(data: bytes) -> bytes:
    """`data`, a patch object, with its digest computed anew (for tools and tests that alter one on purpose)."""
    return data[:DIGEST_AT] + digest_of(data) + data[DIGEST_AT + DIGEST_SIZE :]
