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
        for name, value in _facts(data):
            console.print(f"{name:<12}{value}", soft_wrap=True)
        console.print("\nStates", style="bold")
        console.print(_states(data["states"]))
        if data["blocks"] is None:
            console.print(f"No block derivatives: {data['obstacle']}")
        else:
            title = "\nDerivative of each new state (row) by each old state and the embedding"
            console.print(title, style="bold")
            console.print(_blocks(data["blocks"]))
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


def _facts(data: dict[str, Any]) -> list[tuple[str, str]]:
    roles, words, count = data["roles"], data["vocabulary"], data["parameters"]
    if words is None:
        vocabulary = "none; a corpus must be token ids"
    else:
        vocabulary = (
            f"{words['size']:,} {words['level']} tokens; unknown: {words['unknown'] or 'none'}; "
            f"end of line: {words['end_of_line'] or 'none'}"
        )
    logits = f"{roles['logits']} ({'log-probabilities' if roles['normalized'] else 'raw'})"
    opsets = ", ".join(
        f"opset {version}" if domain == "ai.onnx" else f"{domain} {version}"
        for domain, version in data["opset"].items()
    )
    return [
        ("model", data["path"]),
        ("ONNX", f"IR version {data['ir_version']}, {opsets}; by {data['producer'] or 'unknown'}"),
        ("source", _source(data["source"])),
        ("tokens", roles["tokens"]),
        ("embedding", f"{roles['embedding']}, {data['embedding_size']} entries"),
        ("logits", logits),
        ("vocabulary", vocabulary),
        ("parameters", f"{count['count']:,} ({count['bytes'] / 1e6:,.1f} MB)"),
    ]


def _source(source: dict[str, str]) -> str:
    parts = [
        f"{source.get('framework', '')} {source.get('framework_version', '')}".strip(),
        f"exporter {source['exporter_version']}" if "exporter_version" in source else "",
        f"weights {source['weights_sha256'][:12]}" if "weights_sha256" in source else "",
    ]
    return ", ".join(filter(None, parts)) or "not stated"


def _states(states: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table()
    for heading in ("name", "kind", "layer", "size", "input", "output", "starts as"):
        table.add_column(heading, justify="right" if heading in ("layer", "size") else "left")
    for s in states:
        start = "zeros" if s["initial"] == "zeros" else "stored values"
        kind = s["kind"] if s["differentiated"] else f"{s['kind']}, carried only ({s['dtype']})"
        cells = (s["name"], kind, s["layer"], s["size"], s["input"], s["output"], start)
        table.add_row(*map(str, cells))
    return table


def _blocks(blocks: dict[str, dict[str, str]]) -> Table:
    """Lay out blocks as a matrix: the row is differentiated by the column."""
    from rich.table import Table

    sources = list(next(iter(blocks.values())))
    table = Table()
    for heading in ("", *sources):
        table.add_column(heading)
    for name, row in blocks.items():
        table.add_row(name, *(row[s] for s in sources))
    return table
