"""From a release to a host: signed bundles, mirrors, and `katana update`, over real builds and processes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from katana_cc.cli.release import release
from katana_cc.release.naming import name_release
from tests.live.programs import HEAD
from tests.live.server import katana, katana_json, serving, tracing
from tests.support.project import Build, Project

ANSWER = "static int asked; int answer(int x) { asked += 2 * x; return (asked & 1) + x + %d; }"
MAIN = (
    HEAD
    + r"""
int answer(int x);
int main(void) {
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) { printf("%d\n", answer(atoi(line + 2))); fflush(stdout); }
  return 0;
}
"""
)
NAMES = ("v1.0", "v1.1", "v1.2")


def key_pair(folder: Path, name: str = "build") -> Path:
    """A private key of openssl's; its public half is alone in `NAME.trusted`."""
    key = folder / f"{name}.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    (folder / f"{name}.trusted").mkdir()
    public = folder / f"{name}.trusted" / f"{name}.pem"
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    return key


class Fleet:
    """Three releases of a program, the last of them current; a bundle of patches, and a mirror."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = Project(folder / "project")
        self.key = key_pair(folder)
        self.trusted = folder / "build.trusted"
        self.mirror = folder / "mirror"
        self.bundle = folder / "bundle"
        self.builds: list[Build] = []
        for step, name in enumerate(NAMES, 1):
            build = self.project.build({"a.c": ANSWER % step, "main.c": MAIN})
            build.path.chmod(0o755)
            name_release(self.project.store, name, deployed=True)
            self.builds.append(build)

    def release(self, *words: str | Path) -> int:
        """Run `katana-release` in the project."""
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(self.project.folder)
            return release([str(w) for w in words])

    def index(self, number: int) -> Path:
        """The index of the patches from a release."""
        return self.mirror / "buildid" / self.builds[number].snapshot.build_id / "katana" / "index.json"


def published(folder: Path) -> Fleet:
    """The releases, published and signed."""
    fleet = Fleet(folder)
    words = ("--since", "v1.0", "-o", fleet.bundle, "--sign", fleet.key, "--publish", fleet.mirror)
    assert fleet.release(*words) == 0
    return fleet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return published(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def fleet(made: Fleet, tmp_path: Path) -> Iterator[Fleet]:
    """The same with a mirror of its own, that a test may spoil."""
    whole = made.mirror
    made.mirror = tmp_path / "mirror"
    shutil.copytree(whole, made.mirror)
    yield made
    made.mirror = whole


@contextmanager
def web(folder: Path) -> Iterator[str]:
    """A web server for a folder; its URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_every_process_comes_to_the_newest(fleet: Fleet) -> None:
    """Processes of all three releases, a web server that knows nothing of us, one command."""
    with ExitStack() as stack:
        url = stack.enter_context(web(fleet.mirror))
        servers = [stack.enter_context(serving(build.path)) for build in fleet.builds]
        assert [s.ask("a 10") for s in servers] == ["11", "12", "13"]
        pids = [s.pid for s in servers]
        words = ("--url", url, "--trusted", fleet.trusted, "--require-signature")
        dry = katana_json("update", "--pid", *pids, "--dry-run", *words)
        assert sorted(p["outcome"] for b in dry["builds"] for p in b["processes"]) == ["would apply"] * 2
        assert [s.ask("a 10") for s in servers] == ["11", "12", "13"]
        done = katana_json("update", "--pid", *pids, *words)
        assert {p["pid"] for b in done["builds"] for p in b["processes"]} == set(pids[:2])
        assert [s.ask("a 10") for s in servers] == ["13", "13", "13"]
        again = katana("update", "--pid", *pids, *words)
        assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "2 already applied")


def test_all_processes(fleet: Fleet) -> None:
    with serving(fleet.builds[0].path) as one, serving(fleet.builds[1].path) as two:
        done = katana_json("update", "--all", "--url", fleet.mirror)
        assert {p["pid"] for b in done["builds"] for p in b["processes"]} == {one.pid, two.pid}
        assert (one.ask("a 1"), two.ask("a 1")) == ("4", "4")


