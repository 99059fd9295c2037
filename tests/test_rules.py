"""Block rules against independent derivatives, and the checker against a planted wrong rule."""

from __future__ import annotations

import models
import numpy as np
import onnx
import pytest
import spec_cases
from mnemoscope.analyzer import _runtime, open_model
from mnemoscope.analyzer.linearize import _rules, build_step, linearize

CASES = spec_cases.cases()
RUN = [c for c in CASES if spec_cases.reason_left_out(c) is None]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the cases divide by zero on purpose
@pytest.mark.parametrize("case", RUN, ids=[c.name for c in RUN])
def test_node_tests_of_the_specification(case):
    assert spec_cases.check(case) <= spec_cases.tolerance(case)


def test_every_operator_with_a_rule_has_a_case():
    covered = {c.op for c in RUN}
    assert {*_rules.RULES, *_rules.LOWERED} - covered == set()


def test_planted_wrong_rule_is_caught(monkeypatch):
    case = next(c for c in RUN if c.name == "test_tanh")
    monkeypatch.setitem(_rules.ELEMENTWISE, "Tanh", lambda x, y, a: 1.0 - y)
    assert spec_cases.check(case) > 1e-2


@pytest.mark.parametrize("activation", ["Tanh", "Sigmoid"])
def test_saturated_cells_keep_their_digits_in_single_precision(activation, tmp_path):
    """Cells reach 30 and more, where tanh rounds to 1: the derivative is small, and not 0."""
    proto = models.fused("RNN", layers=1)
    (node,) = (n for n in proto.graph.node if n.op_type == "RNN")
    node.attribute.append(onnx.helper.make_attribute("activations", [activation]))
    opened = open_model(models.save(proto, tmp_path / "m.onnx"))
    state, blocks = 40 * np.random.default_rng(0).standard_normal((1, models.H)), {}
    for precision in (np.float32, np.float64):
        step = build_step(opened, np.dtype(precision))
        linear, _ = linearize(step, 1)
        names = sorted({j.tensor for j in linear.jacobians.values() if j.tensor})
        session = _runtime.session(_runtime.with_outputs(linear.model, names))
        feeds = {step.components[0].input: state.astype(np.float32).astype(precision),
                 step.embedding: np.ones((1, step.embedding_size), precision)}  # fmt: skip
        values = session.run(names, feeds)
        blocks[precision] = np.concatenate([np.ravel(v).astype(np.float64) for v in values])
    near, exact = blocks[np.float32], blocks[np.float64]
    assert (np.abs(exact) < 1e-9).any()
    assert (exact != 0).all()
    kept = np.abs(exact) > 1e-36  # above what single precision can hold
    np.testing.assert_allclose(near[kept], exact[kept], rtol=2e-4)
