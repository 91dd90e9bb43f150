"""Releases and bundles."""
