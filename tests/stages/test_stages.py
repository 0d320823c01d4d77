"""Each stage does what it says, twice the same, and refuses what would spoil the science."""

import hashlib
import json
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from made_answers import write_store
from PIL import Image
from refusals import refused

from ltd_pipe.evaluation.statistics import mean_gap, reliability
from ltd_pipe.images.beton import open_beton
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.labels import SoftLabels
from ltd_pipe.models.checkpoint import load_classifier
from ltd_pipe.models.facts import read_facts
from ltd_pipe.stages.fitting import _Screen

TEACHER = "data/teacher/model.safetensors"


def digest(path):
    path = Path(path)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            total.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return total.hexdigest()


def test_prepare_writes_both_betons(ltd_pipe, project):
    """All 1,797 digits are in one of them, and the summary says how many."""
    outcome = ltd_pipe("prepare", "--out", "all")
    assert outcome.code == 0, outcome.err
    train, test = (json.loads(Path(f"all/{s}.beton.json").read_text()) for s in ("train", "test"))
    assert train["num_samples"] + test["num_samples"] == 1797
    assert f"all/train.beton: {train['num_samples']:,} images of 1×8×8, 10 classes" in outcome.out


def test_teacher_facts_tell_how_it_was_made(project):
    """Accuracy, calibration, data and parameters are in the checkpoint itself."""
    facts = read_facts(Path(TEACHER))
    assert facts["kind"] == "teacher"
    test = open_beton(Path("data/test.beton"))
    whole = np.arange(test.manifest.num_samples)
    images = next(ImageStream(test, torch.device("cpu")).batches(whole, len(whole)))
    with torch.no_grad():
        answers = load_classifier(Path(TEACHER)).eval()(images.images / 255).softmax(dim=1)
    confidence, predicted = answers.max(dim=1)
    right = predicted == images.labels
    assert facts["clean_accuracy"] == pytest.approx(right.double().mean())
    gap = mean_gap(reliability(confidence.numpy(), right.numpy()))
    assert facts["expected_calibration_error"] == pytest.approx(gap, abs=1e-5)
    assert facts["params"]["epochs"] == 2
    assert facts["data"]["dataset"] == "digits"
    assert facts["validation_fraction"] == 0.2


def test_student_facts_name_the_threat_model(project):
    """Norm, radius and the attack are in the checkpoint, not only how they were asked for."""
    facts = read_facts(Path("data/student/model.safetensors"))
    attack = {"name": "pgd", "steps": 2, "step_size": 0.05}
    assert facts["threat_model"] == {"norm": "linf", "eps": 0.1, "attack": attack}


def test_a_given_checkpoint_is_taken_as_the_teacher(ltd_pipe, project):
    """No training: weights in, the same weights out, measured."""
    outcome = ltd_pipe("teacher", "--checkpoint", TEACHER, "--out", "taken")
    assert outcome.code == 0, outcome.err
    one, two = (load_classifier(Path(p)) for p in (TEACHER, "taken/model.safetensors"))
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    accuracy = read_facts(Path(TEACHER))["clean_accuracy"]
    assert f"clean accuracy {accuracy:.2%}" in outcome.out


def test_a_checkpoint_is_never_taken_over_itself(ltd_pipe, project):
    """Also with --force: its hash, by which stores name it, would be another."""
    before = digest(project / TEACHER)
    outcome = ltd_pipe("teacher", "--checkpoint", TEACHER, "--force")
    assert outcome.code == 1
    assert "lies in, or holds, the input" in outcome.err
    assert digest(project / TEACHER) == before


def test_label_writes_the_teachers_answers(project, train_stream):
    """The stored labels are the softmax of the teacher's logits at the recorded temperature."""
    from ltd_pipe.images.manifest import to_unit

    store, model = SoftLabels.open(Path("data/labels.zarr")), load_classifier(Path(TEACHER))
    (batch,) = train_stream.batches(np.arange(240), 240)
    with torch.no_grad():
        logits = model.raw_logits(to_unit(batch.images))
    expected = (logits / store.attributes.temperature).softmax(dim=1).numpy()
    np.testing.assert_allclose(store.gather(np.arange(240)), expected, atol=2e-3)
    assert store.summary().mean_top_probability == pytest.approx(0.9, abs=1e-3)


