"""Objects with debug information for tests, and what gdb says of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from katana_cc.dwarf.dies import DebugInfo, open_debug_info
from katana_cc.elf.reader import ElfFile

FLAGS = ("-ffunction-sections", "-fdata-sections")
BUILDS = [
    (compiler, version, level)
    for compiler in ("gcc", "clang")
    for version in ("-gdwarf-4", "-gdwarf-5")
    for level in ("-O0", "-O2")
]


def compile_object(folder: Path, source: str, *command: str, name: str = "unit.c") -> Path:
    """Compile `source`, kept as `name`, by `command` (compiler and flags); the object's path."""
    (folder / name).write_text(source)
    target = folder / f"{name}.o"
    subprocess.run([*command, *FLAGS, "-c", name, "-o", target.name], cwd=folder, check=True)
    return target


def read(path: Path) -> DebugInfo:
    """The debug information of an object, which must have some."""
    info = open_debug_info(ElfFile(path.read_bytes(), path.name))
    assert isinstance(info, DebugInfo), info
    return info


def build(folder: Path, source: str, *command: str, name: str = "unit.c") -> DebugInfo:
    """`compile_object` and `read` in one."""
    return read(compile_object(folder, source, *command, name=name))


_GDB = """
import gdb, json
def flat(t):
    return [[f.name or "", f.bitpos if hasattr(f, "bitpos") else None, f.bitsize, f.type.sizeof] for f in t.fields()
            if not f.is_base_class and hasattr(f, "bitpos")]
result = {}
for name in json.loads(NAMES):
    try:
        t = gdb.lookup_type(name).strip_typedefs()
        if t.code == gdb.TYPE_CODE_ENUM:
            result[name] = {"size": t.sizeof, "values": [[f.name, f.enumval] for f in t.fields()]}
        else:
            result[name] = {"size": t.sizeof, "fields": flat(t)}
    except gdb.error as error:
        result[name] = {"error": str(error)}
print("ANSWER " + json.dumps(result))
"""


def gdb_types(path: Path, names: list[str]) -> dict[str, dict[str, object]]:
    """What gdb knows of types: size and [field, bit position, bit size, size of type] or [enumerator, value] lists."""
    script = path.with_suffix(".gdb.py")
    script.write_text(f"NAMES = {json.dumps(names)!r}\n{_GDB}")
    output = subprocess.run(
        ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-x", script, path],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    answer = next(line for line in output.splitlines() if line.startswith("ANSWER "))
    found: dict[str, dict[str, object]] = json.loads(answer.removeprefix("ANSWER "))
    return found
