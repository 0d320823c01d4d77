"""Stochastic weight averaging."""

import pytest
import torch

from ltd_pipe.errors import ParamsError
from ltd_pipe.params import parse_standalone
from ltd_pipe.training.trainer import Watcher


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_it_is_the_mean_of_the_epochs_from_its_start_on(make_student):
    """Of four epochs the last two count; before them the model itself is validated."""
    ends = []
    fit = make_student(epochs=4, ema_decay=0.0, schedule="constant", swa_from=0.5)

    class Ends(Watcher):
        def epoch(self, history):
            ends.append(weights(fit.model))
            if len(history) <= 3:
                assert torch.equal(weights(fit.average), ends[-1])

    fit.run(Ends())
    found = fit.average.state_dict()["network.linear.weight"].flatten().double()
    count = len(found)
    names = list(fit.model.state_dict())
    sizes = [value.numel() for value in fit.model.state_dict().values()]
    begin = sum(sizes[: names.index("network.linear.weight")])
    mean = (ends[2] + ends[3])[begin : begin + count] / 2
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-7)


def swa(**changes):
    settings = {"architecture": "x", "epochs": 100, "schedule": "step"} | changes
    overrides = {f"teacher.{name}": str(value) for name, value in settings.items()}
    return parse_standalone("teacher", overrides).teacher


STARTS = [(0.29, 100, 29), ("1/3", 90, 30), (0.5, 5, 2), (0, 2, 0), (0.98, 100, 98)]


@pytest.mark.parametrize(("share", "epochs", "start"), STARTS)
def test_it_begins_with_the_first_epoch_that_ends_behind_its_start(share, epochs, start):
    """Whatever a fraction is in binary: 0.29 * 100 is less than 29."""
    assert swa(swa_from=share, epochs=epochs).swa_epoch == start


REFUSED = {
    "two": (
        {"swa_from": 0.5, "ema_decay": 0.9},
        "ema_decay and swa_from are two averages of the weights: choose one",
    ),
    "one-cycle": (
        {"swa_from": 0.5, "schedule": "one-cycle"},
        "swa_from: expected schedule constant, cosine or step, found one-cycle: set",
    ),
    "none": ({"swa_from": 1}, "two epochs or more to average, found 0 of 100: lower swa_from"),
    "one": ({"swa_from": 0.99}, "two epochs or more to average, found 1 of 100: lower swa_from"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_an_average_of_nothing_is_refused(changes, message):
    """So are one beside another, and one of weights whose rate has not settled."""
    with pytest.raises(ParamsError, match=message):
        swa(**changes)
