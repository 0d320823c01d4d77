"""What is not the same classifier is not published."""

import pytest
import torch
from made_classifiers import make_classifier, save_student
from torch import nn

from ltd_pipe.errors import ModelError
from ltd_pipe.export.formats import Deployed, export, probes, require_agreement
from ltd_pipe.models.classifier import Classifier


@pytest.fixture
def model(making_students):
    return making_students("small-cnn-w4", (1, 8, 8))[1]


def test_probes_are_the_same_images_in_range():
    """A function of the shape alone; black and white are among them."""
    images = probes((3, 8, 8))
    assert torch.equal(images, probes((3, 8, 8)))
    assert images.dtype == torch.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_equal_logits_agree(model):
    """The classifier agrees with itself without its checks, in batches of three sizes."""
    sizes = []

    def answer(images):
        sizes.append(len(images))
        return Deployed(model)(images)

    agreement = require_agreement(model, answer, "out")
    assert agreement.images == sum(sizes) == 16
    assert len(set(sizes)) == 3
    assert agreement.difference < agreement.allowed < 1e-3


SLIPS = {
    "no temperature": lambda model, images: model.raw_logits(images),
    "no normalisation": lambda model, images: model.network(images) / model.temperature,
    "another mean": lambda model, images: model(images + 1e-3),
    "another std": lambda model, images: model((images - 0.3) * 1.001 + 0.3),
    "a class too far": lambda model, images: model(images).roll(1, dims=1),
    "another order of images": lambda model, images: model(images).flip(0),
    "training mode": lambda model, images: model.train()(images),
    "black is forgotten": lambda model, images: model(images.clamp(min=0.01)),
    "not a number": lambda model, images: model(images) * float("nan"),
}


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS.keys())
def test_each_slip_of_an_export_is_refused(model, slip):
    """Errors that exporters make, each far above rounding."""
    reference = _copy(model)
    with pytest.raises(ModelError, match="out: gives other logits than the checkpoint"):
        require_agreement(reference, lambda images: slip(model, images), "out")


def test_another_shape_is_refused(model):
    """A graph that takes one image at a time."""
    with pytest.raises(ModelError, match=r"logits of 2 images: expected \(2, 4\), found \(1, 4\)"):
        require_agreement(model, lambda images: model(images[:1]), "out")


def test_logits_that_are_no_numbers_are_refused(model):
    """Two models that give NaN do not agree."""
    nn.init.constant_(model.network.linear.bias, float("nan"))
    with pytest.raises(ModelError, match="small-cnn-w4: gives logits that are NaN"):
        require_agreement(model, model, "out")


@pytest.mark.parametrize("target", ["robustbench", "timm", "torchscript"])
def test_the_order_of_the_classes_is_inside(tmp_path, target):
    """A network whose outputs stand in another order than the class names; else refused."""
    architecture = "timm:test_resnet" if target == "timm" else "small-cnn-w4"
    model = make_classifier(architecture, (3, 32, 32), columns=[2, 0, 3, 1])
    path = save_student(model, tmp_path / "model.safetensors")
    agreement = export(path, target, tmp_path / "out")
    assert agreement.difference < agreement.allowed


def _copy(model):
    copy = Classifier(
        type(model.network)(model.num_classes, model.shape, 4),
        architecture=model.architecture,
        class_names=model.class_names,
        shape=model.shape,
        mean=model.mean.tolist(),
        std=model.std.tolist(),
        temperature=model.temperature,
    )
    copy.load_state_dict(model.state_dict())
    return copy.eval()
