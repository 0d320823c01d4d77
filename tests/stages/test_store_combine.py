"""`ltd-pipe store subset`, `merge`, …, as people run them."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_answers import make_answers
from PIL import Image
from published_labels import write_fkd, write_images

from ltd_pipe.images.beton import open_beton


@pytest.fixture
def answers():
    """Eleven samples of three classes."""
    return make_answers()


@pytest.fixture
def store(answers, tmp_path):
    """A store with logits."""
    return answers.write(tmp_path / "labels.zarr")


def test_a_store_is_cut_and_put_together_again(ltd_pipe, store, tmp_path):
    """Two parts, merged, are equal to the whole."""
    for rows, name in (("0:6", "a"), ("6:", "b")):
        outcome = ltd_pipe("store", "subset", store, "--rows", rows, "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
        assert "soft labels over 3 classes, identity" in outcome.out
    outcome = ltd_pipe(
        "store", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c", "--json"
    )
    summary = json.loads(outcome.out)
    assert summary["num_samples"] == 11
    assert summary["derived_from"]["operation"] == "merge"
    assert ltd_pipe("store", "verify", tmp_path / "c").code == 0
    assert (tmp_path / "c/soft_labels/c/0/0").read_bytes() == (
        store / "soft_labels/c/0/0"
    ).read_bytes()


def test_a_subset_is_cut_to_a_beton(ltd_pipe, project, test_beton):
    """By hash, and it verifies against that data; other images are refused."""
    train = project / "data/train.beton"
    outcome = ltd_pipe("store", "subset", "data/labels.zarr", "--data", train, "--out", "part.zarr")
    assert outcome.code == 0, outcome.err
    assert ltd_pipe("store", "verify", "part.zarr", "--data", train).code == 0
    outcome = ltd_pipe(
        "store", "subset", "data/labels.zarr", "--data", test_beton.path, "--out", "other.zarr"
    )
    assert outcome.code == 1
    assert "has no label for sample 0" in outcome.err


def test_a_subset_is_cut_to_a_folder_of_images(ltd_pipe, pictures):
    """A folder is hashed, and the labels that were made of it are found."""
    for words in (
        ["prepare"],
        ["teacher"],
        ["label", "--teacher", "data/teacher/model.safetensors"],
        ["store", "subset", "data/labels.zarr", "--data", "photos/train", "--out", "part.zarr"],
        ["store", "verify", "part.zarr", "--data", "data/train.beton"],
    ):
        outcome = ltd_pipe(*words)
        assert outcome.code == 0, outcome.err


def test_images_that_were_renamed_keep_their_labels_by_a_subset(ltd_pipe, pictures):
    """The first that is another one is named, with the command, which does what is said of it."""
    store = "their labels.zarr"
    for words in (["prepare"], ["teacher"], ["label", "--out", store]):
        assert ltd_pipe(*words).code == 0
    verify = ["store", "verify", store, "--data", "photos/train"]
    train = ["train", "--epochs", "1", "--labels"]
    first, second, *_ = sorted(Path("photos/train").rglob("*.png"))
    first.rename(first.with_name("z.png"))
    assert ltd_pipe("prepare", "--force").code == 0
    refused = [ltd_pipe(*verify), ltd_pipe(*train, store)]
    for outcome in refused:
        assert outcome.code == 1
        assert "the first that differs is sample 0" in outcome.err
        (given,) = re.findall("'ltd-pipe (store subset .*)' keeps the labels", outcome.err)
        words = shlex.split(given.replace("IMAGES", "data/train.beton"))
        assert ltd_pipe(*words, "--force").code == 0
        shutil.rmtree("NEW.zarr")
    assert f"sample 0, {second}" in refused[0].err
    subset = ["store", "subset", store, "--data", "data/train.beton", "--out"]
    assert ltd_pipe(*subset, "part.zarr").code == 0
    assert ltd_pipe(*train, "part.zarr", "--allow-poor-labels").code == 0
    # A file that is another image now has no label.
    second.write_bytes(second.with_name("z.png").read_bytes() + b"changed")
    outcome = ltd_pipe(*verify)
    assert "59 of 60 images are in the store: ask its maker for labels of the" in outcome.err
    assert f"such as sample 0, {second}, and join them with 'ltd-pipe store merge'" in outcome.err


def test_an_image_that_is_of_another_class_now_is_named(ltd_pipe, pictures):
    """Before a subset is recommended, which would refuse it."""
    for words in (["prepare"], ["teacher"], ["label"]):
        assert ltd_pipe(*words).code == 0
    first, *_ = sorted(Path("photos/train").rglob("*.png"))
    other = next(p for p in sorted(Path("photos/train").iterdir()) if p.name != first.parent.name)
    moved = first.rename(other / "moved.png")
    outcome = ltd_pipe("store", "verify", "data/labels.zarr", "--data", "photos/train")
    assert outcome.code == 1
    assert "1 images have another class here than in the store, such as sample" in outcome.err
    assert f"{moved}: '{other.name}' here, '{first.parent.name}' there" in outcome.err


def test_what_was_left_out_of_all_rows_is_not_said_of_some(ltd_pipe, answers, tmp_path):
    """The distance of a top-k store from its dense one was measured over all its rows."""
    sparse = answers.write(tmp_path / "dense.zarr")
    words = ["store", "retemper", sparse, "--top-k", "2", "--out", tmp_path / "sparse.zarr"]
    assert "left out" in ltd_pipe(*words).out
    for rows, said in (("0:4", False), ("0:11", True)):
        part = ["store", "subset", tmp_path / "sparse.zarr", "--rows", rows, "--out"]
        outcome = ltd_pipe(*part, tmp_path / f"part-{said}.zarr")
        assert outcome.code == 0, outcome.err
        assert ("left out" in outcome.out) is said


def test_copies_that_were_saved_anew_are_named_as_other_images(ltd_pipe, pictures):
    """The likely cause, where no image of the right classes is known."""
    for words in (["prepare"], ["teacher"], ["label"]):
        assert ltd_pipe(*words).code == 0
    for path in Path("photos/train").rglob("*.png"):
        Image.open(path).save(path, compress_level=1)
    outcome = ltd_pipe("store", "verify", "data/labels.zarr", "--data", "photos/train")
    assert outcome.code == 1
    assert "None of these images is in the store: are they of another split" in outcome.err
    assert "copies that were saved anew" in outcome.err


def test_stores_are_averaged(ltd_pipe, answers, store, tmp_path):
    """With weights, which say whose answers count for more."""
    other = replace(answers, logits=answers.logits / 2).write(tmp_path / "other.zarr")
    words = ("store", "merge", store, other, "--average", "--out", tmp_path / "c")
    outcome = ltd_pipe(*words, "--weights", "0.7,0.3")
    assert outcome.code == 0, outcome.err
    outcome = ltd_pipe(*words)
    assert outcome.code == 1
    assert "exists already. Pass --force" in outcome.err


def test_one_store_is_not_averaged_with_itself(ltd_pipe, store, tmp_path):
    """Not under another name either: it would look like two teachers' agreement."""
    shutil.copytree(store, tmp_path / "copy.zarr")
    for again in (store, tmp_path / "copy.zarr"):
        outcome = ltd_pipe("store", "merge", store, again, "--average", "--out", tmp_path / "c")
        assert outcome.code == 1
        assert f"{again}: is the same store as {store}. Name each store once" in outcome.err
        assert not (tmp_path / "c").exists()


