"""Networks with several exits: the last is the network, each may stand alone."""

import pytest
import torch
from refusals import refused

from ltd_pipe.errors import ModelError
from ltd_pipe.models.checkpoint import load_classifier, save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build

NETWORKS = [
    ("small-cnn-exits-w4", (1, 8, 8), 3),
    ("small-cnn-exits-w4", (3, 50, 21), 4),
    ("resnet18-exits-w4", (3, 32, 32), 4),
]
IDS = ["digits", "odd", "resnet"]


def make(name, shape):
    network = build(name, 5, shape)
    options = {"mean": [0.3] * shape[0], "std": [0.2] * shape[0], "temperature": 1.5}
    names = tuple("abcde")
    model = Classifier(network, architecture=name, class_names=names, shape=shape, **options)
    return model.eval()


@pytest.mark.parametrize(("name", "shape", "count"), NETWORKS, ids=IDS)
def test_the_networks_logits_are_those_of_its_last_exit(name, shape, count):
    """As many exits as stages, all different, each through normalisation and temperature."""
    model, images = make(name, shape), torch.rand(3, *shape)
    logits = model.exit_logits(images)
    assert [row.shape for row in logits] == [(3, 5)] * count
    assert model.require_exits() == count
    assert torch.equal(logits[-1], model(images))
    for early in logits[:-1]:
        assert (early - logits[-1]).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "shape", "count"), NETWORKS, ids=IDS)
def test_every_exit_trains_its_own_weights_and_what_lies_before_it(name, shape, count):
    """The first exit's gradient reaches the first convolution and no later head."""
    model = make(name, shape)
    model.exit_logits(torch.rand(2, *shape))[0].logsumexp(1).sum().backward()
    found = {name for name, value in model.named_parameters() if value.grad is not None}
    assert not any("linear" in name or "heads.1" in name for name in found)
    assert any("heads.0" in name for name in found)
    assert model.require_exits() == count


def test_the_last_exit_is_the_plain_network():
    """Same trunk, same arithmetic: a plain state dict fits, but for the heads."""
    for plain, shape in (("small-cnn-w4", (1, 8, 8)), ("resnet18-w4", (3, 16, 16))):
        one, several = (
            build(plain, 5, shape).eval(),
            build(plain.replace("-w", "-exits-w"), 5, shape),
        )
        missing, unexpected = several.load_state_dict(one.state_dict(), strict=False)
        assert all(name.startswith("heads.") for name in missing)
        assert not unexpected
        images = torch.rand(2, *shape)
        assert torch.equal(several.eval()(images), one(images))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_one_exit_is_a_classifier_of_its_own(tmp_path, number):
    """It gives that exit's logits, also after a round trip through a checkpoint."""
    model, images = make("resnet18-exits-w4", (3, 16, 16)), torch.rand(2, 3, 16, 16)
    save_classifier(model.at_exit(number), tmp_path / "exit.safetensors")
    single = load_classifier(tmp_path / "exit.safetensors")
    assert single.architecture == f"resnet18-exits-w4@{number}"
    torch.testing.assert_close(single(images), model.exit_logits(images)[number - 1])
    assert single.temperature == 1.5


def test_a_single_exit_computes_nothing_behind_it():
    """Its later stages are not called at all."""
    single = make("resnet18-exits-w4", (3, 16, 16)).at_exit(2)
    single.network.layer3 = None
    assert single(torch.rand(1, 3, 16, 16)).shape == (1, 5)


def test_taking_an_exit_leaves_the_generator_alone():
    """The weights that are drawn and replaced cost no random number."""
    model, before = make("small-cnn-exits-w4", (1, 8, 8)), torch.get_rng_state()
    model.at_exit(1)
    assert torch.equal(torch.get_rng_state(), before)


REFUSED = [
    ("small-cnn-exits@0", {"what": "exit", "expected": "1 to 3", "found": 0}),
    ("resnet18-exits-w4@5", {"what": "exit", "expected": "1 to 4", "found": 5}),
    ("small-cnn@1", {"what": "architecture"}),
    ("resnet18-exits@", {"what": "architecture"}),
    ("preactresnet18-exits", {"what": "architecture"}),
    ("small-cnn-exits-w999", {"what": "width", "expected": "1 to 512", "found": 999}),
]


@pytest.mark.parametrize(("name", "fields"), REFUSED, ids=[name for name, _ in REFUSED])
def test_an_exit_that_is_not_there_is_refused(name, fields):
    """By its number, and by what the name can be."""
    with refused(ModelError, where=name, **fields):
        build(name, 5, (3, 8, 8))


def test_a_plain_network_has_no_exits_to_choose_from():
    """Named, with what to choose instead."""
    model = make("small-cnn-w4", (1, 8, 8))
    with refused(ModelError, where="small-cnn-w4", what="exit"):
        model.exit_logits(torch.rand(1, 1, 8, 8))
    with refused(ModelError, where="small-cnn-w4", what="exit"):
        model.at_exit(1)
