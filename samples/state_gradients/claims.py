"""The paper's claims against a study's results: one judged row each, and the page with them.

    python -m samples.state_gradients.claims runs/state_gradients -o docs/reproduction.md

Every claim is a function of `measures.Results` and nothing else; the rules are in `verdicts`.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from mnemoscope.analyzer._files import replacing

from .measures import (
    NAN,
    Memory,
    Results,
    Value,
    between_seeds,
    common_delays,
    contrast,
    log_sigma1,
    misfit,
    rate,
    rate_change,
    read_results,
    seeds,
    share,
    windows,
)
from .verdicts import Verdict, all_of, gone, larger, present, smaller, within

COMPARED = (0, 1, 2, 5, 10, 15, 20, 30, 40)
"""Delays at which two curves are held against each other."""

HALF = "at least half of which must be clear of noise"
"""What `measures.common_delays` asks for, in the words of the rules."""

SHORT = tuple(range(1, 11))
LONG = (20, 25, 30, 35, 40)
LATE = (15, 20, 30, 40)  # "delays longer than 10"

SEED_MARGIN = math.log(1.5)
"""Seeds agree when σ₁ is within this factor, on average over the compared delays."""

EXPONENTIAL_MARGIN = 0.1
"""A decay is exponential when its early and late rates differ by less than this share."""

VANISHED = 1e-10  # "virtually zero" in section 4.3.2
REMEMBERED = 1e-3  # of σ₁ at delay 0: less is no memory to speak of


@dataclass(frozen=True)
class Finding:
    """What came of one claim.

    Attributes:
        claim: In a sentence.
        where: Section and figure of the paper.
        paper: What the paper reports.
        rule: When the claim holds.
        ours: What was measured.
        error: Its standard error, or of its parts.
        floor: The noise floor beside it.
        verdict: By the rule.
    """

    claim: str
    where: str
    paper: str
    rule: str
    ours: str = "not run"
    error: str = "–"
    floor: str = "–"
    verdict: Verdict = "not run"


Claim = Callable[[Results], Finding]


# Decay ---------------------------------------------------------------------------------------


def fast_not_exponential(results: Results) -> Finding:
    """σ₁ falls fast, but not as an exponential."""
    base = Finding(
        "The decay of σ₁ is fast, but not exponential",
        "4.3.2, Fig. 4a",
        "“a fast, but not exponential, decrease”",
        "σ₁ at delay 10 below a tenth of σ₁ at 0, and the decay rate over delays 0–10 above that "
        "over the late delays (20–40 where these are clear of noise) by more than a tenth",
    )
    memory = results.memory.get("base.c")
    if memory is None:
        return base
    fall = rate(memory, 0, 10)
    change = rate_change(memory)
    verdict = all_of([larger(fall.value - math.log(10) / 10, fall.error), _slows(memory)])
    return _said(
        base,
        f"σ₁(10)/σ₁(0) = {_g(math.exp(-10 * fall.value))}; rate {_rates(memory)} per word; the "
        f"best exponential misses by up to ×{_g(misfit(memory))}",
        f"rate 0–10: {_g(fall.error)}; early − late: {_g(change.error)}",
        f"σ₁ floor {_g(memory.floor[0])} at 0, {_at(memory.floor, 40)} at 40",
        verdict,
    )


def beyond_twenty(results: Results) -> Finding:
    """Something of a word is left after more than 20 words."""
    base = Finding(
        "Memory reaches beyond 20 words",
        "4.3.2, Fig. 4b",
        "“even after seeing more than 40 consecutive words, the LSTM state still contains some "
        "information about the word”",
        f"σ₁ at delay 21 clear of its noise floor and above {REMEMBERED:g} of σ₁ at 0",
    )
    memory = results.memory.get("base.c")
    if memory is None or len(memory.delay) < 22:
        return base
    value, error, floor = memory.sigma1[21], memory.sigma1_error[21], memory.floor[21]
    return _said(
        base,
        f"σ₁(21) = {_g(value)}, that is {_g(value / memory.sigma1[0])} of σ₁(0); clear of noise "
        f"up to delay {memory.reach}",
        _g(error),
        _g(floor),
        present(value, error, floor, REMEMBERED * float(memory.sigma1[0])),
    )


def selectivity_grows(results: Results) -> Finding:
    """σ₁/Σσ grows with the delay."""
    base = Finding(
        "Selectivity grows with the delay",
        "4.3.2, Fig. 4a",
        "“the memory becomes more selective when the delay increases”; σ₁₋₅/Σσ “close to 1 for "
        "large delays”",
        f"mean σ₁/Σσ over delays 20, 25, …, 40, {HALF}, above σ₁/Σσ at delay 0",
    )
    memory = results.memory.get("base.c")
    if memory is None:
        return base
    late = common_delays(memory, among=LONG)
    first, last, five = share(memory, [0]), share(memory, late), share(memory, late, 5)
    error = math.hypot(first.error, last.error)
    return _said(
        base,
        f"σ₁/Σσ {_g(first.value)} at 0, {_g(last.value)} over {_list(late)}; σ₁₋₅/Σσ there "
        f"{_g(five.value)}",
        _g(error),
        "delays within noise left out",
        larger(last.value - first.value, error),
    )


def whitening_scales(results: Results) -> Finding:
    """Whitened and raw curves tell the same story at another level."""
    base = Finding(
        "Normalised values are lower; the trend is the same",
        "4.3.2, Fig. 4a",
        "“the normalized values are lower … the qualitative trend is similar”",
        f"σ₁ whitened below σ₁ raw at every compared delay, {HALF} in both, and the decay of both "
        "slows by more than a tenth",
    )
    if "base.c" not in results.memory or "base-raw.c" not in results.memory:
        return base
    white, raw = results.memory["base.c"], results.memory["base-raw.c"]
    at = common_delays(white, raw, among=COMPARED)
    below = _each(results, "base.c", "base-raw.c", at, smaller, apart=0)
    changes = [rate_change(white), rate_change(raw)]
    verdict = all_of([*below, _slows(white), _slows(raw)])
    ratio = [math.exp(log_sigma1(white, [d]).value - log_sigma1(raw, [d]).value) for d in at]
    return _said(
        base,
        f"whitened/raw {_range(ratio)} over delays {_list(at)}; early − late rate "
        f"{_g(changes[0].value)} and {_g(changes[1].value)}",
        f"{_g(changes[0].error)} and {_g(changes[1].error)}",
        f"{_g(white.floor[0])} and {_g(raw.floor[0])} at 0",
        verdict,
    )


def seeds_agree(results: Results) -> Finding:
    """Models that differ in their seed remember alike."""
    base = Finding(
        "Different seeds agree",
        "4.3.2, Fig. 4b",
        "“Both qualitatively and quantitatively, we observe no large difference”",
        "for each pair of seeds, the mean distance of ln σ₁ over the compared delays, "
        f"{HALF} in both, stays below ln 1.5",
    )
    names = [n for n in ("base.c", "seed2.c", "seed3.c") if n in results.memory]
    if len(names) < 3:
        return base
    verdicts, factors, errors = [], [], []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            one, other = results.memory[a], results.memory[b]
            at = common_delays(one, other, among=COMPARED)
            if not at:
                verdicts.append(within(NAN, NAN, SEED_MARGIN))
                continue
            gaps = [log_sigma1(one, [d]).value - log_sigma1(other, [d]).value for d in at]
            distance = float(np.abs(gaps).mean())
            error = math.hypot(log_sigma1(one, at).error, log_sigma1(other, at).error)
            verdicts.append(within(distance, error, SEED_MARGIN))
            factors.append(math.exp(distance))
            errors.append(error)
    floor = results.memory["base.c"].floor
    spread = seeds(results, lambda m: share(m, SHORT))
    return _said(
        base,
        f"σ₁ differs by factors of {_range(factors)} on average; σ₁/Σσ over delays 1–10 "
        f"{_range(spread)}",
        f"ln: up to {_g(max(errors, default=NAN))}",
        f"{_g(floor[0])} at 0, {_at(floor, 40)} at 40",
        all_of(verdicts),
    )


# Other models --------------------------------------------------------------------------------


def random_exponential(results: Results) -> Finding:
    """Random weights: an exponential."""
    base = Finding(
        "With random weights σ₁ decays exponentially",
        "4.3.2, Fig. 5a",
        "“with random weights there is an exponential decay”",
        "decay rates over delays 0–10 and over the late delays (20–40 where these are clear of "
        "noise) within a tenth of each other",
    )
    memory = results.memory.get("random.c")
    if memory is None:
        return base
    change, early = rate_change(memory), rate(memory, 0, 10)
    margin = EXPONENTIAL_MARGIN * abs(early.value)
    return _said(
        base,
        f"rate {_rates(memory)} per word; the best exponential misses by up to "
        f"×{_g(misfit(memory))}",
        f"early − late: {_g(change.error)}",
        f"{_g(memory.floor[0])} at 0, {_at(memory.floor, 40)} at 40",
        within(change.value, change.error, margin),
    )


def random_faster(results: Results) -> Finding:
    """Training: larger, slower."""
    base = Finding(
        "Random weights decay faster, and σ₁ is smaller",
        "4.3.2, Fig. 5a",
        "“training the LSTM as a LM results in larger SVs and a slower decay”",
        "decay rate over delays 0–20 larger with random weights, and σ₁ smaller at every compared "
        f"delay, {HALF} in both",
    )
    speed = contrast(results, "random.c", "base.c", lambda m: rate(m, 0, 20), apart=1)
    if speed is None:
        return base
    one, other = results.memory["random.c"], results.memory["base.c"]
    at = common_delays(one, other, among=COMPARED)
    below = _each(results, "random.c", "base.c", at, smaller, apart=1)
    return _said(
        base,
        f"rate {_g(rate(one, 0, 20).value)} (random), {_g(rate(other, 0, 20).value)} (trained); "
        f"σ₁ random/trained {_ratios(one, other, at)}",
        f"rate difference {_g(speed.error)}",
        f"{_at(one.floor, 20)} (random), {_at(other.floor, 20)} (trained) at 20",
        all_of([larger(speed.value, speed.error), *below]),
    )


def random_less_selective(results: Results) -> Finding:
    """Training: more selective."""
    base = Finding(
        "Random weights are less selective",
        "4.3.2, Fig. 5a",
        "σ₁/Σσ “is also larger for the trained model”",
        "mean σ₁/Σσ smaller with random weights, over the short delays (1–10) and over 20, 25, …, "
        f"40, {HALF} in both",
    )
    return _selectivity(results, base, "random.c", "base.c", smaller, (SHORT, LONG), apart=1)


def hidden_below_cell(results: Results) -> Finding:
    """Hidden state below cell state."""
    base = Finding(
        "The hidden state lies below the cell state",
        "4.3.2, Fig. 5b",
        "“The largest SV for the hidden state is smaller than for the cell state”",
        f"σ₁ of the hidden state smaller at every compared delay, {HALF} in both",
    )
    return _levels(results, base, "base.h", "base.c", smaller, apart=0)


def gru_between(results: Results) -> Finding:
    """The GRU's σ₁ lies between."""
    base = Finding(
        "σ₁ of the GRU lies between the LSTM's cell and hidden state",
        "4.3.2, Fig. 5b",
        "“lies between the cell state and the hidden state of the LSTM”",
        f"mean ln σ₁ over the compared delays, {HALF} in all three, below the cell state's and "
        "above the hidden state's",
    )
    if not {"gru.h", "base.c", "base.h"} <= results.memory.keys():
        return base
    m = results.memory
    at = common_delays(m["gru.h"], m["base.c"], m["base.h"], among=COMPARED)
    cell = contrast(results, "gru.h", "base.c", lambda x: log_sigma1(x, at))
    hidden = contrast(results, "gru.h", "base.h", lambda x: log_sigma1(x, at))
    assert cell is not None
    assert hidden is not None
    return _said(
        base,
        f"on average over delays {_list(at)}: ×{_g(math.exp(cell.value))} of the cell state, "
        f"×{_g(math.exp(hidden.value))} of the hidden state",
        f"ln: {_g(cell.error)} and {_g(hidden.error)}",
        f"{_g(m['gru.h'].floor[0])} at 0, {_at(m['gru.h'].floor, 40)} at 40",
        all_of([smaller(cell.value, cell.error), larger(hidden.value, hidden.error)]),
    )