def test_label_is_quiet_where_it_should_be_and_speaks_json(ltd_pipe, project):
    """`--json` gives what a script would read, on stdout alone."""
    outcome = ltd_pipe("label", "--teacher", TEACHER, "--out", "again.zarr", "--json")
    summary = json.loads(outcome.out)
    assert summary["num_samples"] == 240
    assert summary["identity"] == SoftLabels.open(Path("data/labels.zarr")).identity


@pytest.mark.parametrize(
    ("temperature", "warning"), [("0.0001", "as good as one-hot"), ("1000", "as good as uniform")]
)
def test_label_warns_of_labels_that_teach_nothing(ltd_pipe, project, temperature, warning):
    """Labels as good as one-hot or as uniform are written, with a warning."""
    words = ["label", "--teacher", TEACHER, "--out", "new.zarr", "--temperature", temperature]
    outcome = ltd_pipe(*words)
    assert outcome.code == 0
    assert warning in outcome.err


@pytest.mark.parametrize(
    ("turned", "temperature", "found"),
    [(False, "1000", "the targets are as good as uniform"), (True, "1", "contradict the ground")],
)
def test_labels_that_teach_nothing_are_refused_before_the_first_step(
    ltd_pipe, project, turned, temperature, found
):
    """By `train`, in one line, and trained on when that is meant."""
    store = SoftLabels.open(Path("data/labels.zarr"))
    logits = np.eye(10, dtype=np.float32)[(store.labels + turned) % 10] * 9
    facts = store.attributes.model_copy(update={"temperature": float(temperature)})
    write_store(Path("poor.zarr"), facts, logits, store.labels, store.sample_hash)
    words = ("train", "--labels", "poor.zarr", "--out", "new", "--epochs", "1")
    outcome = ltd_pipe(*words)
    assert outcome.code == 1
    assert outcome.err.startswith("ltd-pipe: poor.zarr: the targets ")
    assert found in outcome.err
    assert not Path("new").exists()
    assert not Path("state").exists()
    assert ltd_pipe(*words, "--allow-poor-labels").code == 0


def test_several_teachers_are_averaged_in_probability(ltd_pipe, project):
    """The label is the mean of the teachers' softened answers; there are no common logits."""
    ltd_pipe("teacher", "-S", "seed=1", "--out", "second")
    words = ["label", "--temperature", "2.0"]
    for number, teachers in enumerate(([TEACHER], ["second/model.safetensors"])):
        ltd_pipe(*words, "--teacher", teachers[0], "--out", f"{number}.zarr")
    both = ["--teacher", TEACHER, "--teacher", "second/model.safetensors"]
    assert ltd_pipe(*words, *both, "--out", "both.zarr").code == 0
    one, two, mean = (
        SoftLabels.open(Path(f"{name}.zarr")).gather(np.arange(240)).astype(np.float32)
        for name in ("0", "1", "both")
    )
    np.testing.assert_allclose(mean, (one + two) / 2, atol=1e-3)
    assert not SoftLabels.open(Path("both.zarr")).has_logits


def test_sparse_labels_train_a_student(ltd_pipe, project):
    """Temperature from a sample, k probabilities a row, how far off they are; then training."""
    words = ("label", "--teacher", TEACHER, "--out", "sparse.zarr", "--temperature", "auto:0.9")
    outcome = ltd_pipe(*words, "--top-k", "4")
    assert outcome.code == 0
    assert "top 4 of 10: total variation from the dense labels" in outcome.out
    sparse, dense = (SoftLabels.open(Path(p)) for p in ("sparse.zarr", "data/labels.zarr"))
    assert (sparse.top_k, sparse.has_logits) == (4, False)
    # Of 240 images the sample is all of them, so the temperature is that of the dense store.
    assert sparse.attributes.temperature == pytest.approx(dense.attributes.temperature, rel=1e-3)
    rows = [store.gather(np.arange(240)).astype(np.float32) for store in (sparse, dense)]
    distance = 0.5 * abs(rows[0] - rows[1]).sum(axis=1)
    measured = sparse.attributes.top_k.total_variation
    assert measured.mean == pytest.approx(distance.mean(), abs=1e-3)
    assert measured.worst == pytest.approx(distance.max(), abs=2e-3)
    assert ltd_pipe("store", "verify", "sparse.zarr", "--data", "data/train.beton").code == 0
    assert ltd_pipe("train", "--labels", "sparse.zarr", "--out", "new", "--epochs", "1").code == 0


