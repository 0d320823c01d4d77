"""Whether a robust accuracy can be believed: the field's checks for gradient masking.

A model can look robust because attacks cannot find their way, not because there is none. The
checks are those of Athalye et al. 2018 (section 3.1), Carlini et al. 2019 (section 5) and
Croce and Hein 2020. Each counts images on which something happened that should not, and fails
when even the lower end of the share's 95 % interval is above a limit: limits that models known
to be masked exceed and normally adversarially trained ones do not, both of which are tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ltd_pipe import rng
from ltd_pipe.attacks import Ball, Frozen, input_gradient
from ltd_pipe.distributed import ALONE, World
from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation import attacks, checks
from ltd_pipe.evaluation.attacks import GradientAttack
from ltd_pipe.evaluation.bench import Bench, Journal, silent
from ltd_pipe.evaluation.results import SLACK, EpsPoint, Finding, LossSurface, weak_source
from ltd_pipe.evaluation.robustness import automatic_curve, largest_radius
from ltd_pipe.evaluation.statistics import beats_chance, class_counts

if TYPE_CHECKING:
    from ltd_pipe.attacks import Norm
    from ltd_pipe.evaluation.bench import TestImages, Tick
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.provenance import StateRecord


# --- The loss around images: along the gradient, and along a random direction.
#
# Where attacks can be believed it is smooth, and the gradient leads up faster than chance does. A
# surface that is flat, or rough, along the gradient is what masking looks like.


_IMAGES = 16
# Both axes reach two radii to each side: what is beyond the ball shows how the surface goes on.
_REACH, _STEPS = 2.0, 10


@torch.no_grad()
def loss_surface(bench: Bench, ball: Ball, clean: torch.Tensor) -> LossSurface:
    """Measure the loss around up to 16 of the images that are right when clean, one at least.

    The ball's norm decides what a direction is: signs, or a unit vector.
    """
    rows = clean.nonzero().flatten()[:_IMAGES]
    images, labels, index = bench.test.take(rows)
    up = _direction(ball, input_gradient(bench.model, images, attacks.cross_entropy()(labels)))
    key = rng.stream_key(bench.seed, "loss-surface")
    side = _direction(ball, rng.normal(key, index, tuple(images.shape[1:])))

    def loss(along: float, across: float) -> torch.Tensor:
        at = (images + along * up + across * side).clamp(0.0, 1.0)
        return functional.cross_entropy(bench.model(at).float(), labels, reduction="none")

    offsets = tuple(ball.eps * _REACH * step / _STEPS for step in range(-_STEPS, _STEPS + 1))
    # NaN and infinity, which a masked model may give, have no place in JSON.
    grid = tuple(
        tuple(float(loss(along, across).mean().nan_to_num()) for across in offsets)
        for along in offsets
    )
    here, gradient, random = loss(0.0, 0.0), loss(ball.eps, 0.0), loss(0.0, ball.eps)
    return LossSurface(
        what="mean cross entropy around images that are right when clean; loss[i][j] is at "
        "offsets[i] along the gradient's direction and offsets[j] along a random one, in "
        "pixel units of the norm",
        n=len(rows),
        offsets=offsets,
        loss=grid,
        rises=float((gradient > here).float().mean()),
        beats_random=float((gradient > random).float().mean()),
    )


def _direction(ball: Ball, vectors: torch.Tensor) -> torch.Tensor:
    return ball.step_(torch.zeros_like(vectors), vectors, 1.0)


# --- The checks.


# What happened to the images that a check counts, and what that means.
_MEANINGS = {
    "deterministic": "answered differently when asked twice, in another order or in another "
    "batch: the gradient of one answer says little of the next",
    "live gradients": "have an input gradient that is zero or not finite: gradient attacks have "
    "nothing to follow",
    "iterative beats single-step": "broken by FGSM and not by PGD-{steps}: the loss surface "
    "misleads",
    "more effort gains little": "broken only by {restarts} restarts or five times the steps: "
    "PGD-{steps} does not converge",
    "unbounded attack breaks all": "stand although every pixel may take any value: it is the "
    "attack that fails",
    "logits times": "broken only when the attack scales the logits: the softmax hides the gradient",
    "margin loss": "broken only by the loss of Carlini and Wagner: the cross entropy misleads",
    "APGD-T against APGD-CE": "broken by the targeted DLR loss and not by the cross entropy",
    "white box beats Square": "broken by a search without gradients and not by any gradient",
    "white box beats transfer from": "broken by another model's attack and not by the model's own",
    "accuracy falls with eps": "broken within a ball and not within a larger one, which holds it",
}
# Of attacks that differ in their loss alone: adversarially trained models have up to about four
# points between cross entropy and margin losses (LTD's own logs: 60.61 and 56.94 %).
_LOSS_GAP = 0.06
# The limits of their share; of the other checks it is what an attack that works may miss.
_LIMITS = {
    "deterministic": 0.0,
    "live gradients": 0.05,
    "more effort gains little": _LOSS_GAP,
    "logits times": _LOSS_GAP,
    "margin loss": _LOSS_GAP,
    "APGD-T against APGD-CE": _LOSS_GAP,
}


@dataclass(frozen=True)
class AuditSettings:
    """How hard the checks try, named as in audit.json."""

    eps: float
    seed: int = 0
    batch_size: int = 256
    steps: int = 100  # of PGD
    restarts: int = 5
    square_queries: int = 1000  # of the black-box attack
    norm: Norm = "linf"


@dataclass(frozen=True)
class AuditResult:
    """What audit.json says that was found; the model is believed when every check has passed."""

    findings: list[Finding]
    source_clean_accuracy: dict[str, float]
    not_made: list[str]  # checks that could not be made, and why
    by_eps: tuple[EpsPoint, ...]  # to where nothing is left
    zero_accuracy_at_eps: float | None
    loss_surface: LossSurface


def audit(
    model: Classifier,
    test: TestImages,
    settings: AuditSettings,
    *,
    sources: Mapping[str, Classifier] = MappingProxyType({}),
    state: StateRecord | None = None,
    tick: Tick = silent,
    world: World = ALONE,
) -> AuditResult:
    """Run all checks on a model in evaluation mode, on its device.

    Adversarial images of the `sources`, other models of the same images by their names, are tried
    on it. `state` keeps the finished batches and all that decides them, and existing ones are
    continued; None: an interrupted audit starts over.

    `tick` is told what is under way, the images just done, and at most how many are to come.
    The processes of the `world` share the batches of each attack, and all have the result.
    A ModelError when the model knows nothing of the clean images, or these cannot tell, when it is
    in training mode, or gives logits that are not finite.
    """
    images, _, _ = test.take(torch.arange(min(len(test), checks.PROBED)))
    checks.require_evaluated(model, checks.probes(images))
    # Attacked frozen, which is faster.
    sources = {name: Frozen(source).current() for name, source in sources.items()}
    bench = Bench(
        Frozen(model).current(),
        test,
        settings.seed,
        settings.batch_size,
        Journal(None if state is None else state.folder, state),
        tick,
        world=world,
    )
    made = _Checks(bench, settings)
    n, hits = len(test), int(made.clean.sum())
    counts = class_counts(test.labels.numpy(), model.num_classes)
    if not beats_chance(n, counts):
        raise ModelError(
            "model",
            "cannot be told from a guess of the commonest class: too few images, or classes too "
            "unequal",
            found=f"{counts.max()} of {n} images of one class",
            remedy="Take more images, of the other classes first.",
        )
    if not beats_chance(hits, counts):
        raise ModelError(
            "model",
            "is not clearly better than chance on the clean images: there is nothing to audit",
            found=f"{hits} of {n} right",
            remedy="Train it for longer, take more images, or look at its normalisation and at the "
            "order of its classes.",
        )
    plain = made.pgd(f"PGD-{settings.steps}", made.clean)
    by_loss = [*made.losses(plain)]
    known = {
        name: int(bench.correct_of_source(source, number).sum())
        for number, (name, source) in enumerate(sources.items(), 1)
    }
    weak = {name: weak_source(name, right, counts) for name, right in known.items()}
    findings = [
        *made.soundness(model),
        *made.strength(plain),
        *by_loss,
        *made.black_box({name: one for name, one in sources.items() if not weak[name]}),
        made.radii(),
    ]
    curve = automatic_curve(bench, settings.norm, made.clean, settings.eps)
    return AuditResult(
        findings,
        {name: right / n for name, right in known.items()},
        [line for line in weak.values() if line],
        curve.points,
        curve.zero_at,
        loss_surface(bench, made.ball, made.clean),
    )


class _Checks:
    """One model under every attack that the checks compare."""

    def __init__(self, bench: Bench, settings: AuditSettings) -> None:
        self.bench, self.settings = bench, settings
        self.model, self.test = bench.model, bench.test
        self.ball = Ball(settings.norm, settings.eps)
        # Of the points where PGD begins.
        self.key = attacks.start_key(settings.seed)
        self.everything = largest_radius(settings.norm, self.model.shape)
        attacks.require_possible(self.model.shape, self.ball, "standard")
        self.rows = torch.arange(len(self.test))
        self.clean = bench.answers("clean", self.rows, title="clean").correct(self.test.labels)
        # What the strongest white-box attack leaves, with which black-box ones are compared.
        self.strongest = self.clean

    def finding(self, check: str, happened: torch.Tensor, which: str = "") -> Finding:
        """Judge on how many images something happened that should not."""
        return Finding(
            name=f"{check} {which}".strip(),
            count=int(happened.sum()),
            n=len(self.test),
            limit=_LIMITS.get(check, SLACK),
            meaning=_MEANINGS[check].format(**vars(self.settings)),
        )

    def pgd(
        self,
        name: str,
        before: torch.Tensor,
        ball: Ball | None = None,
        *,
        filed: str = "",
        first: int = 0,
        **settings: Any,
    ) -> torch.Tensor:
        """The images, of some that stood before, that stay right under PGD.

        `filed` is the name of its records where `name` is not theirs alone.
        """
        attack = GradientAttack(filed or name, **{"steps": self.settings.steps} | settings)
        return attacks.run(self.bench, attack, ball or self.ball, before, name, first=first)[0]

    def package(self, attack: str) -> torch.Tensor:
        """An attack of AutoAttack on all images that are right when clean."""
        adversary = attacks.build(self.bench, self.ball)
        adversary.square.n_queries = self.settings.square_queries
        # What the package warns of is what the checks measure.
        return attacks.run_one(self.bench, adversary, attack, self.clean, [])

    def soundness(self, model: Classifier) -> Iterator[Finding]:
        """Of the model as it is: answers to rely on, and gradients to follow."""
        different, dead = (torch.zeros(len(self.test), dtype=torch.bool) for _ in range(2))
        for rows in torch.split(self.rows, self.settings.batch_size):
            images, labels, index = self.test.take(rows)
            with torch.no_grad():
                once = model(images)
                # The other order leaves the batch's statistics as they are; halves change them.
                others = (
                    model(images),
                    model(images.flip(0)).flip(0),
                    checks.in_halves(model, images),
                )
            for again in others:
                different[rows] |= checks.differ(once, again).cpu()
            # At the image itself, and where PGD begins.
            for start in (images, self.ball.uniform(images, index, self.key)):
                loss = attacks.cross_entropy()(labels)
                flat = input_gradient(model, start, loss).flatten(1)
                alive = torch.isfinite(flat).all(dim=1) & (flat != 0).any(dim=1)
                dead[rows] |= ~alive.cpu()
        yield self.finding("deterministic", different)
        yield self.finding("live gradients", dead)

    def strength(self, plain: torch.Tensor) -> Iterator[Finding]:
        """More effort breaks more, but not much more."""
        steps, restarts = self.settings.steps, self.settings.restarts
        # The first start is the plain attack's: what is left has withstood it.
        by_restarts = self.pgd(f"PGD-{steps} x {restarts}", plain, restarts=restarts, first=1)
        harder = self.pgd(f"PGD-{5 * steps}", by_restarts, steps=5 * steps)
        fgsm = GradientAttack("FGSM", single_step=True).on(self.model, self.ball, self.key)
        single = self.bench.correct("FGSM", plain, fgsm, title="FGSM")
        everywhere = Ball(self.settings.norm, self.everything)
        yield self.finding("iterative beats single-step", plain & ~single)
        yield self.finding("more effort gains little", plain & ~harder)
        unbounded = self.pgd("unbounded", self.clean, everywhere)
        yield self.finding("unbounded attack breaks all", unbounded)

    def losses(self, plain: torch.Tensor) -> Iterator[Finding]:
        """Other losses break little more than the cross entropy."""
        by_margin = self.pgd("margin loss", plain, loss="margin")
        for factor in (0.01, 0.1, 10.0, 100.0):
            scaled = self.pgd(f"logits x {factor:g}", plain, factor=factor)
            yield self.finding("logits times", plain & ~scaled, f"{factor:g}")
        yield self.finding("margin loss", plain & ~by_margin)
        # Square maximises a margin, as this and APGD-T do.
        self.strongest = by_margin
        # The targeted DLR loss divides by a difference of the first and the fourth logit.
        if self.model.num_classes >= 4:
            first, second = (self.package(attack) for attack in ("apgd-ce", "apgd-t"))
            yield self.finding("APGD-T against APGD-CE", first & ~second)
            self.strongest = self.strongest & first & second

    def black_box(self, sources: Mapping[str, Classifier]) -> Iterator[Finding]:
        """Attacks without the model's gradient break nothing that those with it do not."""
        yield self.finding("white box beats Square", self.strongest & ~self.package("square"))
        transfer = GradientAttack("transfer", steps=self.settings.steps)
        for number, (name, source) in enumerate(sources.items()):
            attack = transfer.on(source, self.ball, self.key)
            filed = f"transfer-{number}"
            left = self.bench.correct(filed, self.strongest, attack, title="transfer")
            yield self.finding("white box beats transfer from", self.strongest & ~left, name)

    def radii(self) -> Finding:
        """What is broken within a ball is broken within a larger one."""
        radii = (self.settings.eps * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0))
        balls = [Ball(self.settings.norm, eps) for eps in radii if eps <= self.everything]
        left = [
            self.pgd("curve over eps", self.clean, ball, steps=20, filed=f"radius-{ball.eps!r}")
            for ball in balls
        ]
        risen = torch.stack([late & ~early for early, late in pairwise(left)])
        return self.finding("accuracy falls with eps", risen.any(dim=0))
