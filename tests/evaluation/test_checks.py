"""What is refused before the first attack."""

import re

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn
from torch.nn import functional

from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation.bench import TestImages
from ltd_pipe.evaluation.checks import (
    Probes,
    is_random,
    probes,
    require_sound,
    settle,
    wrong_scale,
)
from ltd_pipe.evaluation.results import contradicted_accuracy, weak_source
from ltd_pipe.models.classifier import Classifier

# --- What is refused before the first attack.


class Constant(nn.Module):
    """Gives the same logits for all images."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor([logits])

    def forward(self, images):
        return self.logits.expand(len(images), -1)


class Noisy(nn.Module):
    """Gives other logits each time."""

    def forward(self, images):
        return torch.rand(len(images), 3)


class Relative(nn.Module):
    """Normalises by the batch's own mean, as batch norm without running statistics does."""

    def forward(self, images):
        sums = images.sum(dim=(2, 3)).expand(-1, 3)
        return sums - sums.mean(dim=0)


class Overflowing(nn.Module):
    """Finite on photographs, infinite on white."""

    def forward(self, images):
        return (images.mean(dim=(1, 2, 3)) * 100).exp()[:, None].expand(-1, 3)


def half_trained():
    """Only a part of it is in training mode."""
    return nn.Sequential(Constant(0.0, 0.0, 0.0)).eval().append(nn.Dropout())


UNSOUND = [
    (Constant(0.0, 0.0, 0.0).train(), {"what": "mode"}),
    (half_trained(), {"what": "training"}),
    (Constant(0.0, torch.nan, 0.0).eval(), {"what": "infinite", "found": "6 of 6 such"}),
    (Constant(0.0, torch.inf, 0.0).eval(), {"what": "infinite", "found": "6 of 6 such"}),
    (Overflowing().eval(), {"what": "infinite", "found": "1 of 6 such"}),
    (Noisy().eval(), {"what": "different"}),
    (Relative().eval(), {"what": "batch"}),
]


@pytest.mark.parametrize(("model", "fields"), UNSOUND, ids=[f["what"] for _, f in UNSOUND])
def test_an_unsound_model_is_refused(model, fields):
    """A measurement of such a model would mean nothing."""
    with refused(ModelError, where="model", **fields):
        require_sound(model, probes(torch.rand(2, 1, 4, 4) / 4))


def test_a_sound_model_passes():
    """Evaluation mode, finite, the same answer twice."""
    require_sound(Constant(0.0, 1.0, 0.0).eval(), probes(torch.rand(2, 1, 4, 4)))


def test_a_random_model_may_be_measured_as_one():
    """AutoAttack has a version for it; training mode and NaN are refused all the same."""
    require_sound(Noisy().eval(), torch.rand(2, 1, 4, 4), random_allowed=True)
    assert is_random(Noisy(), torch.rand(2, 1, 4, 4))
    with refused(ModelError, where="model", what="mode"):
        require_sound(Noisy().train(), torch.rand(2, 1, 4, 4), random_allowed=True)


def test_black_white_and_noise_are_asked_about():
    """Beside the images that were given."""
    asked = probes(torch.full((3, 1, 4, 4), 0.5))
    assert asked.shape == (7, 1, 4, 4)
    assert asked[3].max() == 0
    assert asked[4].min() == 1
    assert asked.min() >= 0
    assert asked.max() <= 1


def test_the_version_for_random_models_excuses_random_ones_alone():
    """A model that answers alike, but by its batch, is refused there, too."""
    with refused(ModelError, where="model", what="batch"):
        require_sound(Relative().eval(), probes(torch.rand(2, 1, 4, 4)), random_allowed=True)


# --- A model that gets its pixels on another scale than it wants is noticed.


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


@pytest.fixture(scope="module")
def grey_images():
    """Evenly grey pictures of 60 levels, whose class is one of four ranges of brightness."""
    level = torch.arange(60) * 4 + 8
    pixels = level[:, None, None, None].expand(60, 3, 4, 4).to(torch.uint8).contiguous()
    labels, index = level // 64, torch.arange(60)
    return TestImages(pixels, labels, index, np.arange(60, dtype=np.uint64), torch.device("cpu"))


