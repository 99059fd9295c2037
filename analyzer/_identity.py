"""What a run is, in hashes and versions: so that only like is taken for like."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from ._version import __version__
from .model import MemoryModel


def vocabulary_hash(model: MemoryModel) -> str | None:
    """Which id is which token, so that one-hot embeddings of two models can be told apart."""
    if model.vocabulary is None:
        return None
    text = json.dumps(model.vocabulary.tokens, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def hashed(*parts: np.ndarray | str) -> str:
    """SHA-256 of arrays and texts, one after another."""
    found = hashlib.sha256()
    for part in parts:
        data = (
            part.encode("utf-8", "surrogatepass")
            if isinstance(part, str)
            else np.ascontiguousarray(part).tobytes()
        )
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Library → the version that runs here."""
    versions = {"mnemoscope": __version__}
    for name in ("numpy", "onnx", "onnx-ad", "onnxruntime-gpu", "onnxruntime", "xarray"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