def gru_less_selective(results: Results) -> Finding:
    """The GRU is less selective."""
    base = Finding(
        "The GRU is less selective than the LSTM",
        "4.3.2, Fig. 5b; 6",
        "“both LSTM states are more selective than the GRU state”",
        "mean σ₁/Σσ smaller than that of the cell and of the hidden state, over the short delays "
        f"(1–10) and over 20, 25, …, 40, {HALF} in both",
    )
    parts = [
        _selectivity(results, base, "gru.h", other, smaller, (SHORT, LONG))
        for other in ("base.c", "base.h")
    ]
    if any(p.verdict == "not run" for p in parts):
        return base
    return _said(
        base,
        f"cell: {parts[0].ours}; hidden: {parts[1].ours}",
        f"{parts[0].error}; {parts[1].error}",
        parts[0].floor,
        all_of(p.verdict for p in parts),
    )


def rnn_gone(results: Results) -> Finding:
    """The vanilla RNN forgets within 20 words."""
    base = Finding(
        "The vanilla RNN's memory is gone by delay 20",
        "4.3.2, Fig. 5b",
        "σ₁ “becomes virtually zero (< 10⁻¹⁰) when the delay is larger than 20”",
        f"σ₁ at delay 21 below 10⁻¹⁰; {LEARNT}",
    )
    memory = results.memory.get("rnn.h")
    if memory is None or len(memory.delay) < 22:
        return base
    value, error, floor = (float(x[21]) for x in (memory.sigma1, memory.sigma1_error, memory.floor))
    verdict = gone(value, error, floor, VANISHED) if _learnt(results, "rnn") else "cannot tell"
    return _said(
        base,
        f"σ₁(21) = {_g(value)}, that is {_g(value / float(memory.sigma1[0]))} of σ₁(0)"
        f"{_unlearnt(results, 'rnn')}",
        _g(error),
        _g(floor),
        verdict,
    )


