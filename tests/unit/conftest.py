"""What holds for the tests of properties, which are all in this folder."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The clock says how busy the machine is, and nothing of what is tested. Other folders need not load Hypothesis.
settings.register_profile(
    "no clock", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("no clock")
