"""Other projects' weights at the command line: right, or refused with what to do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from ltd_pipe.images.sources import open_source
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.models.facts import read_facts
from ltd_pipe.models.registry import build
from ltd_pipe.params import PrepareParams

TEACHER = "data/teacher/model.safetensors"
ARCH = ("--arch", "small-cnn-w8")
# Digit d is in folder d + 5: as text they are sorted 10, 11, 12, 13, 14, 5, 6, 7, 8, 9.
NATURAL = [str(digit + 5) for digit in range(10)]


@pytest.fixture
def numbered(project):
    """The trained teacher as foreign weights `net.pt`, and digits in folders of numbers."""
    torch.save(safetensors.torch.load_file(TEACHER), "net.pt")
    for split in ("train", "test"):
        source = open_source(PrepareParams(dataset="digits", channels=1), split)
        for i in range(120):
            place = Path("photos", split, NATURAL[source.labels[i]], f"{i}.png")
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.images[i]).save(place)
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("dataset: digits", "dataset: folder, path: photos"))
    return project


@pytest.fixture
def prepared(ltd_pipe, numbered):
    """The same as betons in `o`."""
    outcome = ltd_pipe("prepare", "--out", "o")
    assert outcome.code == 0, outcome.err
    return numbered


def scaled(path, factor):
    """The teacher's weights, for images that are `factor` times as bright."""
    state = safetensors.torch.load_file(TEACHER)
    first = next(name for name, tensor in state.items() if tensor.ndim == 4)
    state[first] = state[first] / factor
    torch.save(state, path)
    return path


def disagreement(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["disagreement"]


def test_another_order_of_classes_is_refused_or_said(ltd_pipe, prepared):
    """Label, teacher and evaluate: refused as they are, right with the order or the names."""
    label = ("label", "--teacher", "net.pt", *ARCH, "--data", "o/train.beton")
    refused = ltd_pipe(*label, "--out", "no.zarr")
    assert refused.code == 1
    assert "'10' as '5'" in refused.err
    assert "pass --class-order natural" in refused.err
    assert not Path("no.zarr").exists()
    Path("names.txt").write_text("\n".join(NATURAL))
    for number, words in enumerate((["--class-order", "natural"], ["--classes", "names.txt"])):
        found = ltd_pipe(*label, *words, "--out", f"{number}.zarr", "--json")
        assert disagreement(found) < 0.2
    first, second = (SoftLabels.open(Path(f"{number}.zarr")) for number in (0, 1))
    assert np.array_equal(first.gather(np.arange(120)), second.gather(np.arange(120)))

    take = ("teacher", "--checkpoint", "net.pt", "--data", "o", "--out", "t", "--force")
    refused = ltd_pipe(*take)
    assert (refused.code, Path("t/model.safetensors").exists()) == (1, False)
    assert ltd_pipe(*take, "--class-order", "natural").code == 0
    facts = read_facts(Path("t/model.safetensors"))
    assert facts["clean_accuracy"] > 0.8
    assert facts["columns"] == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    own = ltd_pipe(*label[:2], "t/model.safetensors", *label[5:], "--out", "own.zarr", "--json")
    assert disagreement(own) < 0.2
    third = SoftLabels.open(Path("own.zarr"))
    assert np.array_equal(first.gather(np.arange(120)), third.gather(np.arange(120)))

    measure = ("evaluate", "net.pt", *ARCH, "--data", "o/test.beton", "--force", "--quick")
    assert "another order than the data" in ltd_pipe(*measure).err
    outcome = ltd_pipe(*measure, "--class-order", "natural", "--json")
    assert json.loads(outcome.out)["clean_accuracy"] > 0.8


def test_an_order_that_may_be_another_is_warned_of(ltd_pipe, prepared, monkeypatch):
    """Where too few images tell, and nobody said it."""
    monkeypatch.setattr("ltd_pipe.evaluation.statistics.permutation", lambda *_: {})
    label = ("label", "--teacher", "net.pt", *ARCH, "--data", "o/train.beton", "--out", "a.zarr")
    outcome = ltd_pipe(*label)
    assert "warning: net.pt: class 0 is taken to be '10'; in natural order" in outcome.err
    outcome = ltd_pipe(*label, "--force", "--class-order", "lexical")
    assert (outcome.code, "natural order" in outcome.err) == (0, False)


def test_the_whole_is_looked_at_as_well(ltd_pipe, prepared, monkeypatch):
    """An order that a few images did not show stops before the store is published."""
    monkeypatch.setattr("ltd_pipe.stages.model_options._settle", lambda *_, **__: "")
    label = ("label", "--teacher", "net.pt", *ARCH, "--data", "o/train.beton", "--out", "a.zarr")
    outcome = ltd_pipe(*label)
    assert outcome.code == 1
    assert "teacher 1 of a.zarr: has the classes in another order" in outcome.err
    assert not Path("a.zarr").exists()


REFUSED = [
    (["label", "--teacher", "levels.pt", *ARCH, "--out", "a.zarr"], "multiplied by 255"),
    (["teacher", "--checkpoint", "levels.pt", "--out", "t"], "multiplied by 255"),
    (["audit", "levels.pt", *ARCH, "--force"], "multiplied by 255"),
    (
        ["label", "--teacher", "net.pt", *ARCH, "--mean", "0.9", "--std", "0.05", "--out", "a"],
        "our normalisation is undone",
    ),
    (
        ["evaluate", "--quick", "--transfer-from", "levels.pt", "--transfer-arch", "small-cnn-w8",
         "--force"],
        "multiplied by 255",
    ),
]  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: words[0][0])
def test_weights_on_another_scale_are_refused(ltd_pipe, project, words):
    """Whatever asks them, before anything is written."""
    torch.save(safetensors.torch.load_file(TEACHER), "net.pt")
    scaled("levels.pt", 255)
    before = {path for path in Path().rglob("*") if path.is_file()}
    outcome = ltd_pipe(*words[0])
    assert outcome.code == 1, outcome.out
    assert words[1] in outcome.err
    assert {path for path in Path().rglob("*") if path.is_file()} - before <= {
        Path("data/audit/.audit.json.lock")
    }


