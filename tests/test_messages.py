"""What native libraries say, as a user reads it."""

from __future__ import annotations

import pytest
from mnemoscope.analyzer._runtime import said


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : Node () Op (Add) [ShapeInferenceError] Incompatible "
         "dimensions", "Node () Op (Add) Incompatible dimensions"),
        ("Exception during initialization: std::bad_alloc",
         "Exception during initialization: there is not enough memory"),
        ("/project/onnx/convert.cc:147: convert_version: Assertion `a.b() == c->d()` failed: "
         "the version lies", "the version lies"),
        ("FAIL : tensorprotoutils.cc:2680 Dense Sparse tensor: too large",
         "FAIL : Sparse tensor: too large"),
        ("Status Message: const [with K = onnxruntime::K; V = absl::V<const T*, 5, std::a<T*> >] "
         "input != nullptr was false. input count mismatch",
         "Status Message: input != nullptr was false. input count mismatch"),
        ("", "it says no more"),
    ],
)  # fmt: skip
def test_said(raw, shown):
    assert said(RuntimeError(raw)) == shown
