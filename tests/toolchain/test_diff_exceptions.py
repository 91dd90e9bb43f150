"""C++ exceptions in the diff and the patch object: which handlers a function has is as much of it as its code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from katana_cc.elf import constants as c
from katana_cc.patch.model import PatchObject, PatchSection
from katana_cc.report.handlers import handler_rows
from tests.support.project import Project, Result, Variant, project_in
from tests.toolchain.test_diff_code import NOINLINE

VARIANTS = [
    Variant("gcc", "-O0", "pie"),
    Variant("gcc", "-O2", "pie", "gold"),
    Variant("gcc", "-O2", "nopie"),
    Variant("gcc", "-Os", "shared"),
    Variant("clang", "-O0", "nopie", "lld"),
    Variant("clang", "-O2", "pie", "mold"),
    Variant("clang", "-O2", "shared", "lld"),
    Variant("clang", "-O2", "nopie"),
]
MAIN = {"main.cc": "int serve(int);\nint main(int c, char **) { return serve(c); }\n"}
ERRORS = "struct Error { int code; }; struct Other { int code; };\nint ext(int);\n"
EXT = {"ext.cc": ERRORS + "int ext(int x) { if (x == 7) throw Error{x}; if (x == 8) throw Other{x}; return x; }\n"}
LINK = ["-Wl,--no-as-needed", "-lstdc++"]


project = project_in(VARIANTS)


def change(project: Project, before: str, after: str) -> Result:
    """The diff when a.cc changes."""
    return project.change({**MAIN, **EXT, "a.cc": ERRORS + before}, {"a.cc": ERRORS + after}, link_flags=LINK)


def caught(po: PatchObject) -> set[str]:
    """Names of the types that the exception tables of a patch object reach, as its own relocations tell."""
    found = set()
    for table in tables(po):
        for r in table.relocations:
            section = po.symbols[r.symbol].section
            assert section is not None
            pointer = po.sections[section]
            assert (pointer.size, [x.offset for x in pointer.relocations]) == (8, [0])
            symbol = po.symbols[pointer.relocations[0].symbol]
            named = (y.name for y in po.symbols if y.section == symbol.section and y.name)
            found.add(symbol.name.rpartition(":")[2] if symbol.section is None else next(named))
    return found


def tables(po: PatchObject) -> list[PatchSection]:
    """The exception tables of a patch object."""
    return [s for s in po.sections if s.name.startswith(".gcc_except_table")]


CATCHES = "int serve(int x) {{ try {{ return ext(x); }} catch (const {} &e) {{ return e.code; }} }}\n"


def test_handler_of_another_type_is_a_change(project: Project) -> None:
    """The code is the same to the byte.  A bug: nothing has to be done."""
    result = change(project, CATCHES.format("Error"), CATCHES.format("Other"))
    assert (result.refusals, result.replaced) == ([], ["_Z5servei"])
    assert caught(result.patch) == {"_ZTI5Other"}


def test_cleanup_that_became_noexcept_is_a_change(project: Project) -> None:
    """A bug: what ends the process now goes on being passed on."""
    result = change(project, "int serve(int x) { return ext(x); }", "int serve(int x) noexcept { return ext(x); }")
    assert (result.refusals, result.replaced) == ([], ["_Z5servei"])


def test_same_handlers_in_a_changed_object_are_no_change(project: Project) -> None:
    """A bug: every function with handlers counts as changed, since tables of its object moved."""
    more = NOINLINE + "int more(int x) { try { return ext(x + 1); } catch (const Other &) { return 5; } }\n"
    use = "int user(int x) {{ return more(x) {}; }}\n"
    result = change(
        project, CATCHES.format("Error") + more + use.format(""), more + CATCHES.format("Error") + use.format("* 3")
    )
    assert (result.refusals, result.replaced) == ([], ["_Z4useri"])


def test_new_handlers_name_old_new_and_library_types(project: Project) -> None:
    """A bug: a type that the program knows comes along once more, or one it does not know is left out."""
    head = "#include <stdexcept>\nnamespace {{ struct Mine {{ int code; }}; }}\n"
    after = (
        "#include <stdexcept>\nnamespace { struct Mine { int code; }; } struct Fresh { int code; };\n"
        "int serve(int x) { try { if (x == 1) throw Fresh{x}; if (x == 2) throw Mine{x}; return ext(x); }\n"
        "catch (const Error &e) { return e.code; } catch (const Fresh &e) { return e.code + 1; }\n"
        "catch (Mine &e) { return e.code + 2; } catch (std::out_of_range &) { return 3; } catch (...) { return 4; } }\n"
    )
    result = change(project, head.replace("{{", "{").replace("}}", "}") + CATCHES.format("Error"), after)
    assert result.refusals == []
    assert caught(result.patch) == {
        "_ZTI5Error", "_ZTI5Fresh", "_ZTIN12_GLOBAL__N_14MineE", "_ZTISt12out_of_range"
    }  # fmt: skip
    assert {name for row in handler_rows(result.patch) for name in row.catches} == caught(result.patch) | {"anything"}
    defined = {y.name for y in result.patch.symbols if y.section is not None}
    assert {"_ZTI5Fresh", "_ZTIN12_GLOBAL__N_14MineE"} <= defined
    assert not defined & {"_ZTI5Error", "_ZTISt12out_of_range"}


def test_thrown_class_with_other_bases_is_refused(project: Project) -> None:
    """Its type description grows.  A bug: what old code throws is caught by other bases than what new code throws."""
    source = (
        "struct Base {{ }}; struct More {{ }}; struct Thrown : Base{} {{ int code; }};\n"
        "int serve(int x) {{ try {{ if (x == 5) throw Thrown(); return ext(x); }} catch (const Thrown &) {{ return 1;"
        " }} catch (const Base &) {{ return 2; }} }}\n"
    )
    result = change(project, source.format(""), source.format(", More"))
    assert ("exception-tables", "_ZTI6Thrown") in result.refusals


def test_exception_specification_is_carried(project: Project) -> None:
    source = "int serve(int x) throw({}) {{ return ext(x) + {}; }}\n"
    flags = ["-std=c++14"]
    old, new = ({**MAIN, **EXT, "a.cc": ERRORS + source.format("Error", n)} for n in (1, 1000))
    result = project.change(old, new, compile_flags=flags, link_flags=LINK)
    assert (result.refusals, caught(result.patch)) == ([], {"_ZTI5Error"})
    assert [(r.function, r.allows) for r in handler_rows(result.patch) if r.allows] == [("_Z5servei", ("_ZTI5Error",))]
    other = {**new, "a.cc": ERRORS + source.format("Other", 1000)}
    result = project.change(new, other, compile_flags=flags, link_flags=LINK)
    assert (result.refusals, result.replaced) == ([], ["_Z5servei"])
    assert caught(result.patch) == {"_ZTI5Other"}


def test_tools_read_the_frames_of_a_patch_object(project: Project, tmp_path: Path) -> None:
    """readelf is the second opinion on what each FDE describes.  A bug: relocations off by a field."""
    guard = "struct Guard {{ int k; ~Guard() {{ ext(k + {}); }} }};\n"
    body = "int serve(int x) { Guard g{x}; try { return ext(x); } catch (const Error &e) { return e.code; } }\n"
    result = change(project, guard.format(1) + body, guard.format(500) + body)
    assert result.refusals == []
    path = tmp_path / "patch.kpo"
    path.write_bytes(result.data)
    done = subprocess.run(["readelf", "--debug-dump=frames", path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    frames = [s for s in result.patch.sections if s.name == ".eh_frame"]
    code = [s for s in result.patch.sections if s.flags & c.SHF_EXECINSTR]
    sizes = re.findall(r"FDE cie=\w+ pc=0+\.\.(\w+)", done.stdout)
    assert sorted(int(size, 16) for size in sizes) == sorted(s.size for s in code)
    targets = [result.patch.symbols[r.symbol] for r in frames[0].relocations]
    lsdas = [y for y in targets if y.section is not None and result.patch.sections[y.section] in tables(result.patch)]
    assert lsdas
    assert len(lsdas) == len(tables(result.patch))
    registration = {y.name for y in result.patch.symbols if y.section is None and "frame_info" in y.name}
    assert registration == {"__register_frame_info", "__deregister_frame_info"}
    other = tmp_path / "other.o"
    subprocess.run(["ld", "-r", path, "-o", other], check=True, capture_output=True)


def test_plain_c_needs_no_unwinder(tmp_path: Path) -> None:
    """A bug: a program without exceptions could not be patched where no unwinder is loaded."""
    project = Project(tmp_path)
    main = {"main.c": "int serve(int);\nint main(int c, char **v) { return serve(c); }\n"}
    result = project.change(
        {**main, "a.c": "int n; int serve(int x) { n++; return x * 3; }"},
        {"a.c": "int n; int serve(int x) { n++; return x * 5; }"},
    )
    assert result.replaced == ["serve"]
    assert not [y for y in result.patch.symbols if "frame_info" in y.name]
