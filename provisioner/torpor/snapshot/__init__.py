"""Snapshots: the whole memory of hibernated kernels on disk, and whether they can be restored."""
