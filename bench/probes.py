"""What a configure run's probes cost: a hundred small programs compiled, linked and removed again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

from bench.figures import Figure, of_samples
from bench.measure import Run, cpus, differences, interleave, median, ratios, run, walls
from bench.setting import Setting

GROUP = "probes"


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the cost a probe, for autoconf's names (`conftest`) and for names that say nothing."""
    folder = setting.folder("probes")
    (folder / "configure").write_text("#!/bin/sh\n")
    rounds = setting.rounds(100, 10)

    for kind in ("conftest", "other"):
        results = interleave(
            {
                "plain": partial(_probe, setting, setting.compiler, folder, kind, count()),
                "katana": partial(_probe, setting, setting.wrapper, folder, kind, count()),
            },
            rounds,
        )
        ours, theirs = results["katana"], results["plain"]
        plain = median(walls(theirs)) * 1000
        added = differences(walls(ours), walls(theirs), 1000)
        note = f"a plain probe takes {plain:.1f} ms; {rounds} probes"
        yield of_samples(GROUP, f"{kind}_added", f"added to one probe ({kind}), wall clock", added, "ms", note=note)
        cpu = ratios(cpus(ours), cpus(theirs))
        note = "the plain probes have no -g and no section flags"
        yield of_samples(GROUP, f"{kind}_ratio", f"CPU time of probes ({kind}) over plain ones", cpu, "x", note=note)
    store = folder / ".katana"
    links = len(list(store.glob("staged/links/*/link.json")))
    what = "staged links left by all these probes"
    yield Figure(GROUP, "left_links", what, links, "links", target=1.0, note="the next link sweeps the last one out")
    left = sum(p.lstat().st_size for p in store.rglob("*") if p.is_file())
    yield Figure(GROUP, "left_bytes", "what they hold", left / 1e3, "kB")


def _probe(setting: Setting, compiler: str, folder: Path, kind: str, numbers: Iterator[int]) -> Run:
    """Compile and link one probe, each another program, and remove it."""
    number = next(numbers)
    name = "conftest" if kind == "conftest" else f"probe{number}"
    source = folder / f"{name}.c"
    source.write_text(f"int probed_{number};\nint main(void)\n{{\n\treturn probed_{number};\n}}\n")
    done = run([compiler, "-O2", "-o", name, source.name], cwd=folder, env=setting.environment())
    (folder / name).unlink()
    source.unlink()
    return done
