"""What large jobs cost here, from rates measured now; and what more positions are worth.

    python benchmarks/scale.py cost                         # the tables of docs/scale.md
    python benchmarks/scale.py workers corpus.txt           # one process, one worker, two
    python benchmarks/scale.py errors corpus.txt -o errors.png

The rate in multiplications and additions per second is that of the widest model that is measured;
what is too large to be measured is computed from it and from the number of its multiplications.
Beside it a bare matrix product is timed: no model can be faster than that.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from mnemoscope.analyzer import Corpus, Groups, analyze, open_model, read_corpus, save_result
from mnemoscope.analyzer._products import processors
from mnemoscope.analyzer._run import Run
from mnemoscope.analyzer._shards import folded_work
from mnemoscope.analyzer._states import AT_ONCE
from mnemoscope.analyzer.roles import Roles, State, write_roles
from mnemoscope.analyzer.sums import plan
from mnemoscope.analyzer.tables import curves
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

WORDS = 1000
SAMPLE = Path(__file__).resolve().parent.parent / "samples/models/pydoc-lstm.onnx"
DAY = 86400.0


@dataclass(frozen=True)
class Shape:
    """A stack of LSTM layers."""

    layers: int
    embedding: int
    units: int

    @property
    def name(self) -> str:
        return f"LSTM {self.layers} x {self.units:,}, embedding {self.embedding:,}"

    @property
    def weights(self) -> int:
        """Of the recurrent layers, biases aside."""
        first = 4 * self.units * (self.embedding + self.units)
        return first + (self.layers - 1) * 8 * self.units**2

    @property
    def areas(self) -> int:
        """Entries of the dense blocks between states.

        A layer's h and c are reached from its own h, and from what the h of the layer below it has
        just become: H² each.
        """
        return (4 * self.layers - 2) * self.units**2

    def work(self, delays: int) -> float:
        """Floating-point operations of one position at all delays."""
        return 2.0 * self.embedding * self.areas * (delays + 1)

    def tangents(self, delays: int) -> int:
        """Bytes of the two buffers, in single precision."""
        return 2 * 4 * (delays + 1) * self.embedding * 2 * self.layers * self.units

    def sums(self, delays: int, blocks: int) -> int:
        """Bytes of the totals, in double precision."""
        return 8 * (blocks + 1) * (delays + 1) * self.embedding * 2 * self.layers * self.units

    def save(self, path: Path) -> Path:
        """Write a model with random weights; tokens are ids."""
        rng = np.random.default_rng(0)
        weights: list[Any] = []
        nodes: list[Any] = []

        def weight(*shape: int) -> str:
            name = f"w{len(weights)}"
            values = rng.standard_normal(shape) / math.sqrt(shape[-1])
            weights.append(numpy_helper.from_array(values.astype("f4"), name))
            return name

        def op(kind: str, *inputs: str, outputs: list[str], **attributes: Any) -> None:
            nodes.append(helper.make_node(kind, list(inputs), outputs, **attributes))

        axes = numpy_helper.from_array(np.array([1]), "axes")
        weights.append(axes)
        op("Gather", weight(WORDS, self.embedding), "tokens", outputs=["embedding"])
        op("Transpose", "embedding", outputs=["x0"], perm=[1, 0, 2])
        states, io = [], []
        for i in range(self.layers):
            width = self.units if i else self.embedding
            op("LSTM", f"x{i}", weight(1, 4 * self.units, width),
               weight(1, 4 * self.units, self.units), "", "", f"h{i}", f"c{i}",
               outputs=[f"y{i}", f"h{i}_", f"c{i}_"], hidden_size=self.units)  # fmt: skip
            op("Squeeze", f"y{i}", "axes", outputs=[f"x{i + 1}"])
            for kind, key in (("hidden", "h"), ("cell", "c")):
                states.append(State(f"lstm{i}.{key}", f"{key}{i}", f"{key}{i}_", kind, i, 1))
                io.append((f"{key}{i}", f"{key}{i}_"))
        op("Transpose", f"x{self.layers}", outputs=["y"], perm=[1, 0, 2])
        op("MatMul", "y", weight(self.units, WORDS), outputs=["logits"])

        def info(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> Any:
            return helper.make_tensor_value_info(name, kind, shape)

        graph = helper.make_graph(
            nodes,
            "lstm",
            [info("tokens", "b", "t", kind=TensorProto.INT64),
             *(info(a, 1, "b", self.units) for a, _ in io)],
            [info("embedding", "b", "t", self.embedding), info("logits", "b", "t", WORDS),
             *(info(b, 1, "b", self.units) for _, b in io)],
            weights,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        write_roles(model, Roles("tokens", "embedding", tuple(states), "logits"), None)
        path.write_bytes(model.SerializeToString())
        return path


@dataclass(frozen=True)
class Rate:
    """What was measured of one shape."""

    shape: Shape
    position: float  # seconds for all delays
    step: float  # seconds that the pass which carries the states takes for a position
    ready: float  # seconds until the first position is followed

    def flops(self, delays: int) -> float:
        return self.shape.work(delays) / self.position


def measure(shape: Shape, delays: int, seconds: float, threads: int | None) -> Rate:
    """Follow as many positions as take about so long."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        model = open_model(shape.save(Path(folder) / "m.onnx"))
        length = 2 * (delays + 1)
        ids = np.random.default_rng(0).integers(0, WORDS, 1_000_000)

        def full(count: int) -> float:
            """How many positions at all delays the work of the first `count` is."""
            return float(np.minimum(np.arange(1, count + 1), delays + 1).sum() / (delays + 1))

        def once(count: int) -> tuple[float, Run]:
            corpus = Corpus(ids[:count], "random", "", 1, 0)
            run = Run(model, corpus, delays=delays, provider="cpu", threads=threads)
            job = run.job(plan(count, delays, blocks=2), Groups.everything(count))
            start = time.perf_counter()
            job.follow(job.shards, job.carrier())
            return time.perf_counter() - start, run

        first, run = once(length)
        ready = time.perf_counter() - began - first
        assert shape.work(delays) == folded_work(run.engines.linearization()) * (delays + 1), shape
        count = int(np.clip(length * seconds / first, length, len(ids)))
        position = (once(count)[0] if count > length else first) / full(count)
        job = run.job(plan(length, delays, blocks=2), Groups.everything(length))
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < min(1.0, seconds):
            job.stepper.read(job.stepper.initial(), ids[:AT_ONCE])
            steps += min(AT_ONCE, len(ids))
        return Rate(shape, position, (time.perf_counter() - start) / steps, ready)


