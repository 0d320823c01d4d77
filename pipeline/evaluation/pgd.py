"""Attacks along the model's own gradient: FGSM, and PGD with random restarts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline import attacks, rng
from pipeline.attacks import pgd

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.attacks import Ball, LossOfLogits
    from pipeline.evaluation.answers import Answers
    from pipeline.evaluation.bench import Attack, Bench
    from pipeline.evaluation.plan import GradientAttack
    from pipeline.models.classifier import Classifier

    LossOfLabels = Callable[[torch.Tensor], LossOfLogits]

__all__ = [
    "Outcome",
    "attack_images",
    "margin",
    "run_gradient_attack",
    "scaled",
    "single_step",
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


def attack_images(
    model: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    index: torch.Tensor,
    *,
    ball: Ball,
    steps: int,
    key: int,
    loss: LossOfLabels | None = None,
) -> torch.Tensor:
    """PGD on the cross entropy, or another loss of the labels (Madry et al. 2018).

    The step size is 2.5 · eps / steps. With that the attack can reach the ball's surface from
    any start and turn back.
    """
    return pgd(
        model,
        images,
        (loss or scaled())(labels),
        start=ball.uniform(images, index, key),
        ball=ball,
        step_size=2.5 * ball.eps / steps,
        steps=steps,
    )


def single_step(
    model: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    index: torch.Tensor,
    *,
    ball: Ball,
) -> torch.Tensor:
    """One step of the ball's radius from the image itself (FGSM; Goodfellow et al. 2015)."""
    del index
    opposed = scaled()(labels)
    return pgd(model, images, opposed, start=images, ball=ball, step_size=ball.eps, steps=1)


@dataclass(frozen=True)
class Outcome:
    """What an attack left.

    Attributes
    ----------
    standing : Tensor of shape (n,), dtype bool
    answers : Answers or None
        To all images under the first restart, where they were asked for.
    """

    standing: torch.Tensor
    answers: Answers | None = None


def run_gradient_attack(
    bench: Bench, attack: GradientAttack, ball: Ball, right: torch.Tensor, *, all_images: bool
) -> Outcome:
    """Attack all images that are right when clean.

    Parameters
    ----------
    bench : Bench
    attack : GradientAttack
    ball : Ball
    right : Tensor of shape (n,), dtype bool
    all_images : bool
        The first restart attacks the others, too: calibration under attack is that of all
        images, not of those that the model knows.
    """
    rows = torch.arange(len(right)) if all_images else right.nonzero().flatten()
    loss = margin if attack.loss == "margin" else None
    first: Attack = (
        partial(single_step, bench.model, ball=ball)
        if attack.single_step
        else _from_random_start(bench, ball, attack.steps, 0, loss)
    )
    later = (attack.restarts - 1) * int(right.sum())
    title = title_of_start(attack.title, 0, attack.restarts)
    answers = bench.answers(f"{attack.key}.0", rows, first, title=title, later=later)
    standing = survivors(
        bench,
        attack.key,
        right & answers.right(bench.test.labels),
        ball=ball,
        steps=attack.steps,
        restarts=range(1, attack.restarts),
        loss=loss,
        title=attack.title,
    )
    return Outcome(standing, answers if all_images else None)


def _from_random_start(
    bench: Bench, ball: Ball, steps: int, restart: int, loss: LossOfLabels | None
) -> Attack:
    key = rng.stream_key(bench.seed, "evaluation-start", restart)
    return partial(attack_images, bench.model, ball=ball, steps=steps, key=key, loss=loss)


def survivors(
    bench: Bench,
    name: str,
    before: torch.Tensor,
    *,
    ball: Ball,
    steps: int,
    restarts: range = range(1),
    loss: LossOfLabels | None = None,
    title: str = "",
) -> torch.Tensor:
    """Images that stay right under some restarts of PGD.

    Parameters
    ----------
    bench : Bench
    name : str
        Of the records.
    before : Tensor of shape (n,), dtype bool
        The others are not attacked.
    ball : Ball
        With a radius of 0 the images are left as they are.
    steps : int
    restarts : range
        Their numbers; each begins at random points of its own.
    loss : callable, optional
        What the attack maximises, of the labels; the cross entropy.
    title : str
        What people are told is under way; the name.

    Returns
    -------
    Tensor of shape (n,), dtype bool
    """
    standing = before.clone()
    if ball.eps == 0:
        return standing
    for restart in restarts:
        attack = _from_random_start(bench, ball, steps, restart, loss)
        later = (restarts[-1] - restart) * int(standing.sum())
        started = title_of_start(title or name, restart, restarts.stop)
        standing = bench.standing(f"{name}.{restart}", standing, attack, title=started, later=later)
    return standing


def title_of_start(title: str, restart: int, restarts: int) -> str:
    """What people are told is under way, such as `PGD-50 start 2 of 5`."""
    if restarts == 1:
        return title
    return f"{title.partition(' x ')[0]} start {restart + 1} of {restarts}"
