"""Other projects' weights are taken under whatever names and wrappers they use."""

import argparse
import json

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

from ltd_pipe.errors import CheckpointError, MissingError, ModelError
from ltd_pipe.models.checkpoint import load_classifier, save_classifier
from ltd_pipe.models.facts import read_facts
from ltd_pipe.models.foreign import columns_of, load_foreign, natural_order
from ltd_pipe.models.registry import build

_NETWORK = ("wrn-10-1", 3, (3, 8, 8))
_FOREIGN = ("wrn-10-1", ("x", "y", "z"), (3, 8, 8))
_IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    """A wide ResNet in evaluation mode."""
    return build(*_NETWORK).eval()


def _prefixed(prefix):
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _with_dead_block(state):
    dead = {k.replace("block1.", "sub_block1."): v for k, v in state.items() if "block1." in k}
    return _prefixed("module.")(state | dead)


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {"state_dict": state, "epoch": 200},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"net": {"state_dict": state}},
        lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1, model="wrn")},
        _prefixed("module."),
        _prefixed("module.model."),
        _prefixed("_orig_mod.network."),
        _prefixed("net."),
        _prefixed("student.backbone."),
        lambda state: _prefixed("module.")(state) | {"n_averaged": torch.tensor(5)},
        _with_dead_block,
        lambda state: state | {"aux1.fc.weight": torch.ones(2, 2)},
        lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
        lambda state: {k: v.half().float() if v.ndim else v for k, v in state.items()},
    ],
    ids=[
        "bare", "state_dict", "model", "nested", "timm's options", "DataParallel", "two prefixes",
        "compiled", "net", "names of one's own", "AveragedModel",
        "TRADES sub_block1", "googlenet", "torch 0.4", "same values",
    ],
)  # fmt: skip
def test_usual_wrappers_and_prefixes_are_taken_off(network, tmp_path, wrap):
    """The loaded model gives the network's own logits, in evaluation mode."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(tensor.half())
    torch.save(wrap(network.state_dict()), tmp_path / "a.pt")
    model = load_foreign(tmp_path / "a.pt", *_FOREIGN)
    assert torch.equal(model(_IMAGES), network(_IMAGES))
    assert model.class_names == ("x", "y", "z")


def test_safetensors_of_other_projects_are_taken(network, tmp_path):
    """With no metadata of ours."""
    save_file(_prefixed("module.")(network.state_dict()), tmp_path / "a.safetensors")
    model = load_foreign(tmp_path / "a.safetensors", *_FOREIGN)
    assert torch.equal(model(_IMAGES), network(_IMAGES))
    assert model.class_names == ("x", "y", "z")


def test_a_moving_average_is_preferred(network, tmp_path):
    """It is the model that such training scripts evaluate."""
    other = build(*_NETWORK).state_dict()
    torch.save({"model": other, "model_ema": network.state_dict()}, tmp_path / "a.pt")
    model = load_foreign(tmp_path / "a.pt", *_FOREIGN)
    assert torch.equal(model(_IMAGES), network(_IMAGES))


def test_half_precision_weights_become_float32(network, tmp_path):
    """Attacks run in float32."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    assert load_foreign(tmp_path / "a.pt", *_FOREIGN)(_IMAGES).dtype == torch.float32


@pytest.mark.parametrize("names", [("mean", "std"), ("mu", "sigma")])
def test_normalisation_in_the_file_is_used(network, tmp_path, names):
    """Left out, the model would see images it was not trained on."""
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    constants = {names[0]: mean.view(1, 3, 1, 1), names[1]: std.view(1, 3, 1, 1)}
    torch.save(_prefixed("module.")(network.state_dict() | constants), tmp_path / "a.pt")
    model = load_foreign(tmp_path / "a.pt", *_FOREIGN)
    normalised = (_IMAGES - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.equal(model(_IMAGES), network(normalised))
    with refused(
        CheckpointError,
        where=tmp_path / "a.pt: mean",
        what="normalisation",
        expected=[0, 0, 0],
        found=[0.4, 0.5, 0.6],
    ):
        load_foreign(tmp_path / "a.pt", *_FOREIGN, mean=[0, 0, 0], std=[1, 1, 1])
    load_foreign(tmp_path / "a.pt", *_FOREIGN, mean=mean.tolist(), std=std.tolist())


def test_normalisation_can_be_given(network, tmp_path):
    """Most files leave them to the code that trained them."""
    torch.save(network.state_dict(), tmp_path / "a.pt")
    constants = {"mean": [0.5] * 3, "std": [0.25] * 3}
    model = load_foreign(tmp_path / "a.pt", *_FOREIGN, **constants)
    assert torch.equal(model(_IMAGES), network((_IMAGES - 0.5) / 0.25))


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ({}, {"what": "state", "found": "dict"}),
        (torch.zeros(3), {"what": "state", "found": "Tensor"}),
        ({"epoch": 3}, {"what": "state", "found": "int under 'epoch'", "remedy": "alone"}),
        (
            {"state_dict": {"state_dict": {"state_dict": {"a": {}}}}},
            {"what": "state", "found": "dict under 'a'"},
        ),
        ({"conv1.weight": torch.zeros(1)}, {"what": "missing"}),
        (
            {"layer2.0.downsample.0.weight": torch.zeros(1), "fc.bias": torch.zeros(1)},
            {"what": "missing", "remedy": "NAME"},
        ),
        ({"module.x": torch.zeros(1), "x": torch.zeros(1)}, {"what": "twice"}),
    ],
    ids=["empty", "tensor", "no tensors", "deep", "another network", "theirs", "twice"],
)
def test_other_contents_are_refused(tmp_path, content, fields):
    """The line says what was found in place of weights."""
    torch.save(content, tmp_path / "a.pt")
    with refused(CheckpointError, where=tmp_path / "a.pt", **fields):
        load_foreign(tmp_path / "a.pt", *_FOREIGN)


