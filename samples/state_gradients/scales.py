"""How large a study is: corpora, models, training and analysed positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Amount:
    """How much of a corpus is used, in tokens; None is all of it."""

    train: int | None = None
    valid: int | None = None
    test: int | None = None


@dataclass(frozen=True)
class Scale:
    """The sizes of a study.

    Attributes:
        corpus: The main corpus, unless the caller names another.
        amounts: Corpus → how much of it.
        vocabulary: Words kept; None for all of the training text.
        embedding: Size of the embeddings.
        hidden: Units of the small, the usual and the large model.
        batch: Streams read side by side in training.
        steps: Steps of backpropagation through time.
        epochs: Of training.
        flat_epochs: Before the learning rate falls.
        decay: Of the learning rate, per epoch.
        positions: Input positions analysed for a figure over all words; None for all.
        large_positions: The same for the large model, whose steps cost four times as much.
        class_positions: The same for classes of words.
        word_count: Occurrences of a single word that are followed; rarer words are left out.
        delays: Largest delay.
        vector_epochs: Of word2vec.
        vector_tokens: Of each training text that word2vec reads; None for all.
        train_rate: Tokens a second in training at the usual size, on two CPU cores.
        position_seconds: Of the analysis of one position at the usual size, on two CPU cores.
    """

    corpus: str
    amounts: Mapping[str, Amount]
    vocabulary: int | None
    embedding: int
    hidden: tuple[int, int, int]
    batch: int
    steps: int
    epochs: int
    flat_epochs: int
    decay: float
    positions: int | None
    large_positions: int | None
    class_positions: int | None
    word_count: int
    delays: int
    vector_epochs: int
    vector_tokens: int | None
    train_rate: float
    position_seconds: float


SCALES = {
    # For tests: every step in seconds; its numbers mean nothing.
    "tiny": Scale(
        corpus="ewt",
        amounts={
            "ewt": Amount(6_000, 1_200, 1_200),
            "wikitext-2": Amount(6_000, 1_200, 1_200),
            "ptb": Amount(6_000, 1_200, 1_200),
        },
        vocabulary=1_200,
        embedding=6,
        hidden=(6, 8, 12),
        batch=4,
        steps=20,
        epochs=1,
        flat_epochs=1,
        decay=0.8,
        positions=200,
        large_positions=200,
        class_positions=None,
        word_count=5,
        delays=42,
        vector_epochs=1,
        vector_tokens=6_000,
        train_rate=10_000.0,
        position_seconds=0.001,
    ),
    # Within an hour on two cores. Ten streams of 100 steps instead of twenty of 200: with so
    # short a text the paper's batches would give fifty updates an epoch.
    "small": Scale(
        corpus="ewt",
        amounts={
            "ewt": Amount(None, None, None),
            "wikitext-2": Amount(300_000, 25_000, 25_000),
            "ptb": Amount(300_000, 25_000, 25_000),
        },
        vocabulary=5_000,
        embedding=64,
        hidden=(128, 256, 512),
        batch=10,
        steps=100,
        epochs=4,
        flat_epochs=3,
        decay=0.5,
        positions=6_000,
        large_positions=3_000,
        class_positions=None,
        word_count=10,
        delays=50,
        vector_epochs=5,
        vector_tokens=None,
        train_rate=6_500.0,
        position_seconds=0.008,
    ),
    # Overnight on two cores; the paper's batches and, in its main corpus, about its tokens.
    "full": Scale(
        corpus="wikitext-2",
        amounts={
            "ewt": Amount(None, None, None),
            "wikitext-2": Amount(900_000, 80_000, 80_000),
            "ptb": Amount(None, None, None),
        },
        vocabulary=10_000,
        embedding=64,
        hidden=(128, 256, 512),
        batch=20,
        steps=200,
        epochs=12,
        flat_epochs=6,
        decay=0.8,
        positions=40_000,
        large_positions=15_000,
        class_positions=None,
        word_count=20,
        delays=50,
        vector_epochs=5,
        vector_tokens=None,
        train_rate=3_500.0,
        position_seconds=0.008,
    ),
}
