"""Robust accuracy under PGD with random restarts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline import attacks, rng
from pipeline.attacks import Ball, pgd

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.attacks import LossOfLogits
    from pipeline.evaluation.selection import TestImages
    from pipeline.models.classifier import Classifier

    LossOfLabels = Callable[[torch.Tensor], LossOfLogits]
    Attack = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

__all__ = [
    "attack_images",
    "correct_when_clean",
    "left_standing",
    "margin",
    "scaled",
    "survivors",
]


def scaled(factor: float = 1.0) -> LossOfLabels:
    """The cross entropy of logits times a factor.

    A model whose softmax is saturated in float32 has no gradient; that of its logits divided by
    ten or a hundred has one (Carlini and Wagner 2016 broke defensive distillation so).
    """
    return lambda labels: (
        lambda logits: functional.cross_entropy(factor * logits, labels, reduction="none")
    )


def margin(labels: torch.Tensor) -> LossOfLogits:
    """The margin by which a wrong class wins; see `pipeline.attacks.margin`."""
    return partial(attacks.margin, labels=labels)


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
    loss: LossOfLabels | None = None,
) -> torch.Tensor:
    """PGD on the cross entropy, or another loss of the labels (Madry et al. 2018).

    The step size is 2.5 · eps / steps. With that the attack can reach the ball's surface from
    any start and turn back.
    """
    ball = Ball("linf", eps)
    return pgd(
        model,
        images,
        (loss or scaled())(labels),
        start=ball.uniform(images, index, key),
        ball=ball,
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
    loss: LossOfLabels | None = None,
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
    loss : callable, optional
        What the attack maximises, of the labels; the cross entropy.

    Returns
    -------
    Tensor of shape (n,), dtype bool
    """
    robust = right.clone()
    if eps == 0:
        return robust
    for restart in range(restarts):
        attack = partial(
            attack_images,
            model,
            eps=eps,
            steps=steps,
            key=rng.stream_key(seed, "evaluation-start", restart),
            loss=loss,
        )
        robust = left_standing(model, test, robust, attack, batch_size=batch_size, tick=tick)
    return robust


def left_standing(
    model: Classifier,
    test: TestImages,
    standing: torch.Tensor,
    attack: Attack,
    *,
    batch_size: int,
    tick: Callable[[int], None],
) -> torch.Tensor:
    """Which of some images the model still gets right when they are attacked.

    Parameters
    ----------
    model : Classifier
        In evaluation mode.
    test : TestImages
    standing : Tensor of shape (n,), dtype bool
        The others are not attacked.
    attack : callable
        Maps images, labels and sample indices to adversarial images.
    batch_size : int
    tick : callable
        Called with the number of images done after each batch.

    Returns
    -------
    Tensor of shape (n,), dtype bool
    """
    left = standing.clone()
    for rows in test.batches(standing.nonzero().flatten(), batch_size):
        images, labels, index = test.take(rows)
        attacked = attack(images, labels, index)
        with torch.no_grad():
            left[rows] = (model(attacked).argmax(dim=1) == labels).cpu()
        tick(len(rows))
    return left
