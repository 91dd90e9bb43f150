"""What a debugger is told of the patches of a process, in its own words."""

from __future__ import annotations

from collections.abc import Sequence

from katana_cc.process.survey import PatchStatus, ProcessStatus
from katana_cc.report.summary import clean


def gdb_lines(processes: Sequence[ProcessStatus]) -> list[str]:
    """Commands for a gdb that is attached to the process: it takes the symbols of new code from memory.

    Of patches that were taken back nothing is said: nothing leads to their code.
    """
    lines = []
    for process in processes:
        for patch in process.patches:
            if patch.ledger is None or not patch.may_run:
                continue
            lines.append(f"# pid {process.pid} ({clean(process.name)}): {_named(patch)}")
            if patch.image is None:
                lines.append("# applied by an earlier katana: nothing in memory tells of its code")
            else:
                lines.append(f"add-symbol-file-from-memory {patch.image:#x}")
    return lines


def _named(patch: PatchStatus) -> str:
    ledger = patch.ledger
    assert ledger is not None
    start = ledger.from_release or ledger.from_build_id[:12]
    return clean(f"{ledger.output}, {start} -> {ledger.to_release or ledger.to_build_id[:12]}, {ledger.patch_id}")
