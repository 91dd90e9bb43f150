"""Finding in a running process what a patch imports.

The order repeats what the dynamic linker did, from the surest witness to the most general:

1. the PLT entry of the program that stands for a library's function: its address is that, for all modules;
2. a slot of the patched module that is already bound to the symbol, or its copy relocation;
3. the symbol tables of all modules in the order of the link map, default versions first.

A name may ask for a version, `realpath@GLIBC_2.2.5`: then nothing else will do.

A symbol of type STT_GNU_IFUNC stands for the function that its resolver returns: some module that uses it has it
resolved in a slot; else the resolver is called in the target (`PendingCall`), which is left to the moment when a thread
is stopped anyway.

Sources: gABI "Dynamic Linking", psABI "GNU_IFUNC", glibc link.h (struct r_debug, struct link_map).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from katana_cc.cpu.native import relocations
from katana_cc.elf import constants as c
from katana_cc.elf.versions import split
from katana_cc.errors import RefusedError, TargetError
from katana_cc.patch.model import REGISTRATION, PatchObject, PatchSymbol
from katana_cc.process.dynamic import DynamicModule
from katana_cc.process.link import is_import
from katana_cc.process.memory import Reader
from katana_cc.process.modules import Module

_MAX_LINK_MAP = 4096


@dataclass(frozen=True, slots=True)
class PendingCall:
    """An IFUNC resolver to call in the target; its result is the address of symbol `index`."""

    index: int
    name: str
    resolver: int


@dataclass(frozen=True, slots=True)
class Resolution:
    """Symbol index → address, and what is still to be asked of the target."""

    addresses: dict[int, int]
    pending: tuple[PendingCall, ...]


class Linker:
    """All modules of one process, in search order."""

    def __init__(self, memory: Reader, modules: Sequence[Module], target: Module) -> None:
        self._memory = memory
        self._modules = [DynamicModule(memory, m) for m in modules]
        self._target = next(m for m in self._modules if m.module is target)

    @classmethod
    def of(cls, memory: Reader, modules: Sequence[Module]) -> Linker:
        """For questions that concern no module in particular."""
        return cls(memory, modules, modules[0])

    def first(self, name: str) -> int | None:
        """The address that a name means in this process; None when no module defines it."""
        found = (m.lookup(name) for m in self._ordered)
        return next((s.value for s in found if s is not None), None)

    def exports(self, names: Sequence[str]) -> list[tuple[int, ...]]:
        """The addresses of functions and variables in each module that defines all of them."""
        result = []
        kinds = c.STT_FUNC, c.STT_OBJECT
        for module in self._modules:
            found = [s for name in names if (s := module.lookup(name)) is not None and s.type in kinds]
            if len(found) == len(names):
                result.append(tuple(s.value for s in found))
        return result

    def resolve(self, po: PatchObject) -> Resolution:
        """Addresses of all imports and existing IFUNC symbols of a patch.

        Raises:
            RefusedError: no loaded module has a symbol, and it is not weak.
        """
        addresses: dict[int, int] = {}
        pending = []
        for i, symbol in enumerate(po.symbols):
            if symbol.section is not None or (i == 0 and not symbol.name) or symbol.name in REGISTRATION:
                continue
            if is_import(symbol):
                kind, value = self._find(symbol)
            elif symbol.type == c.STT_GNU_IFUNC:
                kind, value = c.STT_GNU_IFUNC, self._target.module.bias + symbol.value
            else:
                continue
            if kind == c.STT_GNU_IFUNC:
                bound = self._resolved_ifunc(symbol.name, value)
                if bound is None:
                    pending.append(PendingCall(i, symbol.name, value))
                    continue
                value = bound
            addresses[i] = value
        return Resolution(addresses, tuple(pending))

    def _find(self, symbol: PatchSymbol) -> tuple[int, int]:
        name, version = split(symbol.name)
        canonical = self._program and self._program.canonical_value(name, version)
        if canonical:
            return c.STT_NOTYPE, canonical
        bound = self._target.bound_value(name, version)
        if bound is not None:
            return c.STT_NOTYPE, bound
        for module in self._ordered:
            found = module.lookup(name, version)
            if found is not None:
                if found.type == c.STT_TLS:
                    raise RefusedError(
                        f"{symbol.name} is a thread-local variable of {module.module.path}",
                        remedy="restart the process with the new build",
                    )
                return found.type, found.value
        if symbol.binding == c.STB_WEAK:
            return c.STT_NOTYPE, 0
        raise RefusedError(
            f"no loaded module defines {symbol.name}",
            where=self._target.module.path,
            remedy="the new code calls a library the process has not loaded; restart it with the new build",
        )

    def _resolved_ifunc(self, name: str, resolver: int) -> int | None:
        """What a slot somewhere says an IFUNC came to: IRELATIVE slots know the resolver, others the name."""
        for module in self._ordered:
            with contextlib.suppress(TargetError):
                link_time = resolver - module.module.bias
                for r in module.relocations:
                    # Bound at load, also those of DT_JMPREL: there is no name to look up later.
                    is_it = r.type == relocations.IRELATIVE and r.addend == link_time
                    if is_it and module.module.holds(resolver) and (slot := module.word(r.slot)):
                        return slot
                if name and (value := module.bound_value(*split(name))) and self._is_code_elsewhere(value, resolver):
                    return value
        return None

    def _is_code_elsewhere(self, value: int, resolver: int) -> bool:
        # A non-PIE program's GLOB_DAT for a function it also takes the address of names its own PLT entry: it works,
        # and costs one more jump.  The resolver's own address would not.
        return value != resolver and any(m.module.holds(value) for m in self._modules)

    @cached_property
    def _program(self) -> DynamicModule | None:
        """The program itself: the only module whose link may have made PLT entries stand for functions."""
        return next((m for m in self._modules if m.module.segment(c.PT_INTERP)), None)

    @cached_property
    def _ordered(self) -> list[DynamicModule]:
        order = {address: n for n, address in enumerate(self._link_map())}
        if not order:
            return self._modules
        # What the link map does not name (the vDSO, other namespaces) comes last, in address order.
        return sorted(self._modules, key=lambda m: order.get(m.dynamic_address, len(order)))

    def _link_map(self) -> Iterable[int]:
        """Dynamic section addresses in search order, through DT_DEBUG of the program."""
        for module in self._modules:
            with contextlib.suppress(TargetError):
                debug = module.tags.get(c.DT_DEBUG, 0)
                if not debug:
                    continue
                found: list[int] = []
                entry = module.word(debug + 8)  # r_debug.r_map
                while entry and len(found) < _MAX_LINK_MAP:
                    _, _, dynamic, entry = struct.unpack("<QQQQ", self._memory.read(entry, 32))
                    found.append(dynamic)
                return found
        return ()


def thread_pointer_offset(memory: Reader, module: Module, is_program: bool) -> int | None:
    """What added to an offset in the module's TLS segment gives the offset from the thread pointer, or None.

    The program's own block ends at the thread pointer (TLS variant II; psABI 3.4.6 and Drepper, "ELF Handling For
    Thread-Local Storage", 4.4.6); a library's place shows in a slot that a TPOFF64 relocation filled.
    """
    segment = module.segment(c.PT_TLS)
    if segment is None:
        return None
    if is_program:
        return relocations.thread_offset(segment.vaddr, segment.memory_size, segment.alignment)
    dynamic = DynamicModule(memory, module)
    for r in dynamic.relocations:
        if r.type == relocations.DYNAMIC_THREAD_OFFSET:
            symbol = dynamic.symbol(r.symbol) if r.symbol else None
            if symbol is None or symbol.section != c.SHN_UNDEF:
                value = dynamic.word(r.slot) - r.addend - (symbol.value if symbol else 0)
                return (value + (1 << 63)) % (1 << 64) - (1 << 63)
    return None
