"""AArch64 branches, stubs, veneers and calls: read back by objdump, and run by an emulator that enforces BTI."""

from __future__ import annotations

import re
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from katana_cc.cpu.aarch64 import branches, code, system
from katana_cc.elf import constants as c
from katana_cc.elf.dynamic import DynamicTables
from katana_cc.errors import RefusedError
from tests.support.aarch64 import Output, assembled, disassembled, linked

PLACE = 0xAAAA_0000_1000
EXIT = "mov x8, #93\n svc #0\n"  # exit(x0)


def text_of(folder: Path, text: str) -> bytes:
    """The bytes of assembled code."""
    elf = assembled(folder, f".text\n{text}\n")
    section = elf.section(".text")
    assert section is not None
    return elf.contents(section)


@pytest.mark.parametrize("distance", [0, 4, -4, 0x1234, (1 << 27) - 4, -(1 << 27)])
def test_jump_is_read_back_by_the_disassembler(tmp_path: Path, distance: int) -> None:
    """A bug: the distance is in bytes, or its sign is lost."""
    text = disassembled(tmp_path, code.jump(PLACE, PLACE + distance), PLACE)
    assert re.search(rf"\tb\t{PLACE + distance:#x}$", text, re.MULTILINE)


@pytest.mark.parametrize("distance", [1 << 27, -(1 << 27) - 4, 2, 1])
def test_jump_out_of_reach_is_refused(distance: int) -> None:
    """A bug: the distance wraps, and the jump goes the other way; or it is cut to whole instructions."""
    with pytest.raises(RefusedError):
        code.jump(PLACE, PLACE + distance)
    with pytest.raises(RefusedError):
        code.jump(PLACE + 2, PLACE + 2)


def test_far_jump_is_read_back(tmp_path: Path) -> None:
    """A bug: the load is not from behind the branch."""
    far = branches.far_jump(0x1234_5678_9ABC_DEF0)
    assert len(far) == branches.FAR_JUMP_SIZE
    text = disassembled(tmp_path, far, PLACE)
    assert f"ldr\tx16, {PLACE + 8:#x}" in text
    assert "br\tx16" in text
    assert struct.unpack_from("<Q", far, 8) == (0x1234_5678_9ABC_DEF0,)


@pytest.mark.parametrize("slot", [PLACE + 0x2FF8, PLACE - 0x1000, PLACE + (1 << 32) - 0x1008])
def test_stub_goes_through_its_slot(tmp_path: Path, slot: int) -> None:
    """A bug: the page or the rest is another slot's."""
    stub = code.stub(PLACE + 8, slot)
    assert len(stub) == code.STUB_SIZE
    text = disassembled(tmp_path, stub, PLACE + 8)
    assert f"adrp\tx16, {slot & -4096:#x}" in text
    assert f"ldr\tx17, [x16, #{slot & 0xFFF}]" in text.replace("[x16]", "[x16, #0]")
    assert f"add\tx16, x16, #{slot & 0xFFF:#x}" in text
    assert "br\tx17" in text
    assert code.stub_slot(PLACE + 8, stub) == slot
    assert code.stub_slot(PLACE + 4, branches.words(branches.BTI_C) + stub) == slot


