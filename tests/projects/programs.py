"""Real programs from Debian's sources, one or more for each build system: how each is built, tested and edited.

All commands are run by `sh -e` in the unpacked source, with CC and CXX in the environment and nothing else that a build
without Katana would not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one source file: `old` stands there at least once, and its first occurrence becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Program:
    """A source package, and what to say to build it.

    Attributes:
        package: the name of Debian's source package.
        system: its build system, in words.
        build: how it is configured and built.
        rebuild: how it is built again after the edit.
        test: its own test-suite; an exit status of 0 says that it passed.
        edit: a change that a patch has to carry.
        needs: packages that the build needs besides compilers, make, CMake and Meson.
        patched: whether Debian's patches are applied first (dpkg-buildpackage applies them itself).
    """

    package: str
    system: str
    build: str
    rebuild: str
    test: str
    edit: Edit
    needs: tuple[str, ...] = ()
    patched: bool = True


_AUTOTOOLS: Final = "autotools"
_LIBTOOL: Final = "autotools, libtool"
_AUTORECONF: Final = "autoreconf -fi\n./configure && make -j2"
_CMAKE: Final = "cmake -S . -B build -G {} -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_POLICY_VERSION_MINIMUM=3.5"
# Without packages for all architectures: documentation needs tools of its own.
# Debian's patches stay: dpkg would take them off behind the build, and the edit would be of another source.
_DPKG: Final = (
    "mkdir -p debian/source && echo no-unapply-patches >> debian/source/local-options\n"
    "dpkg-buildpackage -B -uc -us -d -j2"
)
_DEBIAN: Final = "dpkg-buildpackage"

PROGRAMS: Final = (
    Program(
        "zlib", "its own configure", "./configure && make -j2", "make -j2", "make test",
        Edit("inflate.c", "state->havedict = 0;", "state->havedict = 0; strm->adler = 0;"),
    ),
    Program(
        "bzip2", "plain make", 'make -j2 CC="$CC" bzip2 bzip2recover', 'make CC="$CC" bzip2', 'make CC="$CC" test',
        Edit("compress.c", "s->bsBuff = 0;", "s->bsBuff = 0; s->combinedCRC = 0;"),
    ),
    Program(
        "tinycdb", "plain make, static and shared", 'make -j2 CC="$CC" static shared', 'make CC="$CC" static shared',
        'make CC="$CC" check check-shared', Edit("cdb_hash.c", "return hash;", "return hash + 1;"),
    ),
    Program(
        "xxhash", "plain make", "make -j2 lib xxhsum", "make lib xxhsum", "make check",
        Edit("xxhash.h", "{ return XXH_VERSION_NUMBER; }", "{ return XXH_VERSION_NUMBER + 1; }"),
    ),
    Program(
        "lz4", "plain make, shared library", "make -j2 lib lz4", "make lib lz4", "make -C tests test-lz4-basic",
        Edit("lib/lz4.c", "int LZ4_versionNumber (void) { return LZ4_VERSION_NUMBER; }",
             "int LZ4_versionNumber (void) { return LZ4_VERSION_NUMBER + 1; }"),
    ),
    Program(
        "pv", "autoconf, one makefile", "./configure && make -j2", "make -j2", "make test",
        Edit("src/pv/number.c", "return n;", "return n + 1;"),
    ),
    Program(
        "jansson", _LIBTOOL, _AUTORECONF, "make -j2", "make -j2 check",
        Edit("src/load.c", "stream->line = 1;", "stream->line = 2;"),
    ),
    Program(
        "libyaml", _LIBTOOL, _AUTORECONF, "make -j2", "make -j2 check",
        Edit("src/api.c", "*minor = YAML_VERSION_MINOR;", "*minor = YAML_VERSION_MINOR + 1;"),
    ),
    Program(
        "popt", _LIBTOOL, "./configure && make -j2", "make -j2", "make check",
        Edit("src/popt.c", "con->flags = flags;", "con->flags = flags & 0xffff;"),
    ),
    Program(
        "gzip", _AUTOTOOLS, "./configure && make -j2", "make -j2", "make -j2 check",
        Edit("gzip.c", "Written by Jean-loup Gailly.", "Written by Jean-loup Gailly and others."),
        needs=("texinfo",),
    ),
    Program(
        "json-c", "CMake, Ninja", _CMAKE.format("Ninja") + " && cmake --build build", "cmake --build build",
        "ctest --test-dir build",
        Edit("json_c_version.c", "return JSON_C_VERSION_NUM;", "return JSON_C_VERSION_NUM + 1;"),
    ),
    Program(
        "cjson", "CMake, Makefiles", _CMAKE.format("'Unix Makefiles'") + " && cmake --build build -j2",
        "cmake --build build", "ctest --test-dir build",
        Edit("cJSON.c", "return (const char*) (global_error.json + global_error.position);",
             "return (const char*) (global_error.json + global_error.position + 1);"),
    ),
    Program(
        "tinyxml2", "CMake, Ninja, C++", _CMAKE.format("Ninja") + " -DBUILD_SHARED_LIBS=ON && cmake --build build",
        "cmake --build build", "ctest --test-dir build",
        Edit("tinyxml2.cpp", "_errorLineNum = lineNum;", "_errorLineNum = lineNum + 1;"),
    ),
    Program(
        "fribidi", "Meson", "meson setup build -Ddocs=false && ninja -C build", "ninja -C build", "meson test -C build",
        Edit("lib/fribidi-mirroring.c", "if (mirrored_ch)", "if (mirrored_ch && ch != 0x110000)"),
    ),
    Program(
        "libjsoncpp", "Meson, C++", "meson setup build && ninja -C build", "ninja -C build", "meson test -C build",
        Edit("src/lib_json/json_value.cpp", "limit_ = other.limit_;", "limit_ = other.limit_ + 1;"),
    ),
    Program(
        "hello", _DEBIAN, _DPKG, "make -j2", "make check",
        Edit("src/hello.c", "greeting_msg = optarg;", "greeting_msg = optarg + 1;"),
        needs=("debhelper", "texinfo", "help2man"), patched=False,
    ),
    Program(
        "libyaml", _DEBIAN + ", libtool", _DPKG, "make -j2", "make -j2 check",
        Edit("src/api.c", "*minor = YAML_VERSION_MINOR;", "*minor = YAML_VERSION_MINOR + 1;"),
        needs=("debhelper",), patched=False,
    ),
    Program(
        "popt", _DEBIAN + ", libtool", _DPKG, "make -j2", "make check",
        Edit("src/popt.c", "con->flags = flags;", "con->flags = flags & 0xffff;"), needs=("debhelper",), patched=False,
    ),
    Program(
        "cjson", _DEBIAN + ", CMake", _DPKG, "cmake --build obj-*", "ctest --test-dir obj-*",
        Edit("cJSON.c", '"%i.%i.%i"', '"%i.%i-%i"'),
        needs=("debhelper",), patched=False,
    ),
    Program(
        "ncompress", _DEBIAN + ", plain make", _DPKG, "debian/rules override_dh_auto_build", "make check",
        Edit("compress42.c", "Compression: ", "Compressed by: "),
        needs=("debhelper",), patched=False,
    ),
)  # fmt: skip
