"""Staging: put away what a link was made of, while it still exists.

Run by `wrappers/libexec/katana/ld` beside each link:

    python3 -I -S stage.py [--ahead] MAP LINKER BUILD_ID_ADDED ARGV...

With `--ahead` the link goes on yet: a byte on standard input says that it has succeeded, the end of input that it has
not.

The link is not looked into: objects of compilations like `cc a.c b.c -o prog` are gone a moment later, and thousands
of links (every probe of a configure run) never matter to anyone.  So the contributing objects and archives, the output
and the map are copied, unless a copy is there already, and nothing is parsed but the names in the map.  The ingester
(`katana_cc.recorder.ingest`) does the rest, when a release knows the output or `katana-release` asks.

Why the names come from the map and not from the arguments: libraries found by -l, linker scripts, and the members of an
archive that were really taken are known to the linker only.

The layout of the staged folder and every key of `link.json` are specified in docs/staging.md.

It runs without site-packages, on the standard library, and each import costs every link (a test lists what is allowed).
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # With -I -S nothing else says where katana_cc is; and only modules, not scripts, have their byte code kept.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from katana_cc.recorder.staging.folder import link_key
from katana_cc.recorder.staging.link import FORMAT, main, stage

__all__ = ["FORMAT", "link_key", "main", "stage"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