@pytest.mark.parametrize("linker", ["aarch64-linux-gnu-ld", "ld.lld"])
@pytest.mark.parametrize("options", [(), ("-z", "force-bti"), ("-z", "pac-plt")], ids=str)
def test_stubs_of_linkers_are_understood(tmp_path: Path, linker: str, options: tuple[str, ...]) -> None:
    """A bug: a call through a stub counts as one of something else."""
    assembled(tmp_path, ".globl f\nf: bl elsewhere\n bl another\n ret\n")
    output = linked(tmp_path, linker, "-shared", *options)
    start = output.address("f")
    found = []
    for at in (0, 4):
        target = branches.branch_target(output.elf.read(start, 8), at)
        assert target is not None
        slot = code.stub_slot(start + target, output.elf.read(start + target, 16))
        assert slot is not None
        found.append(DynamicTables(output.elf).relocations[slot].symbol)
    assert found == ["elsewhere", "another"]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("b .+8", 8),
        ("bl .-12", -12),
        ("b.ne .+0xffffc", 0xFFFFC),
        ("b.al .-0x100000", -0x100000),
        ("cbz w3, .+16", 16),
        ("cbnz x3, .-16", -16),
        ("tbz x3, #40, .+0x7ffc", 0x7FFC),
        ("tbnz w3, #1, .-0x8000", -0x8000),
        ("br x3", None),
        ("blr x3", None),
        ("ret", None),
        ("adr x3, .+8", None),
        ("nop", None),
        ("ldr x3, .+8", None),
        ("svc #0", None),
    ],
)
def test_every_direct_branch_is_seen(tmp_path: Path, text: str, target: int | None) -> None:
    """A bug: a loop whose head is under the jump is allowed to be active."""
    assert branches.branch_target(text_of(tmp_path, text), 0) == target


def test_branches_back_into_the_first_bytes_are_seen(tmp_path: Path) -> None:
    loop = text_of(tmp_path, "f: nop\n nop\n1: subs w0, w0, #1\n b.ne 1b\n cbz w1, f\n ret")
    assert code.branches_into(loop, 8, 12)
    assert code.branches_into(loop, 0, 4)
    assert not code.branches_into(loop, 4, 8)


@pytest.mark.parametrize(
    ("text", "names"),
    [("bti c", "BTI_C"), ("bti j", "BTI_J"), ("bti jc", "BTI_JC"), ("paciasp", "PACIASP"), ("pacibsp", "PACIBSP"),
     ("nop", "NOP"), ("brk #0", "BRK")],
)  # fmt: skip
def test_constants_are_those_of_the_assembler(tmp_path: Path, text: str, names: str) -> None:
    assert text_of(tmp_path, text) == branches.words(getattr(branches, names))


def test_system_call_instruction_is_that_of_the_assembler(tmp_path: Path) -> None:
    assert text_of(tmp_path, "svc #0") == system.SYSCALL_INSTRUCTION
    assert text_of(tmp_path, "b .") == system.SPIN
    assert text_of(tmp_path, "mov x8, #101\n mov w8, #101") == bytes.fromhex("a80c80d2 a80c8052")


def test_what_may_be_exchanged_while_it_runs(tmp_path: Path) -> None:
    """A bug: an instruction is written over one that another core may be in the midst of."""
    texts = ("b .", "bl .", "nop", "brk #7", "svc #3", "isb", "mov x0, x1", "stp x29, x30, [sp, #-16]!", "bti c")
    of = {text: branches.word_at(text_of(tmp_path, text), 0) for text in texts}
    assert all(branches.may_be_exchanged(of[a], of["b ."]) for a in ("bl .", "nop", "brk #7", "svc #3", "isb"))
    assert not any(branches.may_be_exchanged(of[a], of["b ."]) for a in texts[6:])
    assert not branches.may_be_exchanged(of["nop"], of["bti c"])


@pytest.mark.parametrize(("text", "is_padding"), [(".p2align 5", True), (".skip 32", True), ("mov x0, x0", False)])
def test_padding_is_that_of_the_assembler(tmp_path: Path, text: str, is_padding: bool) -> None:
    padding = text_of(tmp_path, f"ret\n{text}\n")[4:]
    assert code.is_padding(padding, len(padding)) is is_padding
    assert code.is_padding(branches.words(branches.BRK) * 2, 8)


def test_constants_of_arguments_are_found(tmp_path: Path) -> None:
    """A bug: the register counts as part of the number."""
    text = text_of(
        tmp_path, "mov w1, #1234\n mov x2, #77\n movk w1, #1, lsl #16\n add w0, w0, #9\n movz w3, #5, lsl #16"
    )
    found = list(code.constants_moved(text))
    assert [(f.start, f.value(text)) for f in found] == [(0, 1234), (4, 77)]
    other = text_of(tmp_path, "mov w2, #1234\n mov x2, #78")
    assert found[0].around(text) != found[0].around(other)
    assert found[1].around(text) == found[1].around(other)


