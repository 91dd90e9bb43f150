"""AArch64 programs on any machine: assembled, linked, disassembled, and run by an emulator.

Nothing here is skipped where a tool is missing: `make deps` names them all.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile

PREFIX = "aarch64-linux-gnu-"
LINKERS = (f"{PREFIX}ld", "ld.lld")


def tool(*words: str | Path, fails: bool = False) -> str:
    """Run a tool, give its output; `fails`: it must, and its complaint is given."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    assert bool(done.returncode) is fails, done.stderr or done.stdout
    return done.stderr if fails else done.stdout


def assembled(folder: Path, text: str, name: str = "a", *, with_clang: bool = False) -> ElfFile:
    """An object of the GNU assembler, or clang's, `name`.o."""
    (folder / f"{name}.s").write_text(text)
    words = ("clang", "--target=aarch64-linux-gnu", "-c") if with_clang else (f"{PREFIX}as",)
    tool(*words, "-march=armv8.5-a", folder / f"{name}.s", "-o", folder / f"{name}.o")
    return ElfFile((folder / f"{name}.o").read_bytes())


def compiled(folder: Path, text: str, *options: str, name: str = "a") -> ElfFile:
    """An object of clang, for a program without a C library."""
    (folder / f"{name}.c").write_text(text)
    tool(
        "clang", "--target=aarch64-linux-gnu", "-ffreestanding", "-fno-stack-protector", *options, "-c",
        folder / f"{name}.c", "-o", folder / f"{name}.o",
    )  # fmt: skip
    return ElfFile((folder / f"{name}.o").read_bytes())


@dataclass(frozen=True, slots=True)
class Output:
    """A linked file and what is known of it."""

    path: Path
    elf: ElfFile

    def address(self, name: str) -> int:
        """Of a symbol."""
        return next(s.value for s in self.elf.symbols if s.name == name)

    def patched(self, edits: dict[int, bytes]) -> Output:
        """A copy with other bytes at some addresses."""
        data = bytearray(self.path.read_bytes())
        for address, new in edits.items():
            segment = next(s for s in self.elf.segments if s.type == c.PT_LOAD and 0 <= address - s.vaddr < s.file_size)
            at = segment.offset + address - segment.vaddr
            data[at : at + len(new)] = new
        path = self.path.with_suffix(".patched")
        path.write_bytes(data)
        path.chmod(0o755)
        return Output(path, ElfFile(bytes(data)))

    def run(self) -> int:
        """Exit status under an emulator; negative: the signal that ended it."""
        done = subprocess.run(["qemu-aarch64", "-cpu", "max", self.path], capture_output=True, check=False, timeout=60)
        return done.returncode


def linked(folder: Path, linker: str, *words: str, names: tuple[str, ...] = ("a",)) -> Output:
    """What a linker makes of objects."""
    path = folder / f"{linker}.out"
    tool(linker, *words, *(folder / f"{n}.o" for n in names), "-o", path)
    return Output(path, ElfFile(path.read_bytes()))


def disassembled(folder: Path, code: bytes, address: int) -> str:
    """objdump's reading of raw code."""
    raw = folder / "code.bin"
    raw.write_bytes(code)
    return tool(f"{PREFIX}objdump", "-D", "-b", "binary", "-maarch64", f"--adjust-vma={address:#x}", raw)
