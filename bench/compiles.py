"""What the wrapper adds to one compile of a small file: it should be no more than starting a shell."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bench.figures import Figure, of_samples
from bench.measure import cpus, differences, interleave, median, run, walls
from bench.setting import SECTION_FLAGS, Setting

GROUP = "compile"

_SOURCE = "int twice(int number)\n{\n\treturn number * 2;\n}\n"


def measure(setting: Setting) -> Iterator[Figure]:
    """Yield the wrapper's cost a compile, and that of the least shell script there can be, as its floor."""
    folder = setting.folder("compile")
    (folder / "small.c").write_text(_SOURCE)
    least = folder / "least"
    least.write_text(f'#!/bin/sh\nexec {setting.compiler} "$@"\n')
    least.chmod(0o755)
    arguments = ["-O2", "-c", "small.c", "-o", "small.o"]
    env = setting.environment()
    command = partial(run, cwd=folder, env=env)
    results = interleave(
        {
            "plain": partial(command, [setting.compiler, *SECTION_FLAGS, *arguments]),
            "least": partial(command, [str(least), *SECTION_FLAGS, *arguments]),
            "katana": partial(command, [setting.wrapper, *arguments]),
        },
        setting.rounds(400, 40),
    )
    plain = results["plain"]
    note = f"a plain compile takes {median(walls(plain)) * 1000:.1f} ms, {median(cpus(plain)) * 1000:.1f} ms of CPU"
    for name, samples, what, target in (
        ("added", walls, "added to one cc -c of a small file, wall clock", 2.0),
        ("added_cpu", cpus, "added to one cc -c of a small file, CPU time", None),
    ):
        base = samples(plain)
        floor = median(differences(samples(results["least"]), base, 1000))
        ours = differences(samples(results["katana"]), base, 1000)
        yield of_samples(GROUP, name, what, ours, "ms", floor=max(floor, 0.0), target=target, note=note)
        note = "floor: a script of one line that execs the compiler"
