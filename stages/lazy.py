"""A group of commands that are imported when they run, so that --help answers at once."""

from __future__ import annotations

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of --help without an import."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))
