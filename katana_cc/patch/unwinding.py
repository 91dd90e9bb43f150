"""What has to come along so that stacks with new code on them can be unwound: frames, handlers, and an unwinder.

Each piece of carried code has call frame information, its personality routine and its handlers with it.  Where
exceptions may have to pass through the new code, the process must let its frames be registered with whatever unwinds
there (libgcc): the patch then names the functions for that among its symbols, as addresses where the old program holds
them itself (linked statically), else as imports.  `process/unwinders.py` uses them.
"""

from __future__ import annotations

from typing import Final

from katana_cc.diff.frames import FrameEntry
from katana_cc.diff.program import Place, Program
from katana_cc.diff.reasons import Code
from katana_cc.elf import constants as c
from katana_cc.patch.carrying import Carrier
from katana_cc.patch.frames import FrameBuilder
from katana_cc.patch.handlers import HandlerTables
from katana_cc.patch.model import REGISTRATION, PatchSymbol
from katana_cc.patch.references import References

_CXX: Final = frozenset({"__cxa_throw", "__cxa_rethrow", "__cxa_begin_catch", "__gxx_personality_v0"})
# A static C program holds these for its C library's sake.
_IMPORTED: Final = _CXX | {"__gcc_personality_v0", "_Unwind_Resume", "_Unwind_RaiseException"}


class Unwinding:
    """Collects frames and handlers of carried code."""

    def __init__(self, carrier: Carrier, references: References) -> None:
        self.carrier = carrier
        self.tables = HandlerTables(carrier, references)
        self._builder = FrameBuilder(references.known)
        self._takes_part = False

    def add(self, place: Place) -> None:
        """The frames of one carried code section; its handlers may carry more."""
        entries = self.carrier.view(place).frames.get(place.section, ())
        if not entries:
            text = "it has no call frame information (.eh_frame): stacks could not be read while it runs"
            self.carrier.refuse(Code.EXCEPTIONS, place, text)
        for entry in entries:
            if entry.problem:
                self.tables.refuse(place, entry.problem)
            else:
                self._add(place, entry)

    def _add(self, place: Place, entry: FrameEntry) -> None:
        personality = lsda = None
        if entry.personality is not None:
            self._takes_part = True
            personality = self.tables.pointer(place, entry.personality)
            if personality is None:
                return
        if entry.handlers is not None:
            lsda = self.tables.table(place, entry.handlers)
            if lsda is None:
                return
        code = self.carrier.section_symbol(self.carrier.carried[place])
        self._builder.add(entry, code, personality, lsda)

    def finish(self) -> None:
        """Add .eh_frame, and what is needed to register it."""
        frames = self._builder.finish()
        if frames is None:
            return
        self.carrier.sections.append(frames)
        old = self.carrier.diff.old
        if not (self._takes_part or any(map(_has_handlers, (old, self.carrier.diff.new)))):
            return
        for name in REGISTRATION:
            own = old.globals.get(name)
            if own is not None and own.address:
                self.carrier.symbol(PatchSymbol(name, c.STB_GLOBAL, c.STT_FUNC, None, own.address, own.size))
            else:
                self.carrier.symbol(PatchSymbol(name, c.STB_GLOBAL, c.STT_NOTYPE, None, 0, 0))


def _has_handlers(program: Program) -> bool:
    """Whether the program has handlers or cleanups that an unwind must reach (C++, or C with -fexceptions).

    Those of a system library that is linked statically are its own affair, and do not count.
    """
    if _CXX & program.globals.keys() or any(s.name in _IMPORTED for s in program.tables.symbols):
        return True
    return any(
        name.startswith(".gcc_except_table")
        for number, unit in enumerate(program.snapshot.units)
        if not unit.name.startswith("/usr/")
        for name in program.record(number).section_names
    )