class Brightness(nn.Module):
    """Right about images on one scale: value = (pixel in [0, 1] - mean) / std · factor."""

    def __init__(self, mean=0.0, std=1.0, factor=1.0):
        super().__init__()
        self.mean, self.std, self.factor = mean, std, factor

    def forward(self, images):
        light = images.mean(dim=(1, 2, 3)) / self.factor * self.std + self.mean
        centres = torch.tensor([0.125, 0.375, 0.625, 0.875])
        return -((light[:, None] - centres) ** 2)


def wrapped(network, **normalisation):
    names, shape = tuple("abcd"), (3, 4, 4)
    model = Classifier(network, architecture="x", class_names=names, shape=shape, **normalisation)
    return model.eval()


CIFAR = {"mean": float(np.mean(MEAN)), "std": float(np.mean(STD))}


def test_a_model_with_its_own_normalisation_is_left_alone(grey_images):
    """Raw, or normalised once: nothing is said."""
    assert wrong_scale(wrapped(Brightness()), grey_images.images, grey_images.labels) is None
    once = wrapped(Brightness(**CIFAR), mean=MEAN, std=STD)
    assert wrong_scale(once, grey_images.images, grey_images.labels) is None


WRONG = [
    (Brightness(factor=255), {}, "multiplied"),
    (Brightness(**CIFAR), {}, "--mean"),
    (Brightness(), {"mean": MEAN, "std": STD}, "normalisation"),
    (Brightness(mean=0.5, std=0.5), {"mean": (0.1,) * 3, "std": (0.9,) * 3}, "normalised"),
]


@pytest.mark.parametrize(
    ("network", "normalisation", "message"), WRONG, ids=["0 to 255", "never", "twice", "otherwise"]
)
def test_a_wrong_scale_is_said_with_what_to_do(grey_images, network, normalisation, message):
    """How many are right as they are, and how many on the other scale."""
    found = wrong_scale(wrapped(network, **normalisation), grey_images.images, grey_images.labels)
    assert found is not None
    assert re.search(message, found), found
    assert "of 60 images" in found


class Collapses(Brightness):
    """Right on four of five images; names the first class alone on another scale."""

    def forward(self, images):
        if images.amax() > 1:
            return torch.eye(4)[:1].expand(len(images), -1)
        right = torch.where(torch.arange(len(images)) % 5 > 0, 1.0, -1.0)
        return super().forward(images) * right[:, None]


def test_a_scale_is_judged_by_images_of_all_classes():
    """As a folder has them, class by class: of the first ones alone it would be better there."""
    counts, levels = torch.tensor([300, 60, 60, 60]), torch.tensor([32, 96, 160, 224])
    images = levels.repeat_interleave(counts)[:, None, None, None].expand(-1, 3, 4, 4)
    labels = torch.arange(4).repeat_interleave(counts)
    assert wrong_scale(wrapped(Collapses()), images.to(torch.uint8), labels) is None


def test_a_model_that_knows_nothing_is_not_blamed_on_the_scale(grey_images):
    """No other scale makes it better."""
    assert (
        wrong_scale(wrapped(Brightness(factor=-1)), grey_images.images, grey_images.labels) is None
    )


@pytest.mark.parametrize(
    ("hits", "said", "doubted"),
    [
        (970, 0.97, None),
        (930, 0.97, None),
        (900, 0.97, "another scale"),
        (300, 0.95, "another scale"),
        (60, 0.0, "its own had wrong labels"),
        (400, 0.33, "its own had wrong labels"),
    ],
)
def test_a_checkpoint_is_held_to_what_it_says(hits, said, doubted):
    """A difference of more than five points that chance cannot explain."""
    found = contradicted_accuracy(hits, 1000, said, "validation images")
    assert (found is None) is (doubted is None)
    if found:
        assert f"the checkpoint says {said:.1%} (validation images)" in found
        assert found.endswith(doubted)


@pytest.fixture
def grey_probes(grey_images):
    """The same pictures, as foreign weights are asked about them."""
    return Probes(grey_images.images, grey_images.labels)


@pytest.mark.parametrize(
    ("network", "mean", "said"),
    [
        (Brightness(**CIFAR), MEAN, r"mean 0.49.*: 60 of 60 .* right, \d+ without it; timm decl"),
        (
            Brightness(),
            (0, 0, 0),
            r"not normalised: 60 of 60 .* right, \d+ when norm.* timm",
        ),
    ],
    ids=["normalised", "not"],
)
def test_what_is_declared_is_taken_where_it_is_right(grey_probes, network, mean, said):
    """Both are tried, and both numbers said."""
    model = wrapped(network)
    found = settle(model, grey_probes, "net.pt", declared=(MEAN, STD), by="timm")
    assert model.mean.tolist() == pytest.approx(mean)
    assert re.search(said, found), found


