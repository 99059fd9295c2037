"""Drafting a budget that a result passes."""

from __future__ import annotations

import json
import math
from decimal import ROUND_FLOOR, Context
from typing import TYPE_CHECKING, Any

from . import _verdicts
from ._budget import ANALYSIS, Budget, Rule
from ._judges import Subject
from .comparison import recorded_options
from .errors import BudgetError

if TYPE_CHECKING:
    import xarray as xr


_DRAFT_DELAYS = (1, 5, 10, 20, 50)
_DRAFT_FRACTION = 0.05
_THREE_DIGITS_DOWN = Context(prec=3, rounding=ROUND_FLOOR)

_HEAD = """\
# Drafted from {source}, which passes it. Tighten it, loosen it, delete what you do not need.
# Bounds stand {margin:.1f} standard errors away from what was measured, so that another sample of
# as many positions hardly ever fails.

sigma = {sigma:g}                    # standard errors that an excess must have to count
normalization = "whitened"

# Read when a model is checked; ignored when a result is.
[analysis]
{analysis}
"""

_TAIL = """
# Not worse than an earlier model (also --baseline r0.nc):
# [[baseline]]
# file = "r0.nc"
# horizon_loss = 10           # per cent
# sigma1_loss = 10            # per cent, at these delays:
# delay = [{delays}]

# The same model in another precision or framework (also --reference fp32.onnx):
# [[parity]]
# file = "fp32.onnx"
# tolerance = 0.01            # relative difference of the mean gradients
"""


def draft(result: xr.DataTree, *, source: str = "a result", sigma: float = 2.0) -> str:
    """Write a budget that a result passes: TOML, with comments.

    Horizons are the largest delays that are certain; bounds of σ₁ and selectivity keep a margin of
    twice the error that counts. What could not be passed (σ₁ within its noise) is left out.

    Args:
        result: As `open_result` gives it.
        source: Its name, for the comment.
        sigma: Standard errors that an excess must have to count.

    Raises:
        BudgetError: Nothing in the result stands clear of its noise.
    """
    most = result.sizes["delay"] - 1
    delays = [d for d in _DRAFT_DELAYS if d <= most] or [0]
    # Also where it was the whole corpus: a check follows fewer positions unless it is told.
    stated = recorded_options(result, whole=True)
    analysis = [f"{key} = {toml(stated[key])}" for key in ANALYSIS if key in stated]
    empty = Budget("", sigma, "whitened", None, {}, ())
    parts = []
    margin = 0.0
    for state in result.children:
        s = Subject(result, empty, Rule("draft", 1, None, {}), state, None)
        curve = s.curve(result)
        parts.append(f"\n# --- {_printed(state)} ---")
        head = f"state = {toml(state)}\n"
        errors = s.all_errors(result, most + 1)
        margin = max(margin, 2 * float(errors[0]))
        columns = (curve.sigma1, curve.sigma1_stderr, curve.noise_floor, errors)
        horizon = _verdicts.floor_horizon(*columns).certain
        if horizon is not None:
            parts.append(
                "\n# σ₁ stands above its noise floor up to this delay (with so many positions)."
                f"\n[[horizon]]\n{head}at_least = {horizon}"
            )
        horizon = _verdicts.fraction_horizon(*columns, _DRAFT_FRACTION).certain
        if horizon:
            parts.append(
                f"\n# σ₁ is at least {_DRAFT_FRACTION:.0%} of σ₁ at delay 0 up to this delay."
                f"\n[[horizon]]\n{head}fraction = {_DRAFT_FRACTION}\nat_least = {horizon}"
            )
        for d in delays:
            e = _verdicts.sigma1_estimate(*(c[d] for c in columns[:3]))
            low = _below(e.low - 2 * errors[d] * e.stderr) if e.known else 0.0
            if low > 0:
                parts.append(
                    f"\n[[sigma1]]                   # measured {e.value:.4g} ± {e.stderr:.1g}"
                    f"\n{head}delay = {d}\nat_least = {low!r}"
                )
        for d in reversed([d for d in delays if d <= 10]):  # the latest that can be bounded
            e = _verdicts.selectivity_estimate(
                s.spectrum(d), curve.share1_stderr[d], curve.noise_floor[d], 1
            )
            if not e.known or not math.isfinite(e.high):
                continue
            low = _below(e.low - 2 * errors[d] * e.stderr)
            high = -_below(-e.high - 2 * errors[d] * e.stderr)
            bounds = [f"at_least = {low!r}"] if low > 0 else []
            bounds += [f"at_most = {high!r}"] if high < 1 else []
            if bounds:
                parts.append(
                    f"\n[[selectivity]]              # measured {e.value:.4g} ± {e.stderr:.1g}"
                    f"\n{head}delay = {d}\n" + "\n".join(bounds)
                )
                break
    if not any("[[" in part for part in parts):
        raise BudgetError(
            "No bound can be drafted: nothing in the result stands clear of its noise. "
            "Analyse more positions."
        )
    text = _HEAD.format(
        source=_printed(source), sigma=sigma, margin=margin, analysis="\n".join(analysis)
    )
    return text + "\n".join(parts) + "\n" + _TAIL.format(delays=", ".join(map(str, delays)))


def _below(value: float) -> float:
    """`value` rounded to three digits, downwards; `value` itself where it is not finite."""
    if not math.isfinite(value):
        return value
    # The nearest float to a decimal that is not above a float is not above it either.
    return float(_THREE_DIGITS_DOWN.create_decimal_from_float(value))


def toml(value: Any) -> str:
    """A TOML value. JSON's texts are TOML's, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _printed(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
