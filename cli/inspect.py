"""`mnemoscope inspect`: what is in a memory model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ._lazy import example
from ._output import Report, reports

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@click.command(epilog=example("mnemoscope inspect model.onnx"))
@click.argument("model")
@reports("json")
def inspect(model: str) -> Report:
    """Print the roles, states, derivatives and providers of MODEL."""
    from mnemoscope.analyzer import describe, open_model

    data = describe(open_model(model))

    def render(console: Console) -> None:
        console.print(_facts(data))
        console.print(_states(data["states"]))
        console.print(_blocks(data["states"], data["blocks"]))
        missing = data["operators_without_rule"]
        if missing:
            console.print(
                f"Operators without a block rule: {', '.join(missing)}. Steps with them are "
                "differentiated as a whole, or by --method fd."
            )
        usable = [name for name, ok in data["providers"].items() if ok]
        unusable = [name for name, ok in data["providers"].items() if not ok]
        said = f"Providers: {', '.join(usable) or 'none'}"
        if unusable:
            said += f"; not usable here: {', '.join(unusable)}"
        console.print(said + ".")

    return Report(data, render)


def _facts(data: dict[str, Any]) -> Table:
    from rich.table import Table

    roles, words, count = data["roles"], data["vocabulary"], data["parameters"]
    if words is None:
        vocabulary = "none; a corpus must be token ids"
    else:
        vocabulary = (
            f"{words['size']:,} {words['level']} tokens; unknown: {words['unknown'] or 'none'}; "
            f"end of line: {words['end_of_line'] or 'none'}"
        )
    logits = f"{roles['logits']} ({'log-probabilities' if roles['normalized'] else 'raw'})"
    rows = [
        ("model", data["path"]),
        ("ONNX", f"IR version {data['ir_version']}, opset {data['opset']}, {data['producer']}"),
        ("source", ", ".join(f"{k} {v}" for k, v in data["source"].items()) or "not stated"),
        ("tokens", roles["tokens"]),
        ("embedding", f"{roles['embedding']}, {data['embedding_size']} entries"),
        ("logits", logits),
        ("vocabulary", vocabulary),
        ("parameters", f"{count['count']:,} ({count['bytes'] / 1e6:,.1f} MB)"),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _states(states: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="States", title_justify="left", title_style="bold")
    for heading in ("name", "kind", "layer", "size", "input", "output", "starts as"):
        table.add_column(heading, justify="right" if heading in ("layer", "size") else "left")
    for s in states:
        start = "zeros" if s["initial"] == "zeros" else "stored values"
        cells = (s["name"], s["kind"], s["layer"], s["size"], s["input"], s["output"], start)
        table.add_row(*map(str, cells))
    return table


def _blocks(states: list[dict[str, Any]], blocks: dict[str, Any]) -> Table:
    """Lay out blocks as a matrix: the row is differentiated by the column."""
    from rich.table import Table

    sources = [*(s["name"] for s in states), "embedding"]
    title = "Derivative of each new state (row) by each old state and the embedding (column)"
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("", *sources):
        table.add_column(heading)
    for name, row in blocks.items():
        table.add_row(name, *((row or {}).get(s) or "no rule" for s in sources))
    return table
