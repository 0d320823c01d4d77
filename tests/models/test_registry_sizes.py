"""Networks that can be trained on growing images, and those that cannot."""

import pytest
import torch
from refusals import refused

from ltd_pipe.errors import ModelError
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build, require_sizes

SIZES = [(32, 32), (64, 64)]


def classifier(architecture, shape=(3, 64, 64)):
    network = build(architecture, 2, shape)
    return Classifier(network, architecture=architecture, class_names=("a", "b"), shape=shape)


@pytest.mark.parametrize(
    "name",
    ["resnet18-w4", "preactresnet18-w4", "wrn-10-1", "timm:resnet10t", "torchvision:resnet18"],
)
def test_networks_that_average_over_places_take_any(name):
    """And are left as they were: mode, statistics, and the shape that they insist on."""
    model = classifier(name)
    model.network.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    require_sizes(model, SIZES)
    assert (model.training, model.network.training) == (True, False)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with refused(
        ModelError, where=name, what="shape", expected="(B, 3, 64, 64)", found=(1, 3, 32, 32)
    ):
        model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["small-cnn-w4", "timm:vit_tiny_patch16_224"])
def test_networks_of_one_size_are_refused(name):
    """Before the first step, with what the network itself says."""
    with refused(ModelError, where=name, what="images", remedy="without"):
        require_sizes(classifier(name), SIZES)


@pytest.mark.parametrize("shape", [(3, 64, 48), (3, 48, 48)], ids=["oblong", "smaller"])
def test_images_that_cannot_grow_so_far_are_refused(shape):
    """Sizes are squares, up to the data's."""
    with refused(ModelError, where="resnet18-w4", what="grow"):
        require_sizes(classifier("resnet18-w4", shape), SIZES)


def test_other_sizes_are_taken_in_the_block_only():
    """Also when the block fails, and never others than were named."""
    model = classifier("resnet18-w4").eval()
    with model.also_taking([(32, 32)]):
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 2)
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
        for shape in ((3, 48, 48), (1, 32, 32)):
            with refused(ModelError, where="resnet18-w4", what="shape", expected="(B, 3, 64, 64)"):
                model(torch.zeros(2, *shape))
    with pytest.raises(ValueError, match="stop"), model.also_taking([(32, 32)]):
        raise ValueError("stop")
    with refused(
        ModelError,
        where="resnet18-w4",
        what="shape",
        expected="(B, 3, 64, 64)",
        found=(2, 3, 32, 32),
    ):
        model(torch.zeros(2, 3, 32, 32))
