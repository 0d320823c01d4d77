"""What is proved of a model before an attack relies on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline import rng
from pipeline.errors import ModelError

if TYPE_CHECKING:
    from pipeline.models.classifier import Classifier

__all__ = ["is_random", "probes", "require_sound"]

# Rounding depends on how many images share a call; what a batch does to its images does more.
_TOLERANCE = 1e-3


def probes(images: torch.Tensor) -> torch.Tensor:
    """Images to ask a model about: some real ones, black, white, and uniform noise.

    An attack may come anywhere in [0, 1], where a model can overflow that never does so on
    photographs.

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]

    Returns
    -------
    Tensor of shape (B + 4, C, H, W)
    """
    index = torch.arange(2, device=images.device)
    noise = rng.uniform(rng.stream_key(0, "soundness-probes"), index, tuple(images.shape[1:]))
    ends = torch.stack([torch.zeros_like(noise[0]), torch.ones_like(noise[0])])
    return torch.cat([images, ends, noise])


@torch.no_grad()
def is_random(model: Classifier, images: torch.Tensor) -> bool:
    """Whether the model gives two answers to one question."""
    return not torch.equal(model(images), model(images))


@torch.no_grad()
def require_sound(model: Classifier, images: torch.Tensor, *, random_allowed: bool = False) -> None:
    """Prove, before an attack relies on it, that the model is in a state to be measured.

    Parameters
    ----------
    model : Classifier
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
        Two or more; see `probes`.
    random_allowed : bool
        For AutoAttack's version for models that answer at random.

    Raises
    ------
    ModelError
        When it is in training mode, gives NaN or infinity, two answers to one question, or to
        an image answers that depend on the others in its batch.
    """
    if any(module.training for module in model.modules()):
        raise ModelError("model", "is in training mode", remedy="Call model.eval() first.")
    if not torch.isfinite(model(images)).all():
        raise ModelError(
            "model",
            "gives logits that are NaN or infinite for images in [0, 1]",
            remedy="No attack can be believed that meets such a point.",
        )
    if random_allowed:
        return
    if is_random(model, images):
        raise ModelError(
            "model",
            "gives different logits for the same images",
            remedy="Remove what is random in it, or measure it with evaluate.autoattack: rand.",
        )
    _require_batch_independence(model, images)


def _require_batch_independence(model: Classifier, images: torch.Tensor) -> None:
    together = model(images)
    halves = torch.cat([model(part) for part in images.chunk(2)])
    apart = (together - halves).abs().amax()
    if apart > _TOLERANCE * together.abs().amax().clamp(min=1.0):
        raise ModelError(
            "model",
            "gives an image other logits in another batch",
            found=f"a difference of {float(apart):.3g}",
            remedy="Its normalisation takes the batch's own statistics: no attack on one image "
            "says what it does to the next.",
        )
