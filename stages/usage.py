"""Options that are wrong or have no meaning, as usage errors."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pipeline.errors import MissingError, ParamsError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["FIELD", "of_option", "refuse_given", "require_named"]

# Before the name of an option that sets a parameter.
FIELD = "field_"
# What makes the files that an option names.
_MADE_BY = {"data": "prepare", "labels": "label", "teachers": "teacher"}


@contextlib.contextmanager
def of_option(option: str) -> Iterator[None]:
    """Make the block's ParamsError a usage error of an option: exit code 2, the same words.

    Raises
    ------
    BadParameter
    """
    try:
        yield
    except ParamsError as error:
        # It begins with the option's name, and so does what click says.
        words = str(error).removeprefix(f"{error.where}: ")
        raise click.BadParameter(words, param_hint=f"'{option}'") from error


def require_named(*names: str) -> None:
    """Look first for the files that were typed: what is missing of the defaults comes later.

    Parameters
    ----------
    names : str
        Of arguments or options of the running command whose values are paths, or several.

    Raises
    ------
    MissingError
    """
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = context.params[name]
            for path in value if isinstance(value, tuple) else (value,):
                if "://" not in str(path) and not Path(path).exists():
                    made = _MADE_BY.get(name)
                    remedy = f"'ltd-pipe {made}' makes one." if made else ""
                    raise MissingError(path, "no such file or folder", remedy=remedy)


def refuse_given(names: Collection[str], why: str) -> None:
    """Refuse options of the running command that were typed, and would be ignored.

    Parameters
    ----------
    names : collection of str
        Of arguments or parameters; what stands in params.yaml is not asked.
    why : str
        Goes on after the option's name.

    Raises
    ------
    click.UsageError
    """
    context = click.get_current_context()
    for option in context.command.params:
        name = str(option.name)
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if typed and name.removeprefix(FIELD) in names:
            raise click.UsageError(f"{option.opts[0]} {why}")
