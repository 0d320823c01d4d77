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

from ltd_pipe import rng
from ltd_pipe.attacks import Ball, input_gradient
from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation import attacks
from ltd_pipe.evaluation.attacks import attack_images, margin, scaled, single_step, survivors
from ltd_pipe.evaluation.bench import Bench, silent
from ltd_pipe.evaluation.input_scale import weak_source
from ltd_pipe.evaluation.results import SLACK, Finding, LossSurface
from ltd_pipe.evaluation.robustness import automatic_curve, largest_radius
from ltd_pipe.evaluation.soundness import PROBED, apart, in_halves, probes, require_evaluated
from ltd_pipe.evaluation.statistics import beats_chance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ltd_pipe.attacks import Norm
    from ltd_pipe.evaluation.attacks import LossOfLabels
    from ltd_pipe.evaluation.bench import TestImages, Tick
    from ltd_pipe.evaluation.robustness import Curve
    from ltd_pipe.models.classifier import Classifier


# --- The loss around images: along the gradient, and along a random direction.
#
# Where attacks can be believed it is smooth, and the gradient leads up faster than chance does. A
# surface that is flat, or rough, along the gradient is what masking looks like.


_IMAGES = 16
# Both axes reach two radii to each side: what is beyond the ball shows how the surface goes on.
_REACH, _STEPS = 2.0, 10


@torch.no_grad()
def loss_surface(bench: Bench, ball: Ball, right: torch.Tensor) -> LossSurface:
    """Measure the loss around up to 16 images that are right when clean.

    Parameters
    ----------
    bench : Bench
    ball : Ball
        Its norm decides what a direction is: signs, or a unit vector.
    right : Tensor of shape (n,), dtype bool
        One image at least.
    """
    rows = right.nonzero().flatten()[:_IMAGES]
    images, labels, index = bench.test.take(rows)
    up = _direction(ball, input_gradient(bench.model, images, scaled()(labels)))
    key = rng.stream_key(bench.seed, "loss-surface")
    side = _direction(ball, rng.normal(key, index, tuple(images.shape[1:])))

    def loss(along: float, across: float) -> torch.Tensor:
        at = (images + along * up + across * side).clamp(0.0, 1.0)
        return functional.cross_entropy(bench.model(at).float(), labels, reduction="none")

    offsets = [ball.eps * _REACH * step / _STEPS for step in range(-_STEPS, _STEPS + 1)]
    # NaN and infinity, which a masked model may give, have no place in JSON.
    grid = [
        [float(loss(along, across).mean().nan_to_num()) for across in offsets] for along in offsets
    ]
    here, gradient, random = loss(0.0, 0.0), loss(ball.eps, 0.0), loss(0.0, ball.eps)
    return LossSurface(
        what="mean cross entropy around images that are right when clean; loss[i][j] is at "
        "offsets[i] along the gradient's direction and offsets[j] along a random one, in "
        "pixel units of the norm",
        n=len(rows),
        offsets=tuple(offsets),
        loss=tuple(map(tuple, grid)),
        rises=float((gradient > here).float().mean()),
        beats_random=float((gradient > random).float().mean()),
    )


def _direction(ball: Ball, vectors: torch.Tensor) -> torch.Tensor:
    return ball.step_(torch.zeros_like(vectors), vectors, 1.0)


