"""What is applied, as metrics: the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from katana_cc.process.survey import ProcessStatus

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def metrics(processes: Sequence[ProcessStatus], unreadable: int) -> list[str]:
    """The lines for all processes that carry patches; `unreadable` is how many others could not be looked into."""
    counted: Counter[tuple[tuple[str, str], ...]] = Counter()
    for process in processes:
        for patch in process.patches:
            ledger = patch.ledger
            labels = {"state": patch.state.replace(" ", "_")}
            if ledger is not None:
                start = ledger.from_release or ledger.from_build_id
                end = ledger.to_release or ledger.to_build_id
                labels |= {"output": ledger.output, "from": start, "to": end, "patch": ledger.patch_id}
            counted[tuple(labels.items())] += 1
    lines = [
        "# HELP katana_patches Processes that carry a patch, by its state.",
        "# TYPE katana_patches gauge",
    ]
    for key, number in sorted(counted.items()):
        text = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in key)
        lines.append(f"katana_patches{{{text}}} {number}")
    return [
        *lines,
        "# HELP katana_unreadable_processes Processes of which it is not known whether they carry a patch.",
        "# TYPE katana_unreadable_processes gauge",
        f"katana_unreadable_processes {unreadable}",
    ]
