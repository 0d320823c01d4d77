"""Robust accuracy under PGD with random restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline import rng
from pipeline.attacks import pgd, uniform_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.evaluation.selection import TestImages
    from pipeline.models.classifier import Classifier

__all__ = ["attack_images", "correct_when_clean", "survivors"]


@torch.no_grad()
def correct_when_clean(model: Classifier, test: TestImages, batch_size: int) -> torch.Tensor:
    """Which images the model gets right without an attack: shape (n,), dtype bool, CPU."""
    right = torch.zeros(len(test), dtype=torch.bool)
    for rows in test.batches(torch.arange(len(test)), batch_size):
        images, labels, _ = test.take(rows)
        right[rows] = (model(images).argmax(dim=1) == labels).cpu()
    return right


def attack_images(
    model: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    index: torch.Tensor,
    *,
    eps: float,
    steps: int,
    key: int,
) -> torch.Tensor:
    """PGD on the cross entropy with step size 2.5 · eps / steps (Madry et al. 2018).

    With that size the attack can reach the ball's surface from any start and turn back.
    """
    return pgd(
        model,
        images,
        lambda logits: functional.cross_entropy(logits, labels, reduction="none"),
        start=uniform_start(images, index, eps, key),
        eps=eps,
        step_size=2.5 * eps / steps,
        steps=steps,
    )


def survivors(
    model: Classifier,
    test: TestImages,
    right: torch.Tensor,
    *,
    eps: float,
    steps: int,
    restarts: int,
    seed: int,
    batch_size: int,
    tick: Callable[[int], None],
) -> torch.Tensor:
    """Images that stay right under every restart of PGD.

    Parameters
    ----------
    model : Classifier
        In evaluation mode.
    test : TestImages
    right : Tensor of shape (n,), dtype bool
        Right when clean; the others are not attacked.
    eps : float
        Pixel units; 0 leaves the images as they are.
    steps, restarts : int
    seed : int
    batch_size : int
    tick : callable
        Called with the number of images done after each batch of each restart.

    Returns
    -------
    Tensor of shape (n,), dtype bool
    """
    robust = right.clone()
    if eps == 0:
        return robust
    for restart in range(restarts):
        key = rng.stream_key(seed, "evaluation-start", restart)
        for rows in test.batches(robust.nonzero().flatten(), batch_size):
            images, labels, index = test.take(rows)
            attacked = attack_images(model, images, labels, index, eps=eps, steps=steps, key=key)
            with torch.no_grad():
                robust[rows] = (model(attacked).argmax(dim=1) == labels).cpu()
            tick(len(rows))
    return robust