def test_the_labels_can_be_read_at_another_temperature(ltd_pipe, project):
    """From the stored logits; a store without them is refused before the first step."""
    words = ("train", "--epochs", "1", "--label-temperature", "0.05")
    assert ltd_pipe(*words, "--out", "new").code == 0
    ltd_pipe("label", "--teacher", TEACHER, "--out", "bare.zarr", "--no-logits")
    outcome = ltd_pipe(*words, "--labels", "bare.zarr", "--out", "other")
    assert outcome.code == 1
    assert "bare.zarr: has no logits. Label with label.logits true" in outcome.err


def test_the_models_temperature_is_not_applied_twice(ltd_pipe, project):
    """A student trained at temperature 2 gives the labels of its own logits, softened once."""
    ltd_pipe("train", "--label-kind", "onehot", "--temperature", "2.0", "--out", "warm")
    words = ["label", "--teacher", "warm/model.safetensors", "--out", "warm.zarr"]
    assert ltd_pipe(*words, "--temperature", "3.0").code == 0
    store = SoftLabels.open(Path("warm.zarr"))
    logits = store.gather_logits(np.arange(5)).astype(np.float32)
    expected = torch.from_numpy(logits / 3.0).softmax(dim=1).numpy()
    np.testing.assert_allclose(store.gather(np.arange(5)), expected, atol=1e-3)
    assert load_classifier(Path("warm/model.safetensors")).temperature == 2.0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.epochs=3", "option: train.epochs: is of another stage: expected label.…"),
        ("label.tempratur=3", "tempratur: unknown key. Did you mean 'temperature'?"),
    ],
)
def test_a_setting_that_label_has_not_is_refused(ltd_pipe, tmp_path, monkeypatch, setting, said):
    """Without a params.yaml, too, with what may be meant."""
    monkeypatch.chdir(tmp_path)
    outcome = ltd_pipe("label", "-S", setting)
    assert outcome.code == 2
    assert said in outcome.err


def test_label_needs_no_params_file(ltd_pipe, project):
    """`ltd-pipe label --teacher …` works in any folder."""
    Path("params.yaml").unlink()
    outcome = ltd_pipe("label", "--teacher", TEACHER, "--out", "new.zarr")
    assert outcome.code == 0, outcome.err
    assert SoftLabels.open(Path("new.zarr")).attributes.temperature == 2.0


def test_label_takes_foreign_weights(ltd_pipe, project):
    """A plain state dict as `.pt` with `--arch` gives the same labels as our own checkpoint."""
    torch.save({"state_dict": safetensors.torch.load_file(TEACHER)}, "teacher.pt")
    words = ["label", "--teacher", "teacher.pt", "--arch", "small-cnn-w8", "--out", "new.zarr"]
    assert ltd_pipe(*words).code == 0
    rows = np.arange(240)
    ours, theirs = (SoftLabels.open(Path(p)) for p in ("data/labels.zarr", "new.zarr"))
    np.testing.assert_array_equal(ours.gather(rows), theirs.gather(rows))


def test_all_stages_twice_give_the_same_bytes(ltd_pipe, project):
    """Teacher, store, both checkpoints and the metrics are equal to the bit."""
    paths = [TEACHER, "data/labels.zarr", "data/student/model.safetensors"]
    paths += ["data/student/last.safetensors", "data/metrics.json", "data/evaluation/by_eps.json"]
    before = {path: digest(path) for path in paths}
    for path in ("data/teacher", "data/labels.zarr", "data/student", "data/evaluation"):
        shutil.rmtree(path)
    Path("data/metrics.json").unlink()
    words = (["teacher"], ["label", "--teacher", TEACHER], ["train"], ["evaluate"])
    assert [ltd_pipe(*command).code for command in words] == [0, 0, 0, 0]
    assert {path: digest(path) for path in paths} == before


def test_student_facts_name_its_labels(project):
    """The checkpoint says which store taught it."""
    facts = read_facts(Path("data/student/model.safetensors"))
    assert facts["labels"]["identity"] == SoftLabels.open(Path("data/labels.zarr")).identity
    assert facts["kind"] == "student"
    assert "robust_accuracy" in facts["validation"]


