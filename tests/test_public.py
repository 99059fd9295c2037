"""The public list of the analyzer."""

from __future__ import annotations

import subprocess
import sys

import mnemoscope.analyzer as analyzer
import pytest


def test_the_list_is_what_can_be_loaded():
    assert sorted(analyzer.__all__) == sorted([*analyzer._HOME, "__version__"])
    for name in analyzer.__all__:
        assert getattr(analyzer, name) is not None


def test_unknown_names():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = analyzer.nothing


def test_importing_loads_nothing_heavy():
    code = (
        "import sys; import mnemoscope.analyzer; "
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'xarray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
