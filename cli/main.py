"""The entry point: which commands there are, and how every one of them fails."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import click
from mnemoscope.analyzer import __version__
from mnemoscope.analyzer.errors import MnemoscopeError

from ._guard import guarded
from ._lazy import LazyGroup, example
from ._output import one_line

_LONGEST = 950  # characters of a message


class _Failure(click.ClickException):
    """A message on stderr and exit status 2: the input or the call is wrong."""

    exit_code = 2


class _Root(LazyGroup):
    """The one place where errors become messages."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program, in a process that is watched; `main` runs in this one."""

        def work() -> Any:
            try:
                return self.main(*args, **kwargs)
            except Exception:  # a defect of this program: status 1 would say that a check failed
                traceback.print_exc()
                sys.exit(2)

        return guarded(work)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; show a user's mistake without a traceback."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a narrow encoding must not stop a table
                stream.reconfigure(errors="backslashreplace")
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except MnemoscopeError as error:
            raise _Failure(_shown(str(error))) from error
        except BrokenPipeError:
            _silence_stdout()
            ctx.exit(141)  # 128 + SIGPIPE, as other programs end when their reader leaves
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)
        except MemoryError as error:
            raise _Failure(
                f"The machine's memory is used up ({error}). Ask for less: fewer --delays or "
                "one --state, or a smaller --memory."
            ) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise _Failure(_shown(f"{where}{error.strerror or error}.")) from error


def _shown(message: str) -> str:
    """A message whose parts come from a file, as one line of bounded length."""
    text = one_line(message)
    if len(text) <= _LONGEST:
        return text
    # The end says what to do.
    return f"{text[: _LONGEST // 2]} […] {text[-_LONGEST // 3 :]}"


def _silence_stdout() -> None:
    """Give what is left in the buffer somewhere to go, or Python complains at exit."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(
    cls=_Root,
    lazy={
        "export": ".export:export",
        "inspect": ".inspect:inspect",
        "analyze": ".analyze:analyze",
        "show": ".show:show",
        "plot": ".plot:plot",
        "check": ".check:check",
        "compare": ".compare:compare",
        "sweep": ".sweep:sweep",
        "words": ".words:words",
        "property": ".property:property_",
        "separability": ".separability:separability",
        "corpus": ".corpus:corpus",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=example(
        "mnemoscope corpus pydoc -o corpus.txt",
        "mnemoscope analyze model.onnx corpus.txt -o result.nc",
        "mnemoscope show result.nc",
    )
    + "\n\nExit status: 0 done and passed, 1 a check or comparison failed, 2 the input or the call "
    "is wrong.",
)
@click.version_option(__version__, prog_name="mnemoscope")
def main() -> None:
    """Show what a recurrent language model remembers, from its ONNX file."""


if __name__ == "__main__":
    main()
