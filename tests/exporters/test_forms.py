"""The table of forms in the documentation has every form, and none that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the forms of PyTorch and shipped models need torch")
pytest.importorskip("tensorflow", reason="the forms of Keras need TensorFlow")
pytest.importorskip("tf2onnx", reason="the forms of Keras need tf2onnx")

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))


def test_table_is_current():
    import forms_table

    page = (HERE.parent.parent / "docs/forms.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines()
            if line.startswith("| ")][2:]  # fmt: skip
    assert rows == [f.name.replace("|", "\\|") for f in forms_table.forms()], "run make forms"
    assert "**no**" not in page
    assert f"{len(rows)} of {len(rows)} forms are as they should be" in page
