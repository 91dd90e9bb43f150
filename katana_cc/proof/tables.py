"""Exception tables (LSDAs) and personality routines of carried functions, compared with those of the new build.

A table says which calls lead to which handlers, and which types these catch.  It is compared by what it says: the calls
and their landing pads, and for each type the type_info at the end of whatever pointers lead there.  So one type taken
for another is found, although the patch object reaches its types in its own way.  A type_info that only a table leads
to becomes known by it.

Source: LSB core, "Exception Frames" (10.6.1); `katana_cc.dwarf.lsda` for what an LSDA is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple

from katana_cc.diff.program import Place
from katana_cc.dwarf.lsda import INDIRECT, CallSite, read_lsda
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError
from katana_cc.proof import fdes
from katana_cc.proof.fdes import FdeAt, P
from katana_cc.proof.judge import Judge
from katana_cc.proof.model import Carried, Field, Finding


class _Table(NamedTuple):
    """What the frames of a function say of exceptions: routine, calls, types (None: the one that catches all)."""

    routine: Field | None
    calls: tuple[CallSite, ...]
    types: tuple[Field | None, ...]


class _Frames(Generic[P]):
    """The tables of one side: the sections of an object, or of the patch object."""

    def __init__(self, kind: type[P], data: Callable[[P], bytes], fields: Callable[[P], tuple[Field, ...]]) -> None:
        self._kind: type[P] = kind
        self._data: Callable[[P], bytes] = data
        self._rows: Callable[[P], tuple[Field, ...]] = fields
        self._fields: dict[P, dict[int, Field]] = {}

    def field(self, owner: P, at: int) -> Field | None:
        """The field at an offset of a section."""
        if owner not in self._fields:
            self._fields[owner] = {f.offset: f for f in self._rows(owner)}
        return self._fields[owner].get(at)

    def table(self, entry: FdeAt[P]) -> _Table:
        """What an FDE says.

        Raises:
            FormatError: its LSDA cannot be read.
        """
        _start, owner, data, fde = entry
        routine = None
        if at := fde.cie.personality_offset:
            routine = self._followed(owner, at, data[at - 1])
        found = self.field(owner, fde.lsda_offset) if fde.lsda_offset else None
        if found is None:
            return _Table(routine, (), ())
        source = found.target
        if not isinstance(source, self._kind):
            raise FormatError("an exception table in no section")
        lsda = read_lsda(self._data(source), found.distance)
        types = tuple(self._followed(source, at, lsda.encoding) for at in lsda.types)
        return _Table(routine, lsda.call_sites, types)

    def _followed(self, owner: P, at: int, encoding: int) -> Field | None:
        """The field at `at`, or the one of the pointer that it leads to."""
        found = self.field(owner, at)
        if found is None or not encoding & INDIRECT:
            return found
        pointer = self.field(found.target, found.distance) if isinstance(found.target, self._kind) else None
        if pointer is None:
            raise FormatError("a pointer that leads nowhere")
        return pointer


class Tables:
    """Compares the tables of carried functions, each once; while the patch object is walked."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._done: set[Carried] = set()
        self._ours = _Frames(Carried, judge.carried.data, judge.carried.fields)
        self._theirs = _Frames(Place, judge.new.data, judge.new.fields)
        self._carried = fdes.of_patch(judge.carried)
        self._built: dict[int, dict[int, list[FdeAt[Place]]]] = {}

    def differences(self) -> Iterator[Finding]:
        """Functions bound since the last call whose tables are not the new build's."""
        sections = self._judge.carried.patch.sections
        for carried, place in list(self._judge.carries.items()):
            if carried in self._done or not sections[carried.number].flags & c.SHF_EXECINSTR:
                continue
            self._done.add(carried)
            if not self._same(carried, place):
                label = self._judge.new.label(place)
                text = f"what the patch says of exceptions that {label} catches or passes is not what the build says"
                yield Finding(label, text, place)

    def _same(self, carried: Carried, place: Place) -> bool:
        if place.unit not in self._built:
            self._built[place.unit] = fdes.of_unit(self._judge.new, place.unit)
        ours = {f.start: f for f in self._carried.get(carried, ())}
        theirs = {f.start: f for f in self._built[place.unit].get(place.section, ())}
        # Frames that are missing are the affair of `proof/frames.py`.
        return all(self._agree(ours[at], theirs[at]) for at in ours.keys() & theirs.keys())

    def _agree(self, ours: FdeAt[Carried], theirs: FdeAt[Place]) -> bool:
        try:
            before, after = self._ours.table(ours), self._theirs.table(theirs)
        except FormatError:
            return False
        if after.calls != before.calls or len(after.types) != len(before.types):
            return False
        pairs = [(after.routine, before.routine), *zip(after.types, before.types, strict=True)]
        return all((b is None) if a is None else (b is not None and self._judge.agree(a, b)) for a, b in pairs)
