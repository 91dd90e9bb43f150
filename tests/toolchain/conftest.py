"""Fixtures of the tests that run compilers and linkers through the wrappers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.installation import Installation, install
from tests.support.project import Project, Variant


@pytest.fixture(scope="session")
def katana(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wrappers, installed where a path has a space in it."""
    return install(tmp_path_factory.mktemp("installed") / "with space")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project: a folder under version control, as the search for the store's place sees it."""
    folder = tmp_path / "project"
    (folder / ".git").mkdir(parents=True)
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Project:
    """An empty project built by gcc -O2 -pie: for what does not depend on the variant."""
    return Project(tmp_path, Variant("gcc", "-O2", "pie"))


# The system's two, and newer ones where they are installed: those only with all tests.
_NEWER = ("gcc-13", "gcc-14", "gcc-15", "clang-16", "clang-19", "clang-22")


@pytest.fixture(params=["gcc", "clang", *(pytest.param(name, marks=pytest.mark.rest) for name in _NEWER)])
def compiler(request: pytest.FixtureRequest) -> str:
    """Each compiler that is installed."""
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture(params=["bfd", "gold", "lld", "mold"])
def linker(request: pytest.FixtureRequest) -> str:
    """Each linker that is installed, as -fuse-ld names it."""
    name: str = request.param
    if shutil.which(f"ld.{name}") is None:
        pytest.skip(f"ld.{name} is not installed")
    return name
