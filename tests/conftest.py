"""Settings for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Before PyTorch is imported: tests run side by side, and threads that wait for each other by
# spinning take the processors from those that work. What asks for threads still gets them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The same examples in every run of CI, so that a failure there can be run again.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """What is found out about this machine goes nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNEMOSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
