"""Write a PyTorch language model as a memory model.

The module is run a few times to find out how it wants to be called, traced for one time step,
cut at its embedding, compared with ONNX Runtime, and only then written.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from mnemoscope.analyzer._version import __version__
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Level, Roles, Vocabulary

from ._embedding import EMBEDDING, EmbeddingError
from ._load import load_object, load_weights
from ._memory_model import build_memory_model, hash_weights, require_writable, save
from ._parity import Feeds, Parity, check_parity
from ._report import Report
from ._torch_interface import Interface, Step, discover
from ._torch_names import name_states
from ._torch_recurrent import RecurrentCalls
from ._torch_trace import routes
from ._vocabulary import VocabularyOptions

__all__ = ["Report", "export", "load_object", "load_weights"]


def export(
    module: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    vocabulary: str | os.PathLike[str] | Sequence[str] | Vocabulary | None = None,
    level: Level | None = None,
    unknown: str | None = None,
    end_of_line: str | None = None,
    batch_first: bool | None = None,
    state_shapes: Any = None,
    state_names: Sequence[str] | None = None,
    embedding: str | None = None,
    vocabulary_size: int | None = None,
    seed: int | None = None,
    tolerance: float | None = None,
) -> Report:
    """Write `module` as a memory model; None always means: find out.

    The module's forward is ``forward(tokens) -> logits`` or
    ``forward(tokens, state) -> (logits, state)`` with tokens int64 ``[batch, time]`` or
    ``[time, batch]``, any nesting of states, and logits ``[N, T, V]``, ``[T, N, V]``,
    ``[T·N, V]``, ``[N·T, V]``, ``[N, V, T]`` or, for the last step only, ``[N, V]``. It is
    copied, moved to the CPU and put in evaluation mode; half precision is widened to float32.

    Args:
        module: The language model.
        path: The ONNX file to write.
        weights: File to load weights from first; see `load_weights`.
        vocabulary: File with one token a line, or the tokens, ``[V]``.
        level: ``word`` or ``char``.
        unknown: Token that stands for all that the vocabulary lacks.
        end_of_line: Token that ends a line.
        batch_first: True for tokens ``[batch, time]``, False for ``[time, batch]``.
        state_shapes: Shapes of an initial state of zeros: nested lists whose innermost are ints
            and ``"N"``, such as ``[[2, "N", 256], [2, "N", 256]]``.
        state_names: One name per state component, in the order that they are found.
        embedding: Name of the submodule that returns what the recurrent core reads, or of a
            tensor of the traced graph.
        vocabulary_size: V, where the shape of the logits leaves it open.
        seed: Of the random tokens and states of the tests; None is 0.
        tolerance: Largest difference from the module, relative to how much each tensor varies
            (`Parity`); None is 1e-5 for float32 and 1e-12 for float64.

    Returns:
        What was found.

    Raises:
        ModelError: The module, its weights or its vocabulary cannot be used, or no way of
            tracing it passes the comparison; nothing is written then.
    """
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"Expected a torch.nn.Module, found a {type(module).__name__}.")
    target = require_writable(path)
    seed = seed or 0
    notes: list[str] = []
    with torch.no_grad(), warnings.catch_warnings(), _prepared(module) as model:
        # It tells which kernel torch takes: true of every projected LSTM, and of no use here.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        if weights is not None:
            load_weights(model, weights)
        digest = hash_weights(_arrays(model))
        interface = discover(
            model,
            batch_first=batch_first,
            state_shapes=state_shapes,
            vocabulary_size=vocabulary_size,
            seed=seed,
        )
        size = interface.vocabulary_size
        words = VocabularyOptions(vocabulary, level, unknown, end_of_line).make(size, notes=notes)
        calls = RecurrentCalls(model)
        states = name_states(interface, calls, state_names, seed)
        calls.remove()
        roles = Roles(
            tokens="tokens",
            embedding=EMBEDDING,
            states=states,
            logits="logits",
            normalized=interface.normalized,
            source={
                "framework": "pytorch",
                "framework_version": torch.__version__,
                "exporter_version": __version__,
                "weights_sha256": digest,
            },
        )
        written, route, parity = _trace(
            interface, roles, words, embedding, seed=seed, tolerance=tolerance
        )
    save(written, target)
    return Report(
        path=str(target),
        tokens="[time, batch]" if interface.time_major else "[batch, time]",
        logits=interface.logits,
        vocabulary_size=size,
        embedding_size=_embedding_size(written),
        normalized=interface.normalized,
        states=states,
        initial=interface.initial_from,
        route=route,
        parity=parity,
        notes=tuple(notes),
    )


def _trace(
    interface: Interface,
    roles: Roles,
    vocabulary: Vocabulary | None,
    embedding: str | None,
    *,
    seed: int,
    tolerance: float | None,
) -> tuple[onnx.ModelProto, str, Parity]:
    """The first route whose memory model agrees with the module."""
    modules = dict(interface.caller.module.named_modules())
    watched = modules.get(embedding) if embedding else None
    step = Step(interface, watched).eval()
    leaves = interface.caller.leaves
    inputs = ["tokens", *(f"state_{k}" for k in range(len(leaves)))]
    outputs = ["logits", *(f"state_{k}_next" for k in range(len(leaves)))]

    def reference(feeds: Feeds) -> Feeds:
        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in inputs]
        results = step(tensors[0], tensors[1:])
        return {name: x.numpy() for name, x in zip(outputs, results, strict=False)}

    reference(_initial_feeds(interface))  # what is wrong with the step itself, said once
    failures: list[tuple[str, Exception]] = []
    for route, trace in routes(step, leaves):
        try:
            graph = trace()
            given = [i.name for i in graph.graph.input]
            returned = [o.name for o in graph.graph.output]
            if len(given) != len(inputs) or len(returned) < len(outputs):
                raise ModelError(
                    f"the traced graph has {len(given)} inputs and {len(returned)} outputs, "
                    f"expected {len(inputs)} and {len(outputs)}"
                )
            model = build_memory_model(
                graph,
                roles,
                vocabulary,
                inputs=dict(zip(given, inputs, strict=True)),
                outputs=dict(zip(outputs, returned, strict=False)),
                embedding=returned[-1] if watched is not None else embedding,
            )
            parity = check_parity(
                model,
                reference,
                vocabulary_size=interface.vocabulary_size,
                seed=seed,
                tolerance=tolerance,
            )
        except EmbeddingError:
            raise  # a property of the model: another route would find the same
        except Exception as error:  # torch's exporters raise whatever went wrong inside them
            failures.append((route, error))
        else:
            return model, route, parity
    # What this project says of a graph helps more than what the fallbacks stumbled over.
    route, reason = next(((r, e) for r, e in failures if isinstance(e, ModelError)), failures[-1])
    if isinstance(reason, ModelError):
        raise reason
    tried = ", ".join(name for name, _ in failures)
    first = (str(reason).strip().splitlines() or ["no message"])[0]
    raise ModelError(
        f"The module cannot be traced (tried {tried}). The last reason, from {route}: "
        f"{type(reason).__name__}: {first}. A step must not branch in Python on the values of "
        "tensors."
    ) from reason


def _initial_feeds(interface: Interface) -> Feeds:
    """One step's inputs for two streams at their start."""
    states = [leaf.start(2).numpy() for leaf in interface.caller.leaves]
    return {
        "tokens": np.zeros((2, 1), np.int64),
        **{f"state_{k}": value for k, value in enumerate(states)},
    }


@contextmanager
def _prepared(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The module in evaluation mode on the CPU: a copy, or itself with its modes restored."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        model = copy.deepcopy(module).cpu()
    except Exception:  # some modules hold what cannot be copied, such as computed weights
        model = module
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        model = model.float()
    model.eval()
    try:
        yield model
    finally:
        for part, training in modes:
            part.training = training


def _arrays(module: torch.nn.Module) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            yield name, value.detach().cpu().numpy()


def _embedding_size(model: onnx.ModelProto) -> int:
    output = next(o for o in model.graph.output if o.name == EMBEDDING)
    return output.type.tensor_type.shape.dim[-1].dim_value
