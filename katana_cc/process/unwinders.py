"""The unwinders of a process that the frames of new code can be registered with.

libgcc's unwinder finds frames in two ways: in what `dl_iterate_phdr` names, which a patch is not, and among those
registered by `__register_frame_info`.  A process may hold several: the shared libgcc_s, and copies that were linked
into the program or into libraries (-static-libgcc, static programs).  Whichever throws has to know the new frames, so
they are registered with each that can be found: the patched module's own, by the address that the patch names, and
those of all modules that export the functions.
"""

from __future__ import annotations

from typing import NamedTuple

from katana_cc.elf import constants as c
from katana_cc.errors import InvalidPatchError, RefusedError
from katana_cc.patch.model import REGISTRATION, PatchObject
from katana_cc.process.imports import Linker
from katana_cc.process.modules import Module


class FrameRegistry(NamedTuple):
    """Addresses of an unwinder's `__register_frame_info`, `__deregister_frame_info`, `_Unwind_Find_FDE`."""

    register: int
    deregister: int
    find: int


def must_register(po: PatchObject) -> bool:
    """Whether the patch may be applied only where its frames can be registered."""
    return any(y.section is None and y.name == REGISTRATION[0] for y in po.symbols)


def has_frames(po: PatchObject) -> bool:
    """Whether there is just the one table of frames that can be registered."""
    found = [s for s in po.sections if s.name == ".eh_frame" and s.flags & c.SHF_ALLOC]
    return len(found) == 1 and found[0].data.endswith(bytes(4)) and any(found[0].data[:4])


def registries_for(po: PatchObject, module: Module, linker: Linker) -> tuple[FrameRegistry, ...]:
    """The unwinders to register the frames of a patch with.

    Raises:
        InvalidPatchError: there are no frames, although they must be registered.
        RefusedError: there is none, and exceptions may have to pass through the new code.
    """
    if not has_frames(po):
        if must_register(po):
            raise InvalidPatchError("its frames must be registered, and it has no table of them", where=module.path)
        return ()
    found = {}
    own = {y.name: module.bias + y.value for y in po.symbols if y.section is None and y.value}
    if all(name in own for name in REGISTRATION):
        registry = FrameRegistry(*(own[name] for name in REGISTRATION))
        found[registry.register] = registry
    for several in linker.exports(REGISTRATION):
        registry = FrameRegistry(*several)
        found[registry.register] = registry
    if not found and must_register(po):
        raise RefusedError(
            "no unwinder is loaded that new frames can be registered with (libgcc's __register_frame_info), and "
            "exceptions may have to pass through the new code",
            where=module.path,
            remedy="link the program with libgcc's unwinder, or restart the process with the new build",
        )
    return tuple(found.values())
