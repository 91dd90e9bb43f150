"""The CPU that Katana itself runs on: only processes of the same one can be stopped and patched from here."""

from __future__ import annotations

import os
from typing import Final

from katana_cc.cpu import choice
from katana_cc.elf import constants as c
from katana_cc.errors import RefusedError

_MACHINES: Final = {"x86_64": c.EM_X86_64, "aarch64": c.EM_AARCH64}  # uname(2)


def _native() -> choice.Cpu:
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise RefusedError(f"processes of a {machine} machine cannot be patched yet; Katana patches those of x86-64")
    return choice.of(_MACHINES[machine])


cpu: Final = _native()
relocations: Final = cpu.relocations
code: Final = cpu.code
system: Final = cpu.system
way_back: Final = cpu.way_back
contexts: Final = cpu.contexts
