"""A made-up language whose dependencies are known (Verwimp et al. 2020, section 4.2.1).

A line is made of cycles. A cycle is one new random token, then a number of repetitions of the new
token of the cycle before it, across the ends of lines::

    A B B B … B C A A A … A D C C C … C

A model of this language must carry each new token through one cycle, use it in the next, and count
the repetitions. What is drawn: the new token, uniformly among those that are neither of the two
tokens of the cycle before (appendix 8 of the paper); the number of cycles of a line, uniformly
between two bounds. The very first cycle draws both its tokens, different ones. The end of a line
is the end-of-line token that every reader of a corpus adds; it is not written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, TextIO

from ._files import replacing
from .errors import CorpusError

__all__ = ["END_OF_LINE", "Cycle", "Language", "perplexities", "write_corpus"]

END_OF_LINE = "<eos>"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LARGEST_VOCABULARY = 10_000
_LARGEST = 10**6  # tokens in a line, and repetitions over all tokens, which lie in memory

Cycle = tuple[int, int]
"""The new token of a cycle, and the one that it repeats."""


@dataclass(frozen=True)
class Language:
    """What a corpus is drawn from.

    Attributes:
        vocabulary: Number of tokens, the end-of-line token aside.
        repetitions: Of the repeated token, in a cycle.
        min_cycles: Least number of cycles in a line.
        max_cycles: Largest.

    Raises:
        CorpusError: Nothing would be random, or no line could be drawn.
    """

    vocabulary: int = 10
    repetitions: int = 15
    min_cycles: int = 5
    max_cycles: int = 10

    def __post_init__(self) -> None:
        if not 4 <= self.vocabulary <= _LARGEST_VOCABULARY:
            raise CorpusError(
                f"The vocabulary must have 4 to {_LARGEST_VOCABULARY:,} tokens, not "
                f"{self.vocabulary:,}: a new token differs from the two tokens of the cycle "
                "before it, and would not be random among fewer."
            )
        most = _LARGEST // self.vocabulary
        if not 1 <= self.repetitions <= most:
            raise CorpusError(
                f"A cycle needs 1 to {most:,} repetitions with {self.vocabulary:,} tokens, not "
                f"{self.repetitions:,}."
            )
        most = _LARGEST // self.period
        if not 1 <= self.min_cycles <= self.max_cycles <= most:
            raise CorpusError(
                f"A line needs 1 to {most:,} cycles of {self.period:,} tokens, the smaller bound "
                f"first; found {self.min_cycles:,} to {self.max_cycles:,}."
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens: letters, or ``t0000`` and so on where there are more than 26."""
        if self.vocabulary <= len(_LETTERS):
            return tuple(_LETTERS[: self.vocabulary])
        width = len(str(self.vocabulary - 1))
        return tuple(f"t{i:0{width}}" for i in range(self.vocabulary))

    @property
    def period(self) -> int:
        """Tokens in a cycle."""
        return self.repetitions + 1

    def lines(self, seed: int | str = 0) -> Iterator[tuple[Cycle, ...]]:
        """The cycles of one line after another, without end.

        The same seed gives the same lines in every version of Python, which promises that of
        `random.Random.random` alone; so everything is drawn with that.
        """
        draw = Random(f"{seed}").random  # a text is hashed whole; a number's sign is dropped
        before = int(draw() * self.vocabulary)
        last = _another(int(draw() * (self.vocabulary - 1)), before)
        lengths = self.max_cycles - self.min_cycles + 1
        while True:
            line = []
            for _ in range(self.min_cycles + int(draw() * lengths)):
                line.append((last, before))
                new = _another(int(draw() * (self.vocabulary - 2)), before, last)
                before, last = last, new
            yield tuple(line)


def _another(number: int, *excluded: int) -> int:
    """The token of that number among all that are not excluded."""
    for token in sorted(excluded):
        number += number >= token
    return number


# Perplexity ----------------------------------------------------------------------------------


