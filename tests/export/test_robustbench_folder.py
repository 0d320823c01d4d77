"""Folders for RobustBench hold everything but torch, and RobustBench takes them."""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.errors import ModelError
from ltd_pipe.export.formats import module_text, probes, write_export
from ltd_pipe.images.manifest import to_unit
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.models import networks
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.params.file import recipe_text

NETWORKS = [
    ("small-cnn-w4", (1, 8, 8)),
    ("resnet18-w4", (3, 16, 16)),
    ("preactresnet18-w4", (3, 16, 16)),
    ("wrn-10-1", (3, 16, 16)),
    ("small-cnn-exits-w4@2", (1, 8, 8)),
    ("resnet18-exits-w4", (3, 16, 16)),
    ("timm:test_resnet", (1, 32, 32)),
    ("torchvision:shufflenet_v2_x0_5", (3, 32, 32)),
]


@pytest.mark.parametrize(("architecture", "shape"), NETWORKS)
def test_the_folder_gives_the_logits(making_students, tmp_path, architecture, shape):
    """Written, loaded and compared, for each family; the facts lie beside."""
    _, model, facts = making_students(architecture, shape)
    agreement = write_export(model, facts, "robustbench", tmp_path / "zoo")
    assert agreement.difference <= agreement.allowed
    names = sorted(path.name for path in (tmp_path / "zoo").iterdir())
    assert names == ["ltd_pipe.json", "model.py", "weights.pt"]
    assert json.loads((tmp_path / "zoo/ltd_pipe.json").read_text()) == facts


def test_networks_of_ours_import_torch_alone():
    """Their classes are handed on as they are."""
    tree = ast.parse(inspect.getsource(networks))
    imported = {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", "math", "torch", "torch.nn"}


def test_weights_with_and_without_prefix_are_taken(making_students, tmp_path):
    """The zoo's loader takes `model.` away from names, and adds it to those of ImageNet."""
    _, model, facts = making_students("small-cnn-w4", (1, 8, 8))
    write_export(model, facts, "robustbench", tmp_path / "zoo")
    state = torch.load(tmp_path / "zoo/weights.pt")
    assert state.keys() == model.network.state_dict().keys()
    for prefix in ("", "model."):
        loaded = _exported(tmp_path / "zoo").Model().eval()
        loaded.load_state_dict({prefix + name: tensor for name, tensor in state.items()})
        with torch.no_grad():
            torch.testing.assert_close(loaded(probes((1, 8, 8))), model(probes((1, 8, 8))))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*model.extra"):
        loaded.load_state_dict(state | {"extra": torch.zeros(1)})


def test_networks_of_the_zoo_itself_are_refused(making_students, tmp_path):
    """There is nothing to bring there."""
    _, model, facts = making_students("small-cnn-w4", (1, 8, 8))
    model.architecture = "robustbench:Wong2020Fast"
    with refused(ModelError, where="robustbench:Wong2020Fast", what="network"):
        write_export(model, facts, "robustbench", tmp_path / "zoo")
    assert list(tmp_path.iterdir()) == []


def test_names_of_people_stay_out_of_the_code(making_students):
    """Class names are text of a data set; code is made of numbers and known names alone."""
    _, model, _ = making_students("small-cnn-w4", (1, 8, 8))
    text = module_text(model)
    assert not any(name in text for name in ("ant", "bee", "döner", "<b>")[1:])


@pytest.fixture
def robustbench():
    """RobustBench, where it is installed: in no environment of ours, since it wants an old timm."""
    reason = "robustbench and its autoattack are not installed; see docs/models.md"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluating = pytest.importorskip("robustbench.eval", reason=reason, exc_type=ImportError)
        utils = pytest.importorskip("robustbench.utils", reason=reason, exc_type=ImportError)
    return SimpleNamespace(eval=evaluating, utils=utils)


def _exported(folder):
    scope = {"__file__": str(folder / "model.py")}
    exec((folder / "model.py").read_text(), scope)  # noqa: S102
    return SimpleNamespace(**scope)


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet"])
def test_the_model_zoo_loads_it(robustbench, making_students, tmp_path, monkeypatch, dataset):
    """As an entry of the zoo, from the place where the zoo keeps its weights."""
    _, model, facts = making_students("resnet18-w4", (3, 16, 16))
    write_export(model, facts, "robustbench", tmp_path / "zoo")
    place = tmp_path / "models" / dataset / "Linf" / "Ours2026.pt"
    place.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "zoo/weights.pt", place)
    module = _exported(tmp_path / "zoo")
    utils = robustbench.utils
    zoo = utils.all_models[utils.BenchmarkDataset(dataset)][utils.ThreatModel.Linf]
    monkeypatch.setitem(zoo, "Ours2026", {"model": module.Model, "gdrive_id": "none"})
    loaded = utils.load_model("Ours2026", tmp_path / "models", dataset, "Linf")
    images = probes(model.shape)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images))


@pytest.fixture
def trained(train_beton):
    """A classifier of digits, trained for a second on clean images."""
    images, labels = _all_of(train_beton)
    model = Classifier(
        build("small-cnn-w8", 10, (1, 8, 8)),
        architecture="small-cnn-w8",
        class_names=train_beton.manifest.class_names,
        shape=(1, 8, 8),
        mean=[0.3],
        std=[0.3],
        temperature=2.0,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def test_benchmark_gives_our_number(robustbench, request, tmp_path, monkeypatch):
    """On the same images, from the same seed: clean and AutoAttack accuracy are ours."""
    # Only now: where RobustBench is absent, nothing is made for it.
    trained, test_beton = map(request.getfixturevalue, ("trained", "test_beton"))
    write_export(trained, {}, "robustbench", tmp_path / "zoo")
    save_classifier(trained, tmp_path / "model.safetensors")
    ours = _evaluated(tmp_path / "model.safetensors", test_beton.path)
    images, labels = _all_of(test_beton)
    # Its data sets are downloaded, and it draws its seed from the clock.
    monkeypatch.setattr(robustbench.eval, "load_clean_dataset", lambda *_: (images, labels))
    seeded = partial(robustbench.eval.AutoAttack, seed=0)
    monkeypatch.setattr(robustbench.eval, "AutoAttack", seeded)
    model, n = _exported(tmp_path / "zoo").load_model(), len(labels)
    clean, robust = robustbench.eval.benchmark(model, n_examples=n, eps=0.1, batch_size=n)
    assert clean == pytest.approx(ours["clean_accuracy"])
    assert 0.05 < robust < clean
    # Theirs is another version of the package, which may draw other starts.
    assert robust == pytest.approx(ours["autoattack_accuracy"], abs=1.5 / n)


def _all_of(beton):
    stream = ImageStream(beton, torch.device("cpu"))
    (batch,) = stream.batches(np.arange(beton.manifest.num_samples), 1000)
    return to_unit(batch.images), batch.labels


def _evaluated(checkpoint, data):
    (checkpoint.parent / "params.yaml").write_text(recipe_text("digits"))
    options = ["--eps", "0.1", "--batch-size", "60", "--eps-grid", "[]", "--pgd-steps", "1"]
    command = [sys.executable, "-m", "ltd_pipe", "evaluate", checkpoint, "--data", data, *options]
    path = f"{Path(__file__).parents[2] / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run(command, check=True, cwd=checkpoint.parent, env=environment)
    return json.loads((checkpoint.parent / "data/metrics.json").read_text())
