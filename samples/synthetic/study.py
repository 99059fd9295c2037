"""What the states and gradients of the synthetic experiment say: Table 1, Figures 2 and 3."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mnemoscope.analyzer import metrics, open_model
from mnemoscope.analyzer.discriminants import accuracy, discriminants

SHARE = 0.99  # of the variance between counts that the counting subspace explains (the paper's)
PAPER = {  # V20, Table 1
    "cell state": (93, 93, 87),
    "hidden state": (89, 93, 80),
    "counting subspace": (11, 93, 86),
    "ID subspace": (93, 93, 17),
}
TASKS = ("token", "new", "count")


def record(path: Path, ids: np.ndarray, *, states: bool = True) -> dict[str, np.ndarray]:
    """Read a text with a memory model, one token after another.

    Args:
        path: The model.
        ids: ``[position]``.
        states: False for the losses alone.

    Returns:
        ``loss`` ``[position - 1]``, -ln p of each next token; ``guess`` ``[position - 1]``, the
        most probable one; and unless `states` is False, ``cell`` and ``hidden``, each
        ``[position, unit]``.
    """
    model = open_model(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {state.kind: state for state in model.roles.states}
    sizes = {
        state.input: [d if isinstance(d, int) and d else 1 for d in value.shape]
        for state in model.roles.states
        for value in session.get_inputs()
        if value.name == state.input
    }
    now = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    outputs = [model.roles.logits, *(state.output for state in model.roles.states)]
    kept = {kind: np.empty((len(ids), math.prod(model.state_shape(s)[0])), np.float32)
            for kind, s in kinds.items()} if states else {}  # fmt: skip
    loss, guess = np.empty(len(ids) - 1, np.float32), np.empty(len(ids) - 1, np.int64)
    for t, token in enumerate(ids):
        feeds = {model.roles.tokens: np.array([[token]], np.int64), **now}
        logits, *new = session.run(outputs, feeds)
        now = {s.input: value for s, value in zip(model.roles.states, new, strict=True)}
        for kind, into in kept.items():
            into[t] = now[kinds[kind].input].ravel()
        if t < len(loss):
            scores = logits.ravel().astype(np.float64)
            loss[t] = np.logaddexp.reduce(scores) - scores[ids[t + 1]]
            guess[t] = scores.argmax()
    return {"loss": loss, "guess": guess, **kept}


def cycle_places(ids: np.ndarray, end: int, period: int) -> np.ndarray:
    """``[position]``: 0 at a new token, 1 and more at repetitions, -1 at the end of a line."""
    place = np.arange(len(ids))
    ends = np.flatnonzero(ids == end)
    start = np.concatenate([[0], ends + 1])  # of each line
    place -= start[np.searchsorted(ends, place)]
    return np.where(ids == end, -1, place % period)


def study(
    recorded: dict[str, np.ndarray],
    tree: xr.DataTree,
    *,
    ids: np.ndarray,
    end: int,
    period: int,
    held_out: int,
    least: dict[str, float],
) -> dict[str, Any]:
    """All numbers of the table and the figures.

    Args:
        recorded: As `record` gives them, with ``test_loss`` beside.
        tree: Result of the analysis, with the groups ``all`` and ``token-1``.
        ids: ``[position]``.
        end: Id of the end of a line.
        period: Tokens in a cycle.
        held_out: The last positions, on which discriminants are tested.
        least: Least perplexities.
    """
    place = cycle_places(ids, end, period)
    split = len(ids) - held_out
    cell, hidden = recorded["cell"].astype(np.float64), recorded["hidden"].astype(np.float64)
    tasks = {  # positions and labels; the end of a line is no token
        "token": (place >= 0, ids),
        "new": (place > -2, np.where(place > 0, 1, place)),
        "count": (place > -2, place),
    }
    counting = discriminants(cell[:split], place[:split])
    number = counting.needed(SHARE)
    parts = {
        "cell state": cell,
        "hidden state": hidden,
        "counting subspace": cell @ counting.projector(number).T,
        "ID subspace": cell - cell @ counting.projector(number).T,
    }
    table: dict[str, dict[str, float]] = {}
    for name, states in parts.items():
        table[name] = {}
        for task, (used, labels) in tasks.items():
            before, after = (
                used & (np.arange(len(ids)) < split),
                used & (np.arange(len(ids)) >= split),
            )
            table[name][task] = accuracy(
                states[before], labels[before], states[after], labels[after]
            )
    chance = {}
    for task, (used, labels) in tasks.items():
        _, counts = np.unique(labels[split:][used[split:]], return_counts=True)
        chance[task] = counts.max() / counts.sum()
    expected = place[1:] <= 0  # nobody can know a new token or the end of a line
    mistakes = (recorded["guess"] != ids[1:]) & ~expected
    return {
        "perplexity": {
            "valid": math.exp(recorded["loss"].mean(dtype=np.float64)),
            "test": math.exp(recorded["test_loss"].mean(dtype=np.float64)),
        },
        "least": least,
        "mistakes": int(mistakes.sum()),
        "mistakes_at_first_repetition": int((mistakes & (place[1:] == 1)).sum()),
        "positions": len(ids),
        "held_out": held_out,
        "period": period,
        "table": table,
        "chance": chance,
        "counting_dimensions": number,
        "explained": counting.explained,
        "plane": counting.coordinates(cell, 2),
        "place": place,
        "memory": memory(tree, counting.projector(number)),
        "accuracy": {
            name: delayed_accuracy(states, ids, place, split, tree.sizes["delay"])
            for name, states in (("cell state", cell), ("hidden state", hidden))
        },
        "accuracy_chance": _delayed_chance(ids, place, split),
    }


def delayed_accuracy(
    states: np.ndarray, ids: np.ndarray, place: np.ndarray, split: int, delays: int
) -> np.ndarray:
    """``[delay]``: how well LDA tells from the state τ tokens later which new token was read."""
    found = np.empty(delays)
    for tau in range(delays):
        new = np.flatnonzero(place[: len(ids) - tau] == 0)
        # The test is on held-out states; their inputs may lie a little before.
        before, after = new[new + tau < split], new[new + tau >= split]
        found[tau] = accuracy(states[before + tau], ids[before], states[after + tau], ids[after])
    return found


def _delayed_chance(ids: np.ndarray, place: np.ndarray, split: int) -> float:
    _, counts = np.unique(ids[split:][place[split:] == 0], return_counts=True)
    return float(counts.max() / counts.sum())


def memory(tree: xr.DataTree, projector: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Σσ of the mean whitened gradients, of their part in a subspace and of the rest.

    Args:
        tree: Result with the state ``lstm0.c``.
        projector: ``[unit, unit]``, onto the counting subspace.

    Returns:
        "group, part" → ``sum`` ``[delay]``, its jackknife ``stderr`` and noise ``floor``.
    """
    whitening = tree["embedding_whitening"].values
    node = tree["lstm0.c"]
    parts = {"counting": projector, "ID": np.eye(len(projector)) - projector}
    found = {}
    for group in ("all", "token-1"):
        here = node.sel(group=group)
        counts = here["block_count"].values
        sums = np.nan_to_num(here["block_gradient"].values) * counts[..., None, None]
        for part, onto in parts.items():

            def total(matrix: np.ndarray, onto: np.ndarray = onto) -> np.ndarray:
                return metrics.singular_values(onto @ matrix @ whitening).sum(-1)

            found[f"{group}, {part}"] = {
                "sum": total(here["gradient"].values),
                "stderr": metrics.jackknife(sums, counts, total),
                "floor": total(here["noise"].values),
            }
    return found


