"""Which module of a process is the build that a patch starts from; and where none is, what is there in its place.

A build is known by its build-id.  Tools that rewrite it after the link (debugedit, which rpm runs; objcopy, by which it
can be removed) leave a file that nobody can find in a store.  Its code is the same to the byte, which shows here: then
the user is told what happened to the file, since nothing else would tell him.  It is not patched all the same: that the
replaced functions are the same says nothing of the rest.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import PurePath

from katana_cc.errors import RefusedError, TargetError
from katana_cc.patch.model import PatchObject
from katana_cc.process.modules import Module, with_build_id
from katana_cc.process.target import Target


class NotThisBuildError(RefusedError):
    """The process does not run the build the patch starts from."""


def find_module(target: Target, po: PatchObject) -> Module:
    """The one module that is the build the patch starts from."""
    found = list(with_build_id(target.modules, po.identity.from_build_id))
    if len(found) == 1:
        return found[0]
    if found:
        raise RefusedError(
            f"{found[0].path} is loaded {len(found)} times (dlmopen)",
            where=target.where,
            remedy="restart the process with the new build",
        )
    if (became := _made_by_patch(target, po)) is not None:
        raise became
    raise NotThisBuildError(
        f"does not run {po.identity.output} with build-id {po.identity.from_build_id}",
        where=target.where,
        remedy=_what_runs_instead(target, po),
    )


def _made_by_patch(target: Target, po: PatchObject) -> NotThisBuildError | None:
    """What to say where the build that the patch starts from is there by another patch only."""
    at = po.identity.from_build_id
    by = next((m.ledger for m in target.patches if m.ledger is not None and m.ledger.to_build_id == at), None)
    if by is None:
        return None
    start, end = by.from_release or by.from_build_id[:12], po.identity.to_release or po.identity.to_build_id[:12]
    since = by.from_release or "NAME"
    return NotThisBuildError(
        f"runs {by.output} of {start}, with patch {by.patch_id} to the build that this one starts from; a patch leads "
        "from the build that a process was started from",
        where=target.where,
        remedy=f"apply it with --on and the file of that patch, or the patch from {start} to {end}, which takes the "
        f"place of that one (`katana patches`; `katana-release --since {since}` makes it where {start} is deployed)",
    )


def _what_runs_instead(target: Target, po: PatchObject) -> str:
    if any(m.build_id == po.identity.to_build_id for m in target.modules):
        return "it runs the new build already"
    for module in target.modules:
        if _has_the_code(target, module, po):
            known = f"has build-id {module.build_id}" if module.build_id else "has no build-id any more"
            return (
                f"{module.path} has what the patch replaces as that build has it, and {known}: it is another build "
                "(`katana patches` tells which builds patches lead from), or was rewritten after the link "
                "(debugedit -i does so, in rpm unless _no_recompute_build_ids is 1; so does objcopy -R): deploy it as "
                "it was linked"
            )
    name = PurePath(po.identity.output).name
    for module in target.modules:
        if f"{PurePath(module.path).name}.".startswith(f"{name}."):  # libz.so.1.2.13 is libz.so.1
            build = f"build-id {module.build_id}" if module.build_id else "without a build-id"
            return f"{module.path} is another build, {build}; `katana patches` tells which builds patches lead from"
    return "see `katana status --pid` for the builds it runs"


def _has_the_code(target: Target, module: Module, po: PatchObject) -> bool:
    """Whether all that the patch replaces is there, byte for byte."""
    ranges = [x for r in po.replacements for x in ((r.address, r.size, r.digest), *r.parts)]
    with suppress(TargetError):
        return bool(ranges) and all(
            module.holds(module.bias + address)
            and module.holds(module.bias + address + size - 1)
            and hashlib.sha256(target.memory.read(module.bias + address, size)).digest() == digest
            for address, size, digest in ranges
        )
    return False
