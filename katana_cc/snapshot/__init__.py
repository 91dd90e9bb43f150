"""The store and what it holds: snapshots, releases, blobs."""
