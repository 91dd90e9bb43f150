"""What a mirror has for the processes of this host: from build-ids that are running to patches that are fetched.

Mirrors are asked in their order; the first that knows a build decides what is newest for it, so that a mirror nearby
may hold back what the one behind it has.  One that cannot be reached, or that serves what is not right, is passed
over with a word, as long as another knows the build.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from katana_cc.errors import InvalidPatchError, KatanaError, TargetError
from katana_cc.patch.codec import decode, patch_id
from katana_cc.patch.model import PatchObject
from katana_cc.release.mirror import Entry, fetch, index
from katana_cc.release.places import Place
from katana_cc.trust.policy import Policy


@dataclass(frozen=True, slots=True)
class Found:
    """The newest patch that there is for a build: its entry in the index, and its file if all is well.  `errors` are
    what mirrors that were asked had to say."""

    build_id: str
    entry: Entry | None = None
    patch: PatchObject | None = None
    errors: tuple[KatanaError, ...] = ()


@dataclass(slots=True)
class Mirrors:
    """Some mirrors, in the order in which they are asked.  One that could not be reached is not asked again."""

    places: Sequence[Place]
    trust: Policy
    _down: dict[str, TargetError] = field(default_factory=dict)

    def newest(self, build_id: str) -> Found:
        """The newest patch from a build."""
        errors: list[KatanaError] = []
        for place in self.places:
            if place.url in self._down:
                continue
            try:
                entries = index(place, build_id, self.trust)
            except TargetError as error:
                self._down[place.url] = error
                errors.append(error)
                continue
            except KatanaError as error:
                errors.append(error)
                continue
            if not entries:
                continue
            entry = entries[0]
            try:
                data = fetch(place, build_id, entry, self.trust)
                patch = decode(data, f"{place.url}: {entry.file}")
                _refuse_other(patch, data, build_id, entry)
            except KatanaError as error:
                errors.append(error)
                continue
            return Found(build_id, entry, patch, tuple(errors))
        return Found(build_id, None, None, tuple(errors))

    @property
    def unreachable(self) -> tuple[TargetError, ...]:
        """Why mirrors are not asked any more."""
        return tuple(self._down.values())

    @property
    def are_all_down(self) -> bool:
        """Whether nobody is left to ask."""
        return len(self._down) == len({place.url for place in self.places})


def _refuse_other(patch: PatchObject, data: bytes, build_id: str, entry: Entry) -> None:
    """Raises InvalidPatchError: it is another patch than the index says."""
    if patch.identity.from_build_id != build_id or patch_id(data) != entry.id:
        raise InvalidPatchError(
            f"it is the patch {patch_id(data)} from {patch.identity.from_build_id}", where=entry.file,
            remedy="the mirror was altered; publish again",
        )  # fmt: skip
