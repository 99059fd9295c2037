"""Compare a memory model with a file that keeps its states to itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from mnemoscope.analyzer.roles import read_roles

from ._parity import (
    TOLERANCE,
    Parity,
    ParityError,
    _difference,
    _round_up,
    initial_states,
    input_dtypes,
)


def check_logits(
    model: onnx.ModelProto,
    reference: Callable[[np.ndarray], np.ndarray],
    *,
    vocabulary_size: int,
    steps: int = 6,
    batches: Sequence[int] = (1, 2, 5),
    tolerance: float | None = None,
    seed: int = 0,
) -> Parity:
    """Compare a memory model, step by step, with a source that reads whole sequences.

    For sources that keep their states to themselves.

    Args:
        model: A memory model: its metadata holds the roles.
        reference: Takes tokens ``[batch, time]`` from the start of the streams and returns the
            logits ``[batch, time, V]``, or ``[batch, 1, V]`` of the last step.
        vocabulary_size: Tokens are drawn below this.
        steps: Time steps in a row.
        batches: Numbers of streams.
        tolerance: As in `check_parity`.
        seed: Of the random tokens.

    Raises:
        ParityError: The logits differ by more.
    """
    import onnxruntime as ort

    roles, _ = read_roles(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; the rest is noise
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise ParityError(f"ONNX Runtime cannot load the written model: {error}") from error
    names = [roles.logits, *dict.fromkeys(s.output for s in roles.states)]
    back = {s.output: s.input for s in roles.states}
    dtype = input_dtypes(model)[roles.tokens]
    random = np.random.default_rng(seed)
    worst, allowed = 0.0, tolerance
    for batch in batches:
        ids = random.integers(0, vocabulary_size, (batch, steps)).astype(dtype)
        wanted = reference(ids)
        if allowed is None:
            allowed = TOLERANCE.get(wanted.dtype, 1e-5)
        states, rows = initial_states(model, roles, batch), []
        for t in range(steps):
            try:
                results = session.run(names, {roles.tokens: ids[:, t : t + 1], **states})
            except Exception as error:  # as above
                raise ParityError(
                    f"ONNX Runtime cannot run the written model for {batch} streams: {error}"
                ) from error
            got = dict(zip(names, results, strict=True))
            rows.append(got[roles.logits])
            states = {back[k]: got[k] for k in back}
        logits = np.concatenate(rows, 1)
        if wanted.shape[1] == 1:
            logits = logits[:, -1:]
        where = f"over {steps} steps of {batch} streams"
        difference = _difference(roles.logits, logits, wanted, where)
        worst = max(worst, difference)
        if not difference <= allowed:
            raise ParityError(
                f"The written model differs from its source in {roles.logits!r} {where}: by "
                f"{difference:.3g} of its largest element, where {allowed:.3g} is allowed. A "
                f"tolerance of {_round_up(difference)} would have passed."
            )
    return Parity({roles.logits: worst}, allowed or 0.0, steps, tuple(batches))
