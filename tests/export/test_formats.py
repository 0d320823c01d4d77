"""Exports give the logits of the checkpoint in the libraries that they are for."""

import json
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from made_classifiers import make_classifier, save_student
from PIL import Image
from refusals import refused
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

from ltd_pipe.errors import MachineError, ModelError
from ltd_pipe.export import formats
from ltd_pipe.export.formats import (
    Deployed,
    export,
    export_facts,
    probes,
    require_agreement,
    timm_name,
    write_export,
)
from ltd_pipe.images.decode import resize
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.provenance import sha256_file


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
    with refused(ModelError, where="out", what="logits"):
        require_agreement(reference, lambda images: slip(model, images), "out")


def test_another_shape_is_refused(model):
    """A graph that takes one image at a time."""
    with refused(ModelError, where="out", what="logits", expected=(2, 4), found=(1, 4)):
        require_agreement(model, lambda images: model(images[:1]), "out")


def test_logits_that_are_no_numbers_are_refused(model):
    """Two models that give NaN do not agree."""
    nn.init.constant_(model.network.linear.bias, float("nan"))
    with refused(ModelError, where="small-cnn-w4", what="logits"):
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


def test_facts_say_what_a_model_is(making_students):
    """Classes, threat model, hash, labels, and what is inside."""
    path, model, facts = making_students("small-cnn-w4", (1, 8, 8))
    assert facts["checkpoint_sha256"] == sha256_file(path)
    assert facts["class_names"] == list(model.class_names)
    assert facts["threat_model"] == {"norm": "linf", "eps": 0.1}
    assert facts["labels"] == {"kind": "ltd", "identity": "a" * 64, "temperature": 1.5}
    assert facts["data"] == {"dataset": "digits", "fingerprint": "f" * 64}
    assert facts["input"]["shape"] == ["batch", 1, 8, 8]
    assert facts["input"]["mean"] == model.mean.tolist()
    assert facts["temperature"] == 1.5


def test_a_teacher_that_was_asked_in_the_run_is_named(making_students, tmp_path):
    """By its hash: there is no store whose identity would tell."""
    model = making_students("small-cnn-w4", (1, 8, 8))[1]
    facts = {"params": {"label_kind": "live"}, "teacher": {"sha256": "c" * 64}}
    save_classifier(model, tmp_path / "model.safetensors", kind="student", **facts)
    found = export_facts(tmp_path / "model.safetensors")["labels"]
    assert found == {"kind": "live", "teacher_sha256": "c" * 64}


def test_a_teacher_has_no_threat_model(making_students, tmp_path):
    """It was trained on clean images: its eps, if any, is of something else."""
    model = making_students("small-cnn-w4", (1, 8, 8))[1]
    save_classifier(model, tmp_path / "teacher.safetensors", kind="teacher", params={"eps": 0.1})
    facts = export_facts(tmp_path / "teacher.safetensors")
    assert facts["threat_model"] is facts["labels"] is facts["data"] is facts["seed"] is None


def test_equal_checkpoints_give_equal_facts(making_students):
    """Plain values, which JSON brings back as they are."""
    path, _, facts = making_students("small-cnn-w4", (1, 8, 8))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts == export_facts(path)


@pytest.fixture(scope="module")
def written(making_students, tmp_path_factory):
    """One file, the model that it was written from, and its facts: an export takes seconds."""
    _, model, facts = making_students("wrn-10-1", (3, 8, 8))
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_export(model, facts, "onnx", path)
    return path, model, facts


def test_one_file_has_all_weights(making_students, tmp_path, monkeypatch):
    """Large ones, too, which torch's exporter puts into another, that would stay behind."""
    from torch.onnx._internal.exporter import _onnx_program

    _, model, facts = making_students("small-cnn-w4", (1, 8, 8))
    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 100)
    write_export(model, facts, "onnx", tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    moved = (tmp_path / "model.onnx").rename(tmp_path / "other.onnx")
    onnxruntime.InferenceSession(moved, providers=["CPUExecutionProvider"])
    monkeypatch.setattr(formats, "_MOST_ONNX_BYTES", 100)
    with refused(ModelError, where="small-cnn-w4", what="one ONNX file", remedy="torchscript"):
        write_export(model, facts, "onnx", tmp_path / "model.onnx")


def test_onnxruntime_gets_the_logits(written):
    """For a batch of a size that was never tried."""
    path, model, _ = written
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,), (end,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.shape[1:], end.name) == ("images", [3, 8, 8], "logits")
    images = probes(model.shape)[:5]
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(images))


