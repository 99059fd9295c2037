"""Keras model files and weights, loaded without running anything that hides in them."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
from mnemoscope.analyzer.errors import ModelError

from ._load import load_object

# The architecture is text of some kilobytes; a zip file can claim any size.
_LARGEST_CONFIG = 64 * 2**20
_OWN_CODE = (
    "A file cannot bring code that is safe to run: write a FILE.py that defines it and builds or "
    "loads the model, and export FILE.py:OBJECT."
)


def load_model(reference: str | os.PathLike[str]) -> Any:
    """Load a Keras model.

    Args:
        reference: A ``.keras`` file, a whole model in HDF5 (``.h5``, ``.hdf5``), or
            ``FILE.py:OBJECT`` with the name of a model, or of a class or function that returns
            one when called without arguments. FILE.py is run; a model file runs nothing.

    Raises:
        ModelError: There is no such file, it is no model, or it holds code: a Lambda layer, or
            layers that are not Keras' own.
    """
    text = os.fspath(reference)
    path = Path(text)
    if not path.exists() and ".py" in text:
        return load_object(text, lambda x: isinstance(x, keras.Model), "a keras.Model")
    if path.is_dir():
        raise ModelError(_not_a_model_folder(path))
    if not path.is_file():
        raise ModelError(f"There is no file {text!r}; expected a .keras or .h5 file.")
    if path.suffix == ".py":
        raise ModelError(f"{text!r} is a Python file; name the object in it: {text}:OBJECT.")
    if zipfile.is_zipfile(path):
        config, suffix = _zip_config(path), ".keras"
    elif _first_bytes(path) == b"\x89HDF\r\n\x1a\n":
        config, suffix = _h5_config(path), ".h5"
    else:
        raise ModelError(
            f"{text!r} is no Keras model; expected a .keras file, a model in HDF5, or "
            "FILE.py:OBJECT."
        )
    _require_harmless(config, text)
    if path.suffix not in (".keras", *((".h5", ".hdf5") if suffix == ".h5" else ())):
        raise ModelError(f"{text!r} is a {suffix} file by its content; rename it to *{suffix}.")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever the broken file leads to
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelError(
            f"Keras cannot load {text!r}: {type(error).__name__}: {first} {_OWN_CODE}"
        ) from error


def load_weights(model: Any, path: str | os.PathLike[str]) -> None:
    """Load the weights at `path` into `model`, in place.

    Args:
        model: What receives them; built.
        path: What ``model.save_weights(path)`` wrote (``.weights.h5``), or a whole model's
            ``.keras`` or ``.h5`` file of the same layers.

    Raises:
        ModelError: The file cannot be read, or its weights do not fit.
    """
    text = os.fspath(path)
    if not Path(text).is_file():
        raise ModelError(f"There is no weights file {text!r}.")
    try:
        model.load_weights(text)
    except Exception as error:  # as above
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelError(
            f"The weights in {text!r} cannot be loaded: {type(error).__name__}: {first} Expected "
            "what model.save_weights wrote, such as best.weights.h5, from the same layers."
        ) from error


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _zip_config(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("config.json")
            if entry.file_size > _LARGEST_CONFIG:
                raise ModelError(
                    f"{str(path)!r} claims a description of {entry.file_size / 2**20:.0f} MiB; "
                    "expected kilobytes. The file is broken or hostile."
                )
            return json.loads(archive.read(entry))
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ModelError(
            f"{str(path)!r} is no Keras model: {error}. Expected what model.save('m.keras') wrote."
        ) from error


def _h5_config(path: Path) -> Any:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error}.") from error
    if config is None:
        raise ModelError(
            f"{str(path)!r} holds weights, but no model. Write a FILE.py that builds the model, "
            f"and export FILE.py:OBJECT with --weights {path}."
        )
    try:
        return json.loads(config)
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is no Keras model: {error}.") from error


def _require_harmless(config: Any, text: str) -> None:
    """Refuse whatever makes Keras run or import code that is not its own."""
    for item in _dicts(config):
        name = item.get("class_name")
        if name in ("Lambda", "__lambda__", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"):
            raise ModelError(
                f"{text!r} holds a {name.strip('_')} layer, which is code. {_OWN_CODE}"
            )
        module = item.get("module")
        if name is not None and module is not None and not _from_keras(module):
            raise ModelError(
                f"{text!r} holds {name!r} of {module!r}, which is not a part of Keras. {_OWN_CODE}"
            )
        if name is not None and item.get("registered_name") not in (None, name):
            raise ModelError(
                f"{text!r} holds {item['registered_name']!r}, which is not a part of Keras. "
                f"{_OWN_CODE}"
            )


def _from_keras(module: Any) -> bool:
    return module == "builtins" or str(module).partition(".")[0] == "keras"


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _not_a_model_folder(path: Path) -> str:
    if not (path / "saved_model.pb").is_file():
        return f"{str(path)!r} is a folder without a model; expected a .keras or .h5 file."
    return (
        f"{str(path)!r} is a SavedModel, a graph without layers: give the folder itself to export, "
        "not to load_model."
    )
