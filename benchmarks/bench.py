"""State-embedding Jacobians at every delay, by four ways of computing them, on the same work.

``python benchmarks/bench.py`` (or ``make bench``) times, in one process, an LSTM with embedding
64 and 256 units at delays 0 to 50 in float32, and prints milliseconds per input position:

- ``torch.func``: vmap over input positions of jacfwd through the steps that follow each word;
- ``onnx-ad``: the library's forward-mode model in ONNX Runtime, all directions of the last 51
  words pushed through one step at a time;
- ``fd`` and ``jvp``: this project's methods, with everything that the main job does.

Before anything is timed, the mean gradients of all four are compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import onnx_ad
import torch
from mnemoscope.analyzer import Corpus, _runtime, open_model
from mnemoscope.analyzer._products import Products
from mnemoscope.analyzer.groups import Groups
from mnemoscope.analyzer.linearize import build_step, difference_linearization, linearize
from mnemoscope.analyzer.linearize._step import lowered
from mnemoscope.analyzer.sums import Accumulator, plan
from rich.console import Console
from rich.table import Table
from torch.func import jacfwd, vmap

WARM_UP = 2


class LanguageModel(torch.nn.Module):
    """What is exported: an embedding and one LSTM."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, embedding)
        self.lstm = torch.nn.LSTM(embedding, hidden, batch_first=True)
        self.output = torch.nn.Linear(hidden, vocabulary)

    def forward(self, tokens, state=None):
        y, state = self.lstm(self.embedding(tokens), state)
        return self.output(y), state


def torch_func(module: LanguageModel, ids: np.ndarray, delays: int, batch: int):
    """A callable that takes [start, stop) and returns the sum of Jacobians of those inputs."""
    w = {k: v.detach() for k, v in module.state_dict().items()}
    wi, wh = w["lstm.weight_ih_l0"], w["lstm.weight_hh_l0"]
    b = w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"]
    xs = w["embedding.weight"][torch.tensor(ids)]
    hidden = wh.shape[1]

    def step(x, h, c):
        i, f, g, o = (x @ wi.T + h @ wh.T + b).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def follow(x, rest, h, c):
        h, c = step(x, h, c)
        hs, cs = [h], [c]
        for y in rest:
            h, c = step(y, h, c)
            hs.append(h)
            cs.append(c)
        return torch.stack(hs), torch.stack(cs)

    h = c = torch.zeros(hidden)
    before = []
    for x in xs:
        before.append((h, c))
        h, c = step(x, h, c)
    jacobian = vmap(jacfwd(follow))

    def run(start: int, stop: int):
        total = None
        for low in range(start, stop, batch):
            at = range(low, min(low + batch, stop))
            with torch.no_grad():
                found = jacobian(
                    xs[list(at)],
                    torch.stack([xs[s + 1 : s + 1 + delays] for s in at]),
                    torch.stack([before[s][0] for s in at]),
                    torch.stack([before[s][1] for s in at]),
                )
            sums = [j.sum(0) for j in found]
            total = sums if total is None else [a + s for a, s in zip(total, sums, strict=True)]
        return {"lstm0.h": total[0].numpy(), "lstm0.c": total[1].numpy()}

    return run


