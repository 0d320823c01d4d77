"""Whether what was written gives the logits of the classifier that it was written from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from pipeline import rng
from pipeline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.models.classifier import Classifier

    Answer = Callable[[torch.Tensor], torch.Tensor]

__all__ = ["Agreement", "probes", "require_agreement"]

# Each through a batch of its own size: a graph may have learnt the size that it was traced with.
_BATCHES = (1, 2, 13)
# Of the largest logit. Other kernels sum in another order, which costs a deep network a few
# 1e-6 of it; another mean, temperature or weight shows far above.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes
    ----------
    images : int
        How many were compared.
    difference : float
        The largest between two logits.
    allowed : float
        What rounding may cause.
    """

    images: int
    difference: float
    allowed: float


def probes(shape: tuple[int, int, int]) -> torch.Tensor:
    """The images that are compared, always the same: black, white, and uniform noise.

    Parameters
    ----------
    shape : tuple of int
        (C, H, W).

    Returns
    -------
    Tensor of shape (16, C, H, W), dtype float32, in [0, 1]
    """
    count = sum(_BATCHES)
    images = rng.uniform(rng.stream_key(0, "export-probes"), torch.arange(count), shape)
    # Not at the edges of a batch, so that the small batches hold noise, which tells more.
    images[-3], images[-2] = 0.0, 1.0
    return images


@torch.no_grad()
def require_agreement(model: Classifier, answer: Answer, where: object) -> Agreement:
    """Refuse what does not give the classifier's logits, for batches of several sizes.

    Parameters
    ----------
    model : Classifier
        On the CPU, in evaluation mode.
    answer : callable
        What was written, loaded again: images of shape (B, C, H, W), float32, in [0, 1] to
        logits of shape (B, K).
    where : object
        What was written, for the message.

    Returns
    -------
    Agreement

    Raises
    ------
    ModelError
        When shapes or values differ, beyond what the order of sums can cause, or the
        classifier's own logits are NaN or infinite.
    """
    batches = _batches(probes(model.shape))
    expected, found = [model(batch) for batch in batches], [answer(batch) for batch in batches]
    for wanted, logits in zip(expected, found, strict=True):
        if not bool(wanted.isfinite().all()):
            raise ModelError(model.architecture, "gives logits that are NaN or infinite")
        if logits.shape != wanted.shape:
            raise ModelError(
                where,
                f"shape of the logits of {len(wanted)} images",
                expected=tuple(wanted.shape),
                found=tuple(logits.shape),
            )
    allowed = _TOLERANCE * float(torch.cat(expected).abs().max())
    difference = float((torch.cat(found) - torch.cat(expected)).abs().max())
    # Written so that NaN is refused, too.
    if not difference <= allowed:
        raise ModelError(
            where,
            "gives other logits than the checkpoint, and was not published",
            expected=f"a difference of at most {allowed:.2g}",
            found=f"{difference:.2g}",
            remedy="Its network cannot be written in this form; try another --to.",
        )
    return Agreement(sum(_BATCHES), difference, allowed)


def _batches(images: torch.Tensor) -> list[torch.Tensor]:
    ends = list(accumulate(_BATCHES, initial=0))
    return [images[begin:end] for begin, end in pairwise(ends)]