def test_what_came_of_each_of_several(fleet: Fleet) -> None:
    """A bug: a script cannot tell which processes are as they were, and why."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with serving(fleet.builds[0].path) as one, serving(fleet.builds[1].path) as two:
        words = ("update", "--url", fleet.mirror, "--json", "--pid")
        done = katana(*words, one.pid, two.pid, ended.pid)
        result = json.loads(done.stdout)
        assert (done.returncode, result["error"]["status"]) == (5, 5)
        assert {p["pid"]: p["outcome"] for p in result["processes"]} == {
            one.pid: "not tried",
            two.pid: "not tried",
            ended.pid: "failed",
        }
        assert (result["counts"]["not tried"], result["counts"]["failed"]) == (2, 1)
        with tracing(two.pid):
            done = katana(*words, one.pid, two.pid)
        result = json.loads(done.stdout)
        assert done.returncode == 5
        told = {p["pid"]: p["outcome"] for b in result["builds"] for p in b["processes"]}
        assert told == {one.pid: "applied", two.pid: "failed"}
        assert (result["counts"]["applied"], result["counts"]["failed"]) == (1, 1)
        text = katana("update", "--url", fleet.mirror, "--pid", one.pid, two.pid)
        assert (text.returncode, text.stdout.splitlines()[-1]) == (0, "1 applied, 1 already applied")


def test_bundle_is_signed_as_openssl_would(fleet: Fleet) -> None:
    """A bug: another tool than ours calls the signatures wrong."""
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=fleet.bundle, check=True)
    files = [p for p in fleet.bundle.iterdir() if p.suffix != ".sig"]
    assert {p.name for p in fleet.bundle.glob("*.sig")} == {f"{p.name}.sig" for p in files}
    public = fleet.trusted / "build.pem"
    for path in files:
        words = f"openssl pkeyutl -verify -rawin -pubin -inkey {public} -in {path} -sigfile {path}.sig"
        subprocess.run(words.split(), check=True, capture_output=True)
    notes = (fleet.bundle / "RELEASE-NOTES.md").read_text()
    assert "v1.0 → v1.2" in notes
    assert "Functions changed: answer" in notes
    page = (fleet.bundle / "index.html").read_text()
    assert page.count("<section") == 2
    assert "All of these patches may be applied." in page


def test_published_again(fleet: Fleet) -> None:
    """A bug: a patch is listed twice, or what others published is gone."""
    before = json.loads(fleet.index(0).read_text())
    other = {**before["patches"][0], "id": "ab" * 16, "file": f"{'ab' * 16}.kpo", "to_release": "v1.05"}
    fleet.index(0).write_text(json.dumps({**before, "patches": [other, *before["patches"]]}))
    assert fleet.release("--since", "v1.0", "-o", fleet.mirror / "b", "--publish", fleet.mirror) == 0
    after = json.loads(fleet.index(0).read_text())
    assert [e["to_release"] for e in after["patches"]] == ["v1.2", "v1.05"]


def patch_file(fleet: Fleet) -> Path:
    """The one patch from the first release, in the mirror."""
    return next(fleet.index(0).parent.glob("*.kpo"))


def flip(path: Path) -> None:
    """Change one bit in the midst of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


