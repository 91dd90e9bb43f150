"""Who takes the compiler from CC in one word, or finds libraries by pkg-config: Rust's crates `cc` and `pkg-config`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.installation import Installation
from tests.support.staged import links

# Where Debian's packages librust-cc-dev and librust-pkg-config-dev put sources; no test fetches crates from elsewhere.
REGISTRY = Path("/usr/share/cargo/registry")
MAIN_C = "#include <answer.h>\nint main(void) { return answer() - 42; }\n"
MAIN_RS = 'extern "C" { fn answer() -> i32; }\nfn main() { println!("{}", unsafe { answer() }); }\n'
ANSWER = "int answer(void) { return 42; }\n"


def good(katana: Installation, cwd: Path, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command that must succeed."""
    done = katana.run(*words, cwd=cwd, stdin=None, **variables)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert b"not recorded" not in done.stderr
    return done


@pytest.fixture
def library(katana: Installation, project: Path) -> dict[str, str]:
    """`libanswer` as built by katana-cc in `project/lib`, and what makes pkg-config find it."""
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    folder = project / "lib"
    folder.mkdir()
    (folder / "answer.c").write_text(ANSWER)
    (folder / "answer.h").write_text("int answer(void);\n")
    (folder / "answer.pc").write_text(
        f"here={folder}\nName: answer\nDescription: 42\nVersion: 1.2\n"
        "Cflags: -I${here} -DANSWER=1\nLibs: -L${here} -lanswer -Wl,-rpath,${here}\n"
    )
    make(katana, folder)
    return {"PKG_CONFIG_PATH": str(folder), "CC": "katana-cc", "HOME": os.environ.get("HOME", "")}


def make(katana: Installation, folder: Path) -> bytes:
    """Build the library; what was printed."""
    words = ["-O1", "-fPIC", "-shared", "answer.c", "-o", "libanswer.so", "-Wl,-soname,libanswer.so"]
    return good(katana, folder, katana.cc, "gcc", *words).stderr


def crate(project: Path, dependency: str, build: str) -> None:
    """A crate with a build script, whose dependencies come from Debian's registry."""
    for program in ("cargo", "rustc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if not list(REGISTRY.glob(f"{dependency}-[0-9]*")):
        pytest.skip(f"librust-{dependency}-dev is not installed")
    (project / "src").mkdir()
    (project / "src" / "main.rs").write_text(MAIN_RS)
    (project / "build.rs").write_text(build)
    (project / "Cargo.toml").write_text(
        f'[package]\nname = "prog"\nversion = "0.1.0"\nedition = "2018"\n[build-dependencies]\n{dependency} = "*"\n'
    )
    (project / ".cargo").mkdir()
    (project / ".cargo" / "config.toml").write_text(
        f'[source.crates-io]\nreplace-with = "debian"\n[source.debian]\ndirectory = "{REGISTRY}"\n'
        '[target.x86_64-unknown-linux-gnu]\nlinker = "katana-cc"\n'
    )


def test_a_program_finds_a_library_by_pkg_config(katana: Installation, project: Path, library: dict[str, str]) -> None:
    (project / "main.c").write_text(MAIN_C)
    (project / "Makefile").write_text(
        "prog: main.c\n\t$(CC) $$(pkg-config --cflags answer) $< -o $@ $$(pkg-config --libs answer)\n"
    )
    assert good(katana, project, "make", **library).stderr == b""
    assert {entry["output_key"] for entry in links(project / ".katana")} == {"prog", "lib/libanswer.so"}
    good(katana, project, "katana-release", "v1")
    (project / "lib" / "answer.c").write_text(ANSWER.replace("42", "43"))
    assert b"libanswer.so (v1 " in make(katana, project / "lib")
    assert good(katana, project, "make", **library).stderr == b""
    assert subprocess.run([project / "prog"], check=False).returncode == 1


def test_rust_links_through_us(katana: Installation, project: Path) -> None:
    if shutil.which("rustc") is None:
        pytest.skip("rustc is not installed")
    (project / "a.rs").write_text('fn main() { println!("{}", 42); }\n')
    good(katana, project, "rustc", "-C", "linker=katana-cc", "a.rs", HOME=os.environ.get("HOME", ""))
    assert [entry["output_key"] for entry in links(project / ".katana")] == ["a"]
    assert good(katana, project, "katana-release", "v1").stdout.startswith(b"v1: a (")
    assert subprocess.run([project / "a"], capture_output=True, check=True).stdout == b"42\n"


@pytest.mark.rest
def test_the_crate_cc_compiles_by_one_word_and_its_c_is_patched(katana: Installation, project: Path) -> None:
    # The crate takes CC for the name of a program, and asks it what it is by -E.
    (project / "answer.c").write_text(ANSWER)
    crate(project, "cc", 'fn main() { cc::Build::new().file("answer.c").compile("answer"); }')
    variables = {"CC": "katana-cc", "HOME": os.environ.get("HOME", "")}
    good(katana, project, "cargo", "build", "--offline", **variables)
    program = project / "target" / "debug" / "prog"
    assert subprocess.run([program], capture_output=True, check=True).stdout == b"42\n"
    good(katana, project, "katana-release", "v1")
    (project / "answer.c").write_text(ANSWER.replace("42", "43"))
    good(katana, project, "cargo", "build", "--offline", **variables)
    assert subprocess.run([program], capture_output=True, check=True).stdout == b"43\n"
    (patch,) = (project / ".katana" / "patches").rglob("*.kpo")
    shown = good(katana, project, "katana", "explain", patch).stdout
    assert b"answer" in shown


@pytest.mark.rest
def test_the_crate_pkg_config_finds_a_library_of_ours(
    katana: Installation, project: Path, library: dict[str, str]
) -> None:
    crate(project, "pkg-config", 'fn main() { pkg_config::probe_library("answer").unwrap(); }')
    rpath = {"RUSTFLAGS": f"-C link-arg=-Wl,-rpath,{project}/lib"}
    good(katana, project, "cargo", "build", "--offline", **library, **rpath)
    good(katana, project, "katana-release", "v1")
    (project / "lib" / "answer.c").write_text(ANSWER.replace("42", "43"))
    assert b"libanswer.so (v1 " in make(katana, project / "lib")
    program = project / "target" / "debug" / "prog"
    assert subprocess.run([program], capture_output=True, check=True).stdout == b"43\n"
