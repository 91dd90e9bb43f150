"""Which CPU a file is for, by `e_machine`."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

from katana_cc.elf import constants as c
from katana_cc.errors import RefusedError

if TYPE_CHECKING:  # every link asks for relocations, and for nothing else
    from katana_cc.cpu.interface import Instructions, Relocations
    from katana_cc.cpu.stopped import Contexts, System, WayBack


class Cpu:
    """A CPU; each part is imported when it is first asked for.

    Args:
        machine: EM_*.
        name: as people call it.
        package: where its modules are.
        has_way_back: whether a thread that was made to do something can go back by itself.
        has_contexts: whether what the C library keeps of coroutines can be found.
    """

    def __init__(
        self, machine: int, name: str, package: str, *, has_way_back: bool = False, has_contexts: bool = False
    ) -> None:
        self.machine = machine
        self.name = name
        self._package = package
        self._has_way_back = has_way_back
        self._has_contexts = has_contexts

    @cached_property
    def relocations(self) -> Relocations:
        """Its relocation types."""
        return cast("Relocations", self._part("relocations"))

    @cached_property
    def code(self) -> Instructions:
        """Its instructions."""
        return cast("Instructions", self._part("code"))

    @cached_property
    def system(self) -> System:
        """Its registers and system calls."""
        return cast("System", self._part("system"))

    @cached_property
    def way_back(self) -> WayBack | None:
        """How a thread goes back by itself, if that is known."""
        return cast("WayBack", self._part("sigframe")) if self._has_way_back else None

    @cached_property
    def contexts(self) -> Contexts | None:
        """What the C library keeps of coroutines, if that is known."""
        return cast("Contexts", self._part("contexts")) if self._has_contexts else None

    def _part(self, name: str) -> object:
        return import_module(f"katana_cc.cpu.{self._package}.{name}")


CPUS: Final = {
    c.EM_X86_64: Cpu(c.EM_X86_64, "x86-64", "x86_64", has_way_back=True, has_contexts=True),
    c.EM_AARCH64: Cpu(c.EM_AARCH64, "AArch64", "aarch64"),
}
# What programs are recorded and patched for.  Of the others only the encodings are there (docs/porting.md).
SUPPORTED: Final = frozenset({c.EM_X86_64})


def of(machine: int) -> Cpu:
    """The CPU of an EM_* number.

    Raises:
        RefusedError: none that is known.
    """
    if machine not in CPUS:
        raise RefusedError(unsupported(machine))
    return CPUS[machine]


def unsupported(machine: int) -> str:
    """That nothing is recorded or patched for a machine."""
    name = f" ({CPUS[machine].name})" if machine in CPUS else ""
    return f"machine {machine}{name} is not supported yet; Katana patches programs for x86-64"
