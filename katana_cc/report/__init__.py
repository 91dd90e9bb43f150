"""Words and JSON for people and scripts."""