def matmul_rate(threads: int | None) -> float:
    """Operations per second of a single-precision product, as wide as those of a large model."""
    from threadpoolctl import threadpool_limits

    a = np.random.default_rng(0).standard_normal((2048, 2048)).astype("f4")
    with threadpool_limits(threads or processors(), user_api="blas"):
        found = []
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            found.append(2 * 2048**3 / (time.perf_counter() - start))
    return max(found)


def shown(seconds: float) -> str:
    """A duration in the unit that fits."""
    for unit, name in ((365 * DAY, "years"), (DAY, "days"), (3600, "hours"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:,.2f} ms"


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 1e3:,.0f} kB"


def table(title: str, *headings: str) -> Table:
    made = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        made.add_column(heading, justify="right" if i else "left", no_wrap=True)
    return made


@click.group()
def main() -> None:
    """Measure what scale costs."""


@main.command()
@click.option("--delays", default=50, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="For each shape.")
@click.option("--threads", type=int, help="[all processors]")
def cost(delays: int, seconds: float, threads: int | None) -> None:
    """Print what a large corpus, a large model and many checkpoints cost on this machine."""
    shapes = [Shape(1, 64, 128), Shape(1, 64, 256), Shape(2, 128, 512)]
    rates = [measure(s, delays, seconds, threads) for s in shapes]
    bare = matmul_rate(threads)
    console = Console(width=150)
    found = table(
        f"Measured, {threads or processors()} threads, delays 0-{delays}, float32",
        "model", "ms a position", "positions/s", "GFLOP/s", "ms a state", "ready after",
    )  # fmt: skip
    for r in rates:
        found.add_row(r.shape.name, f"{1000 * r.position:,.2f}", f"{1 / r.position:,.0f}",
                      f"{r.flops(delays) / 1e9:,.0f}", f"{1000 * r.step:,.3f}",
                      shown(r.ready))  # fmt: skip
    console.print(found)
    console.print(f"A bare product of 2048 x 2048 matrices: {bare / 1e9:,.0f} GFLOP/s.\n")

    usual = rates[1]
    found = table(
        f"Computed from {usual.shape.name}",
        "job", "positions", "carrying states", "products", "100 machines", "useful machines",
    )  # fmt: skip
    for job, read, positions, ready in (
        ("corpus of 1e8 tokens, all", 1e8, 1e8, 1),
        ("corpus of 1e8 tokens, 20,000", 1e8, 2e4, 1),
        ("1,000 checkpoints, 47,793 each", 47793e3, 47793e3, 1000),
        ("1,000 checkpoints, 5,000 each", 47793e3, 5e6, 1000),
    ):
        # A sample has a stretch of some hundreds of positions, and its memory fades after it.
        work = positions * usual.position + (ready - 1) * usual.ready
        carry = read * usual.step
        parts = 1000 if ready > 1 else 1  # checkpoints carry their states side by side
        whole = max(carry / parts, (carry * (parts > 1) + work) / 100)
        found.add_row(job, f"{positions:,.0f}", shown(carry), shown(work), shown(whole),
                      "1,000" if ready > 1 else f"{1 + work / carry:,.0f}")  # fmt: skip
    console.print(found)

    large, widest = Shape(4, 4096, 4096), rates[-1]
    flops = widest.flops(delays)
    found = table(
        f"Computed for {large.name}: {large.weights / 1e9:.2f}e9 recurrent weights (with two "
        f"tables of 50,000 words {(large.weights + 2 * 5e4 * 4096) / 1e9:.2f}e9), at "
        f"{flops / 1e9:,.0f} GFLOP/s",
        "delays", "FLOP a position", "a position", "1,000 positions", "tangents", "sums, 10 blocks",
    )  # fmt: skip
    for most in (50, 10, 2):
        each = large.work(most) / flops
        found.add_row(f"0-{most}", f"{large.work(most):.1e}", shown(each), shown(1000 * each),
                      size(large.tangents(most)), size(large.sums(most, 10)))  # fmt: skip
    console.print(found)


