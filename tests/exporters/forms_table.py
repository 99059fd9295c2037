"""Every form of model, and whether it exports, is linearised exactly, and comes out right.

``python tests/exporters/forms_table.py docs/forms.md`` writes the page.
"""

from __future__ import annotations

import importlib
import platform
import re
import sys
import tempfile
import warnings
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mnemoscope.analyzer import Corpus, analyze, open_model
from mnemoscope.analyzer.errors import MnemoscopeError, ModelError

if TYPE_CHECKING:
    from forms import Form

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

MODULES = ("torch_forms", "keras_forms", "tf1_forms", "shipped_forms")
DELAYS, LENGTH = 50, 120
BARS = {"jvp": 1e-5, "fd": 5e-3}


def forms() -> list[Form]:
    """All forms, of all exporters."""
    return [form for name in MODULES for form in importlib.import_module(name).FORMS]


def error_of(form: Form, path: Path, method: str) -> float | str:
    """Largest relative difference from the oracle at any delay and state, or the refusal."""
    model = open_model(path)
    ids = np.random.default_rng(1).integers(0, model.vocabulary_size, LENGTH)
    try:
        tree = analyze(model, Corpus(ids, "random", "", 1, 0), delays=DELAYS, method=method)
    except MnemoscopeError as error:
        return str(error)
    worst = 0.0
    for name, truth in form.oracle(ids, DELAYS).items():
        mean = np.asarray(tree[name]["gradient"][0], np.float64)
        norms = np.linalg.norm(truth, axis=(1, 2))
        worst = max(worst, float((np.linalg.norm(mean - truth, axis=(1, 2)) / norms).max()))
    return worst


def row(form: Form) -> list[str]:
    """The cells of one form."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = form.export(Path(folder))
        except ModelError as error:
            right = bool(form.refused and re.search(form.refused, str(error)))
            return [form.name, "refused", "", "", "as it should" if right else "**no**"]
        if form.oracle is None:
            return [form.name, "yes", "", "", "no oracle"]
        found = {m: error_of(form, path, m) for m in BARS}
    cells, within = [], form.refused is None
    for method, value in found.items():
        if isinstance(value, str):
            cells.append("refused")
            within = within and method == "jvp" and not form.jvp
        else:
            cells.append(f"{value:.0e}")
            within = within and value <= BARS[method]
    note = f" ({form.why})" if form.why else ""
    return [form.name, "yes", *cells, ("yes" if within else "**no**") + note]


def page() -> str:
    """The whole page."""
    lines = [
        "# Forms of models",
        "",
        "Written by `make forms`: every form is exported, analysed on 120 random tokens at delays",
        "0 to 50, and held against a float64 oracle that shares no code with the project. `jvp`",
        "and `fd` give the largest relative difference of the mean gradients at any delay of any",
        f"state; the bars are {BARS['jvp']:g} and {BARS['fd']:g} in float32.",
        "",
        "| form | exports | jvp | fd | within the bars |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = [row(form) for form in forms()]
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |" for cells in rows]
    bad = sum("**no**" in cells[-1] for cells in rows)
    lines += ["", f"{len(rows) - bad} of {len(rows)} forms are as they should be. "
              f"{platform.machine()}, {date.today()}."]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    text = page()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    print(text)
