"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples in every run of CI, so that a failure there can be run again.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")
