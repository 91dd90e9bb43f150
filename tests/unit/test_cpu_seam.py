"""The seam itself: each CPU has all that is asked for, and nothing outside of it names one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import katana_cc
from katana_cc.cpu import choice, native
from katana_cc.cpu.aarch64 import code as aarch64_code
from katana_cc.cpu.aarch64 import relocations as aarch64_relocations
from katana_cc.cpu.aarch64 import system as aarch64_system
from katana_cc.cpu.field import RelocationKind, fits, read, write
from katana_cc.cpu.interface import Instructions, Relocations
from katana_cc.cpu.stopped import Contexts, System, WayBack
from katana_cc.cpu.x86_64 import code as x86_64_code
from katana_cc.cpu.x86_64 import contexts as x86_64_contexts
from katana_cc.cpu.x86_64 import kinds as x86_64_kinds
from katana_cc.cpu.x86_64 import relocations as x86_64_relocations
from katana_cc.cpu.x86_64 import sigframe as x86_64_sigframe
from katana_cc.cpu.x86_64 import system as x86_64_system
from katana_cc.elf import constants as c
from katana_cc.errors import RefusedError

# mypy holds each module to its protocol here.
RELOCATIONS: tuple[Relocations, ...] = (x86_64_relocations, aarch64_relocations)
INSTRUCTIONS: tuple[Instructions, ...] = (x86_64_code, aarch64_code)
SYSTEMS: tuple[System, ...] = (x86_64_system, aarch64_system)
CONTEXTS: tuple[Contexts, ...] = (x86_64_contexts,)
WAYS_BACK: tuple[WayBack, ...] = (x86_64_sigframe,)

PACKAGE = Path(katana_cc.__file__).parent
NAMES_A_CPU = re.compile(r"\b(EM_(X86_64|AARCH64)|R_(X86_64|AARCH64)_\w+|cpu\.(x86_64|aarch64)|x86_64|aarch64)\b")


def asked(protocol: type) -> list[str]:
    """The members of a protocol."""
    return [name for name in vars(protocol) if not name.startswith("_")]


@pytest.mark.parametrize("machine", [c.EM_X86_64, c.EM_AARCH64])
def test_cpu_has_all_that_is_asked_for(machine: int) -> None:
    """A bug: a part that is only missed when a process is patched."""
    cpu = choice.of(machine)
    for protocol, part in ((Relocations, cpu.relocations), (Instructions, cpu.code), (System, cpu.system)):
        assert not [name for name in asked(protocol) if not hasattr(part, name)]
    assert machine == cpu.system.MACHINE


def test_only_the_seam_names_a_cpu() -> None:
    """A bug: knowledge of one CPU creeps in elsewhere."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).as_posix()
        if where.startswith("cpu/") or where == "elf/constants.py":
            continue
        text = re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text())  # docstrings and comments give examples
        found += [f"{where}: {m.group()}" for m in NAMES_A_CPU.finditer(text)]
    assert found == []


def test_unknown_machine_is_refused_by_number() -> None:
    with pytest.raises(RefusedError, match="machine 243 is not supported yet"):
        choice.of(243)
    assert choice.unsupported(c.EM_AARCH64).startswith("machine 183 (AArch64) is not supported yet")


def test_native_cpu_is_one_that_is_known() -> None:
    assert native.cpu.machine in choice.CPUS
    assert native.system is native.cpu.system


@pytest.mark.parametrize(("command", "status"), [("status", 3), ("log", 6)])
def test_commands_that_need_no_process_run_on_any_machine(tmp_path: Path, command: str, status: int) -> None:
    """A bug: a traceback, or no store can be read on a machine whose processes cannot be patched."""
    text = (
        "import os, sys; os.uname = lambda: os.uname_result(('Linux', 'host', '6', '1', 'riscv64'))\n"
        f"from katana_cc.cli.main import main; sys.exit(main(['{command}']))"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert ("riscv64 machine cannot be patched yet" in done.stderr) is (status == 3)


@pytest.mark.parametrize("known", RELOCATIONS, ids=["x86_64", "aarch64"])
def test_roles_are_types_that_can_be_applied(known: Relocations) -> None:
    """A bug: a patch carries a type that it then refuses to apply."""
    roles = {known.NONE, known.AS_RELAXED, *known.ABSOLUTE.values(), *known.RELATIVE.values()}
    roles |= known.CALLS | known.DIRECT | known.PLAIN | known.THREAD | known.THREAD_OFFSET
    for number in roles:
        assert known.relocation_kind(number, "here").name == known.NAMES[number]
    assert roles | known.PC_RELATIVE | known.GOT_RELATIVE <= known.EXTENTS.keys() == known.FIELD_SIZES.keys()


KINDS = [*x86_64_kinds.KINDS.values(), *aarch64_relocations.KINDS.values()]


@pytest.mark.parametrize("kind", [k for k in KINDS if k.width], ids=lambda k: k.name)
def test_what_is_written_is_read_back(kind: RelocationKind) -> None:
    """A bug: parts overlap, or reading and writing disagree; and other bits of an instruction change."""
    low, high = kind.bounds or (0, 1 << kind.bits)
    lowest = min(p.value_bit for p in kind.parts)
    held = sum(((1 << p.length) - 1) << p.value_bit for p in kind.parts)
    for background in (0x00, 0xFF, 0x5A):
        for value in (low, high - (1 << lowest), 0, 1 << lowest, low // 2 & -kind.alignment):
            value -= value % kind.alignment
            data = bytearray([background] * 12)
            write(kind, data, 4, value)
            assert data[:4] + data[4 + kind.width :] == bytes([background] * (12 - kind.width))
            word = int.from_bytes(data[4 : 4 + kind.width], "little")
            assert word & ~kind.mask == int.from_bytes(bytes([background] * kind.width), "little") & ~kind.mask
            assert read(kind, data, 4) & held == value & held
    if kind.bounds is not None:
        step = max(kind.alignment, 1)
        assert fits(kind, low) or low % step
        assert fits(kind, high - step)
        assert not fits(kind, high)
        assert not fits(kind, low - step)
