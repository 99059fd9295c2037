"""`mnemoscope corpus`: texts to analyse with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from mnemoscope.analyzer.errors import CorpusError

from ._lazy import example
from ._output import Report, check_output, reports


@click.group(epilog=example("mnemoscope corpus pydoc -o corpus.txt"))
def corpus() -> None:
    """Write a tokenised text to analyse with."""


@corpus.command(epilog=example("mnemoscope corpus pydoc -o corpus.txt"))
@click.option(
    "-o", "--output", default="-", metavar="FILE", help="Write here; - is standard output."
)
def pydoc(output: str) -> None:
    """Write the English prose that every Python ships.

    These are the topics of pydoc, tokenised, one sentence a line.
    """
    if output != "-":
        check_output(output)
    from mnemoscope.analyzer.pydoc_corpus import lines

    if output == "-":
        _write(lines(), sys.stdout.buffer)
        return
    from mnemoscope.analyzer._files import replacing

    with replacing(output) as temporary, temporary.open("wb") as file:
        _write(lines(), file)


@corpus.command(
    epilog=example(
        "mnemoscope corpus synthetic -o synthetic",
        "mnemoscope corpus synthetic -o small --train 400000 --valid 20000 --test 20000",
    )
)
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Write the files here.")
@click.option("--train", default=16_000_000, show_default=True, help="Tokens to train on.")
@click.option("--valid", default=160_000, show_default=True, help="Tokens to validate on.")
@click.option("--test", default=160_000, show_default=True, help="Tokens to test on.")
@click.option(
    "--vocabulary-size", default=10, show_default=True, help="Tokens, the end of a line aside."
)
@click.option("--repetitions", default=15, show_default=True, help="Of a cycle's second token.")
@click.option("--min-cycles", default=5, show_default=True, help="Least number in a line.")
@click.option("--max-cycles", default=10, show_default=True, help="Largest number in a line.")
@click.option("--seed", default=0, show_default=True, help="Of all that is drawn.")
@click.option("--label-train", is_flag=True, help="Label the training tokens, too.")
@reports("json")
def synthetic(
    output: str,
    train: int,
    valid: int,
    test: int,
    vocabulary_size: int,
    repetitions: int,
    min_cycles: int,
    max_cycles: int,
    seed: int,
    label_train: bool,
) -> Report:
    """Write a made-up language whose dependencies are known.

    Lines of cycles: one new random token, then 15 times the new token of the cycle before. FOLDER
    gets train.txt, valid.txt and test.txt (a part of size 0 is left out), the label of every token
    in valid.tsv and test.tsv, vocabulary.txt, and synthetic.json with the least perplexities that
    a model can reach. Lines are whole, so that a part may be a little longer than asked.
    """
    from mnemoscope.analyzer.synthetic_corpus import Language, write_corpus

    language = Language(vocabulary_size, repetitions, min_cycles, max_cycles)
    sizes = {"train": train, "valid": valid, "test": test}
    labelled = [part for part in sizes if label_train or part != "train"]
    made = not os.path.lexists(output)
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise CorpusError(f"The output {output} is a file; name a folder.")
    try:
        folder.mkdir(exist_ok=True)
        info = write_corpus(folder, language, sizes, labelled=labelled, seed=seed)
    except BaseException as error:
        if made:
            with suppress(OSError):
                folder.rmdir()  # empty, since files are written whole or not at all
        if isinstance(error, OSError):
            raise CorpusError(
                f"The corpus cannot be written into the folder {output}: {error.strerror}. "
                "Choose a folder that can be written and has room, or create the one around it."
            ) from error
        raise

    def render(console: Any) -> None:
        for part, counts in info["parts"].items():
            console.print(f"{part}.txt: {counts['tokens']:,} tokens in {counts['lines']:,} lines")
        least = info["perplexity"]
        console.print(
            f"Least perplexity: {least['attainable']:.4f}, or {least['known_length']:.4f} for a "
            f"model that knows how long a line is (mean over lines: {least['paper']:.4f})."
        )

    return Report(info, render)


def _write(lines: Iterable[str], file) -> None:
    # Bytes, so that the text is UTF-8 with \n on every machine.
    for line in lines:
        file.write(f"{line.rstrip()}\n".encode())
    file.flush()