# What is shown -------------------------------------------------------------------------------

_COLOURS = {"counting": "#D55E00", "ID": "#0072B2", "cell state": "#000000",
            "hidden state": "#009E73"}  # fmt: skip


def figure2(found: dict[str, Any]) -> Figure:
    """Cell states in the two best discriminant directions of the count (V20, Figure 2)."""
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.subplots()
    plane, place, period = found["plane"], found["place"], found["period"]
    chosen = np.random.default_rng(0).permutation(len(place))[:6000]  # more only hide each other
    tokens = chosen[place[chosen] >= 0]
    shown = axes.scatter(*plane[tokens].T, c=place[tokens], cmap="viridis", s=5,
                         linewidths=0)  # fmt: skip
    ends = np.flatnonzero(place < 0)
    axes.scatter(*plane[ends].T, c="#D55E00", marker="+", s=14, linewidths=0.6)
    for count in range(-1, period):
        x, y = np.median(plane[place == count], axis=0)
        text = "EOS" if count < 0 else str(count)
        axes.annotate(text, (x, y), ha="center", va="center", fontsize=9, fontweight="bold",
                      bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none",
                            "alpha": 0.75})  # fmt: skip
    figure.colorbar(shown, label="count of the input token (0: new)", ticks=range(0, period, 3))
    share = found["explained"][:2]
    axes.set_xlabel(f"first discriminant direction ({share[0]:.0%} of the variance between counts)")
    axes.set_ylabel(f"second ({share[1]:.0%})")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def figure3(found: dict[str, Any]) -> Figure:
    """Σσ over delays, in the two subspaces, and the accuracy of discriminants (V20, Figure 3)."""
    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    axes = figure.subplots()
    right = axes.twinx()
    handles = []
    for name, curve in found["memory"].items():
        group, part = name.split(", ")
        delay = np.arange(len(curve["sum"]))
        style = "-" if group != "all" else (0, (5, 1.5))
        (line,) = axes.plot(delay, curve["sum"], color=_COLOURS[part], linestyle=style,
                            linewidth=1.7, label=f"{group}, {part}")  # fmt: skip
        axes.fill_between(delay, curve["sum"] - curve["stderr"], curve["sum"] + curve["stderr"],
                          color=_COLOURS[part], alpha=0.2, linewidth=0)  # fmt: skip
        axes.plot(delay, curve["floor"], color=_COLOURS[part], linewidth=0.9,
                  linestyle=(0, (1, 1.5)) if group != "all" else (0, (1, 4)))  # fmt: skip
        handles.append(line)
    handles.append(Line2D([], [], color="0.35", linewidth=0.9, linestyle=(0, (1, 1.5)),
                          label="noise floors"))  # fmt: skip
    for name, values in found["accuracy"].items():
        (line,) = right.plot(values, color=_COLOURS[name], linewidth=0.9, marker=".",
                             markersize=3.5, label=f"LDA accuracy, {name}")  # fmt: skip
        handles.append(line)
    right.axhline(found["accuracy_chance"], color="0.35", linewidth=0.8, linestyle=(0, (6, 3)))
    handles.append(Line2D([], [], color="0.35", linewidth=0.8, linestyle=(0, (6, 3)),
                          label="most frequent token"))  # fmt: skip
    _phases(axes, found["period"], delay[-1])
    axes.set(xlabel="delay (tokens)", ylim=(0, None), xlim=(-0.5, delay[-1] + 0.5))
    axes.set_ylabel("Σσ of the mean whitened gradient of the cell state")
    right.set_ylabel("accuracy of telling the new token (delay 0)")
    right.set_ylim(0, 1.02)
    for each in (axes, right):
        each.spines["top"].set_visible(False)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False,
                  fontsize="small")  # fmt: skip
    return figure


