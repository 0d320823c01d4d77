"""Whether a robust accuracy can be believed: the field's checks for gradient masking.

A model can look robust because attacks cannot find their way, not because there is none. The
checks are those of Athalye et al. 2018 (section 3.1), Carlini et al. 2019 (section 5) and
Croce and Hein 2020. Each counts images on which something happened that should not, and fails
when even the lower end of the share's 95 % interval is above a limit: limits that models known
to be masked exceed and normally adversarially trained ones do not, both of which are tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline import rng
from pipeline.attacks import Ball, pgd
from pipeline.errors import ModelError
from pipeline.evaluation import autoattack
from pipeline.evaluation.accuracy import wilson_interval
from pipeline.evaluation.pgd import (
    attack_images,
    correct_when_clean,
    left_standing,
    margin,
    scaled,
    survivors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.evaluation.pgd import Attack, LossOfLabels
    from pipeline.evaluation.selection import TestImages
    from pipeline.models.classifier import Classifier

__all__ = ["AuditSettings", "Finding", "audit"]

# Of attacks that should not differ.
_SLACK = 0.02
# Of attacks that differ in their loss alone: adversarially trained models have up to about four
# points between cross entropy and margin losses (LTD's own logs: 60.61 and 56.94 %).
_LOSS_GAP = 0.06
_DEAD_GRADIENTS = 0.05


@dataclass(frozen=True)
class AuditSettings:
    """How hard the checks try.

    Attributes
    ----------
    eps : float
        Radius of the L-infinity ball, pixel units.
    seed : int
    batch_size : int
    steps, restarts : int
        Of PGD.
    square_queries : int
        Of the black-box attack.
    """

    eps: float
    seed: int = 0
    batch_size: int = 256
    steps: int = 100
    restarts: int = 5
    square_queries: int = 1000


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes
    ----------
    name : str
    count, n : int
        On how many of so many images it happened.
    limit : float
        The share may truly be so high.
    meaning : str
        What happened, and what a failure means.
    """

    name: str
    count: int
    n: int
    limit: float
    meaning: str

    @property
    def share(self) -> float:
        """Of the images."""
        return self.count / self.n

    @property
    def low(self) -> float:
        """The lower end of the share's 95 % interval (Wilson)."""
        return wilson_interval(self.count, self.n)[0]

    @property
    def passed(self) -> bool:
        """Whether the share may be within its limit."""
        return self.low <= self.limit


