"""Adversarial weight perturbation."""

import copy

import pytest
import torch
from torch import nn

from ltd_pipe.training.step import perturbed_weights


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def loss_function(model):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(16, 5, generator=generator)
    labels = torch.randint(3, (16,), generator=generator)
    return lambda: nn.functional.cross_entropy(model(inputs), labels)


def gradients(loss):
    return lambda weights: torch.autograd.grad(loss(), weights)


def published(model, loss_of, gamma, rate):
    """The weights of AWP's own procedure: a step of a copy, rescaled layer by layer."""
    proxy = copy.deepcopy(model)
    optimiser = torch.optim.SGD(proxy.parameters(), lr=rate)
    (-loss_of(proxy)()).backward()
    optimiser.step()
    moved = {}
    pairs = zip(model.named_parameters(), proxy.parameters(), strict=True)
    for (name, old), new in pairs:
        difference = (new - old).detach()
        scale = gamma * old.norm() / (difference.norm() + 1e-20) if old.dim() > 1 else 0.0
        moved[name] = (old + scale * difference).detach()
    return moved


@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_the_perturbation_is_the_published_one(rate):
    """One SGD step of a copy, scaled to gamma of each weight's norm; its rate cancels."""
    model = network()
    expected = published(model, loss_function, 0.1, rate)
    with perturbed_weights(model, gradients(loss_function(model)), 0.1):
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-3, atol=1e-6)


def test_fixed_weights_stay_where_they_are():
    """Filters of a network of one's own that nobody trains have no gradient."""
    model = network()
    model[0].weight.requires_grad_(requires_grad=False)
    fixed, last = model[0].weight.clone(), model[3].weight.clone()
    with perturbed_weights(model, gradients(loss_function(model)), 0.1):
        assert torch.equal(model[0].weight, fixed)
        assert not torch.equal(model[3].weight, last)


def test_the_loss_is_higher_there():
    """Which is the point of it."""
    model = network()
    loss = loss_function(model)
    before = loss().item()
    with perturbed_weights(model, gradients(loss), 0.05):
        assert loss().item() > before


def test_weights_and_statistics_come_back():
    """After the block the weights are what they were, up to rounding; statistics to the bit."""
    model = network()
    loss = loss_function(model)
    before = copy.deepcopy(model.state_dict())
    with perturbed_weights(model, gradients(loss), 0.05):
        pass
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-7)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


def test_an_error_inside_takes_the_perturbation_back():
    """A loss that is refused leaves no perturbed model behind."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    with (
        pytest.raises(ValueError, match="stop"),
        perturbed_weights(model, gradients(loss_function(model)), 0.5),
    ):
        raise ValueError("stop")
    torch.testing.assert_close(model.state_dict(), before, rtol=1e-6, atol=1e-7)