def _phases(axes: Axes, period: int, last: int) -> None:
    for delay in range(period, last + 1, period):
        axes.axvline(delay, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xticks(range(0, last + 1, period))


def markdown(found: dict[str, Any]) -> str:
    """Perplexities, Table 1 beside the paper's, and the phases of Figure 3."""
    least, perplexity = found["least"], found["perplexity"]
    lines = [
        "| perplexity | |",
        "| --- | --: |",
        f"| validation | {perplexity['valid']:.4f} |",
        f"| test | {perplexity['test']:.4f} |",
        f"| least, seeing the past only | {least['attainable']:.4f} |",
        f"| least, line lengths known | {least['known_length']:.4f} |",
        f"| least, the paper's mean over lines | {least['paper']:.4f} |",
        "",
        f"Wrong guesses where the next token can be known: {found['mistakes']:,} of "
        f"{found['positions']:,} ({found['mistakes'] / found['positions']:.3%}), of which "
        f"{found['mistakes_at_first_repetition']:,} at the first repetition.",
        "",
        f"Test accuracy (%) of linear discriminants, last {found['held_out']:,} positions; the "
        f"counting subspace has {found['counting_dimensions']} dimensions "
        f"({SHARE:.0%} of the variance between counts):",
        "",
        "| representation | token ID | new token | counting | paper |",
        "| --- | --: | --: | --: | --: |",
    ]
    for name, row in found["table"].items():
        cells = " | ".join(f"{100 * row[task]:.1f}" for task in TASKS)
        paper = " / ".join(map(str, PAPER[name]))
        lines.append(f"| {name} | {cells} | {paper} |")
    cells = " | ".join(f"{100 * found['chance'][task]:.1f}" for task in TASKS)
    lines += [f"| most frequent class | {cells} | |", ""]
    period, curves = found["period"], found["memory"]
    shown = sorted({d for k in range(5) for d in (k * period - 1, k * period, k * period + 1)
                    if 0 <= d < len(curves["all, ID"]["sum"])})  # fmt: skip
    lines += [
        "Σσ ± standard error (noise floor), and LDA accuracy for the token at delay 0 "
        f"(most frequent token: {100 * found['accuracy_chance']:.0f} %):",
        "",
        "| delay | " + " | ".join([*curves, *found["accuracy"]]) + " |",
        "| --: |" + " --: |" * (len(curves) + len(found["accuracy"])),
    ]
    for d in shown:
        cells = [f"{c['sum'][d]:.3g} ± {c['stderr'][d]:.1g} ({c['floor'][d]:.1g})"
                 for c in curves.values()]  # fmt: skip
        cells += [f"{100 * values[d]:.0f} %" for values in found["accuracy"].values()]
        lines.append(f"| {d} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plain(found: Any) -> Any:
    """`found` without what is as long as the corpus, in the types that JSON has."""
    if isinstance(found, dict):
        return {k: plain(v) for k, v in found.items() if k not in ("plane", "place")}
    if isinstance(found, np.ndarray):
        return plain(found.tolist())
    if isinstance(found, list):
        return [plain(v) for v in found]
    if isinstance(found, float):
        return round(found, 10) if math.isfinite(found) else None
    return found
