"""Every kind of code change, live, in every kind of build (docs/support-matrix.md).

`make test` takes a sample: all cases together in every variant, and each case singly in one of them.  `make matrix`
sets KATANA_MATRIX and runs each case singly in every variant.
"""