def test_training_is_plotted(project):
    """Dvclive's files hold one row per epoch."""
    rows = Path("data/student/live/plots/metrics/validation/robust_accuracy.tsv").read_text()
    assert len(rows.splitlines()) == 3


def test_an_interrupted_run_is_plotted_as_a_whole_one(ltd_pipe, project, monkeypatch):
    """To the byte, whatever was plotted before it was interrupted."""
    short = ("--epochs", "3", "--images", "96", "--batch-size", "32", "--label-kind", "onehot")
    words = ("train", *short, "--out")
    assert ltd_pipe(*words, "whole/student").code == 0
    with monkeypatch.context() as during:
        stop = partial(signal.raise_signal, signal.SIGTERM)
        during.setattr(_Screen, "step", lambda _, done, *__: stop() if done == 8 else None)
        assert ltd_pipe(*words, "parts/student").code == 130
    kept = Path("parts/student/live/plots/metrics/train/loss.tsv").read_text()
    assert len(kept.splitlines()) == 3
    assert ltd_pipe(*words, "parts/student").code == 0
    assert digest("whole/student/live") == digest("parts/student/live")


def test_by_default_nothing_is_overwritten(ltd_pipe, project):
    """Every stage refuses to replace a result, names it, and leaves it as it is."""
    before = digest("data")
    commands = [
        (["prepare"], "data/train.beton"),
        (["teacher"], "data/teacher/model.safetensors"),
        (["label", "--teacher", TEACHER], "data/labels.zarr"),
        (["train"], "data/student/model.safetensors"),
        (["evaluate"], "data/metrics.json"),
    ]
    for words, path in commands:
        outcome = ltd_pipe(*words)
        assert outcome.code == 1
        assert f"{path}: exists already. Pass --force" in outcome.err
    assert digest("data") == before


def permute_two_rows(path):
    from made_answers import write_store

    store = SoftLabels.open(path)
    order = np.arange(store.num_samples)
    order[[3, 77]] = order[[77, 3]]
    attributes = store.attributes
    from ltd_pipe.images.manifest import fingerprint

    labels, hashes = store.labels[order], store.sample_hash[order]
    found = fingerprint(attributes.class_names, labels, hashes)
    attributes = attributes.model_copy(
        update={"dataset": attributes.dataset.model_copy(update={"fingerprint": found})}
    )
    write_store(Path("permuted.zarr"), attributes, store.gather_logits(order), labels, hashes)


def test_labels_permuted_by_two_rows_stop_training(ltd_pipe, project):
    """The order is part of the fingerprint: the run stops before the first step."""
    permute_two_rows(Path("data/labels.zarr"))
    outcome = ltd_pipe("train", "--labels", "permuted.zarr", "--out", "new")
    assert outcome.code == 1
    assert "permuted.zarr: fingerprint of the images: expected" in outcome.err
    assert not Path("new/model.safetensors").exists()


def test_a_wrong_join_names_the_sample(project, train_stream):
    """Past the fingerprint, each batch is still checked: the first wrong sample is named."""
    from ltd_pipe.errors import JoinError
    from ltd_pipe.params import TrainParams
    from ltd_pipe.training.data import student_transform

    permute_two_rows(Path("data/labels.zarr"))
    store = SoftLabels.open(Path("permuted.zarr"))
    params = TrainParams(architecture="x", epochs=1, eps=0.1, step_size=0.1, label_kind="ltd")
    cpu = torch.device("cpu")
    transform = student_transform(params, 10, store, "train.beton", cpu, 0)
    (batch,) = train_stream.batches(np.arange(240), 240)
    with refused(
        JoinError,
        where="permuted.zarr",
        what="sample 3",
        expected=re.compile(r"sample_hash \w+"),
        found=re.compile(r"\w+ in train\.beton"),
    ):
        transform.apply(batch, 0)


def test_a_store_of_other_images_stops_training(ltd_pipe, project):
    """Labels of the test split are refused for the training images."""
    words = ["label", "--teacher", TEACHER, "--data", "data/test.beton", "--out", "test.zarr"]
    assert ltd_pipe(*words).code == 0
    outcome = ltd_pipe("train", "--labels", "test.zarr", "--out", "new")
    assert outcome.code == 1
    assert "test.zarr: number of samples: expected 60, found 240" in outcome.err


