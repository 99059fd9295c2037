"""Damaged and hostile files against the real commands; ``docs/robustness.md`` says what holds."""

import sys
from pathlib import Path

# `models`, for `python -m tests.fuzz`; pytest has the folder on its path already.
sys.path.insert(0, str(Path(__file__).parents[1]))
