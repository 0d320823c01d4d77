"""The study of people's labels: answers meet their images, and each program runs and goes on."""

import json
import os
from pathlib import Path

import ideal
import label_errors
import numpy as np
import pytest
import temperature
from click.testing import CliRunner
from common import read_rows
from people import Answers
from PIL import Image
from scipy.special import softmax
from scipy.stats import entropy

from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.sources import open_source
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.params import PrepareParams

IMAGES, PEOPLE = (os.environ.get(f"LTD_PIPE_CIFAR10_{name}") for name in ("JPEG", "PEOPLE"))


def beton_of(folder, path):
    params = PrepareParams(dataset="folder", path=str(folder))
    write_beton(open_source(params, "test"), path, params, "test")
    return open_beton(path)


def test_answers_are_joined_to_their_images(tmp_path):
    """Whatever order the file is in, each row stands where the beton has its image."""
    draws = np.random.default_rng(0)
    names, numbers = ["cat", "dog"], [1, 2, 3]
    for split in ("train", "test"):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for number in numbers:
                pixels = draws.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number:04d}.jpg")
    beton = beton_of(tmp_path, tmp_path / "test.beton")
    order = draws.permutation(6)
    label, number = np.repeat([0, 1], 3)[order], np.tile(numbers, 2)[order]
    content = {
        "class_names": np.array(names),
        "label": label,
        "number": number,
        "human_counts": np.stack([label, number], axis=1),
        "teacher_probs": np.full((6, 2), 0.5),
        "review": np.full((6, 4), -1),
    }
    np.savez(tmp_path / "people.npz", **content)
    found = Answers.read(tmp_path / "people.npz", tmp_path / "test", beton)
    # The beton's rows are sorted by path.
    assert found.counts.tolist() == [[label, number] for label in (0, 1) for number in numbers]
    np.savez(tmp_path / "other.npz", **content | {"number": np.tile([1, 1, 3], 2)})
    with pytest.raises(ValueError, match="not of the same images"):
        Answers.read(tmp_path / "other.npz", tmp_path / "test", beton)


def test_the_temperature_of_made_up_people_is_found():
    """People who answer with a teacher at temperature 3 are met there, and nowhere so well."""
    draws = np.random.default_rng(0)
    logits = draws.normal(0, 15, (4000, 10))
    people = np.stack([draws.multinomial(51, row) for row in softmax(logits / 3, axis=1)])
    labels = logits.argmax(axis=1)
    answers = Answers(labels, people.astype(float), softmax(logits, axis=1), -np.ones((4000, 4)))
    row = temperature.measure(answers, logits, {"auto:calibrated": 1.5}, None)
    middle, low, high = row["least"]["all"]
    assert low < 3 < high
    assert middle == pytest.approx(3, rel=0.02)
    # Of clear images and of others alike: the answers that tell these apart are not those compared.
    assert all(found[0] == pytest.approx(3, rel=0.04) for found in row["least"].values())
    assert min(row["groups"].values()) > 200
    # Where the divergence is least, (people - teacher) · logits is nought on average.
    assert row["at"]["least KL"]["gap"] == pytest.approx(row["at"]["least KL"]["kl"], abs=1e-3)
    assert row["at"]["auto:calibrated"]["kl"] > row["at"]["least KL"]["kl"]
    wanted = np.mean(entropy(people / 51, softmax(logits, axis=1), axis=1))
    assert row["at"]["T = 1"]["kl"] == pytest.approx(wanted, rel=1e-4)


def test_suspect_labels_are_counted_by_hand():
    """One reviewed and wrong, one reviewed and right, one that only people contradict."""
    labels = np.zeros(300, int)
    probs = np.full((300, 3), [0.9, 0.06, 0.04])
    probs[:3] = [[0.1, 0.9, 0.0], [0.2, 0.4, 0.4], [0.3, 0.7, 0.0]]
    review = np.full((300, 4), -1)
    review[:2] = [[2, 3, 0, 0], [3, 1, 1, 0]]
    counts = np.full((300, 3), [51.0, 0, 0])
    counts[2] = [25, 26, 0]
    counts[3] = [25, 25, 1]  # a tie is the given label's
    found = label_errors.found(probs, Answers(labels, counts, probs, review))
    assert found["margin"][0] == {"first": 10, "reviewed": 2, "wrong": 1, "people": 1}
    ranked = label_errors.suspicions(probs, labels)
    orders = {name: np.argsort(-values)[:3].tolist() for name, values in ranked.items()}
    assert orders == {
        "margin": [0, 2, 1],
        "contradicting class": [0, 2, 1],
        "self-confidence": [0, 1, 2],
    }


