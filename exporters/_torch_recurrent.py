"""Watch the recurrent modules of torch.nn inside a model, and hand them states from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from mnemoscope.analyzer.roles import Kind
from torch import nn

States = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Call:
    """One call of a recurrent module: its states before (None: zeros by default) and after.

    The states are ``(h,)`` or, for an LSTM, ``(h, c)``: each ``[layers, batch, unit]`` for the
    multi-layer modules, ``[batch, unit]`` for the cells.
    """

    module: nn.Module
    before: States | None
    after: States


@dataclass(frozen=True)
class Component:
    """One layer's state after a call, with the name that the field gives it."""

    name: str
    kind: Kind
    layer: int
    value: torch.Tensor  # [batch, unit]


class RecurrentCalls:
    """Records the calls of all recurrent modules of torch.nn inside `module`.

    Attributes:
        calls: What was called since `reset`, in order.
        given: States to use instead of the ones passed, one entry per call in order; None
            leaves the calls as they are.
    """

    def __init__(self, module: nn.Module) -> None:
        self.calls: list[Call] = []
        self.given: list[States] | None = None
        self._before: States | None = None
        self._handles = []
        for part in module.modules():
            if isinstance(part, (nn.RNNBase, nn.RNNCellBase)):
                self._handles.append(part.register_forward_pre_hook(self._enter, with_kwargs=True))
                self._handles.append(part.register_forward_hook(self._leave))

    def __bool__(self) -> bool:
        return bool(self._handles)

    def reset(self, given: list[States] | None = None) -> None:
        """Forget the calls so far; the next ones get the states in `given`."""
        self.calls = []
        self.given = given

    def remove(self) -> None:
        """Take the hooks off the module."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        passed = args[1] if len(args) > 1 else kwargs.get("hx")
        self._before = None if passed is None else _states(passed)
        if self.given is None or len(self.calls) >= len(self.given):
            return None
        states = self.given[len(self.calls)]
        rest = {k: v for k, v in kwargs.items() if k != "hx"}
        hx = states if isinstance(module, (nn.LSTM, nn.LSTMCell)) else states[0]
        return args[:1], {**rest, "hx": hx}

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        after = result[1] if isinstance(module, nn.RNNBase) else result
        self.calls.append(Call(module, self._before, _states(after)))


def components(calls: list[Call]) -> list[Component]:
    """The states after `calls`, layer by layer: ``lstm0.h``, ``lstm0.c``, ``gru1.h``, ..."""
    found = []
    layer = 0
    for call in calls:
        kind = type_name(call.module)
        stacked = isinstance(call.module, nn.RNNBase)
        depth = call.after[0].shape[0] if stacked else 1
        for k in range(depth):
            for which, value in zip(("h", "c"), call.after, strict=False):
                found.append(
                    Component(
                        name=f"{kind}{layer}.{which}",
                        kind="cell" if which == "c" else "hidden",
                        layer=layer,
                        value=value[k] if stacked else value,
                    )
                )
            layer += 1
    return found


def type_name(module: nn.Module) -> str:
    """``lstm``, ``gru`` or ``rnn``."""
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return "lstm"
    return "gru" if isinstance(module, (nn.GRU, nn.GRUCell)) else "rnn"


def _states(value: Any) -> States:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