def test_a_flipped_byte_in_the_store_stops_training(ltd_pipe, project):
    """A chunk's checksum is checked before its rows are used."""
    chunk = Path("data/labels.zarr/soft_labels/c/0/0")
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    outcome = ltd_pipe("train", "--out", "new")
    assert outcome.code == 1
    assert "soft_labels/c/0/0" in outcome.err
    assert not Path("new/model.safetensors").exists()


def test_a_damaged_beton_stops_every_stage_that_reads_it(ltd_pipe, project):
    """A flipped byte in the pixels is found before anything is computed."""
    beton = Path("data/train.beton")
    content = bytearray(beton.read_bytes())
    content[-5000] ^= 1
    beton.write_bytes(content)
    for words in (["teacher", "--out", "new"], ["label", "--teacher", TEACHER, "--out", "n.zarr"]):
        outcome = ltd_pipe(*words)
        assert outcome.code == 1
        assert "data/train.beton: its bytes are not those that were written" in outcome.err


def test_a_model_of_other_classes_is_not_evaluated(ltd_pipe, project):
    """Another number of classes or another shape is refused by name."""
    from ltd_pipe.models.checkpoint import save_classifier
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.models.registry import build

    names, shape = ("a", "b"), (1, 8, 8)
    network = build("small-cnn-w8", 2, shape)
    model = Classifier(network, architecture="small-cnn-w8", class_names=names, shape=shape)
    save_classifier(model, Path("two.safetensors"))
    outcome = ltd_pipe("evaluate", "two.safetensors", "--metrics", "new.json", "--out", "new")
    assert outcome.code == 1
    assert "number of classes: expected 2 by the model, found 10" in outcome.err
    assert not Path("new.json").exists()


def test_a_folder_is_labelled_as_its_beton_is(ltd_pipe, pictures):
    """Straight from the files or through a beton: the same store, to the byte."""
    assert ltd_pipe("prepare").code == 0
    assert ltd_pipe("teacher", "--epochs", "1").code == 0
    assert ltd_pipe("label", "--teacher", TEACHER).code == 0
    words = ["label", "--teacher", TEACHER, "--data", "photos/train", "--out", "folder.zarr"]
    outcome = ltd_pipe(*words)
    assert outcome.code == 0, outcome.err
    assert digest("folder.zarr") == digest("data/labels.zarr")


def test_a_bad_image_stops_prepare_and_label(ltd_pipe, pictures):
    """It is named, nothing is written, and --skip-bad goes on."""
    bad = next(Path("photos/train/digit-3").iterdir())
    bad.write_bytes(b"")
    outcome = ltd_pipe("prepare")
    assert outcome.code == 1
    assert f"{bad}: is not usable: is empty (0 bytes)" in outcome.err
    assert not Path("data/train.beton").exists()
    outcome = ltd_pipe("prepare", "--skip-bad")
    assert outcome.code == 0
    assert "59 images" in outcome.out
    assert str(bad) in outcome.err


IDLE = [
    "train --label-kind onehot --soft-weight 0.5: --soft-weight: label_kind ltd or live",
    "train --label-kind onehot --rectify: --rectify: label_kind ltd or live",
    "train --label-kind onehot -S train.rectify=true: -S train.rectify: label_kind ltd or live",
    "train --teacher nosuch.pt: --teacher: objective adaad or mtard, label_kind live, or igdm",
    "train --beta 3: --beta: objective trades or mart",
    "train --smoothing 0.2: --smoothing: label_kind smooth",
    "train --attack pgd --attack-noise 1: --attack-noise: attack n-fgsm",
    "train --objective adaad --teacher t.pt --soft-weight 0.5: --soft-weight: labels in the loss",
    "train --label-kind onehot --labels nowhere.zarr: --labels: label_kind ltd",
    "train --objective adaad --teacher t.pt --labels a.zarr: --labels: label_kind ltd, and for",
    "train --label-kind onehot --attack-label target: --attack-label: labels other than the given",
    "train --rectify --attack-label likeliest: --attack-label: label_kind ltd or live, soft_weight",
    "train --soft-weight 0.5 --attack-label likeliest: --attack-label: label_kind ltd",
    "train --milestones [0.3]: --milestones: schedule step",
    "teacher --mixup-alpha 1: --mixup-alpha: mixup_probability above 0",
    "prepare --dataset digits --path photos: --path: another dataset than digits",
    "prepare --wrong-labels-seed 3: --wrong-labels-seed: wrong_labels above 0",
    "label --seed 3: --seed: an augmentation",
    "audit -S train.beta=3: -S train.beta: objective trades or mart",
    "evaluate --eps-grid [] --eps-grid-images 5: --eps-grid-images: an eps_grid",
]


