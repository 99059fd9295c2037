"""Block rules against independent derivatives, and the checker against a planted wrong rule."""

from __future__ import annotations

import pytest
import spec_cases
from mnemoscope.analyzer.linearize import _rules

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