def test_values_that_this_store_cannot_have_are_refused_with_usage(ltd_pipe, store, tmp_path):
    """Exit code 2, as for values that no store can have."""
    for words, message in (
        (["subset", store, "--rows", "5:12"], "expected A:B with 0 <= A < B <= 11, found 5:12"),
        (["retemper", store, "--temperature", "auto:0.1"], "found auto:0.1"),
        (["retemper", store, "--top-k", "4"], "'--top-k': is out of range: expected 1 to 3, the"),
    ):
        outcome = ltd_pipe("store", *words, "--out", tmp_path / "c")
        assert outcome.code == 2
        assert message in outcome.err


USAGE = {
    "one store": (["merge", "a"], "two stores or more"),
    "weights of parts": (["merge", "a", "b", "--weights", "1,2"], "belong to --average"),
    "an average by data": (["merge", "a", "b", "--average", "--data", "d"], "belongs to parts"),
    "weights that are none": (["merge", "a", "b", "--weights", "x"], "is not a list such as"),
    "nothing to change": (["retemper", "a"], "--temperature, --top-k or both are needed"),
    "no temperature": (
        ["retemper", "a", "--temperature", "warm"],
        "or auto:calibrated, found 'warm'",
    ),
    "no share": (
        ["retemper", "a", "--temperature", "auto:nan"],
        "auto:P with P in (0, 1), or auto:c",
    ),
    "both ways": (["convert", "a", "--to", "npz", "--from", "npz"], "one of --from and --to"),
    "neither way": (["convert", "a"], "one of --from and --to is needed"),
    "no images": (["convert", "a", "--from", "fkd"], "needs the images as a folder"),
    "no crops": (["convert", "a", "--from", "npz", "--top-k", "3"], "has no meaning for a npz"),
    "no range": (["subset", "a", "--rows", "5"], "is no range such as 0:1000"),
    "rows backwards": (["subset", "a", "--rows", "5:3"], "'5:3' holds no row"),
    "no rows": (["pull", "a", "--rows", ":0"], "':0' holds no row"),
    "a weight too few": (
        ["merge", "a", "b", "--average", "--weights", "0.7"],
        "are one number above zero for each store: expected 2 numbers, found 0.7",
    ),
    "a weight of zero": (["merge", "a", "b", "--average", "--weights", "1,0"], "found 1, 0"),
    "a temperature of zero": (
        ["retemper", "a", "--temperature", "0"],
        "temperature: expected a number from 1e-06 to 1e+06, auto:P with P in (0, 1), or",
    ),
    "rows and class": (["subset", "a", "--rows", "0:5", "--class", "x"], "exclude each other"),
}


