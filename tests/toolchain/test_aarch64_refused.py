"""Nothing is recorded of AArch64 programs or applied to them, and the reason is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.cli.main import main
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError, KatanaError
from katana_cc.patch import codec
from katana_cc.patch.layout import DIGEST_AT, DIGEST_SIZE, digest_of
from katana_cc.process.permission import refuse_unless_ready
from katana_cc.recorder.ingest import ingest
from katana_cc.recorder.record import make_record
from tests.support.aarch64 import assembled, tool
from tests.support.objects import as_patch
from tests.support.patches import sample
from tests.support.project import Project

REASON = r"machine 183 \(AArch64\) is not supported yet"


def test_object_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=REASON):
        make_record(assembled(tmp_path, ".text\n ret\n"))


def test_link_is_a_gap_with_its_reason(tmp_path: Path) -> None:
    """A bug: the link is recorded as if it were of x86-64, or a traceback."""
    project = Project(tmp_path)
    assembled(tmp_path, ".globl _start\n_start: ret\n")
    words = ["ld.lld", "a.o", "--build-id=sha1", "-Map=.map", "-o", "prog"]
    tool("sh", "-c", f"cd '{tmp_path}' && {' '.join(words)}")
    with pytest.raises(KatanaError, match=REASON) as caught:
        ingest(project.store, project.stage("prog", words))
    assert caught.value.remedy
    assert project.store.gaps()[0].reason
    assert project.store.snapshot_rows() == []


def forged() -> bytes:
    """A patch object whose header says that it is for AArch64, with the digest that goes with it."""
    data = bytearray(codec.encode(sample()))
    data[18:20] = c.EM_AARCH64.to_bytes(2, "little")  # e_machine
    data[DIGEST_AT : DIGEST_AT + DIGEST_SIZE] = digest_of(data)
    return bytes(data)


@pytest.mark.parametrize("words", [["explain"], ["check"], ["apply", "--pid", "1"]], ids=" ".join)
def test_patch_object_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """A bug: "against the format", or "damaged", and nobody knows what to do."""
    (tmp_path / "a.kpo").write_bytes(forged())
    assert main([words[0], str(tmp_path / "a.kpo"), *words[1:]]) == 7
    assert "machine 183 (AArch64) is not supported yet" in capsys.readouterr().err


def test_patch_is_neither_written_nor_applied(tmp_path: Path) -> None:
    assembled(tmp_path, '.section .text.f,"ax"\n ret\n')
    po = as_patch(tmp_path / "a.o", {})
    with pytest.raises(KatanaError, match="machine 183 is not supported"):
        codec.encode(po)
    with pytest.raises(KatanaError, match=REASON):
        refuse_unless_ready(po)
