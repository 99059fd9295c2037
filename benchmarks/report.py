"""What was measured, as a table and as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .measuring import Measured, Row, ratio
from .peers import OURS, TITLES
from .shapes import Shape

WIDTH = 110
VERSIONS = ("mnemoscope", "numpy", "onnx", "onnx-ad", "onnxruntime-gpu", "onnxruntime", "torch",
            "jax", "jaxlib")  # fmt: skip
BUSY = 0.5  # processes that run beside this one


def table(shape: Shape, measured: Measured) -> Table:
    """One row for each peer, and one for the products alone."""
    made = Table(title=f"{shape.title}, float32: milliseconds per input position")
    for column in ("method", "median", "min", "max", "× jvp", "difference", "peak MiB",
                   "positions"):  # fmt: skip
        made.add_column(column, justify="left" if column == "method" else "right")
    ours = next((r.times for r in measured.rows if r.name == OURS and r.times), None)
    for row in measured.rows:
        title = TITLES.get(row.name, row.name)
        if not row.reason:
            peak = "" if row.peak is None else f"{row.peak / 2**20:,.0f}"
            made.add_row(title, *_times(row.times, ours), f"{row.difference:.0e}", peak,
                         str(row.positions))  # fmt: skip
    for library, times in measured.alone.items():
        made.add_row(f"products alone, {library}", *_times(times, ours), style="dim")
    return made


def notes(shape: Shape, measured: Measured) -> list[str]:
    """What the table has no room for."""
    lines = [f"{TITLES.get(r.name, r.name).strip()}: {r.reason}"
             for r in measured.rows if r.reason]  # fmt: skip
    rate = measured.flop / statistics.median(measured.alone[measured.best])
    line = (f"The products that a position needs, {measured.flop / 1e9:.3g} GFLOP, run at "
            f"{rate / 1e9:.0f} GFLOP/s alone ({measured.best})")  # fmt: skip
    if any(r.name == OURS and r.times for r in measured.rows):
        line += f"; jvp reaches {measured.share(OURS):.0%} of that, all work in"
    return [*lines, line + "."]


def show(shape: Shape, measured: Measured) -> None:
    console = Console(width=WIDTH)
    console.print(table(shape, measured))
    for line in notes(shape, measured):
        console.print(line, highlight=False, markup=False)
    console.print()


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": _processor(), "threads": threads, "load_before": load,
            "python": platform.python_version(), "versions": versions,
            "date": str(date.today())}  # fmt: skip


def first_line(found: dict[str, Any]) -> str:
    """The machine, and a warning where it was busy."""
    line = f"{found['processor']}, {found['threads']} threads, {found['date']}"
    if found["load_before"] is not None and found["load_before"] > BUSY:
        line += (f". The machine is not idle (load {found['load_before']:.1f}): neither times nor "
                 "ratios mean much")  # fmt: skip
    return line + "."


def as_json(shape: Shape, measured: Measured) -> dict[str, Any]:
    return {
        "shape": {"name": shape.name, "cell": shape.cell, "embedding": shape.embedding,
                  "hidden": shape.hidden, "layers": shape.layers, "delays": shape.delays,
                  "batch": shape.batch},
        "peers": [_row_as_json(r, measured) for r in measured.rows],
        "products_alone": {
            "flop": measured.flop, "seconds": measured.alone, "best": measured.best,
        },
    }  # fmt: skip


def _row_as_json(row: Row, measured: Measured) -> dict[str, Any]:
    if row.reason:
        return {"name": row.name, "reason": row.reason}
    return {
        "name": row.name,
        "positions": row.positions,
        "seconds_per_position": row.times,
        "median": row.median,
        "difference": row.difference,
        "share_of_product_rate": measured.share(row.name),
        "ready_seconds": row.ready,
        "peak_bytes": row.peak,
    }


def _times(times: list[float], ours: list[float] | None) -> tuple[str, ...]:
    values = (statistics.median(times), min(times), max(times))
    return (*(f"{v * 1e3:.3g}" for v in values), f"{ratio(times, ours):.2f}" if ours else "")


def _processor() -> str:
    """What the operating system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
