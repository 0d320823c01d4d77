"""Networks of timm and torchvision are built by name, without weights of others."""

import pytest
import torch
from refusals import refused
from torchvision import models

from ltd_pipe.errors import ModelError
from ltd_pipe.models.registry import build, declared_normalisation


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


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvisions_rescaling_networks_declare_what_they_see(name):
    """Their own weights come with `transform_input`, which no state dict says."""
    theirs = models.get_model(name, transform_input=True, aux_logits=False, init_weights=False)
    mean, std = declared_normalisation(f"torchvision:{name}", 3)
    images = torch.rand(2, 3, 8, 8)
    usual = models.get_model_weights(name).DEFAULT.transforms()
    of = (torch.tensor(value)[:, None, None] for value in (usual.mean, usual.std, mean, std))
    their_mean, their_std, our_mean, our_std = of
    seen = theirs._transform_input((images - their_mean) / their_std)
    torch.testing.assert_close(seen, (images - our_mean) / our_std, atol=1e-5, rtol=1e-5)
