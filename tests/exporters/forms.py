"""What an exporter's table of forms is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Form:
    """One form of model that an exporter takes, or must refuse.

    Attributes:
        name: As it appears in the table.
        export: Folder → memory model written there.
        oracle: (token ids, largest delay) → state → float64 mean ``[delay, unit, embedding]``.
        refused: Regular expression of the refusal's message.
        jvp: False where exact derivatives must be refused.
        why: Then the reason.
    """

    name: str
    export: Callable[[Path], Path]
    oracle: Callable[[np.ndarray, int], dict[str, np.ndarray]] | None
    refused: str | None = None
    jvp: bool = True
    why: str = ""
