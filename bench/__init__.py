"""Benchmarks: what recording, patching and a patched call cost, each against a floor measured in the same run."""
