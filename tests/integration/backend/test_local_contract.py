"""The local backend keeps the promises of a backend, on real runsc."""

from __future__ import annotations

import pytest

from tests.contract.backend import BackendContract

pytestmark = pytest.mark.runsc


class TestLocalBackend(BackendContract):
    """``subject`` comes from conftest.py."""
