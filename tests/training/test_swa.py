"""Stochastic weight averaging."""

import pytest
import torch

from pipeline.errors import ParamsError
from pipeline.params import parse_standalone
from pipeline.training.loop import Watcher


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_it_is_the_mean_of_the_epochs_from_its_start_on(make_student):
    """Of four epochs the last two count; before them the model itself is validated."""
    ends = []
    fit = make_student(epochs=4, ema_decay=0.0, swa_from=0.5)

    class Ends(Watcher):
        def epoch(self, history):
            ends.append(weights(fit.model))
            if len(history) <= 3:
                assert torch.equal(weights(fit.average.model), ends[-1])

    fit.run(Ends())
    found = fit.average.model.state_dict()["network.linear.weight"].flatten().double()
    count = len(found)
    names = list(fit.model.state_dict())
    sizes = [value.numel() for value in fit.model.state_dict().values()]
    begin = sum(sizes[: names.index("network.linear.weight")])
    mean = (ends[2] + ends[3])[begin : begin + count] / 2
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-7)


def test_two_averages_are_refused():
    """Of two, which would be validated is unclear."""
    with pytest.raises(ParamsError, match="two averages of the weights: choose one"):
        parse_standalone(
            "teacher",
            {
                "teacher.architecture": "small-cnn",
                "teacher.epochs": "1",
                "teacher.ema_decay": "0.9",
                "teacher.swa_from": "0.5",
            },
        )
