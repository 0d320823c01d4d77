"""What is refused before the first attack."""

import pytest
import torch
from torch import nn

from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation.checks import is_random, probes, require_sound


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
    (Constant(0.0, 0.0, 0.0).train(), "is in training mode"),
    (half_trained(), "training"),
    (Constant(0.0, torch.nan, 0.0).eval(), "NaN or infinite"),
    (Constant(0.0, torch.inf, 0.0).eval(), "NaN or infinite"),
    (Overflowing().eval(), r"NaN or infinite for images in \[0, 1\]"),
    (Noisy().eval(), "different logits for the same images"),
    (Relative().eval(), "other logits in another batch"),
]


@pytest.mark.parametrize(("model", "message"), UNSOUND, ids=[m for _, m in UNSOUND])
def test_an_unsound_model_is_refused(model, message):
    """A measurement of such a model would mean nothing."""
    with pytest.raises(ModelError, match=message):
        require_sound(model, probes(torch.rand(2, 1, 4, 4) / 4))


def test_a_sound_model_passes():
    """Evaluation mode, finite, the same answer twice."""
    require_sound(Constant(0.0, 1.0, 0.0).eval(), probes(torch.rand(2, 1, 4, 4)))


def test_a_random_model_may_be_measured_as_one():
    """AutoAttack has a version for it; training mode and NaN are refused all the same."""
    require_sound(Noisy().eval(), torch.rand(2, 1, 4, 4), random_allowed=True)
    assert is_random(Noisy(), torch.rand(2, 1, 4, 4))
    with pytest.raises(ModelError, match="training mode"):
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
    with pytest.raises(ModelError, match="other logits in another batch"):
        require_sound(Relative().eval(), probes(torch.rand(2, 1, 4, 4)), random_allowed=True)
