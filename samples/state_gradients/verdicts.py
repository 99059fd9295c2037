"""What a claim is worth, decided by rules: pure functions of numbers, errors and noise floors.

A difference counts when it exceeds `ERRORS` standard errors. Errors of models that were trained
apart hold the scatter between seeds as well as that of the corpus (`measures.contrast`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

Verdict = Literal["holds", "does not", "cannot tell", "not run"]

ERRORS = 2.0
"""Standard errors that a difference must exceed to count."""


def larger(difference: float, error: float) -> Verdict:
    """Whether a difference is above 0: by more than `ERRORS` errors, or below by as much."""
    if not (math.isfinite(difference) and math.isfinite(error)) or error < 0:
        return "cannot tell"
    if difference > ERRORS * error:
        return "holds"
    return "does not" if difference < -ERRORS * error else "cannot tell"


def smaller(difference: float, error: float) -> Verdict:
    """Whether a difference is below 0."""
    return larger(-difference, error)


def within(distance: float, error: float, margin: float) -> Verdict:
    """Whether a distance stays below a margin.

    An equality can only be shown up to a margin: it holds when the distance and its error lie
    within, and does not when the distance exceeds the margin by as much.
    """
    return larger(margin - abs(distance), error)


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """A claim of several parts: it fails with one of them, and holds with all."""
    found = list(verdicts)
    for worst in ("does not", "not run", "cannot tell"):
        if worst in found:
            return worst  # type: ignore[return-value]
    return "holds" if found else "not run"


def gone(value: float, error: float, floor: float, limit: float) -> Verdict:
    """Whether something has fallen below a limit.

    It has when value and error lie below; it has not when the value is clear of its noise floor
    and of the limit. A value that is not clear of a floor above the limit says nothing.
    """
    if not (math.isfinite(value) and math.isfinite(error)):
        return "cannot tell"
    if value + ERRORS * error < limit:
        return "holds"
    clear = not math.isnan(floor) and value > floor + ERRORS * error
    return "does not" if clear and value - ERRORS * error > limit else "cannot tell"


def present(value: float, error: float, floor: float, limit: float) -> Verdict:
    """Whether something is clear of its noise floor and above a limit.

    Not to be clear of a floor above the limit proves nothing; to lie below the limit does.
    """
    if not (math.isfinite(value) and math.isfinite(error) and math.isfinite(floor)):
        return "cannot tell"
    if value + ERRORS * error < limit:
        return "does not"
    clear = value > floor + ERRORS * error and value - ERRORS * error > limit
    return "holds" if clear else "cannot tell"
