"""What the table of forms in the documentation is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Form:
    """A form in which models come, how it is exported, and what is right.

    Attributes:
        name: As it appears in the table.
        export: Folder → the memory model written there; raises ModelError if refused.
        oracle: Token ids ``[time]`` and largest delay → state name →
            ``[delay, unit, embedding]`` float64: the mean over all positions p with
            p + delay < time of d state_{p+delay} / d embedding_p, the state carried through the
            whole stream from the model's initial state; independent of the code under test.
        refused: Regular expression of the message, for forms that must be refused.
        jvp: False where jvp must refuse.
        why: The reason for that.
    """

    name: str
    export: Callable[[Path], Path]
    oracle: Callable[[np.ndarray, int], dict[str, np.ndarray]] | None
    refused: str | None = None
    jvp: bool = True
    why: str = ""