@pytest.mark.parametrize(("words", "message"), USAGE.values(), ids=USAGE.keys())
def test_what_cannot_be_meant_is_refused_with_usage(ltd_pipe, words, message):
    """Exit code 2, before anything is opened."""
    outcome = ltd_pipe("store", *words, "--out", "c")
    assert outcome.code == 2
    assert message in outcome.err


def test_a_result_never_replaces_its_input(ltd_pipe, store):
    """Not even with --force."""
    outcome = ltd_pipe("store", "subset", store, "--rows", "0:5", "--out", store, "--force")
    assert outcome.code == 1
    assert "lies in, or holds, the input" in outcome.err


def test_a_store_is_softened_anew(ltd_pipe, store, tmp_path):
    """At a number, at auto:P, and with the largest only."""
    out = tmp_path / "new.zarr"
    words = ("store", "retemper", store, "--out", out)
    for options, temperature in ((["--temperature", "0.5"], 0.5), (["--top-k", "2"], 2.0)):
        outcome = ltd_pipe(*words, *options, "--json", "--force")
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["temperature"] == temperature
    assert ltd_pipe(*words, "--temperature", "auto:0.7", "--force").code == 0
    outcome = ltd_pipe("store", "info", out, "--json")
    assert json.loads(outcome.out)["labels"]["mean_top_probability"] == pytest.approx(0.7, abs=0.01)
    assert ltd_pipe("store", "verify", out).code == 0


def test_differences_decide_the_exit_code(ltd_pipe, store, answers, tmp_path):
    """0 equal, 1 different; rows that differ are listed."""
    outcome = ltd_pipe("store", "diff", store, store)
    assert (outcome.code, outcome.out) == (0, "equal: 11 samples, all attributes\n")
    logits = answers.logits.copy()
    logits[6] = -logits[6]
    other = replace(answers, logits=logits).write(tmp_path / "other.zarr")
    outcome = ltd_pipe("store", "diff", store, other)
    assert outcome.code == 1
    assert "soft labels differ: 1 of 11 common samples" in outcome.out
    assert f"6       6  {answers.sample_hash[6]:016x}" in outcome.out
    outcome = ltd_pipe("store", "diff", store, other, "--json", "--rows", "0")
    found = json.loads(outcome.out)
    assert (outcome.code, found["same"], found["different"], found["worst"]) == (1, False, 1, [])