@pytest.mark.parametrize("line", IDLE)
def test_an_option_that_would_do_nothing_is_refused(ltd_pipe, project, line):
    """Before any work, with what it needs."""
    command, option, needs = line.split(": ")
    outcome = ltd_pipe(*command.split())
    assert outcome.code == 2
    assert f"{option} does nothing here: it needs {needs}" in outcome.err


def test_a_value_that_takes_a_parameter_back_is_no_option_that_does_nothing(ltd_pipe, project):
    """So is what the file says undone for a run that has no use for it."""
    words = "--label-kind onehot --teacher null --soft-weight 1 --no-rectify --epochs 1"
    outcome = ltd_pipe("train", *words.split(), "--out", "baseline")
    assert outcome.code == 0, outcome.err


def test_a_parameter_of_the_file_that_does_nothing_is_noted(ltd_pipe, project):
    """It may be the student's, where the baseline is trained."""
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("train:\n  {", "train:\n  {soft_weight: 0.5, ", 1))
    train = ["train", "--label-kind", "onehot", "--epochs", "1", "--out", "baseline"]
    outcome = ltd_pipe(*train)
    assert outcome.code == 0, outcome.err
    needs = "it needs label_kind ltd or live"
    assert f"note: train.soft_weight does nothing here: {needs}" in outcome.err


def test_accuracy_on_images_of_unknown_class_is_unknown(ltd_pipe, pictures):
    """A flat test/ has no ground truth: 0.00 % went into checkpoint and store."""
    for path in list(Path("photos/test").rglob("*.png")):
        path.rename(Path("photos/test", path.name))
    for folder in Path("photos/test").iterdir():
        if folder.is_dir():
            folder.rmdir()
    outcome = ltd_pipe("prepare")
    assert outcome.code == 0, outcome.err
    assert "the classes of its images are unknown" in outcome.err
    outcome = ltd_pipe("teacher", "--epochs", "1")
    assert "clean accuracy unknown" in outcome.out, outcome.err
    assert read_facts(Path(TEACHER)).get("clean_accuracy") is None
    assert ltd_pipe("card", TEACHER, "--out", "card.md").code == 0
    assert ltd_pipe("label").code == 0
    assert SoftLabels.open(Path("data/labels.zarr")).attributes.teachers[0].clean_accuracy is None
    outcome = ltd_pipe("evaluate", TEACHER, "--data", "data/test.beton")
    assert (outcome.code, "has no label (40 such)" in outcome.err) == (1, True), outcome.err
    outcome = ltd_pipe("train", "--data", "data/test.beton", "--label-kind", "onehot", "--force")
    assert (outcome.code, "found 60 without" in outcome.err) == (1, True)


def test_prepare_and_label_say_what_is_left_out_and_what_is_doubtful(ltd_pipe, pictures):
    """Each reason with its count, at the end; and the teacher says it of the test images."""
    first, second, *_ = sorted(Path("photos/train").rglob("*.png"))
    shutil.copy(first, first.parent / "copy.png")
    shutil.copy(first, first.parent / "photo.heic")
    shutil.copy(second, next(Path("photos/test").iterdir()) / "leaked.png")
    Image.new("L", (8, 8), 9).save(second.parent / "blank.png")
    words = (
        "left out of photos/train: 1 *.heic",
        "warning: data/train.beton: images of one colour, or nearly: 1 of 62",
        "warning: data/train.beton: copies of another image: 1 of 62",
        "warning: data/test.beton: test images that are in the training set, too: 1 of 61",
    )
    outcome = ltd_pipe("prepare")
    assert [line for line in words if line not in outcome.err] == []
    outcome = ltd_pipe("teacher", "--epochs", "1")
    assert "in the training set, too: 1 of 61" in outcome.err
    outcome = ltd_pipe("label", "--data", "photos/train", "--out", "folder.zarr")
    assert words[0] in outcome.err
    assert "images of one colour, or nearly: 1 of 62" in outcome.err


