"""Torpor: Jupyter kernels in gVisor sandboxes that sleep without forgetting."""

from torpor._version import __version__ as __version__
