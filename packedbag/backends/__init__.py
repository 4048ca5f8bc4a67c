"""Ways of computing: one file each, chosen through the registry.

``packedbag.backends.available(device)`` lists what can run; the environment variable ``PACKEDBAG_BACKEND``
forces one by name.
"""

from packedbag.backends.registry import available, get, missing, select

__all__ = ["available", "get", "missing", "select"]
