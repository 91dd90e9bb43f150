"""What the store grows by when one file of many changes, and that each image is the linked one to the byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.snapshot.store import Store
from katana_cc.snapshot.verify import verify_store
from tests.support.project import Build, Project, Variant

FILES = 120
UNIT = """
#include <stdio.h>
static int seen_N; extern int table_M[]; int table_N[] = {{ N, 2, 3 }};
int (*const way_N[])(int) = {{ first_M, second_M }};
static const char *const words[] = {{ "alpha N", "beta N", "gamma N" }};
int first_N(int x) {{
  seen_N += x;
  if (x > 3) return second_M(x - 1) + table_M[x & 1];
  return printf("%s", words[x & 1]);
}}
int second_N(int x) {{
  {extra}
  switch (x & 7) {{ case 1: return first_M(x - 2); case 2: return x * 3; case 3: return seen_N;
  case 4: return table_N[1]; case 5: return way_N[x & 1](x - 9); default: return x + 1; }} }}
"""


def sources(changed: int = -1, times: int = 0) -> dict[str, str]:
    """Files that call one another all around; in one of them a function grows by `times`."""
    names = "".join(f"int first_{n}(int), second_{n}(int);\n" for n in range(FILES))
    files = {"main.c": f"{names}int main(int c, char **v) {{ return first_0(c); }}"}
    for n in range(FILES):
        extra = " ".join(f"x ^= x * {1000003 + 2 * k};" for k in range(times)) if n == changed else ""
        unit = UNIT.format(extra=extra).replace("N", str(n)).replace("M", str((n + 1) % FILES))
        files[f"unit{n}.c"] = names + unit
    return files


def size(store: Store) -> int:
    return sum(store.blobs.path(digest).stat().st_size for digest in store.blobs)


def assert_image_is_the_linked_one(store: Store, build: Build) -> None:
    linked, image = build.path.read_bytes(), store.image(store.snapshot(build.snapshot.id))
    for s in ElfFile(linked, "linked").segments:
        if s.type == c.PT_LOAD:
            begin = max(s.offset, 64)  # the store's has no section headers
            assert image[begin : s.offset + s.file_size] == linked[begin : s.offset + s.file_size]


@pytest.mark.parametrize(
    "variant", [Variant(), Variant("gcc", "-O1", "nopie", "bfd"), Variant("gcc", "-O2", "shared", "lld"),
                Variant("gcc", "-O2", "pie", "mold")], ids=str
)  # fmt: skip
def test_build_of_one_changed_file_grows_the_store_by_little(tmp_path: Path, variant: Variant) -> None:
    """A bug: a function that grows moves all behind it, and the image is kept nearly whole."""
    if not shutil.which(f"ld.{variant.linker}"):
        pytest.skip(f"ld.{variant.linker} is not installed")
    project = Project(tmp_path, variant)
    builds = [project.build(sources())]
    first = last = size(project.store)
    for times in range(1, 7):
        changed = FILES // 2 if times != 4 else 3  # another one in between
        before = builds[-1].snapshot
        files = sources(changed, 9 * times)
        builds.append(project.build(files, keep=[name for name in files if name != f"unit{changed}.c"]))
        assert builds[-1].snapshot.build_id != before.build_id
        row = project.store.snapshot_rows()[0]
        linked = sum(project.store.blobs.path(blob).stat().st_size for blob in (row.image, row.manifest))
        assert linked < 0.01 * first, times
        grown, last = size(project.store) - last, size(project.store)
        # With the changed object, one of many, and of so small ones what is kept of each weighs much.
        assert grown < 0.025 * first, times
    assert verify_store(project.store.folder) == []
    for build in builds:
        again = Store(project.store.folder)  # which has nothing in memory
        assert_image_is_the_linked_one(again, build)
        assert again.snapshot(build.snapshot.id) == build.snapshot


@pytest.mark.rest
def test_build_of_which_everything_changed_is_recorded_too(tmp_path: Path) -> None:
    project = Project(tmp_path)
    builds = [project.build(sources()), project.build(sources(), compile_flags=["-Os"])]
    for build in builds:
        assert_image_is_the_linked_one(Store(project.store.folder), build)


def test_damaged_earlier_image_stands_in_no_builds_way(tmp_path: Path) -> None:
    """A bug: a link that is not recorded since a snapshot of long ago is damaged."""
    project = Project(tmp_path)
    first = project.build(sources()).snapshot
    for blob in (first.image, project.store.snapshot_rows()[0].manifest):
        project.store.blobs.path(blob).write_bytes(b"KTB1 damaged")
    build = project.build(sources(3, 9), keep=[f"unit{n}.c" for n in range(FILES) if n != 3])
    assert_image_is_the_linked_one(Store(project.store.folder), build)