def test_a_test_beton_of_another_preparation_stops_the_teacher(ltd_pipe, pictures):
    """As a prepare that was killed between two renames would leave it."""
    for out, size in (("data", "8"), ("other", "12")):
        assert ltd_pipe("prepare", "--out", out, "--image-size", size).code == 0
    for name in ("test.beton", "test.beton.json"):
        shutil.copy(Path("other", name), Path("data", name))
    outcome = ltd_pipe("teacher", "--epochs", "1")
    assert outcome.code == 1
    assert "data/test.beton: is of another preparation" in outcome.err


def test_a_folder_that_is_not_there_is_named(ltd_pipe, pictures):
    """One line, and no data folder is left behind."""
    outcome = ltd_pipe("prepare", "--path", "nowhere", "--out", "new")
    assert outcome.code == 1
    assert "nowhere: no such folder" in outcome.err
    assert not list(Path("new").glob("*.beton*"))


def test_fresh_starts_over_and_replaces(ltd_pipe, project):
    """--fresh trains anew, to the same bits, where a finished run would be refused."""
    before = digest("data/student/model.safetensors")
    assert ltd_pipe("train").code == 1
    outcome = ltd_pipe("train", "--fresh")
    assert outcome.code == 0, outcome.err
    assert digest("data/student/model.safetensors") == before


def test_a_baseline_needs_no_store(ltd_pipe, project):
    """One-hot training does not open the labels, and says in its facts that it had none.

    Whatever temperature the student reads them at: as in dvc.yaml.
    """
    shutil.rmtree("data/labels.zarr")
    words = (
        "--set",
        "train.label_temperature=3",
        "--label-kind",
        "onehot",
        "--out",
        "data/baseline",
    )
    assert "label_temperature: null" in ltd_pipe("train", *words).err
    outcome = ltd_pipe("train", *words, "--label-temperature", "null")
    assert outcome.code == 0, outcome.err
    assert read_facts(Path("data/baseline/model.safetensors"))["labels"] is None


def test_the_store_is_looked_into(ltd_pipe, project):
    """`store info` names identity, teacher and softness; `verify` what was checked."""
    store = SoftLabels.open(Path("data/labels.zarr"))
    assert store.identity in ltd_pipe("store", "info", "data/labels.zarr", "--json").out
    outcome = ltd_pipe("store", "info", "data/labels.zarr")
    assert "small-cnn-w8" in outcome.out
    outcome = ltd_pipe("store", "verify", "data/labels.zarr", "--data", "data/train.beton")
    assert outcome.code == 0, outcome.err
    assert "ok      join" in outcome.out


def test_a_damaged_store_does_not_verify(ltd_pipe, project):
    """Exit code 1 and the file's name."""
    path = Path("data/labels.zarr/logits/c/0/0")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    outcome = ltd_pipe("store", "verify", "data/labels.zarr")
    assert outcome.code == 1
    assert "logits/c/0/0" in outcome.err


def test_a_teacher_that_yields_nan_leaves_no_store(ltd_pipe, project):
    """The sample is named, and nothing is published."""
    state = safetensors.torch.load_file(TEACHER)
    # Finite weights whose answer overflows: what NaN weights would do is refused earlier.
    state["linear.bias"][3] = 3e38
    state["linear.weight"][3] = 3e38
    torch.save(state, "wild.pt")
    words = ["label", "--teacher", "wild.pt", "--arch", "small-cnn-w8", "--out", "wild.zarr"]
    outcome = ltd_pipe(*words)
    assert outcome.code == 1
    assert "sample 0: logits: expected finite numbers" in outcome.err
    assert not Path("wild.zarr").exists()


INSIDE = ["photos/train", "photos/train/labels.zarr", "photos"]


@pytest.mark.parametrize("out", INSIDE)
def test_a_store_is_never_written_into_or_over_the_images(ltd_pipe, pictures, out):
    """Not even with --force: every photograph is still there."""
    assert ltd_pipe("prepare").code == 0
    assert ltd_pipe("teacher", "--epochs", "1").code == 0
    before = digest("photos")
    words = ["label", "--teacher", TEACHER, "--data", "photos/train", "--out", out, "--force"]
    outcome = ltd_pipe(*words)
    assert outcome.code == 1
    assert "Choose another --out" in outcome.err
    assert digest("photos") == before


