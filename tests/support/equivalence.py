"""Whether a patch object means what the new build means, judged from the two linked outputs alone.

For every carried function and object that the new output's symbol table knows: the same bytes, and each relocated
field leads, as the new link resolved it, to what the patch object's relocation names.  Nothing of the diff is used: an
existing thing is known by the name that the old output's symbol table has at its address, a new one by the name in the
new output's, an import by its PLT stub (as objdump labels it) or by its dynamic relocation, a literal by its contents.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from katana_cc.cpu.x86_64.relocations import EXTENTS, GOT_RELATIVE, PC_RELATIVE
from katana_cc.elf import constants as c
from katana_cc.elf.dynamic import DynamicTables
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError
from katana_cc.patch.model import PatchObject, PatchRelocation, PatchSection, PatchSymbol

_STUB = re.compile(r"^([0-9a-f]+) <(.+)[@$]plt>:$", re.MULTILINE)
_THREAD = (c.R_X86_64_TPOFF32, c.R_X86_64_GOTTPOFF)


def stem(name: str) -> str:
    """The name without file and number: `a.c:n.0` → `n`, and clang's `f.n` → `n`."""
    name = re.sub(r"^.*:", "", name)
    return re.sub(r"(\.(\d+|cold|part|isra|constprop|llvm))+$", "", name)


class Output:
    """A linked output as its symbol table tells it."""

    def __init__(self, path: Path) -> None:
        self.elf = ElfFile(path.read_bytes(), str(path))
        self.tables = DynamicTables(self.elf)
        self.names: dict[int, set[str]] = {}
        self.at: dict[str, list[int]] = {}
        self.sizes: dict[tuple[str, int], int] = {}
        self.threads: dict[int, set[str]] = {}
        for s in self.elf.symbols:
            if s.section == c.SHN_UNDEF or not s.name:
                continue
            if s.type == c.STT_TLS:
                self.threads.setdefault(s.value, set()).add(stem(s.name))
            elif s.type in (c.STT_FUNC, c.STT_OBJECT, c.STT_NOTYPE, c.STT_GNU_IFUNC):
                self.names.setdefault(s.value, set()).add(stem(s.name.split("@")[0]))
                self.at.setdefault(s.name, []).append(s.value)
                self.sizes[s.name, s.value] = s.size
        text = subprocess.run(["objdump", "-d", path], check=True, capture_output=True, text=True).stdout
        self.stubs = {int(a, 16): self._meant(n.split("@")[0]) for a, n in _STUB.findall(text)}
        self.thread_size = next(
            (s.memory_size + -s.memory_size % s.alignment for s in self.elf.segments if s.type == c.PT_TLS), 0
        )

    def in_stubs(self, address: int) -> bool:
        """Whether there is a procedure linkage table at `address`."""
        return any(
            s.name.startswith((".plt", ".iplt")) and 0 <= address - s.address < s.size for s in self.elf.sections
        )

    def _meant(self, label: str) -> str:
        """What a PLT stub leads to; that of a program's own IFUNC is labelled `*ABS*+0x1139`, by its resolver."""
        if not label.startswith("*ABS*+"):
            return label
        names = self.names.get(int(label.removeprefix("*ABS*+"), 16), {label})
        kinds = {s.name for s in self.elf.symbols if s.type == c.STT_GNU_IFUNC}
        return next(iter(sorted(names & kinds)), label)

    def read(self, address: int, size: int) -> bytes:
        """What is linked to an address; nothing where nothing is (a wrong guess among several of one name)."""
        try:
            return self.elf.read(address, size)
        except FormatError:
            return b""


def inequivalences(po: PatchObject, old_path: Path, new_path: Path) -> list[str]:
    """All places where the patch object and the new build differ, a sentence each."""
    checker = _Checker(po, Output(old_path), Output(new_path))
    found: list[str] = []
    for number, section in enumerate(po.sections):
        if not section.flags & c.SHF_ALLOC or section.flags & c.SHF_MERGE or section.name == ".eh_frame":
            continue
        places = checker.places(number)
        if places:
            attempts = [list(checker.compare(section, address)) for address in places]
            best: list[str] = min(attempts, key=_count)
            found += best
    for edit in po.data_edits:
        # One that nothing reads may not have been linked; then another of its name has another size, or there is none.
        size = po.sections[edit.replacement].size
        places = [a for a in checker.new.at.get(edit.name, []) if checker.new.sizes.get((edit.name, a), size) == size]
        attempts = [list(checker.compare(po.sections[edit.replacement], address)) for address in places]
        best = min(attempts, key=_count, default=[])
        found += best
    return found


def _count(problems: list[str]) -> int:
    return len(problems)


