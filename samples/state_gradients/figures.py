"""The paper's figures, with error bars and noise floors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mnemoscope.analyzer._files import replacing

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = "os^Dv"


def draw_curves(
    folder: Path, path: Path, title: str, shown: Mapping[str, tuple[str, str, str]]
) -> None:
    """Draw σ₁ and selectivity of the results that are there.

    Args:
        folder: Of the run.
        path: Of the figure.
        title: Above it.
        shown: Label → step, state, normalization.
    """
    from mnemoscope.analyzer.plots import memory_figure
    from mnemoscope.analyzer.result import open_result
    from mnemoscope.analyzer.tables import curves

    found = []
    for label, (step, state, normalization) in shown.items():
        result = folder / "results" / f"{step.removeprefix('analyze-')}.nc"
        if (folder / "steps" / f"{step}.json").exists() and result.exists():
            tree = open_result(result)
            found.append((label, curves(tree, states=[state], normalization=normalization)[0]))
    if not found:
        raise ValueError("there is no result to draw")
    save(memory_figure(found, title=title), path)


def draw_classes(folder: Path, path: Path) -> None:
    """Figure 8a: σ₁ at delay 0 and Σσ at the largest delay, by class of the input word."""
    from mnemoscope.analyzer.classes import class_tables
    from mnemoscope.analyzer.plots import classes_figure
    from mnemoscope.analyzer.result import open_result

    from .study import CELL, CLASSES

    tree = open_result(folder / "results" / "classes.nc")
    names = [name for name in CLASSES if name in tree.coords["group"].values]
    if not names:
        raise ValueError("the result has none of the classes")
    tables = class_tables(tree, states=[CELL], groups=names)
    save(classes_figure([("", table) for table in tables]), path)


def draw_words(folder: Path, path: Path) -> None:
    """Figures 8b and 9b: training frequency against σ₁ at delay 0, and against the decay b."""
    from mnemoscope.analyzer._word_plot import frequency_figure
    from mnemoscope.analyzer.words import open_words, word_tables

    from .study import CELL

    tree = open_words(folder / "results" / "words.nc")
    save(frequency_figure(word_tables(tree, states=[CELL])[0]), path)


def draw_word_curves(folder: Path, path: Path) -> None:
    """Figure 9a: σ₁ and the fitted exponential of a frequent and of a rare word.

    The paper's words where both have a fit; else ``the`` and, of the words with a fit, a rare one
    whose fit is best known.
    """
    from . import commands
    from .study import CELL

    words = commands.read_words(folder / "results" / "words.nc", CELL)
    fitted = np.flatnonzero(np.isfinite(words["b"]) & (words["b"] > 0))
    if not fitted.size:
        raise ValueError("no word has a fit")
    names = [str(words["word"][i]) for i in fitted]
    frequent = "the" if "the" in names else names[int(np.argmax(words["frequency"][fitted]))]
    rare = "congressional"
    if rare not in names:
        few = np.quantile(words["frequency"][fitted], 0.25)
        rarest = [i for i in fitted if words["frequency"][i] <= few] or list(fitted)
        error = [words["b_stderr"][i] / words["b"][i] for i in rarest]
        rare = str(words["word"][rarest[int(np.nanargmin(error))]])
    chosen = list(dict.fromkeys((frequent, rare)))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The command itself writes the figure whole or not at all.
    argv = commands.word_curves(str(folder / "results" / "words.nc"), str(path), chosen, CELL)
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.strip() or f"mnemoscope words: status {done.returncode}")


def noun_properties(folder: Path, path: Path) -> None:
    """Figure 10a: relative memory of the properties of nouns."""
    _properties(folder, path, "nouns")


def verb_properties(folder: Path, path: Path) -> None:
    """Figure 11a: relative memory of the properties of verbs."""
    _properties(folder, path, "verbs")


def _properties(folder: Path, path: Path, group: str) -> None:
    from . import commands

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    drawn = 0
    for i, (name, (_, of)) in enumerate(commands.PROPERTIES.items()):
        said = folder / "results" / f"property-{name}.json"
        if of != group or not (folder / "steps" / f"property-{name}.json").exists():
            continue
        rows = commands.read_property(said)
        delay, m, error, band = (
            np.asarray(rows[k], float) for k in ("delay", "m", "m_stderr", "band")
        )
        axes.plot(delay, m, color=_COLORS[i], marker=_MARKERS[i % 5], markevery=5, label=name)
        axes.fill_between(delay, m - error, m + error, color=_COLORS[i], alpha=0.2, linewidth=0)
        axes.plot(delay, band, color=_COLORS[i], linestyle=":", linewidth=1)
        drawn += 1
    if not drawn:
        raise ValueError("there is no property to draw")
    axes.set(xlabel="delay (words)", ylabel="relative memory $m$", ylim=(0, 1.02))
    axes.legend(title="dotted: random directions", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)


def existing(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of some figures that were drawn."""
    return [n for n in names if (folder / "figures" / f"{n}.png").exists()]
