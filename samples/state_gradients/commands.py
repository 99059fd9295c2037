"""Mnemoscope's commands, as the study calls them: the one place that knows their options.

What this version of mnemoscope cannot do yet is known before anything runs: `missing` says so, and
the study lists such steps as not available.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import click

MNEMOSCOPE = ("-m", "mnemoscope.cli")

# What each step asks of mnemoscope: command → options.
_ASKS = {
    "classes": ("analyze", ("--group-by", "--groups")),
    "words": ("words", ("--min-count", "--frequencies")),
    "properties": ("property", ("--a", "--b", "--json")),
}

PROPERTIES: dict[str, tuple[str, str, str]] = {
    # name: classes or words a, b, and the class whose own gradients are used (V20, section 5.2)
    "genitive": ("@genitive", "@non-genitive", "nouns"),
    "common-proper": ("NN,NNS", "NNP,NNPS", "nouns"),
    "number": ("NN,NNP", "NNS,NNPS", "nouns"),
    "third-person": ("VBP", "VBZ", "verbs"),
    "tense": ("VBP,VBZ", "VBD", "verbs"),
    "participle": ("VBG", "VBN", "verbs"),
}
"""Figures 10 and 11. ``@name`` is a list of words in the corpus' folder, ``name.txt``."""


@cache
def options(command: str) -> frozenset[str] | None:
    """The options of a command; None where mnemoscope has no such command."""
    from mnemoscope.cli.main import main

    found = main.get_command(click.Context(main), command)
    if found is None:
        return None
    return frozenset(option for p in found.params for option in p.opts)


def missing(what: str) -> str | None:
    """Say what mnemoscope lacks for ``classes``, ``words`` or ``properties``; None if nothing."""
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


def words(model: str, corpus: str, output: str, frequencies: str, state: str) -> tuple[str, ...]:
    """Arguments of Python that measure single words."""
    argv = [*MNEMOSCOPE, "words", model, corpus, "-o", output, "--min-count", "3"]
    argv += ["--frequencies", frequencies]
    if "--state" in (options("words") or ()):
        argv += ["--state", state]
    if "--quiet" in (options("words") or ()):
        argv.append("--quiet")
    return tuple(argv)


def property_(result: str, name: str, state: str, folder: str) -> tuple[str, ...]:
    """Arguments of Python that print what is remembered of a property, as JSON."""
    a, b, group = PROPERTIES[name]
    argv = [*MNEMOSCOPE, "property", result]
    has = options("property") or frozenset()
    for option, classes in (("--a", a), ("--b", b)):
        given = f"{folder}/{classes[1:]}.txt" if classes.startswith("@") else classes
        argv += [option, given]
    if "--state" in has:
        argv += ["--state", state]
    if "--group" in has:
        argv += ["--group", group]
    return (*argv, "--json")


def read_property(path: Path) -> dict[str, Any]:
    """What `property_` printed: ``delay``, ``m``, ``m_stderr``, ``band`` as lists.

    Raises:
        ValueError: It is not of that form.
    """
    said = json.loads(path.read_text(encoding="utf-8"))
    rows = said.get("rows", said) if isinstance(said, dict) else said
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        raise ValueError(f"{path} holds no list of rows")

    def column(*names: str) -> list[float]:
        name = next((n for n in names if n in rows[0]), None)
        if name is None:
            raise ValueError(f"{path} has none of the columns {', '.join(names)}")
        return [float("nan") if row[name] is None else row[name] for row in rows]

    return {
        "delay": column("delay"),
        "m": column("relative_memory", "m"),
        "m_stderr": column("relative_memory_stderr", "m_stderr"),
        "band": column("random_relative_memory_high", "band_high", "band"),
    }


def read_words(path: Path, state: str) -> dict[str, Any]:
    """What `words` wrote: arrays over words.

    ``word``, ``frequency`` (in the training text), ``sigma1`` and ``floor`` at delay 0, ``b`` and
    ``b_stderr`` of the fitted exponential (NaN where nothing was fitted).

    Raises:
        ValueError: It is not of that form.
    """
    import xarray as xr

    with xr.open_datatree(path, engine="h5netcdf") as tree:
        node = tree[state] if state in tree.children else tree

        def values(*names: str) -> Any:
            for name in names:
                for place in (node, tree):
                    if name in place.variables:
                        return place[name].values
            raise ValueError(f"{path} has none of the variables {', '.join(names)}")

        sigma1, floor = values("sigma1"), values("noise_floor", "floor")
        return {
            "word": values("word", "token"),
            "frequency": values("frequency", "training_frequency", "count"),
            "sigma1": sigma1[:, 0] if sigma1.ndim == 2 else sigma1,
            "floor": floor[:, 0] if floor.ndim == 2 else floor,
            "b": values("b", "rate", "decay"),
            "b_stderr": values("b_stderr", "rate_stderr", "decay_stderr"),
        }
