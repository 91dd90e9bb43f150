"""What a configure run's probes cost: a hundred small programs compiled, linked and removed again.

And a whole `./configure` with a hundred of them, as autoconf writes it: sixty compiles and forty links, each with its
source from a here-document, and a grep or a run of what came of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

from bench.figures import Figure, of_samples
from bench.measure import Run, cpus, differences, interleave, median, ratios, run, walls
from bench.setting import Setting

GROUP = "probes"
_PROBES = 100
_HEAD = """#!/bin/sh
# usage: CC=... ./configure
rm -f config.log conftest*
try() { # a command, and what it is to make
	rm -f "$2"
	if { ac_try="$1"; eval "$ac_try"; } 2>conftest.err && test -s "$2"; then ac_cv=yes; else ac_cv=no; fi
	cat conftest.err >>config.log
	rm -f conftest.err
}
"""
_PROBE = """printf 'checking for {what}... ' >>config.log
cat >conftest.c <<'END'
#include <stdio.h>
#include <{header}.h>
#define HAVE_{number} 1
int main(void)
{{
	return HAVE_{number} - 1;
}}
END
try '$CC -O2 {flags} conftest.c' {made}
sed -n 's/^HAVE_{number} //p' conftest.c >>config.log
echo "$ac_cv" >>config.log
rm -f conftest*
"""
_HEADERS = ("stdlib", "string", "unistd", "errno", "sys/types", "sys/stat", "stdint", "fcntl", "time", "no_such_header")


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
    yield from _configure(setting)
    store = folder / ".katana"
    links = len(list(store.glob("staged/links/*/link.json")))
    what = "staged links left by all these probes"
    yield Figure(GROUP, "left_links", what, links, "links", target=1.0, note="the next link sweeps the last one out")
    left = sum(p.lstat().st_size for p in store.rglob("*") if p.is_file())
    yield Figure(GROUP, "left_bytes", "what they hold", left / 1e3, "kB")


def _configure(setting: Setting) -> Iterator[Figure]:
    folder = setting.folder("configure")
    (folder / "configure").write_text(_HEAD + "".join(map(_written, range(_PROBES))))
    variants = {
        name: partial(run, ["sh", "configure"], cwd=folder, env=setting.environment() | {"CC": compiler})
        for name, compiler in (("plain", setting.compiler), ("katana", setting.wrapper))
    }
    results = interleave(variants, setting.rounds(9, 2))
    ours, theirs = results["katana"], results["plain"]
    what = f"a ./configure with {_PROBES} probes by katana-cc over one by cc"
    note = f"the plain one takes {median(walls(theirs)):.1f} s, and has no -g and no section flags"
    yield of_samples(
        GROUP, "configure", f"{what}, wall clock", ratios(walls(ours), walls(theirs)), "x", target=1.05, note=note
    )
    yield of_samples(
        GROUP, "configure_cpu", f"{what}, CPU time", ratios(cpus(ours), cpus(theirs)), "x", note="steadier"
    )


def _written(number: int) -> str:
    """One probe of the script: three compiles for two links, as in the configure scripts of common programs."""
    is_link = number % 5 in (1, 3)
    return _PROBE.format(
        number=number,
        what=f"{_HEADERS[number % len(_HEADERS)]}.h" if not is_link else f"function {number}",
        header=_HEADERS[number % len(_HEADERS)],
        flags="-o conftest" if is_link else "-c",
        made="conftest" if is_link else "conftest.o",
    )


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