def test_what_nothing_decides_is_taken_as_declared(ltd_pipe, project):
    """Weights that know nothing: it is said, recorded, and can be said otherwise."""
    torch.manual_seed(0)
    torch.save(build("timm:test_resnet", 10, (3, 8, 8)).state_dict(), "net.pt")
    Path("params.yaml").write_text(
        Path("params.yaml").read_text().replace("channels: 1", "channels: 3")
    )
    assert ltd_pipe("prepare", "--out", "o").code == 0
    words = ["--teacher", "net.pt", "--arch", "timm:test_resnet", "--data", "o/train.beton"]
    outcome = ltd_pipe("label", *words, "--out", "a.zarr")
    assert outcome.code == 0, outcome.err
    assert "mean 0.5,0.5,0.5, std 0.5,0.5,0.5" in outcome.err
    assert "--mean 0,0,0 --std 1,1,1 takes none; timm declares it" in outcome.err
    none = ["--mean", "0,0,0", "--std", "1,1,1"]
    outcome = ltd_pipe("label", *words, *none, "--out", "b.zarr")
    assert outcome.code == 0, outcome.err
    declared, plain = (
        SoftLabels.open(Path(store)).attributes.teachers[0].mean for store in ("a.zarr", "b.zarr")
    )
    assert (declared, plain) == ((0.5, 0.5, 0.5), (0, 0, 0))


def test_a_transfer_source_has_a_scale_and_an_accuracy(ltd_pipe, project):
    """Its normalisation can be said; what it knows of the images is recorded and shown."""
    scaled("levels.pt", 255)
    torch.save(build("small-cnn-w8", 10, (1, 8, 8)).state_dict(), "new.pt")
    words = [
        "--transfer-from",
        "levels.pt",
        "--transfer-from",
        "new.pt",
        "--transfer-from",
        TEACHER,
    ]
    words += ["--transfer-arch", "small-cnn-w8"]
    words += ["--transfer-mean", "0", "--transfer-std", str(1 / 255)]
    words += ["--transfer-mean", "0", "--transfer-std", "1", "--force"]
    outcome = ltd_pipe("evaluate", *words)
    assert outcome.code == 0, outcome.err
    metrics = json.loads(Path("data/metrics.json").read_text())
    known = {row["source"]: row["source_clean_accuracy"] for row in metrics["attacks"][-4:-1]}
    assert known["levels.pt"] == known[TEACHER] > 0.7 > known["new.pt"]
    assert f", source {known[TEACHER]:.2%} clean" in outcome.out
    (warning,) = metrics["warnings"]
    assert "transfer from new.pt was not tried in earnest" in warning

    outcome = ltd_pipe("audit", *words, "--steps", "2", "--square-queries", "2", "--report-only")
    assert outcome.code == 0, outcome.err
    found = json.loads(Path("data/audit/audit.json").read_text())
    assert found["source_clean_accuracy"][TEACHER] > 0.7
    assert len(found["not_made"]) == 1
    names = [row["name"] for row in found["findings"]]
    assert [name for name in names if "new.pt" in name] == []
    assert f"white box beats transfer from {TEACHER}" in names


USAGE = [
    ["label", "--mean", "123.675", "--std", "58.395"],
    ["label", "--teacher", "net.pt", *ARCH, "--mean", "0.5"],
    ["label", "--teacher", "net.pt", *ARCH, "--classes", "c", "--class-order", "natural"],
    ["evaluate", "--transfer-from", TEACHER, "--transfer-mean", "0", "--transfer-std", "1"],
    ["evaluate", "--transfer-from", "net.pt", "--transfer-arch", "a", "--transfer-arch", "b"],
]


@pytest.mark.parametrize("words", USAGE)
def test_options_that_cannot_be_meant_are_usage_errors(ltd_pipe, project, words):
    """Values of pixels in 0…255, one of a pair, two of one, options without their model."""
    shutil.copy(TEACHER, "net.pt")
    torch.save(safetensors.torch.load_file(TEACHER), "net.pt")
    outcome = ltd_pipe(*words, "--force")
    assert outcome.code == 2, outcome.err


def test_what_is_meant_in_place_of_pixels_to_255_is_said(ltd_pipe, project):
    """At the command line and in params.yaml."""
    words = ("--mean", "123.675,116.28,103.53", "--std", "0.5,0.5,0.5")
    assert "perhaps 0.485,0.456,0.406 is meant" in ltd_pipe("label", *words).err
    outcome = ltd_pipe("teacher", "-S", "teacher.mean=[123.675]", "--force")
    assert outcome.code == 2
    assert "teacher.mean: expected values for pixels in [0, 1]; perhaps [0.485]" in outcome.err
