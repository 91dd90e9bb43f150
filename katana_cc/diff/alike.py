"""Whether two objects are the same but for their debug information, as after a comment in a header was edited.

Such a unit runs as before, and a section is the same thing as the section of its number.  It still tells of types and
of which variable lies where, which other units may follow (clang describes the type of a global where it is defined
only), so it is passed over only if `katana_cc.dwarf.moved` finds nothing else in its debug information either.
"""

from __future__ import annotations

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile, Section

_UNSEEN = (".debug_", ".rela.debug_", ".comment", ".gnu_debug")  # of no concern to code that runs


def loaded_alike(old: ElfFile, new: ElfFile) -> bool:
    """Whether all that is loaded, its relocations and the symbols are equal to the byte, section by section.

    Raises:
        FormatError: a section lies outside of its file.
    """
    if (old.machine, len(old.sections)) != (new.machine, len(new.sections)):
        return False
    return all(_alike(old, new, a, b) for a, b in zip(old.sections, new.sections, strict=True))


def _alike(old: ElfFile, new: ElfFile, a: Section, b: Section) -> bool:
    if (a.name, a.type, a.flags, a.link, a.info) != (b.name, b.type, b.flags, b.link, b.info):
        return False
    if not a.flags & c.SHF_ALLOC and a.name.startswith(_UNSEEN):
        return True
    same = (a.size, a.alignment, a.entry_size) == (b.size, b.alignment, b.entry_size)
    return same and old.contents(a) == new.contents(b)
