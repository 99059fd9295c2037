"""TOML from files that may be anything."""

from __future__ import annotations

import tomllib
from typing import Any


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: It is none; the message says why, without a full stop.
    """
    try:
        return tomllib.loads(text)  # a ValueError also for integers of 5,000 digits
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
