"""What `katana check` finds in a patch object that the format lets through."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from katana_cc.patch import checks, codec
from katana_cc.patch.lief_reader import second_view
from katana_cc.patch.model import PatchObject, PatchRelocation, Verdict
from katana_cc.snapshot.store import Store
from katana_cc.transform.model import Transformation
from tests.support.patches import IDENTITY, refused, sample

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "KATANA_DIR"} | {"PYTHONPATH": str(ROOT)}
Change = Callable[[PatchObject], PatchObject]


def _section(number: int, **fields: object) -> Change:
    def change(po: PatchObject) -> PatchObject:
        changed = replace(po.sections[number], **fields)  # type: ignore[arg-type]
        return replace(po, sections=(*po.sections[:number], changed, *po.sections[number + 1 :]))

    return change


def _symbol(number: int, **fields: object) -> Change:
    def change(po: PatchObject) -> PatchObject:
        changed = replace(po.symbols[number], **fields)  # type: ignore[arg-type]
        return replace(po, symbols=(*po.symbols[:number], changed, *po.symbols[number + 1 :]))

    return change


def _function(**fields: object) -> Change:
    return lambda po: replace(po, replacements=(replace(po.replacements[0], **fields),))  # type: ignore[arg-type]


def _transform(number: int, **fields: object) -> Change:
    def change(po: PatchObject) -> PatchObject:
        changed = replace(po.transforms[number], **fields)  # type: ignore[arg-type]
        return replace(po, transforms=(*po.transforms[:number], changed, *po.transforms[number + 1 :]))

    return change


def _twice(po: PatchObject) -> PatchObject:
    return replace(po, replacements=(*po.replacements, replace(po.replacements[0], name="again")))


BAD: dict[str, tuple[Change, str]] = {
    "function in data": (
        lambda po: replace(po, brought=(po.brought[0]._replace(section=2), *po.brought[2:])),
        "the function parse.o: helper, which it brings, is in section .data.fresh",
    ),
    "build-id": (lambda po: replace(po, identity=replace(IDENTITY, from_build_id="")), "build-id '' is not hexa"),
    "same build": (lambda po: replace(po, identity=replace(IDENTITY, to_build_id="ab" * 20)), "from a build to itself"),
    "verdict too good": (lambda po: replace(po, verdict=Verdict.SAFE), 'the verdict is "safe", but the gravest'),
    "no reason to need": (
        lambda po: replace(po, reasons=po.reasons[:2]),
        'is "needs", but the gravest reason is "info"',
    ),
    "frame of nothing": (_section(4, relocations=()), "the frame at 0x18 describes no code"),
    "frames cut off": (_section(4, data=bytes([0x40]) + bytes(0x2F)), "call frame information: "),
    "registration by halves": (_symbol(0, name="__register_frame_info"), "it names __register_frame_info"),
    "severity": (
        lambda po: replace(po, reasons=(*po.reasons, replace(po.reasons[0], severity="mild"))),
        "severity: mild",
    ),
    "unknown relocation": (_section(0, relocations=(PatchRelocation(0, 99, 0, 0),)), "unknown type 99"),
    "relocation at the end": (_section(0, relocations=(PatchRelocation(18, 2, 0, 0),)), "0x12 reaches beyond its end"),
    "symbol too long": (_symbol(2, size=4096), "parse reaches beyond its section"),
    "symbol outside": (_symbol(2, value=4096), "parse reaches beyond its section"),
    "tiny function": (_function(size=4), "4 bytes, too few for a jump"),
    "replaced by nothing": (_function(symbol=0), "replaced by puts, which is not in the patch"),
    "replaced by data": (_function(symbol=1), "fresh, which is not in executable memory"),
    "overlap": (_twice, "parse at 0x401200 overlaps again"),
    "part overlaps": (_function(parts=((0x401210, 4, bytes(32)),)), "parse (part) at 0x401210 overlaps parse"),
    "edit of another size": (_section(5, data=b"one", size=3), "3 bytes expected, 4 to write"),
    "edit that is mapped": (_section(5, flags=2), ".katold.banner would be mapped"),
    "new object of another size": (_symbol(1, size=4), "the new fresh has 4 bytes, its transformation 8"),
    "new object that is not mapped": (_section(2, flags=0), "the new fresh is not in writable memory"),
    "new object elsewhere": (_transform(0, symbol=9), "the new fresh is not in writable memory"),
    "old object over code": (_transform(0, address=0x401220), "fresh at 0x401220 overlaps parse"),
    "old object over an edit": (_transform(0, address=0x401FFE), "banner at 0x402000 overlaps fresh"),
    "a type in two ways": (
        lambda po: replace(po, transforms=(*po.transforms, po.transforms[1])),
        "struct conn is transformed in 2 ways",
    ),
    "an object without a size": (
        _transform(1, transformation=Transformation("struct none", 0, 0, ())),
        "struct none is of an object without a size",
    ),
    "edit over code": (_function(address=0x402002), "parse at 0x402002 overlaps banner"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_problem_is_named(name: str) -> None:
    change, words = BAD[name]
    assert any(words in p for p in checks.problems(change(sample())))


@pytest.mark.parametrize("po", [sample(), refused()], ids=["sample", "refused"])
def test_a_good_one_has_no_problem(po: PatchObject) -> None:
    assert checks.problems(po) == []


def test_a_problem_is_named_once() -> None:
    assert len(checks.problems(_twice(sample()))) == 2  # the function and its part


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("po") / "sample.kpo"
    path.write_bytes(codec.encode(sample()))
    return path


DIFFERENT: dict[str, tuple[Change, str]] = {
    "contents": (_section(1, data=b"\x90"), "does not see section (1, '.text.helper'"),
    "alignment": (_section(1, alignment=32), "only the second reader sees section (1, '.text.helper'"),
    "symbol value": (_symbol(4, value=0x401235), "does not see symbol ('server.c:log'"),
    "symbol section": (_symbol(1, section=0), "only the second reader sees symbol ('fresh'"),
    "relocation": (_section(1, relocations=(PatchRelocation(0, 14, 0, 0),)), "does not see relocation ('.text.helper'"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_second_reader_notices_a_difference(name: str, file: Path) -> None:
    view = second_view(file)
    assert not isinstance(view, str)
    change, words = DIFFERENT[name]
    assert any(words in p for p in checks.disagreements(change(sample()), view))


def test_bytes_that_the_contents_do_not_explain_are_found(file: Path) -> None:
    hidden = codec.seal(file.read_bytes() + b"hidden")
    path = file.with_name("hidden.kpo")
    path.write_bytes(hidden)
    assert any("do not explain" in p for p in checks.check_file(path, hidden, codec.decode(hidden, "x")))


def test_a_second_reader_that_fails_is_a_problem(tmp_path: Path) -> None:
    data = codec.encode(sample())
    assert any("cannot confirm" in p for p in checks.check_file(tmp_path / "gone", data, sample()))


def _katana(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = "import sys; from katana_cc.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=ENVIRONMENT)


def test_katana_check_says_ok_and_what_was_checked(file: Path) -> None:
    done = _katana("check", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert ": ok: " in done.stdout
    assert "7 sections, 12 symbols, 5 relocations" in done.stdout


def test_katana_check_exits_7_and_names_each_problem(tmp_path: Path) -> None:
    path = tmp_path / "bad.kpo"
    path.write_bytes(codec.encode(_function(size=4, blanks=())(sample())))
    done = _katana("check", path)
    assert done.returncode == 7
    assert "too few for a jump" in done.stdout
    assert ": ok: " not in done.stdout


@pytest.mark.parametrize("data", [b"", b"\x7fELF", codec.encode(sample())[:-1]])
def test_katana_check_of_a_damaged_file_exits_7(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.kpo"
    path.write_bytes(data)
    done = _katana("check", path)
    assert done.returncode == 7
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr


def test_katana_check_of_no_file_exits_7(tmp_path: Path) -> None:
    done = _katana("check", tmp_path / "none.kpo")
    assert done.returncode == 7
    assert "No such file" in done.stderr


def test_lief_stays_out_of_the_process() -> None:
    """It must never share one with python-ptrace, and costs up to a second to import."""
    code = "import sys; import katana_cc.patch.checks; sys.exit('lief' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_katana_check_without_a_patch_verifies_the_store(tmp_path: Path) -> None:
    Store(tmp_path / ".katana", create=True).close()
    done = _katana("check", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / '.katana'}: ok\n", "")


def test_katana_check_without_a_store_exits_6(tmp_path: Path) -> None:
    done = _katana("check", cwd=tmp_path)
    assert done.returncode == 6
    assert "no .katana store" in done.stderr


def test_katana_check_names_what_is_wrong_with_the_store(tmp_path: Path) -> None:
    Store(tmp_path / ".katana", create=True).close()
    (tmp_path / ".katana" / "index.db").write_bytes(b"not a database" * 100)
    done = _katana("check", cwd=tmp_path)
    assert done.returncode == 6
    assert "Traceback" not in done.stderr
