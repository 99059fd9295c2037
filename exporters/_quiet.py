"""Other libraries' chatter, kept from a user's screen."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def silenced(*loggers: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Let the named loggers say nothing below `level`; afterwards they are as they were."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(found, levels, strict=True):
            logger.setLevel(before)
