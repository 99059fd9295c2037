"""Word vectors: train them with word2vec (CBOW), and read them from text files.

    python samples/word_vectors.py train TEXT... -o vectors.txt --size 64

The text format is that of word2vec (a first line ``words size``, then ``word value value …``) and
of GloVe (the same without the first line). ``word_lm.py train --embeddings vectors.txt`` takes
either, and so does `read_vectors`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

MOST_BYTES_PER_VALUE = 64
"""A longer line is no line of numbers: this is what a reader may hold of one, per value."""

LARGEST_SIZE = 10_000
"""Entries of a vector; more is no word vector."""


class VectorError(click.ClickException):
    """A file of word vectors cannot be used; the message says where and why."""

    exit_code = 2


def read_vectors(path: Path, wanted: dict[str, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the vectors of some words, one line at a time: the rest of the file costs no memory.

    Args:
        path: Text in the format of word2vec or GloVe, UTF-8.
        wanted: Word → row.
        size: Entries of a vector.

    Returns:
        Vectors ``[row, size]`` float32, zero where the file has none, and ``[row]`` booleans that
        say where it has one. Of a word that comes twice the first counts.

    Raises:
        VectorError: The file is missing, not UTF-8, has vectors of another size, values that are
            no finite numbers, or fewer lines than its first line says.
    """
    rows = max(wanted.values(), default=-1) + 1
    vectors = np.zeros((rows, size), np.float32)
    found = np.zeros(rows, bool)
    said: int | None = None
    lines = 0
    for number, line in _lines(path, size):
        line = line.rstrip(" ")  # word2vec's own files end lines with a space
        # Some words of GloVe's hold spaces, so numbers are counted from the end; only the first
        # line tells the size.
        parts = line.split(" ") if not lines else line.rsplit(" ", size)
        if number == 1 and len(parts) == 2 and all(p.isdecimal() for p in parts) and size != 1:
            said, told = (int(p) for p in parts)
            if told != size:
                raise VectorError(
                    f"{path} holds vectors of {told} entries; expected {size} (--embedding)."
                )
            continue
        lines += 1
        if len(parts) - 1 != size:
            raise VectorError(
                f"{path}, line {number}: {len(parts) - 1} entries after "
                f"{parts[0]!r:.40}; expected {size} (--embedding)."
            )
        row = wanted.get(parts[0])
        if row is None or found[row]:
            continue
        try:
            values = [float(p) for p in parts[1:]]
        except ValueError:
            raise VectorError(
                f"{path}, line {number}: the vector of {parts[0]!r:.40} holds something that is "
                "no number."
            ) from None
        if not all(math.isfinite(v) and abs(v) < 3e38 for v in values):
            raise VectorError(
                f"{path}, line {number}: the vector of {parts[0]!r:.40} is not finite."
            )
        vectors[row], found[row] = values, True
    if said is not None and said != lines:
        raise VectorError(
            f"{path} says that it holds {said:,} vectors but has {lines:,}; it was cut short, or "
            "is no text file of word2vec."
        )
    if not lines:
        raise VectorError(f"{path} holds no vectors.")
    return vectors, found


def _lines(path: Path, size: int) -> Iterator[tuple[int, str]]:
    """The numbered lines of a file, none of which may be longer than vectors of `size` are."""
    if not 1 <= size <= LARGEST_SIZE:
        raise VectorError(f"Vectors have 1 to {LARGEST_SIZE:,} entries, not {size:,}.")
    most = 4096 + MOST_BYTES_PER_VALUE * size
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(most):
                number += 1
                if not line.endswith(b"\n") and len(line) == most:
                    raise VectorError(
                        f"{path}, line {number} is longer than {most:,} bytes; it holds no vector "
                        f"of {size} entries as text. (Binary files of word2vec are not read.)"
                    )
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError:
                    raise VectorError(
                        f"{path}, line {number} is not UTF-8 text. (Binary files of word2vec are "
                        "not read; save them as text first.)"
                    ) from None
                if text := text.rstrip("\r\n"):
                    yield number, text
    except OSError as error:
        raise VectorError(f"{path} cannot be read: {error.strerror}.") from None


def write_vectors(path: Path, words: list[str], vectors: np.ndarray) -> None:
    """Write the text format of word2vec, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(f"{len(words)} {vectors.shape[1]}\n")
            for word, vector in zip(words, vectors, strict=True):
                file.write(f"{word} {' '.join(f'{v:.9g}' for v in vector)}\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Train word vectors for word_lm.py."""


@main.command()
@click.argument("texts", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--vocabulary", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Words to keep, one a line; others become <unk>.  [all]")  # fmt: skip
@click.option("--size", type=click.IntRange(1, LARGEST_SIZE), default=64)
@click.option("--window", type=click.IntRange(min=1), default=5)
@click.option("--epochs", type=click.IntRange(min=1), default=5)
@click.option("--tokens", type=click.IntRange(min=1), help="Of each text, from its start.  [all]")
@click.option("--seed", type=int, default=1)
def train(
    texts: tuple[Path, ...],
    output: Path,
    vocabulary: Path | None,
    size: int,
    window: int,
    epochs: int,
    tokens: int | None,
    seed: int,
) -> None:
    """Train CBOW vectors on TEXTS, one sentence a line; every line ends in <eos>.

    Everything else is word2vec's default as gensim has it (5 negative samples, sampling of
    frequent words at 1e-3). One worker and a seed: the same text gives the same vectors.

    Example: python samples/word_vectors.py train a.txt b.txt -o vectors.txt
    """
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise click.UsageError(
            f"Training vectors needs gensim ({error}): pip install gensim==4.4.0, or give vectors "
            "that are there already."
        ) from error
    kept: set[str] | None = None
    if vocabulary is not None:
        kept = set(vocabulary.read_text(encoding="utf-8").split("\n")) - {""}
    sentences = [s for text in texts for s in _sentences(text, kept, tokens)]
    model = Word2Vec(
        sentences, vector_size=size, window=window, sg=0, min_count=1, workers=1, seed=seed,
        epochs=epochs, hashfxn=stable_hash,
    )  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    write_vectors(output, model.wv.index_to_key, model.wv.vectors)
    click.echo(
        f"{sum(map(len, sentences)):,} tokens, {len(model.wv):,} words, {size} entries: {output}"
    )


def stable_hash(text: str) -> int:
    """A hash that every process gives alike, unlike Python's own: gensim seeds words with it."""
    import zlib

    return zlib.crc32(text.encode("utf-8"))


def _sentences(text: Path, kept: set[str] | None, most: int | None) -> Iterator[list[str]]:
    left = most
    with text.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            words = [*line.split(), "<eos>"]
            if left is not None and (left := left - len(words)) < 0:
                return
            yield words if kept is None else [w if w in kept else "<unk>" for w in words]


if __name__ == "__main__":
    main()