# --- Whether a robust accuracy can be believed: the field's checks for gradient masking.


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
        Radius of the ball, pixel units.
    seed : int
    batch_size : int
    steps, restarts : int
        Of PGD.
    square_queries : int
        Of the black-box attack.
    norm : {"linf", "l2"}
        Of the ball.
    """

    eps: float
    seed: int = 0
    batch_size: int = 256
    steps: int = 100
    restarts: int = 5
    square_queries: int = 1000
    norm: Norm = "linf"


class _Checks:
    """One model under every attack that the checks compare."""

    def __init__(self, bench: Bench, settings: AuditSettings) -> None:
        self.bench, self.settings = bench, settings
        self.model, self.test = bench.model, bench.test
        self.ball = Ball(settings.norm, settings.eps)
        attacks.require_possible(self.model.shape, self.ball, "standard")
        rows = torch.arange(len(self.test))
        self.right = bench.answers("clean", rows, title="clean").right(self.test.labels)

    def finding(self, name: str, happened: torch.Tensor, limit: float, meaning: str) -> Finding:
        count, n = int(happened.sum()), len(self.test)
        return Finding(name=name, count=count, n=n, limit=limit, meaning=meaning)

    def pgd(
        self,
        name: str,
        *,
        standing: torch.Tensor | None = None,
        eps: float | None = None,
        steps: int | None = None,
        restarts: range = range(1),
        loss: LossOfLabels | None = None,
    ) -> torch.Tensor:
        """What is left of the standing images, or of all that are right when clean."""
        return survivors(
            self.bench,
            name,
            self.right if standing is None else standing,
            ball=self.ball if eps is None else Ball(self.settings.norm, eps),
            steps=steps or self.settings.steps,
            restarts=restarts,
            loss=loss,
        )

    def fgsm(self, standing: torch.Tensor) -> torch.Tensor:
        """What one step of full length from the image itself leaves."""
        step = partial(single_step, self.model, ball=self.ball)
        return self.bench.standing("FGSM", standing, step, title="FGSM")

    def transfer(self, standing: torch.Tensor, source: Classifier) -> torch.Tensor:
        """What another model's attack leaves."""
        key, steps = rng.stream_key(self.settings.seed, "evaluation-start", 0), self.settings.steps
        attack = partial(attack_images, source, ball=self.ball, steps=steps, key=key)
        return self.bench.standing("transfer", standing, attack, title="transfer")

    def package(self, attack: str) -> torch.Tensor:
        """An attack of AutoAttack on all images that are right when clean."""
        adversary = attacks.build(self.bench, self.ball)
        adversary.square.n_queries = self.settings.square_queries
        # What the package warns of is what the checks measure.
        return attacks.run_one(self.bench, adversary, attack, self.right, [])

    def dead_gradients(self) -> torch.Tensor:
        """Images whose input gradient is all zeros, or not finite, where an attack starts.

        That is at the image itself, or at the first random point of its ball.
        """
        dead = torch.zeros(len(self.test), dtype=torch.bool)
        key = rng.stream_key(self.settings.seed, "evaluation-start", 0)
        for rows in self.test.batches(torch.arange(len(self.test)), self.settings.batch_size):
            images, labels, index = self.test.take(rows)
            for start in (images, self.ball.uniform(images, index, key)):
                flat = input_gradient(self.model, start, scaled()(labels)).flatten(1)
                alive = torch.isfinite(flat).all(dim=1) & (flat != 0).any(dim=1)
                dead[rows] |= ~alive.cpu()
        return dead

    @torch.no_grad()
    def inconsistent(self) -> torch.Tensor:
        """Images that are answered differently when asked again, or in another order or batch."""
        different = torch.zeros(len(self.test), dtype=torch.bool)
        for rows in self.test.batches(torch.arange(len(self.test)), self.settings.batch_size):
            images, _, _ = self.test.take(rows)
            once = self.model(images)
            # The other order leaves the batch's statistics as they are, and halves change them.
            others = (
                self.model(images),
                self.model(images.flip(0)).flip(0),
                in_halves(self.model, images),
            )
            for again in others:
                different[rows] |= apart(once, again).cpu()
        return different


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes
    ----------
    findings : list of Finding
        The model is believed when every one has passed.
    curve : Curve
        Robust accuracy by eps, to where nothing stands.
    surface : LossSurface
        The loss around some images.
    source_accuracy : dict of str to float
        Of each source on the clean images.
    not_made : list of str
        Checks that could not be made, and why.
    """

    findings: list[Finding]
    curve: Curve
    surface: LossSurface
    source_accuracy: dict[str, float]
    not_made: list[str]


def audit(
    model: Classifier,
    test: TestImages,
    settings: AuditSettings,
    *,
    sources: Mapping[str, Classifier] | None = None,
    tick: Tick = silent,
) -> AuditResult:
    """Run all checks.

    Parameters
    ----------
    model : Classifier
        In evaluation mode, on its device.
    test : TestImages
    settings : AuditSettings
    sources : dict of str to Classifier, optional
        Other models of the same images, whose adversarial images are tried on this one.
    tick : callable
        Told what is under way, the images just done, and at most how many are to come.

    Raises
    ------
    ModelError
        When the model knows nothing of the clean images, is in training mode, or gives logits
        that are not finite.
    """
    images, _, _ = test.take(torch.arange(min(len(test), PROBED)))
    require_evaluated(model, probes(images))
    bench = Bench(model, test, settings.seed, settings.batch_size, tick=tick)
    checks = _Checks(bench, settings)
    _require_knowledge(checks)
    plain = checks.pgd(f"PGD-{settings.steps}")
    by_loss, strongest = _losses(checks, plain)
    known, n = dict[str, int](), len(test)
    for number, (name, source) in enumerate((sources or {}).items(), 1):
        known[name] = int(bench.source_right(source, number).sum())
    doubts = {name: weak_source(name, hits, n, model.num_classes) for name, hits in known.items()}
    fit = {name: each for name, each in (sources or {}).items() if doubts[name] is None}
    findings = [
        *_soundness(checks),
        *_strength(checks, plain),
        *by_loss,
        *_black_box(checks, strongest, fit),
        _radii(checks),
    ]
    curve = automatic_curve(bench, settings.norm, checks.right, settings.eps)
    surface = loss_surface(bench, checks.ball, checks.right)
    accuracies = {name: hits / n for name, hits in known.items()}
    return AuditResult(
        findings, curve, surface, accuracies, [line for line in doubts.values() if line]
    )


def _require_knowledge(checks: _Checks) -> None:
    hits, n = int(checks.right.sum()), len(checks.test)
    if not beats_chance(hits, n, checks.model.num_classes):
        raise ModelError(
            "model",
            "is no better than chance on the clean images: there is nothing to audit",
            found=f"{hits} of {n} right",
            remedy="Train it for longer, take more images, or look at its normalisation and at the "
            "order of its classes.",
        )


def _soundness(checks: _Checks) -> list[Finding]:
    return [
        checks.finding(
            "deterministic",
            checks.inconsistent(),
            0.0,
            "answered differently when asked twice, in another order or in another batch: "
            "the gradient of one answer says little of the next",
        ),
        checks.finding(
            "live gradients",
            checks.dead_gradients(),
            _DEAD_GRADIENTS,
            "have an input gradient that is zero or not finite: "
            "gradient attacks have nothing to follow",
        ),
    ]


def _strength(checks: _Checks, plain: torch.Tensor) -> list[Finding]:
    steps, restarts = checks.settings.steps, checks.settings.restarts
    # The first start is the plain attack's: what stands has withstood it.
    by_restarts = checks.pgd(
        f"PGD-{steps} x {restarts}", standing=plain, restarts=range(1, restarts)
    )
    harder = checks.pgd(f"PGD-{5 * steps}", standing=by_restarts, steps=5 * steps)
    return [
        checks.finding(
            "iterative beats single-step",
            plain & ~checks.fgsm(plain),
            SLACK,
            f"broken by FGSM and not by PGD-{steps}: the loss surface misleads",
        ),
        checks.finding(
            "more effort gains little",
            plain & ~harder,
            _LOSS_GAP,
            f"broken only by {restarts} restarts or five times the steps: "
            f"PGD-{steps} does not converge",
        ),
        checks.finding(
            "unbounded attack breaks all",
            checks.pgd("unbounded", eps=_everything(checks)),
            SLACK,
            "stand although every pixel may take any value: it is the attack that fails",
        ),
    ]


def _losses(checks: _Checks, plain: torch.Tensor) -> tuple[list[Finding], torch.Tensor]:
    # Also gives what stands under the strongest white-box attack, which black-box ones have to
    # be compared with: Square maximises a margin, as the last two do.
    strongest = checks.pgd("margin loss", standing=plain, loss=margin)
    found = [
        checks.finding(
            f"logits times {factor:g}",
            plain & ~checks.pgd(f"logits x {factor:g}", standing=plain, loss=scaled(factor)),
            _LOSS_GAP,
            "broken only when the attack scales the logits: the softmax hides the gradient",
        )
        for factor in (0.01, 0.1, 10.0, 100.0)
    ]
    found.append(
        checks.finding(
            "margin loss",
            plain & ~strongest,
            _LOSS_GAP,
            "broken only by the loss of Carlini and Wagner: the cross entropy misleads",
        )
    )
    # The targeted DLR loss divides by a difference of the first and the fourth logit.
    if checks.model.num_classes >= 4:
        first, second = (checks.package(attack) for attack in ("apgd-ce", "apgd-t"))
        found.append(
            checks.finding(
                "APGD-T against APGD-CE",
                first & ~second,
                _LOSS_GAP,
                "broken by the targeted DLR loss and not by the cross entropy",
            )
        )
        strongest = strongest & first & second
    return found, strongest


def _black_box(
    checks: _Checks, strongest: torch.Tensor, sources: Mapping[str, Classifier]
) -> list[Finding]:
    found = [
        checks.finding(
            "white box beats Square",
            strongest & ~checks.package("square"),
            SLACK,
            "broken by a search without gradients and not by any gradient",
        )
    ]
    return found + [
        checks.finding(
            f"white box beats transfer from {name}",
            strongest & ~checks.transfer(strongest, source),
            SLACK,
            "broken by another model's attack and not by the model's own",
        )
        for name, source in sources.items()
    ]


def _radii(checks: _Checks) -> Finding:
    eps = checks.settings.eps
    factors, largest = (0.25, 0.5, 1.0, 2.0, 4.0), _everything(checks)
    grid = [eps * factor for factor in factors if eps * factor <= largest]
    standing = [checks.pgd("curve over eps", eps=radius, steps=20) for radius in grid]
    risen = torch.stack([late & ~early for early, late in pairwise(standing)])
    return checks.finding(
        "accuracy falls with eps",
        risen.any(dim=0),
        SLACK,
        "broken within a ball and not within a larger one, which holds it",
    )


def _everything(checks: _Checks) -> float:
    return largest_radius(checks.settings.norm, checks.model.shape)
