"""include(Katana) on a real CMake project: every target is recorded, and nothing of the project's own is replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.installation import Installation
from tests.support.staged import input_names, links

LISTS = """cmake_minimum_required(VERSION 3.13)
project(demo C CXX)
@INCLUDE@
add_library(part STATIC part.c)
add_library(shared SHARED shared.c)
add_executable(main main.c)
target_link_libraries(main PRIVATE part shared)
add_subdirectory(tools)
"""


@pytest.fixture
def cmake_project(tmp_path: Path) -> Path:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = tmp_path / "a project"
    (folder / "tools").mkdir(parents=True)
    (folder / "part.c").write_text("int part(void) { return 1; }\n")
    (folder / "shared.c").write_text("int shared(void) { return 2; }\n")
    (folder / "main.c").write_text(
        "int part(void);\nint shared(void);\nint main(void) { return part() + shared() - 3; }\n"
    )
    (folder / "tools" / "CMakeLists.txt").write_text("add_executable(tool tool.cc)\n")
    (folder / "tools" / "tool.cc").write_text("int main() { return 0; }\n")
    (folder / "CMakeLists.txt").write_text(LISTS.replace("@INCLUDE@", "include(Katana)"))
    return folder


@pytest.fixture(params=["Ninja", "Unix Makefiles"])
def generator(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    program = "ninja" if name == "Ninja" else "make"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return name


def modules(katana: Installation) -> str:
    return str(katana.prefix / "share" / "katana" / "cmake")


def configure_and_build(katana: Installation, source: Path, build: Path, *options: str, **variables: str) -> None:
    commands = (["cmake", "-S", str(source), "-B", str(build), *options], ["cmake", "--build", str(build), "-j2"])
    for command in commands:
        done = katana.run(*command, cwd=source, stdin=None, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        assert b"katana:" not in done.stdout + done.stderr


def test_every_target_is_recorded_in_the_source_folder(
    katana: Installation, cmake_project: Path, tmp_path: Path, generator: str
) -> None:
    # The build folder is elsewhere, so that only CMake knows where the project is.
    build = tmp_path / "build"
    configure_and_build(katana, cmake_project, build, "-G", generator, f"-DCMAKE_MODULE_PATH={modules(katana)}")
    found = {Path(entry["output"]).name: entry for entry in links(cmake_project / ".katana")}
    assert set(found) == {"main", "libshared.so", "tool"}
    assert input_names(found["main"]) == {"main.c.o", "libpart.a"}
    assert input_names(found["tool"]) == {"tool.cc.o"}
    assert found["libshared.so"]["output_key"].endswith("build/libshared.so")
    assert not list(build.rglob(".katana"))


def test_the_way_of_cmake_before_3_21_records_the_same(
    katana: Installation, cmake_project: Path, tmp_path: Path, generator: str
) -> None:
    # A newer CMake is made to take the old path by its own copy of the module.
    folder = tmp_path / "prefix" / "share" / "katana" / "cmake"
    folder.mkdir(parents=True)
    for name in ("bin", "libexec"):
        (tmp_path / "prefix" / name).symlink_to(katana.prefix / name)
    text = (Path(modules(katana)) / "Katana.cmake").read_text()
    old = text.replace("NOT CMAKE_VERSION VERSION_LESS 3.21", "FALSE").replace(
        "CMAKE_VERSION VERSION_LESS 3.21", "TRUE"
    )
    assert old.count("TRUE") == text.count("TRUE") + 1
    (folder / "Katana.cmake").write_text(old)
    configure_and_build(katana, cmake_project, tmp_path / "build", "-G", generator, f"-DCMAKE_MODULE_PATH={folder}")
    names = {Path(entry["output"]).name for entry in links(cmake_project / ".katana")}
    assert names == {"main", "libshared.so", "tool"}


def test_find_package_does_the_same(katana: Installation, cmake_project: Path) -> None:
    (cmake_project / "CMakeLists.txt").write_text(LISTS.replace("@INCLUDE@", "find_package(Katana REQUIRED)"))
    configure_and_build(katana, cmake_project, cmake_project / "build", f"-DCMAKE_PREFIX_PATH={katana.prefix}")
    assert len(links(cmake_project / ".katana")) == 3


def test_katana_dir_moves_the_store(katana: Installation, cmake_project: Path, tmp_path: Path) -> None:
    store = tmp_path / "elsewhere"
    configure_and_build(
        katana,
        cmake_project,
        cmake_project / "build",
        f"-DCMAKE_MODULE_PATH={modules(katana)}",
        KATANA_DIR=str(store),
    )
    assert {entry["output_key"] for entry in links(store)} == {"build/main", "build/libshared.so", "build/tools/tool"}
    assert not (cmake_project / ".katana").exists()


def test_a_launcher_of_the_projects_is_kept(katana: Installation, cmake_project: Path, tmp_path: Path) -> None:
    ccache = tmp_path / "ccache"
    ccache.write_text(f'#!/bin/sh\necho x >>"{tmp_path}/log"\nexec "$@"\n')
    ccache.chmod(0o755)
    configure_and_build(
        katana,
        cmake_project,
        cmake_project / "build",
        f"-DCMAKE_MODULE_PATH={modules(katana)}",
        f"-DCMAKE_C_COMPILER_LAUNCHER={ccache}",
    )
    assert len((tmp_path / "log").read_text().splitlines()) == 3  # the three C files
    assert len(links(cmake_project / ".katana")) == 3
    main = next(entry for entry in links(cmake_project / ".katana") if entry["output_key"] == "build/main")
    assert any(item["path"].endswith("main.c.o") for item in main["inputs"])


def test_cc_katana_cc_records_a_cmake_project_too(katana: Installation, cmake_project: Path, generator: str) -> None:
    (cmake_project / "CMakeLists.txt").write_text(LISTS.replace("@INCLUDE@", ""))
    configure_and_build(
        katana,
        cmake_project,
        cmake_project / "build",
        "-G",
        generator,
        CC=katana.cc,
        CXX=katana.cxx,
    )
    # The compiler's own checks leave nothing behind.
    assert {Path(entry["output"]).name for entry in links(cmake_project / ".katana")} == {
        "main",
        "libshared.so",
        "tool",
    }