# Run.  `before` returns 1, `after` 42; what is written makes the program exit with 42.
SOURCE = """
.globl _start, before, after, near, slot
_start:
 {call}
 {exit}
.p2align 4
before: {head}
 mov x0, #1
 {tail}
 ret
.p2align 4
after: {head}
 mov x0, #42
 {tail}
 ret
.p2align 4
near: .skip 64
.data
.p2align 4
slot: .quad after
variable: .quad 42
"""
DIRECT, INDIRECT = "bl before", "adr x9, before\n blr x9"
SIGN = ("paciasp", "autiasp")


def program(folder: Path, call: str, head: str = "nop", tail: str = "nop") -> Output:
    """The program, linked for a process that enforces BTI: where a pad is missing the emulator says so."""
    assembled(folder, SOURCE.format(call=call, exit=EXIT, head=head, tail=tail))
    return linked(folder, "ld.lld", "-z", "force-bti", "-Tdata", "0x700000")


def entry(o: Output) -> dict[int, bytes]:
    """The jump over the beginning of `before`."""
    place = o.address("before")
    return {place: branches.entry_jump(o.elf.read(place, 16), place, o.address("after"))}


@pytest.mark.parametrize(
    ("call", "head", "tail"),
    [(DIRECT, "nop", "nop"), (DIRECT, "bti c", "nop"), (INDIRECT, "bti c", "nop"), (INDIRECT, "bti jc", "nop"),
     (DIRECT, *SIGN), (INDIRECT, *SIGN)],
)  # fmt: skip
def test_function_is_entered_by_its_jump(tmp_path: Path, call: str, head: str, tail: str) -> None:
    """A bug: the landing pad is gone (SIGILL), or a return address is signed twice (it leads nowhere)."""
    made = program(tmp_path, call, head, tail)
    assert made.run() == 1
    assert made.patched(entry(made)).run() == 42


def test_emulator_enforces_landing_pads(tmp_path: Path) -> None:
    """What the test above relies on: a jump over the pad itself is fatal to an indirect call."""
    made = program(tmp_path, INDIRECT, "bti c")
    place = made.address("before")
    assert made.patched({place: code.jump(place, made.address("after"))}).run() == -signal.SIGILL


def far_entry(o: Output) -> dict[int, bytes]:
    """A jump to a far jump nearby."""
    place = o.address("before")
    return {
        place: branches.entry_jump(o.elf.read(place, 16), place, o.address("near")),
        o.address("near"): branches.far_jump(o.address("after")),
    }


def through_stub(o: Output) -> dict[int, bytes]:
    """The call of `before` made one of a stub."""
    start = o.address("_start")
    call = branches.word_at(code.jump(start, o.address("near")), 0) | 1 << 31
    return {start: branches.words(call), o.address("near"): code.stub(o.address("near"), o.address("slot"))}


@pytest.mark.parametrize("make", [far_entry, through_stub])
def test_long_ways_lead_there(tmp_path: Path, make: Callable[[Output], dict[int, bytes]]) -> None:
    """A bug: they do, but land where no pad for them is."""
    made = program(tmp_path, DIRECT, "bti c")
    assert made.run() == 1
    assert made.patched(make(made)).run() == 42


