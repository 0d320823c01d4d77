"""`ltd-pipe evaluate`: what it prints, what it writes, and that it survives being killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from ltd_pipe.distributed import World
from ltd_pipe.evaluation.bench import Journal
from ltd_pipe.evaluation.results import AT_CHANCE, ON_TRAINING
from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.sources import ArraySource, open_source
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.params import PrepareParams
from ltd_pipe.provenance import sha256_file
from ltd_pipe.publish import exclusive
from ltd_pipe.stages.evaluation_options import Subject

TEACHER = "data/teacher/model.safetensors"
STUDENT = "data/student/model.safetensors"


def evaluate(ltd_pipe, *words):
    outcome = ltd_pipe("evaluate", STUDENT, "--force", *words)
    assert outcome.code == 0, outcome.err
    return outcome


def test_every_accuracy_has_its_threat_interval_and_n(ltd_pipe, project):
    """And without AutoAttack the output says that this is no claim of robustness."""
    out = evaluate(ltd_pipe, "--attacks", "fgsm,cw-5").out
    for name in ("FGSM", "CW-PGD-5", "PGD-5", "all attacks together"):
        (line,) = (line for line in out.splitlines() if line.strip().startswith(name))
        assert "95 % interval" in line
        assert "Linf 0.1, 40 images" in line
    assert "AutoAttack was left out" in out
    assert "not measured: AutoAttack, transfer attacks, " in out


def test_json_is_the_file(ltd_pipe, project):
    """`--json` prints metrics.json."""
    found = json.loads(evaluate(ltd_pipe, "--json").out)
    assert found == json.loads(Path("data/metrics.json").read_text())
    assert (found["n"], found["norm"], found["quick"]) == (40, "linf", False)


def test_samples_can_be_compared_between_runs(project):
    """By index and hash, read by plain numpy; classes have their own numbers."""
    found = np.load("data/evaluation/per_sample.npz", allow_pickle=False)
    metrics = json.loads(Path("data/metrics.json").read_text())
    assert found["correct_clean"].mean() == pytest.approx(metrics["clean_accuracy"])
    assert found["correct_pgd"].mean() == pytest.approx(metrics["pgd_accuracy"])
    assert len(set(found["sample_hash"].tolist())) == 40
    rows = json.loads(Path("data/evaluation/per_class.json").read_text())
    assert [row["class"] for row in rows] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("of", ["", "_under_attack"], ids=["clean", "attacked"])
def test_bins_of_confidence_are_those_of_the_calibration_error(project, of):
    """reliability.json holds every image once, and the mean gap of its bins is metrics.json's."""
    metrics = json.loads(Path("data/metrics.json").read_text())
    found = json.loads(Path("data/evaluation/reliability.json").read_text())
    bins = found["under_attack" if of else "clean"]
    assert sum(one["count"] for one in bins) == 40
    gaps = sum(one["count"] * abs(one["confidence"] - one["accuracy"]) for one in bins)
    assert gaps / 40 == pytest.approx(metrics[f"expected_calibration_error{of}"], abs=1e-12)
    hits = sum(one["count"] * one["accuracy"] for one in bins)
    if not of:
        assert hits / 40 == pytest.approx(metrics["clean_accuracy"])


def test_an_l2_ball_is_one_option(ltd_pipe, project):
    """Its radius may be above one, and stands in every line."""
    words = ("--norm", "l2", "--eps", "1.5", "--eps-grid", "none", "--metrics", "l2.json")
    assert "L2 1.5, 40 images" in evaluate(ltd_pipe, *words).out
    assert json.loads(Path("l2.json").read_text())["norm"] == "l2"


def test_metrics_that_are_there_name_both_options(ltd_pipe, project):
    """Another --out alone would be refused again."""
    outcome = ltd_pipe("evaluate", STUDENT, "--quick", "--out", "other")
    assert "data/metrics.json: exists already" in outcome.err
    assert "another --metrics and --out." in outcome.err


def test_the_folder_of_other_metrics_is_not_replaced(ltd_pipe, project):
    """New metrics and a folder that is of data/metrics.json."""
    before = Path("data/evaluation/settings.json").read_bytes()
    words = ("--metrics", "new.json", "--out", "data/evaluation")
    outcome = ltd_pipe("evaluate", STUDENT, "--eps", "0.05", *words)
    assert outcome.code == 1
    assert "data/evaluation/settings.json: exists already. Pass --force" in outcome.err
    assert Path("data/evaluation/settings.json").read_bytes() == before
    assert not Path("new.json").exists()


