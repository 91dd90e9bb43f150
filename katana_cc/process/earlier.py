"""What an earlier katana left in a process: mappings of the same patch, and patches whose place it takes."""

from __future__ import annotations

from dataclasses import dataclass

from katana_cc.errors import RefusedError
from katana_cc.process.ledger import Ledger
from katana_cc.process.modules import Module
from katana_cc.process.moves import same_moves
from katana_cc.process.objections import half_moved
from katana_cc.process.phases import Bytes
from katana_cc.process.standing import WithoutPatches, standings
from katana_cc.process.target import PatchMapping, Target


@dataclass(frozen=True, slots=True)
class Earlier:
    """`own` are earlier mappings of the same patch, of which one may be used again.  `found` is how it stands: when
    that is not `Bytes.OLD`, there is just the one.  `leaving` are the patches in force whose place is taken."""

    own: tuple[PatchMapping, ...]
    found: Bytes
    leaving: tuple[Ledger, ...]

    @property
    def own_ledger(self) -> Ledger | None:
        """That of the mapping that stands, in part or as a whole."""
        return self.own[0].ledger if self.own and self.found is not Bytes.OLD else None

    def without(self, target: Target) -> WithoutPatches:
        """The memory of the target as it would be without any of these patches."""
        own = self.own_ledger
        return WithoutPatches(target.memory, (*self.leaving, *((own,) if own else ())))


def earlier_patches(target: Target, module: Module, patch_id: str) -> Earlier:
    """What is there of the patches of a module.

    Raises:
        RefusedError: someone else has altered what is in force, or it is half moved.
        TargetError: the process is gone.
    """
    mappings = [m for m in target.patches if m.ledger is not None and _is_of(m.ledger, module)]
    found = standings(target.memory, (m.ledger for m in mappings if m.ledger is not None))
    own: list[PatchMapping] = []
    standing: list[tuple[PatchMapping, Bytes]] = []
    leaving: list[Ledger] = []
    for mapping in mappings:
        ledger, how = mapping.ledger, found[mapping.base]
        assert ledger is not None
        if how is Bytes.FOREIGN:
            raise RefusedError(
                "this patch was applied, and its jumps were altered since"
                if ledger.patch_id == patch_id
                else f"already carries another patch of {ledger.output}: {ledger.patch_id}, {how.value}",
                where=target.where,
                remedy="another tool has written to the process; restart it",
            )
        if ledger.patch_id != patch_id:
            if how in (Bytes.NEW, Bytes.TORN):
                leaving.append(ledger)
        elif how in (Bytes.NEW, Bytes.TORN):
            standing.append((mapping, how))
        else:
            own.append(mapping)
    torn = [*leaving, *(m.ledger for m, how in standing if m.ledger is not None)]
    if any(found[x.base] is Bytes.TORN for x in torn):
        one = torn[0]
        for x in torn:
            if x.moves_data and (len(torn) == 1 or not same_moves(x.moves, x.kinds, one.moves, one.kinds)):
                raise half_moved(target.where, x)
    if standing:
        return Earlier((standing[0][0],), standing[0][1], tuple(leaving))
    return Earlier(tuple(own), Bytes.OLD, tuple(leaving))


def _is_of(ledger: Ledger, module: Module) -> bool:
    return ledger.bias == module.bias and ledger.from_build_id == module.build_id
