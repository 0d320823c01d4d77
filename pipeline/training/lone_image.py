"""A pass of one image, of which batch normalisation has no statistics."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pipeline.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lone_image_explained"]

# Of torch.nn.functional.batch_norm, where the features of the one image are one pixel.
_NO_STATISTICS = "Expected more than 1 value per channel when training"


@contextlib.contextmanager
def lone_image_explained(architecture: str) -> Iterator[None]:
    """Turn the block's failure on a single image into an error that says what to set.

    Parameters
    ----------
    architecture : str
        Of the network that fails.

    Raises
    ------
    ParamsError
    """
    try:
        yield
    except ValueError as error:
        if _NO_STATISTICS not in str(error):
            raise
        raise ParamsError(
            "batch_size",
            f"{architecture} normalises by batch statistics, which one image has not",
            expected="two images or more in each pass of each process",
            remedy="Raise batch_size (or images), or lower accumulation_steps.",
        ) from error