def rnn_shorter(results: Results) -> Finding:
    """The vanilla RNN remembers less than the LSTM."""
    base = Finding(
        "The LSTM's memory is longer than the vanilla RNN's",
        "4.3.2, Fig. 5b",
        "“σ₁ is much smaller”; “the memory of the LSTM is effectively longer”",
        "decay rate over delays 0–10 (to the last delay clear of noise in both if that is earlier, "
        f"but 5 or later) larger than the cell state's; {LEARNT}",
    )
    m = results.memory
    if not {"rnn.h", "base.c"} <= m.keys():
        return base
    last = min(10, m["rnn.h"].reach, m["base.c"].reach)
    if last < 5:
        return _said(base, f"clear of noise up to delay {m['rnn.h'].reach}", "–", "–",
                     "cannot tell")  # fmt: skip
    found = contrast(results, "rnn.h", "base.c", lambda x: rate(x, 0, last))
    assert found is not None
    return _said(
        base,
        f"rate over 0–{last}: {_g(rate(m['rnn.h'], 0, last).value)} (RNN), "
        f"{_g(rate(m['base.c'], 0, last).value)} (LSTM cell){_unlearnt(results, 'rnn')}",
        _g(found.error),
        f"{_at(m['rnn.h'].floor, last)} (RNN) at {last}",
        larger(found.value, found.error) if _learnt(results, "rnn") else "cannot tell",
    )


LEARNT = "a model that predicts worse than word frequencies alone tells nothing"


def _learnt(results: Results, model: str) -> bool:
    """Whether training came to anything; taken for granted where its perplexity is not known."""
    found = results.perplexity.get(model, {})
    return found.get("test", 0.0) < found.get("unigram", math.inf)


def _unlearnt(results: Results, model: str) -> str:
    """What is said of a model that learnt nothing."""
    if _learnt(results, model):
        return ""
    found = results.perplexity[model]
    return (
        f"; but its training failed: perplexity {found['test']:,.0f}, word frequencies alone "
        f"{found['unigram']:,.0f}"
    )


def larger_less_selective(results: Results) -> Finding:
    """More units, less selective at short delays."""
    base = Finding(
        "A larger state is less selective at short delays",
        "4.3.2, Fig. 6a",
        "128 units: “more selective”; 512 units: selectivity “initially increases less quickly”",
        f"mean σ₁/Σσ over delays 1–10, {HALF} in all three: small above usual above large",
    )
    names = ("small.c", "base.c", "large.c")
    if not set(names) <= results.memory.keys():
        return base
    at = common_delays(*(results.memory[n] for n in names), among=SHORT)

    def measure(memory: Memory) -> Value:
        return share(memory, at)

    values = [measure(results.memory[n]) for n in names]
    pairs = [contrast(results, a, b, measure) for a, b in pairwise(names)]
    found = [p for p in pairs if p is not None]
    return _said(
        base,
        "σ₁/Σσ " + " > ".join(_g(v.value) for v in values) + " expected in this order",
        ", ".join(_g(p.error) for p in found),
        "delays within noise left out",
        all_of(larger(p.value, p.error) for p in found),
    )


