"""The classifier applies its own constants, keeps them, and refuses other images."""

import copy
import re

import pytest
import torch
from refusals import refused

from ltd_pipe.errors import ModelError
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build

_IMAGES = torch.linspace(0, 1, 2 * 64).reshape(2, 1, 8, 8)


def _make(**changed):
    facts = {
        "architecture": "small-cnn-w4",
        "class_names": ("ant", "bee"),
        "shape": (3, 8, 8),
    } | changed
    return Classifier(build("small-cnn-w4", 2, (3, 8, 8)), **facts)


def test_logits_are_the_networks_on_normalised_images_over_the_temperature(classifier):
    """network((x − mean) / std) / temperature, and raw_logits without the last division."""
    expected = classifier.network((_IMAGES - 0.3) / 0.2)
    torch.testing.assert_close(classifier.raw_logits(_IMAGES), expected)
    torch.testing.assert_close(classifier(_IMAGES), expected / 1.5)


def test_each_channel_has_its_own_constants():
    """Mean and std belong to the channel axis, not to a row or a column."""
    model = _make(mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 4.0]).eval()
    images = torch.rand(2, 3, 8, 8)
    by_hand = torch.stack(
        [(images[:, c] - 0.1 * (c + 1)) / 2**c for c in range(3)],
        dim=1,
    )
    torch.testing.assert_close(model(images), model.network(by_hand))


def test_without_constants_images_are_passed_as_they_are():
    """Mean 0, standard deviation 1 and temperature 1 change no bit."""
    model = _make().eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(images), model.network(images))


def test_the_constants_cannot_be_trained_or_set(classifier):
    """No parameter but the network's, and assigning a temperature is an error."""
    names = {name for name, _ in classifier.named_parameters()}
    assert names == {f"network.{name}" for name, _ in classifier.network.named_parameters()}
    with pytest.raises(AttributeError):
        classifier.temperature = 2.0
    assert classifier.temperature == 1.5


def test_a_copy_computes_the_same(classifier):
    """Moving averages are kept in deep copies."""
    twin = copy.deepcopy(classifier)
    assert torch.equal(twin(_IMAGES), classifier(_IMAGES))
    assert (twin.temperature, twin.class_names) == (1.5, ("ant", "bee", "cat"))


def test_the_constants_move_with_the_model(classifier):
    """`.to()` takes mean and std along: they are buffers."""
    assert classifier.to(torch.float64)(_IMAGES.double()).dtype == torch.float64
    assert classifier.to("meta").mean.is_meta


@pytest.mark.parametrize(
    ("images", "fields"),
    [
        (
            torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
            {"what": "dtype", "expected": torch.float32, "found": torch.uint8, "remedy": "uint8"},
        ),
        (
            torch.zeros(2, 1, 8, 8, dtype=torch.float64),
            {"what": "dtype", "expected": torch.float32, "found": torch.float64},
        ),
        (
            torch.zeros(2, 3, 8, 8),
            {"what": "shape", "expected": "(B, 1, 8, 8)", "found": (2, 3, 8, 8)},
        ),
        (
            torch.zeros(2, 8, 8, 1),
            {"what": "shape", "expected": "(B, 1, 8, 8)", "found": (2, 8, 8, 1)},
        ),
        (torch.zeros(1, 8, 8), {"what": "shape", "expected": "(B, 1, 8, 8)", "found": (1, 8, 8)}),
    ],
    ids=["bytes", "double", "colour", "channels last", "no batch"],
)
def test_other_images_are_refused(classifier, images, fields):
    """By forward and raw_logits alike, before the network sees them."""
    for call in (classifier, classifier.raw_logits):
        with refused(ModelError, where="small-cnn-w4", **fields):
            call(images)


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        (
            {"temperature": 0.0},
            {"what": "temperature", "expected": "a number above 0", "found": 0.0},
        ),
        (
            {"temperature": float("nan")},
            {"what": "temperature", "expected": "a number above 0", "found": re.compile("nan")},
        ),
        ({"mean": [0.5]}, {"what": "mean", "expected": "3 numbers", "found": [0.5]}),
        ({"std": [1.0, 1.0, float("inf")]}, {"what": "std", "expected": "3 numbers"}),
        (
            {"std": [1.0, 0.0, 1.0]},
            {"what": "std", "expected": "numbers above 0", "found": [1.0, 0.0, 1.0]},
        ),
        (
            {"class_names": ("ant", "ant")},
            {"what": "class", "expected": "two or more, all different", "found": "ant, ant"},
        ),
        (
            {"class_names": ()},
            {"what": "class", "expected": "two or more, all different", "found": "none"},
        ),
    ],
    ids=str,
)
def test_impossible_constants_are_refused(changed, fields):
    """At construction, so that no such model exists."""
    with refused(ModelError, where="small-cnn-w4", **fields):
        _make(**changed)


@pytest.mark.parametrize(
    ("names", "shape", "fields"),
    [
        (
            ("ant", "bee", "cat"),
            (3, 8, 8),
            {"what": "image", "expected": "(1, 8, 8) by the model", "found": (3, 8, 8)},
        ),
        (("ant", "bee"), (1, 8, 8), {"what": "classes", "expected": "3 by the model", "found": 2}),
        (
            ("ant", "cat", "bee"),
            (1, 8, 8),
            {"what": "class", "expected": "'bee' by the model", "found": "'cat'"},
        ),
    ],
    ids=["channels", "number", "order"],
)
def test_data_of_other_classes_or_shape_are_refused(classifier, names, shape, fields):
    """Classes in another order would count right answers as wrong ones."""
    with refused(ModelError, where="test.beton", **fields):
        classifier.require_data(names, shape, "test.beton")


def test_its_own_data_are_accepted(classifier):
    """Whether classes come as a tuple or a list."""
    classifier.require_data(["ant", "bee", "cat"], (1, 8, 8), "test.beton")
    classifier.class_names = ("Caf\u00e9", "bee", "cat")
    classifier.require_data(["Cafe\u0301", "bee", "cat"], (1, 8, 8), "test.beton")