@main.command()
@click.argument("corpus")
@click.option("--model", default=str(SAMPLE), show_default=True)
@click.option("--positions", type=int, help="[all]")
@click.option("--repeats", default=3, show_default=True)
def workers(corpus: str, model: str, positions: int | None, repeats: int) -> None:
    """Time one process with one thread, one worker, and two workers, in turn."""
    opened = open_model(model)
    text = read_corpus(corpus, opened.vocabulary)
    cases: dict[str, dict[str, Any]] = {
        "one process, 1 thread": {"threads": 1},
        "one process, all threads": {},
        "1 worker, 1 thread": {"workers": 1, "threads": 1},
        "2 workers, 1 thread each": {"workers": 2, "threads": 1},
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    trees = {}
    for _ in range(repeats):
        for name, options in cases.items():
            start = time.perf_counter()
            trees[name] = analyze(opened, text, positions=positions, provider="cpu",
                                  calibrate=False, **options)  # fmt: skip
            seconds[name].append(time.perf_counter() - start)
    first = trees["one process, 1 thread"]
    found = table("The whole analysis", "how", "median s", "least", "most", "difference")
    for name, values in seconds.items():
        apart = max(
            float(np.abs(trees[name][s]["gradient"] - first[s]["gradient"]).max()
                  / np.abs(first[s]["gradient"]).max())
            for s in first.children
        )  # fmt: skip
        found.add_row(name, f"{np.median(values):,.1f}", f"{min(values):,.1f}",
                      f"{max(values):,.1f}", f"{apart:.0e}")  # fmt: skip
    Console(width=110).print(found)


@main.command()
@click.argument("corpus")
@click.option("--model", default=str(SAMPLE), show_default=True)
@click.option("-o", "--output", help="Draw the figure here.")
@click.option("--state", default="lstm0.c", show_default=True)
@click.option("--seeds", default=1, show_default=True, help="Samples of each size.")
@click.option("--keep", help="Folder of results, so that a run can be gone on with.")
def errors(
    corpus: str, model: str, output: str | None, state: str, seeds: int, keep: str | None
) -> None:
    """Print how the standard error falls with the number of positions."""
    from mnemoscope.analyzer import open_result

    opened = open_model(model)
    text = read_corpus(corpus, opened.vocabulary)
    rows = []
    for positions in (500, 1000, 2000, 5000, 20000, None):
        for seed in range(seeds if positions else 1):
            kept = Path(keep, f"{positions or 'all'}-{seed}.nc") if keep else None
            if kept and kept.exists():
                tree = open_result(kept)
            else:
                tree = analyze(opened, text, positions=positions, seed=seed, provider="cpu",
                               states=[state], keep_blocks=1)  # fmt: skip
                if kept:
                    kept.parent.mkdir(exist_ok=True)
                    save_result(tree, kept)
            rows.append((positions or len(text), curves(tree, states=[state])[0]))
    whole = rows[-1][1]
    delays = [0, 5, 20, 50]
    found = table(
        f"{state}: standard error of whitened σ₁, in % of the full pass's σ₁",
        "positions", *(f"delay {d}" for d in delays), "clear of noise up to", "off at 20",
    )  # fmt: skip
    for count, curve in rows:
        relative = 100 * curve.sigma1_stderr / whole.sigma1
        reach = "50" if curve.first_unclear is None else f"{curve.first_unclear - 1}"
        off = 100 * (curve.sigma1[20] / whole.sigma1[20] - 1)
        found.add_row(f"{count:,}", *(f"{relative[d]:.2f}" for d in delays), reach, f"{off:+.1f}")
    Console(width=120).print(found)
    if output:
        _draw(rows, whole, delays, output)


def _draw(rows: list[Any], whole: Any, delays: list[int], output: str) -> None:
    from matplotlib.figure import Figure
    from mnemoscope.analyzer.plots import _STYLES

    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for k, d in enumerate(delays):
        color, marker, line = _STYLES[k]
        axes.plot([n for n, _ in rows],
                  [100 * c.sigma1_stderr[d] / whole.sigma1[d] for _, c in rows],
                  color=color, marker=marker, linestyle=line, label=f"delay {d}")  # fmt: skip
    counts = np.array([rows[0][0], rows[-1][0]], float)
    top = 100 * rows[0][1].sigma1_stderr[0] / whole.sigma1[0]
    axes.plot(counts, top * np.sqrt(counts[0] / counts), color="0.4", linewidth=0.9,
              linestyle=":", label="$1/\\sqrt{N}$")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="positions N",
             ylabel="standard error of $\\sigma_1$ (%)")  # fmt: skip
    axes.grid(True, linewidth=0.5, alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(output, dpi=150)


if __name__ == "__main__":
    main()
