"""The onnx-ad library: its forward-mode model of one step, in ONNX Runtime."""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnx_ad
import onnxruntime
from mnemoscope.analyzer import open_model
from mnemoscope.analyzer.linearize import build_step
from mnemoscope.analyzer.linearize._step import lowered

from .peer import Peer
from .shapes import FIRST, Job


class OnnxAd(Peer):
    """The directions of the last inputs, pushed through one step after another.

    They lie in ring slots: slot t mod (delays + 1) belongs to the input at t.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._step = step = build_step(open_model(job.path))
        proto = lowered(step)
        for info in proto.graph.input:
            info.type.tensor_type.shape.dim[0].dim_value = 1
        sources = [step.embedding, *(c.input for c in step.components)]
        forward = onnx_ad.forward(
            onnx.shape_inference.infer_shapes(proto),
            inputs=sources,
            outputs=[c.output for c in step.components],
            layout="onnx",
        )
        self._session = session(forward, job.threads)
        seeds = [i.name for i in self._session.get_inputs() if len(i.shape) == 3]
        self._seed = {key: next(s for s in seeds if s.endswith(key)) for key in sources}

    def sums(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return self._follow(start, stop, stop + self.job.shape.delays)

    def seconds(self, positions: int) -> float:
        """Of so many steps: every one pushes all slots, so that this is what a position costs.

        The steps after the last input, in which its memory fades, are left out: they are as many
        whether a corpus is long or short.
        """
        began = time.perf_counter()
        self._follow(FIRST, FIRST + positions, FIRST + positions)
        return time.perf_counter() - began

    def _follow(self, start: int, stop: int, end: int) -> dict[str, np.ndarray]:
        """Read up to `end`; the inputs from `start` to before `stop` are followed."""
        step, delays = self._step, self.job.shape.delays
        components, e, slots = step.components, step.embedding_size, delays + 1
        # Roles may list states in another order than that of the layers.
        before = dict(zip(self.job.names, self.job.before, strict=True))
        now = {c.name: before[c.name][[start]] for c in components}
        tangents = {c.name: np.zeros((1, c.size, slots * e), np.float32) for c in components}
        sums = {c.name: np.zeros((slots, c.size, e), np.float32) for c in components}
        fresh = np.zeros((1, e, slots * e), np.float32)
        for t in range(start, end):
            newest = (t % slots) * e
            fresh[:] = 0
            for value in tangents.values():
                value[:, :, newest : newest + e] = 0
            if t < stop:
                fresh[0, :, newest : newest + e] = np.eye(e)
            feeds = {step.embedding: self.job.embedded[[t]], self._seed[step.embedding]: fresh}
            for c in components:
                feeds[c.input], feeds[self._seed[c.input]] = now[c.name], tangents[c.name]
            outputs = self._session.run(None, feeds)
            now = dict(zip(now, outputs[: len(components)], strict=True))
            tangents = dict(zip(now, outputs[len(components) :], strict=True))
            # Empty slots are added too: in a long corpus there are next to none, and what is
            # timed is to hold the additions of a full ring.
            for name, value in tangents.items():
                for delay in range(slots):
                    at = ((t - delay) % slots) * e
                    sums[name][delay] += value[0, :, at : at + e]
        return sums


def session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