def test_other_metrics_have_their_own_folder(ltd_pipe, project):
    """Beside them, where `compare` and `report` look for it, unless another one is named."""
    before = Path("data/evaluation/settings.json").read_bytes()
    outcome = ltd_pipe("evaluate", TEACHER, "--metrics", "data/teacher-metrics.json")
    assert outcome.code == 0, outcome.err
    assert Path("data/teacher-evaluation/settings.json").is_file()
    assert Path("data/evaluation/settings.json").read_bytes() == before


def test_a_wrong_unit_is_refused(ltd_pipe, project):
    """In Linf a radius above one is grey levels: the message says how to write them."""
    outcome = ltd_pipe("evaluate", STUDENT, "--force", "--eps", "8")
    assert outcome.code == 2
    assert "at most 1, in pixel units, found 8; perhaps 8/255 is meant" in outcome.err


@pytest.mark.parametrize(
    ("words", "told"),
    [("--pgd-steps 5", "--pgd-steps"), ("-S evaluate.pgd_steps=5", "-S evaluate.pgd_steps")],
)
def test_what_a_first_look_fixes_is_refused(ltd_pipe, project, words, told):
    """However it was typed."""
    outcome = ltd_pipe("evaluate", STUDENT, "--quick", *words.split())
    assert outcome.code == 2
    assert f"Error: {told} is fixed in a first look" in outcome.err


def test_a_first_look_is_marked(ltd_pipe, project):
    """On the screen and in the file."""
    out = evaluate(ltd_pipe, "--quick").out
    assert "QUICK LOOK" in out
    assert "PGD-10 " in out
    assert json.loads(Path("data/metrics.json").read_text())["quick"] is True


def started(*words):
    command = [sys.executable, "-m", "ltd_pipe", "evaluate", STUDENT, "--force", *words]
    root = str(Path(__file__).parents[2] / "src")
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )


def kill_during(attack, *words):
    """Start an evaluation and kill it once it has finished a batch of an attack."""
    process = started(*words)
    while not list(Path("data/state").glob(f"evaluate-*/{attack}*.jsonl")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_and_run_again_it_gives_the_same_bytes(ltd_pipe, project):
    """SIGKILL in the middle of PGD; nothing of the state is left behind."""
    # Long enough that a batch is being computed when the signal comes.
    words = ("--batch-size", "8", "--pgd-steps", "100", "--eps-grid", "0.05,0.1")
    outputs = [Path("data/metrics.json"), *(Path("data/evaluation").glob("*.*"))]
    evaluate(ltd_pipe, *words)
    whole = {path: path.read_bytes() for path in outputs}
    Path("data/metrics.json").unlink()
    kill_during("pgd", *words)
    assert not Path("data/metrics.json").exists()
    evaluate(ltd_pipe, *words)
    assert {path: path.read_bytes() for path in outputs} == whole
    assert not Path("data/state").exists()


def test_an_evaluation_goes_on_with_other_threads_and_says_so(ltd_pipe, project, monkeypatch):
    """Batches that are there are not computed again; other parameters begin anew."""
    append = Journal.append

    def stop(*words):
        append(*words)
        signal.raise_signal(signal.SIGINT)

    words = ("evaluate", STUDENT, "--force")
    with monkeypatch.context() as during:
        during.setattr(Journal, "append", stop)
        stopped = ltd_pipe(*words)
    assert stopped.code == 130
    assert "Interrupted. Run it again: what is measured is kept." in stopped.err
    (state,) = Path("data/state").iterdir()
    torch.set_num_threads(2)
    err = ltd_pipe(*words, "--pgd-steps", "4").err
    assert f"note: this run begins anew: {state} is of an interrupted one with" in err
    assert "params.pgd_steps 5, which is 4 here" in err
    seen = []
    monkeypatch.setattr(Journal, "append", lambda *given: (seen.append(given[1]), append(*given)))
    err = ltd_pipe(*words).err
    assert f"warning: {state}: this run began with hardware.threads 1, which is 2 now" in err
    assert seen
    assert "clean" not in seen


def test_answers_are_kept_for_the_same_labels_and_outputs_alone(tmp_path):
    """Whatever has other classes of images, or another order of outputs, begins anew."""
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 0, 1, 1], np.int32)
    images[:, 0] = np.arange(4)[:, None] + 10

    def folder(name, names=("a", "b"), labels=labels, columns=None):
        source = ArraySource("four", names, images, labels)
        path = tmp_path / f"{name}.beton"
        write_beton(source, path, PrepareParams(dataset="digits", channels=1), "test")
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        given = {"class_names": names, "shape": (1, 8, 8), "columns": columns}
        model = Classifier(network, architecture="linear", **given)
        subject = Subject(model, weights, {}, open_beton(path), path, [])
        return subject.state("audit", tmp_path / "audit", {"n": 4}, World()).folder

    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"")
    states = [
        folder("one"),
        folder("moved", labels=labels[[0, 2, 1, 3]]),
        folder("renamed", names=("a", "c")),
        folder("other order", columns=(1, 0)),
    ]
    assert folder("again") == states[0]
    assert len({*states}) == 4


