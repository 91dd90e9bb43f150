"""Whether a field of the new output and one of the patched process lead to the same thing.

Theory of operation.  The patched process is made of old things and carried ones.  Two fields agree when they lead to
the same distance of things that stand for each other:

- A literal, and unnamed read-only data (a jump table), is what it contains, recursively.
- A named thing of the new build is *one* thing of the patched process.  If the patch object carries it, it is that: an
  old field that leads to an old function's entry counts as leading to what the function is replaced by, and any other
  way to the old one is a difference.  If it is not carried, it is the old thing that `pairing.py` names; and where
  names do not tell (local variables), the first use decides, every other use must agree, and no two may be one.
- An import is its name.

So an assumption "new thing N is E" is made once, and whoever makes it has N compared with E (`pairs`).  This is
coinduction: recursive functions and tables that refer back to their function need nothing special.

While the sections of the patch object are walked from its replacements (`walk.py`), it is not yet known what is
carried: fields that lead to old things are put off until it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping

from katana_cc.diff.harmless import same_but_built_later
from katana_cc.diff.program import Place, Program
from katana_cc.diff.scope import Scope
from katana_cc.diff.view import Kind
from katana_cc.elf.versions import split
from katana_cc.proof.carried import CarriedSections
from katana_cc.proof.image import Image
from katana_cc.proof.model import Carried, Content, Field, Named, Target
from katana_cc.proof.pairing import Pairing
from katana_cc.recorder.record import stem

Scopes = Callable[[Program, int], Mapping[int, Scope]]  # by section, what debug information says of variables
_LIVE = (Kind.DATA, Kind.THREAD)  # what has a value of its own: no two of them can be one


class Judge:
    """Decides on fields; remembers what stands for what."""

    def __init__(self, old: Image, new: Image, pairing: Pairing, carried: CarriedSections, scopes: Scopes) -> None:
        self.old, self.new = old, new
        self.pairing = pairing
        self.carried = carried
        self.scopes = scopes
        self.carried_as: dict[Place, Carried] = {}
        self.carries: dict[Carried, Place] = {}
        self.replaced: dict[Place, Carried] = {}
        self.stands_for: dict[Place, Target] = {}
        self.pairs: list[tuple[Place, Target]] = []  # assumptions not yet compared
        self.walking: Callable[[Field, Field], None] | None = None  # takes what is put off
        self._claimed: dict[Target, Place] = {}
        self._contents: dict[tuple[Place, Place], bool] = {}
        self._edges: dict[tuple[bool, Place], list[int]] = {}

    def bind(self, place: Place, carried: Carried) -> bool:
        """Take a carried section for a place of the new build; False when either is taken for something else."""
        if self.carried_as.get(place, carried) != carried or self.carries.get(carried, place) != place:
            return False
        if carried not in self.carries:
            self.carried_as[place], self.carries[carried] = carried, place
            self.pairs.append((place, carried))
        return True

    def agree(self, after: Field, before: Field) -> bool:
        """Whether `after` of the new build and `before` of the patched process lead to the same."""
        mine, theirs = after.target, before.target
        if isinstance(mine, Content):
            return self._same_literal(after, mine, before)
        if isinstance(mine, Place) and self.new.is_unnamed(mine):
            return self._same_unnamed(after, mine, before)
        if after.distance != before.distance:
            return False
        if self.walking and not isinstance(theirs, Carried):
            self.walking(after, before)
            return True
        if isinstance(theirs, Place) and before.is_entry(self.old.known) and theirs in self.replaced:
            theirs = self.replaced[theirs]
        if isinstance(mine, Place):
            return self._same_thing(mine, theirs)
        if isinstance(mine, Named):
            return self._same_name(mine.name, theirs)
        return mine == theirs

    # What has no identity

    def _same_literal(self, after: Field, mine: Content, before: Field) -> bool:
        if isinstance(before.target, Carried):
            held = self.carried.data(before.target)
            at = before.distance + after.start
            return at >= 0 and held[at : at + len(mine.data)] == mine.data
        if not isinstance(before.target, Content) or after.distance != before.distance:
            return False
        was = before.target.data
        return was == mine.data or same_but_built_later(was, mine.data, self.new.program.snapshot.time)

    def _same_unnamed(self, after: Field, mine: Place, before: Field) -> bool:
        theirs = before.target
        if isinstance(theirs, Carried):
            if self.carried.is_pool(theirs):
                text = _text(self.new.data(mine), after.distance + after.start)
                return text is not None and _text(self.carried.data(theirs), before.distance + after.start) == text
            return after.distance == before.distance and self.bind(mine, theirs)
        if not isinstance(theirs, Place) or not self.old.is_unnamed(theirs):
            return False
        if after.distance == before.distance and self._same_contents(mine, theirs):
            return True
        if after.start != before.start or self.new.fields(mine) or self.old.fields(theirs):
            return False
        return self._same_piece(mine, after.distance + after.start, theirs, before.distance + before.start)

    def _same_contents(self, mine: Place, theirs: Place) -> bool:
        known = self._contents.get((mine, theirs))
        if known is None:
            self._contents[mine, theirs] = True  # a table that leads back to itself
            known = self._contents[mine, theirs] = self._compare_contents(mine, theirs)
        return known

    def _compare_contents(self, mine: Place, theirs: Place) -> bool:
        after, before = self.new.fields(mine), self.old.fields(theirs)
        if [(f.offset, f.type) for f in after] != [(f.offset, f.type) for f in before]:
            return False
        now = self.new.known.masked(self.new.data(mine), after, relaxed=False)
        was = self.old.known.masked(self.old.data(theirs), before, relaxed=False)
        if now != was and not same_but_built_later(was, now, self.new.program.snapshot.time):
            return False
        return all(self.agree(a, b) for a, b in zip(after, before, strict=True))

    def _same_piece(self, mine: Place, mine_at: int, theirs: Place, theirs_at: int) -> bool:
        """Whether two texts in the midst of unnamed data are one, up to where something else begins (gcc -O0)."""
        pieces = []
        for image, place, at in ((self.new, mine, mine_at), (self.old, theirs, theirs_at)):
            end = self._edge(image, place, at)
            piece = image.data(place)[at:end] if 0 <= at < end else b""
            pieces.append(piece)
        now, was = pieces
        if not now or now.rstrip(b"\0") == now:
            return False  # no text: all behind it may be meant
        return now == was or same_but_built_later(was, now, self.new.program.snapshot.time)

    def _edge(self, image: Image, place: Place, at: int) -> int:
        """Where in a section the next thing begins that anything in its object refers to."""
        key = (image is self.new, place)
        if key not in self._edges:
            view = image.view(place)
            users = (Place(place.unit, n) for n in view.kinds if n != place.section and view.elf.relocations(n))
            starts = {f.distance + f.start for user in users for f in image.fields(user) if f.target == place}
            self._edges[key] = sorted(starts)
        edges = self._edges[key]
        following = bisect_right(edges, at)
        return min(edges[following], image.size(place)) if following < len(edges) else image.size(place)

    # What has one

    def _same_name(self, name: str, theirs: Target) -> bool:
        base, version = split(name)
        if isinstance(theirs, Named):
            other, its = split(theirs.name)
            return base == other and (version == its or not version or not its)
        if isinstance(theirs, Carried):
            return base in self.carried.names(theirs)
        # A COMMON variable of the new build that had a section in the old one.
        return isinstance(theirs, Place) and self.old.defined(base)[0] == theirs

    def _same_thing(self, mine: Place, theirs: Target) -> bool:
        if isinstance(theirs, Carried):
            return self.bind(mine, theirs) if self.walking else self.carried_as.get(mine) == theirs
        if mine in self.carried_as:
            return False
        known = self.old_of(mine)
        if known is not None:
            return known == theirs or self.old.survivor(known) == self.old.survivor(theirs)
        return isinstance(theirs, Place | Named) and self._assume(mine, theirs)

    def old_of(self, mine: Place) -> Target | None:
        """What a place that is not carried stands for, as far as is known by now."""
        return self.stands_for.get(mine) or self.pairing.old_of(mine)

    def _assume(self, mine: Place, theirs: Place | Named) -> bool:
        kind = self.new.kind(mine)
        names = self.new.names(mine)
        if isinstance(theirs, Named):
            if theirs.name not in names or theirs.name not in self.old.program.snapshot.commons:
                return False
        else:
            other = self.old.kind(theirs)
            named = {stem(n) for n in names} & {stem(n) for n in self.old.names(theirs)}
            if kind is not other or not (named or (kind in _LIVE and self._is_declared_alike(mine, theirs))):
                return False
        if kind in _LIVE and isinstance(theirs, Place) and self._is_of_another(mine, theirs):
            return False
        if kind in _LIVE and (self._claimed.setdefault(theirs, mine) != mine or self._is_named_elsewhere(mine, theirs)):
            return False
        self.stands_for[mine] = theirs
        self.pairs.append((mine, theirs))
        return True

    def _is_of_another(self, mine: Place, theirs: Place) -> bool:
        """Whether debug information says that the old variable belongs to a function that has one of the name still."""
        after, before = self.scopes(self.new.program, mine.unit), self.scopes(self.old.program, theirs.unit)
        here, there = after.get(mine.section), before.get(theirs.section)
        return here is not None and there is not None and here != there and there in after.values()

    def _is_declared_alike(self, mine: Place, theirs: Place) -> bool:
        """Whether two variables have one name in the source: compilers call one of a function `f.n`."""
        here = self.scopes(self.new.program, mine.unit).get(mine.section)
        there = self.scopes(self.old.program, theirs.unit).get(theirs.section)
        return here is not None and there is not None and here.declared == there.declared

    def _is_named_elsewhere(self, mine: Place, theirs: Target) -> bool:
        """Whether a global name already says of another new thing that it is the old `theirs`."""
        if not isinstance(theirs, Place):
            return False
        for name in self.old.names(theirs):
            target, _, _ = self.new.defined(name)
            if isinstance(target, Place) and target != mine and self.pairing.old_of(target) == theirs:
                return True
        return False


def _text(data: bytes, at: int) -> bytes | None:
    """The text at an offset, with its terminator; None when there is none."""
    end = data.find(b"\0", max(at, 0))
    return data[at : end + 1] if 0 <= at < end else None
