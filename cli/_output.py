"""How commands report, and where they may write."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mnemoscope.analyzer.errors import MnemoscopeError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Report:
    """What a command has to say, in every form in which it can be asked.

    Attributes:
        data: For ``--json``.
        render: Prints it for a reader.
        rows: For ``--csv``: one dictionary per line, all with the same keys.
        passed: False for a check or comparison that failed: exit status 1.
    """

    data: Any
    render: Callable[[Console], None]
    rows: list[dict[str, Any]] | None = None
    passed: bool = True


def reports(*formats: str) -> Callable[[Callable[..., Report]], Callable[..., None]]:
    """Print the `Report` that a command returns, and give it an option per format.

    Args:
        formats: ``json``, ``csv``.
    """

    def decorate(function: Callable[..., Report]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**arguments: Any) -> None:
            asked = [f for f in formats if arguments.pop(f"as_{f}")]
            if len(asked) > 1:
                raise click.UsageError("--json and --csv exclude each other; give one.")
            report = function(**arguments)
            if asked == ["json"]:
                click.echo(json.dumps(_plain(report.data), indent=2, ensure_ascii=False))
            elif asked == ["csv"]:
                _write_csv(report.rows or [])
            else:
                report.render(console())
            if not report.passed:
                click.get_current_context().exit(1)

        for name in reversed(formats):
            command = click.option(
                f"--{name}", f"as_{name}", is_flag=True, help=f"Print {name.upper()} instead."
            )(command)
        return command

    return decorate


def _plain(value: Any) -> Any:
    """Put null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _write_csv(rows: list[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if _plain(v) is None else v for k, v in row.items()})


def console(*, stderr: bool = False) -> Console:
    """Give a console that wraps on a terminal, and never elsewhere."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        """Text from files moves no cursor and changes no title: only rich's own codes get out."""

        def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
            for segment in super().render(*args, **kwargs):
                if segment.control:
                    yield segment
                else:
                    lines = "\n".join(map(one_line, segment.text.split("\n")))
                    yield Segment(lines, segment.style)

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 4096
    return Plain(file=stream, width=width, highlight=False, markup=False, emoji=False)


def one_line(text: str) -> str:
    """Text that comes from a file, as one line that a terminal may be given."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def noise_mark(value: float, floor: float, stderr: float, clear: bool) -> str:
    """What stands beside a value in a table: ``""`` where it is clear of its noise floor.

    Returns:
        ``?`` where the floor or the standard error is not known, ``*`` where the value does not
        exceed the floor, ``~`` where it does and is not clear all the same.
    """
    if not (math.isfinite(floor) and math.isfinite(stderr)):
        return "?"
    if not value > floor:
        return "*"
    return "" if clear else "~"


def print_footnotes(console: Console, footnotes: dict[str, str], marks: Iterable[str]) -> None:
    """Print what the marks mean that a table has."""
    there = set(marks)
    for mark, meaning in footnotes.items():
        if mark in there:
            console.print(f"{mark} {meaning}", soft_wrap=True)


def check_output(path: str, *, inputs: Iterable[str] = (), suffixes: tuple[str, ...] = ()) -> None:
    """Refuse an output path that cannot be written, before the work and not after it.

    Args:
        path: Where a command will write.
        inputs: Paths that it reads, which it must not replace.
        suffixes: Those it can write; empty for any.

    Raises:
        MnemoscopeError: With what is wrong and what to do.
    """
    target = Path(path)
    if suffixes and target.suffix.lower() not in suffixes:
        raise MnemoscopeError(
            f"The output's name must end in {' or '.join(suffixes)}; {path} does not."
        )
    try:
        folder = Path(os.path.realpath(target)).parent
        if target.is_dir():
            raise MnemoscopeError(
                f"The output {path} is a folder; name the file, such as "
                f"{os.path.join(path, 'output' + (suffixes[0] if suffixes else '.nc'))}."
            )
        if target.exists() and not target.is_file():
            raise MnemoscopeError(f"The output {path} is no ordinary file; name another.")
        if not folder.is_dir():
            raise MnemoscopeError(
                f"The output {path} cannot be written: there is no folder {folder}. "
                "Create it first."
            )
        for other in inputs:
            if target.exists() and os.path.exists(other) and target.samefile(other):
                raise MnemoscopeError(f"The output {path} is also an input; name another file.")
        with tempfile.TemporaryFile(dir=folder):
            target.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise MnemoscopeError(
            f"The output {path} cannot be written: {error.strerror}. Choose another folder or name."
        ) from error


def output_option(what: str, *, required: bool = True) -> Callable[..., Any]:
    """Give ``-o``/``--output``, the same for every command that writes a file."""
    return click.option(
        "-o", "--output", required=required, metavar="FILE", help=f"Write the {what} here."
    )
