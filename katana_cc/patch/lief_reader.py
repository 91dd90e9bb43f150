"""What LIEF sees in an ELF file, as JSON: `python -m katana_cc.patch.lief_reader FILE`.

LIEF is the independent second reader of `katana check`.  It runs in a process of its own: it takes up to a second to
import, and must not share a process with python-ptrace.  The names are given in hex, since they need not be UTF-8.

Output: {"sections": [[name, type, flags, size, alignment, entry size, SHA-256 of the contents]…],
"symbols": [[name, binding, type, section, value, size]…],
"relocations": [[section name, offset, type, symbol, addend]…]}
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_TYPE_BITS: Final = (1 << 27) - 1  # above them LIEF keeps the machine that a processor-specific number belongs to
_TIMEOUT_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class SecondView:
    """An ELF file as the second reader sees it; the lists are in file order, section and symbol 0 included."""

    sections: tuple[tuple[str, int, int, int, int, int, str], ...]
    symbols: tuple[tuple[str, int, int, int, int, int], ...]
    relocations: tuple[tuple[str, int, int, int, int], ...]


def second_view(path: str | Path) -> SecondView | str:
    """What LIEF sees in the file at `path`, or, when it cannot read it (or is not there), its complaint."""
    command = [sys.executable, "-m", "katana_cc.patch.lief_reader", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {done.returncode}"
    raw = json.loads(done.stdout)
    return SecondView(
        tuple((_text(n), *rest) for n, *rest in raw["sections"]),
        tuple((_text(n), *rest) for n, *rest in raw["symbols"]),
        tuple((_text(n), *rest) for n, *rest in raw["relocations"]),
    )


def _text(name: str) -> str:
    return bytes.fromhex(name).decode("utf-8", "surrogateescape")


def _hex(name: str | bytes) -> str:
    return (name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")).hex()


def _view(path: str) -> dict[str, list[list[Any]]] | None:
    import lief  # noqa: TID251 - the one importer, and only when it runs as a program

    # LIEF warns of numbers that it has no names for, which is no concern of ours.
    warnings.simplefilter("ignore", RuntimeWarning)
    elf = lief.ELF.parse(path)
    if elf is None:
        return None
    sections = [
        [_hex(s.name), int(s.type) & 0xFFFFFFFF, s.flags, s.size, s.alignment, s.entry_size, _contents(s)]
        for s in elf.sections
    ]
    symbols = [[_hex(y.name), int(y.binding), int(y.type), y.shndx, y.value, y.size] for y in elf.symtab_symbols]
    relocations = [
        [_hex(r.section.name), r.address, int(r.type) & _TYPE_BITS, r.info, r.addend]
        for r in elf.object_relocations
        if r.section is not None
    ]
    return {"sections": sections, "symbols": symbols, "relocations": relocations}


def _contents(section: Any) -> str:
    return "" if int(section.type) == 8 else hashlib.sha256(bytes(section.content)).hexdigest()  # 8: SHT_NOBITS


def main(arguments: Sequence[str]) -> int:
    """The program: prints the view of one file; status 1 when LIEF cannot read it."""
    try:
        view = _view(arguments[0])
    except ImportError as error:
        print(f"LIEF is not installed ({error})", file=sys.stderr)
        return 1
    if view is None:
        print("LIEF cannot read the file", file=sys.stderr)
        return 1
    json.dump(view, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