def small_smaller(results: Results) -> Finding:
    """Fewer units, smaller σ₁."""
    base = Finding(
        "The small state has a smaller σ₁",
        "4.3.2, Fig. 6a",
        "“The small LSTM has lower values for σ₁ overall”",
        f"σ₁ of the small model smaller at every compared delay, {HALF} in both",
    )
    return _levels(results, base, "small.c", "base.c", smaller)


def pretrained_longer(results: Results) -> Finding:
    """Pre-trained embeddings are remembered longer."""
    base = Finding(
        "Pre-trained embeddings are remembered longer",
        "4.3.2, Fig. 6b",
        "“σ₁ is larger for the LM with pre-trained embeddings and decreases more slowly”",
        f"mean ln σ₁ over the compared delays, {HALF} in both, larger, and decay rate over delays "
        "0–20 smaller",
    )
    m = results.memory
    if not {"pretrained.c", "base.c"} <= m.keys():
        return base
    at = common_delays(m["pretrained.c"], m["base.c"], among=COMPARED)
    level = contrast(results, "pretrained.c", "base.c", lambda x: log_sigma1(x, at))
    speed = contrast(results, "pretrained.c", "base.c", lambda x: rate(x, 0, 20))
    assert level is not None
    assert speed is not None
    return _said(
        base,
        f"σ₁ ×{_g(math.exp(level.value))} over delays {_list(at)}; rate "
        f"{_g(rate(m['pretrained.c'], 0, 20).value)} against {_g(rate(m['base.c'], 0, 20).value)}",
        f"ln: {_g(level.error)}; rate: {_g(speed.error)}",
        f"{_at(m['pretrained.c'].floor, 20)} at 20",
        all_of([larger(level.value, level.error), smaller(speed.value, speed.error)]),
    )


def pretrained_less_selective(results: Results) -> Finding:
    """Pre-trained embeddings: less selective."""
    base = Finding(
        "Memory of pre-trained embeddings is less selective",
        "4.3.2, Fig. 6b",
        "“the memory of the LM with pre-trained embeddings is less selective”",
        f"mean σ₁/Σσ smaller, over the short delays (1–10) and over 20, 25, …, 40, {HALF} in both",
    )
    return _selectivity(results, base, "pretrained.c", "base.c", smaller, (SHORT, LONG))


def wikipedia_longer(results: Results) -> Finding:
    """WikiText-2 has the longer memory."""
    base = Finding(
        "A model of WikiText-2 remembers longer than one of the other corpus",
        "4.3.2, Fig. 7a",
        "Wiki-2 against PTB, delays longer than 10: “the model trained on Wiki-2 has larger SVs”",
        f"mean ln σ₁ over delays 15, 20, 30 and 40, {HALF} in both, larger for WikiText-2",
    )
    others = [f"{n}.c" for n in ("ptb", "ewt") if f"{n}.c" in results.memory]
    if "wikitext-2.c" not in results.memory or not others:
        return base
    other = others[0]
    m = results.memory
    at = common_delays(m["wikitext-2.c"], m[other], among=LATE)
    found = contrast(results, "wikitext-2.c", other, lambda x: log_sigma1(x, at))
    assert found is not None
    return _said(
        base,
        f"σ₁ ×{_g(math.exp(found.value))} of that of {other.removesuffix('.c')} over delays "
        f"{_list(at)}",
        f"ln: {_g(found.error)}",
        f"{_at(m['wikitext-2.c'].floor, 20)} and {_at(m[other].floor, 20)} at 20",
        larger(found.value, found.error),
    )


# Words ---------------------------------------------------------------------------------------

CONTENT, FUNCTION = ("nouns", "verbs"), ("determiners", "conjunctions-prepositions")


def content_above_function(results: Results) -> Finding:
    """Nouns and verbs above determiners, conjunctions and prepositions."""
    base = Finding(
        "Nouns and verbs lie above function classes at every delay",
        "4.3.3, Fig. 8a",
        "“the classes with the largest σ₁ at a delay of 0 still have the largest Σσ for a delay of "
        "49”; “nouns and verbs” the strongest; conjunctions, prepositions and determiners the "
        "smallest",
        "σ₁ of nouns and of verbs larger than that of determiners and of conjunctions and "
        f"prepositions at every compared delay, {HALF} in both, and Σσ larger at the largest delay "
        "(within noise there: cannot tell)",
    )
    if not {*CONTENT, *FUNCTION} <= results.classes.keys():
        return base
    verdicts: list[Verdict] = []
    ratios: dict[str, list[float]] = {"σ₁": [], "Σσ at the largest delay": []}
    errors, floors, told = [NAN], [NAN], []
    for a in CONTENT:
        for b in FUNCTION:
            one, other = results.classes[a], results.classes[b]
            at = common_delays(one, other, among=COMPARED)
            told.append(at)
            pairs = [("σ₁", _sigma1(one, d), _sigma1(other, d)) for d in at]
            pairs.append(("Σσ at the largest delay", _last_total(one), _last_total(other)))
            if not at:
                verdicts.append("cannot tell")
            for name, x, y in pairs:
                verdicts.append(larger(x.value - y.value, math.hypot(x.error, y.error)))
                if math.isfinite(x.value / y.value):
                    ratios[name].append(x.value / y.value)
                errors += [v.error / v.value for v in (x, y)]
                floors += [v.floor / v.value for v in (x, y)]
    table = ", ".join(f"{_g(min(r))} ({name})" for name, r in ratios.items() if r)
    fewest = min(told, key=len)
    return _said(
        base,
        f"smallest ratio of a content to a function class: {table or 'nothing clear of noise'}; "
        f"every pair at least at delays {_list(fewest)}",
        f"up to {_percent(_most(errors))} of a value",
        f"up to {_percent(_most(floors))} of a value",
        all_of(verdicts),
    )


def _most(values: Iterable[float]) -> float:
    """The largest that is a number."""
    return max((v for v in values if math.isfinite(v)), default=NAN)


def _sigma1(memory: Memory, delay: int) -> Value:
    return Value(*(float(x[delay]) for x in (memory.sigma1, memory.sigma1_error, memory.floor)))


