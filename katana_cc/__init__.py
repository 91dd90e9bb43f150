"""Katana: patches native programs while they run, as a by-product of the ordinary build."""

__version__ = "0.1.0"