def plain_weights(path):
    """The student's state dict as another project would have left it."""
    torch.save({"state_dict": safetensors.torch.load_file(STUDENT)}, path)
    return path


def test_foreign_weights_are_measured_as_our_own(ltd_pipe, project):
    """The same numbers for the same network; the settings say what it was taken for."""
    own = json.loads(Path("data/metrics.json").read_text())
    outcome = ltd_pipe("evaluate", plain_weights("s.pt"), "--arch", "small-cnn-w8", "--force")
    assert outcome.code == 0, outcome.err
    found = json.loads(Path("data/metrics.json").read_text())
    assert found.pop("checkpoint_sha256") == sha256_file(Path("s.pt"))
    assert own.pop("checkpoint_sha256") == sha256_file(Path(STUDENT))
    assert found == own
    settings = json.loads(Path("data/evaluation/settings.json").read_text())
    assert settings["architecture"] == "small-cnn-w8"
    assert (settings["precision"], settings["tf32"]) == ("float32", False)


def test_no_parameter_file_is_needed(ltd_pipe, project):
    """Only the radius is: without it the refusal names it."""
    Path("params.yaml").unlink()
    outcome = ltd_pipe("evaluate", STUDENT, "--force")
    assert outcome.code == 2
    assert "--eps: is missing. Pass it, or run where params.yaml is." in outcome.err
    words = ("--eps", "0.1", "--quick", "--set", "device=cpu")
    assert "Linf 0.1, 60 images" in evaluate(ltd_pipe, *words).out


def test_a_package_names_the_network(ltd_pipe, project):
    """`timm:NAME --weights FILE`, and the same as `timm:NAME=FILE`."""
    network = build("timm:test_resnet", 10, (1, 8, 8))
    torch.save(network.state_dict(), "resnet.pt")
    words = ("--quick", "--images", "10", "--force", "--json")
    found = ltd_pipe("evaluate", "timm:test_resnet", "--weights", "resnet.pt", *words)
    assert found.code == 0, found.err
    assert ltd_pipe("evaluate", "timm:test_resnet=resnet.pt", *words).out == found.out


USAGE = [
    (["timm:test_resnet"], "needs --weights FILE: nothing is downloaded"),
    (["timm:test_resnet="], "timm:test_resnet= needs --weights FILE"),
    (["robustbench:Standard="], "robustbench:Standard= needs --weights FILE"),
    ([STUDENT, "--weights", "x.pt"], "--weights is for a MODEL such as timm:NAME"),
    (["timm:a=x.pt", "--weights", "x.pt"], "already names the network"),
    (["timm:a", "--weights", "x.pt", "--arch", "b"], "already names the network"),
]


@pytest.mark.parametrize(("words", "message"), USAGE)
def test_a_model_that_is_named_twice_or_by_half_is_refused(ltd_pipe, project, words, message):
    """Usage errors, exit code 2."""
    outcome = ltd_pipe("evaluate", *words, "--force")
    assert outcome.code == 2
    assert message in outcome.err