def library(model, ids: np.ndarray, delays: int, threads: int | None):
    """The same through onnx-ad: the tangents of the last words, pushed through every step."""
    step = build_step(model)
    proto = lowered(step)
    for info in proto.graph.input:
        info.type.tensor_type.shape.dim[0].dim_value = 1
    proto = onnx.shape_inference.infer_shapes(proto)
    components = step.components
    forward = onnx_ad.forward(
        proto,
        inputs=[step.embedding, *(c.input for c in components)],
        outputs=[c.output for c in components],
        layout="onnx",
    )
    session = _runtime.session(forward, threads=threads)
    e = step.embedding_size
    n = (delays + 1) * e
    seeds = {i.name: i for i in session.get_inputs() if len(i.shape) == 3}
    seed = {key: next(s for s in seeds if s.endswith(key))
            for key in (step.embedding, *(c.input for c in components))}  # fmt: skip
    table = model.embeddings

    def run(start: int, stop: int):
        """Inputs [start, stop) as in `torch_func`; words before start are not followed."""
        now = {c.name: c.initial() for c in components}
        plain = _runtime.session(proto, threads=threads)
        for token in ids[:start]:
            feeds = {step.embedding: table[token][None]}
            feeds.update({c.input: now[c.name] for c in components})
            now = dict(zip(now, plain.run([c.output for c in components], feeds), strict=True))
        # Direction blocks in ring slots: slot t mod (delays + 1) belongs to the word at t.
        tangents = {c.name: np.zeros((1, c.size, n), np.float32) for c in components}
        sums = {c.name: np.zeros((delays + 1, c.size, e), np.float32) for c in components}
        fresh = np.zeros((1, e, n), np.float32)
        for t in range(start, stop + delays):
            slot = (t % (delays + 1)) * e
            fresh[:] = 0
            for value in tangents.values():
                value[:, :, slot : slot + e] = 0
            if t < stop:
                fresh[0, :, slot : slot + e] = np.eye(e)
            feeds = {step.embedding: table[ids[t]][None], seed[step.embedding]: fresh}
            for c in components:
                feeds[c.input], feeds[seed[c.input]] = now[c.name], tangents[c.name]
            outputs = session.run(None, feeds)
            now = dict(zip(now, outputs[: len(components)], strict=True))
            tangents = dict(zip(now, outputs[len(components) :], strict=True))
            for name, value in tangents.items():
                for tau in range(max(0, t - stop + 1), min(t - start, delays) + 1):
                    at = ((t - tau) % (delays + 1)) * e
                    sums[name][tau] += value[0, :, at : at + e]
        return sums

    return run


