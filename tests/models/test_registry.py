"""Networks are found by name, and refused by name."""

import pytest
import torch
from refusals import refused

from ltd_pipe.errors import ModelError
from ltd_pipe.models import NETWORKS
from ltd_pipe.models.registry import build


@pytest.mark.parametrize("name", NETWORKS)
def test_every_documented_name_builds_a_network(name):
    """Built without memory: the wide ones have hundreds of megabytes of weights."""
    with torch.device("meta"):
        network = build(name, 10, (3, 32, 32))
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("small-cnn", (1, 8, 8)),
        ("small-cnn", (3, 32, 32)),
        ("small-cnn-w8", (3, 28, 20)),
        ("small-cnn-w8", (1, 64, 64)),
        ("resnet18-w8", (1, 8, 8)),
        ("preactresnet18-w8", (3, 32, 32)),
        ("wrn-10-1", (1, 8, 8)),
        ("wrn-16-1", (3, 48, 32)),
    ],
)
def test_networks_take_grey_and_colour_of_any_size(name, shape):
    """Logits are (B, K), differ between images, and every weight has a gradient."""
    network = build(name, 7, shape)
    logits = network(torch.rand(3, *shape))
    assert logits.shape == (3, 7)
    assert not torch.equal(logits[0], logits[1])
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("small-cnn", (1, 8, 8), 66_154),
        ("small-cnn", (3, 32, 32), 97_450),
        ("resnet18", (3, 32, 32), 11_173_962),
        ("wrn-34-10", (3, 32, 32), 46_160_474),
    ],
)
def test_networks_have_the_sizes_that_the_documentation_gives(name, shape, parameters):
    """The last two are the published sizes of these networks for ten classes."""
    with torch.device("meta"):
        network = build(name, 10, shape)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("name", ["small-cnn", "resnet18", "preactresnet18"])
def test_the_suffix_sets_the_width(name):
    """-wN is the number of channels after the first convolution."""
    with torch.device("meta"):
        network = build(f"{name}-w12", 10, (3, 32, 32))
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.out_channels == 12


@pytest.mark.parametrize("name", ["small-cnn", "resnet18-w8", "wrn-10-1"])
def test_equal_seeds_give_equal_weights(name):
    """The weights come from torch's global generator and from nowhere else."""
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([p.flatten() for p in build(name, 4, (3, 8, 8)).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet81", {"what": "architecture", "remedy": "resnet18"}),
        ("wrn-34", {"what": "architecture", "remedy": "wrn-34-"}),
        ("small-cnn-16", {"what": "architecture", "remedy": "small-cnn-w16"}),
        ("", {"what": "architecture", "remedy": "resnet18"}),
        ("xyz:resnet18", {"what": "architecture"}),
        ("resnet18-w", {"what": "architecture"}),
        ("resnet18-w0", {"what": "width", "expected": "1 to 512", "found": 0}),
        ("small-cnn-w999", {"what": "width", "expected": "1 to 512", "found": 999}),
        ("wrn-28-33", {"what": "widening", "expected": "1 to 32", "found": 33}),
        ("wrn-990-1", {"what": "depth", "expected": "1 to 118", "found": 990}),
        (
            "wrn-30-10",
            {"what": "deep", "expected": "6n + 4, such as 28 or 34", "remedy": "nearest"},
        ),
        ("wrn-4-10", {"what": "deep", "expected": "6n + 4, such as 28 or 34", "remedy": "is 10"}),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, fields):
    """A typing error costs one line, not a stack of frames."""
    with refused(ModelError, **fields):
        build(name, 10, (3, 32, 32))


@pytest.mark.parametrize(
    ("num_classes", "shape", "fields"),
    [
        (1, (3, 32, 32), {"what": "num_classes", "expected": "2 or more", "found": 1}),
        (
            10,
            (2, 32, 32),
            {"what": "shape", "expected": "(1 or 3, height, width)", "found": (2, 32, 32)},
        ),
        (10, (3, 0, 32), {"what": "shape", "expected": "(1 or 3, height, width)"}),
        (10, (3, 32), {"what": "shape", "expected": "(1 or 3, height, width)"}),
    ],
)
def test_impossible_sizes_are_refused(num_classes, shape, fields):
    """Before any memory is taken."""
    with refused(ModelError, where="resnet18", **fields):
        build("resnet18", num_classes, shape)
