"""What every exporter tells about its work."""

from __future__ import annotations

from dataclasses import dataclass

from mnemoscope.analyzer.roles import State

from ._parity import Parity


@dataclass(frozen=True)
class Report:
    """What an export found.

    Attributes:
        path: The file written.
        tokens: Layout of the source's tokens, such as ``[batch, time]``; for a shipped file after
            the name of the input.
        logits: Layout of its logits over the axes N (batch), T (time) and V, or their name.
        vocabulary_size: V.
        embedding_size: E.
        normalized: The logits are log-probabilities.
        states: The state components.
        initial: How the initial state was found.
        route: How the step was made from the source.
        parity: Agreement of the written file with the source.
        notes: What a reader of the results must know besides, a sentence each.
        evidence: Tensor or state → why it has its role, where that was found out.
    """

    path: str
    tokens: str
    logits: str
    vocabulary_size: int
    embedding_size: int
    normalized: bool
    states: tuple[State, ...]
    initial: str
    route: str
    parity: Parity
    notes: tuple[str, ...] = ()
    evidence: tuple[tuple[str, str], ...] = ()
