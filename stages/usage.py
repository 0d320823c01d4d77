"""Values that the library refuses, as errors of the option that they came from."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from pipeline.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["of_option"]


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
