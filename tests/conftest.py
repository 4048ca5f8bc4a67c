"""What every test runs under: examples are the same in every run unless HYPOTHESIS_PROFILE=explore."""

from __future__ import annotations

import os

# Before torch is imported: several test processes share the cores, and OpenMP threads that spin while they wait
# take them from each other (a trainer's tests: 340 s spinning, 34 s sleeping).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hypothesis import HealthCheck, settings

# A shared or emulated machine may take any time for an example, so slowness alone fails nothing.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("repeat", max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("explore", max_examples=500, deadline=None, print_blob=True, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
