"""What the comparison of a memory model with its source sees, on a small RNN and planted errors."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from mnemoscope.analyzer.roles import IR_VERSION, OPSET, Roles, State
from mnemoscope.exporters._memory_model import build_memory_model
from mnemoscope.exporters._parity import ParityError, check_parity, check_sequences
from onnx import TensorProto, helper, numpy_helper

V, E, H = 11, 4, 8


class Small:
    """h = tanh(x·W + h·U), logits = h·O + shift; in ONNX, and in numpy by another order of sums.

    Attributes:
        scale: Of U: far above 1 the model is chaotic.
        shift: Added to the logits, ``[V]``.
        streams: Operator over the batch, taken from h, or None.
        noise: Whether random numbers are added to h.
    """

    def __init__(self, scale=0.5, shift=0.0, streams=None, noise=False):
        random = np.random.default_rng(5)
        self.table = random.normal(size=(V, E)).astype(np.float32)
        self.w = random.normal(size=(E, H)).astype(np.float32)
        self.u = (scale * random.normal(size=(H, H)) / np.sqrt(H)).astype(np.float32)
        self.o = (0.3 * random.normal(size=(H, V))).astype(np.float32)
        self.shift = np.broadcast_to(np.float32(shift), (V,))
        self.streams, self.noise = streams, noise

    def model(self):
        constants = {"table": self.table, "w": self.w, "u": self.u, "o": self.o,
                     "shift": self.shift, "one": np.array([1]), "zero": np.array([0])}  # fmt: skip
        node = helper.make_node
        nodes = [
            node("Gather", ["table", "tokens"], ["rows"]),
            node("Squeeze", ["rows", "one"], ["x"]),
            node("MatMul", ["x", "w"], ["a"]),
            node("MatMul", ["state", "u"], ["b"]),
            node("Add", ["a", "b"], ["ab"]),
            node("Tanh", ["ab"], ["h0"]),
        ]
        last = "h0"
        if self.streams:
            nodes.append(node(self.streams, ["h0", "zero"], ["mean"], keepdims=1))
            nodes.append(node("Sub", ["h0", "mean"], ["h1"]))
            last = "h1"
        if self.noise:
            nodes.append(node("RandomNormalLike", [last], ["random"]))
            nodes.append(node("Add", [last, "random"], ["h2"]))
            last = "h2"
        nodes += [
            node("Identity", [last], ["next"]),
            node("MatMul", [last, "o"], ["p"]),
            node("Add", ["p", "shift"], ["q"]),
            node("Unsqueeze", ["q", "one"], ["logits"]),
        ]
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes, "step",
            [info("tokens", TensorProto.INT64, ["n", 1]), info("state", 1, ["n", H])],
            [info("logits", 1, ["n", 1, V]), info("next", 1, ["n", H])],
            [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in constants.items()],
        )  # fmt: skip
        step = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(step)
        roles = Roles("tokens", "embedding", (State("rnn0.h", "state", "next", "hidden", 0, 0),),
                      "logits")  # fmt: skip
        names = {n: n for n in ("tokens", "state")}
        return build_memory_model(
            step, roles, None, inputs=names, outputs={n: n for n in ("logits", "next")}
        )

    def step(self, ids, h, wrong=0.0):
        x = self.table[ids]
        h = np.tanh((x[:, ::-1] @ self.w[::-1]) + (h[:, ::-1] @ self.u[::-1]))
        if self.streams:
            h = h - h.mean(0, keepdims=True)
        logits = h[:, ::-1] @ self.o[::-1]
        return (logits * np.float32(1 + wrong) + self.shift), h

    def reference(self, wrong=0.0):
        def step(feeds):
            logits, h = self.step(feeds["tokens"][:, 0], feeds["state"], wrong)
            return {"logits": logits[:, None], "next": h}

        return step

    def whole(self, reach=None):
        """All steps; with `reach`, the token that far back is added to the logits."""

        def run(ids, states):
            h, steps = states["state"], []
            for t in range(ids.shape[1]):
                logits, h = self.step(ids[:, t], h)
                if reach is not None and t >= reach:
                    logits = logits + 0.3 * (self.table[ids[:, t - reach]] @ self.w @ self.o)
                steps.append(logits.astype(np.float32))
            return np.stack(steps, 1), {"next": h}

        return run


MASKED = np.where(np.arange(V) < 7, np.float32(-1e9), np.float32(0))
SHIFTS = {
    "none": 0.0,
    "one id": np.where(np.arange(V) == 0, np.float32(-1e9), np.float32(0)),
    "most ids": MASKED,
    "all ids": 1e4,
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_constant_added_to_the_logits_hides_nothing(shift):
    small = Small(shift=SHIFTS[shift])
    right = check_parity(small.model(), small.reference(), vocabulary_size=V)
    assert right.worst <= right.tolerance == 1e-5
    check_sequences(small.model(), small.whole(), vocabulary_size=V, long=80)
    with pytest.raises(ParityError, match="differs from its source in 'logits'"):
        check_parity(small.model(), small.reference(wrong=0.4), vocabulary_size=V)
    if shift != "all ids":  # float32 holds 1e4 to a thousandth
        with pytest.raises(ParityError, match="differs from its source in 'logits'"):
            check_parity(small.model(), small.reference(wrong=1e-3), vocabulary_size=V)


def test_a_difference_is_relative_to_what_varies():
    small = Small()
    found = check_parity(small.model(), small.reference(1e-3), vocabulary_size=V, tolerance=1)
    # All elements are wrong by a thousandth of themselves.
    assert 3e-4 < found.differences["logits"] < 3e-3
    assert found.differences["next"] < 1e-6


@pytest.mark.parametrize("shift", ["none", "one id"])
def test_the_tolerance_that_is_named_passes(shift):
    small = Small(shift=SHIFTS[shift])
    for wrong in (1e-4, 3e-3):
        with pytest.raises(ParityError) as raised:
            check_parity(small.model(), small.reference(wrong), vocabulary_size=V)
        named = float(re.search(r"A tolerance of (\S+) would have passed", str(raised.value))[1])
        check_parity(small.model(), small.reference(wrong), vocabulary_size=V, tolerance=named)
        with pytest.raises(ParityError):
            check_parity(
                small.model(), small.reference(wrong), vocabulary_size=V, tolerance=named * 0.9
            )


def test_a_gross_difference_names_causes_and_no_tolerance():
    small = Small()
    with pytest.raises(ParityError, match="mixes time steps") as raised:
        check_parity(small.model(), small.reference(0.5), vocabulary_size=V)
    assert "would have passed" not in str(raised.value)


def test_streams_that_influence_one_another_are_refused():
    small = Small(streams="ReduceMean")
    with pytest.raises(ParityError, match=r"streams of a batch influence.*'(rnn0.h|logits)'"):
        check_parity(small.model(), small.reference(), vocabulary_size=V)
    with pytest.raises(ParityError, match="streams of a batch influence"):
        check_sequences(small.model(), small.whole(), vocabulary_size=V)
    check_parity(small.model(), small.reference(), vocabulary_size=V, batches=(1,))


@pytest.mark.parametrize("reach", [2, 8, 60])
def test_a_memory_beside_the_states_is_found_in_a_long_run(reach):
    small = Small()
    with pytest.raises(ParityError, match="differs from its source in 'logits'"):
        check_sequences(small.model(), small.whole(reach), vocabulary_size=V, long=80)
    if reach > 7:
        check_sequences(small.model(), small.whole(reach), vocabulary_size=V)


def test_chaos_is_not_taken_for_an_error(monkeypatch):
    small = Small(scale=6.0)
    run = {"vocabulary_size": V, "long": 80}
    check_sequences(small.model(), small.whole(), **run)
    # The long run did drift apart: without the second run beside it, it would be refused.
    monkeypatch.setattr("mnemoscope.exporters._parity._DRIFTS", 0.0)
    with pytest.raises(ParityError, match="over 80 steps"):
        check_sequences(small.model(), small.whole(), **run)


def test_a_chaotic_model_can_be_wrong_all_the_same():
    small = Small(scale=6.0)
    with pytest.raises(ParityError, match="differs from its source in 'logits'"):
        check_sequences(small.model(), small.whole(reach=2), vocabulary_size=V, long=80)


def test_a_wide_tolerance_does_not_multiply_the_drift():
    small = Small(scale=6.0)
    with pytest.raises(ParityError, match="differs from its source in 'logits'"):
        check_sequences(
            small.model(), small.whole(reach=60), vocabulary_size=V, long=80, tolerance=0.45
        )


def test_a_model_that_draws_random_numbers_is_refused():
    small = Small(noise=True)
    with pytest.raises(ParityError, match="draws random numbers"):
        check_sequences(small.model(), small.whole(), vocabulary_size=V)


def test_only_the_given_tokens_are_drawn():
    small = Small()
    seen = set()

    def whole(ids, states):
        seen.update(ids.ravel().tolist())
        return small.whole()(ids, states)

    check_sequences(small.model(), whole, vocabulary_size=V, tokens=np.array([2, 5]))
    assert seen == {2, 5}
