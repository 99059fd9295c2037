"""A user's model file and weights, loaded without running anything that hides in the weights."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnemoscope.analyzer.errors import ModelError

if TYPE_CHECKING:
    import torch

_NESTED = ("state_dict", "model_state_dict", "model")


def load_object(
    reference: str,
    accepts: Callable[[Any], bool] | None = None,
    expected: str = "a torch.nn.Module",
) -> Any:
    """Import ``FILE.py:OBJECT`` and return the model that OBJECT is or returns.

    The file's folder is on ``sys.path`` during the import, so that it finds its neighbours.
    This runs the file: open only what you would run.

    Args:
        reference: Path of a Python file, a colon, the name of a model, or of a class or function
            that returns one when called without arguments.
        accepts: Whether something is a model; None asks for a ``torch.nn.Module``.
        expected: What `accepts` accepts, for the messages.

    Raises:
        ModelError: There is no such file or object, it fails to import, or it is no model.
    """
    file, colon, name = reference.rpartition(":")
    # A drive letter's colon is not the one that is meant: C:\model.py has no object.
    if not colon or not name.replace(".", "_").isidentifier():
        raise ModelError(
            f"Expected FILE.py:OBJECT, found {reference!r}; name the object that holds or "
            "returns the model, for example model.py:build."
        )
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"There is no file {file!r}; expected FILE.py:OBJECT.")
    found: Any = _import(path)
    where = file
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            # Not vars: a number or a tuple has no namespace of its own.
            names = sorted(n for n in dir(found) if not n.startswith("_"))
            raise ModelError(
                f"{where!r} has no {part!r}; it has {_few(names, 12) or 'nothing'}."
            ) from None
        where = f"{where}:{part}" if where == file else f"{where}.{part}"
    return _as_model(found, reference, accepts or _is_torch_module, expected)


def load_weights(module: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights at `path` into `module`, in place.

    Args:
        module: What receives them.
        path: A safetensors file, or a file written by ``torch.save(module.state_dict(), path)``,
            plain or under ``state_dict``, ``model_state_dict`` or ``model`` of a dict. The prefix
            ``module.`` of a parallel wrapper is taken off.

    Raises:
        ModelError: The file cannot be read without running code from it, holds no weights, holds
            NaN or infinite ones, or they do not fit.
    """
    import torch

    weights = _read_weights(Path(path))
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"The weight {name!r} in {os.fspath(path)!r} is NaN or infinite; expected finite "
                "weights. Did the training diverge?"
            )
    try:
        problems = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # a shape that does not fit
        first = next((x.strip() for x in str(error).splitlines()[1:] if x.strip()), str(error))
        raise ModelError(f"The weights in {os.fspath(path)!r} do not fit the model: {first}") from (
            error
        )
    # A tied weight may be stored once: it is missing under one name, and loaded under the other.
    loaded = {id(p) for n, p in _tensors(module) if n in weights}
    missing = [n for n in problems.missing_keys if id(dict(_tensors(module)).get(n)) not in loaded]
    if missing or problems.unexpected_keys:
        said = []
        if missing:
            said.append(f"the model needs {_few(missing)}")
        if problems.unexpected_keys:
            said.append(f"the file has {_few(problems.unexpected_keys)} besides")
        raise ModelError(
            f"The weights in {os.fspath(path)!r} do not fit the model: {'; '.join(said)}."
        )


def _import(path: Path) -> Any:
    # A name of its own, so that a user's `model.py` replaces no installed module.
    name = f"_mnemoscope_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{str(path)!r} is not a Python file; expected FILE.py:OBJECT.")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise ModelError(
            f"{str(path)!r} cannot be imported: {type(error).__name__}: {error}. A training "
            'script must train under `if __name__ == "__main__":` only.'
        ) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _is_torch_module(found: Any) -> bool:
    import torch

    return isinstance(found, torch.nn.Module)


def _as_model(found: Any, reference: str, accepts: Callable[[Any], bool], expected: str) -> Any:
    if accepts(found):
        return found
    if not callable(found):
        raise ModelError(
            f"{reference!r} is a {type(found).__name__}; expected {expected}, or a class "
            "or function that returns one when called without arguments."
        )
    try:
        made = found()
    except Exception as error:
        raise ModelError(
            f"{reference!r} fails when called without arguments: {type(error).__name__}: {error}. "
            "Write a function without arguments that returns the model."
        ) from error
    if not accepts(made):
        raise ModelError(f"{reference!r} returned a {type(made).__name__}; expected {expected}.")
    return made


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    import torch

    if not path.is_file():
        raise ModelError(f"There is no weights file {str(path)!r}.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{str(path)!r} is not a safetensors file: {error}") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{str(path)!r} cannot be loaded without running code from it: it holds more than "
            "weights (a pickled module?), or is no weights file at all. Where you trust it, load "
            "it once and save the weights alone: torch.save(module.state_dict(), FILE)."
        ) from error
    except Exception as error:  # torch.load raises whatever the broken archive leads to
        raise ModelError(
            f"{str(path)!r} is not a weights file that torch can load "
            f"({type(error).__name__}: {error}); expected one written by "
            "torch.save(module.state_dict(), FILE), or safetensors."
        ) from error
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(isinstance(v, torch.Tensor) for v in found.values())
    ):
        raise ModelError(
            f"{str(path)!r} holds no weights: expected a dict of tensors (a state_dict), or one "
            f"under {', '.join(_NESTED)}; found a {type(found).__name__}. Save "
            "module.state_dict()."
        )
    weights = dict(found)
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def _tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    # Tied parameters under each of their names.
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def _few(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
