"""What has to hold of the functions that a patch replaces: they are what the build produced, and no thread is inside.

The first is asked when the plan is made, the second in the stop, by the guards that are made here.
"""

from __future__ import annotations

import hashlib

from katana_cc.cpu.native import code as cpu
from katana_cc.errors import InvalidPatchError, RefusedError
from katana_cc.patch.addresses import blanked
from katana_cc.patch.model import PatchObject
from katana_cc.process.activity import Guard
from katana_cc.process.earlier import Earlier
from katana_cc.process.modules import Module
from katana_cc.process.permission import refuse_if_not_allowable, why_not_active
from katana_cc.process.target import Target

Originals = dict[int, tuple[bytes, bytes]]  # address -> (expected bytes, bytes there now)


def compare_functions(target: Target, module: Module, po: PatchObject, earlier: Earlier) -> Originals:
    """All replaced functions and parts, as they are in the process.  Where earlier edits of ours stand, the bytes they
    replaced are taken.

    Raises:
        RefusedError: they are not as the build produced them, or too short.
        InvalidPatchError: they lie elsewhere.
    """
    without = earlier.without(target)
    result = {}
    for replacement in po.replacements:
        if replacement.size < cpu.JUMP_SIZE:
            raise RefusedError(
                f"{replacement.name} is {replacement.size} bytes long, too short for a jump",
                where=po.identity.output,
                remedy="restart the process with the new build",
            )
        for link_time, size, digest, blanks in replacement.ranges:
            address = module.bias + link_time
            if not (module.holds(address) and module.holds(address + size - 1)):
                raise InvalidPatchError(f"{replacement.name} lies outside the module", where=po.identity.output)
            was = without.read(address, size)
            if hashlib.sha256(blanked(was, blanks)).digest() != digest:
                raise RefusedError(
                    f"the code of {replacement.name} at {address:#x} is not what the build produced",
                    where=target.where,
                    remedy="a breakpoint, a probe or another patcher has altered it; remove that, or restart",
                )
            result[address] = was, target.memory.read(address, size)
    return result


def replaced_guards(po: PatchObject, module: Module, allowed: set[str], originals: Originals) -> tuple[Guard, ...]:
    """The code that no thread may be in at the commit, but for functions that are allowed to go on, by their names.

    Raises:
        RefusedError: one that is allowed is not replaced, or may not go on.
    """
    unknown = allowed - {r.name for r in po.replacements}
    if unknown:
        raise RefusedError(
            f"--allow-active: the patch does not replace {', '.join(sorted(unknown))}", where=po.identity.output
        )
    guards = []
    for number, r in enumerate(po.replacements):
        address = module.bias + r.address
        is_allowed = r.name in allowed
        why_not = why_not_active(po, number, module.bias, originals)
        if is_allowed:
            refuse_if_not_allowable(po, r.name, why_not)
        guards.append(Guard(r.name, address, r.size, True, is_allowed, not why_not))
        for part, size, _ in r.parts:
            # A part has no jump: all of it must be empty, unless the whole function is allowed to go on as it was.
            if not is_allowed:
                guards.append(Guard(r.name, module.bias + part, size, False))
    return tuple(guards)
