"""The attacks of an evaluation: FGSM and PGD on the model's own gradient, and AutoAttack.

AutoAttack (Croce and Hein 2020) is its authors' package. The package's own state file resumes
after an interruption with batches of other images, hence other random starts. Here each attack's
batches are the package's own batches, run one by one and written down, so that an interrupted
evaluation ends with the same numbers to the bit.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from pyautoattack import AutoAttack
from pyautoattack.checks import check_square_sr
from torch.nn import functional

from ltd_pipe import attacks, rng
from ltd_pipe.attacks import LossOfLogits
from ltd_pipe.errors import ModelError
from ltd_pipe.params.sections import split_attack

if TYPE_CHECKING:
    from ltd_pipe.attacks import Ball
    from ltd_pipe.evaluation.bench import Answers, Attack, Bench
    from ltd_pipe.models.classifier import Classifier

# What an attack maximises, given the labels.
LossOfLabels = Callable[[torch.Tensor], LossOfLogits]


# --- Attacks along the model's own gradient: FGSM, and PGD with random restarts.


def cross_entropy(factor: float = 1.0) -> LossOfLabels:
    """The cross entropy of logits times a factor.

    A model whose softmax is saturated in float32 has no gradient; that of its logits divided by
    ten or a hundred has one (Carlini and Wagner 2016 broke defensive distillation so).
    """
    return lambda labels: (
        lambda logits: functional.cross_entropy(factor * logits, labels, reduction="none")
    )


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
        others begin at random points and step by 2.5 · eps / steps. With that they can reach the
        ball's surface from any start and turn back (Madry et al. 2018).
    factor : float
        Of the logits in the cross entropy.
    """

    key: str
    loss: Literal["cross entropy", "margin"] = "cross entropy"
    steps: int = 1
    restarts: int = 1
    single_step: bool = False
    factor: float = 1.0

    @property
    def title(self) -> str:
        """What people call it, such as `CW-PGD-100 x 5`."""
        if self.single_step:
            return "FGSM"
        name = "CW-PGD" if self.loss == "margin" else "PGD"
        return f"{name}-{self.steps}" + (f" x {self.restarts}" if self.restarts > 1 else "")

    def facts(self, eps: float) -> dict[str, Any]:
        """Its settings as plain values."""
        step_size = eps if self.single_step else 2.5 * eps / self.steps
        counts = {"steps": self.steps, "restarts": self.restarts}
        return {"loss": self.loss, **counts, "step_size": step_size}

    def on(self, model: Classifier, ball: Ball, key: int) -> Attack:
        """One start on a model, at the random points that a key decides."""

        def attack(images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            of_logits = cross_entropy(self.factor)(labels)
            if self.loss == "margin":
                of_logits = partial(attacks.margin, labels=labels)
            return attacks.pgd(
                model,
                images,
                of_logits,
                start=images if self.single_step else ball.uniform(images, index, key),
                ball=ball,
                step_size=self.facts(ball.eps)["step_size"],
                steps=self.steps,
            )

        return attack


def parse_attack(name: str) -> GradientAttack:
    """The attack that a name of `evaluate.attacks` means, such as `pgd-100x5`."""
    kind, steps, restarts = split_attack(name)
    if kind == "fgsm":
        return GradientAttack(name, single_step=True)
    return GradientAttack(name, "margin" if kind == "cw" else "cross entropy", steps, restarts)


def start_key(seed: int, restart: int = 0) -> int:
    """What the random points of a restart of PGD are drawn with."""
    return rng.stream_key(seed, "evaluation-start", restart)


def run(
    bench: Bench,
    attack: GradientAttack,
    ball: Ball,
    before: torch.Tensor,
    title: str = "",
    *,
    first: int = 0,
    all_images: bool = False,
) -> tuple[torch.Tensor, list[Answers]]:
    """Images that stay right under an attack's restarts, from the `first` on; and all answers.

    Only those of `before`, bool of shape (n,), are attacked, and none with a radius of 0. With
    `all_images` the first restart attacks the others, too: calibration under attack is that of all
    images, not of those that the model knows.
    """
    correct, title = before.clone(), title or attack.title
    found: list[Answers] = []
    for restart in range(first, attack.restarts) if ball.eps else ():
        rows = torch.ones_like(correct) if all_images and not restart else correct
        started = f"{title.partition(' x ')[0]} start {restart + 1} of {attack.restarts}"
        answers = bench.answers(
            f"{attack.key}.{restart}",
            rows.nonzero().flatten(),
            attack.on(bench.model, ball, start_key(bench.seed, restart)),
            title=started if attack.restarts > 1 else title,
            later=(attack.restarts - 1 - restart) * int(correct.sum()),
        )
        correct = correct & answers.correct(bench.test.labels)
        found.append(answers)
    return correct, found


# --- AutoAttack by its authors' package, resumable after each batch.


Version = Literal["standard", "rand"]

# Of each version for L-infinity and L2, in its order; rand averages gradients over 20 answers.
_ATTACKS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr")}
# The DLR loss divides by a difference of the first and the third logit, the targeted one by one
# of the first and the fourth.
_FEWEST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


@dataclass
class AutoAttackResult:
    """The images that stay right under AutoAttack (n booleans)."""

    correct: torch.Tensor
    # Left after each attack, in the order they ran.
    accuracy: dict[str, float] = field(default_factory=dict)
    # AutoAttack's own warnings that its verdict may be too kind.
    flags: list[str] = field(default_factory=list)


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
        """Refuse the model when it gave such logits."""
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
    """Refuse images that Square in L2, one of the version's attacks, cannot take.

    Its first perturbation is of square tiles, a fifth of the height each, from an offset by the
    height alone: pyautoattack fails where there are none, or the last, if they are larger than
    one pixel, would leave the image.
    """
    height, width = shape[1:]
    if ball.norm != "l2" or "square" not in _ATTACKS[version]:
        return
    tile = height // 5
    offset = (height - 5 * tile) // 2
    if tile == 1 or (
        tile and all(offset + side // tile * tile <= side for side in (height, width))
    ):
        return
    raise ModelError(
        "AutoAttack",
        "images are of a size that its attack Square in L2 cannot take",
        found=f"{height}×{width}",
        remedy="Measure with --norm linf, or in L2 without AutoAttack: evaluate.autoattack: none.",
    )


def run_autoattack(
    bench: Bench, ball: Ball, clean: torch.Tensor, version: Version = "standard"
) -> AutoAttackResult:
    """Run a version's attacks on images that are right when clean, each on what is left.

    The batch size is part of the result: the package seeds each batch anew. The version rand is
    for models that answer at random; for all others it is the weaker one.
    """
    adversary = build(bench, ball, version)
    attacks, flags = attacks_of(version, bench.model.num_classes)
    result = AutoAttackResult(clean.clone(), flags=flags)
    for attack in attacks:
        result.correct = run_one(bench, adversary, attack, result.correct, result.flags)
        result.accuracy[attack] = int(result.correct.sum()) / max(len(clean), 1)
        bench.finished(title_of(attack), result.accuracy[attack])
    with _collected_flags(adversary, result.flags):
        check_square_sr(result.accuracy, logger=adversary.logger)
    return result


def attacks_of(version: Version, num_classes: int) -> tuple[list[str], list[str]]:
    """The version's attacks that so few classes allow, and a flag for each of the others."""
    names = _ATTACKS[version]
    unable = [name for name in names if num_classes < _FEWEST_CLASSES.get(name, 2)]
    flags = [
        f"{name.upper()} needs at least {_FEWEST_CLASSES[name]} classes and was left out."
        for name in unable
    ]
    return [name for name in names if name not in unable], flags


def title_of(attack: str) -> str:
    """What people call one of the package's attacks."""
    return f"AutoAttack {attack.upper()}"


def build(bench: Bench, ball: Ball, version: Version = "standard") -> Any:
    """The package's AutoAttack for a bench's model and a ball."""
    logging.getLogger("auto-attack").propagate = False
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
    """Those of the images before that stay right under one attack of an `adversary` from `build`.

    `flags` gets the package's warnings that are not in it yet.
    """

    def work(rows: torch.Tensor) -> dict[str, Any]:
        images, labels, _ = bench.test.take(rows)
        adversary.attacks_to_run = [attack]
        found: list[str] = []
        # FAB calls backward.
        with _collected_flags(adversary, found), attacks.input_gradients_only(bench.model):
            # The second result is what the model said when the package judged each image.
            _, said = adversary.run_standard_evaluation(images, labels, batch_size=len(rows))
        adversary.model.require_finite(attack)
        return {"left": (said == labels).int().tolist(), "flags": found}

    left, rows = before.clone(), before.nonzero().flatten()
    for part, record in bench.records(f"autoattack-{attack}", rows, work, title=title_of(attack)):
        left[part] = torch.tensor(record["left"], dtype=torch.bool)
        flags += [flag for flag in record["flags"] if flag not in flags]
    return left


@contextlib.contextmanager
def _collected_flags(adversary: Any, into: list[str]) -> Iterator[None]:
    """Collect the package's warnings in a list instead of printing them."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() not in into:
                into.append(record.getMessage())

    handler = Collector(logging.WARNING)
    adversary.logger.addHandler(handler)
    try:
        yield
    finally:
        adversary.logger.removeHandler(handler)
