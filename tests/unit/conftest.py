"""How Hypothesis looks for counterexamples here."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A noisy machine is no bug, so no example has a deadline. Every run of the suite tries the same examples, so that what
# passed here passes elsewhere; HYPOTHESIS_PROFILE=deep looks for other ones, and for longer.
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", deadline=None, max_examples=5_000, suppress_health_check=list(HealthCheck))
settings.load_profile("deep" if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else "same")
