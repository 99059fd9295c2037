"""A vocabulary from a file or a list, with its special tokens guessed where nobody names them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Level, Vocabulary

UNKNOWN = ("<unk>", "<UNK>", "[UNK]", "<unknown>")
END_OF_LINE = ("<eos>", "</s>", "<EOS>")


def make_vocabulary(
    source: str | os.PathLike[str] | Sequence[str] | Vocabulary | None,
    size: int,
    *,
    level: Level | None = None,
    unknown: str | None = None,
    end_of_line: str | None = None,
) -> Vocabulary | None:
    r"""Build a vocabulary of `size` tokens.

    Args:
        source: A UTF-8 file with one token a line (id = line number from 0), or the tokens. In a
            file the line ``\n`` stands for the newline character. None gives None.
        size: V, the width of the logits.
        level: ``word`` or ``char``; None takes ``char`` when all tokens but the special ones are
            single characters.
        unknown: Token that stands for every other; None looks for a usual name.
        end_of_line: Token that ends a line; None looks for a usual name, or the newline
            character at character level.

    Raises:
        ModelError: The file cannot be read, its length is not `size`, a token comes twice, or a
            special token is not in it.
    """
    if source is None:
        return None
    if isinstance(source, Vocabulary):
        tokens = list(source.tokens)
        level = level or source.level
        unknown = unknown if unknown is not None else source.unknown
        end_of_line = end_of_line if end_of_line is not None else source.end_of_line
    elif isinstance(source, (str, os.PathLike)):
        tokens = _read(Path(source))
    else:
        tokens = list(source)
        if not all(isinstance(t, str) for t in tokens):
            wrong = next(t for t in tokens if not isinstance(t, str))
            raise ModelError(f"Expected a vocabulary of strings, found the token {wrong!r}.")
    if len(tokens) != size:
        raise ModelError(
            f"The vocabulary has {len(tokens)} tokens, the model's logits have {size}; expected "
            "one token per logit, in the order of the ids. Is it another model's vocabulary?"
        )
    if level is None:
        special = {*UNKNOWN, *END_OF_LINE, "<pad>", "<bos>", "<s>", unknown, end_of_line}
        rest = [t for t in tokens if t not in special]
        level = "char" if rest and all(len(t) == 1 for t in rest) else "word"
    if unknown is None:
        unknown = next((t for t in UNKNOWN if t in tokens), None)
    if end_of_line is None:
        usual = (*END_OF_LINE, "\n") if level == "char" else END_OF_LINE
        end_of_line = next((t for t in usual if t in tokens), None)
    return Vocabulary(tuple(tokens), level, unknown, end_of_line)


def _read(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ModelError(f"Cannot read the vocabulary {str(path)!r}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ModelError(
            f"The vocabulary {str(path)!r} is not UTF-8 (byte {error.start}); expected a text "
            "file with one token a line."
        ) from error
    # Not splitlines: a token may be one of the exotic separators that it splits at.
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    return ["\n" if line == "\\n" else line for line in lines]
