"""Find out how a PyTorch language model wants to be called, by calling it.

Every guess is tested: a run over T tokens must equal T single steps with the state carried, and
a stream alone must give what it gives among others. A wrong batch or time axis fails that test.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mnemoscope.analyzer.errors import ModelError

from ._torch_recurrent import RecurrentCalls, type_name
from ._torch_state import (
    METHODS,
    Caller,
    Passed,
    Tensors,
    close,
    has_state,
    logits_of,
    passed_from_example,
    passed_from_none,
    promote,
    shapes_to_state,
)

Layout = Literal["NTV", "TNV", "NVT", "T*N,V", "N*T,V", "NV"]

_STREAMS, _STEPS = 5, 3  # distinct primes


@dataclass(frozen=True)
class Interface:
    """How to call a module.

    Attributes:
        caller: Calls it with its states, tokens in its own layout.
        time_major: Tokens are ``[time, batch]``.
        logits: Layout of the logits: axes N (batch), T (time), V; ``NV`` is the last step only.
        vocabulary_size: V.
        normalized: The logits are log-probabilities.
        initial_from: How the initial state was found.
    """

    caller: Caller
    time_major: bool
    logits: Layout
    vocabulary_size: int
    normalized: bool
    initial_from: str


class Step(torch.nn.Module):
    """One time step: tokens ``[batch, 1]`` and states in, logits ``[batch, 1, V]`` and states out.

    With `watched`, the output of that submodule comes last.
    """

    def __init__(self, interface: Interface, watched: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.model = interface.caller.module
        self._interface = interface
        self._seen: list[torch.Tensor] = []
        self._watched = watched is not None
        if watched is not None:
            watched.register_forward_hook(lambda module, args, out: self._seen.append(out))

    def forward(self, tokens: torch.Tensor, states: Tensors) -> Tensors:
        """Run one step; returns ``[logits, *states]``."""
        face = self._interface
        self._seen.clear()
        logits, after = face.caller(tokens.t() if face.time_major else tokens, states)
        result = [logits.reshape(-1, 1, face.vocabulary_size), *after]
        if self._watched:
            if len(self._seen) != 1 or not isinstance(self._seen[0], torch.Tensor):
                raise ModelError(
                    f"The submodule chosen as the embedding ran {len(self._seen)} times in one "
                    "step; expected one run that returns one tensor."
                )
            result.append(self._seen.pop())
        return result


def discover(
    module: torch.nn.Module,
    *,
    batch_first: bool | None,
    state_shapes: Any,
    vocabulary_size: int | None,
    seed: int,
) -> Interface:
    """Find the layout of tokens and logits, the states and their initial values.

    Raises:
        ModelError: No way of calling the module passes the test; the message gives the reasons.
    """
    calls = RecurrentCalls(module)
    guesses = [True, False] if batch_first is None else [batch_first]
    if batch_first is None and any(
        getattr(m, "batch_first", True) is False
        for m in module.modules()
        if isinstance(m, torch.nn.RNNBase)
    ):
        guesses.reverse()
    reasons = {}
    for guess in guesses:
        probe = _Probe(module, calls, not guess, state_shapes, vocabulary_size, seed)
        try:
            return probe.run()
        except _Refusal as refusal:
            raise ModelError(str(refusal)) from refusal.__cause__
        except ModelError as error:
            reasons[guess] = str(error)
        except Exception as error:  # a user's forward may raise anything
            reasons[guess] = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            if isinstance(error, IndexError) and "out of range" in str(error):
                reasons[guess] += (
                    " (do the embedding's rows cover as many tokens as there are logits?)"
                )
    if len(set(reasons.values())) == 1:
        raise ModelError(next(iter(reasons.values())))
    said = [
        f"With tokens {'[batch, time]' if guess else '[time, batch]'}: {reason}"
        for guess, reason in reasons.items()
    ]
    raise ModelError("The module cannot be called step by step. " + " ".join(said))


class _Refusal(ModelError):
    """A reason that holds for every layout."""


class _Probe:
    """One guess about the tokens' layout, tested."""

    def __init__(
        self,
        module: torch.nn.Module,
        calls: RecurrentCalls,
        time_major: bool,
        state_shapes: Any,
        vocabulary_size: int | None,
        seed: int,
    ) -> None:
        self.module = module
        self.calls = calls
        self.time_major = time_major
        self.state_shapes = state_shapes
        self.wanted_size = vocabulary_size
        self.random = torch.Generator().manual_seed(seed)
        self.limit = 1  # tokens are drawn below this; 0 is an id in every model
        self.pass_none = False
        self.called: Literal["given", "none", "promoted"] = "given"

    def run(self) -> Interface:
        self.called = self._signature()
        caller, how = self._caller()
        reason = None
        shape = self._start(caller, self._tokens(_STREAMS, _STEPS)).shape
        for layout, size in _layouts(shape, _STREAMS, _STEPS, self.time_major):
            if self.wanted_size is not None and size != self.wanted_size:
                reason = reason or (
                    f"The logits have {size} entries per token, not {self.wanted_size} as asked "
                    "for with vocabulary_size."
                )
                continue
            self.limit = size
            if self.called != "given":
                # Again, now that V is known: token 0 alone cannot tell what depends on tokens.
                caller, how = self._caller()
            reason = self._disagreement(caller, layout, size)
            if reason is None:
                return Interface(
                    caller, self.time_major, layout, size, self._normalized(caller), how
                )
        raise ModelError(
            reason
            or f"The logits have the shape {list(shape)} for {_STREAMS} streams of {_STEPS} "
            "tokens; expected [N, T, V], [T, N, V], [T·N, V], [N, V, T] or the last step's [N, V]."
        )

    def _signature(self) -> Literal["given", "none", "promoted"]:
        """Whether a state is passed, made by the module, or hidden inside it."""
        parameters = [
            p
            for p in inspect.signature(self.module.forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        required = [p for p in parameters if p.default is p.empty]
        if not parameters or len(required) > 2:
            raise _Refusal(
                "Expected forward(tokens) -> logits or forward(tokens, state) -> (logits, state); "
                f"found forward({', '.join(p.name for p in parameters)})."
            )
        if self.state_shapes is not None:
            return "given"
        method = self._method() if len(parameters) > 1 else None
        if method is not None:
            try:
                method(_STREAMS)
            except Exception as error:
                if len(required) > 1:
                    raise _Refusal(
                        f"{method.__name__}(batch) fails for {_STREAMS} streams: "
                        f"{type(error).__name__}: {error}. Expected a method that takes the "
                        "number of streams and returns the initial state."
                    ) from error
            else:
                return "given"
        self.calls.reset()
        if len(required) == 2:
            self.pass_none = True
            try:
                self.module(self._tokens(_STREAMS, 1), None)
            except Exception as error:
                raise ModelError(
                    f"forward needs the state {required[1].name!r}, and nothing says how it "
                    f"starts (with None: {type(error).__name__}: {error}). Give the module a "
                    "method init_hidden(batch) or initial_state(batch), or use the option "
                    "state_shapes."
                ) from error
            return "none"
        result = self.module(self._tokens(_STREAMS, 1))
        return "none" if len(parameters) > 1 and has_state(result) else "promoted"

    def _caller(self) -> tuple[Caller, str]:
        self._refuse_bidirectional()
        if self.called == "promoted":
            return promote(self.module, self.calls, lambda n: self._tokens(n, 1))
        if self.called == "none":
            return passed_from_none(self.module, self._alone, lambda n: self._tokens(n, 1))
        if self.state_shapes is not None:
            dtype = next((p.dtype for p in self.module.parameters()), torch.float32)
            return (
                passed_from_example(
                    self.module,
                    lambda n: shapes_to_state(self.state_shapes, n, dtype),
                    "state_shapes",
                ),
                "zeros, of the given shapes",
            )
        method = self._method()
        assert method is not None
        how = f"{method.__name__}(batch)"
        return passed_from_example(self.module, method, how), how

    def _method(self) -> Any:
        for name in METHODS:
            if callable(getattr(self.module, name, None)):
                return getattr(self.module, name)
        return None

    def _refuse_bidirectional(self) -> None:
        for name, part in self.module.named_modules():
            if isinstance(part, torch.nn.RNNBase) and part.bidirectional:
                raise _Refusal(
                    f"{name or type_name(part)!r} is bidirectional: its state at a word depends "
                    "on later words, so there is no memory of earlier ones to measure in it. "
                    "Expected recurrent modules that run forward in time."
                )

    def _disagreement(self, caller: Caller, layout: Layout, size: int) -> str | None:
        """Why a run over several tokens is not several runs over one; None when it is."""
        tokens = self._tokens(_STREAMS, _STEPS)
        whole = self._whole(caller, tokens, layout, size)
        steps = self._in_steps(caller, tokens, size)
        if layout == "NV":
            steps = steps[:, -1:]
        if not close(steps, whole):
            worst = float((steps - whole).abs().max() / whole.abs().max())
            return (
                f"A run over {_STEPS} tokens differs from {_STEPS} runs over one token with the "
                f"state carried, by {worst:.2g} of the largest logit. Either something is carried "
                "that is not in the state, or a word's logits depend on later words."
            )
        alone = self._whole(caller, self._stream(tokens, 1), layout, size)
        if not close(alone, whole[1:2]):
            return "A stream gives other logits alone than among others; streams must not mix."
        return None

    def _whole(
        self, caller: Caller, tokens: torch.Tensor, layout: Layout, size: int
    ) -> torch.Tensor:
        t, n = tokens.shape if self.time_major else tokens.shape[::-1]
        return _canonical(self._start(caller, tokens), layout, n, t, size)

    def _in_steps(self, caller: Caller, tokens: torch.Tensor, size: int) -> torch.Tensor:
        native = tokens if self.time_major else tokens.t()
        states = [leaf.start(native.shape[1]) for leaf in caller.leaves]
        logits = []
        for row in native:
            step = row[None] if self.time_major else row[:, None]
            raw, states = caller(step, states)
            logits.append(raw.reshape(-1, 1, size))
        return torch.cat(logits, 1)

    def _start(self, caller: Caller, tokens: torch.Tensor) -> torch.Tensor:
        """The raw logits of a run from the module's own beginning."""
        if self.called != "given" or not isinstance(caller, Passed):
            return logits_of(self._alone(tokens))
        n = tokens.shape[1 if self.time_major else 0]
        return caller(tokens, [leaf.start(n) for leaf in caller.leaves])[0]

    def _alone(self, tokens: torch.Tensor) -> Any:
        self.calls.reset()
        return self.module(tokens, None) if self.pass_none else self.module(tokens)

    def _normalized(self, caller: Caller) -> bool:
        logits = caller(
            self._tokens(_STREAMS, 1), [leaf.start(_STREAMS) for leaf in caller.leaves]
        )[0].reshape(-1, self.limit)
        sums = logits.sum(-1)
        if bool((logits >= 0).all()) and close(sums, torch.ones_like(sums)):
            raise _Refusal(
                "The module returns probabilities (they sum to 1); expected logits, or "
                "log-probabilities. Leave the softmax out of forward, or use log_softmax."
            )
        return bool((logits.logsumexp(-1).abs() < 1e-4).all())

    def _tokens(self, streams: int, steps: int) -> torch.Tensor:
        shape = (steps, streams) if self.time_major else (streams, steps)
        return torch.randint(0, self.limit, shape, generator=self.random)

    def _stream(self, tokens: torch.Tensor, k: int) -> torch.Tensor:
        return tokens[:, k : k + 1] if self.time_major else tokens[k : k + 1]


def _layouts(shape: torch.Size, n: int, t: int, time_major: bool) -> list[tuple[Layout, int]]:
    """The layouts that a shape of logits may have, with their V, the likelier ones first."""
    found: list[tuple[Layout, int]] = []
    if len(shape) == 3:
        if tuple(shape[:2]) == (n, t):
            found.append(("NTV", shape[2]))
        if tuple(shape[:2]) == (t, n):
            found.append(("TNV", shape[2]))
        if (shape[0], shape[2]) == (n, t):
            found.append(("NVT", shape[1]))
    elif len(shape) == 2:
        if shape[0] == n * t:
            flat: list[tuple[Layout, int]] = [("T*N,V", shape[1]), ("N*T,V", shape[1])]
            found += flat if time_major else flat[::-1]
        if shape[0] == n:
            found.append(("NV", shape[1]))
    return found


def _canonical(logits: torch.Tensor, layout: Layout, n: int, t: int, size: int) -> torch.Tensor:
    """Logits as ``[batch, time, V]``."""
    if layout == "NTV":
        return logits.reshape(n, t, size)
    if layout == "TNV":
        return logits.reshape(t, n, size).transpose(0, 1)
    if layout == "NVT":
        return logits.reshape(n, size, t).transpose(1, 2)
    if layout == "T*N,V":
        return logits.reshape(t, n, size).transpose(0, 1)
    return logits.reshape(n, t if layout == "N*T,V" else 1, size)