class _Bench:
    """One model on the test under every attack that the checks compare."""

    def __init__(
        self,
        model: Classifier,
        test: TestImages,
        settings: AuditSettings,
        tick: Callable[[str, int], None],
    ) -> None:
        self.model, self.test, self.settings, self._tick = model, test, settings, tick
        self.right = correct_when_clean(model, test, settings.batch_size)

    def finding(self, name: str, happened: torch.Tensor, limit: float, meaning: str) -> Finding:
        return Finding(name, int(happened.sum()), len(self.test), limit, meaning)

    def pgd(
        self,
        name: str,
        *,
        standing: torch.Tensor | None = None,
        eps: float | None = None,
        steps: int | None = None,
        restarts: int = 1,
        loss: LossOfLabels | None = None,
    ) -> torch.Tensor:
        """What is left of the standing images, or of all that are right when clean."""
        return survivors(
            self.model,
            self.test,
            self.right if standing is None else standing,
            eps=self.settings.eps if eps is None else eps,
            steps=steps or self.settings.steps,
            restarts=restarts,
            seed=self.settings.seed,
            batch_size=self.settings.batch_size,
            tick=partial(self._tick, name),
            loss=loss,
        )

    def fgsm(self, standing: torch.Tensor) -> torch.Tensor:
        """What one step of full length from the image itself leaves (Goodfellow et al. 2015)."""
        eps = self.settings.eps

        def step(images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            del index
            opposed, ball = scaled()(labels), Ball("linf", eps)
            return pgd(self.model, images, opposed, start=images, ball=ball, step_size=eps, steps=1)

        return self._left("FGSM", standing, step)

    def transfer(self, standing: torch.Tensor, source: Classifier) -> torch.Tensor:
        """What another model's attack leaves."""
        key = rng.stream_key(self.settings.seed, "evaluation-start", 0)
        eps, steps = self.settings.eps, self.settings.steps
        attack = partial(attack_images, source, eps=eps, steps=steps, key=key)
        return self._left("transfer", standing, attack)

    def _left(self, name: str, standing: torch.Tensor, attack: Attack) -> torch.Tensor:
        return left_standing(
            self.model,
            self.test,
            standing,
            attack,
            batch_size=self.settings.batch_size,
            tick=partial(self._tick, name),
        )

    def package(self, attack: str) -> torch.Tensor:
        """An attack of AutoAttack on all images that are right when clean."""
        adversary = autoattack.build(
            self.model, self.test.device, self.settings.eps, self.settings.seed
        )
        adversary.square.n_queries = self.settings.square_queries
        standing = self.right.clone()
        # What the package warns of is what the checks measure.
        with autoattack.collected_flags(adversary, []):
            for rows in self.test.batches(standing.nonzero().flatten(), self.settings.batch_size):
                left = autoattack.attack_batch(adversary, attack, self.test, rows)
                standing[rows] = torch.tensor(left, dtype=torch.bool)
                self._tick(attack, len(rows))
        return standing

    def dead_gradients(self) -> torch.Tensor:
        """Images whose input gradient is all zeros, or not finite, where an attack starts."""
        dead = torch.zeros(len(self.test), dtype=torch.bool)
        for rows in self.test.batches(torch.arange(len(self.test)), self.settings.batch_size):
            images, labels, _ = self.test.take(rows)
            with torch.enable_grad():
                point = images.requires_grad_()
                loss = functional.cross_entropy(self.model(point), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, point)
            flat = gradient.flatten(1)
            alive = torch.isfinite(flat).all(dim=1) & (flat != 0).any(dim=1)
            dead[rows] = ~alive.cpu()
        return dead

    @torch.no_grad()
    def inconsistent(self) -> torch.Tensor:
        """Images that are answered differently when asked again, or in another order."""
        different = torch.zeros(len(self.test), dtype=torch.bool)
        for rows in self.test.batches(torch.arange(len(self.test)), self.settings.batch_size):
            images, _, _ = self.test.take(rows)
            once, again = self.model(images), self.model(images)
            turned = self.model(images.flip(0)).flip(0)
            # Rounding depends on how threads share the work; a defence has to do more.
            tolerance = 1e-3 * once.abs().amax().clamp(min=1.0)
            apart = torch.maximum((once - again).abs(), (once - turned).abs()).amax(dim=1)
            different[rows] = (apart > tolerance).cpu()
        return different


def audit(
    model: Classifier,
    test: TestImages,
    settings: AuditSettings,
    *,
    sources: Mapping[str, Classifier] | None = None,
    tick: Callable[[str, int], None],
) -> list[Finding]:
    """Run all checks; the model is believed when every finding has passed.

    Parameters
    ----------
    model : Classifier
        In evaluation mode, on its device.
    test : TestImages
    settings : AuditSettings
    sources : dict of str to Classifier, optional
        Other models of the same images, whose adversarial images are tried on this one.
    tick : callable
        Called with the attack's name and the number of images just done.

    Raises
    ------
    ModelError
        When the model knows nothing of the clean images.
    """
    bench = _Bench(model, test, settings, tick)
    _require_knowledge(bench)
    plain = bench.pgd(f"PGD-{settings.steps}")
    by_loss, strongest = _losses(bench, plain)
    return [
        *_soundness(bench),
        *_strength(bench, plain),
        *by_loss,
        *_black_box(bench, strongest, sources or {}),
        _radii(bench),
    ]


def _require_knowledge(bench: _Bench) -> None:
    hits, n = int(bench.right.sum()), len(bench.test)
    if wilson_interval(hits, n)[0] <= 1.0 / bench.model.num_classes:
        raise ModelError(
            "model",
            "is no better than chance on the clean images: there is nothing to audit",
            found=f"{hits} of {n} right",
            remedy="Look at its normalisation and at the order of its classes.",
        )


def _soundness(bench: _Bench) -> list[Finding]:
    return [
        bench.finding(
            "deterministic",
            bench.inconsistent(),
            0.0,
            "answered differently when asked twice or in another order: "
            "the gradient of one answer says little of the next",
        ),
        bench.finding(
            "live gradients",
            bench.dead_gradients(),
            _DEAD_GRADIENTS,
            "have an input gradient that is zero or not finite: "
            "gradient attacks have nothing to follow",
        ),
    ]


def _strength(bench: _Bench, plain: torch.Tensor) -> list[Finding]:
    steps, restarts = bench.settings.steps, bench.settings.restarts
    by_restarts = bench.pgd(f"PGD-{steps} x {restarts}", standing=plain, restarts=restarts)
    harder = bench.pgd(f"PGD-{5 * steps}", standing=by_restarts, steps=5 * steps)
    return [
        bench.finding(
            "iterative beats single-step",
            plain & ~bench.fgsm(plain),
            _SLACK,
            f"broken by FGSM and not by PGD-{steps}: the loss surface misleads",
        ),
        bench.finding(
            "more effort gains little",
            plain & ~harder,
            _LOSS_GAP,
            f"broken only by {restarts} restarts or five times the steps: "
            f"PGD-{steps} does not converge",
        ),
        bench.finding(
            "unbounded attack breaks all",
            bench.pgd("unbounded", eps=1.0),
            _SLACK,
            "stand although every pixel may take any value: it is the attack that fails",
        ),
    ]


def _losses(bench: _Bench, plain: torch.Tensor) -> tuple[list[Finding], torch.Tensor]:
    # Also gives what stands under the strongest white-box attack, which black-box ones have to
    # be compared with: Square maximises a margin, as the last two do.
    strongest = bench.pgd("margin loss", standing=plain, loss=margin)
    found = [
        bench.finding(
            f"logits times {factor:g}",
            plain & ~bench.pgd(f"logits x {factor:g}", standing=plain, loss=scaled(factor)),
            _LOSS_GAP,
            "broken only when the attack scales the logits: the softmax hides the gradient",
        )
        for factor in (0.01, 0.1, 10.0, 100.0)
    ]
    found.append(
        bench.finding(
            "margin loss",
            plain & ~strongest,
            _LOSS_GAP,
            "broken only by the loss of Carlini and Wagner: the cross entropy misleads",
        )
    )
    # The targeted DLR loss divides by a difference of the first and the fourth logit.
    if bench.model.num_classes >= 4:
        first, second = (bench.package(attack) for attack in ("apgd-ce", "apgd-t"))
        found.append(
            bench.finding(
                "APGD-T against APGD-CE",
                first & ~second,
                _LOSS_GAP,
                "broken by the targeted DLR loss and not by the cross entropy",
            )
        )
        strongest = strongest & first & second
    return found, strongest


def _black_box(
    bench: _Bench, strongest: torch.Tensor, sources: Mapping[str, Classifier]
) -> list[Finding]:
    found = [
        bench.finding(
            "white box beats Square",
            strongest & ~bench.package("square"),
            _SLACK,
            "broken by a search without gradients and not by any gradient",
        )
    ]
    return found + [
        bench.finding(
            f"white box beats transfer from {name}",
            strongest & ~bench.transfer(strongest, source),
            _SLACK,
            "broken by another model's attack and not by the model's own",
        )
        for name, source in sources.items()
    ]


def _radii(bench: _Bench) -> Finding:
    eps = bench.settings.eps
    grid = [eps * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0) if eps * factor <= 1.0]
    standing = [bench.pgd("curve over eps", eps=radius, steps=20) for radius in grid]
    risen = torch.stack([late & ~early for early, late in pairwise(standing)])
    return bench.finding(
        "accuracy falls with eps",
        risen.any(dim=0),
        _SLACK,
        "broken within a ball and not within a larger one, which holds it",
    )
