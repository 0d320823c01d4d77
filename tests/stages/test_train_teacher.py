"""`ltd-pipe train` with a teacher in the run, and what it says of the labels."""

import re
from pathlib import Path

from ltd_pipe.labels import SoftLabels
from ltd_pipe.models.checkpoint import load_classifier, save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.facts import read_facts
from ltd_pipe.models.registry import build
from ltd_pipe.provenance import sha256_file

TEACHER = "data/teacher/model.safetensors"
SHORT = ("train", "--epochs", "1", "--attack-steps", "1", "--out", "new")
LIVE = (*SHORT, "--label-kind", "live", "--teacher", TEACHER)


def test_a_teacher_in_the_run_is_in_the_students_facts(ltd_pipe, project):
    """By the hash of its file, and at the temperature it was asked at; there is no store."""
    words = ("--objective", "adaad", "--igdm-weight", "5", "--teacher-temperature", "2")
    outcome = ltd_pipe(*LIVE, *words)
    assert outcome.code == 0, outcome.err
    facts = read_facts(Path("new/model.safetensors"))
    expected = {"architecture": "small-cnn-w8", "sha256": sha256_file(Path(TEACHER))}
    assert facts["teacher"] == expected | {"temperature": 2.0}
    assert facts["labels"] is None


def test_a_checkpoint_that_is_not_there_is_named_with_its_option(ltd_pipe, project):
    """A teacher in the run, and one that is taken instead of trained."""
    words = {
        "train.teacher": (*SHORT, "--label-kind", "live", "--teacher", "no.safetensors"),
        "teacher.checkpoint": ("teacher", "--checkpoint", "no.safetensors", "--out", "other"),
    }
    for option, command in words.items():
        outcome = ltd_pipe(*command)
        assert outcome.code == 1
        assert f"{option}: no.safetensors: no such file or folder. Give" in outcome.err


def test_labels_that_weigh_nothing_are_not_read(ltd_pipe, project):
    """AdaAD's are of its clean term, which it has not by default; one that has it needs a store."""
    Path("data/labels.zarr").rename("elsewhere.zarr")
    words = (*SHORT, "--objective", "adaad", "--teacher", TEACHER)
    outcome = ltd_pipe(*words)
    assert outcome.code == 0, outcome.err
    assert "labels" not in outcome.out + outcome.err
    assert read_facts(Path("new/model.safetensors"))["labels"] is None
    outcome = ltd_pipe(*words, "--robust-weight", "0.5", "--force")
    assert outcome.code == 1
    assert "data/labels.zarr" in outcome.err


def test_the_summary_says_how_soft_a_teachers_answers_were(ltd_pipe, project):
    """Of the last epoch, in the last line and in the facts."""
    outcome = ltd_pipe(*LIVE)
    assert outcome.code == 0, outcome.err
    targets = read_facts(Path("new/model.safetensors"))["targets"]
    said = f"mean top probability of its labels {targets['mean_top_probability']:.3f}, mean entropy"
    assert said in outcome.out
    assert f"{targets['contradictions']:.2%} contradict the ground truth" in outcome.out


def test_another_teacher_is_another_run(ltd_pipe, project, monkeypatch):
    """A run with another file under the same name does not continue this one."""
    keys = []
    monkeypatch.setattr("ltd_pipe.training.snapshots.Snapshots.__init__", refuse(keys))
    for number in (1, 2):
        ltd_pipe(*LIVE)
        model = load_classifier(Path(TEACHER))
        save_classifier(model, Path(TEACHER), note=number)
    assert len(set(keys)) == 2


def refuse(keys):
    """Instead of opening snapshots: note their folder's name, and end the command."""

    def init(_, folder, *more, **how):
        del more, how
        keys.append(folder.name)
        raise KeyboardInterrupt

    return init


def test_a_teacher_of_other_classes_stops_training(ltd_pipe, project):
    """Before the first step, naming the class."""
    names = ("zero", *"123456789")
    network = build("small-cnn-w4", 10, (1, 8, 8))
    facts = {"architecture": "small-cnn-w4", "class_names": names, "shape": (1, 8, 8)}
    save_classifier(Classifier(network, **facts), Path("other.safetensors"))
    outcome = ltd_pipe(*SHORT, "--label-kind", "live", "--teacher", "other.safetensors")
    assert outcome.code == 1
    assert "class 0: expected 'zero' by the model, found '0'" in outcome.err
    assert not Path("new/model.safetensors").exists()


def test_a_teacher_that_is_not_asked_is_not_opened(ltd_pipe, project):
    """So that the baseline of a run with one needs no more than another label kind."""
    text = Path("params.yaml").read_text()
    given = text.replace("train:\n  {", "train:\n  {teacher: nowhere.safetensors, ", 1)
    Path("params.yaml").write_text(given)
    outcome = ltd_pipe(*SHORT, "--label-kind", "onehot")
    assert outcome.code == 0, outcome.err
    assert "note: train.teacher does nothing here" in outcome.err
    assert "teacher" not in read_facts(Path("new/model.safetensors"))


def test_the_summary_says_how_soft_the_labels_were(ltd_pipe, project):
    """In the last line and in the facts, of the training samples and as they were mixed."""
    outcome = ltd_pipe(*SHORT, "--soft-weight", "0.5")
    assert outcome.code == 0, outcome.err
    pattern = r"mean top probability of its labels 0\.9\d\d, mean entropy 0\.\d{3} nats; "
    assert re.search(pattern + r"\d+\.\d\d% contradict the ground truth$", outcome.out.strip())
    labels = read_facts(Path("new/model.safetensors"))["labels"]
    stored = SoftLabels.open(Path("data/labels.zarr")).summary().mean_top_probability
    assert labels["mean_top_probability"] > stored + 0.005
    assert labels["targets"] < 240  # without the validation split


def test_soft_labels_are_warned_of(ltd_pipe, project):
    """With where their harm was measured."""
    outcome = ltd_pipe(*SHORT, "--label-temperature", "20", "--allow-poor-labels")
    assert outcome.code == 0, outcome.err
    assert re.search(r"warning: labels of a mean .* are soft.*see docs/robustness.md", outcome.err)
    # Card and export say it: that at which the logits were read, not the store's.
    assert read_facts(Path("new/model.safetensors"))["labels"]["temperature"] == 20


def test_a_single_exit_is_evaluated_as_any_student(ltd_pipe, project):
    """Trained with three exits; the first one, saved by itself, goes through `evaluate`."""
    words = ("--objective", "exits", "--architecture", "small-cnn-exits-w4", "--label-kind", "ltd")
    assert ltd_pipe(*SHORT, *words).code == 0
    student = load_classifier(Path("new/model.safetensors"))
    save_classifier(student.at_exit(1), Path("exit-1.safetensors"))
    words = ("evaluate", "exit-1.safetensors", "--metrics", "exit-1.json", "--out", "exit-1")
    outcome = ltd_pipe(*words)
    assert outcome.code == 0, outcome.err
    assert re.search(r"exit-1.safetensors:\n +clean +\d+\.\d\d%", outcome.out)
