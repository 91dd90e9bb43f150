"""The Ansible role over four local hosts: check mode, a roll-out, again, and a stop at the first refusal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.live.server import Server, serving
from tests.live.test_update import Fleet, flip, published

ROOT = Path(__file__).parents[2]
ANSIBLE = Path(sys.executable).with_name("ansible-playbook")
pytestmark = [pytest.mark.rest, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return published(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def hosts(fleet: Fleet) -> Iterator[list[Server]]:
    """A process on each of four hosts: of the first, the second, the third and again the first release."""
    with ExitStack() as stack:
        yield [stack.enter_context(serving(fleet.builds[number].path)) for number in (0, 1, 2, 0)]


def answers(hosts: Sequence[Server]) -> list[str]:
    """What they say: release 1 adds one, and so on."""
    return [host.ask("a 10") for host in hosts]


def rollout(fleet: Fleet, hosts: Sequence[Server], folder: Path, *words: str, mirror: Path | None = None) -> Any:
    """Run the playbook; (status, what it says of each host)."""
    executable = folder / "katana"
    program = "import sys; from katana_cc.cli.main import main; sys.exit(main())"
    executable.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c "{program}" "$@"\n')
    executable.chmod(0o755)
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "katana_urls": [str(mirror or fleet.mirror)],
        "katana_trusted": [str(fleet.trusted)],
        "katana_executable": str(executable),
    }
    members = {f"host{n}": {"katana_pids": [host.pid]} for n, host in enumerate(hosts, 1)}
    inventory, results = folder / "hosts.json", folder / "results"
    shutil.rmtree(results, ignore_errors=True)
    inventory.write_text(json.dumps({"all": {"hosts": members, "vars": variables}}))
    environment = {
        **os.environ,
        "ANSIBLE_CALLBACKS_ENABLED": "tree",
        "ANSIBLE_CALLBACK_TREE_DIR": str(results),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
        "LC_ALL": "C.UTF-8",
    }
    playbook = ROOT / "fleet" / "ansible" / "rollout.yml"
    done = subprocess.run(
        [ANSIBLE, "-i", inventory, playbook, *words], env=environment, capture_output=True, text=True, check=False
    )
    told = {path.name: json.loads(path.read_text()) for path in results.iterdir()} if results.exists() else {}
    assert told, done
    return done.returncode, told


def test_roll_out(fleet: Fleet, hosts: list[Server], tmp_path: Path) -> None:
    assert answers(hosts) == ["11", "12", "13", "11"]
    status, told = rollout(fleet, hosts, tmp_path, "--check")
    assert (status, [told[f"host{n}"]["changed"] for n in range(1, 5)]) == (0, [True, True, False, True])
    assert answers(hosts) == ["11", "12", "13", "11"]
    status, told = rollout(fleet, hosts, tmp_path)
    assert (status, [told[f"host{n}"]["applied"] for n in range(1, 5)]) == (
        0,
        [[hosts[0].pid], [hosts[1].pid], [], [hosts[3].pid]],
    )
    assert answers(hosts) == ["13"] * 4
    status, told = rollout(fleet, hosts, tmp_path)
    assert (status, [told[f"host{n}"]["changed"] for n in range(1, 5)]) == (0, [False] * 4)
    assert told["host1"]["already"] == [hosts[0].pid]


def test_stops_at_the_first_refusal(fleet: Fleet, hosts: list[Server], tmp_path: Path) -> None:
    """The patch of the second host was altered on its way: the third and fourth are not begun."""
    mirror = tmp_path / "mirror"
    shutil.copytree(fleet.mirror, mirror)
    flip(next((mirror / "buildid" / fleet.builds[1].snapshot.build_id / "katana").glob("*.kpo")))
    status, told = rollout(fleet, hosts, tmp_path, mirror=mirror)
    assert status != 0
    assert sorted(told) == ["host1", "host2"]
    assert "it is not what the index says" in told["host2"]["msg"]
    assert answers(hosts) == ["13", "12", "13", "11"]
