"""Commands that are imported when they are used, and the examples in their help."""

from __future__ import annotations

from importlib import import_module

import click


class LazyGroup(click.Group):
    """A group whose commands are named by ``module:attribute``, relative to this package."""

    def __init__(self, *args, lazy: dict[str, str] | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands, in the order in which they are used."""
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._lazy[cmd_name].partition(":")
        return getattr(import_module(module, __package__), attribute)


def example(*lines: str) -> str:
    """Format lines of an example for the end of a command's help, where click must not wrap."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