def test_facts_travel_and_no_path_does(written):
    """The file says what it is, and nothing of the machine that wrote it."""
    path, _, facts = written
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["ltd_pipe"]) == facts
    content = path.read_bytes()
    for place in (Path(torch.__file__).parents[1], Path(__file__).parents[2], path.parent):
        assert str(place).encode() not in content
    assert [prop.key for prop in onnx.load(path).metadata_props] == ["ltd_pipe"]


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(written, monkeypatch, tmp_path, missing):
    """Before anything is written."""
    monkeypatch.setitem(sys.modules, missing, None)
    with refused(MachineError, where=missing, what="installed", remedy="onnxscript"):
        write_export(written[1], written[2], "onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_facts_travel_in_torchscript_and_no_path_does(making_students, tmp_path):
    """The archive says what it is, and nothing of the machine that wrote it."""
    _, model, facts = making_students("small-cnn-w4", (1, 8, 8))
    write_export(model, facts, "torchscript", tmp_path / "model.pt")
    files = {"ltd_pipe.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that TorchScript will go
        torch.jit.load(tmp_path / "model.pt", _extra_files=files)
    assert json.loads(files["ltd_pipe.json"]) == facts
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b'"format": "ltd-export"' in content
    for place in (Path(torch.__file__).parents[1], Path(__file__).parents[2], tmp_path):
        assert str(place).encode() not in content


class _Moody(nn.Module):
    """Answers a single image otherwise: a trace sees one of its two sides."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 4)

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        return logits + 1 if len(images) == 1 else logits


def test_what_cannot_be_traced_is_not_published(tmp_path):
    """A branch is lost in a trace; the comparison finds it, and nothing is left."""
    model = Classifier(
        _Moody(),
        architecture="moody",
        class_names="abcd",
        shape=(1, 8, 8),
        mean=[0.3],
        std=[0.2],
    ).eval()
    with refused(ModelError, where=tmp_path / "model.pt", what="logits"):
        write_export(model, {}, "torchscript", tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


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


def test_timms_own_transform_resizes_as_we_do(making_students, tmp_path):
    """The model gets the pixels on which it was evaluated, whatever the files' size."""
    _, model, facts = making_students("timm:test_resnet", (3, 32, 32))
    write_export(model, facts, "timm", tmp_path / "timm")
    config = resolve_model_data_config(
        timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    )
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    found = create_transform(**config | {"mean": (0, 0, 0), "std": (1, 1, 1)})(
        Image.fromarray(pixels)
    )
    expected = torch.from_numpy(resize(pixels, 32).copy()).permute(2, 0, 1)
    torch.testing.assert_close(found * 255, expected.float())


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
    with refused(
        ModelError,
        where=architecture,
        what="timm",
        expected=re.compile("one that was trained as timm:NAME, or"),
        remedy="--to",
    ):
        timm_name(architecture)


def test_a_network_of_the_same_name_with_other_weights_is_refused(making_students, tmp_path):
    """A name that both packages have promises nothing."""
    _, model, facts = making_students("small-cnn-w4", (3, 32, 32))
    model.architecture = "torchvision:resnet18"
    with refused(ModelError, where="torchvision:resnet18", what="resnet18"):
        write_export(model, facts, "timm", tmp_path / "timm")


def test_a_last_layer_without_weights_takes_no_temperature(making_students, tmp_path):
    """A temperature that cannot be put in must not get lost."""
    _, model, facts = making_students("timm:test_resnet", (3, 32, 32))
    model.network.get_classifier = torch.nn.Identity
    with refused(
        ModelError,
        where="timm:test_resnet",
        what="temperature",
        expected="Linear",
        found="Identity",
    ):
        write_export(model, facts, "timm", tmp_path / "timm")
    assert list(tmp_path.iterdir()) == []


ALONE = """
import sys, warnings, torch
sys.modules["ltd_pipe"] = None  # an import of it would fail
sys.path.insert(0, "zoo")
warnings.simplefilter("ignore")
from model import load_model
model, traced, images = load_model(), torch.jit.load("model.pt"), torch.load("images")
assert not model.training
torch.save([model(images), traced(images)], "logits")
"""


def test_another_process_needs_torch_alone(making_students, tmp_path):
    """Moved elsewhere, without our packages, for a batch of a size that was never tried."""
    _, model, facts = making_students("wrn-10-1", (3, 16, 16))
    write_export(model, facts, "robustbench", tmp_path / "zoo")
    write_export(model, facts, "torchscript", tmp_path / "model.pt")
    images, elsewhere = probes(model.shape)[:5], tmp_path / "elsewhere"
    elsewhere.mkdir()
    torch.save(images, elsewhere / "images")
    for name in ("zoo", "model.pt"):
        shutil.move(tmp_path / name, elsewhere)
    subprocess.run([sys.executable, "-c", ALONE], check=True, cwd=elsewhere)
    with torch.no_grad():
        expected = model(images)
    for logits in torch.load(elsewhere / "logits"):
        torch.testing.assert_close(logits, expected)