def _last_total(memory: Memory) -> Value:
    """Σσ at the largest delay; NaN where it is not clear of noise or not known."""
    if memory.total is None or memory.total_error is None or memory.total_floor is None:
        return Value(NAN)
    value, error, floor = (
        float(x[-1]) for x in (memory.total, memory.total_error, memory.total_floor)
    )
    return Value(value, error, floor) if value > floor + 2 * error else Value(NAN)


def frequent_smaller(results: Results) -> Finding:
    """Frequent words have a smaller σ₁."""
    base = Finding(
        "Frequent words have a smaller σ₁",
        "4.3.4, Fig. 8b",
        "99 % of words below frequency 10 have σ₁ ≥ 3, 75 % of those from 500 on σ₁ < 1",
        "rank correlation of training frequency and σ₁ at delay 0 below 0, every word averaged "
        "over equally many occurrences (few alone raise σ₁)",
    )
    if results.words is None:
        return base
    return _with_frequency(results.words, base, "sigma1", smaller)


def frequent_faster(results: Results) -> Finding:
    """Frequent words decay faster."""
    base = Finding(
        "Frequent words decay faster",
        "4.3.4, Fig. 9b",
        "b = 0.66 for “the”, 0.11 for “congressional”; 76 % of words below frequency 10 have "
        "b ≤ 0.2",
        "rank correlation of training frequency and the fitted b above 0, over words with a fit, "
        "each averaged over equally many occurrences (few alone lower b)",
    )
    if results.words is None:
        return base
    return _with_frequency(results.words, base, "b", larger)


def _with_frequency(
    words: Mapping[str, Any], base: Finding, key: str, rule: Callable[[float, float], Verdict]
) -> Finding:
    """How a measure of words goes with their training frequency."""
    from mnemoscope.analyzer.words import CLEAR, frequency_correlation

    value, sigma1, floor = (np.asarray(words[k], float) for k in (key, "sigma1", "floor"))
    frequency, followed = (np.asarray(words[k], float) for k in ("frequency", "occurrences"))
    # What a word shows is clear of chance only some way above its floor.
    kept = np.isfinite(value) & (sigma1 > CLEAR * floor)
    found = frequency_correlation(frequency[kept], value[kept])
    noise = frequency_correlation(frequency, floor)
    equal = bool(np.ptp(followed) == 0)
    return _said(
        base,
        f"ρ = {_g(found.rho)} over {int(kept.sum()):,} of {value.size:,} words, each followed "
        + (f"{int(followed[0])} times" if equal else "differently often"),
        _g(found.stderr),
        f"of frequency and the noise floor itself: ρ = {_g(noise.rho)}",
        rule(found.rho, found.stderr) if equal else "cannot tell",
    )


# Properties ----------------------------------------------------------------------------------

NOUN, VERB = ("genitive", "common-proper", "number"), ("third-person", "tense", "participle")


def noun_order(results: Results) -> Finding:
    """Genitive above common–proper above number."""
    base = Finding(
        "At delay 0 genitive is remembered best, then common–proper, then number",
        "5.2.2, Fig. 10a",
        "m of “almost 0.8” for the genitive; common–proper second, number lowest",
        "relative memory m at delay 0: genitive above common–proper above number, and genitive "
        "above what 97.5 % of random directions and of shuffled classes have",
    )
    if not set(NOUN) <= results.properties.keys():
        return base
    values = [_property(results, name, 0) for name in NOUN]
    steps = [larger(a.value - b.value, math.hypot(a.error, b.error)) for a, b in pairwise(values)]
    return _said(
        base,
        ", ".join(f"{n} {_g(v.value)}" for n, v in zip(NOUN, values, strict=True)),
        ", ".join(_g(v.error) for v in values),
        "chance, at most: " + ", ".join(_g(v.floor) for v in values),
        all_of([*steps, larger(values[0].value - values[0].floor, values[0].error)]),
    )


def number_fades(results: Results) -> Finding:
    """Number fades, relative to the best remembered direction."""
    base = Finding(
        "Grammatical number fades with the delay",
        "5.2.2, Fig. 10a",
        "singular–plural “has the lowest relative memory, and decays gradually”",
        "relative memory m of number smaller at delay 20 than at delay 0, with σ₁ clear of noise "
        "at both",
    )
    if "number" not in results.properties:
        return base
    first, last = (_property(results, "number", d) for d in (0, 20))
    error = math.hypot(first.error, last.error)
    return _said(
        base,
        f"m = {_g(first.value)} at 0, {_g(last.value)} at 20",
        _g(error),
        f"chance, at most: {_g(first.floor)}, {_g(last.floor)}",
        smaller(last.value - first.value, error),
    )


def nouns_above_verbs(results: Results) -> Finding:
    """Properties of nouns above those of verbs."""
    base = Finding(
        "Properties of nouns are remembered better than those of verbs",
        "5.2.2, Fig. 10a, 11a",
        "“the m values are lower for these properties” of verbs; with the gradients of all words "
        "on average 0.72 (nouns) against 0.47 (verbs) at delay 0",
        "mean m at delay 0 larger for the three properties of nouns than for the three of verbs",
    )
    if not {*NOUN, *VERB} <= results.properties.keys():
        return base
    nouns, verbs = ([_property(results, n, 0) for n in names] for names in (NOUN, VERB))
    one, other = _mean(nouns), _mean(verbs)
    error = math.hypot(one.error, other.error)
    return _said(
        base,
        f"{_g(one.value)} ({len(nouns)} of nouns), {_g(other.value)} ({len(verbs)} of verbs)",
        _g(error),
        f"chance, at most: {_g(one.floor)}, {_g(other.floor)}",
        larger(one.value - other.value, error),
    )


def _property(results: Results, name: str, delay: int) -> Value:
    rows = results.properties[name]
    if delay not in list(rows["delay"]):
        return Value(NAN)
    i = list(rows["delay"]).index(delay)
    return Value(*(float(rows[k][i]) for k in ("m", "m_stderr", "band")))


