"""A group of commands that are imported when they run, so that --help answers at once."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import click

__all__ = ["LazyGroup"]


class LazyGroup(click.Group):
    """Commands of one package, each in the module of its name; torch and ffcv take seconds.

    Parameters
    ----------
    package : str
        Where the modules are, such as `stages`.
    summaries : dict of str to str
        Name of each command, in the order of --help, and what it does.
    """

    def __init__(
        self, *settings: Any, package: str, summaries: dict[str, str], **more: Any
    ) -> None:
        super().__init__(*settings, **more)
        self._package, self._summaries = package, summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        del ctx
        return list(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in self._summaries:
            return None
        module = importlib.import_module(f"{self._package}.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed, or say which was meant."""
        close = difflib.get_close_matches(args[0], self._summaries, n=1)
        if close and args[0] not in self._summaries:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{close[0]}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of --help without an import."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))
