"""Signatures of what hosts are given, and whom they trust."""
