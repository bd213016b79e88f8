"""Goldens: checkpoints of booted, warmed kernels on disk, and whether they may still be used."""
