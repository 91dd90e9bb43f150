"""include(Katana) on a real CMake project: every target is recorded, and nothing of the project's own is replaced."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from katana_cc import __version__
from tests.support.installation import Installation
from tests.support.staged import input_names, links, only_link

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


@pytest.fixture(params=["Ninja", pytest.param("Unix Makefiles", marks=pytest.mark.rest)])
def sampled(request: pytest.FixtureRequest) -> str:
    """A generator: one at each commit, both in `make test-rest`."""
    name: str = request.param
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


def names(store: Path) -> set[str]:
    """The names of the recorded outputs."""
    return {Path(entry["output"]).name for entry in links(store)}


def write(project: Path, lists: str) -> None:
    (project / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.25)\nproject(demo VERSION 1.2 LANGUAGES C CXX)\n{lists}\n"
    )


def test_only_named_targets_are_recorded(katana: Installation, cmake_project: Path, sampled: str) -> None:
    write(
        cmake_project,
        """set(KATANA_ALL OFF)
include(Katana)
add_executable(one tools/tool.cc)
add_executable(two tools/tool.cc)
add_subdirectory(tools)
add_library(three SHARED shared.c)
add_executable(alias::four ALIAS two)
katana_enable(one three)
set_property(TARGET tool PROPERTY KATANA ON)
""",
    )
    configure_and_build(
        katana, cmake_project, cmake_project / "build", "-G", sampled, f"-DCMAKE_MODULE_PATH={modules(katana)}"
    )
    assert names(cmake_project / ".katana") == {"one", "libthree.so", "tool"}


def test_a_target_that_says_no_is_built_as_if_we_were_not_there(
    katana: Installation, cmake_project: Path, tmp_path: Path, sampled: str
) -> None:
    write(
        cmake_project,
        """include(Katana)
add_executable(one tools/tool.cc)
add_executable(two tools/tool.cc)
set_property(TARGET two PROPERTY KATANA OFF)
""",
    )
    build = tmp_path / "build"
    options = ["-G", sampled, f"-DCMAKE_MODULE_PATH={modules(katana)}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    configure_and_build(katana, cmake_project, build, *options, "-DCMAKE_CXX_FLAGS=-g0")
    assert names(cmake_project / ".katana") == {"one"}
    sections = [
        subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
        for path in (build / "CMakeFiles/one.dir/tools/tool.cc.o", build / "CMakeFiles/two.dir/tools/tool.cc.o")
    ]
    assert [".text.main" in text for text in sections] == [True, False]


def test_every_kind_of_library_is_recorded(katana: Installation, cmake_project: Path, sampled: str) -> None:
    write(
        cmake_project,
        """include(Katana)
add_library(kept OBJECT part.c)
add_library(pack STATIC $<TARGET_OBJECTS:kept>)
add_library(shared SHARED shared.c)
add_library(plugin MODULE shared.c)
add_library(header INTERFACE)
add_executable(main main.c)
target_link_libraries(main PRIVATE pack shared header)
""",
    )
    configure_and_build(
        katana, cmake_project, cmake_project / "build", "-G", sampled, f"-DCMAKE_MODULE_PATH={modules(katana)}"
    )
    found = {Path(entry["output"]).name: entry for entry in links(cmake_project / ".katana")}
    assert set(found) == {"main", "libshared.so", "libplugin.so"}
    assert input_names(found["main"]) == {"main.c.o", "libpack.a"}


@pytest.mark.parametrize("by", ["launcher", "CC"])
def test_options_move_the_store_and_make_it_strict(
    katana: Installation, cmake_project: Path, tmp_path: Path, by: str
) -> None:
    write(cmake_project, "include(Katana)\nadd_executable(one part.c main.c shared.c)")
    store = tmp_path / "a store"
    options = [f"-DCMAKE_MODULE_PATH={modules(katana)}", f"-DKATANA_STORE={store}", "-DKATANA_STRICT=ON"]
    variables = {"CC": "katana-cc"} if by == "CC" else {}
    configure_and_build(katana, cmake_project, cmake_project / "build", *options, **variables)
    assert only_link(store)["output_key"] == "build/one"
    shutil.rmtree(store)
    store.write_text("a file where a folder should be")
    (cmake_project / "build" / "one").unlink()
    done = katana.run("cmake", "--build", "build", cwd=cmake_project)
    assert done.returncode != 0
    assert b"is not recorded" in done.stdout + done.stderr


def test_a_release_and_its_patches_are_build_targets(katana: Installation, cmake_project: Path, sampled: str) -> None:
    write(cmake_project, "include(Katana)\nadd_executable(one part.c main.c shared.c)\nkatana_release()")
    build = cmake_project / "build"
    configure = ["cmake", "-G", sampled, "-S", ".", "-B", "build", f"-DCMAKE_MODULE_PATH={modules(katana)}"]
    assert katana.run(*configure, cwd=cmake_project).returncode == 0
    done = katana.run("cmake", "--build", build, "--target", "katana-release", cwd=cmake_project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"v1.2: build/one" in done.stdout
    (cmake_project / "part.c").write_text("int part(void) { return 7; }\n")
    done = katana.run("cmake", "--build", build, "--target", "katana-patches", cwd=cmake_project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"build/one" in done.stdout
    assert list(cmake_project.glob(".katana/patches/build_one/v1.2..*.kpo"))


def test_disabled_it_leaves_a_project_alone(katana: Installation, cmake_project: Path) -> None:
    write(
        cmake_project,
        "include(Katana)\nadd_executable(one part.c main.c shared.c)\nkatana_enable(one)\nkatana_release()",
    )
    options = [f"-DCMAKE_MODULE_PATH={modules(katana)}", "-DKATANA_DISABLE=ON"]
    configure_and_build(katana, cmake_project, cmake_project / "build", *options)
    assert not (cmake_project / ".katana").exists()


@pytest.mark.parametrize(("version", "found"), [("0.1", True), (__version__, True), ("0.2", False), ("1.0", False)])
def test_find_package_knows_its_version(katana: Installation, cmake_project: Path, version: str, found: bool) -> None:
    write(cmake_project, f"find_package(Katana {version} REQUIRED)\nadd_executable(one part.c main.c shared.c)")
    done = katana.run("cmake", "-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={katana.prefix}", cwd=cmake_project)
    assert (done.returncode == 0) == found, done.stderr


def test_the_folder_of_the_module_is_told(katana: Installation, cmake_project: Path) -> None:
    done = katana.run("katana", "--cmake-dir", cwd=cmake_project)
    assert Path(done.stdout.decode().strip()) == Path(modules(katana))
