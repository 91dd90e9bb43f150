"""Whether a program switches stacks by itself, so that code may be on stacks that no thread runs on.

What does that has a name, in most programs: `swapcontext` of the C library, `jump_fcontext` of Boost.Context.  It is
imported by some module; or it is linked into one, and then the symbol table of the file has it, unless the file was
stripped.  glibc's own is also known by its code, in a program that is linked statically.

That a library can switch does not say that it does: whoever speaks TLS has OpenSSL's libcrypto, which makes coroutines
for those that ask for them.  What glibc's `makecontext` makes ends in a word that nothing else has, on a stack that is
there as long as the coroutine: where no memory has that word, there is none (`is_used`).

Of assembly of the program's own, or of a stripped file, nothing tells; but a thread that is found on a stack which is
neither its own nor that of its signal handlers shows it (`Finder.strange`).  And the user may say so.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from katana_cc.cpu.native import contexts, system
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError, KatanaError, TargetError
from katana_cc.process.dynamic import DynamicModule
from katana_cc.process.memory import BulkReader
from katana_cc.process.modules import Module
from katana_cc.process.target import Target, read_map
from katana_cc.process.words import BATCH, Pages, Seeker, to_search

# glibc, libucontext, Boost.Context, libcoro, libco, Tencent's libco, libaco, minicoro, Pth, State Threads, QEMU, Ruby,
# D, greenlet.
SWITCHERS: Final = frozenset(
    ("swapcontext", "makecontext", "setcontext", "libucontext_swapcontext", "make_fcontext", "jump_fcontext",
     "ontop_fcontext", "coro_transfer", "co_switch", "coctx_swap", "acosw", "_mco_switch", "pth_uctx_switch",
     "_st_md_cxt_restore", "qemu_coroutine_switch", "coroutine_transfer", "fiber_switchContext", "slp_switch")
)  # fmt: skip
_PLAIN: Final = frozenset(("swapcontext", "makecontext", "setcontext"))
# With both, a stack is made by a signal handler that never returns, and left by longjmp.
_MAKES: Final = "makecontext"
_BY_SIGNAL: Final = "sigaltstack"
_JUMPS: Final = frozenset(("longjmp", "_longjmp", "siglongjmp", "__longjmp_chk"))
_NAMES: Final = re.compile(b"|".join(sorted(name.encode() + rb"\0" for name in (*SWITCHERS, *_JUMPS))))
_LIBC: Final = "__libc_start_main"  # what exports it has all these functions, and need not be using them
_MOST_CODE: Final = 1 << 28  # bytes


class Coroutines(Enum):
    """What a user says of coroutines: nothing, that there may be some, that none is where it matters."""

    FIND_OUT = "find-out"
    SEARCH = "search"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Switching:
    """How a program switches stacks, as far as it can be told: by these functions.  `is_plain`: all of them are
    glibc's, for contexts, and nothing else in the modules that use them can switch.  `ends`: the words of which one
    is at the end of each stack that is switched to, where that is known."""

    names: tuple[str, ...]
    is_plain: bool
    ends: frozenset[int] = frozenset()


def find_switching(target: Target) -> Switching:
    """What there is of it in the modules of a process."""
    found: set[str] = set()
    is_plain = is_imported = True
    for module in target.modules:
        with contextlib.suppress(KatanaError):
            names, imported, jumps = _of_module(target, module)
            found |= names
            is_imported &= names <= imported
            is_plain &= not (imported and jumps)
    is_plain &= is_imported
    made_by_glibc = is_imported and bool(found) and found <= _PLAIN and _is_of_glibc(target)
    ends = _ends(target) if made_by_glibc and _MAKES in found else frozenset[int]()
    return Switching(tuple(sorted(found)), is_plain and made_by_glibc, ends)


def is_used(target: Target, switching: Switching) -> bool:
    """Whether there may be a coroutine at all.

    Raises:
        OSError: the process is gone.
    """
    if not switching.ends:
        return True
    pages = Pages(target.pid)
    try:
        own = read_map(target.pid).private()
        vectors = to_search(own, (), (), pages.touched, pages.written)
        seeker = Seeker((end, 1) for end in switching.ends)
        return bool(seeker.in_memory(BulkReader(target.memory, BATCH), vectors))
    finally:
        pages.close()


def _ends(target: Target) -> frozenset[int]:
    """Of glibc's own contexts."""
    if contexts is None:
        return frozenset()
    for module in target.modules:
        dynamic = DynamicModule(target.memory, module)
        made = dynamic.lookup(_MAKES) if c.DT_SYMTAB in dynamic.tags else None
        if made is not None:
            code = target.memory.read(made.value, made.size)
            return contexts.returns_of_first(code, made.value, target.memory.read)
    return frozenset()


