"""How each relocation of x86-64 is applied.

Source: System V ABI, AMD64 supplement, 4.4 "Relocation", table 4.9.
"""

from __future__ import annotations

from typing import Final

from katana_cc.cpu.field import Form, RelocationKind, kind_of, whole
from katana_cc.cpu.x86_64.relocations import NAMES
from katana_cc.elf import constants as c

KINDS: Final = {
    number: whole(NAMES[number], form, width, signed)
    for number, form, width, signed in (
        (c.R_X86_64_NONE, Form.NOTHING, 0, None),
        (c.R_X86_64_64, Form.ABSOLUTE, 8, None),
        (c.R_X86_64_32, Form.ABSOLUTE, 4, False),
        (c.R_X86_64_32S, Form.ABSOLUTE, 4, True),
        (c.R_X86_64_PC64, Form.RELATIVE, 8, None),
        (c.R_X86_64_PC32, Form.RELATIVE, 4, True),
        (c.R_X86_64_PLT32, Form.RELATIVE, 4, True),
        (c.R_X86_64_PC8, Form.RELATIVE, 1, True),
        (c.R_X86_64_GOTPCREL, Form.GOT_RELATIVE, 4, True),
        (c.R_X86_64_GOTPCRELX, Form.GOT_RELATIVE, 4, True),
        (c.R_X86_64_REX_GOTPCRELX, Form.GOT_RELATIVE, 4, True),
        (c.R_X86_64_TPOFF32, Form.TLS_OFFSET, 4, True),
        (c.R_X86_64_GOTTPOFF, Form.TLS_GOT_RELATIVE, 4, True),
        (c.R_X86_64_SIZE32, Form.SIZE, 4, False),
        (c.R_X86_64_SIZE64, Form.SIZE, 8, None),
    )
}


def relocation_kind(number: int, where: str) -> RelocationKind:
    """The table's row for a relocation type.

    Raises:
        RefusedError: the type is not supported, and named.
    """
    name = NAMES.get(number, "")
    remedy = "restart the process with the new build instead"
    if "TLS" in name or "DTPOFF" in name:
        remedy = "compile with -ftls-model=initial-exec or -mtls-dialect=gnu; else restart with the new build"
    return kind_of(KINDS, NAMES, number, where, remedy)
