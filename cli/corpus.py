"""`mnemoscope corpus`: texts to analyse with."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from ._lazy import example
from ._output import check_output


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


def _write(lines: Iterable[str], file) -> None:
    # Bytes, so that the text is UTF-8 with \n on every machine.
    for line in lines:
        file.write(f"{line.rstrip()}\n".encode())
    file.flush()
