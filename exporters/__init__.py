"""Writers of memory models, one module per framework, all with one verb: ``export``.

``mnemoscope.exporters.pytorch.export(module, path, ...)`` writes a PyTorch model,
``tensorflow.export`` a Keras model, ``tf1_checkpoint.export`` a TensorFlow 1 checkpoint;
``mnemoscope.exporters.shipped.export(file, path, ...)`` one that was shipped as ONNX;
`mnemoscope.exporters.testing` holds the checks that a writer of another exporter needs. The
modules are loaded on first use: importing this package imports no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["pytorch", "shipped", "tensorflow", "testing", "tf1_checkpoint"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