def test_a_dict_that_holds_itself_is_refused(tmp_path):
    """Looking for the innermost wrapper ends."""
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "a.pt")
    with refused(
        CheckpointError, where=tmp_path / "a.pt", what="state", found="dict under 'model'"
    ):
        load_foreign(tmp_path / "a.pt", *_FOREIGN)


def test_an_absent_file_is_missing(tmp_path):
    """And not a damaged checkpoint."""
    with refused(MissingError, where=tmp_path / "absent.pt", what="file"):
        load_foreign(tmp_path / "absent.pt", *_FOREIGN)


def test_loading_leaves_the_callers_random_numbers_alone(network, tmp_path):
    """The network is built with weights that are thrown away."""
    torch.save(network.state_dict(), tmp_path / "a.pt")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_foreign(tmp_path / "a.pt", *_FOREIGN)
    assert torch.equal(torch.rand(3), expected)


NAMES = ("b1", "b10", "b2")
IN_FILES = [
    "b2\nb1\n\nb10\n",
    "\ufeffb2\r\nb1\r\nb10",
    json.dumps(["b2", "b1", "b10"]),
    json.dumps({"1": "b1", "2": "b10", "0": "b2"}),
    json.dumps({"b1": 1, "b10": 2, "b2": 0}),
    json.dumps({"0": ["b2", "two"], "1": ["b1", "one"], "2": ["ten", "b10"]}),
]


@pytest.mark.parametrize("text", IN_FILES)
def test_a_file_tells_the_order_of_the_outputs(tmp_path, text):
    """A name per line, or JSON as torchvision's and ImageNet's indices have it."""
    (tmp_path / "classes").write_text(text)
    assert columns_of(NAMES, tmp_path / "classes", None) == [1, 2, 0]


def test_class_names_of_a_file_compare_whatever_their_form_in_unicode(tmp_path):
    """A list that was written on a Mac."""
    (tmp_path / "classes").write_text("dog\nCafe\u0301\n")
    assert columns_of(("Caf\u00e9", "dog"), tmp_path / "classes", None) == [1, 0]


def test_an_order_needs_no_file():
    """timm's, torchvision's, or the data's own where nobody says."""
    assert natural_order(["B2", "a10", "b1", "a9"]) == ["a9", "a10", "b1", "B2"]
    assert columns_of(NAMES, None, "natural") == [0, 2, 1]
    assert columns_of(NAMES, None, "lexical") == [0, 1, 2]
    assert columns_of(("cat", "ant"), None, "lexical") == [1, 0]
    assert columns_of(NAMES, None, None) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("b1\nb2\n", "2, without 'b10'"),
        ("b1\nb2\nc\n", "3, without 'b10', with 'c', which the data have not"),
        ("b1\nb2\nb10\nb1\n", "4, some of them twice"),
        ('{"0": "b1", "2": "b2"}', None),
        ('{"a": 0.5}', None),
        ("[[]]", None),
        ("[", None),
    ],
)
def test_a_file_of_other_classes_is_refused(tmp_path, text, found):
    """Saying which lack; and what is no list of names at all."""
    (tmp_path / "classes").write_text(text)
    with pytest.raises(ModelError) as caught:
        columns_of(NAMES, tmp_path / "classes", None)
    assert caught.value.found == found


def test_columns_travel_with_the_checkpoint(network, tmp_path):
    """Each class gets its own output, also after saving; older readers refuse the file."""
    torch.save(network.state_dict(), tmp_path / "a.pt")
    model = load_foreign(tmp_path / "a.pt", *_FOREIGN, columns=[2, 0, 1])
    expected = network(_IMAGES)[:, [2, 0, 1]]
    assert torch.equal(model(_IMAGES), expected)
    save_classifier(model, tmp_path / "b.safetensors")
    again = load_classifier(tmp_path / "b.safetensors")
    assert torch.equal(again(_IMAGES), expected)
    assert read_facts(tmp_path / "b.safetensors")["version"] == 2
    plain = load_foreign(tmp_path / "a.pt", *_FOREIGN, columns=[0, 1, 2])
    save_classifier(plain, tmp_path / "c.safetensors")
    assert read_facts(tmp_path / "c.safetensors")["version"] == 1


@pytest.mark.parametrize("columns", [[0, 1], [0, 1, 1], [1, 2, 3]])
def test_columns_that_are_no_order_are_refused(network, tmp_path, columns):
    """Each output means one class."""
    torch.save(network.state_dict(), tmp_path / "a.pt")
    with refused(ModelError, where="wrn-10-1", what="columns", expected="each of 0 to 2 once"):
        load_foreign(tmp_path / "a.pt", *_FOREIGN, columns=columns)