class RightWhenPlain(torch.nn.Module):
    """Right on the first images, and on some of the last when they are not normalised."""

    def __init__(self, first, last):
        super().__init__()
        self.first, self.last = first, last

    def forward(self, images):
        place = torch.arange(60)
        truth = functional.one_hot((place * 4 + 8) // 64, 4).float()
        plain = images.amin(dim=(1, 2, 3)) >= 0
        seen = (place < self.first) | (plain & (place >= 60 - self.last))
        return torch.where(seen[:, None], truth, torch.ones(60, 4))


def test_what_is_declared_is_taken_where_nothing_decides(grey_probes):
    """A network that knows nothing: it is said, with the way to take none."""
    model = wrapped(RightWhenPlain(0, 0))
    found = settle(model, grey_probes, "x", declared=(MEAN, STD), by="timm")
    assert model.mean.tolist() == pytest.approx(MEAN)
    assert "which decides little: --mean 0,0,0 --std 1,1,1 takes none; timm declares it" in found


@pytest.mark.parametrize(
    ("first", "last", "outcome"),
    [(40, 0, "declared"), (40, 3, "refused"), (40, 20, "none"), (0, 3, "declared")],
)
def test_what_only_suggests_none_is_refused(grey_probes, first, last, outcome):
    """It is neither taken as declared, nor as better without."""
    model = wrapped(RightWhenPlain(first, last))
    # Of the declared, no pixel stays above 0.
    declared = ((2.0, 2.0, 2.0), STD)
    if outcome == "refused":
        with pytest.raises(ModelError) as caught:
            settle(model, grey_probes, "x", declared=declared, by="timm")
        assert caught.value.where == "x"
        assert caught.value.remedy.startswith("Pass --mean 2,2,2 --std 0.2471")
        return
    settle(model, grey_probes, "x", declared=declared, by="timm", strict=False)
    assert model.normalises == (outcome == "declared")


@pytest.mark.parametrize(("network", "normalisation", "message"), WRONG)
def test_foreign_weights_on_a_wrong_scale_are_refused(grey_probes, network, normalisation, message):
    """Also where the user said the scale; unless a measurement will say it itself."""
    with refused(ModelError, where="net.pt", what=message):
        settle(wrapped(network, **normalisation), grey_probes, "net.pt")
    assert "are right" in settle(wrapped(network, **normalisation), grey_probes, "x", strict=False)


class Rolled(Brightness):
    """Has each class one column further."""

    def forward(self, images):
        return super().forward(images).roll(1, dims=1)


def test_columns_in_another_order_are_named(grey_probes):
    """Before the scale is blamed for it."""
    with pytest.raises(ModelError) as caught:
        settle(wrapped(Rolled()), grey_probes, "net.pt", declared=(MEAN, STD), by="timm")
    assert caught.value.found == "'a' as 'b', 'b' as 'c', 'c' as 'd', 'd' as 'a'"
    assert "--classes FILE" in caught.value.remedy


def test_what_few_validation_images_say_is_no_promise():
    """20 of 20 and 53 of 60 do not differ; 200 of 200 do."""
    words = 53, 60, 1.0, "validation images"
    assert contradicted_accuracy(*words)
    assert contradicted_accuracy(*words, 20) is None
    assert "(validation images, 200 of them)" in (contradicted_accuracy(*words, 200) or "")


def test_a_source_that_knows_nothing_is_said_to_be_weak():
    """What it does not break proves nothing."""
    ten = np.full(10, 10)
    assert weak_source("s", 90, ten) is None
    assert "s was not tried in earnest" in (weak_source("s", 14, ten) or "")
    # Right on nine of ten, as always answering the commonest class is.
    assert "s was not tried in earnest" in (weak_source("s", 90, np.array([90, 10])) or "")
    # Not to be told of so few images, or of classes so unequal, where all are right.
    for counts in ([2, 1], [57, 3]):
        told = weak_source("s", sum(counts), np.array(counts)) or ""
        assert "too few images, or classes too unequal" in told
        assert "normalisation" not in told
