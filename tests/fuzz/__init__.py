"""Property tests: generated C programs with generated edits, patched and reverted while they run.

    generate ── program ── edits ── program'          values (`program.py`), drawn by Hypothesis
                   │                    │
                 render               render          C text, a driver that speaks a line protocol
                   │                    │
                 model ─── state ──── model           an interpreter says what a process must answer
                   └────── case ────────┘             two texts, how to build them, commands and answers
                             │
                           check                      builds, runs, patches, compares, reverts, compares

The oracle of a patched process is the model of the new program on the state that the old one has come to.  That the
model is right is checked against both builds in every example.
"""
