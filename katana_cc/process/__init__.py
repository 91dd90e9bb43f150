"""Targets: reading, stopping, patching, reverting."""
