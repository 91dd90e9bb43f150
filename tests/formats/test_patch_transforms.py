"""Transformations in a patch object, read by others: `readelf` lists the call-frame tables, and a small interpreter of
DWARF expressions that knows nothing of Katana's decoder makes the new objects from what it prints."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from katana_cc.errors import InvalidPatchError
from katana_cc.patch.checks import check_file, problems
from katana_cc.patch.codec import decode, encode, seal
from katana_cc.patch.model import DataTransform, PatchObject
from katana_cc.report.transforms import transform_rows, transforms_json
from katana_cc.transform.execute import apply
from katana_cc.transform.model import Pointer, Repeat, Transformation
from tests.support.patches import sample
from tests.support.transforms import transformations

LISTED = re.compile(r"^  (DW_CFA_\w+)(?:: (.*))?$")
MASK = (1 << 64) - 1
_BINARY: dict[str, Callable[[int, int], int]] = {
    "DW_OP_shl": lambda a, b: a << b,
    "DW_OP_shr": lambda a, b: a >> b,
    "DW_OP_shra": lambda a, b: (a - (1 << 64) if a >> 63 else a) >> b,
    "DW_OP_or": lambda a, b: a | b,
    "DW_OP_ne": lambda a, b: int(a != b),
}


def with_transforms(*given_: Transformation) -> PatchObject:
    """A patch object that transforms the objects of some types."""
    return replace(sample(), transforms=tuple(DataTransform(t) for t in given_))


def listed(folder: Path, po: PatchObject) -> str:
    """What readelf prints, without a word of complaint."""
    path = folder / "p.kpo"
    path.write_bytes(encode(po))
    done = subprocess.run(["readelf", "--debug-dump=frames", path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "bad register" not in done.stdout
    return done.stdout[done.stdout.index("Contents of the .debug_frame") :]


def programs(text: str) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(start of the new object, its instructions with their operands) of each FDE."""
    for part in re.split(r"\n\n", text):
        head = re.match(r"[0-9a-f]+ [0-9a-f]+ [0-9a-f]+ FDE cie=00000000 pc=([0-9a-f]+)\.\.[0-9a-f]+\n", part)
        if head:
            lines = [m for line in part.splitlines() if (m := LISTED.match(line))]
            yield int(head[1], 16), [(m[1], m[2] or "") for m in lines if m[1] != "DW_CFA_nop"]


def evaluated(text: str, old: bytes, cfa: int) -> tuple[int | None, int, int]:
    """(top of the stack, bits of the piece, its offset in bits) of an expression, as readelf prints it."""
    stack = [cfa]
    size = offset = 0
    for item in text.split("; "):
        name, *numbers = re.findall(r"DW_OP_\w+|\d+", item)
        n = [int(x) for x in numbers]
        match name:
            case "DW_OP_plus_uconst":
                stack[-1] += n[0]
            case "DW_OP_const1u" | "DW_OP_constu":
                stack.append(n[0])
            case "DW_OP_lit0":
                stack.append(0)
            case "DW_OP_dup":
                stack.append(stack[-1])
            case "DW_OP_swap":
                stack[-2:] = stack[:-3:-1]
            case "DW_OP_deref" | "DW_OP_deref_size":
                at, width = stack.pop(), n[0] if n else 8
                assert 0 <= at <= len(old) - width, "reads beyond the old object"
                stack.append(int.from_bytes(old[at : at + width], "little"))
            case "DW_OP_piece":
                size = n[0] * 8
            case "DW_OP_bit_piece":
                size, offset = n
            case _:
                second, first = stack.pop(), stack.pop()
                stack.append(_BINARY[name](first, second) & MASK)
    return (stack[-1] if stack else None), size, offset


def put(new: bytearray, bit: int, size: int, value: int) -> None:
    whole = int.from_bytes(new, "little")
    mask = ((1 << size) - 1) << bit
    new[:] = (whole & ~mask | value << bit & mask).to_bytes(len(new), "little")