def test_only_labels_may_be_compared(ltd_pipe, store, answers, tmp_path):
    """Order and attributes are then told, but do not count."""
    other = answers.permuted([1, 0, *range(2, 11)]).write(tmp_path / "other.zarr")
    outcome = ltd_pipe("store", "diff", store, other)
    assert outcome.code == 1
    assert "in other rows: 2 of 11 common samples" in outcome.out
    assert ltd_pipe("store", "diff", store, other, "--labels-only").code == 0


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_store_goes_into_a_table_and_back(ltd_pipe, store, tmp_path, kind):
    """The identity is the same."""
    table, out = tmp_path / f"labels.{kind}", tmp_path / "again.zarr"
    words = ("store", "convert", store, "--to", kind, "--out", table)
    outcome = ltd_pipe(*words)
    assert outcome.code == 0, outcome.err
    assert f"{table}: 11 rows" in outcome.out
    assert "exists already" in ltd_pipe(*words).err
    assert json.loads(ltd_pipe(*words, "--force", "--json").out)["num_samples"] == 11
    outcome = ltd_pipe("store", "convert", table, "--from", kind, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    before = json.loads(ltd_pipe("store", "info", store, "--json").out)
    assert json.loads(outcome.out)["identity"] == before["identity"]
    assert ltd_pipe("store", "diff", store, out).code == 0


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_force_replaces_tables_only(ltd_pipe, store, tmp_path, kind):
    """A mistyped --out does not cost a file that is none."""
    thesis, table = tmp_path / "thesis.tex", tmp_path / "labels.table"
    thesis.write_text("x")
    words = ("store", "convert", store, "--to", kind, "--force", "--out")
    outcome = ltd_pipe(*words, thesis)
    assert outcome.code == 1
    assert f"is no {kind} file, and --force replaces these only" in outcome.err
    assert thesis.read_text() == "x"
    # An archive, too, but no table.
    torch.save([1], thesis)
    assert ltd_pipe(*words, thesis).code == 1
    for _ in range(2):
        assert ltd_pipe(*words, table).code == 0


def test_published_labels_are_converted(ltd_pipe, tmp_path):
    """FKD's, with the teacher named; without --average-crops they are refused."""
    images = write_images(tmp_path / "images" / "train")
    root = write_fkd(tmp_path / "FKD", images)
    out = tmp_path / "fkd.zarr"
    words = ["store", "convert", root, "--from", "fkd", "--data", images, "--out", out]
    outcome = ltd_pipe(*words)
    assert outcome.code == 2
    assert "Pass --average-crops" in outcome.err
    words += ["--average-crops", "--teacher-sha256", "ab" * 32, "--architecture", "timm:effnet"]
    outcome = ltd_pipe(*words, "--licence", "MIT")
    assert outcome.code == 0, outcome.err
    known = json.loads(ltd_pipe("store", "info", out, "--json").out)["attributes"]
    assert known["teachers"][0]["architecture"] == "timm:effnet"
    assert known["licence"] == "MIT"
    assert known["dataset"]["name"] == "images"


def test_labels_of_an_unknown_teacher_are_shown(ltd_pipe, tmp_path):
    """A store that names no teacher is as readable as others."""
    images = write_images(tmp_path / "train")
    root, out = write_fkd(tmp_path / "FKD", images), tmp_path / "fkd.zarr"
    words = ("--from", "fkd", "--average-crops", "--data", images, "--out", out)
    assert ltd_pipe("store", "convert", root, *words).code == 0
    assert ltd_pipe("store", "info", out).code == 0
    assert ltd_pipe("store", "verify", out).code == 0


def test_what_a_table_says_itself_is_not_told_again(ltd_pipe, store, tmp_path):
    """Its own attributes count."""
    table = tmp_path / "labels.npz"
    assert ltd_pipe("store", "convert", store, "--to", "npz", "--out", table).code == 0
    words = ("store", "convert", table, "--from", "npz", "--out", tmp_path / "b.zarr")
    outcome = ltd_pipe(*words, "--licence", "MIT")
    assert outcome.code == 2
    assert "--licence has no meaning for a file that was made of a store" in outcome.err


def test_labels_that_contradict_the_truth_are_warned_of(ltd_pipe, pictures):
    """Whoever made them knew these images under other names, or not at all."""
    assert ltd_pipe("prepare", "--out", "o").code == 0
    beton = open_beton(Path("o/train.beton"))
    soft = np.full((60, 10), 0.01)
    soft[:, 3] = 0.91
    np.savez("labels.npz", soft_labels=soft, sample_hash=beton.sample_hash)
    words = ("--from", "npz", "--data", "o/train.beton", "--out", "a.zarr")
    outcome = ltd_pipe("store", "convert", "labels.npz", *words)
    assert outcome.code == 0, outcome.err
    share = (beton.labels != 3).mean()
    assert f"a.zarr: they contradict the ground truth for {share:.2%}" in outcome.err
    assert "no row" not in outcome.err
    np.savez("labels.npz", soft_labels=soft[1:], sample_hash=beton.sample_hash[1:])
    outcome = ltd_pipe("store", "convert", "labels.npz", *words, "--force")
    assert outcome.code == 0, outcome.err
    assert "note: 1 of 60 images have no row in labels.npz" in outcome.err