def _mean(values: list[Value]) -> Value:
    n = len(values)
    return Value(
        sum(v.value for v in values) / n,
        math.sqrt(sum(v.error**2 for v in values)) / n,
        sum(v.floor for v in values) / n,
    )


# Perplexities --------------------------------------------------------------------------------


def rnn_perplexity(results: Results) -> Finding:
    """The vanilla RNN predicts far worse."""
    base = Finding(
        "The vanilla RNN's perplexity is far worse than the LSTM's",
        "4.3.1, Table 2",
        "648.3 against 103.8 (test)",
        "ln perplexity larger by more than 2 errors of training (from three seeds)",
    )
    return _perplexities(results, base, [("rnn", "base")])


def perplexity_order(results: Results) -> Finding:
    """The order of Table 2."""
    base = Finding(
        "Perplexities come in the order of Table 2",
        "4.3.1, Table 2",
        "GRU 108.2 and 128 units 115.3 worse than the LSTM's 103.8; 512 units 99.8 and pre-trained "
        "embeddings 95.7 better (test)",
        "each ln perplexity on that side by more than 2 errors of training (from three seeds)",
    )
    pairs = [("gru", "base"), ("small", "base"), ("base", "large"), ("base", "pretrained")]
    return _perplexities(results, base, pairs)


def _perplexities(results: Results, base: Finding, pairs: list[tuple[str, str]]) -> Finding:
    p = {k: v["test"] for k, v in results.perplexity.items() if "test" in v}
    if not {x for pair in pairs for x in pair} <= p.keys():
        return base
    scatter = [math.log(p[n]) for n in ("base", "seed2", "seed3") if n in p]
    error = math.sqrt(2 * between_seeds(scatter))
    verdicts = [larger(math.log(p[a]) - math.log(p[b]), error) for a, b in pairs]
    names = list(dict.fromkeys(x for pair in pairs for x in pair))
    return _said(
        base,
        ", ".join(f"{n} {p[n]:,.1f}" for n in names),
        f"of a difference: {_percent(error)}"
        + ("" if math.isfinite(error) else " (needs another seed)"),
        f"word frequencies alone: {results.perplexity['base']['unigram']:,.1f}",
        all_of(verdicts),
    )


CLAIMS: tuple[Claim, ...] = (
    fast_not_exponential,
    beyond_twenty,
    selectivity_grows,
    whitening_scales,
    seeds_agree,
    random_exponential,
    random_faster,
    random_less_selective,
    hidden_below_cell,
    gru_between,
    gru_less_selective,
    rnn_gone,
    rnn_shorter,
    small_smaller,
    larger_less_selective,
    pretrained_longer,
    pretrained_less_selective,
    wikipedia_longer,
    content_above_function,
    frequent_smaller,
    frequent_faster,
    noun_order,
    number_fades,
    nouns_above_verbs,
    rnn_perplexity,
    perplexity_order,
)


def judge(results: Results) -> list[Finding]:
    """Every claim, judged."""
    return [claim(results) for claim in CLAIMS]


# Parts of rows -------------------------------------------------------------------------------


def _said(base: Finding, ours: str, error: str, floor: str, verdict: Verdict) -> Finding:
    return Finding(base.claim, base.where, base.paper, base.rule, ours, error, floor, verdict)


def _slows(memory: Memory) -> Verdict:
    """Whether the late decay rate is below the early one by more than an exponential's margin."""
    change, early = rate_change(memory), rate(memory, 0, 10)
    return larger(change.value - EXPONENTIAL_MARGIN * abs(early.value), change.error)


def _each(
    results: Results,
    a: str,
    b: str,
    at: list[int],
    rule: Callable[[float, float], Verdict],
    *,
    apart: int,
) -> list[Verdict]:
    """Whether σ₁ of a lies on one side of σ₁ of b, at each of some delays."""
    found: list[Verdict] = [] if at else ["cannot tell"]
    for d in at:
        difference = contrast(results, a, b, lambda m, d=d: log_sigma1(m, [d]), apart=apart)
        assert difference is not None
        found.append(rule(difference.value, difference.error))
    return found


def _levels(
    results: Results,
    base: Finding,
    a: str,
    b: str,
    rule: Callable[[float, float], Verdict],
    *,
    apart: int = 2,
) -> Finding:
    """σ₁ of a against σ₁ of b, at every compared delay that is clear of noise in both."""
    if a not in results.memory or b not in results.memory:
        return base
    one, other = results.memory[a], results.memory[b]
    at = common_delays(one, other, among=COMPARED)
    if not at:
        return _said(base, "too few delays are clear of noise in both", "–", _g(one.floor[0]),
                     "cannot tell")  # fmt: skip
    errors = [contrast(results, a, b, lambda m, d=d: log_sigma1(m, [d]), apart=apart) for d in at]
    return _said(
        base,
        f"ratio {_ratios(one, other, at)} (delays {_list(at)})",
        f"ln: up to {_g(max(e.error for e in errors if e is not None))}",
        f"{_g(one.floor[0])} at 0, {_at(one.floor, 40)} at 40",
        all_of(_each(results, a, b, at, rule, apart=apart)),
    )


def _selectivity(
    results: Results,
    base: Finding,
    a: str,
    b: str,
    rule: Callable[[float, float], Verdict],
    ranges: Iterable[tuple[int, ...]],
    *,
    apart: int = 2,
) -> Finding:
    """Mean σ₁/Σσ of a against that of b, over ranges of delays."""
    if a not in results.memory or b not in results.memory:
        return base
    one, other = results.memory[a], results.memory[b]
    verdicts, said, errors = [], [], []
    for delays in ranges:
        at = common_delays(one, other, among=delays)
        found = contrast(results, a, b, lambda m, at=at: share(m, at), apart=apart)
        assert found is not None
        verdicts.append(rule(found.value, found.error))
        where = f"delays {at[0]}–{at[-1]}" if at else f"{delays[0]}–{delays[-1]} (too noisy)"
        said.append(f"{_g(share(one, at).value)} against {_g(share(other, at).value)} at {where}")
        errors.append(_g(found.error))
    return _said(
        base, "; ".join(said), ", ".join(errors), "delays within noise left out", all_of(verdicts)
    )


