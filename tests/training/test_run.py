"""What surrounds a run: samples, initial weights and keys."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.distributed import World
from ltd_pipe.errors import DataError, ParamsError
from ltd_pipe.images.sources import validation_mask
from ltd_pipe.params import Params, TrainParams
from ltd_pipe.training.run import new_classifier, open_run, run_facts, run_record, split_samples

PARAMS = TrainParams(architecture="small-cnn-w8", epochs=1, eps=0.1, step_size=0.1)


def model(beton, seed=0, role="student", **changes):
    params = PARAMS.model_copy(update=changes)
    return new_classifier(params, beton.manifest, seed=seed, role=role, device=torch.device("cpu"))


def first_weight(classifier):
    return next(classifier.parameters()).flatten()[0].item()


def test_both_parts_together_are_everything(train_beton):
    """Training and validation are disjoint and complete, as the hashes say."""
    training, validation = split_samples(train_beton)
    both = np.sort(np.concatenate([training, validation]))
    np.testing.assert_array_equal(both, np.arange(240))
    assert validation_mask(train_beton.sample_hash, 0.2)[validation].all()


def test_a_part_of_the_images_leaves_the_validation_whole(train_beton):
    """The same seed chooses the same ones, never from the validation split."""
    whole, validation = split_samples(train_beton)
    some, same = split_samples(train_beton, 50, seed=3)
    assert len(some) == 50
    assert set(some) < set(whole)
    np.testing.assert_array_equal(same, validation)
    np.testing.assert_array_equal(some, split_samples(train_beton, 50, seed=3)[0])
    assert set(some) != set(split_samples(train_beton, 50, seed=4)[0])


def test_more_images_than_there_are_is_refused(train_beton):
    """With how many there are, and whose option it is."""
    for section in ("train", "teacher"):
        most = re.compile(r"^at most 1\d\d\b")
        with refused(ParamsError, where=f"{section}.images", what="more", expected=most):
            split_samples(train_beton, 10_000, section=section)


@pytest.mark.parametrize(("role", "section"), [("student", "train"), ("teacher", "teacher")])
def test_a_crop_that_may_miss_the_image_is_refused(train_beton, role, section):
    """Padding by the side or more; one pixel less always leaves some of the image."""
    model(train_beton, role=role, crop_padding=7)
    less = "less than its side, 8 pixels"
    with refused(ParamsError, where=f"{section}.crop_padding", expected=less, found=8):
        model(train_beton, role=role, crop_padding=8)


@pytest.mark.parametrize(("role", "section"), [("student", "train"), ("teacher", "teacher")])
def test_a_cutout_larger_than_the_image_is_refused(train_beton, role, section):
    """Most images would be grey all over."""
    model(train_beton, role=role, crop_padding=0, cutout=8)
    with pytest.raises(ParamsError) as caught:
        model(train_beton, role=role, crop_padding=0, cutout=9)
    error = caught.value
    assert (error.where, error.found) == (f"{section}.cutout", 9)
    assert error.expected == "at most its side, 8 pixels"


def test_nothing_left_to_train_on_is_refused(train_beton, monkeypatch):
    """A validation fraction close to one."""
    manifest = train_beton.manifest.model_copy(update={"validation_fraction": 0.999999})
    object.__setattr__(train_beton, "manifest", manifest)
    try:
        with refused(DataError, where="train.beton", what="nothing"):
            split_samples(train_beton)
    finally:
        restored = manifest.model_copy(update={"validation_fraction": 0.2})
        object.__setattr__(train_beton, "manifest", restored)


def test_initial_weights_depend_on_seed_and_role_alone(train_beton):
    """Not on what was drawn before; student and baseline start from the same weights."""
    one = first_weight(model(train_beton))
    torch.rand(10)
    assert first_weight(model(train_beton, label_kind="onehot")) == one
    assert first_weight(model(train_beton, seed=1)) != one
    assert first_weight(model(train_beton, role="teacher")) != one


def test_building_a_model_leaves_the_generator_alone(train_beton):
    """Torch's global generator is where it was."""
    before = torch.get_rng_state()
    model(train_beton)
    assert torch.equal(torch.get_rng_state(), before)


def record(beton, kind="student", labels=None, seed=0, out="runs/a", facts=None, **changes):
    params = PARAMS.model_copy(update=changes)
    given = run_facts(kind, params, beton.manifest, seed=seed, labels=labels, device="cpu")
    return run_record(given | (facts or {}), Path(out))


def key(beton, **changes):
    return record(beton, **changes).folder


CHANGES = [
    {"kind": "teacher"},
    {"labels": "abc"},
    {"seed": 1},
    {"epochs": 2},
    {"eps": 0.2},
    {"precision": "float32"},
    {"facts": {"code": "abc"}},
    {"facts": {"init": "abc"}},
    {"facts": {"teacher": "abc"}},
    {"out": "runs/b"},
]


def test_another_validation_split_changes_the_key(train_beton):
    """The beton has the same bytes, but other images of it are trained on."""
    facts = {"validation_fraction": train_beton.manifest.validation_fraction / 2}
    given = run_facts("student", PARAMS, train_beton.manifest, seed=0)
    assert given["validation_fraction"] == train_beton.manifest.validation_fraction
    assert key(train_beton, facts=facts) != key(train_beton)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_decides_the_result_changes_the_key(train_beton, change):
    """Another kind, store, seed or parameter never continues a run."""
    assert key(train_beton, **change) != key(train_beton)


ROUNDING = [
    {"snapshot_minutes": 1.0},
    {"init": "./data/teacher/model.safetensors"},
    {"teacher": "./data/teacher/model.safetensors"},
    {"facts": {"hardware": {"cpu": "another", "threads": 96}}},
    {"facts": {"software": {"torch": "3.0"}}},
    {"facts": {"processes": 8}},
    {"facts": {"device": "cuda"}},
]


@pytest.mark.parametrize("change", ROUNDING, ids=str)
def test_what_only_rounds_does_not(train_beton, change):
    """An interrupted run goes on with it."""
    assert key(train_beton, **change) == key(train_beton)


def test_a_run_that_goes_on_elsewhere_says_what_differs(train_beton, tmp_path):
    """Nothing where nothing does, nor of another output's run."""
    begun = record(train_beton, out=tmp_path / "a")
    assert begun.note() is None
    begun.write()
    assert begun.note() is None
    moved = record(train_beton, out=tmp_path / "a", facts={"hardware": {"threads": 96}})
    moved.write()  # how it began stays
    note = moved.note()
    assert note.startswith("warning: ")
    assert "which is 96" in note
    other = record(train_beton, out=tmp_path / "a", epochs=7)
    note = other.note()
    assert note.startswith("note: this run begins anew: ")
    assert str(begun.folder) in note
    assert "params.epochs 1, which is 7" in note
    assert record(train_beton, out=tmp_path / "b", epochs=7).note() is None


def test_machines_of_several_kinds_do_the_same_work(train_beton, tmp_path):
    """Hardware rounds; what processes compare names all else that decides."""
    asked = {}

    class Listening(World):
        def broadcast_config(self, key, decide):
            asked.update(key)
            return decide()

    params = Params.model_construct(train=PARAMS, seed=0, device="cpu")
    told = {"fresh": True, "tell": print, "store": "abcd"}
    open_run("student", params, train_beton.manifest, tmp_path / "student", Listening(), **told)
    assert {"seed", "software", "code", "store", "processes"} <= asked["run"].keys()
    assert "hardware" not in asked["run"]
