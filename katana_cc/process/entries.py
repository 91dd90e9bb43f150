"""Where a function that somebody names begins in a process, replaced or not.

What is looked into, in this order; the first place that knows the name decides:

1. the patch object: the functions it replaces or mentions, with their link-time addresses, also of stripped programs;
2. the symbol table of the module that the patch is for, then of the program: read from their files as the process sees
   them, where these still are the builds that it runs;
3. what the loaded modules export.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from pathlib import Path

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError, RefusedError
from katana_cc.patch.model import PatchObject
from katana_cc.process.imports import Linker
from katana_cc.process.modules import Module
from katana_cc.process.target import Target


def entry_of(target: Target, module: Module, po: PatchObject, name: str) -> int:
    """The address of a function in a process.

    Raises:
        RefusedError: no function is called so, or several are.
    """
    named = dict(_of_patch(po, module.bias))
    if name in named:
        return named[name]
    known = set(named)
    for each in dict.fromkeys((module, target.program_module())):
        functions = list(_of_file(target, each)) if each is not None else []
        known.update(other for other, _ in functions)
        found = sorted({address for other, address in functions if other == name})
        if len(found) > 1:
            raise RefusedError(
                f"{len(found)} functions are called {name}, at {', '.join(map(hex, found))}",
                where=target.where,
                remedy="name another one with --at",
            )
        if found:
            return found[0]
    exported = Linker.of(target.memory, target.modules).exports([name])
    if exported:
        return exported[0][0]
    near = difflib.get_close_matches(name, known, 3)
    raise RefusedError(
        f"no function is called {name}" + (f"; there is {', '.join(near)}" if near else ""),
        where=target.where,
        remedy="--at takes a function as the linker knows it (nm lists them; those of C++ are mangled); of a stripped "
        "program only those that the patch replaces or mentions, and exported ones, are known",
    )


def _of_patch(po: PatchObject, bias: int) -> Iterator[tuple[str, int]]:
    # The functions of a name that several have are told apart by their file in the symbols (`a.c:name`).
    names = [r.name for r in po.replacements]
    for symbol in po.symbols:
        if symbol.section is None and symbol.value and symbol.type == c.STT_FUNC:
            yield symbol.name, bias + symbol.value
    yield from ((r.name, bias + r.address) for r in po.replacements if names.count(r.name) == 1)


def _of_file(target: Target, module: Module) -> Iterator[tuple[str, int]]:
    """The functions of a module's file with their addresses; none where it is not the file that is mapped."""
    with contextlib.suppress(OSError, FormatError):
        elf = ElfFile(Path(f"/proc/{target.pid}/root{module.path}").read_bytes(), module.path)
        if elf.build_id == module.build_id is not None:
            for symbol in (*elf.symbols, *elf.dynamic_symbols):
                if symbol.type == c.STT_FUNC and symbol.section != c.SHN_UNDEF:
                    yield symbol.name, module.bias + symbol.value
