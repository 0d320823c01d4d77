"""Networks of timm and torchvision are built by name, without weights of others."""

import pytest
import torch
from refusals import refused

from ltd_pipe.errors import ModelError
from ltd_pipe.models.registry import build


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("timm:resnet10t", (1, 32, 32)),
        ("timm:resnet10t", (3, 32, 32)),
        ("timm:vit_tiny_patch16_224", (3, 32, 32)),
        ("torchvision:squeezenet1_1", (3, 32, 32)),
        ("torchvision:vit_b_16", (3, 32, 32)),
    ],
)
def test_networks_of_other_packages_classify(name, shape):
    """For the number of classes, channels and size asked for, ready for training."""
    network = build(name, 7, shape)
    assert network.training
    assert network.eval()(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "fields"),
    [
        ("timm:resnet81", (3, 32, 32), {"what": "network", "remedy": "resnet"}),
        ("timm:hf-hub:someone/model", (3, 32, 32), {"what": "network"}),
        ("timm:", (3, 32, 32), {"what": "network"}),
        ("torchvision:resnet81", (3, 32, 32), {"what": "network", "remedy": "resnet18"}),
        ("torchvision:fcn_resnet50", (3, 32, 32), {"what": "network"}),
        (
            "torchvision:resnet18",
            (1, 32, 32),
            {"expected": "3 channels", "found": 1, "remedy": "prepare.channels"},
        ),
        ("torchvision:alexnet", (3, 8, 8), {"what": "images", "remedy": "Choose"}),
        ("timm:vit_tiny_patch16_224", (3, 30, 8), {"what": "images"}),
    ],
)
def test_names_and_images_that_do_not_go_together_are_refused(name, shape, fields):
    """Before any data are read; hubs are never asked."""
    with refused(ModelError, where=name, **fields):
        build(name, 10, shape)
