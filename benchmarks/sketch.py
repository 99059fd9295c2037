"""Time against error of sampled directions (``analyze --sketch K``), on the shipped model.

    python benchmarks/sketch.py [--positions N] [--json FILE]

The same positions are followed with k = 4, 8, 16 and all directions; errors are those that the
result itself reports for σ₁, and beside them how far σ₁ is from that of all directions. Times are
those of a further position, by the difference of two samples: what each analysis takes besides
(opening, measures) is the same for all.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from mnemoscope.analyzer import analyze, open_model, read_corpus
from mnemoscope.analyzer.pydoc_corpus import lines
from rich.console import Console
from rich.table import Table

MODEL = Path(__file__).resolve().parents[1] / "samples" / "models" / "pydoc-lstm.onnx"
SHOWN = (0, 10, 30)


def timed(model: Any, corpus: Any, positions: int, k: int) -> tuple[float, Any]:
    """Seconds of an analysis, and its result."""
    began = time.perf_counter()
    tree = analyze(model, corpus, positions=positions, sketch=k, states=["lstm0.c"],
                   calibrate=False)  # fmt: skip
    return time.perf_counter() - began, tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = open_model(MODEL)
    text = Path("demo") / "corpus.txt"
    if not text.exists():
        text.parent.mkdir(exist_ok=True)
        text.write_text("".join(line + "\n" for line in lines()), encoding="utf-8")
    corpus = read_corpus(text, model.vocabulary)
    size = model.embeddings.shape[1]
    rows, full = [], None
    for k in (size, 16, 8, 4):
        seconds = []
        for _ in range(options.repeats):
            few, _ = timed(model, corpus, options.positions // 4, k)
            many, tree = timed(model, corpus, options.positions, k)
            seconds.append((many - few) / (options.positions - options.positions // 4))
        node, at = tree["lstm0.c"], list(SHOWN)
        sigma = node["singular_values"].sel(normalization="whitened").values[0, at, 0]
        error = node["singular_values_stderr"].sel(normalization="whitened").values[0, at, 0]
        floor = node["noise_floor"].sel(normalization="whitened").values[0, at]
        full = sigma if full is None else full
        rows.append({
            "directions": k, "ms_per_position": 1e3 * float(np.median(seconds)),
            "stderr": (error / sigma).tolist(), "floor": (floor / sigma).tolist(),
            "distance": (np.abs(sigma - full) / full).tolist(),
        })  # fmt: skip
    table = Table(title=f"pydoc-lstm, cell state, delays 0–50, {options.positions:,} positions; "
                        f"of whitened σ₁ at delays {', '.join(map(str, SHOWN))}")  # fmt: skip
    for column in ("directions", "ms per position", "standard error", "from all directions",
                   "noise floor"):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["directions"]),
            f"{row['ms_per_position']:.2f}",
            *("  ".join(f"{x:.1%}" for x in row[k]) for k in ("stderr", "distance", "floor")),
        )
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps({"date": str(date.today()), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
