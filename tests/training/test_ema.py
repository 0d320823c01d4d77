"""The moving average is its formula."""

import pytest
import torch

from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.objectives import StepInfo
from ltd_pipe.params import FitParams
from ltd_pipe.training.optim import WeightAverage

SHAPE = (1, 8, 8)


def model(value):
    network = build("small-cnn-w8", 2, SHAPE)
    classifier = Classifier(
        network, architecture="small-cnn-w8", class_names=("a", "b"), shape=SHAPE
    )
    with torch.no_grad():
        for tensor in classifier.network.state_dict().values():
            tensor.fill_(value)
    return classifier


def moving(classifier, decay):
    return WeightAverage(classifier, FitParams(architecture="x", epochs=1, ema_decay=decay))


def after(steps):
    return StepInfo(step=steps - 1)


def value(average, name="network.linear.bias"):
    return average.model.state_dict()[name][0].item()


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (10, 11 / 20), (1000, 0.9)])
def test_one_update_by_hand(step, decay):
    """Average = decay · old + (1 - decay) · new, decay = min(0.9, (1 + n) / (10 + n))."""
    average = moving(model(0.0), 0.9)
    average.update(model(1.0), after(step))
    assert value(average) == pytest.approx(1 - decay)


def test_batch_statistics_are_averaged_and_counters_copied():
    """A running mean moves like a weight; an integer takes the model's value."""
    average = moving(model(0.0), 0.9)
    average.update(model(1.0), after(1000))
    names = average.model.state_dict()
    mean = next(name for name in names if name.endswith("running_mean"))
    count = next(name for name in names if name.endswith("num_batches_tracked"))
    assert value(average, mean) == pytest.approx(0.1)
    assert names[count].item() == 1


def test_without_decay_it_follows():
    """Decay 0 is the model itself, to the bit."""
    average = moving(model(0.0), 0.0)
    average.update(model(0.3), after(1000))
    assert value(average) == torch.tensor(0.3).item()


def test_the_average_is_a_copy_in_evaluation_mode():
    """Updating it leaves the model alone; it asks for no gradients."""
    source = model(1.0).train()
    average = moving(source, 0.9)
    average.update(model(5.0), after(1))
    assert source.network.linear.bias[0].item() == 1.0
    assert not average.model.training
    assert not any(weight.requires_grad for weight in average.model.parameters())
