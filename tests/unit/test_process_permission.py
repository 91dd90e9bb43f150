"""Whether a patch may be applied at all, whatever the process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katana_cc.errors import RefusedError
from katana_cc.patch.model import Verdict
from katana_cc.patch.needs import Grant, Option
from katana_cc.process.permission import refuse_unless_ready
from tests.support.patches import sample


def test_a_patch_that_transforms_heap_objects_is_not_applied_without_doing_so() -> None:
    """Applied as if it replaced functions only, new code would misread the old objects."""
    po = replace(sample(), verdict=Verdict.SAFE, reasons=sample().reasons[:2])
    with pytest.raises(RefusedError, match=r"new layout \(struct conn\)"):
        refuse_unless_ready(po)
    refuse_unless_ready(replace(po, transforms=po.transforms[:1]))
    refuse_unless_ready(po, [Grant(Option.ONLY_STATIC, "struct conn")])