def perplexities(language: Language) -> dict[str, float]:
    """The least perplexity that a model can reach, in three readings.

    A new token costs ``ln(V − 2)``; a repetition costs nothing. In the order of the keys:

    ``paper``: The mean of the perplexities of lines of each length (V20, equations 24 to 26):
        1.1375 for the paper's settings. The length of a line is taken as known.
    ``known_length``: The exponential of the entropy per token, where every token counts the
        same, as the perplexity of a model is measured; the length of a line still taken as known.
    ``attainable``: The same for a model that sees the past only. After the least number of cycles
        each further one may be the last; those decisions cost ``ln(number of lengths)`` a line,
        the entropy of the length. No model goes below this on average.

    The very first cycle of a corpus, whose tokens are less predictable, is left out.
    """
    cost = math.log(language.vocabulary - 2)
    lengths = range(language.min_cycles, language.max_cycles + 1)
    sizes = [n * language.period + 1 for n in lengths]  # with the end of the line
    mean_size = sum(sizes) / len(sizes)
    known = cost * sum(lengths) / len(sizes) / mean_size
    return {
        "paper": sum(math.exp(n * cost / s) for n, s in zip(lengths, sizes, strict=True))
        / len(sizes),
        "known_length": math.exp(known),
        "attainable": math.exp(known + math.log(len(sizes)) / mean_size),
    }


# Files ---------------------------------------------------------------------------------------


def write_corpus(
    folder: Path,
    language: Language,
    sizes: Mapping[str, int],
    *,
    labelled: Container[str] = ("valid", "test"),
    seed: int = 0,
) -> dict[str, Any]:
    """Write the parts of a corpus, all of them or, if anything fails, none.

    A part becomes ``<part>.txt``, one line a line; where it is labelled also ``<part>.tsv``, a
    line ``token<TAB>label|label|…`` for each token and an empty one after each line of the text.
    The labels are ``token-1`` (new) or ``token-2rep`` (repeated), the same with the token's
    name (``token-A-1``, ``token-A-2rep``), and ``count-0`` (new) or ``count-1`` up to the number
    of repetitions. Beside them ``vocabulary.txt`` lists the tokens, the end of a line last, and
    ``synthetic.json`` holds what is returned.

    Lines are written as they are drawn, so memory does not grow with the sizes.

    Args:
        folder: Must exist.
        language: What to draw from.
        sizes: Part → tokens, ends of lines not counted. Lines are whole: the last one may go
            beyond the size. A part of size 0 is left out.
        labelled: Parts that get labels too.
        seed: Parts are drawn independently of each other's sizes.

    Returns:
        ``language``, its attributes; ``seed``; ``parts``, part → number of ``tokens`` (ends of
        lines not counted) and of ``lines``; and ``perplexity``, see `perplexities`.

    Raises:
        CorpusError: A size is negative, there is nothing to write, or a folder is in the way.
        OSError: The files cannot be written.
    """
    for part, size in sizes.items():
        if size < 0:
            raise CorpusError(f"The size of {part} must be 0 tokens or more, not {size:,}.")
    if not any(sizes.values()):
        raise CorpusError("All sizes are 0, so there is nothing to write. Ask for some tokens.")
    names, counts = language.tokens, range(1, language.repetitions + 1)
    # One text for each token's cycle: writing is copying.
    repeated = [" ".join([name] * language.repetitions) for name in names]
    new_rows = [f"{x}\ttoken-1|token-{x}-1|count-0\n" for x in names]
    old_rows = [
        "".join(f"{x}\ttoken-2rep|token-{x}-2rep|count-{i}\n" for i in counts) for x in names
    ]
    written = {}
    with ExitStack() as stack:  # moves the files into place at its end, and only if all is well

        def opened(name: str) -> TextIO:
            if (folder / name).is_dir():  # here, where nothing has been moved yet
                raise CorpusError(f"{folder / name} is a folder; the corpus cannot be written.")
            path = stack.enter_context(replacing(folder / name))
            return stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))

        for part, size in sizes.items():
            if not size:
                continue
            plain = opened(f"{part}.txt")
            labels = opened(f"{part}.tsv") if part in labelled else None
            tokens = lines = 0
            for line in language.lines(f"{seed} {part}"):
                plain.write(" ".join(f"{names[new]} {repeated[old]}" for new, old in line))
                plain.write("\n")
                if labels:
                    labels.writelines(new_rows[new] + old_rows[old] for new, old in line)
                    labels.write("\n")
                tokens, lines = tokens + len(line) * language.period, lines + 1
                if tokens >= size:
                    break
            written[part] = {"tokens": tokens, "lines": lines}
        vocabulary = opened("vocabulary.txt")
        vocabulary.writelines(f"{t}\n" for t in (*names, END_OF_LINE))
        info = {
            "language": asdict(language),
            "seed": seed,
            "parts": written,
            "perplexity": perplexities(language),
        }
        opened("synthetic.json").write(json.dumps(info, indent=2) + "\n")
    return info
