"""The unwinders of a process that the frames of new code can be registered with.

libgcc's unwinder finds frames in two ways: in what `dl_iterate_phdr` names, which a patch is not, and among those
registered by `__register_frame_info`.  A process may hold several: the shared libgcc_s, and copies that were linked
into the program or into libraries (-static-libgcc, static programs).  Whichever throws has to know the new frames, so
they are registered with each that can be found: the patched module's own, by the address that the patch names, and
those of all modules that export the functions.

libunwind (nongnu.org), which profilers and crash handlers use, and which throws where a program is linked with it
before libgcc, looks in the same two ways; its functions for the second are others.  Of the static library a program
links them only if it calls them itself, and no patch names them: such a libunwind does not know new code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from katana_cc.cpu.native import system as cpu
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


class CodeList(NamedTuple):
    """Addresses of a libunwind's `_U_dyn_register`, `_U_dyn_cancel`, `_U_dyn_info_list_addr`,
    `unw_get_proc_info_by_ip`, and of its variable `unw_local_addr_space`."""

    register: int
    cancel: int
    head: int
    ask: int
    space: int


_LISTS: Final = (
    "_U_dyn_register", "_U_dyn_cancel", "_U_dyn_info_list_addr",
    f"_UL{cpu.LIBUNWIND}_get_proc_info_by_ip", f"_UL{cpu.LIBUNWIND}_local_addr_space",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unwinders:
    """The unwinders of a process."""

    registries: tuple[FrameRegistry, ...]
    lists: tuple[CodeList, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.registries) + len(self.lists)


def unwinders_for(po: PatchObject, module: Module, linker: Linker) -> Unwinders:
    """The unwinders to register the frames of a patch with.

    Raises:
        InvalidPatchError: there are no frames, although they must be registered.
        RefusedError: there is none, and exceptions may have to pass through the new code.
    """
    registries = _registries(po, module, linker)
    lists = linker.exports(_LISTS) if has_frames(po) else []
    return Unwinders(registries, tuple(CodeList(*several) for several in lists))


def must_register(po: PatchObject) -> bool:
    """Whether the patch may be applied only where its frames can be registered."""
    return any(y.section is None and y.name == REGISTRATION[0] for y in po.symbols)


def has_frames(po: PatchObject) -> bool:
    """Whether there is just the one table of frames that can be registered."""
    found = [s for s in po.sections if s.name == ".eh_frame" and s.flags & c.SHF_ALLOC]
    return len(found) == 1 and found[0].data.endswith(bytes(4)) and any(found[0].data[:4])


def _registries(po: PatchObject, module: Module, linker: Linker) -> tuple[FrameRegistry, ...]:
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