@pytest.mark.slow
def test_the_temperature_of_a_teacher_is_measured_once(tmp_path):
    """A row for each teacher, and tables of all; those that are there are not trained again."""
    where, tmp_path = ["--folder", str(tmp_path)], tmp_path / "quick"
    asked = ["--quick", "--seeds", "1", "--epochs", "3", *where]
    first = CliRunner().invoke(temperature.main, asked, catch_exceptions=False)
    assert first.exit_code == 0
    rows = read_rows(tmp_path / "temperature.jsonl")
    assert [row["teacher"] for row in rows] == ["strong network", "3 epochs"]
    ours = rows[1]["at"]
    # Less sure than the mean that auto:0.9 had, on images that the teacher trained on.
    assert ours["auto:0.9"]["top"] < ours["auto:0.95"]["top"]
    assert all(one["kl"] >= ours["least KL"]["kl"] for one in ours.values())
    assert "| 3 epochs" in (tmp_path / "temperature.md").read_text()
    assert (tmp_path / "temperature.svg").read_text().startswith("<?xml")
    shown = CliRunner().invoke(temperature.main, asked, catch_exceptions=False)
    assert first.stdout.endswith(shown.stdout)
    assert read_rows(tmp_path / "temperature.jsonl") == rows


@pytest.mark.slow
@pytest.mark.skipif(
    not (IMAGES and PEOPLE),
    reason="LTD_PIPE_CIFAR10_JPEG and LTD_PIPE_CIFAR10_PEOPLE name no images and people's answers",
)
def test_people_say_of_real_images_what_was_published(tmp_path):
    """Northcutt et al. 2021 and Peterson et al. 2019, of the 8,000 images that are here."""
    beton = beton_of(Path(IMAGES), tmp_path / "test.beton")
    found = Answers.read(Path(PEOPLE), Path(IMAGES) / "test", beton)
    assert (int(found.reviewed.sum()), int(found.wrong.sum())) == (228, 47)
    assert (found.majority == found.labels).mean() == pytest.approx(0.992, abs=0.001)
    assert (found.network.argmax(axis=1) == found.labels).mean() == pytest.approx(0.929, abs=0.002)


def test_smoothed_labels_have_the_entropy_that_was_asked_for():
    """Of ten classes, a tenth of the mass spread evenly."""
    wanted = entropy([0.91, *[0.01] * 9])
    assert ideal.matching_smoothing(float(wanted), 10) == pytest.approx(0.1)


@pytest.mark.slow
def test_students_learn_from_each_kind_of_label_once(tmp_path):
    """Each arm's targets are those that it names; a run that is there is not made again."""
    arms = ("one-hot", "people", "smoothed", "half people", "people's majority", "network, T = 3")
    where, tmp_path = ["--folder", str(tmp_path), "--seed", "0"], tmp_path / "quick"
    asked = ["--quick", *where, *(word for arm in arms for word in ("--arm", arm))]
    first = CliRunner().invoke(ideal.main, asked, catch_exceptions=False)
    assert first.exit_code == 0
    rows = {row["arm"]: row for row in read_rows(tmp_path / "ideal.jsonl")}
    assert set(rows) == set(arms)
    entropies = {arm: row["mean_entropy"] for arm, row in rows.items()}
    assert entropies["one-hot"] == entropies["people's majority"] == 0
    # Of those that are trained on, not of all, that the smoothing was matched to.
    assert entropies["smoothed"] == pytest.approx(entropies["people"], rel=0.1)
    assert 0 < entropies["half people"] < entropies["people"] < entropies["network, T = 3"]
    stores = {name: SoftLabels.open(tmp_path / f"{name}.zarr") for name in STORES}
    train = open_beton(tmp_path / "swapped" / "train.beton")
    answers = Answers.made_up(train)
    every = np.arange(len(train.labels))
    assert np.allclose(stores["people"].gather(every), answers.people, atol=1e-3)
    assert (stores["majority"].gather(every).argmax(axis=1) == answers.majority).all()
    at_one = softmax(stores["network"].gather_logits(every).astype(float), axis=1)
    assert np.allclose(at_one, answers.network, atol=1e-2)
    assert "| people |" in (tmp_path / "ideal.md").read_text()
    assert (tmp_path / "ideal.svg").read_text().startswith("<?xml")
    again = CliRunner().invoke(ideal.main, asked, catch_exceptions=False)
    assert first.stdout.endswith(again.stdout)
    assert not again.stderr


def test_runs_of_other_settings_are_none_of_the_study(tmp_path):
    """They need a file of their own, and of both kinds together there is no table."""
    words = ["--folder", str(tmp_path), "--quick", "--set", "train.epochs=3"]
    refused = CliRunner().invoke(ideal.main, words)
    assert refused.exit_code == 2
    assert "give them --out" in refused.stderr
    committed = (ideal.HERE / "ideal.jsonl").read_text().splitlines()
    other = json.loads(committed[0]) | {"epochs": 2}
    (tmp_path / "ideal.jsonl").write_text("\n".join([*committed, json.dumps(other)]) + "\n")
    refused = CliRunner().invoke(ideal.main, ["--table", "--out", str(tmp_path)])
    assert refused.exit_code == 1
    assert "two kinds" in refused.stderr
    assert not (tmp_path / "ideal.md").exists()


STORES = ("people", "majority", "network")
