"""The cases of the support matrix are what they claim to be: gcc makes the clones, functions cross pages, and so on."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.elf.reader import ElfFile, Symbol
from tests.live.matrix.cases import CASES
from tests.live.matrix.runner import PRELUDE
from tests.support.project import Project, Variant

PAGE = 4096


def symbols(folder: Path, name: str, side: int, optimise: str = "-O2") -> dict[str, Symbol]:
    """The symbols of one version of a case, linked."""
    case = next(case for case in CASES if case.name == name)
    folder.mkdir()
    project = Project(folder, Variant("gcc", optimise))
    files = {file: PRELUDE + text for file, text in case.files(side).items()}
    main = f"long ask_{name}(long); int main(int c, char **v) {{ (void)v; return ask_{name}(c); }}"
    build = project.build({"main.c": main, **files}, compile_flags=case.flags)
    return {s.name: s for s in ElfFile(build.path.read_bytes()).symbols}


@pytest.mark.parametrize(
    ("name", "function", "clone", "before", "after"),
    [
        ("cold_part", "ask_cold_part", ".cold", True, True),
        ("cold_appears", "ask_cold_appears", ".cold", False, True),
        ("cold_vanishes", "ask_cold_vanishes", ".cold", True, False),
        ("cold_alone", "ask_cold_alone", ".cold", True, True),
        ("part", "heavy", ".part", True, True),
        ("part_vanishes", "heavy", ".part", True, False),
        ("isra", "pick", ".isra", True, True),
        ("isra_appears", "pick", ".isra", False, True),
        ("constprop", "spin", ".constprop", True, True),
        ("constprop_appears", "spin", ".constprop", False, True),
    ],
)
def test_clone_is_there(tmp_path: Path, name: str, function: str, clone: str, before: bool, after: bool) -> None:
    """A bug: the case tests nothing of what its name says."""
    found = []
    for side in (0, 1):
        names = symbols(tmp_path / str(side), name, side)
        found.append(any(n.startswith(f"{function}.") and clone in n for n in names))
    assert found == [before, after]


@pytest.mark.parametrize("optimise", ["-O0", "-O2"])
def test_jump_at_the_entry_crosses_a_page(tmp_path: Path, optimise: str) -> None:
    entry = symbols(tmp_path / "old", "entry_crosses_a_page", 0, optimise)["entry"]
    assert entry.value % PAGE > PAGE - 5


def test_function_crosses_a_page(tmp_path: Path) -> None:
    wide = symbols(tmp_path / "old", "crosses_a_page", 0)["wide"]
    assert wide.size > PAGE


@pytest.mark.parametrize("name", ["tiny_global_grows", "tiny_called_from_another_file", "tiny_tail_called"])
def test_small_function_has_a_neighbour_at_once(tmp_path: Path, name: str) -> None:
    found = symbols(tmp_path / "old", name, 0)
    (tiny,) = (s for s in found.values() if s.name in ("tg_f", "ta_f", "tt_f"))
    (after,) = (s for s in found.values() if s.name in ("tg_next", "ta_next", "tt_next"))
    assert 0 < tiny.size < 5
    assert after.value == tiny.value + tiny.size


def objects(folder: Path, name: str, variant: Variant) -> list[ElfFile]:
    """The first object of both versions of a case."""
    case = next(case for case in CASES if case.name == name)
    found = []
    for side in (0, 1):
        (folder / str(side)).mkdir()
        project = Project(folder / str(side), variant)
        made = project.compile(
            {file: PRELUDE + text for file, text in case.files(side).items()}, compile_flags=case.flags
        )
        found.append(ElfFile((project.folder / next(iter(made.values()))).read_bytes()))
    return found


def test_numbers_of_statics_shift(tmp_path: Path) -> None:
    sides = [
        {s.name for s in elf.symbols if s.name.startswith("count.")}
        for elf in objects(tmp_path, "static_locals_shift", Variant("gcc", "-O2"))
    ]
    assert len(sides[0]) == 2
    assert len(sides[1]) == 3
    assert not sides[0] <= sides[1]


def test_optimiser_raises_the_alignment(tmp_path: Path) -> None:
    variant = Variant("clang", "-O2", "pie", "lld")
    if not variant.available():
        pytest.skip(f"{variant} needs a tool that is not installed")
    sides = [
        {s.name: s.alignment for s in elf.sections if s.name.startswith(".data.oa_")}
        for elf in objects(tmp_path, "optimiser_raises_the_alignment", variant)
    ]
    assert sides == [{".data.oa_v": 8, ".data.oa_w": 8}, {".data.oa_v": 16, ".data.oa_w": 16}]
