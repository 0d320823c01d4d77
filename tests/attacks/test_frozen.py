"""The twin that is attacked: the model's evaluation mode, with less to compute."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ltd_pipe.attacks import Frozen
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.training.step import synchronise

# Architecture, shape, norms that a convolution takes in, and norms left as a scale and shift.
NETWORKS = [
    ("small-cnn-w8", (1, 8, 8), 3, 0),
    ("small-cnn-exits", (3, 16, 16), None, 0),
    ("resnet18-w8", (3, 32, 32), 20, 0),
    ("resnet18-exits", (3, 32, 32), None, 0),
    ("wrn-28-1", (3, 16, 16), 12, 13),
    ("torchvision:resnet18", (3, 32, 32), 20, 0),
    ("torchvision:mobilenet_v2", (3, 32, 32), 52, 0),
    ("torchvision:densenet121", (3, 32, 32), None, None),
    ("timm:resnet18", (3, 32, 32), 20, 0),
    ("timm:resnet50", (3, 32, 32), 53, 0),
    ("timm:efficientnet_b0", (3, 32, 32), 49, 0),
]


def classifier(network, shape, classes=10):
    return Classifier(
        network, architecture="any", class_names=[str(k) for k in range(classes)], shape=shape
    )


def trained(network, shape):
    """In float64, with statistics as training leaves them: no scale is 1 and no shift 0."""
    draw = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            for tensor in (module.running_mean, module.weight, module.bias):
                tensor.data.add_(0.2 * torch.rand(tensor.shape, generator=draw))
            module.running_var.mul_(1 + torch.rand(module.running_var.shape, generator=draw))
    return classifier(network, shape).double()


def gradient(model, images):
    point = images.detach().requires_grad_()
    loss = functional.cross_entropy(model(point), torch.zeros(len(images), dtype=torch.long))
    return torch.autograd.grad(loss, point)[0]


def images_of(shape):
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def counts(frozen):
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in frozen.current().modules())
    left = sum(type(m).__name__ == "_ScaleShift" for m in frozen.current().modules())
    return norms, left


@pytest.mark.parametrize(("architecture", "shape", "folded", "left"), NETWORKS)
def test_the_twin_is_the_models_evaluation_mode(architecture, shape, folded, left):
    """Same logits and input gradients to rounding, in float64; no batch norm is left."""
    model = trained(build(architecture, 10, shape), shape)
    frozen, images = Frozen(model), images_of(shape)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert frozen.current() is not model
    remaining, scaled = counts(frozen)
    assert remaining == 0
    assert left in (None, scaled)
    assert folded in (None, norms - scaled)
    twin = frozen.current()
    model.eval()
    torch.testing.assert_close(twin(images), model(images), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        gradient(twin, images), gradient(model, images), rtol=1e-7, atol=1e-9
    )


def test_it_follows_the_model_through_training():
    """After a step of the optimiser, which also moves the statistics, it is the new model's."""
    model = trained(build("resnet18-w8", 10, (3, 32, 32)), (3, 32, 32))
    frozen, images = Frozen(model), images_of((3, 32, 32))
    before = frozen.current()(images)
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    functional.cross_entropy(model(images), torch.tensor([1, 2])).backward()
    optimiser.step()
    twin = frozen.current()
    assert all(module.training for module in model.modules())
    after = model.eval()(images)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(twin(images), after, rtol=1e-9, atol=1e-9)


def test_it_holds_no_weights_of_its_own_but_the_folded():
    """The head is the model's own: what is not folded need not be copied each step."""
    model = trained(build("small-cnn-w8", 10, (1, 8, 8)), (1, 8, 8))
    own, theirs = dict(Frozen(model).current().named_parameters()), dict(model.named_parameters())
    assert own
    assert all(weight is theirs[name] for name, weight in own.items())


