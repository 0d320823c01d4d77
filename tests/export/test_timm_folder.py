"""Folders for timm are loaded by timm."""

import json

import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from ltd_pipe.errors import ModelError
from ltd_pipe.export.formats import probes, timm_name, write_export

NETWORKS = [
    ("timm:resnet18", (1, 32, 32), 1.5),
    ("timm:test_resnet.r160_in1k", (3, 32, 32), 1.0),
    ("timm:test_vit", (3, 64, 64), 0.5),
    ("torchvision:resnet18", (3, 32, 32), 2.0),
]


@pytest.mark.parametrize(("architecture", "shape", "temperature"), NETWORKS)
def test_timm_gets_the_logits(making_students, tmp_path, architecture, shape, temperature):
    """By name of the folder, with the normalisation that timm finds in it."""
    _, model, facts = making_students(architecture, shape, temperature)
    write_export(model, facts, "timm", tmp_path / "timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    config = resolve_model_data_config(loaded)
    assert config["input_size"] == shape
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    images = probes(shape)[:3]
    with torch.no_grad():
        torch.testing.assert_close(loaded((images - mean) / std), model(images))
    assert json.loads((tmp_path / "timm/ltd_pipe.json").read_text()) == facts
    assert loaded.pretrained_cfg["label_names"] == list(model.class_names)


def test_timms_own_transform_feeds_the_model(making_students, tmp_path):
    """An image of the right size comes through unchanged but for the normalisation."""
    _, model, facts = making_students("timm:test_resnet", (3, 32, 32))
    write_export(model, facts, "timm", tmp_path / "timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(loaded))
    pixels = (probes((3, 32, 32))[0] * 255).to(torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    with torch.no_grad():
        logits = loaded(transform(picture)[None])
        torch.testing.assert_close(logits, model(pixels[None] / 255), atol=1e-5, rtol=1e-4)


def test_the_last_layer_can_be_replaced(making_students, tmp_path):
    """What timm's users do with a folder: other classes, the weights below kept."""
    _, model, facts = making_students("timm:test_resnet", (3, 32, 32))
    write_export(model, facts, "timm", tmp_path / "timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, num_classes=7)
    assert loaded(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert torch.equal(loaded.conv1[0].weight, model.network.conv1[0].weight)


@pytest.mark.parametrize(
    "architecture",
    ["small-cnn", "resnet18", "wrn-34-10", "torchvision:mobilenet_v3_small", "timm:none"],
)
def test_what_timm_does_not_know_is_refused(architecture):
    """Our ResNet-18 is another network than timm's: the name alone must not do."""
    with pytest.raises(ModelError, match="timm has no such network.*--to robustbench, onnx"):
        timm_name(architecture)


def test_a_network_of_the_same_name_with_other_weights_is_refused(making_students, tmp_path):
    """A name that both packages have promises nothing."""
    _, model, facts = making_students("small-cnn-w4", (3, 32, 32))
    model.architecture = "torchvision:resnet18"
    with pytest.raises(ModelError, match="timm's resnet18 has other weights"):
        write_export(model, facts, "timm", tmp_path / "timm")


def test_a_last_layer_without_weights_takes_no_temperature(making_students, tmp_path):
    """A temperature that cannot be put in must not get lost."""
    _, model, facts = making_students("timm:test_resnet", (3, 32, 32))
    model.network.get_classifier = torch.nn.Identity
    with pytest.raises(
        ModelError, match="cannot take the temperature .*: expected Linear, found Id"
    ):
        write_export(model, facts, "timm", tmp_path / "timm")
    assert list(tmp_path.iterdir()) == []