class _Checker:
    def __init__(self, po: PatchObject, old: Output, new: Output) -> None:
        self.po, self.old, self.new = po, old, new
        self._places: dict[int, list[int]] = {}
        self._is_code = True

    def places(self, number: int) -> list[int]:
        """Where a carried section may be in the new output."""
        if number not in self._places:
            names = [
                y.name for y in self.po.symbols
                if y.section == number and y.name and y.value == 0 and y.type in (c.STT_FUNC, c.STT_OBJECT)
            ]  # fmt: skip
            found = [a for name in names for a in self.new.at.get(name, ())]
            self._places[number] = list(dict.fromkeys(found))
        return self._places[number]

    def compare(self, section: PatchSection, address: int) -> Iterator[str]:
        self._is_code = bool(section.flags & c.SHF_EXECINSTR)
        data = self.new.read(address, section.size)
        free: set[int] = set()
        for r in section.relocations:
            before, after = EXTENTS[r.type]
            free |= set(range(r.offset - before, r.offset + after))
        if len(data) != section.size:
            yield f"{section.name}: the new output does not hold it at {address:#x}"
            return
        if section.data:
            for at, (a, b) in enumerate(zip(section.data, data, strict=True)):
                if a != b and at not in free:
                    yield f"{section.name}+{at:#x}: {a:02x} is {b:02x} in the new output"
                    return
        for r in section.relocations:
            if not self._agrees(r, data, address):
                name = self.po.symbols[r.symbol].name or f"section {self.po.symbols[r.symbol].section}"
                yield f"{section.name}+{r.offset:#x}: type {r.type} to {name}{r.addend:+#x} disagrees"

    def _agrees(self, r: PatchRelocation, data: bytes, address: int) -> bool:
        width = 8 if r.type in (c.R_X86_64_64, c.R_X86_64_PC64) else 4
        signed = r.type not in (c.R_X86_64_64, c.R_X86_64_32)
        value = int.from_bytes(data[r.offset : r.offset + width], "little", signed=signed)
        if r.type in _THREAD:
            return self._agrees_thread(r, value)
        if r.type == c.R_X86_64_64:
            dynamic = self.new.tables.relocations.get(address + r.offset)
            if dynamic is not None and dynamic.symbol:
                return self._means(r, 0, dynamic.symbol, dynamic.addend)
            return self._means(r, dynamic.addend if dynamic is not None else value, "", 0)
        if r.type in PC_RELATIVE:
            value += address + r.offset
        if r.type in GOT_RELATIVE:
            return self._agrees_slot(r, value, data, address)
        return self._means(r, value, "", 0)

    def _agrees_slot(self, r: PatchRelocation, value: int, data: bytes, address: int) -> bool:
        """Through a slot, or relaxed (psABI, B.2): to `lea`, to an immediate, or to a direct call or jump and a nop."""
        slot = value + 4
        dynamic = self.new.tables.relocations.get(slot)
        if dynamic is not None and dynamic.symbol:
            return self._means(r, 0, dynamic.symbol, r.addend)
        points = [value, value - address - r.offset - 4]
        if data[r.offset - 2] in (0xE8, 0xE9) and data[r.offset + 3] == 0x90:
            field = int.from_bytes(data[r.offset - 1 : r.offset + 3], "little", signed=True)
            points.append(address + r.offset - 1 + field)
        if dynamic is not None:
            points.append(dynamic.addend - 4)
        elif any(s.address <= slot < s.address + s.size for s in self.new.elf.sections if s.flags & c.SHF_ALLOC):
            points.append(int.from_bytes(self.new.read(slot, 8), "little") - 4)
        return any(self._means(r, point, "", 0) for point in points)

    def _means(self, r: PatchRelocation, point: int, name: str, name_addend: int) -> bool:
        """Whether `point` (S + A in the new output), or the import `name`, is what the relocation's symbol is."""
        y = self.po.symbols[r.symbol]
        bias = 0
        if r.type in PC_RELATIVE:
            # An instruction counts from its end, a table of distances (clang's reltable) from its own start.
            bias = 4 if self._is_code else -r.offset
        start = point - r.addend
        if name:
            same = stem(name) == stem(y.name) or (
                y.section is not None and any(stem(z.name) == stem(name) for z in self._symbols(y.section))
            )
            return same and name_addend == r.addend
        if y.section is None and y.value == 0:
            stub = self.new.stubs.get(point + bias, "")
            if stub == y.name:
                return True
            return y.name in self.new.names.get(start, ()) or (y.binding == c.STB_WEAK and start in (0, -bias))
        if y.section is None:
            if y.type == c.STT_GNU_IFUNC and self.new.in_stubs(point + bias):
                return True  # lld's stubs have no label
            wanted = self.old.names.get(y.value, set())
            wanted = wanted or {stem(y.name)}
            stub = self.new.stubs.get(point + bias, "")
            return bool(wanted & self.new.names.get(start, set())) or stub in wanted
        section = self.po.sections[y.section]
        if section.flags & c.SHF_MERGE:
            at = r.addend + y.value + bias
            # Just before a literal (`"abc"[i - 1]`): compare the literal.
            point, at = point - min(at, 0), max(at, 0)
            if section.flags & c.SHF_STRINGS:
                end = section.data.index(bytes(section.entry_size), at) + section.entry_size
            else:
                end = at - at % section.entry_size + section.entry_size  # clang copies a constant half by half
            if self.new.read(point + bias, end - at) == section.data[at:end]:
                return True
            # `literal + 16` counted up to, from below: the one that ends there.
            size = section.entry_size
            is_end = r.type == c.R_X86_64_32S and at >= size and not at % size
            return is_end and self.new.read(point - size, size) == section.data[at - size : at]
        places = self.places(y.section)
        stub = self.new.stubs.get(point + bias, "")
        if stub and any(z.name == stub for z in self._symbols(y.section)):
            return True
        # What no symbol names (jump tables) is compared where a symbol names its user.
        return not places or start - y.value in places

    def _symbols(self, section: int) -> Iterator[PatchSymbol]:
        return (z for z in self.po.symbols if z.section == section and z.name)

    def _agrees_thread(self, r: PatchRelocation, value: int) -> bool:
        if r.type == c.R_X86_64_GOTTPOFF:
            return True
        y = self.po.symbols[r.symbol]
        offset = value - r.addend + self.new.thread_size
        return stem(y.name) in self.new.threads.get(offset, set())