def test_another_evaluation_into_the_same_place_names_both_options(ltd_pipe, project):
    """The lock is on the numbers, which are named by two options."""
    with exclusive(Path("new.json")):
        outcome = ltd_pipe("evaluate", STUDENT, "--quick", "--metrics", "new.json", "--out", "new")
    assert outcome.code == 1
    assert "give this run another --metrics and --out" in outcome.err


def test_another_ball_than_that_of_training_is_noted(ltd_pipe, project):
    """And a model that is not there is said to be one, with what makes it."""
    words = ["--quick", "--metrics", "new.json", "--out", "new"]
    outcome = ltd_pipe("evaluate", STUDENT, *words, "--eps", "4/255")
    assert f"note: {STUDENT} was trained within " in outcome.err
    assert "is measured within Linf 4/255" in outcome.err
    assert "was trained within" not in ltd_pipe("evaluate", STUDENT, *words, "--force").err
    for verb in ("evaluate", "audit", "card"):
        outcome = ltd_pipe(verb, "nosuch.safetensors")
        assert outcome.code == 1
        assert "nosuch.safetensors: no such file or folder. 'ltd-pipe train' makes" in outcome.err


def test_a_missing_normalisation_is_noticed(ltd_pipe, project):
    """Weights of a network that expects 0…255: the warning is on the screen and in the file."""
    state = safetensors.torch.load_file(STUDENT)
    first = next(name for name, tensor in state.items() if tensor.ndim == 4)
    state[first] = state[first] / 255
    torch.save(state, "levels.pt")
    outcome = ltd_pipe("evaluate", "levels.pt", "--arch", "small-cnn-w8", "--quick", "--force")
    assert outcome.code == 0, outcome.err
    assert "WARNING: of 40 images" in outcome.err
    scale, chance = json.loads(Path("data/metrics.json").read_text())["warnings"]
    assert "multiplied by 255: the network expects pixels in 0…255" in scale
    assert chance.endswith(AT_CHANCE)


def test_transfer_from_two_models(ltd_pipe, project):
    """The teacher and another student: a line, a row and a bit per image for each."""
    shutil.copy(STUDENT, "second.safetensors")
    words = ("--transfer-from", TEACHER, "--transfer-from", "second.safetensors")
    out = evaluate(ltd_pipe, *words).out
    assert f"transfer from {TEACHER}" in out
    metrics = json.loads(Path("data/metrics.json").read_text())
    rows = {row["key"]: row for row in metrics["attacks"]}
    assert rows["transfer-1"]["source"] == TEACHER
    # A copy of the model transfers as well as one start of its own attack breaks it.
    assert rows["pgd"]["accuracy"] <= rows["transfer-2"]["accuracy"] < rows["clean"]["accuracy"]
    found = np.load("data/evaluation/per_sample.npz", allow_pickle=False)
    assert {"correct_transfer-1", "correct_transfer-2"} <= set(found.files)


