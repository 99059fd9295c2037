"""How a long command keeps what it has found, and goes on with it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ._analysis import Finite
from ._guard import finishing

if TYPE_CHECKING:
    from mnemoscope.analyzer._checkpoint import Checkpoint


def checkpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--checkpoint-every`` and ``--resume``, which `keeping` takes."""
    for option in (
        click.option(
            "--resume",
            is_flag=True,
            help="Go on from the checkpoint beside the output, if there is one.",
        ),
        click.option(
            "--checkpoint-every",
            type=Finite(above=False),
            metavar="SECONDS",
            help="Keep what is found so far beside the output, so often; 0 means never.  [60]",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def keeping(output: str, every: float | None, resume: bool, quiet: bool) -> Iterator[Checkpoint]:
    """Give the checkpoint of a command's run, to be removed by the body once its result is saved.

    The first SIGINT lets the run end after the shard at hand. Where the body is interrupted, or its
    result cannot be saved, the command says how to go on.
    """
    from mnemoscope.analyzer._checkpoint import SUFFIX, Checkpoint
    from mnemoscope.analyzer.errors import ResultError

    def warn(line: str) -> None:  # --quiet prints errors, and it is one
        click.echo(line, err=True)

    path = os.path.realpath(output) + SUFFIX
    with Checkpoint(
        path, every=every, resume=resume, report=warn, stopping=finishing
    ) as checkpoint:
        if resume and not checkpoint.exists() and not quiet:
            warn(f"There is no checkpoint {path}: the run starts at its beginning.")
        try:
            yield checkpoint
        except (KeyboardInterrupt, ResultError):
            if checkpoint.exists():
                warn(f"The run is kept in {path}. Go on with it:\n  {_again()}")
            else:
                warn("No checkpoint was written yet: the run starts at its beginning next time.")
            raise


def _again() -> str:
    """The command as it was called, with ``--resume``."""
    arguments = sys.argv[1:]
    if "--resume" not in arguments:
        at = arguments.index("--") if "--" in arguments else len(arguments)
        arguments.insert(at, "--resume")
    return f"{click.get_current_context().find_root().info_name} {shlex.join(arguments)}"
