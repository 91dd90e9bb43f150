"""Whether a patch may be applied at all, whatever the process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katana_cc.errors import RefusedError
from katana_cc.patch.model import Verdict
from katana_cc.patch.needs import Grant, Option
from katana_cc.process.moves import kinds_of
from tests.support.patches import sample


def test_types_are_walked_unless_their_objects_are_no_heap_objects() -> None:
    """Left out, new code would misread the old objects."""
    po = replace(sample(), verdict=Verdict.SAFE, reasons=sample().reasons[:2])
    (kind,) = kinds_of(po, [Grant(Option.FOLLOW, "struct conn")])
    assert (kind.name, kind.is_followed, kind.is_all) == ("struct conn", True, False)
    (kind,) = kinds_of(po, [Grant(Option.ONLY_REACHED, "struct conn")])
    assert (kind.is_followed, kind.is_all) == (False, True)
    assert kinds_of(po, [Grant(Option.ONLY_STATIC, "struct conn")]) == ()
    with pytest.raises(RefusedError, match="--only-reached: the patch does not move struct con "):
        kinds_of(po, [Grant(Option.ONLY_REACHED, "struct con")])
