"""Models that are sound on the test images and not where attacks go: none is believed."""

import pytest
import torch
from torch import nn

from ltd_pipe.attacks import Ball
from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation import attacks
from ltd_pipe.evaluation.accuracy import answer
from ltd_pipe.evaluation.audit import AuditSettings, audit
from ltd_pipe.evaluation.robustness import evaluate
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.params import EvaluateParams

SHAPE = (1, 5, 5)
EPS = 0.05
QUICK = AuditSettings(eps=EPS, batch_size=24, steps=2, restarts=2, square_queries=5)


class Sums(nn.Module):
    """Logit k is the sum of the k-th row of pixels, as of the model that the images are for."""

    def forward(self, images):
        return 4.0 * images.sum(dim=(1, 3))


def classifier(network):
    """A model of five classes, in evaluation mode."""
    names = tuple("abcde")
    return Classifier(network, architecture="control", class_names=names, shape=SHAPE).eval()


class Trap(Sums):
    """NaN where an attack has made a pixel a little darker than any of the images has."""

    def forward(self, images):
        darkest = images.flatten(1).amin(dim=1)
        trapped = (darkest > 0.3) & (darkest < 0.39)
        return super().forward(images).masked_fill(trapped[:, None], torch.nan)


class Frozen(Sums):
    """No gradient but at images of whole grey levels, as test images are."""

    def forward(self, images):
        levels = images.detach() * 255
        whole = (levels - levels.round()).abs() < 1e-3
        return super().forward(torch.where(whole, images, images.detach()))


class Relative(Sums):
    """Takes the batch's own mean for granted, as batch norm without running statistics does."""

    def forward(self, images):
        sums = super().forward(images)
        return sums - 0.2 * sums.mean(dim=0)


class Overflowing(Sums):
    """Finite on photographs, infinite on white."""

    def forward(self, images):
        white = (images > 0.99).flatten(1).all(dim=1)
        return super().forward(images).masked_fill(white[:, None], torch.inf)


@pytest.fixture
def trap():
    """The model with the trap."""
    return classifier(Trap())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_answer_that_is_not_finite_is_refused(value):
    """The largest of NaN is the first: it counted as class 0."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 5)).requires_grad_(False)
    network[1].bias.fill_(value)
    with pytest.raises(ModelError, match="NaN or infinite for test images.*: found 2 of 2 such"):
        answer(classifier(network), torch.zeros(2, *SHAPE))


def test_an_evaluation_of_such_a_model_is_refused(trap, images):
    """Though it is sound on test images, black, white and noise."""
    params = EvaluateParams(eps=EPS, attacks=("fgsm",), pgd_steps=2, autoattack="none", eps_grid=())
    with pytest.raises(ModelError, match="NaN or infinite for test images, as they are or attack"):
        evaluate(trap, images, params, seed=0)


@pytest.mark.parametrize("attack", ["apgd-ce", "square"])
def test_autoattack_of_such_a_model_is_refused(trap, bench, right, attack):
    """The package reads NaN as class 0, too, and says nothing."""
    adversary = attacks.build(bench(network=trap), Ball("linf", EPS))
    adversary.apgd.n_iter = adversary.square.n_queries = 10
    with pytest.raises(ModelError, match=rf"NaN or infinite under AutoAttack's {attack.upper()}"):
        attacks.run_one(bench(network=trap), adversary, attack, right, [])


def test_points_that_the_package_loses_are_not_the_models_fault(bench):
    """FAB divides by gradients that may be zero, and asks about NaN."""
    adversary = attacks.build(bench(), Ball("linf", EPS))
    adversary.model(torch.full((2, *SHAPE), torch.nan))
    adversary.model.require_finite("fab-t")


def failures(network, images):
    found = audit(classifier(network), images, QUICK).findings
    return {finding.name: finding.count for finding in found if not finding.passed}


def test_a_gradient_that_is_dead_where_attacks_start_fails(images):
    """It is alive at the test images themselves, where nothing starts but FGSM."""
    assert failures(Frozen(), images)["live gradients"] > 20


def test_an_audit_finds_that_answers_depend_on_the_batch(images):
    """The same images in another order have the same statistics; a half of them has not."""
    assert failures(Relative(), images)["deterministic"] > 12


def test_an_audit_refuses_what_overflows_on_white(images):
    """As an evaluation does: attacks may come there."""
    with pytest.raises(ModelError, match=r"NaN or infinite for images in \[0, 1\]"):
        audit(classifier(Overflowing()), images, QUICK)
