"""The support matrix: every kind of code change, as data, patched live in every kind of build."""
