"""AutoAttack (Croce and Hein 2020) by its authors' package, resumable after each batch.

The package's own state file resumes after an interruption with batches of other images, hence
other random starts. Here each attack's batches are the package's own batches, run one by one
and written down, so that an interrupted evaluation ends with the same numbers to the bit.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from pyautoattack import AutoAttack
from pyautoattack.checks import check_square_sr
from torch.nn import functional

from ltd_pipe import attacks, rng
from ltd_pipe.attacks import pgd
from ltd_pipe.errors import ModelError
from ltd_pipe.params.sections import split_attack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ltd_pipe.attacks import Ball, LossOfLogits
    from ltd_pipe.evaluation.bench import Attack, Bench
    from ltd_pipe.evaluation.soundness import Answers
    from ltd_pipe.models.classifier import Classifier


# --- Attacks along the model's own gradient: FGSM, and PGD with random restarts.


if TYPE_CHECKING:
    LossOfLabels = Callable[[torch.Tensor], LossOfLogits]


_LOSSES = {"cross entropy": "PGD", "margin": "CW-PGD"}


@dataclass(frozen=True)
class GradientAttack:
    """One attack on the model's own gradient.

    Attributes
    ----------
    key : str
        How results are filed: letters, digits and `-`.
    loss : {"cross entropy", "margin"}
        What is maximised; margin is max_{k≠y} z_k - z_y (Carlini and Wagner 2017).
    steps, restarts : int
    single_step : bool
        FGSM: one step of the ball's radius from the image itself (Goodfellow et al. 2015). The
        others begin at random points and step by 2.5 · eps / steps.
    """

    key: str
    loss: Literal["cross entropy", "margin"] = "cross entropy"
    steps: int = 1
    restarts: int = 1
    single_step: bool = False

    @property
    def title(self) -> str:
        """What people call it, such as `CW-PGD-100 x 5`."""
        if self.single_step:
            return "FGSM"
        restarts = f" x {self.restarts}" if self.restarts > 1 else ""
        return f"{_LOSSES[self.loss]}-{self.steps}{restarts}"

    def step_size(self, eps: float) -> float:
        """Of each step, in the ball's norm: with it any start reaches the surface and turns."""
        return eps if self.single_step else 2.5 * eps / self.steps

    def facts(self, eps: float) -> dict[str, Any]:
        """Its settings as plain values."""
        return {
            "loss": self.loss,
            "steps": self.steps,
            "restarts": self.restarts,
            "step_size": self.step_size(eps),
        }


def parse_attack(name: str) -> GradientAttack:
    """The attack that a name of `evaluate.attacks` means, such as `pgd-100x5`.

    Raises
    ------
    ValueError
        When it is no such name.
    """
    kind, steps, restarts = split_attack(name)
    if kind == "fgsm":
        return GradientAttack(name, single_step=True)
    return GradientAttack(name, "margin" if kind == "cw" else "cross entropy", steps, restarts)


def scaled(factor: float = 1.0) -> LossOfLabels:
    """The cross entropy of logits times a factor.

    A model whose softmax is saturated in float32 has no gradient; that of its logits divided by
    ten or a hundred has one (Carlini and Wagner 2016 broke defensive distillation so).
    """
    return lambda labels: (
        lambda logits: functional.cross_entropy(factor * logits, labels, reduction="none")
    )


def margin(labels: torch.Tensor) -> LossOfLogits:
    """The margin by which a wrong class wins; see `ltd_pipe.attacks.losses`."""
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


# --- AutoAttack (Croce and Hein 2020) by its authors' package, resumable after each batch.


if TYPE_CHECKING:
    Version = Literal["standard", "rand"]


# Of each version for L-infinity and L2, in its order; rand averages gradients over 20 answers.
_ATTACKS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
# The DLR loss divides by a difference of the first and the third logit, the targeted one by one
# of the first and the fourth.
_FEWEST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
# Square's first L2 perturbation is of tiles of a fifth of the image's side: pyautoattack divides
# by zero where that is none.
_LEAST_SIDE = 5