SPOILED: dict[str, tuple[Callable[[Fleet], object], str]] = {
    "patch altered": (lambda fleet: flip(patch_file(fleet)), "it is not what the index says"),
    "patch missing": (lambda fleet: patch_file(fleet).unlink(), "the index names it, and it is not there"),
    "patch cut": (lambda fleet: patch_file(fleet).write_bytes(b"\x7fELF"), "4 bytes, not"),
    "patch's signature altered": (lambda fleet: flip(Path(f"{patch_file(fleet)}.sig")), "none of these keys'"),
    "patch's signature gone": (lambda fleet: Path(f"{patch_file(fleet)}.sig").unlink(), "it is not signed"),
    "index altered": (lambda fleet: flip(fleet.index(0)), "none of these keys'"),
    "index's signature gone": (lambda fleet: Path(f"{fleet.index(0)}.sig").unlink(), "it is not signed"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_a_mirror_must_not_serve(fleet: Fleet, how: str, tmp_path: Path) -> None:
    """Each is named, nothing is touched; and another mirror that is whole is used in its place."""
    whole = tmp_path / "whole"
    shutil.copytree(fleet.mirror, whole)
    spoil, words = SPOILED[how]
    spoil(fleet)
    trust = ("--trusted", fleet.trusted, "--require-signature")
    with serving(fleet.builds[0].path) as server:
        done = katana("update", "--pid", server.pid, "--url", fleet.mirror, *trust)
        assert words in done.stderr
        assert server.ask("a 1") == "2"
        assert "Traceback" not in done.stderr
        assert done.returncode in (3, 7), done
        done = katana("update", "--pid", server.pid, "--url", fleet.mirror, "--url", whole, *trust)
        assert words in done.stderr
        assert server.ask("a 1") == "4"


def test_mirror_that_is_down(fleet: Fleet) -> None:
    with web(fleet.mirror) as url:
        pass
    with serving(fleet.builds[0].path) as server:
        done = katana("update", "--pid", server.pid, "--url", url)
        assert done.returncode == 5
        assert "cannot be fetched" in done.stderr
        assert url in done.stderr
        done = katana("update", "--pid", server.pid, "--url", url, "--url", fleet.mirror)
        assert (done.returncode, "cannot be fetched" in done.stderr) == (0, True)
        assert server.ask("a 1") == "4"
        assert katana("update", "--pid", server.pid).returncode == 2


def test_signature_of_a_file_that_is_applied(fleet: Fleet, tmp_path: Path) -> None:
    """`katana apply` and `katana run` keep to the same policy."""
    patch = tmp_path / "patch.kpo"
    source = next(p for p in fleet.bundle.glob("*.kpo") if "v1.0" in p.name)
    patch.write_bytes(source.read_bytes())
    key_pair(tmp_path, "other")
    with serving(fleet.builds[0].path) as server:

        def applied(*words: str | Path) -> tuple[int, str]:
            done = katana("apply", patch, "--pid", server.pid, "--dry-run", *words)
            return done.returncode, done.stderr

        trust = ("--trusted", fleet.trusted)
        assert applied() == (0, "")
        assert applied(*trust) == (0, "")
        status, said = applied(*trust, "--require-signature")
        assert (status, "not signed" in said) == (3, True)
        beside = Path(f"{patch}.sig")
        beside.write_bytes(Path(f"{source}.sig").read_bytes())
        assert applied(*trust, "--require-signature") == (0, "")
        assert applied("--require-signature")[0] == 3
        status, said = applied("--trusted", tmp_path / "other.trusted")
        assert (status, "whom this host does not trust" in said) == (7, True)
        flip(beside)
        assert applied() == (0, "")
        assert applied(*trust)[0] == 7
        assert applied("--trusted", tmp_path / "nowhere")[0] == 2
        done = katana("run", "--patch", patch, *trust, fleet.builds[0].path)
        assert done.returncode == 7


def test_keys_that_are_none(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pem").write_text("hello")
    subprocess.run(["openssl", "genrsa", "-out", tmp_path / "rsa.pem", "2048"], check=True, capture_output=True)
    for name, words in (("text", "no private key"), ("rsa", "none of Ed25519"), ("missing", "cannot be read")):
        folder = tmp_path / f"bundle-{name}"
        assert fleet.release("--since", "v1.0", "-o", folder, "--sign", tmp_path / f"{name}.pem") == 2
        assert words in capsys.readouterr().err
        assert not folder.exists()


def test_whole_bundle_and_spoiled_ones(fleet: Fleet, tmp_path: Path) -> None:
    """A flipped bit anywhere, a file too few or too many: `katana check` names the file."""
    trust = ("--trusted", fleet.trusted, "--require-signature")
    done = katana("check", fleet.bundle, *trust)
    assert (done.returncode, done.stdout) == (0, f"{fleet.bundle}: ok, signed\n")
    names = sorted(path.name for path in fleet.bundle.iterdir())
    assert len(names) == 12
    for name in names:
        for harm in (flip, Path.unlink):
            copy = tmp_path / f"{name}-{harm.__name__}"
            shutil.copytree(fleet.bundle, copy)
            harm(copy / name)
            done = katana("check", copy, *trust)
            assert done.returncode == 7, (name, harm, done)
            assert name.removesuffix(".sig") in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
    (copy / "more.kpo").touch()
    assert "more.kpo: no part of the bundle" in katana("check", copy).stdout


def test_manifest_is_as_its_schema_says(fleet: Fleet) -> None:
    schema = json.loads(Path("docs/manifest.schema.json").read_text())
    manifest = json.loads((fleet.bundle / "manifest.json").read_text())
    assert sorted(manifest) == sorted(schema["required"]) == sorted(schema["properties"])
    assert manifest["format"] == schema["properties"]["format"]["const"]
    patch = schema["$defs"]["patch"]
    for fields in manifest["patches"]:
        assert sorted(fields) == sorted(patch["required"]) == sorted(patch["properties"])
        assert fields["verdict"] in patch["properties"]["verdict"]["enum"]
        for name, rule in patch["properties"].items():
            if "pattern" in rule:
                assert re.search(rule["pattern"], fields[name])


def test_metrics(fleet: Fleet) -> None:
    """Every line is one of Prometheus' text format; what is applied is counted."""
    with serving(fleet.builds[0].path) as one, serving(fleet.builds[0].path) as two:
        katana_json("update", "--pid", one.pid, two.pid, "--url", fleet.mirror)
        lines = katana("status", "--prometheus").stdout.splitlines()
        sample = re.compile(
            r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="([^"\\\n]|\\["\\n])*"(,\w+="([^"\\\n]|\\["\\n])*")*\})? \d+'
        )
        assert all(sample.fullmatch(line) for line in lines), lines
        # Another test may have processes with such a patch of its own.
        (patch,) = katana_json("status", "--pid", one.pid)["processes"][0]["patches"]
        named = f'patch="{patch["patch"]}"'
        (mine,) = (line for line in lines if named in line and 'state="applied"' in line)
        assert 'from="v1.0",to="v1.2"' in mine
        assert mine.endswith(" 2")