def _rates(memory: Memory) -> str:
    found = windows(memory)
    if found is None:
        return f"{_g(rate(memory, 0, 10).value)} over 0–10 (later delays within noise)"
    (a, b), (c, d) = found
    return (
        f"{_g(rate(memory, a, b).value)} over {a}–{b}, {_g(rate(memory, c, d).value)} over {c}–{d}"
    )


def _ratios(one: Memory, other: Memory, at: list[int]) -> str:
    return _range([float(one.sigma1[d] / other.sigma1[d]) for d in at])


def _range(values: Iterable[float]) -> str:
    found = list(values)
    if not found:
        return "–"
    low, high = _g(min(found)), _g(max(found))
    return low if low == high else f"{low} to {high}"


def _list(delays: Iterable[int]) -> str:
    return ", ".join(map(str, delays)) or "none"


def _at(values: np.ndarray, delay: int) -> str:
    return _g(values[delay]) if delay < len(values) else "–"


def _g(value: Any) -> str:
    number = float(value)
    if not math.isfinite(number):
        return "–"
    return f"{number:.3g}" if number == 0 or 1e-3 <= abs(number) < 1e4 else f"{number:.1e}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "–"


# The page ------------------------------------------------------------------------------------

TABLE_2 = {
    # name: (row of the paper, valid, test)
    "base": ("PTB LSTM seed 2 (baseline), 256", 103.3, 103.8),
    "seed2": ("PTB LSTM seed 1, 256", 107.6, 104.9),
    "seed3": ("PTB LSTM seed 3, 256", 106.4, 104.2),
    "pretrained": ("PTB LSTM cbow WSJ, 256", 99.1, 95.7),
    "gru": ("PTB GRU, 256", 110.4, 108.2),
    "rnn": ("PTB RNN, 256", 686.4, 648.3),
    "small": ("PTB LSTM, 128", 119.1, 115.3),
    "large": ("PTB LSTM, 512", 101.1, 99.8),
    "corpus-wikitext-2": ("Wiki-2, 256", 126.2, 118.0),
    "corpus-ptb": ("PTB LSTM seed 2, 256", 103.3, 103.8),
}
_CAPTIONS = {
    "4a": "normalised or not", "4b": "three seeds", "5a": "trained or random weights",
    "5b": "states and cells", "6a": "hidden size", "6b": "pre-trained or joint embeddings",
    "7a": "corpora", "8a": "classes of words", "8b": "frequency, memory and decay of words",
    "9a": "fitted curves of single words", "10": "properties of nouns",
    "11": "properties of verbs",
}  # fmt: skip


def write_page(folder: Path, path: Path | None = None, images: str = "figures") -> None:
    """Write the page of a run.

    Args:
        folder: Of the run; its ``study.json`` says how it was made.
        path: Of the page; None means ``reproduction.md`` in the folder.
        images: Where the page finds its figures, named ``NAME.png`` after this and a slash (or
            after this, if it ends in ``-``).
    """
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    results = read_results(folder, study["corpus"])
    path = path or folder / "reproduction.md"
    text = page(folder, study, results, images)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def page(folder: Path, study: dict[str, Any], results: Results, images: str) -> str:
    """The page as Markdown."""
    from . import figures
    from .engine import duration

    findings = judge(results)
    counts = {
        v: sum(f.verdict == v for f in findings)
        for v in ("holds", "does not", "cannot tell", "not run")
    }
    stamps = _stamps(folder)
    seconds = sum(s["seconds"] for s in stamps.values())
    memory = max((s["memory"] or 0 for s in stamps.values()), default=0)
    dates = sorted(s["finished"][:10] for s in stamps.values()) or ["–"]
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    lines = [
        "# The experiments of Verwimp et al. (2020), done again",
        "",
        "Written by `python -m samples.state_gradients` "
        "([samples/state_gradients](../samples/state_gradients/README.md)). The paper: L. Verwimp, "
        "H. Van hamme, P. Wambacq, *State gradients for analyzing memory in LSTM language "
        "models*, 2020.",
        "",
        f"**{counts['holds']} claims hold, {counts['does not']} "
        f"do{'es' * (counts['does not'] == 1)} not, {counts['cannot tell']} "
        f"cannot be told, {counts['not run']} were not run.** The models here are smaller or "
        "trained for less long than the paper's, on other text: a claim that does not hold here "
        "need not be wrong there.",
        "",
        "## How",
        "",
        f"    {study['call']}",
        "",
        f"* Scale `{study['scale']}`: {study['sizes']}.",
        f"* Main corpus `{study['corpus']}`; corpora: {study['corpora']}.",
        f"* Date: {when}. Machine: {study['machine']}.",
        f"* Versions: {study['versions']}.",
        f"* Work: {duration(seconds)} in all, {memory / 2**30:.2f} GiB at most in one step; every "
        "command is in `steps/*.json` of the run.",
        "",
        "## Claim by claim",
        "",
        "A difference counts when it exceeds two standard errors. Errors of one model are "
        "jackknife errors over blocks of the corpus; a comparison of models that were trained "
        f"apart adds the variance between seeds ({_seed_text(results)}). Floors are what an "
        "average over so many positions shows with no consistent direction at all; delays within "
        "two errors of their floor are left out; where fewer than half of a claim's delays are "
        "left, that part of it is *cannot tell*. The compared delays are "
        f"{', '.join(map(str, COMPARED[:-1]))} and {COMPARED[-1]}. "
        "Unless said otherwise σ₁ is whitened, of the cell state, over all input words.",
        "",
        "| claim | paper | ours | error | noise floor | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        "| "
        + " | ".join(
            _cell(x)
            for x in (
                f"{f.claim} ({f.where})", f.paper, f.ours, f.error, f.floor, f"**{f.verdict}**"
            )
        )
        + " |"
        for f in findings
    ]  # fmt: skip
    lines += ["", "The rules:", ""]
    lines += [f"* *{f.claim}*: {f.rule}." for f in findings]
    lines += ["", "## Perplexities (Table 2)", ""]
    lines += _perplexity_table(results)
    lines += ["", "## Separability of the classes (Table 3)", ""]
    lines += _separability_table(results)
    drawn = figures.existing(folder, _CAPTIONS)
    if drawn:
        join = "" if images.endswith("-") else "/"
        lines += ["", "## Figures", ""]
        for name in drawn:
            lines += [f"Figure {name}, {_CAPTIONS[name]}:", ""]
            lines += [f"![{_CAPTIONS[name]}]({images}{join}{name}.png)", ""]
    lines += ["", "## Steps", "", "| step | time | peak memory |", "| --- | --: | --: |"]
    for name, stamp in stamps.items():
        peak = f"{stamp['memory'] / 2**30:.2f} GiB" if stamp["memory"] else "–"
        lines.append(f"| {name} | {duration(stamp['seconds'])} | {peak} |")
    missing = [n for n in study["steps"] if n not in stamps and n != "page"]
    if missing:
        lines += ["", f"Not run: {', '.join(_why(n, study) for n in missing)}."]
    if results.problems:
        lines += ["", "Could not be read: " + "; ".join(results.problems) + "."]
    return "\n".join(_single(lines)) + "\n"


