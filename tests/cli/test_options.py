"""Options that several commands share refuse the same values."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "x"])
@pytest.mark.parametrize(
    "call",
    [
        ("compare", "a.nc", "b.nc", "--tolerance"),
        ("analyze", "m.onnx", "c.txt", "-o", "r.nc", "--method", "fd", "--step"),
        ("export", "torch", "m.pt", "-o", "m.onnx", "--tolerance"),
        ("export", "keras", "m.keras", "-o", "m.onnx", "--tolerance"),
    ],
    ids=lambda call: f"{call[0]} {call[1]} {call[-1]}",
)
def test_a_number_must_be_finite(run, call, value):
    done = run(*call, value)
    assert done.exit_code == 2
    assert f"Invalid value for '{call[-1]}'" in done.stderr


@pytest.mark.parametrize(("command", "accepted"), [("compare", True), ("export", False)])
def test_none_is_a_tolerance_only_where_exactness_is_possible(run, command, accepted):
    call = ["export", "torch", "m.pt", "-o", "m.onnx"]
    if command == "compare":
        call = ["compare", "a.nc", "b.nc"]
    done = run(*call, "--tolerance", "0")
    assert done.exit_code == 2  # there is no such file
    assert ("Invalid value" not in done.stderr) == accepted
