"""A rounding step is a staircase: its derivative would say that nothing is remembered."""

from __future__ import annotations

import models
import numpy as np
import pytest
from mnemoscope.analyzer import Corpus, analyze, describe, open_model
from mnemoscope.analyzer.errors import NoDerivative


@pytest.fixture(params=[False, True], ids=["static", "dynamic"])
def opened(request, tmp_path):
    return open_model(models.save(models.quantized(dynamic=request.param), tmp_path / "m.onnx"))


CORPUS = Corpus(np.random.default_rng(0).integers(0, models.V, 60), "random", "", 1, 0)


def test_jvp_refuses_and_says_what_will_do(opened):
    with pytest.raises(NoDerivative, match=r"rounds its input.*--method fd"):
        analyze(opened, CORPUS, delays=3)


def test_description_shows_no_blocks(opened):
    facts = describe(opened)
    assert facts["blocks"] is None
    assert "rounds its input" in facts["obstacle"]
    assert facts["operators_without_rule"] == []


def test_differences_wider_than_the_tread_see_the_memory(opened):
    tree = analyze(opened, CORPUS, delays=1, method="fd", step=0.5)
    assert float(tree["h"]["singular_values"][0, 0, 1, 0]) > 0.01


@pytest.mark.parametrize(("step", "warned"), [(None, True), (0.05, True), (0.1, False)])
def test_a_step_narrower_than_the_treads_is_warned_of(opened, step, warned):
    said = []
    analyze(opened, CORPUS, delays=1, method="fd", step=step, report=said.append)
    assert any("QuantizeLinear rounds its input" in line for line in said) == warned


def test_a_model_that_does_not_round_is_not_warned_of(tmp_path):
    said = []
    opened = open_model(models.save(models.fused(layers=1), tmp_path / "m.onnx"))
    analyze(opened, CORPUS, delays=1, method="fd", report=said.append)
    assert not any("rounds" in line for line in said)
