"""An attack recorded as one CUDA graph gives the bits that the attack gives."""

import math
from dataclasses import replace

import pytest
import torch
from refusals import refused
from torch import nn

from ltd_pipe.attacks import Adversary, Ball, Frozen, initial_point
from ltd_pipe.device import PrecisionSettings, deterministic
from ltd_pipe.errors import MachineError
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.objectives import Madry, Trades, TrainBatch
from ltd_pipe.params import TrainParams
from ltd_pipe.training.recorded import RecordedAttack
from ltd_pipe.training.step import Step
from ltd_pipe.training.trainer import RunContext, Task

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPE, CLASSES = (3, 16, 16), 10


@pytest.fixture
def frozen():
    """A small network on a GPU."""
    names = [str(k) for k in range(CLASSES)]
    network = build("resnet18-w8", CLASSES, SHAPE)
    model = Classifier(network, architecture="any", class_names=names, shape=SHAPE).cuda().eval()
    return model, Frozen(model)


def batch_of(number, count=8):
    draw = torch.Generator().manual_seed(number)
    images = torch.rand(count, *SHAPE, generator=draw)
    target = torch.rand(count, CLASSES, generator=draw).softmax(dim=1)
    truth = torch.eye(CLASSES)[torch.randint(CLASSES, (count,), generator=draw)]
    return TrainBatch(images.cuda(), target.cuda(), truth.cuda())


ADVERSARY = Adversary(Ball("linf", 0.1), 0.03, 3)


def attack_of(objective, frozen):
    nobody = torch.empty(0, dtype=torch.int64, device="cuda")

    def attack(adversary, batch, points):
        return objective.attack(adversary, frozen.twin, batch, index=nobody, key=0, points=points)

    return attack


@pytest.mark.parametrize("objective", [Madry(), Madry("target"), Trades(6.0)], ids=str)
def test_a_recording_follows_batches_weights_and_steps(frozen, objective):
    """Also long after it has been proved, and of a last batch that is smaller."""
    model, twin = frozen
    attack = attack_of(objective, twin)
    with deterministic():
        recorded = RecordedAttack(attack)
        for number in range(10):
            adversary = replace(ADVERSARY, steps=3 if number < 6 else 4)
            twin.current()
            batch = batch_of(number, 5 if number in (4, 8) else 8)
            index = torch.arange(len(batch.images), device="cuda")
            points = initial_point("uniform", Ball("linf", 0.1), batch.images, index, number)
            expected = attack(adversary, batch, points)
            assert torch.equal(recorded(adversary, batch, points), expected)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(1.01)


def test_an_attack_on_a_compiled_model_itself_is_not_recorded():
    """Without norms to fold there is no twin, and graphs of its passes go into no other graph."""
    layers = [nn.Flatten(), nn.Linear(math.prod(SHAPE), 16), nn.LayerNorm(16), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(16, CLASSES))
    names = [str(k) for k in range(CLASSES)]
    model = Classifier(network, architecture="any", class_names=names, shape=SHAPE).cuda()
    params = TrainParams(architecture="small-cnn-w8", epochs=1, eps=0.1)
    context = RunContext(0, None, PrecisionSettings("float32", False, "reduce-overhead"))
    task = Task(Madry(), None, ADVERSARY)
    assert Step(model, task, params, context)._recorded is None


def test_what_is_wrong_is_refused(frozen):
    """Here an attack that depends on a number of the host."""
    _, twin = frozen
    inner, calls = attack_of(Madry(), twin), []

    def attack(adversary, batch, points):
        calls.append(1)
        return inner(adversary, batch, points) + 1e-3 * len(calls)

    twin.current()
    batch = batch_of(0)
    with deterministic(), refused(MachineError, where="train.compile: reduce-overhead"):
        RecordedAttack(attack)(ADVERSARY, batch, batch.images)