def test_nobodys_random_numbers_are_used_up():
    """A run that looks into its network trains as one that does not."""
    model = classifier(build("small-cnn-w8", 10, (1, 8, 8)), (1, 8, 8))
    before = torch.random.get_rng_state()
    Frozen(model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_images_of_other_sizes_are_taken_where_the_model_takes_them():
    """Progressive resizing is said to the model alone."""
    model = trained(build("resnet18-w8", 10, (3, 16, 16)), (3, 16, 16))
    frozen = Frozen(model)
    with model.also_taking([(8, 8)]):
        assert frozen.current()(images_of((3, 8, 8))).shape == (2, 10)
    with pytest.raises(ValueError, match="shape of the images"):
        frozen.current()(images_of((3, 8, 8)))


def test_norms_over_several_processes_fold_as_others_do():
    """They normalise by the same statistics in evaluation mode."""
    model = trained(build("small-cnn-w8", 10, (1, 8, 8)), (1, 8, 8))
    synchronise(model)
    assert counts(Frozen(model)) == (0, 0)


class Forked(nn.Module):
    """The norm's input is also added to its output: the convolution must stay as it is."""

    def __init__(self, again=False):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.again, self.head = again, nn.Linear(4, 10)

    def forward(self, images):
        before = self.conv(images)
        after = self.norm(before)
        after = after + self.norm(self.conv(images)) if self.again else after + before
        return self.head(after.mean(dim=(2, 3)))


class Peeking(Forked):
    """Looks at a weight of its own norm."""

    def forward(self, images):
        return super().forward(images) * self.norm.weight.mean()


class OwnStatistics(nn.Module):
    """A norm that always normalises by the batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 3, bias=False)
        self.norm = nn.BatchNorm2d(10, track_running_stats=False)

    def forward(self, images):
        return self.norm(self.conv(images)).mean(dim=(2, 3)) + images.mean()


def test_a_convolution_whose_output_goes_elsewhere_too_keeps_its_weights():
    """Its norm becomes a scale and shift instead."""
    model = trained(Forked(), (1, 8, 8))
    images = images_of((1, 8, 8))
    assert counts(Frozen(model)) == (0, 1)
    expected = model.eval()(images)
    torch.testing.assert_close(Frozen(model).current()(images), expected, rtol=1e-9, atol=1e-9)


class ForkedExit(Forked):
    """Only its first exit sees the convolution before the norm."""

    num_exits = 2

    def forward(self, images):
        return self.exit_logits(images)[-1]

    def exit_logits(self, images):
        before = self.conv(images)
        return [self.head(each.mean(dim=(2, 3))) for each in (before, self.norm(before).relu())]


def test_exits_are_held_against_the_models():
    """A convolution that an exit looks at keeps its weights, though the last exit is right."""
    model = trained(ForkedExit(), (1, 8, 8))
    images, frozen = images_of((1, 8, 8)), Frozen(model)
    assert counts(frozen) == (0, 1)
    expected = torch.stack(model.eval().exit_logits(images))
    found = torch.stack(frozen.current().exit_logits(images))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "network",
    [
        Forked(again=True),
        Peeking(),
        OwnStatistics(),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    ],
    ids=["called twice", "peeking", "own statistics", "no norm"],
)
def test_what_cannot_be_folded_is_attacked_as_it_is(network):
    """The model itself is its twin: nothing is guessed."""
    model = classifier(network, (1, 8, 8))
    assert Frozen(model).current() is model


@pytest.mark.parametrize("architecture", ["small-cnn-w8", "resnet18-w8", "wrn-10-1"])
def test_weights_rounded_beforehand_are_those_that_autocast_rounds(architecture):
    """To the bit: a pass does not have to round them anew."""
    shape = (3, 32, 32)
    model, images = trained(build(architecture, 10, shape), shape).float(), images_of(shape).float()
    expected, found = (
        Frozen(model, dtype=dtype).current() for dtype in (torch.float32, torch.bfloat16)
    )
    kinds = {b.dtype for n, b in found.network.named_buffers() if n.endswith("weight")}
    assert kinds == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found(images), expected(images))
        assert torch.equal(gradient(found, images), gradient(expected, images))


class FullPrecisionStem(nn.Module):
    """Leaves autocast in its first block, and enters it again."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv, self.last = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, images):
        with torch.autocast(images.device.type, enabled=False):
            features = self.norm(self.stem(images.float()))
        return self.head(self.last(self.conv(features.relu())).mean(dim=(2, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_outside_autocast_keeps_its_weights(dtype):
    """Its norm becomes a scale and shift; what is inside is folded as ever."""
    model = trained(FullPrecisionStem(), (3, 8, 8)).float()
    frozen, images = Frozen(model, dtype=dtype), images_of((3, 8, 8)).float()
    assert counts(frozen) == (0, 1)
    with torch.autocast("cpu", dtype):
        expected, found = model.eval()(images), frozen.current()(images)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


class _Kept(nn.Module):
    """Adds a convolution's own output to the normed one: no place for a fold."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 10)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, images):
        raw = self.conv(images)
        return self.last((raw + self.norm(raw)).mean(dim=(2, 3)))


def test_a_last_layer_of_zeros_hides_no_wrong_fold():
    """As many networks begin: all logits are 0, whatever was folded."""
    model = classifier(_Kept(), (3, 8, 8))
    frozen = Frozen(model)
    nn.init.ones_(model.network.last.weight)
    images = images_of((3, 8, 8)).to(model.mean)
    torch.testing.assert_close(frozen.current()(images), model.eval()(images))


class Branched(nn.Module):
    """A residual branch with an activation in place before its norm: no place for a fold."""

    def __init__(self, gain):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.norm = nn.ReLU(inplace=True), nn.BatchNorm2d(4)
        self.gain, self.head = nn.Parameter(gain), nn.Linear(4, 10)

    def forward(self, images):
        before = self.stem(images)
        branch = self.norm(self.act(self.conv(before)))
        return self.head((before + self.gain.view(-1, 1, 1) * branch).mean(dim=(2, 3)))


@pytest.mark.parametrize("gain", [torch.zeros(()), torch.full((4,), 1e-6)], ids=["one", "many"])
def test_a_branch_that_begins_at_zero_hides_no_wrong_fold(gain):
    """The folds are chosen once, and hold when training has opened the branch."""
    model = trained(Branched(gain), (3, 8, 8))
    frozen, images = Frozen(model), images_of((3, 8, 8))
    model.network.gain.data.fill_(1.0)
    torch.testing.assert_close(frozen.current()(images), model.eval()(images))