@dataclass
class AutoAttackResult:
    """What AutoAttack left standing.

    Attributes
    ----------
    standing : Tensor of shape (n,), dtype bool
    accuracy : dict of str to float
        Accuracy left after each attack, in the order they ran.
    flags : list of str
        AutoAttack's own warnings that its verdict may be too kind.
    """

    standing: torch.Tensor
    accuracy: dict[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


class _Flags(logging.Handler):
    """Collects the warnings of the package's checks."""

    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._into:
            self._into.append(message)


class _Watched:
    """A model that remembers whether it gave NaN or infinity, which the package reads as class 0.

    Nothing waits for the device until it is asked.
    """

    def __init__(self, model: Classifier) -> None:
        self._model = model
        self._lost = torch.zeros((), dtype=torch.bool)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(images)
        # FAB divides by the gradient: points that it loses so itself are not the model's fault.
        asked = torch.isfinite(images).flatten(1).all(dim=1)
        lost = asked & ~torch.isfinite(logits.detach()).all(dim=1)
        self._lost = self._lost.to(lost.device) | lost.any()
        return logits

    def require_finite(self, attack: str) -> None:
        """Refuse the model when it gave such logits.

        Raises
        ------
        ModelError
        """
        if self._lost:
            raise ModelError(
                "model",
                f"gives logits that are NaN or infinite under AutoAttack's {attack.upper()}",
                remedy="No attack can be believed that meets such a point.",
            )


def package_version() -> str:
    """Name and version of the package, as results state it."""
    return f"pyautoattack {importlib.metadata.version('pyautoattack')}"


def require_possible(shape: tuple[int, int, int], ball: Ball, version: Version) -> None:
    """Refuse images that one of the version's attacks cannot take.

    Parameters
    ----------
    shape : tuple of int
        (C, H, W) of the images.
    ball : Ball
    version : {"standard", "rand"}

    Raises
    ------
    ModelError
        For images that are too small for Square in L2.
    """
    height, width = shape[1:]
    if ball.norm != "l2" or "square" not in _ATTACKS[version] or min(shape[1:]) >= _LEAST_SIDE:
        return
    raise ModelError(
        "AutoAttack",
        "images are too small for its attack Square in L2",
        expected=f"{_LEAST_SIDE} pixels a side or more",
        found=f"{height}×{width}",
        remedy="Measure with --norm linf, or in L2 without AutoAttack: evaluate.autoattack: none.",
    )


def run_autoattack(
    bench: Bench,
    ball: Ball,
    right: torch.Tensor,
    version: Version = "standard",
) -> AutoAttackResult:
    """Run a version's attacks, each on what those before it left.

    Parameters
    ----------
    bench : Bench
        Its batch size is part of the result: the package seeds each batch anew.
    ball : Ball
    right : Tensor of shape (n,), dtype bool
        Right when clean.
    version : {"standard", "rand"}
        rand is for models that answer at random; for all others it is the weaker one.

    Returns
    -------
    AutoAttackResult
    """
    adversary = build(bench, ball, version)
    attacks, flags = attacks_of(version, bench.model.num_classes)
    result = AutoAttackResult(right.clone(), flags=flags)
    for attack in attacks:
        result.standing = run_one(bench, adversary, attack, result.standing, result.flags)
        result.accuracy[attack] = int(result.standing.sum()) / max(len(right), 1)
        bench.finished(title_of(attack), result.accuracy[attack])
    with _collected_flags(adversary, result.flags):
        check_square_sr(result.accuracy, logger=adversary.logger)
    return result


def attacks_of(version: Version, num_classes: int) -> tuple[list[str], list[str]]:
    """The version's attacks that so few classes allow, and a flag for each of the others."""
    able = {name: num_classes >= _FEWEST_CLASSES.get(name, 2) for name in _ATTACKS[version]}
    flags = [
        f"{name.upper()} needs at least {_FEWEST_CLASSES[name]} classes and was left out."
        for name in able
        if not able[name]
    ]
    return [name for name in able if able[name]], flags


def title_of(attack: str) -> str:
    """What people call one of the package's attacks."""
    return f"AutoAttack {attack.upper()}"


def build(bench: Bench, ball: Ball, version: Version = "standard") -> Any:
    """The package's AutoAttack for a bench's model and a ball."""
    logger = logging.getLogger("auto-attack")
    logger.propagate = False
    adversary = AutoAttack(
        _Watched(bench.model),
        norm={"linf": "Linf", "l2": "L2"}[ball.norm],
        eps=ball.eps,
        seed=bench.seed,
        version=version,
        device=bench.test.device,
    )
    if bench.model.num_classes < 10:
        # Targets are the other classes; the package's default of 9 needs ten.
        adversary.apgd_targeted.n_target_classes = bench.model.num_classes - 1
        adversary.fab.n_target_classes = bench.model.num_classes - 1
    return adversary


def run_one(
    bench: Bench, adversary: Any, attack: str, before: torch.Tensor, flags: list[str]
) -> torch.Tensor:
    """What one attack leaves of some images.

    Parameters
    ----------
    bench : Bench
    adversary
        From `build`.
    attack : str
        One of the package's names.
    before : Tensor of shape (n,), dtype bool
        The others are not attacked.
    flags : list of str
        Gets the package's warnings that are not in it yet.

    Returns
    -------
    Tensor of shape (n,), dtype bool
    """
    left, rows = before.clone(), before.nonzero().flatten()
    work = partial(_attack_batch, bench, adversary, attack)
    title = title_of(attack)
    for part, record in bench.records(f"autoattack-{attack}", rows, work, title=title):
        left[part] = torch.tensor(record["left"], dtype=torch.bool)
        flags += [flag for flag in record["flags"] if flag not in flags]
    return left


def _attack_batch(bench: Bench, adversary: Any, attack: str, rows: torch.Tensor) -> dict[str, Any]:
    images, labels, _ = bench.test.take(rows)
    adversary.attacks_to_run = [attack]
    flags: list[str] = []
    with _collected_flags(adversary, flags):
        # The second result is what the model said when the package judged each image.
        _, said = adversary.run_standard_evaluation(images, labels, batch_size=len(rows))
    adversary.model.require_finite(attack)
    return {"left": (said == labels).int().tolist(), "flags": flags}


@contextlib.contextmanager
def _collected_flags(adversary: Any, into: list[str]) -> Iterator[None]:
    """Collect the package's warnings in a list instead of printing them."""
    handler = _Flags(into)
    adversary.logger.addHandler(handler)
    try:
        yield
    finally:
        adversary.logger.removeHandler(handler)
