"""Write the command reference, ``docs/commands.md``, from the commands' own help."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from mnemoscope.cli.main import main

PAGE = Path(__file__).with_name("commands.md")


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below `command`, groups before their members."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from commands(found, f"{name} {child}")


def page() -> str:
    """The whole page."""
    parts = ["# Commands", "", "Written by `make docs` from the help of each command."]
    for name, command in commands(main, "mnemoscope"):
        context = click.Context(
            command,
            info_name=name,
            terminal_width=88,
            max_content_width=88,
            help_option_names=main.context_settings.get("help_option_names"),
        )
        parts += ["", f"## {name}", "", "```", command.get_help(context).rstrip(), "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        raise SystemExit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