def _of_module(target: Target, module: Module) -> tuple[set[str], set[str], bool]:
    """The functions of one module; those of them that are imported; and whether it imports what jumps."""
    dynamic = DynamicModule(target.memory, module)
    names = _imported(dynamic)
    imported, jumps = names & SWITCHERS, bool(names & _JUMPS)
    found = set(imported)
    if _BY_SIGNAL in names and jumps:
        found |= {_BY_SIGNAL, *(names & _JUMPS)}
    if c.DT_SYMTAB in dynamic.tags and dynamic.lookup(_LIBC) is not None:
        return found, imported, jumps
    found |= _linked_in(target, module)
    if not found and c.DT_NEEDED not in dynamic.tags and _switches(target, module):
        found.add("swapcontext")
    return found, imported, jumps


def _is_of_glibc(target: Target) -> bool:
    """Whether glibc alone has `swapcontext`: that of others keeps contexts otherwise."""
    modules = [DynamicModule(target.memory, module) for module in target.modules]
    having = [m for m in modules if c.DT_SYMTAB in m.tags and m.lookup("swapcontext") is not None]
    return len(having) == 1 and having[0].lookup("gnu_get_libc_version") is not None


def _imported(dynamic: DynamicModule) -> set[str]:
    """The names that dynamic relocations are against, if there may be some of interest among them."""
    start, size = dynamic.address(c.DT_STRTAB), dynamic.tags.get(c.DT_STRSZ, 0)
    if not start or not size or not _NAMES.search(dynamic.memory.read(start, size)):
        return set()
    return set(dynamic.named_relocations)


def _linked_in(target: Target, module: Module) -> set[str]:
    """Those that a module's file has among its symbols, of whatever binding."""
    region = target.regions.at(module.start)
    mapped = f"/proc/{target.pid}/map_files/{region.start:x}-{region.end:x}" if region is not None else ""
    for path in (mapped, f"/proc/{target.pid}/exe", module.path):  # the first needs a capability
        with contextlib.suppress(KatanaError, OSError, ValueError), _mapped(path) as data:
            elf = ElfFile(data, path)
            if elf.build_id == module.build_id and module.build_id is not None:
                return set(_symbols(elf, data))
    return set()


def _symbols(elf: ElfFile, data: memoryview) -> Iterator[str]:
    table = next((s for s in elf.sections if s.type == c.SHT_SYMTAB), None)
    if table is None or table.link >= len(elf.sections):
        return
    strings = elf.sections[table.link]
    # Names that end alike may share their end, and one may be the end of another's.
    matches = _NAMES.finditer(data, strings.offset, strings.offset + strings.size)
    at = {m.start() - strings.offset: m.group()[:-1].decode() for m in matches}
    if not at:
        return
    rows, _ = elf.symbol_rows()
    for name, info, _, section, _, _ in rows:
        if name in at and at[name] in SWITCHERS and section != c.SHN_UNDEF and info & 15 in (c.STT_NOTYPE, c.STT_FUNC):
            yield at[name]


@contextlib.contextmanager
def _mapped(path: str) -> Iterator[memoryview]:
    """A file, which may be no file at all."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FormatError("not a regular file", where=path)
        mapping = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    view = memoryview(mapping)
    try:
        yield view
    finally:
        view.release()
        mapping.close()


def _switches(target: Target, module: Module) -> bool:
    """Whether the code of a module that is linked statically has glibc's."""
    for segment in module.segments:
        if segment.type == c.PT_LOAD and segment.flags & c.PF_X and segment.memory_size <= _MOST_CODE:
            with contextlib.suppress(TargetError):
                code = target.memory.read(module.bias + segment.vaddr, segment.memory_size)
                if system.switches_stacks(code):
                    return True
    return False