def ours(model, ids: np.ndarray, delays: int, method: str, threads: int | None):
    """This project's products and sums, as `analyze` runs them."""
    step = build_step(model)
    table = model.embeddings
    if method == "fd":
        scales = {n: np.full(size, 0.1) for n, (_, size) in step.sources.items()}
        linear = difference_linearization(step, scales, batch=None)
    else:
        linear, _ = linearize(step, None)
    names = [c.name for c in step.differentiable]
    products = Products(linear, delays, names, table, threads=threads)
    sizes = {c.name: c.size for c in step.differentiable}

    def run(start: int, stop: int):
        layout = plan(len(ids), delays, blocks=2)
        sums = Accumulator(layout, delays, sizes, step.embedding_size, step.dtype,
                           Groups.everything(len(ids)), products.parts)  # fmt: skip

        def visit(window):
            sums.add(window.time, window.inputs, window.jacobians, window.part)

        tokens = ids[start : stop + delays]
        follow = np.arange(len(tokens)) < stop - start
        for _ in products.run(tokens, states[start], visit, start, follow):
            pass
        return {n: s.block_sum.sum(0)[0] for n, s in sums.result().items()}

    from mnemoscope.analyzer._analyze import _states_at

    corpus = Corpus(ids, "random", "", 1, 0)
    times = np.arange(len(ids))
    states = list(_states_at(step, corpus, table, times, _runtime.CPU))
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--delays", type=int, default=50)
    parser.add_argument("--positions", type=int, default=512, help="input positions a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="positions vmap takes at once")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--guard", action="store_true",
                        help="exit 1 unless jvp keeps the ratios the project promises")  # fmt: skip
    options = parser.parse_args()
    torch.manual_seed(0)
    vocabulary = 200
    module = LanguageModel(vocabulary, options.embedding, options.hidden).eval()
    ids = np.random.default_rng(0).integers(0, vocabulary, options.positions + options.delays + 64)
    with tempfile.TemporaryDirectory() as folder:
        from mnemoscope.exporters import pytorch

        path = Path(folder) / "m.onnx"
        pytorch.export(module, path, vocabulary_size=vocabulary)
        model = open_model(path)
    if options.threads:
        torch.set_num_threads(options.threads)
    peers = {
        "torch.func vmap(jacfwd)": torch_func(module, ids, options.delays, options.batch),
        "onnx-ad": library(model, ids, options.delays, options.threads),
        "fd": ours(model, ids, options.delays, "fd", options.threads),
        "jvp": ours(model, ids, options.delays, "jvp", options.threads),
    }
    print("Comparing results …", file=sys.stderr)
    # Differences of one step in single precision are good to about 1e-3 over 50 delays.
    bars = {"fd": 5e-3}
    small = {name: run(8, 24) for name, run in peers.items()}
    reference = small["torch.func vmap(jacfwd)"]
    agreement = {}
    for name, found in small.items():
        agreement[name] = max(
            float(np.linalg.norm(found[s] - r) / np.linalg.norm(r)) for s, r in reference.items()
        )
        if agreement[name] > bars.get(name, 1e-5):
            print(f"{name} disagrees: relative difference {agreement[name]:.1e}", file=sys.stderr)
            return 1
    times: dict[str, list[float]] = {name: [] for name in peers}
    start, stop = 8, 8 + options.positions
    for run in peers.values():
        run(start, start + 4 * WARM_UP)
    for _ in range(options.repeats):  # interleaved, so that a drift of the machine hits all
        for name, run in peers.items():
            began = time.perf_counter()
            run(start, stop)
            times[name].append((time.perf_counter() - began) / options.positions * 1e3)
    median = {name: statistics.median(t) for name, t in times.items()}
    rate = matmul_rate(options)
    flop = 4 * (options.delays + 1) * options.embedding * options.hidden**2
    table = Table(title=f"LSTM {options.embedding}/{options.hidden}, delays 0–{options.delays}, "
                        f"float32, {options.positions} input positions")  # fmt: skip
    for column in ("method", "ms per position", "min", "max", "slower than jvp", "difference"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, t in times.items():
        table.add_row(name, f"{median[name]:.2f}", f"{min(t):.2f}", f"{max(t):.2f}",
                      f"{median[name] / median['jvp']:.1f}×", f"{agreement[name]:.0e}")  # fmt: skip
    console = Console(width=100)
    console.print(table)
    part = flop / (median["jvp"] * 1e-3) / rate
    console.print(
        f"Matrix products of these shapes run at {rate / 1e9:.0f} GFLOP/s here; jvp reaches "
        f"{part:.0%} of that, all work included. {processor()}, {date.today()}."
    )
    if options.json:
        options.json.write_text(json.dumps({
            "options": {k: str(v) for k, v in vars(options).items()}, "times_ms": times,
            "difference": agreement, "matmul_gflops": rate / 1e9, "machine": processor(),
            "date": str(date.today()), "torch": torch.__version__,
        }, indent=1))  # fmt: skip
    if options.guard:
        wanted = {"torch.func vmap(jacfwd)": 8.0, "onnx-ad": 3.5}
        short = {n: median[n] / median["jvp"] for n, w in wanted.items()
                 if median[n] / median["jvp"] < w}  # fmt: skip
        for name, ratio in short.items():
            print(f"jvp is {ratio:.1f} times as fast as {name}, not {wanted[name]}",
                  file=sys.stderr)  # fmt: skip
        return bool(short)
    return 0


def matmul_rate(options: argparse.Namespace) -> float:
    """FLOP/s of ONNX Runtime's matrix product on the shapes of the main job."""
    from onnx import TensorProto, helper

    rows, n = (options.delays + 1) * options.embedding, options.hidden
    infos = [helper.make_tensor_value_info(k, TensorProto.FLOAT, s)
             for k, s in (("a", [rows, n]), ("b", [n, n]), ("c", [rows, n]))]  # fmt: skip
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "rate",
                              infos[:2], infos[2:])  # fmt: skip
    made = _runtime.session(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8),
        threads=options.threads,
    )
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((rows, n)).astype(np.float32),
              "b": rng.standard_normal((n, n)).astype(np.float32),
              "c": np.empty((rows, n), np.float32)}  # fmt: skip
    binding = made.io_binding()
    for name, value in arrays.items():
        bind = binding.bind_output if name == "c" else binding.bind_input
        bind(name, "cpu", 0, np.float32, value.shape, value.ctypes.data)
    best = float("inf")
    for _ in range(30):
        began = time.perf_counter()
        made.run_with_iobinding(binding)
        best = min(best, time.perf_counter() - began)
    return 2 * rows * n * n / best


def processor() -> str:
    """What the operating system calls the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