def publish(folder: Path, path: Path) -> None:
    """Write the page elsewhere, and its figures into ``images/`` beside it."""
    from . import figures

    images = path.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in figures.existing(folder, _CAPTIONS):
        shutil.copyfile(folder / "figures" / f"{name}.png", images / f"reproduction-{name}.png")
    write_page(folder, path, "images/reproduction-")


def _why(name: str, study: dict[str, Any]) -> str:
    why = study.get("unavailable", {}).get(name)
    return f"{name} ({why})" if why else name


def _seed_text(results: Results) -> str:
    there = [n for n in ("base", "seed2", "seed3") if f"{n}.c" in results.memory]
    if len(there) < 2:
        return "unknown here with fewer than two seeds: such claims cannot be told"
    return f"of {len(there)} seeds"


def _perplexity_table(results: Results) -> list[str]:
    if not results.perplexity:
        return ["Not run."]
    lines = [
        "| model | valid | test | word frequencies alone | tokens × epochs | paper's row | valid | "
        "test |",
        "| --- | --: | --: | --: | --: | --- | --: | --: |",
    ]
    order = {name: i for i, name in enumerate(TABLE_2)}
    for name in sorted(results.perplexity, key=lambda n: order.get(n, len(order))):
        p = results.perplexity[name]
        row, valid, test = TABLE_2.get(name, ("–", NAN, NAN))
        length = f"{p.get('tokens', 0):,.0f} × {p.get('epochs', 0):.0f}"
        cells = [name, *(_plain(p.get(k, NAN)) for k in ("valid", "test", "unigram")), length]
        lines.append(f"| {' | '.join([*cells, row, _plain(valid), _plain(test)])} |")
    return lines


TABLE_3 = {
    # beginning of the set's name: test accuracy in the paper, in per cent
    "all": 40.8, "nouns": 72.0, "verbs": 39.6, "adjectives": 95.9, "adverbs": 94.4,
    "N-V-Adj-Adv-Pro": 66.7, "N-V-Adj-Adv": 66.9, "N-V-Adj": 68.0, "N-V": 77.2, "N-Adj": 81.1,
    "N-Adv": 93.4, "V-Adj": 80.7, "V-Adv": 94.2, "Adj-Adv": 86.9, "sg-pl": 88.2,
    "common-proper": 82.0, "genitive": 89.4, "3rd": 71.5, "present - past tense": 80.0,
    "present - past participle": 79.6,
}  # fmt: skip


def _separability_table(results: Results) -> list[str]:
    if not results.separability:
        return ["Not run."]
    lines = [
        "| classes | types | accuracy | error | always the largest | labels shuffled | separable | "
        "paper |",
        "| --- | --: | --: | --: | --: | --: | --- | --: |",
    ]
    for row in results.separability:
        name = str(row["set"])
        known = [k for k in TABLE_3 if name == k or name.startswith(f"{k} ")]
        paper = TABLE_3[max(known, key=len)] if known else NAN
        shares = [NAN if row[k] is None else 100 * row[k]
                  for k in ("accuracy", "stderr", "majority", "shuffled")]  # fmt: skip
        cells = [_cell(name), str(row["types"]), *map(_plain, shares)]
        cells += ["yes" if row["separable"] else "no", _plain(paper)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _plain(value: float) -> str:
    return f"{value:,.1f}" if math.isfinite(value) else "–"


def _stamps(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    paths = sorted((folder / "steps").glob("*.json"), key=lambda p: p.stat().st_mtime)
    for path in paths:
        if path.stem != "page":
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _single(lines: list[str]) -> list[str]:
    """Without runs of empty lines."""
    return [x for i, x in enumerate(lines) if x or (i and lines[i - 1])]


def main() -> None:
    """Write a run's page, and its figures, into a folder of documents."""
    import click

    @click.command()
    @click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
    @click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
    def command(run: Path, output: Path) -> None:
        """Write the page of the folder RUN to OUTPUT, and its figures into images/ beside it."""
        if not (run / "study.json").exists():
            raise click.UsageError(f"{run} is not the folder of a study: it has no study.json.")
        publish(run, output)

    command(prog_name="python -m samples.state_gradients.claims")


if __name__ == "__main__":
    sys.exit(main())
