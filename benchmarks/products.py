"""The matrix products that the job needs, alone: what this machine's rate allows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mnemoscope.analyzer import open_model
from mnemoscope.analyzer.linearize import EMBEDDING, build_step, linearize
from onnx import TensorProto, helper
from threadpoolctl import threadpool_limits

from .onnx_ad_peer import session
from .shapes import Job

SECONDS = 0.2  # that one measurement takes at least
TRIES = 3  # of which the best counts, since a rate is what a machine can do


class Needed:
    """The products of one position: tangents of all delays by the dense blocks of a step.

    Blocks that multiply one state lie side by side. Diagonal blocks cost no product; the newest
    input is inserted, not multiplied.

    Attributes:
        rows: Of the tangents: delays · E.
        factors: (n_in, n_out) of each product.
    """

    def __init__(self, job: Job) -> None:
        step = build_step(open_model(job.path))
        linear, _ = linearize(step)
        sizes = {c.name: c.size for c in step.differentiable}
        self.factors: list[tuple[int, int]] = []
        for blocks in (linear.jacobians, linear.relayed):
            wide: dict[str, int] = {}
            for (state, source), block in blocks.items():
                if source != EMBEDDING and block.kind == "dense":
                    wide[source] = wide.get(source, 0) + sizes[state]
            self.factors += [(sizes[source], n) for source, n in wide.items()]
        self.rows = job.shape.delays * step.embedding_size
        self.threads = job.threads

    @property
    def flop(self) -> int:
        """Multiplications and additions."""
        return sum(2 * self.rows * a * b for a, b in self.factors)

    def arrays(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """``(tangents, blocks, product)`` of each."""
        rng = np.random.default_rng(0)
        return [
            (
                rng.standard_normal((self.rows, a), np.float32),
                rng.standard_normal((a, b), np.float32),
                np.empty((self.rows, b), np.float32),
            )
            for a, b in self.factors
        ]


def through_onnx_runtime(needed: Needed) -> Callable[[int], None]:
    """Each product on all threads; a callable that takes how many times to do all."""
    nodes, inputs, outputs = [], [], []
    arrays = needed.arrays()
    for i, (a, b, c) in enumerate(arrays):
        names = [f"{letter}{i}" for letter in "abc"]
        nodes.append(helper.make_node("MatMul", names[:2], names[2:]))
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape)
                 for n, x in zip(names, (a, b, c), strict=True)]  # fmt: skip
        inputs += infos[:2]
        outputs += infos[2:]
    graph = helper.make_graph(nodes, "products", inputs, outputs)
    opsets = [helper.make_opsetid("", 18)]
    made = session(helper.make_model(graph, opset_imports=opsets, ir_version=8), needed.threads)
    binding = made.io_binding()
    for i, (a, b, c) in enumerate(arrays):
        for name, value in ((f"a{i}", a), (f"b{i}", b)):
            binding.bind_input(name, "cpu", 0, np.float32, value.shape, value.ctypes.data)
        binding.bind_output(f"c{i}", "cpu", 0, np.float32, c.shape, c.ctypes.data)

    def run(times: int) -> None:
        _ = arrays  # which the binding does not keep alive
        for _ in range(times):
            made.run_with_iobinding(binding)

    return run


def through_blas(needed: Needed) -> Callable[[int], None]:
    """Each thread its own rows, one thread a product."""
    arrays = needed.arrays()
    edges = np.arange(needed.threads + 1) * needed.rows // needed.threads

    def work(part: slice, times: int) -> None:
        for _ in range(times):
            for a, b, c in arrays:
                np.matmul(a[part], b, out=c[part])

    def run(times: int) -> None:
        parts = [slice(x, y) for x, y in itertools.pairwise(edges)]
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(lambda part: work(part, times), parts))

    return run


LIBRARIES = {"ONNX Runtime": through_onnx_runtime, "BLAS": through_blas}


def seconds(run: Callable[[int], None]) -> float:
    """Of all products once."""
    times = 1
    while (took := _time(run, times)) < SECONDS:
        times = max(times + 1, int(1.2 * times * SECONDS / max(took, 1e-6)))
    return min(took, *(_time(run, times) for _ in range(TRIES - 1))) / times


def _time(run: Callable[[int], None], times: int) -> float:
    began = time.perf_counter()
    run(times)
    return time.perf_counter() - began
