"""Names of ELF numbers, for listings."""

from __future__ import annotations

from typing import Final

from katana_cc.cpu.choice import CPUS, of
from katana_cc.elf import constants as c


def _table(prefix: str) -> dict[int, str]:
    return {v: k.removeprefix(prefix) for k, v in vars(c).items() if k.startswith(prefix)}


_SECTION_TYPES: Final = _table("SHT_")
_SYMBOL_TYPES: Final = _table("STT_")
_BINDINGS: Final = _table("STB_")
_FLAGS: Final = (
    (c.SHF_WRITE, "W"),
    (c.SHF_ALLOC, "A"),
    (c.SHF_EXECINSTR, "X"),
    (c.SHF_MERGE, "M"),
    (c.SHF_STRINGS, "S"),
    (c.SHF_TLS, "T"),
    (c.SHF_COMPRESSED, "C"),
)  # the letters of readelf


def section_type(number: int) -> str:
    """PROGBITS, NOBITS, …"""
    return _SECTION_TYPES.get(number, f"{number:#x}")


def symbol_type(number: int) -> str:
    """FUNC, OBJECT, …"""
    return _SYMBOL_TYPES.get(number, str(number))


def binding(number: int) -> str:
    """LOCAL, GLOBAL, WEAK."""
    return _BINDINGS.get(number, str(number))


def relocation(machine_number: int, number: int) -> str:
    """R_X86_64_PC32, …"""
    return of(machine_number).relocations.NAMES.get(number, f"type {number}")


def flags(number: int) -> str:
    """The flags of a section as readelf's letters; what has no letter in hex."""
    letters = "".join(letter for bit, letter in _FLAGS if number & bit)
    rest = number & ~sum(bit for bit, _ in _FLAGS)
    return letters + (f"+{rest:#x}" if rest else "") or "-"


def machine(number: int) -> str:
    """x86-64, …"""
    return CPUS[number].name if number in CPUS else f"machine {number}"
