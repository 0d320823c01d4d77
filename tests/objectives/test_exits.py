"""Networks with several exits: which are attacked, and what their loss is."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ltd_pipe import objectives

TRUTH = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
TARGET = torch.tensor([[0.8, 0.2], [0.8, 0.2]])


class Exits(nn.Module):
    """Three exits of two classes: exit e gives (e + 1) · image, and shifts it in training mode."""

    def exit_logits(self, images):
        rows = images.flatten(1) + (0.5 if self.training else 0.0)
        return [(number + 1) * rows * torch.tensor([1.0, -1.0]) for number in range(3)]


class Chosen:
    """An adversary that moves towards an image of its own for each loss it is given."""

    def __init__(self, *moves):
        self.moves, self.losses = moves, []

    def attack(self, _, images, loss, *, start):
        assert start == "uniform"
        self.losses.append(loss)
        return images + self.moves[len(self.losses) - 1]


IMAGES = torch.tensor([0.2, -0.4]).reshape(2, 1, 1, 1).expand(2, 1, 1, 2)


def batch(images=IMAGES):
    return objectives.TrainBatch(images, TARGET, TRUTH)


def losses(images, target, exits=(0, 1, 2)):
    model = Exits().eval()
    logits = [model.exit_logits(images)[number] for number in exits]
    rows = [functional.cross_entropy(row, target, reduction="none") for row in logits]
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("exits", [(0, 1, 2), (2,), (0, 2)], ids=str)
def test_the_loss_is_the_mean_over_the_exits(exits):
    """CE(q, S_e(x)) + CE(y, S_e(x′)); what is counted is the last exit's answer to x′."""
    objective = objectives.MultiExit(exits)
    attacked = IMAGES - 0.3
    found = objective.loss(Exits().eval(), batch(), attacked)
    expected = losses(IMAGES, TARGET, exits) + losses(attacked, TRUTH, exits)
    torch.testing.assert_close(found.value, expected.mean())
    assert torch.equal(found.logits, Exits().eval().exit_logits(attacked)[exits[-1]])


@pytest.mark.parametrize("own", [0, 1, 2])
def test_the_logits_of_a_step_are_those_of_the_networks_own_exit(own):
    """Which validation, the checkpoint and IGDM's difference of logits are of."""
    attacked = IMAGES - 0.3
    objective = objectives.MultiExit((0, 1, 2), own=own)
    found = objective.loss(Exits().eval(), batch(), attacked).logits
    assert torch.equal(found, Exits().eval().exit_logits(attacked)[own])


ATTACKED = {
    # Of these answers of three exits, the losses that the attacks maximise.
    "last": ([2], 1),
    "average": ([None], 1),
    "max-average": ([0, 1, 2], 3),
}


@pytest.mark.parametrize(("attacked", "expected"), ATTACKED.items(), ids=ATTACKED)
def test_what_each_attack_maximises(attacked, expected):
    """The last exit's loss, the mean of all, or each exit's by itself."""
    numbers, count = expected
    adversary = Chosen(*[0.0] * count)
    objective = objectives.MultiExit((0, 1, 2), attacked)
    objective.attack(adversary, Exits(), batch())
    rows = losses(IMAGES, TRUTH)
    logits = torch.stack(Exits().eval().exit_logits(IMAGES), dim=1)
    assert len(adversary.losses) == count
    for number, loss in zip(numbers, adversary.losses, strict=True):
        wanted = rows.mean(dim=1) if number is None else rows[:, number]
        torch.testing.assert_close(loss(logits), wanted)


def test_max_average_takes_for_each_image_the_attack_that_is_worst_on_average():
    """The first image is hurt most by the second attack, the second one by the third."""
    moves = torch.tensor([[0.0, 0.0], [-0.5, 0.1], [0.2, -0.6]]).reshape(3, 2, 1, 1, 1)
    model = Exits().train()
    objective = objectives.MultiExit((0, 1, 2))
    found = objective.attack(Chosen(*moves), model, batch())
    torch.testing.assert_close(found, IMAGES + torch.stack([moves[1, 0], moves[2, 1]]))
    assert model.training


def test_the_choice_between_attacks_is_made_in_evaluation_mode():
    """In training mode this model would find the first attack worse."""

    class Turning(Exits):
        def exit_logits(self, images):
            rows = -images.flatten(1) if self.training else images.flatten(1)
            return [rows * torch.tensor([1.0, -1.0])] * 2

    objective = objectives.MultiExit((0, 1))
    found = objective.attack(Chosen(0.5, -0.5), Turning().train(), batch())
    torch.testing.assert_close(found, IMAGES - 0.5)