def run(code: list[tuple[str, str]], old: bytes, new: bytearray, start: int) -> None:
    """Follow the instructions of one FDE; arrays by running their rows again for each element."""
    location, at = start, 0

    def rows(new_shift: int, old_shift: int, cfa: int) -> None:
        nonlocal location, at
        while at < len(code):
            name, operand = code[at]
            at += 1
            if name == "DW_CFA_restore_state":
                return
            if name.startswith("DW_CFA_advance_loc"):
                location = int(operand.rpartition(" ")[2], 16)
                continue
            register, expression = re.fullmatch(r"r(\d+) \((.*?) ?\)", operand).groups()  # type: ignore[union-attr]
            place = location - start + new_shift
            if register == "96":
                count, new_stride, old_stride = map(int, re.findall(r"constu: (\d+)", expression))
                assert code[at][0] == "DW_CFA_remember_state"
                assert code[at + 1][0] == "DW_CFA_def_cfa_offset"
                first, body, here = int(code[at + 1][1]), at + 2, location
                for i in range(count):
                    at, location = body, here
                    rows(new_shift + i * new_stride, old_shift + i * old_stride, first)
                continue
            value, size, offset = evaluated(expression, old, cfa + old_shift)
            if register in ("91", "92"):
                assert value is not None
                new[place : place + size // 8] = old[value : value + size // 8]
            elif register == "95":
                assert value is not None
                new[place : place + size // 8] = as_float(value, size)
            elif int(register) >= 100:
                assert value is not None
                put(new, place * 8 + offset, size, value)
            else:
                assert register in ("93", "94")

    rows(0, 0, 0)


def as_float(bits: int, size: int) -> bytes:
    if size == 64:
        return struct.pack("<d", *struct.unpack("<f", bits.to_bytes(4, "little")))
    (value,) = struct.unpack("<d", bits.to_bytes(8, "little"))
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(transformations(), min_size=1, max_size=4), st.data())
def test_the_tables_mean_what_is_carried_out(
    tmp_path_factory: pytest.TempPathFactory, given_: list[Transformation], data: st.DataObject
) -> None:
    found = list(programs(listed(tmp_path_factory.mktemp("po"), with_transforms(*given_))))
    assert len(found) == len(given_)
    for t, (start, code) in zip(given_, found, strict=True):
        old = data.draw(st.binary(min_size=t.old_size, max_size=t.old_size))
        initial = data.draw(st.binary(min_size=t.new_size, max_size=t.new_size))
        new = bytearray(initial)
        run(code, old, new, start)
        assert bytes(new) == apply(t, old, initial)


def test_a_person_can_read_it(tmp_path: Path) -> None:
    text = listed(tmp_path, sample())
    assert "  DW_CFA_def_cfa: r90 ofs 0\n" in text
    assert "FDE cie=00000000 pc=8000000000000000..8000000000000008\n" in text
    rule = "DW_OP_plus_uconst: 0; DW_OP_deref_size: 4; DW_OP_const1u: 32; DW_OP_shl; DW_OP_const1u: 32; DW_OP_shra"
    assert f"  DW_CFA_val_expression: r104 ({rule}; DW_OP_piece: 8)\n" in text


def test_other_readers_see_the_same_records(tmp_path: Path) -> None:
    path = tmp_path / "p.kpo"
    path.write_bytes(encode(sample()))
    for tool in (["eu-readelf", "--debug-dump=frames"], ["objdump", "--dwarf=frames"]):
        done = subprocess.run([*tool, path], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert done.stdout.count("val_expression") == 4


def test_a_debugger_finds_no_code_described_by_them(tmp_path: Path) -> None:
    """gdb takes an FDE's place for code; ours must not reach into what a process executes, wherever it is added."""
    path = tmp_path / "p.kpo"
    path.write_bytes(encode(sample()))
    add = f"add-symbol-file {path} -s .text.parse 0x100000"
    quiet = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set complaints 100"]
    shown = subprocess.run(
        [*quiet, "-ex", add, "-ex", "maint print objfiles p.kpo", "-ex", "info symbol 0x100001"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "parse + 1 in section .text.parse" in shown.stdout
    assert shown.stderr == ""
    for start, _ in programs(listed(tmp_path, sample())):
        assert start >> 47 not in (0, (1 << 17) - 1)  # no canonical address


def test_a_patch_without_transformations_has_no_tables(tmp_path: Path) -> None:
    data = encode(replace(sample(), transforms=()))
    assert b".debug_frame" not in data
    path = tmp_path / "p.kpo"
    path.write_bytes(data)
    assert check_file(path, data, decode(data, "x")) == []


def test_a_variable_that_stays_names_its_pointers(tmp_path: Path) -> None:
    """Kind 3: an address, no new symbol; others see each pointer."""
    each = Repeat(2, 8, 8, 8, 8, (Pointer(0, 0, "struct conn"),), "all[]", "all[]")
    stays = DataTransform(Transformation("list", 24, 24, (Pointer(0, 0, "char", "name", "name"), each)), 0x404100)
    po = replace(sample(), transforms=(*sample().transforms, stays))
    data = encode(po)
    assert decode(data, "x") == po
    assert problems(po) == []
    start, code = list(programs(listed(tmp_path, po)))[2]
    old, new = bytes(range(24)), bytearray(b"\xff" * 24)
    run(code, old, new, start)
    assert bytes(new) == old
    rows = [row for title, found in transform_rows(po) for row in found if title.startswith("variable list: 24 bytes")]
    assert ("name at 0", "name at 0", "pointer to char") in rows
    assert transforms_json(po)[2]["kind"] == "staying"


def test_a_kind_that_does_not_fit_its_entry_is_refused() -> None:
    data = encode(sample())
    at = data.index((0x404080).to_bytes(8, "little") + bytes(8) + (4).to_bytes(8, "little"))
    for kind in (2, 3, 4):
        forged = seal(data[: at + 28] + bytes([kind]) + data[at + 29 :])
        with pytest.raises(InvalidPatchError, match="neither a variable nor a type"):
            decode(forged, "x")


def test_a_damaged_table_is_refused_with_section_and_offset() -> None:
    data = encode(sample())
    at = data.index(b"zkatana\0")
    # The first rule of the first FDE: its register.
    rule = data.index(b"\x16\x68", at)
    forged = seal(data[: rule + 1] + b"\x6f" + data[rule + 2 :])
    with pytest.raises(InvalidPatchError, match=r"\.debug_frame: .* 0x39"):
        decode(forged, "x")


@pytest.mark.parametrize(
    ("alter", "text"),
    [
        (lambda d: replace(d, address=0), "no address"),
        (lambda d: replace(d, address=None), "neither a variable nor a type"),
        (lambda d: replace(d, symbol=None), "no new symbol, and does not stay as it is"),
        (lambda d: replace(d, symbol=99), "no symbol 99"),
        (lambda d: replace(d, transformation=replace(d.transformation, old_size=2)), "beyond the end of the old"),
    ],
)
def test_a_rule_of_the_model_is_asked_when_written(alter, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidPatchError, match=text):
        encode(replace(sample(), transforms=(alter(sample().transforms[0]),)))