def test_force_replaces_stores_only(ltd_pipe, project):
    """A folder or a file of something else is refused and kept; a store is replaced."""
    Path("keep").mkdir()
    Path("keep/thesis.txt").write_text("years of work")
    words = ["label", "--teacher", TEACHER, "--force", "--out"]
    for out in ("keep", "keep/thesis.txt"):
        outcome = ltd_pipe(*words, out)
        assert outcome.code == 1
        assert "is no soft-label store, and --force replaces stores only" in outcome.err
    assert Path("keep/thesis.txt").read_text() == "years of work"
    assert ltd_pipe(*words, "data/labels.zarr").code == 0


def test_no_empty_state_is_left_beside_the_result(ltd_pipe, project):
    """What a finished run needed to resume is gone, folder and all."""
    assert ltd_pipe("label", "--teacher", TEACHER, "--out", "new/labels.zarr").code == 0
    assert [path.name for path in Path("new").iterdir()] == ["labels.zarr"]


def test_a_wrong_option_is_not_blamed_on_the_file(ltd_pipe, project):
    """The message names the option, not params.yaml."""
    outcome = ltd_pipe("evaluate", "--eps", "8/254x")
    assert "option: evaluate.eps: '8/254x' is not a number or a fraction" in outcome.err


def test_a_folder_without_test_images_leaves_nothing_behind(ltd_pipe, pictures):
    """Both parts are looked for before the first is written."""
    shutil.rmtree("photos/test")
    outcome = ltd_pipe("prepare", "--out", "betons")
    assert outcome.code == 1
    assert "photos: has no test images: expected test/ or val/" in outcome.err
    assert not list(Path("betons").glob("*.beton*"))


def test_the_labels_of_the_pipelines_own_teacher_need_no_option(ltd_pipe, project):
    """After prepare and teacher, `ltd-pipe label` is enough."""
    before = SoftLabels.open(Path("data/labels.zarr")).identity
    shutil.rmtree("data/labels.zarr")
    assert ltd_pipe("label").code == 0
    assert SoftLabels.open(Path("data/labels.zarr")).identity == before


@pytest.mark.parametrize(("rate", "warned"), [("1e-9", True), ("0.1", False)])
@pytest.mark.parametrize("verb", ["teacher", "train"])
def test_a_model_that_may_as_well_guess_is_warned_of(ltd_pipe, project, verb, rate, warned):
    """Nothing else says that a training has learnt nothing, or has collapsed to one answer."""
    more = ["--label-kind", "onehot", "--attack-steps", "1"] if verb == "train" else []
    outcome = ltd_pipe(verb, "--force", "--epochs", "2", "--learning-rate", rate, *more)
    assert outcome.code == 0, outcome.err
    assert ("not clearly better than chance. Train longer, or" in outcome.err) is warned


def test_each_later_stage_warns_of_a_teacher_that_guesses(ltd_pipe, project):
    """Its confident labels teach nothing, at no temperature, and its robustness is none."""
    weak = "idle/model.safetensors"
    assert (
        ltd_pipe("teacher", "--epochs", "1", "--learning-rate", "1e-9", "--out", "idle").code == 0
    )
    warned = "not clearly better than chance"
    taken = ltd_pipe("teacher", "--checkpoint", weak, "--out", "taken")
    assert f"{warned}. Was it trained for long enough" in taken.err
    state = safetensors.torch.load_file(weak)
    torch.save(state, "foreign.pt")
    of = "--checkpoint foreign.pt --architecture small-cnn-w8 --mean [0] --std [1]"
    foreign = ltd_pipe("teacher", *of.split(), "--out", "taken", "--force")
    assert f"{warned}. Look at its normalisation" in foreign.err
    labelled = ltd_pipe("label", "--teacher", weak, "--out", "weak.zarr")
    assert warned in labelled.err
    assert "lower" not in labelled.err
    measured = ["--quick", "--metrics", "weak.json", "--out", "weak"]
    found = ltd_pipe("evaluate", weak, *measured)
    assert "WARNING: clean: " in found.out
    assert warned in found.out
    assert (
        ltd_pipe("evaluate", TEACHER, "--quick", "--metrics", "good.json", "--out", "good").code
        == 0
    )
    compared = ltd_pipe("compare", "good.json", "weak.json")
    assert (
        "weak.json's robust accuracy cannot be believed: it is not clearly better" in compared.out
    )
