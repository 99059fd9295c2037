"""Mnemoscope's commands, as the study calls them: the one place that knows their options.

What this version of mnemoscope cannot do yet is known before anything runs: `missing` says so, and
the study lists such steps as not available.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click

MNEMOSCOPE = ("-m", "mnemoscope.cli")

# What each step asks of mnemoscope: command → options.
_ASKS = {
    "classes": ("analyze", ("--group-by", "--groups")),
    "words": ("words", ("--min-count", "--max-count", "--frequencies", "--figure", "--word")),
    "table3": ("separability", ("--sets", "--json")),
    "properties": ("property", ("--a", "--b", "--suffix", "--group", "--json")),
}

PROPERTIES: dict[str, tuple[tuple[str, ...], str]] = {
    # name: options of `mnemoscope property`, and whose gradients are used (V20, section 5.2)
    "genitive": (("--suffix", "'s"), "nouns"),
    "common-proper": (("--a", "NN,NNS", "--b", "NNP,NNPS"), "nouns"),
    "number": (("--a", "NN,NNP", "--b", "NNS,NNPS"), "nouns"),
    "third-person": (("--a", "VBP", "--b", "VBZ"), "verbs"),
    "tense": (("--a", "VBP,VBZ", "--b", "VBD"), "verbs"),
    "participle": (("--a", "VBG", "--b", "VBN"), "verbs"),
}
"""Figures 10 and 11."""

TAGS = ("NN", "NNS", "NNP", "NNPS", "VBD", "VBG", "VBN", "VBP", "VBZ")
"""The classes that `PROPERTIES` name."""


@cache
def options(command: str) -> frozenset[str] | None:
    """The options of a command; None where mnemoscope has no such command."""
    from mnemoscope.cli.main import main

    found = main.get_command(click.Context(main), command)
    if found is None:
        return None
    return frozenset(option for p in found.params for option in p.opts)


def missing(what: str) -> str | None:
    """Say what mnemoscope lacks for one of `_ASKS`; None if nothing."""
    command, asked = _ASKS[what]
    has = options(command)
    if has is None:
        return f"this mnemoscope has no command {command}"
    lacks = [option for option in asked if option not in has]
    return f"mnemoscope {command} has no {', '.join(lacks)}" if lacks else None


def analyze(
    model: str,
    corpus: str,
    output: str,
    *,
    delays: int,
    positions: int | None = None,
    states: tuple[str, ...] = (),
    group_by: str | None = None,
    groups: str | None = None,
    keep_blocks: bool = False,
    provider: str | None = None,
) -> tuple[str, ...]:
    """Arguments of Python that analyse a model."""
    argv = [*MNEMOSCOPE, "analyze", model, corpus, "-o", output, "--quiet"]
    argv += ["--delays", str(delays)]
    if positions is not None:
        argv += ["--positions", str(positions)]
    for state in states:
        argv += ["--state", state]
    if group_by is not None:
        argv += ["--group-by", group_by]
    if groups is not None:
        argv += ["--groups", groups]
    if keep_blocks and "--keep-blocks" in (options("analyze") or ()):
        argv += ["--keep-blocks", "1"]
    if provider is not None:
        argv += ["--provider", provider]
    return tuple(argv)


def words(
    model: str,
    corpus: str,
    output: str,
    frequencies: str,
    state: str,
    *,
    delays: int,
    count: int,
) -> tuple[str, ...]:
    """Arguments of Python that measure single words, all by equally many occurrences.

    Fewer occurrences alone raise σ₁ and lower b.
    """
    argv = [*MNEMOSCOPE, "words", model, corpus, "-o", output, "--frequencies", frequencies]
    argv += ["--min-count", str(count), "--max-count", str(count)]
    return (*argv, "--state", state, "--delays", str(delays), "--quiet")


def word_curves(path: str, figure: str, chosen: Sequence[str], state: str) -> tuple[str, ...]:
    """Arguments of Python that draw the curves and fits of some words."""
    argv = [*MNEMOSCOPE, "words", path, "--figure", figure, "--state", state]
    for word in chosen:
        argv += ["--word", word]
    return tuple(argv)


def property_(result: str, name: str, state: str) -> tuple[str, ...]:
    """Arguments of Python that print what is remembered of a property, as JSON."""
    given, group = PROPERTIES[name]
    argv = [*MNEMOSCOPE, "property", result, *given, "--name", name, "--group", group]
    return (*argv, "--state", state, "--json", "--quiet")


def separability(result: str) -> tuple[str, ...]:
    """Arguments of Python that print Table 3, as JSON."""
    return (*MNEMOSCOPE, "separability", result, "--sets", "penn", "--json", "--quiet")


def read_separability(path: Path) -> list[dict[str, Any]]:
    """What `separability` printed, a dictionary for each set of classes.

    Raises:
        ValueError: It is not of that form.
    """
    said = json.loads(path.read_text(encoding="utf-8"))
    keys = ("set", "types", "accuracy", "stderr", "majority", "shuffled", "separable")
    try:
        return [{key: row[key] for key in keys} for row in said["sets"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what mnemoscope separability prints: {error!r}") from error


def read_property(path: Path) -> dict[str, Any]:
    """What `property_` printed.

    Returns:
        ``delay``, ``m`` (NaN where σ₁ is not clear of its noise floor), ``m_stderr`` and ``band``
        (what 97.5 % of random directions, and of differences of shuffled classes, stay below) as
        lists, and ``separability``: a dictionary, or None.

    Raises:
        ValueError: It is not of that form.
    """
    said = json.loads(path.read_text(encoding="utf-8"))
    try:
        rows = said["curves"][0]["rows"]
        found: dict[str, Any] = {
            "delay": [row["delay"] for row in rows],
            "m": [_number(row["m"]) if row["clear_of_noise"] else math.nan for row in rows],
            "m_stderr": [_number(row["m_stderr"]) for row in rows],
            "band": [
                max(_number(row["m_random_high"]), _number(row["m_shuffled_high"])) for row in rows
            ],
        }
        found["separability"] = said["properties"][0]["separability"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is not what mnemoscope property prints: {error!r}") from error
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def read_words(path: Path, state: str) -> dict[str, Any]:
    """What `words` wrote, whitened: arrays over words.

    ``word``, ``frequency`` (in the training text), ``occurrences`` that were followed, ``sigma1``
    and ``floor`` at delay 0, ``b`` and ``b_stderr`` of the fitted exponential (NaN where nothing
    was fitted).
    """
    # Not in every version of mnemoscope, so not at the top.
    module: Any = import_module("mnemoscope.analyzer.words")
    table = module.word_tables(module.open_words(path), states=[state])[0]
    return {
        "word": table.word,
        "frequency": table.frequency,
        "occurrences": table.occurrences,
        "sigma1": table.sigma1[:, 0],
        "floor": table.noise_floor[:, 0],
        "b": table.b,
        "b_stderr": table.b_stderr,
    }
