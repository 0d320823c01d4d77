"""Robust accuracy by eps: monotone, exact where it can be known, and down to zero."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from ltd_pipe.evaluation.robustness import automatic_curve, curve_at, largest_radius
from ltd_pipe.models.classifier import Classifier


def test_a_curve_says_what_stands_at_each_radius(bench, right, exactly_robust):
    """In ascending order, with interval and n; at 0 the clean accuracy."""
    curve = curve_at(bench(), "linf", right, [0.05, 0.0, 0.02])
    assert curve.radii == (0.0, 0.02, 0.05)
    assert torch.equal(curve.correct[0], right)
    assert not (exactly_robust("linf", 0.02) & right & ~curve.correct[1]).any()
    point = curve.points[2]
    assert point.low < point.robust_accuracy < point.high
    assert (point.eps, point.n) == (0.05, 24)


def test_what_was_broken_is_not_attacked_again(bench, right):
    """At the second radius only the survivors of the first are."""
    told = []
    tick = lambda name, done, left: told.append((name, done))  # noqa: ARG005, E731
    curve = curve_at(bench(tick=tick), "linf", right, [0.03, 0.06])
    attacked = sum(done for name, done in told if name == "PGD-20 at eps 0.06")
    assert attacked == curve.correct[0].sum() < right.sum()
    assert not (curve.correct[1] & ~curve.correct[0]).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_automatic_curve_goes_down_to_zero(bench, right, norm):
    """It holds 0 and the asked radius, ends in zero, and knows where to a tenth."""
    curve = automatic_curve(bench(), norm, right, 0.05)
    assert curve.radii[0] == 0
    assert 0.05 in curve.radii
    shares = [point.robust_accuracy for point in curve.points]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0
    last = max(eps for eps, share in zip(curve.radii, shares, strict=True) if share)
    assert curve.zero_at - last <= 0.1 * curve.zero_at
    assert max(a - b for a, b in pairwise(shares)) < 0.2


def test_the_curve_can_be_cut_short_at_one_batch(bench, right, tmp_path):
    """Interrupted and run again it takes the same turns."""
    whole, told = automatic_curve(bench(), "linf", right, 0.05), []

    def stop(*words):
        told.append(words)
        if len(told) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        automatic_curve(bench(tmp_path, stop), "linf", right, 0.05)
    again = automatic_curve(bench(tmp_path), "linf", right, 0.05)
    assert again.points == whole.points


def test_where_each_image_broke(bench, right):
    """0 where it is wrong when clean, inf where it stands at all radii."""
    curve = curve_at(bench(), "linf", right, [0.0, 0.02, 0.05])
    broken = curve.broken_at
    assert (broken[~right] == 0).all()
    assert torch.isinf(broken[curve.correct[2]]).all()
    fell = curve.correct[1] & ~curve.correct[2]
    assert (broken[fell] == 0.05).all()
    assert fell.any()


class Rounded(nn.Module):
    """No small change of a pixel has a gradient: PGD stays where it starts."""

    def forward(self, images):
        return 4.0 * torch.round(images * 1e-9 + images.detach()).sum(dim=(1, 3))


def test_an_attack_that_fails_does_not_search_for_ever(bench, images):
    """The largest radius ends the doubling, whatever stands."""
    names = tuple("abcde")
    masked = Classifier(Rounded(), architecture="x", class_names=names, shape=(1, 5, 5)).eval()
    test = bench(network=masked)
    right = test.answers("clean", torch.arange(24), title="clean").correct(images.labels)
    curve = automatic_curve(test, "linf", right, 0.3)
    assert curve.radii[-1] == largest_radius("linf", (1, 5, 5)) == 1.0
    assert largest_radius("l2", (1, 5, 5)) == 5.0
    assert len(curve.radii) <= 16
