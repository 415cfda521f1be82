"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# An example that takes long on a busy machine is no failure; one that hangs meets the timeout of its test.
settings.register_profile("milepost", deadline=None)
settings.load_profile("milepost")
