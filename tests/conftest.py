"""What every test runs under: examples are the same in every run unless HYPOTHESIS_PROFILE=explore."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A shared or emulated machine may take any time for an example, so slowness alone fails nothing.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("repeat", max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("explore", max_examples=500, deadline=None, print_blob=True, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
