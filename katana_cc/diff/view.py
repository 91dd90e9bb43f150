"""One object seen by the diff: what kind each section is, and what each relocation refers to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property

from katana_cc.cpu.choice import of
from katana_cc.cpu.interface import Instructions, Relocations
from katana_cc.diff.frames import FrameEntry, read_frames
from katana_cc.diff.keys import CanonicalKeys
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile, Relocation, Section, Symbol
from katana_cc.recorder.record import literal_at, stem


class Kind(Enum):
    """What a section holds, as far as patching is concerned."""

    FUNCTION = auto()  # one function (aliases count as one)
    CODE = auto()  # several functions, or code without symbols
    DATA = auto()  # writable, .bss included
    CONST = auto()  # read-only with a name: an object a program can point at
    ANONYMOUS = auto()  # read-only without a name: jump tables, initialisers of aggregates
    LITERAL = auto()  # mergeable strings and constants: identity does not count
    THREAD = auto()  # thread-local
    FRAMES = auto()  # .eh_frame
    EXCEPTIONS = auto()  # .gcc_except_table
    INDIRECT = (
        auto()
    )  # pointers that only those two go through (DW.ref._ZTI5Error): the compiler's own, without identity
    STARTUP = auto()  # .init_array and the like
    IGNORED = auto()  # notes that only the linker and the loader read
    OTHER = auto()  # anything else: compared as a whole, refused when it differs


@dataclass(frozen=True, slots=True)
class Reference:
    """What one relocation refers to.

    Exactly one of these holds: `literal` is not None (a literal by content), `section` > 0 (a section of the same
    object; `base` is the symbol's offset in it), or `name` alone (a symbol of another object, or absolute with
    `section` == -1).
    """

    relocation: Relocation
    name: str
    section: int
    base: int
    literal: bytes | None
    branch: bool
    weak: bool
    by_section: bool  # through the section's own symbol: the addend alone tells where
    bias: int = 0  # of a literal by section: what the field's distance to the end of its instruction adds

    @property
    def addend(self) -> int:
        """r_addend."""
        return self.relocation.addend


_WHITE = b"\t\n\r\x1b\a\b\f\v"


RELRO = ".data.rel.ro"
UNNAMED_SECTIONS = (".rodata", ".lrodata", RELRO)  # how the names of sections begin that may hold unnamed constants
_IGNORED_NAMES = (".note.gnu.property", ".note.GNU-stack", ".note.ABI-tag", ".llvm_addrsig")


class ObjectView:
    """An object file as the diff reads it."""

    def __init__(self, elf: ElfFile) -> None:
        self.elf = elf
        self.cpu = of(elf.machine)
        self.keys = CanonicalKeys(elf)
        self._references: dict[int, tuple[Reference, ...]] = {}
        self._ends: dict[int, Mapping[int, int]] = {}

    @property
    def relocations(self) -> Relocations:
        """What is known of its relocation types."""
        return self.cpu.relocations

    @property
    def code(self) -> Instructions:
        """What is known of its instructions."""
        return self.cpu.code

    def pc_bias(self, kind: int) -> int:
        """What to add to an addend of that type in code, where an instruction ends with its field."""
        return self.relocations.BIAS if kind in self.relocations.PC_RELATIVE else 0

    def _bias(self, r: Relocation, code: bytes) -> int | None:
        """What must be added to the addend to get the offset pointed at; None when the instruction would have to be
        known.

        A table of distances (clang's `reltable`) counts from its start, which for its first field is the field.
        """
        if r.type not in self.relocations.PC_RELATIVE or (not code and not r.offset):
            return 0
        return self.code.bias(code, r.offset)

    @cached_property
    def file(self) -> str:
        """The STT_FILE symbol: the source file's name."""
        return next((s.name for s in self.elf.symbols if s.type == c.STT_FILE), "")

    @cached_property
    def symbols_in(self) -> dict[int, list[Symbol]]:
        """Section → the named symbols defined there, by offset, functions and objects first."""
        found: dict[int, list[Symbol]] = {}
        for s in self.elf.symbols:
            if (
                s.name
                and s.section
                and s.section < len(self.elf.sections)
                and s.type not in (c.STT_FILE, c.STT_SECTION)
            ):
                found.setdefault(s.section, []).append(s)
        for symbols in found.values():
            symbols.sort(key=lambda s: (s.value, s.type == c.STT_NOTYPE, s.binding == c.STB_LOCAL, s.name))
        return found

    @cached_property
    def undefined(self) -> frozenset[str]:
        """Names the object takes from others."""
        return frozenset(s.name for s in self.elf.symbols if s.name and s.section == c.SHN_UNDEF)

    @cached_property
    def allocated(self) -> tuple[Section, ...]:
        """All allocated sections that hold something."""
        return tuple(s for s in self.elf.sections if s.flags & c.SHF_ALLOC and s.size)

    @cached_property
    def kinds(self) -> dict[int, Kind]:
        """Section → kind, for the allocated ones."""
        return {s.number: self._kind(s) for s in self.allocated}

    def _kind(self, s: Section) -> Kind:
        symbols = self.symbols_in.get(s.number, [])
        if s.name == ".eh_frame" or s.type == c.SHT_X86_64_UNWIND:
            return Kind.FRAMES
        if s.name.startswith(".gcc_except_table"):
            return Kind.EXCEPTIONS
        if s.type in (c.SHT_INIT_ARRAY, c.SHT_FINI_ARRAY, c.SHT_PREINIT_ARRAY) or s.name.startswith(
            (".ctors", ".dtors")
        ):
            return Kind.STARTUP
        if s.type == c.SHT_NOTE or s.name in _IGNORED_NAMES:
            return Kind.IGNORED
        if s.flags & c.SHF_EXECINSTR:
            starts = {x.value for x in symbols if x.type in (c.STT_FUNC, c.STT_GNU_IFUNC)}
            return Kind.FUNCTION if starts == {0} else Kind.CODE
        if s.flags & c.SHF_TLS:
            return Kind.THREAD
        if s.flags & c.SHF_MERGE and not self.elf.relocations(s.number):
            return Kind.LITERAL
        relro = s.name.startswith(RELRO)
        if self._is_indirect(s, symbols):
            return Kind.INDIRECT
        if s.flags & c.SHF_WRITE and not relro:
            # Any other name may be a linker set (`__start_NAME`), or mean something to a linker script.
            return Kind.DATA if s.name.startswith((".data", ".bss", ".ldata", ".lbss")) else Kind.OTHER
        if s.name.startswith(UNNAMED_SECTIONS):
            return Kind.CONST if any(x.type == c.STT_OBJECT for x in symbols) else Kind.ANONYMOUS
        return Kind.OTHER

    def _is_indirect(self, s: Section, symbols: list[Symbol]) -> bool:
        """gcc has a section for each such pointer, clang those without a name together in `.data`."""
        if not s.name.startswith(".data") or any(not x.name.startswith("DW.ref.") for x in symbols):
            return False
        fields = self.elf.relocations(s.number)
        if {(r.offset, r.type) for r in fields} != {(at, self.relocations.ABSOLUTE[8]) for at in range(0, s.size, 8)}:
            return False
        return bool(symbols) or s.number not in self._pointed_at

    @cached_property
    def _pointed_at(self) -> frozenset[int]:
        """Sections that something allocated refers to, exception tables and frames left out."""
        tables = (".gcc_except_table", ".eh_frame")
        users = (x for x in self.allocated if not x.name.startswith(tables))
        return frozenset(self.elf.symbols[r.symbol].section for x in users for r in self.elf.relocations(x.number))

    @cached_property
    def frames(self) -> Mapping[int, tuple[FrameEntry, ...]]:
        """Code section → its FDEs."""
        return read_frames(self)

    @cached_property
    def has_handlers(self) -> bool:
        """Whether any function of the object catches or cleans up: a personality routine does nothing without a
        table."""
        return Kind.EXCEPTIONS in self.kinds.values()

    def pointee(self, reference: Reference) -> Reference | None:
        """What the pointer means that an exception table goes through; None when it is no pointer of that kind."""
        if self.kinds.get(reference.section) is not Kind.INDIRECT:
            return None
        at = reference.base + reference.addend
        return next((r for r in self.references(reference.section) if r.relocation.offset == at), None)

    def label(self, section: int) -> str:
        """The name of what a section holds: its first symbol, else the section's own name."""
        symbols = self.symbols_in.get(section)
        return symbols[0].name if symbols else self.elf.sections[section].name

    def is_global(self, section: int) -> bool:
        """Whether anything in the section has a global or weak name."""
        return any(s.binding != c.STB_LOCAL for s in self.symbols_in.get(section, ()))

    def is_function(self, section: int) -> bool:
        """Whether a section holds one function."""
        return self.kinds.get(section) is Kind.FUNCTION

    def is_shared(self, section: int) -> bool:
        """Whether a data section is not one datum's own (`.data.NAME`): made without -fdata-sections."""
        if self.kinds.get(section) not in (Kind.DATA, Kind.CONST, Kind.THREAD):
            return False
        name = self.elf.sections[section].name
        return not any(name.endswith("." + s.name) for s in self.symbols_in.get(section, ()))

    def starts(self, section: int, at: int) -> int:
        """What to add to the addend of the field at an offset of code to get the offset it leads to: a displacement
        counts from the end of its instruction."""
        if section not in self._ends:
            self._ends[section] = self.code.field_ends(self.data(section))
        return self._ends[section].get(at, at + self.relocations.BIAS) - at

    def holds_labels(self, section: int) -> bool:
        """Whether a datum holds addresses inside one function and its parts, and nothing else that is relocated."""
        references = self.references(section)
        owners = {self.parent.get(r.section, r.section) for r in references}
        inside = all(r.base + r.addend or r.section in self.parent for r in references)
        return inside and len(owners) == 1 and self.kinds.get(owners.pop()) is Kind.FUNCTION

    def layout(self, section: int) -> list[tuple[int, int, str]]:
        """(offset, size, name without numbers) of the data in a section."""
        symbols = self.symbols_in.get(section, ())
        return sorted((s.value, s.size, stem(s.name)) for s in symbols if s.type in (c.STT_OBJECT, c.STT_TLS))

    def is_part(self, section: int) -> bool:
        """Whether a function section is the .cold half of another one."""
        return self.kinds.get(section) is Kind.FUNCTION and self.label(section).endswith(".cold")

    @cached_property
    def parts(self) -> dict[int, list[int]]:
        """Function section → its .cold sections."""
        by_name = {self.label(n): n for n, k in self.kinds.items() if k is Kind.FUNCTION}
        found: dict[int, list[int]] = {}
        for name, number in by_name.items():
            parent = by_name.get(name.removesuffix(".cold"))
            if name.endswith(".cold") and parent is not None:
                found.setdefault(parent, []).append(number)
        return found

    @cached_property
    def parent(self) -> dict[int, int]:
        """The .cold section → the function it belongs to."""
        return {part: whole for whole, parts in self.parts.items() for part in parts}

    def data(self, section: int) -> bytes:
        """The bytes of a section."""
        return self.elf.contents(self.elf.sections[section])

    def references(self, section: int) -> tuple[Reference, ...]:
        """What the relocations of a section refer to, in order."""
        if section not in self._references:
            code = self.data(section) if self.elf.sections[section].flags & c.SHF_EXECINSTR else b""
            self._references[section] = tuple(self._refer(r, code) for r in self.elf.relocations(section))
        return self._references[section]

    def _refer(self, r: Relocation, code: bytes) -> Reference:
        symbol = self.elf.symbols[r.symbol]
        branch = bool(code) and self.code.is_branch(code, r.offset, r.type)
        weak = symbol.binding == c.STB_WEAK
        by_section = symbol.type == c.STT_SECTION
        target = symbol.section
        if target == c.SHN_ABS:
            return Reference(r, symbol.name, -1, symbol.value, None, branch, weak, by_section)
        if target in (c.SHN_UNDEF, c.SHN_COMMON):
            return Reference(r, symbol.name, 0, 0, None, branch, weak, by_section)
        section = self.elf.sections[target]
        # gcc without -fPIC puts addresses there too, which no linker merges: they are data, with relocations.
        if section.flags & c.SHF_MERGE and not self.elf.relocations(target):
            bias = self._bias(r, code) if by_section else 0
            if bias is None:
                # Where it points depends on the length of the instruction after the field: take all of it, to be safe.
                literal = self.elf.contents(section) + b"%d" % r.addend
                return Reference(r, symbol.name, target, symbol.value, literal, branch, weak, by_section, -1)
            literal = literal_at(self.data(target), section, symbol.value + (r.addend + bias if by_section else 0))
            return Reference(r, symbol.name, target, symbol.value, literal, branch, weak, by_section, bias)
        bias = self._bias(r, code)
        if by_section and bias is not None and self.kinds.get(target) is Kind.ANONYMOUS:
            text = self._text_at(target, symbol.value + r.addend + bias)
            if text is not None:
                return Reference(r, symbol.name, target, symbol.value, text, branch, weak, by_section, bias)
        name = symbol.name or self.label(target)
        return Reference(r, name, target, symbol.value, None, branch, weak, by_section)

    def _text_at(self, section: int, offset: int) -> bytes | None:
        """A string literal in a section that is not mergeable (gcc -O0 puts them there), else None.

        It reaches to the next place that anything refers to, and must be text and NULs: an array of strings that is
        copied as a whole is not, and what is compared and carried holds all that its user can mean.
        """
        data = self.data(section)
        ends = self._boundaries.get(section, [])
        at = bisect_right(ends, offset)
        end = ends[at] if at < len(ends) else len(data)
        if not 0 <= offset < end <= len(data) or (offset and data[offset - 1]) or self.elf.relocations(section):
            return None
        piece = data[offset:end]
        text = piece.rstrip(b"\0")
        if not text or len(text) == len(piece) or any(b < 32 and b not in _WHITE for b in text):
            return None
        return piece

    @cached_property
    def _boundaries(self) -> dict[int, list[int]]:
        """Section → offsets that something refers to, in order."""
        found: dict[int, set[int]] = {}
        for section in self.allocated:
            code = self.data(section.number) if section.flags & c.SHF_EXECINSTR else b""
            for r in self.elf.relocations(section.number):
                symbol = self.elf.symbols[r.symbol]
                if symbol.section and self.kinds.get(symbol.section) is Kind.ANONYMOUS:
                    offset = symbol.value + r.addend + (self._bias(r, code) or self.pc_bias(r.type))
                    found.setdefault(symbol.section, set()).add(offset)
        return {section: sorted(offsets) for section, offsets in found.items()}

    @cached_property
    def users(self) -> dict[int, frozenset[str]]:
        """Section → stems of the functions that refer to it directly or through unnamed data."""
        found: dict[int, set[str]] = {}
        for number, kind in self.kinds.items():
            if kind in (Kind.FUNCTION, Kind.CODE):
                self._collect_users(stem(self.label(number)).removesuffix(".cold"), number, found, set())
        return {section: frozenset(names) for section, names in found.items()}

    def _collect_users(self, user: str, section: int, found: dict[int, set[str]], seen: set[int]) -> None:
        for reference in self.references(section):
            target = reference.section
            if target <= 0 or target in seen or reference.literal is not None:
                continue
            found.setdefault(target, set()).add(user)
            if self.kinds.get(target) is Kind.ANONYMOUS:
                seen.add(target)
                self._collect_users(user, target, found, seen)

    @cached_property
    def referrers(self) -> dict[int, list[int]]:
        """Section → the sections with a reference to it, debug and frame sections left out."""
        found: dict[int, list[int]] = {}
        for number, kind in self.kinds.items():
            if kind not in (Kind.FRAMES, Kind.EXCEPTIONS, Kind.INDIRECT, Kind.IGNORED):
                for target in {r.section for r in self.references(number) if r.section > 0}:
                    found.setdefault(target, []).append(number)
        return found