def test_corruptions_of_a_folder(ltd_pipe, project):
    """A mean with its interval on the screen, all sets in corruptions.json; else no such file."""
    stream = ImageStream(open_beton(Path("data/test.beton")), torch.device("cpu"))
    (batch,) = stream.batches(np.arange(60), 60)
    Path("corrupted").mkdir()
    np.save("corrupted/dark.npy", (batch.images[:, 0] // 2).numpy())
    np.save("corrupted/labels.npy", batch.labels.numpy())
    out = evaluate(ltd_pipe, "--corruptions", "corrupted").out
    assert "corruptions, mean" in out
    assert "no attack, 1 sets of 40 images" in out
    (row,) = json.loads(Path("data/evaluation/corruptions.json").read_text())
    metrics = json.loads(Path("data/metrics.json").read_text())
    assert (row["corruption"], row["severity"], row["n"]) == ("dark", None, 40)
    assert metrics["corruption_accuracy"] == row["accuracy"]
    evaluate(ltd_pipe, "--quick")
    assert not Path("data/evaluation/corruptions.json").exists()


def test_a_folder_of_images_is_measured_as_its_beton(ltd_pipe, project):
    """Straight from PNG files, without `prepare`."""
    source = open_source(PrepareParams(dataset="digits", channels=1), "test")
    for i in range(60):
        place = Path("photos") / str(source.labels[i]) / f"{i:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.images[i]).save(place)
    words = ("--images", "60", "--quick", "--json")
    found = json.loads(evaluate(ltd_pipe, "--data", "photos", *words).out)
    own = json.loads(evaluate(ltd_pipe, *words).out)
    assert found["n"] == own["n"] == 60
    assert found["clean_accuracy"] == own["clean_accuracy"]


def digits_folder(count):
    """Test digits as PNG files, in a folder of ten classes."""
    beton = open_beton(Path("data/test.beton"))
    (batch,) = ImageStream(beton, torch.device("cpu")).batches(np.arange(count), count)
    for name in range(10):
        Path(f"digits/{name}").mkdir(parents=True)
    for i, (image, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
        Image.fromarray(image[0].numpy()).save(f"digits/{int(label)}/{i}.png")


def test_a_source_is_known_by_its_weights_and_how_they_are_read(ltd_pipe, project, monkeypatch):
    """An interrupted evaluation goes on, however the file is spelled."""
    # What an interrupted evaluation leaves behind.
    monkeypatch.setattr("ltd_pipe.publish.remove_state", lambda _: None)
    words = ("evaluate", STUDENT, "--images", "10", "--force", "--transfer-arch", "small-cnn-w8")
    states, scale = [], ("--transfer-mean", "0", "--transfer-std", "0.5")
    for source in ([plain_weights("s.pt")], ["./s.pt"], ["s.pt", *scale]):
        outcome = ltd_pipe(*words, "--transfer-from", *source)
        assert outcome.code == 0, outcome.err
        states.append(len(list(Path("data/state").iterdir())))
    assert states == [1, 1, 2]


def test_what_the_images_are_called_restarts_nothing(ltd_pipe, project, monkeypatch):
    """An evaluation goes on in a folder of another name; settings.json has the name."""
    digits_folder(60)
    monkeypatch.setattr("ltd_pipe.publish.remove_state", lambda _: None)
    names = []
    for data in ("digits", "moved"):
        outcome = ltd_pipe("evaluate", STUDENT, "--data", data, "--images", "10", "--force")
        assert outcome.code == 0, outcome.err
        names.append(json.loads(Path("data/evaluation/settings.json").read_text())["dataset"])
        if data == "digits":
            Path("digits").rename("moved")
    assert names == ["digits", "moved"]
    assert len(list(Path("data/state").iterdir())) == 1


def test_images_of_another_size_are_other_images(ltd_pipe, project, monkeypatch):
    """Neither is an evaluation continued with them, nor are its attacks paired."""
    digits_folder(60)
    # What an interrupted evaluation leaves behind.
    monkeypatch.setattr("ltd_pipe.publish.remove_state", lambda _: None)
    torch.save(build("timm:test_resnet", 10, (3, 8, 8)).state_dict(), "colours.pt")
    words = ("timm:test_resnet=colours.pt", "--data", "digits", "--images", "20", "--force")
    words += ("--mean", "0,0,0", "--std", "1,1,1")
    place = ("--metrics", "sized/metrics.json", "--out", "sized/evaluation")
    for size in ("8", "12"):
        outcome = ltd_pipe("evaluate", *words, *place, "--image-size", size)
        assert outcome.code == 0, outcome.err
        shutil.copytree("sized", f"sized-{size}")
    assert len(list(Path("sized/state").iterdir())) == 2
    settings = json.loads(Path("sized-12/evaluation/settings.json").read_text())
    assert settings["image_shape"] == [3, 12, 12]
    shown = ltd_pipe("compare", "sized-8", "sized-12").out
    assert "pgd: other settings (pixels_sha256)" in shown


@pytest.mark.parametrize("metrics", ["res", "res/", "res/scores.json", "res/../res/settings.json"])
def test_numbers_and_folder_have_places_of_their_own(ltd_pipe, project, metrics):
    """Refused before the first attack; metrics.json in the folder is allowed."""
    outcome = ltd_pipe("evaluate", STUDENT, "--metrics", metrics, "--out", "res")
    assert (outcome.code, Path("res").exists()) == (2, False)
    assert "is written by --out" in outcome.err
    evaluate(ltd_pipe, "--metrics", "res/metrics.json", "--out", "res")


def test_training_images_make_no_evaluation(ltd_pipe, project):
    """Said before the first attack, in metrics.json, and at the top of card and report."""
    outcome = evaluate(ltd_pipe, "--data", "data/train.beton")
    told = f"all 40 images are of the model's training data: {ON_TRAINING}"
    assert f"WARNING: {told}" in outcome.err
    assert told in json.loads(Path("data/metrics.json").read_text())["warnings"]
    files = ("--metrics", "data/metrics.json", "--out", "card.md")
    assert ltd_pipe("card", STUDENT, *files).code == 0
    why = "cannot be believed: it was measured on its training images"
    assert f"**The robust accuracy {why}.**" in Path("card.md").read_text()
    outcome = ltd_pipe("report", "--json")
    assert json.loads(outcome.out)["headline"] == f"The student's robust accuracy {why}"


def test_a_folder_of_images_that_are_not_square(ltd_pipe, pictures):
    """Which stay as they are, as when the model was trained."""
    for path in pictures.rglob("*.png"):
        Image.open(path).resize((12, 8)).save(path)
    for words in (["prepare"], ["teacher"]):
        outcome = ltd_pipe(*words)
        assert outcome.code == 0, outcome.err
    model, accuracies = "data/teacher/model.safetensors", []
    for data in ("data/test.beton", "photos/test"):
        outcome = ltd_pipe("evaluate", model, "--data", data, "--eps-grid", "[]", "--force")
        assert outcome.code == 0, outcome.err
        accuracies.append(json.loads(Path("data/metrics.json").read_text())["pgd_accuracy"])
    assert accuracies[0] == accuracies[1]


def test_training_images_are_known_by_any_labels(ltd_pipe, project):
    """Of a model whose training labels were corrected since, say, and in another order."""
    params = PrepareParams(dataset="digits", channels=1)
    train = open_source(params, "train").take(np.arange(240)[::-1])
    train.labels[:9] = (train.labels[:9] + 1) % 10
    write_beton(train, Path("corrected.beton"), params, "test")
    Path("data/train.beton").unlink()
    evaluate(ltd_pipe, "--data", "corrected.beton")
    told = f"all 40 images are of the model's training data: {ON_TRAINING}"
    assert told in warnings_of("data/metrics.json")


def test_labels_that_prepare_made_wrong_are_told(ltd_pipe, project):
    """Of any model, ours or not: right answers count as wrong ones."""
    prepared = ltd_pipe("prepare", "--wrong-labels", "0.3", "--out", "wrong")
    assert prepared.code == 0, prepared.err
    share = json.loads(Path("wrong/train.beton.json").read_text())["wrong_labels"]
    evaluate(ltd_pipe, "--data", "wrong/train.beton")
    told = f"{share:.1%} of the labels in wrong/train.beton were made wrong by 'ltd-pipe prepare'"
    (warning,) = (w for w in warnings_of("data/metrics.json") if "made wrong" in w)
    assert warning == f"{told}: accuracies are of these labels, not of the truth"
    evaluate(ltd_pipe, "--data", "wrong/test.beton")
    assert not any("made wrong" in w for w in warnings_of("data/metrics.json"))


def warnings_of(metrics):
    return json.loads(Path(metrics).read_text())["warnings"]


@pytest.mark.parametrize("known", [True, False], ids=["of this model", "of another"])
def test_test_images_among_the_training_images_are_counted(ltd_pipe, project, known):
    """Where the beton beside them is the one of the model's training; and one in two classes."""
    params = PrepareParams(dataset="digits", channels=1)
    train, test = (open_source(params, split) for split in ("train", "test"))
    images = np.concatenate([train.images[:3], test.images[:37], test.images[:1]])
    labels = np.concatenate([train.labels[:3], test.labels[:37], (test.labels[:1] + 1) % 10])
    mixed = ArraySource("digits", test.class_names, images, labels.astype(np.int32))
    write_beton(mixed, Path("data/mixed.beton"), params, "test")
    if not known:
        write_beton(mixed, Path("data/train.beton"), params, "train")
    evaluate(ltd_pipe, "--data", "data/mixed.beton", "--images", "41")
    found = json.loads(Path("data/metrics.json").read_text())["warnings"]
    twice = "2 of 41 test images are in two classes: one of them is wrong"
    assert found[-1:] == [twice] if not known else twice in found
    assert ("3 of 41 test images are of the model's training data, too" in found) == known