def test_variable_out_of_reach_is_used_through_a_veneer(tmp_path: Path) -> None:
    """The variable is near here; the veneer names it by its whole address all the same."""
    use = "adrp x3, variable\n ldr x0, [x3, :lo12:variable]"
    elf = assembled(tmp_path, SOURCE.format(call=use, exit=EXIT, head="nop", tail="nop"))
    made = linked(tmp_path, "ld.lld", "-Tdata", "0x7f0123456780", "--image-base", "0x7f0123400000")
    text = elf.section(".text")
    assert text is not None
    field = next(r.offset for r in elf.relocations(text.number) if r.type == c.R_AARCH64_ADR_PREL_PG_HI21)
    start, data = made.address("_start"), elf.contents(text)
    span = code.far_use(data, field, (r.offset for r in elf.relocations(text.number)))
    assert span == (field, field + 4, field)
    instead, veneer = code.veneer(data, field, made.address("variable"), made.address("near"), start + span.end)
    assert made.run() == 42
    broken = made.patched({start + field: branches.words(branches.BRK)})
    assert broken.run() == -signal.SIGTRAP
    assert made.patched({start + field: instead, made.address("near"): veneer}).run() == 42


def test_nothing_else_is_used_from_afar(tmp_path: Path) -> None:
    """A bug: a load or a branch is taken for the computation of an address."""
    for text in ("ldr x0, .+8", "bl .+8", "add x0, x0, #1"):
        assert code.far_use(text_of(tmp_path, text), 0, (0,)) is None


BLOCKS = """
.globl _start, allocate, release
.p2align 4
allocate: .skip {allocate}
release: .skip {release}
malloc:  // 16 bytes a time, as long as `left` is not 0; it spoils what a function may spoil
 adr x9, left
 ldr x10, [x9]
 cbz x10, 1f
 sub x10, x10, #1
 str x10, [x9]
 adr x11, room
 add x0, x11, x10, lsl #4
 mov x1, #-1
 mov x2, #-1
 mov x3, #-1
 mov x12, #-1
 mov x18, #-1
 ret
1: mov x0, #0
 ret
free:  // adds up what it is given
 adr x9, sum
 ldr x10, [x9]
 add x10, x10, x0
 str x10, [x9]
 mov x1, #-1
 mov x2, #-1
 ret
_start:
 mov x19, #7
 mov x23, #9
 adr x0, malloc
 mov x1, #16
 mov x2, #{count}
 adr x3, blocks
 mov x24, sp
 bl allocate
 mov x25, x0
 cmp x19, #7
 b.ne bad
 cmp x23, #9
 b.ne bad
 mov x9, sp
 cmp x24, x9
 b.ne bad
 adr x0, free
 adr x1, blocks
 mov x2, x25
 bl release
 // the blocks add up to what was freed
 mov x12, #0
 mov x13, #0
 adr x14, blocks
2: cmp x12, x25
 b.hs 3f
 ldr x15, [x14, x12, lsl #3]
 add x13, x13, x15
 add x12, x12, #1
 b 2b
3: adr x9, sum
 ldr x10, [x9]
 cmp x10, x13
 b.ne bad
 mov x0, x25
 {exit}
bad: mov x0, #99
 {exit}
.p2align 4
left: .quad {left}
sum: .quad 0
blocks: .skip 512
room: .skip 1024
"""


@pytest.mark.parametrize(("count", "left", "got"), [(5, 20, 5), (20, 20, 20), (9, 4, 4), (0, 4, 0)])
def test_blocks_are_allocated_and_released(tmp_path: Path, count: int, left: int, got: int) -> None:
    """A bug: a register that a call preserves is lost, or the loop ends one too early or late."""
    sizes = {"allocate": len(system.ALLOCATE), "release": len(system.RELEASE)}
    assembled(tmp_path, BLOCKS.format(**sizes, count=count, left=left, exit=EXIT))
    made = linked(tmp_path, "ld.lld", "-N")
    there = {made.address("allocate"): system.ALLOCATE, made.address("release"): system.RELEASE}
    assert made.patched(there).run() == got


def test_routines_are_what_their_comments_say(tmp_path: Path) -> None:
    """A bug: a byte of the machine code is mistyped where no run shows it."""
    text = disassembled(tmp_path, system.ALLOCATE + system.RELEASE, 0)
    assert "undefined" not in text
    assert text.count("ret") == 2
    assert text.count("blr\tx19") == 2
