"""What is read of a process's modules, against nm and readelf on their files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from katana_cc.elf import constants as c
from katana_cc.process.dynamic import DynamicModule
from katana_cc.process.target import Target
from tests.live.handmade import Built
from tests.live.server import serving


def test_every_module_is_found_with_its_build_id(counter: tuple[Built, Built]) -> None:
    """A bug: a module is missed, or a build-id is that of another file."""
    with serving(counter[0].output) as server, Target(server.pid) as target:
        lines = Path(f"/proc/{server.pid}/maps").read_text().splitlines()
        files = {x.split()[5] for x in lines if len(x.split()) > 5 and " r-xp " in x and "/" in x}
        found = {m.path: m.build_id for m in target.modules if m.path.startswith("/")}
        assert set(found) == files
        for path, build_id in found.items():
            notes = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True).stdout
            match = re.search(r"Build ID: ([0-9a-f]+)", notes)
            assert build_id == (match[1] if match else None)
        assert any(m.path == "[vdso]" for m in target.modules)


def test_every_exported_symbol_is_looked_up_in_its_default_version(counter: tuple[Built, Built]) -> None:
    """A bug: the hash table is misread, or an old version such as memcpy@GLIBC_2.2.5 is taken."""
    with serving(counter[0].output) as server, Target(server.pid) as target:
        module = next(m for m in target.modules if "libc.so" in m.path or "/libc-" in m.path)
        names = subprocess.run(["nm", "-D", "--defined-only", module.path], capture_output=True, text=True, check=True)
        wanted: dict[str, set[int]] = {}
        for line in names.stdout.splitlines():
            address, kind, name = line.split()
            if "@@" in name and kind in "TWiBDRVu":
                wanted.setdefault(name.split("@")[0], set()).add(int(address, 16))
        dynamic = DynamicModule(target.memory, module)
        for name, addresses in wanted.items():
            symbol = dynamic.lookup(name)
            assert symbol is not None, name
            bias = 0 if symbol.type == c.STT_TLS else module.bias
            assert symbol.value - bias in addresses, name
        assert len(wanted) > 1500
        assert dynamic.lookup("no_such_function_here") is None


def test_bound_slots_are_the_addresses_the_linker_chose(counter: tuple[Built, Built]) -> None:
    """A bug: an unbound lazy slot, which points back into the PLT, is believed."""
    with serving(counter[0].output) as server, Target(server.pid) as target:
        module = next(m for m in target.modules if m.path == str(counter[0].output))
        library = next(m for m in target.modules if "libc.so" in m.path or "/libc-" in m.path)
        bound = {n: DynamicModule(target.memory, module).bound_value(n) for n in ("puts", "fgets", "strtol")}
        direct = DynamicModule(target.memory, library)
        for name, value in bound.items():
            symbol = direct.lookup(name)
            assert symbol is not None
            assert value in (None, symbol.value), name
        assert bound["puts"] is not None
