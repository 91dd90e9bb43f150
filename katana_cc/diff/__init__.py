"""From two snapshots to what changed and whether it can be carried."""
